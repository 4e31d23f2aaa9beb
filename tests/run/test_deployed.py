"""The accuracy of what a runtime runs, beside that of PyTorch."""

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest
import torch
from onnxruntime import InferenceSession
from torch import Tensor, nn

from htas.data.split import Data, Split
from htas.data.task import CLASSIFY, Task
from htas.errors import UserError
from htas.formats.int8 import feeds_of, needs_seven_bits, quantize
from htas.formats.onnx_network import static_graph
from htas.formats.parity import unlike_fp32
from htas.run.config import load
from htas.run.deployed import Runs, as_deployed, calibration_images
from htas.run.run import Run
from htas.run.stage import ensure
from htas.run.stages import SURVEY
from htas.runtimes import Program, open_runtime
from htas.timing.target import Target, instructions

SHAPE = (3, 8, 8)
INT8 = Target(runtime="onnxruntime", precision="int8", batch=4, threads=1, shapes=(SHAPE,))


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 16, 3), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.conv(x).relu().mean((2, 3)))  # type: ignore[no-any-return]


def split(images: Tensor, labels: Tensor) -> Split:
    return Split(images, labels, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), flip=False, crop=0)


def data(network: nn.Module, count: int = 230, task: Task = CLASSIFY) -> Data:
    """Images whose labels the network gives, so that its accuracy in fp32 is 1."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, *SHAPE), generator=generator, dtype=torch.uint8)
    part = split(images, torch.zeros(count, dtype=torch.int64))
    with torch.no_grad():
        part = replace(part, labels=network(next(part.batches(count))[0]).argmax(1))
    return Data(4, (SHAPE,), part, part, part, part, task)


@pytest.fixture
def network() -> Small:
    torch.manual_seed(0)
    return Small().eval()


def sure(logits: Tensor, _: Tensor) -> Tensor:
    """The probability of the first class, which every rounding changes."""
    return logits.softmax(1)[:, 0].mean()


def by_hand(network: Small, images: Tensor, everything: Tensor) -> Tensor:
    """Logits of a file in int8 that ONNX Runtime runs."""
    graph = static_graph(network, (torch.zeros(4, *SHAPE),))
    feeds = feeds_of(graph, [[images[at : at + 4].numpy()] for at in range(0, 52, 4)])
    content = quantize(graph, feeds, seven_bits=needs_seven_bits(instructions()))
    session = InferenceSession(content, providers=["CPUExecutionProvider"])
    outputs = [session.run(None, {"input0": everything[at : at + 4].numpy()})[0] for at in range(0, 52, 4)]
    return torch.from_numpy(np.concatenate(outputs))


def test_the_score_is_that_of_a_file_quantized_by_hand(network: Small) -> None:
    sample = data(network, 52, replace(CLASSIFY, score=sure))
    (images,), everything = calibration_images(sample, 7), next(sample.test.batches(52))[0]
    found = as_deployed(network, INT8, sample, seed=7)
    assert found is not None and (found.precision, found.images) == ("int8", 52)
    with torch.no_grad():
        plain = float(sure(network(everything), everything))
    difference = float(sure(by_hand(network, images, everything), everything)) - plain
    assert difference != 0
    assert found.difference == pytest.approx(difference, rel=1e-3)
    assert found.noise is not None and found.noise > 0
    assert found.accuracy - found.difference == pytest.approx(plain)


@pytest.mark.parametrize(("runtime", "rel"), [("onnxruntime", 1e-3), ("openvino", 0.5)])
def test_outputs_are_as_far_off_as_those_of_a_file_quantized_by_hand(network: Small, runtime: str, rel: float) -> None:
    """Judged by distances, which cannot cancel each other out as differences of scores may; each image knows its number
    by its label."""
    sample = data(network, 52)
    test = replace(sample.test, labels=torch.arange(52))
    (images,), everything = calibration_images(sample, 7), next(test.batches(52))[0]
    with torch.no_grad():
        plain = network(everything)

    def off(logits: Tensor, numbers: Tensor) -> Tensor:
        return (logits - plain[numbers]).abs().mean()

    sample = replace(sample, test=test, task=replace(CLASSIFY, score=off))
    found = as_deployed(network, replace(INT8, runtime=runtime), sample, seed=7)
    expected = float((by_hand(network, images, everything) - plain).abs().mean())
    assert expected > 1e-4  # fp32 is off by nothing
    assert found is not None and found.difference == pytest.approx(expected, rel=rel)


def test_a_program_takes_any_number_of_images() -> None:
    seen = []

    def outputs(images: Tensor) -> Tensor:
        seen.append(len(images))
        return images.sum((1, 2, 3), keepdim=False)[:, None]

    module = Runs(Program(lambda: None, outputs), 4)
    images = torch.randn(10, *SHAPE)
    assert torch.allclose(module(images), images.sum((1, 2, 3))[:, None])
    assert seen == [4, 4, 4]


def test_calibration_sees_training_images_alone(network: Small) -> None:
    sample = data(network)
    other = replace(sample, weights=sample.weights.where(torch.arange(230) < 20))
    (images,) = calibration_images(other, seed=3)
    assert sorted(images.sum((1, 2, 3)).tolist()) == pytest.approx(
        sorted(next(other.weights.batches(20))[0].sum((1, 2, 3)).tolist())
    )


def test_a_batch_that_is_larger_than_the_images_repeats_them(network: Small) -> None:
    images = torch.randn(6, *SHAPE)
    outputs = []
    for batch in (2, 4, 30):
        target = replace(INT8, batch=batch)
        program = open_runtime(target).deploy(network, target.example(), (images,))
        outputs.append(Runs(program, batch)(images))
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[2])
    assert not torch.equal(outputs[0], network(images))


def test_images_all_alike_are_refused(network: Small) -> None:
    sample = data(network)
    alike = split(torch.zeros(8, *SHAPE, dtype=torch.uint8), torch.zeros(8, dtype=torch.int64))
    with pytest.raises(UserError, match="all 8 images that calibrate int8 are alike"):
        as_deployed(network, INT8, replace(sample, weights=alike))


def test_the_users_own_judge_judges_what_runs(network: Small) -> None:
    def judge(model: nn.Module) -> float:
        with torch.no_grad():
            return float(model(torch.ones(3, *SHAPE)).mean())

    found = as_deployed(network, INT8, data(network, task=replace(CLASSIFY, judge=judge)))
    assert found is not None and found.noise is None and found.images == 0
    assert found.accuracy == pytest.approx(judge(network) + found.difference) and found.difference != 0


def test_a_device_runs_what_was_calibrated_here(
    network: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTAS_LOCK", str(tmp_path / "lock"))
    sample = data(network, 52, replace(CLASSIFY, score=sure))
    here, there = (
        as_deployed(network, replace(INT8, host=host), sample) for host in ("", f"exec:{shlex.quote(sys.executable)}")
    )
    assert here == there and here is not None and here.difference != 0


def test_a_device_reads_images_of_every_class(network: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    """They lie sorted by class in a folder; each network of a run is read on the same ones."""
    sample = data(network, 400)
    labels, seen = torch.arange(4).repeat_interleave(100), []

    def note(logits: Tensor, targets: Tensor) -> Tensor:
        seen.append(targets)
        return sure(logits, targets)

    sample = replace(sample, test=replace(sample.test, labels=labels), task=replace(CLASSIFY, score=note))
    monkeypatch.setattr("htas.run.deployed.MOST_ELSEWHERE", 40)
    monkeypatch.setattr("htas.run.deployed.open_runtime", lambda target: open_runtime(INT8))
    result = as_deployed(network, replace(INT8, host="exec:python3"), sample)
    assert result is not None and result.images == 40
    one, other = torch.cat(seen)[:40], torch.cat(seen)[40:]
    assert torch.equal(one, other) and torch.bincount(one, minlength=4).min() >= 4


class Ratio(Small):
    """It divides by 0 where the clamp is left out."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return logits / self.other(logits).clamp(min=0.5)  # type: ignore[no-any-return]


