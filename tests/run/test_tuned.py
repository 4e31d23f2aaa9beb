"""Networks that quantization costs too much are trained on in simulated int8, judged by training images."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from scripted_device import scripted_device
from whole_run import options

from htas.files import read_tensors
from htas.report.result import Deployed, Result
from htas.run import optimize, stages, tuned
from htas.run import rows as run_rows
from htas.run.run import Run, open_run
from htas.timing.target import Target

INT8 = ("target.runtime=onnxruntime", "target.precision=int8", "family.depth=8", "train.int8_epochs=1")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """With a trained base network."""
    with scripted_device():
        job = open_run(options(*INT8), tmp_path_factory.mktemp("trained") / "run")
        run_rows.train_row(job, run_rows.base_row(job))
        yield job


@pytest.fixture
def run(trained: Run, tmp_path: Path) -> Run:
    """The same in a folder of its own."""
    shutil.copytree(trained.folder, tmp_path / "run")
    return replace(trained, folder=tmp_path / "run")


@pytest.fixture
def row(run: Run) -> Result:
    return run_rows.train_row(run, run_rows.base_row(run))[0]


def planted(monkeypatch: pytest.MonkeyPatch, *differences: float, noise: float | None = 0.001) -> list[int]:
    """What int8 changes, in the order in which it is asked; the numbers of images that were judged."""
    answers, asked = iter(differences), []

    def deployed(model: object, target: Target, data: object, **options: object) -> Deployed:
        asked.append(len(data.test))  # type: ignore[attr-defined]
        difference = next(answers)
        return Deployed("int8", 0.8 + difference, difference, noise, asked[-1])

    monkeypatch.setattr(tuned, "as_deployed", deployed)
    return asked


def weights(run: Run, name: str) -> dict[str, torch.Tensor]:
    return read_tensors(run.model_file(name))[0]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_a_network_that_loses_much_is_trained_on_once(run: Run, row: Result, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, before = planted(monkeypatch, -0.02, -0.001), weights(run, "base")
    (found,) = tuned.tuned_rows(run, [row])
    assert found.remarks[-1] == (
        "In int8 with weights of 1 further epoch in simulated int8: quantization alone cost \u22122.00 points on 30 "
        "training images, and \u22120.10 points after them."
    )
    assert asked == [30, 30]  # of the training images, of which validation has the others
    assert same(before, weights(run, "base")) and not same(before, weights(run, "base-int8"))
    assert same(weights(run, "base-int8"), tuned.int8_network(run, row).state_dict())
    assert same(before, run_rows.load_network(run, row).state_dict())
    (again,) = tuned.tuned_rows(run, [row])  # nothing is asked or trained
    assert again == found


@pytest.mark.parametrize(("difference", "noise"), [(-0.004, 0.001), (-0.02, 0.03), (0.01, 0.001), (-0.005, None)])
def test_what_loses_little_or_not_surely_stays(
    run: Run, row: Result, monkeypatch: pytest.MonkeyPatch, difference: float, noise: float | None
) -> None:
    planted(monkeypatch, difference, noise=noise)
    assert tuned.tuned_rows(run, [row]) == [row]
    assert not run.model_file("base-int8").exists()
    assert same(weights(run, "base"), tuned.int8_network(run, row).state_dict())


def test_epochs_that_gain_nothing_are_dropped(run: Run, row: Result, monkeypatch: pytest.MonkeyPatch) -> None:
    planted(monkeypatch, -0.02, -0.02)
    assert tuned.tuned_rows(run, [row]) == [row]
    assert not run.model_file("base-int8").exists()


def test_epochs_that_diverge_are_dropped(
    run: Run, row: Result, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    planted(monkeypatch, -0.02)
    wild = replace(run, config=replace(run.config, train=replace(run.config.train, lr=1e30)))
    assert tuned.tuned_rows(wild, [row]) == [row]
    assert "it is quantized without them: training of train base in int8 diverged" in capsys.readouterr().err
    assert not run.model_file("base-int8").exists()


def test_weights_of_an_older_network_are_not_used(run: Run, row: Result, monkeypatch: pytest.MonkeyPatch) -> None:
    planted(monkeypatch, -0.02, -0.001, -0.001)
    tuned.tuned_rows(run, [row])
    run_rows.train_row(run, row, again=True, start=run.model_file("base"))
    assert same(weights(run, "base"), tuned.int8_network(run, row).state_dict())
    assert tuned.tuned_rows(run, [row]) == [row]


def test_another_precision_needs_none(run: Run, row: Result, monkeypatch: pytest.MonkeyPatch) -> None:
    planted(monkeypatch)
    target = replace(run.config.target, precision="fp32")
    assert tuned.tuned_rows(replace(run, config=replace(run.config, target=target)), [row]) == [row]
    train = replace(run.config.train, int8_epochs=0)
    assert tuned.tuned_rows(replace(run, config=replace(run.config, train=train)), [row]) == [row]


@pytest.mark.parametrize(
    ("flags", "precision", "bits"),
    [("sse2 avx2", "int8", 7), ("sse2 avx512_vnni", "int8", 8), ("asimd", "int8", 8), ("sse2", "fp32", 0)],
)
def test_the_processor_tells_how_many_bits_weights_have(
    monkeypatch: pytest.MonkeyPatch, flags: str, precision: str, bits: int
) -> None:
    monkeypatch.setattr(Target, "instructions", lambda self: frozenset(flags.split()))
    assert tuned.weight_bits(Target(runtime="onnxruntime", precision=precision)) == bits


@pytest.mark.parametrize(("flags", "seven"), [("sse2 avx2", True), ("sse2 avx512_vnni", False)])
def test_files_are_written_for_the_targets_processor(
    run: Run, row: Result, monkeypatch: pytest.MonkeyPatch, flags: str, seven: bool
) -> None:
    bits: list[bool] = []
    for module in (stages, optimize):
        monkeypatch.setattr(module, "export", lambda *_, seven_bits: bits.append(seven_bits) or 0.0)
    monkeypatch.setattr(Target, "instructions", lambda self: frozenset(flags.split()))
    monkeypatch.setattr(stages, "load", lambda path: run.config)
    monkeypatch.setattr(stages, "need", lambda run, stage: None)
    monkeypatch.setattr(stages, "_trained", lambda run: SimpleNamespace(results=[row]))
    stages.export_network(run.folder, ".onnx", "base", int8=True)
    outcome: Any = SimpleNamespace(run=run, result=row, config=run.config)
    optimize.OptimizationResult.export(outcome, "net.onnx", "int8")
    assert bits == [seven, seven]
