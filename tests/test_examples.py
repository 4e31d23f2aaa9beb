"""Every configuration that is shipped loads, says what it means, and fits the network it names."""

import importlib
import math
import re
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from scripted_device import scripted_device

from htas import datasets
from htas.cli import main
from htas.cost.counts import CountCost
from htas.cost.paper import paper_cost
from htas.experiments.arm_tables import read_arms
from htas.graph import Network, resize, trace
from htas.graph.layer import Layer
from htas.metrics import Case, Metric, OnRound, Pending
from htas.run.config import Config, load
from htas.search.problem import Problem
from htas.spaces import design
from htas.spaces.survey import survey
from htas.strategies.tas import Tas
from htas.timing.measurement import Measurement
from htas.timing.target import Target
from htas.training.train import Training, evaluate

ROOT = Path(__file__).parent.parent
PAPER = sorted((ROOT / "examples" / "paper").glob("*.toml"))
DEMO, COMPARED = ROOT / "htas" / "cli" / "demo.toml", ROOT / "benchmarks" / "compare" / "cifar10.toml"
ARMS = sorted((ROOT / "examples" / "arms").glob("*.toml"))
COMPARED_ARMS = [path for path in sorted(COMPARED.parent.glob("*.toml")) if path != COMPARED]
SHIPPED = [DEMO, COMPARED, *(path for path in sorted((ROOT / "examples").rglob("*.toml")) if path not in ARMS)]
SHORT = [
    *("--data.name=digits", "--split.limit=48", "--target.device=cpu", "--target.batch=2"),
    *("--strategy.epochs=1", "--strategy.batch=8"),
    *("--train.epochs=1", "--train.warmup=0", "--train.rest=0", "--train.batch=16"),
]
"""Three steps of search, each with one of the architecture, and three of training."""

DEEP = [pytest.param(path, id=path.stem, marks=pytest.mark.slow) for path in SHIPPED if "resnet110" in path.stem]
OTHERS = [pytest.param(path, id=path.stem) for path in SHIPPED if "resnet110" not in path.stem]
by_name = pytest.mark.parametrize("path", [*OTHERS, *DEEP])


@pytest.mark.parametrize("path", [*ARMS, *COMPARED_ARMS], ids=lambda path: path.stem)
def test_shipped_arms_load_over_their_configuration(path):
    for arm in read_arms(path):
        load(DEMO if path in ARMS else COMPARED, ["--constraints.latency=60%", *arm.overrides])  # or it raises
    assert len(read_arms(path)) > 2


@by_name
def test_a_shipped_configuration_loads_and_its_design_fits_its_network(path):
    config = load(path)
    design.check(traced(config.family, config.data.classes, config.data.shapes[0], config.design.adds), config.design)
    assert load(path).toml() == config.toml()