def test_outputs_that_are_not_finite_are_a_remark(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = Ratio().eval()
    fine = as_deployed(network, INT8, data(network))
    monkeypatch.setattr("htas.formats.int8.fp32_nodes", lambda model, feeds: [])
    faulty = as_deployed(network, INT8, data(network))
    assert fine is not None and faulty is not None and fine.remark == ""
    assert faulty.remark == "In int8 outputs are not finite, and in fp32 they are: do not deploy it so."


def test_outputs_that_have_little_to_do_with_fp32_are_a_remark() -> None:
    fp32 = torch.tensor([[1.0, -4.0]])
    assert unlike_fp32(fp32, fp32 + 1.9, "int8") == "" and unlike_fp32(fp32 * torch.nan, fp32 * torch.nan, "int8") == ""
    assert unlike_fp32(fp32, fp32 + 2.1, "int8").startswith("In int8 outputs have little to do with those in fp32: on ")


def test_several_outputs_are_not_judged(network: Small) -> None:
    class Two(Small):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            return super().forward(x), x

    assert as_deployed(Two().eval(), INT8, data(network)) is None


@pytest.mark.parametrize(
    ("runtime", "named"), [("onnxruntime", True), pytest.param("openvino", False, marks=pytest.mark.slow)]
)
def test_a_survey_names_the_layers_that_it_has_in_fp32(
    runtime: str, named: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = """
        from torch import nn

        def up(classes):
            parts = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(8, 6, 2, 2), nn.ReLU()
            return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, classes))
    """
    (tmp_path / "network_that_upsamples.py").write_text(dedent(source))
    monkeypatch.syspath_prepend(tmp_path)
    options = [
        "family.name=custom", "family.factory=network_that_upsamples:up", "data.name=digits", "survey.store=none",
        "survey.seconds=0.5", "survey.undecided=1", "design.groups=2", f"target.runtime={runtime}",
        "target.precision=int8", "target.threads=1",
    ]  # fmt: skip
    job = Run(load(None, options), tmp_path / "run")
    ensure(job, SURVEY)
    sentence = "Not quantized, since ONNX Runtime has no such layer in int8: 2"
    assert [each for each in job.survey.doubts if "quantized" in each] == [sentence] * named