@by_name
def test_a_shipped_search_lets_its_logits_move(path):
    config = load(path)
    images = {"digits": 1797 * 4 // 5, "cifar10": 50_000, "cifar100": 50_000}[config.data.name]
    steps = config.strategy.epochs * int(images * (1 - config.split.validation)) // config.strategy.batch
    assert config.strategy.arch_lr * steps >= 10


# -- the rows of the paper's tables ------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_a_row_of_the_paper_is_what_its_name_says_at_full_length(path):
    data, network, where, method = path.stem.split("-")
    config = load(path)
    assert config.data.name == data
    assert f"resnet{config.family.depth}" == network
    assert (config.target.device, config.target.batch) == {"gpu": ("cuda", 1024), "cpu": ("cpu", 4)}[where]
    assert (*config.design.spaces, config.strategy.cost, config.strategy.loss) == {
        "htas": ("hardware", "paper", "lambda"),
        "tas": ("tas", "macs", "band"),
    }[method]
    assert (config.strategy.epochs, config.train.length, config.design.alpha) == (600, 305, 1.0)
    assert f"htas run examples/paper/{path.name} --data.path=FOLDER" in path.read_text()
    assert f"[{path.stem}]({path.name})" in (path.parent / "README.md").read_text()


def test_one_word_restores_the_search_of_tas_and_two_options_that_of_htas():
    for path in PAPER:
        search = replace(Tas(), ratio=load(path).strategy.ratio)
        changes = {} if path.stem.endswith("-tas") else {"cost": "paper", "loss": "lambda", "weight": 1.0}
        assert vars(replace(search, **changes)) == vars(load(path).strategy), path.name


def test_tas_searches_alike_for_every_device():
    for path in PAPER:
        if path.stem.endswith("gpu-tas") and path.stem.startswith("cifar100"):
            gpu, cpu = load(path), load(path.with_stem(path.stem.replace("gpu", "cpu")))
            assert (gpu.strategy, gpu.design, gpu.train) == (cpu.strategy, cpu.design, cpu.train)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.slow
@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_a_row_of_the_paper_runs_for_a_few_steps(path, tmp_path):
    config = load(path, SHORT)
    problem = planted(config, tmp_path / "search.safetensors")
    found = config.strategy.search(problem)
    assert found.arch in problem.space
    (epoch,) = found.epochs
    assert math.isfinite(epoch.train_loss) and math.isfinite(epoch.validation_loss)
    assert 0 < epoch.expected_cost < 2 and 0 < epoch.argmax_cost < 2
    network = problem.network
    model = resize(network, found.arch)
    Training(
        model, problem.data.train, config.train, seed=0, device="cpu", title="found",
        checkpoint=tmp_path / "train.safetensors", teacher=resize(network, network.base), distill=config.distill,
    ).run()  # fmt: skip
    assert 0 <= evaluate(model, problem.data.validation, device="cpu") <= 1


class Stairs(Metric):
    """A layer takes as long as the next multiple of eight widths."""

    unit: ClassVar[str] = "s"

    def measure(
        self, cases: Sequence[Case], *, on_round: OnRound | None = None, pending: Pending | None = None
    ) -> list[Measurement]:
        return [
            Measurement((1e-6 * (100 + 8 * math.ceil(case.outputs / 8)),), "s")
            for case in cases
            if isinstance(case, Layer)
        ]


def planted(config: Config, checkpoint: Path) -> Problem:
    """What a run of it would search, on a device whose latencies are made up."""
    data = datasets.load(config.data, limit=config.split.limit)
    network = traced(config.family, config.data.classes, config.data.shapes[0], config.design.adds)
    options = config.design
    content = survey(options.survey_plan(network), Stairs(Target(threads=1))).layers
    ((_, space),) = design.spaces(network, content, options).items()
    cost = {"paper": paper_cost(network, content, options), "macs": CountCost(network)}[config.strategy.cost]
    return Problem(network, config.family.reset, data, space, cost, "cpu", 0, checkpoint, lambda: network.module)


@cache
def traced(family: Any, classes: int, shape: tuple[int, ...], adds: Any) -> Network:
    """The network of a configuration; many have the same one."""
    return trace(family.build(classes), torch.zeros(1, *shape), adds=adds, project_norm=family.project_norm)


# -- a network of one's own --------------------------------------------------------------------------------------------


def run_onnx(path: Path, inputs: torch.Tensor) -> list[Any]:
    """What ONNX Runtime makes of the only input of a file, output by output."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    outputs: list[Any] = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
    return outputs


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_example_of_an_own_network_leaves_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    own_model = importlib.import_module("own_model")
    options = {"survey.store": "none", "survey.undecided": 1, "train.precision": "fp32", "strategy.precision": "fp32"}
    with scripted_device():
        found = own_model.main(tmp_path, 3, options={**options, "train.epochs": 2}, search_epochs=1)
    base = found.results[0]
    assert (
        found.result.predicted <= 0.5 * base.predicted
        and found.result.measured.estimate <= 0.5 * base.measured.estimate
    )
    assert found.result.accuracy >= 0.9
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fast", "fast.onnx", "report.html", "run"]
    images = torch.randn(3, 1, 16, 16)
    (logits,) = run_onnx(tmp_path / "fast.onnx", images)
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(logits), found.model(images), atol=1e-4, rtol=1e-4)
    assert type(found.model) is own_model.Net


LEAST = {
    "survey.store": "none", "survey.rounds": 1, "design.groups": 8, "design.spaces": ["hardware"],
    "calibrate.networks": 4, "strategy.epochs": 1, "strategy.precision": "fp32", "train.epochs": 1,
    "train.precision": "fp32",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_example_of_series_goes_through_every_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    series = importlib.import_module("series")
    with scripted_device():
        outcome = series.main(tmp_path, 4, 480, **LEAST)
    assert outcome.result.predicted <= 0.5 * outcome.results[0].predicted
    assert type(outcome.model) is series.SeriesNet
    inputs = torch.randn(3, 3, 128)
    (logits,) = run_onnx(tmp_path / "fast.onnx", inputs)
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(logits), outcome.model(inputs), atol=1e-4, rtol=1e-4)
    assert (tmp_path / "report.html").exists()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_example_of_a_detector_learns_by_its_own_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    detector = importlib.import_module("detector")
    with scripted_device():
        outcome = detector.main(tmp_path, 1, 64, **LEAST)
    assert outcome.result.predicted <= 0.5 * outcome.results[0].predicted
    narrower = {site for site, width in outcome.arch.widths.items() if width < outcome.results[0].arch.widths[site]}
    assert any(site.startswith(("neck", "heads")) for site in narrower)
    assert any(site.startswith("heads") for site in outcome.arch.widths)
    images = torch.randn(2, 3, 64, 64)
    found, *maps = run_onnx(tmp_path / "fast.onnx", images)
    assert found.shape == (2, 8 * 8 + 4 * 4, 6) and [each.shape[1:] for each in maps] == [(6, 8, 8), (6, 4, 4)]
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), outcome.model(images)[0], atol=1e-3, rtol=1e-3)


def test_the_page_on_own_networks_shows_the_code_of_the_example() -> None:
    page = (ROOT / "docs" / "own-model.md").read_text()
    code = [(ROOT / "examples" / name).read_text() for name in ("own_model.py", "detector.py")]
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 5 and all(any(block in text for text in code) for block in blocks)


@pytest.mark.slow
def test_the_commands_of_that_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    page = (ROOT / "docs" / "own-model.md").read_text()
    commands = re.findall(r"```sh\nhtas (.*?)\n```", page)
    content, *others = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    assert [tomllib.loads(other)["data"]["name"] for other in others] == ["image_folder", "hub"]
    (tmp_path / "own_model.py").write_text((ROOT / "examples" / "own_model.py").read_text())
    (tmp_path / "own.toml").write_text(content)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_model", raising=False)
    assert [command.split()[0] for command in commands] == ["inspect", "run"]
    short = ["--split.limit=60", "--survey.store=none", "--survey.undecided=1", *SHORT[2:]]
    with scripted_device():
        assert main(commands[0].split()) == 0
        assert main([*commands[1].split(), *short]) == 0
    assert "100.0 % of the multiply-adds can be searched" in capsys.readouterr().out
    assert (tmp_path / "runs" / "own" / "report.html").exists()
