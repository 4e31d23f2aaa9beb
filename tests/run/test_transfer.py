"""A run's survey for another device, whose latencies are planted by its host."""

import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from scripted_device import scripted_device
from torch import nn

from htas.cli import main
from htas.errors import UserError
from htas.files import read_json, read_record
from htas.graph.layer import Layer
from htas.metrics.latency import Latency
from htas.run.config import Config, load
from htas.run.run import Run, open_run
from htas.run.stage import ensure, finished
from htas.run.stages import CALIBRATE, DESIGN, REPORT, SURVEY
from htas.run.transfer import FILES, TransferRecord, transfer
from htas.timing.measurement import Measurement

HOSTS = {f"exec:env DEVICE={name} {sys.executable}": name for name in ("first", "slow", "other")}
FIRST, SLOW, OTHER = HOSTS
"""The first computes 8 channels at a time, the slow one too, the other one 12."""
NAME = Path(sys.executable).name
"""What each is called by."""
READ: list[str] = []
"""The devices that were read, in order."""


def seconds(case: Any, step: int) -> float:
    if isinstance(case, Layer):
        return 1e-6 * (1 + math.ceil(case.outputs / step)) if case.op in ("conv", "linear") else 1e-9
    parts = [part.weight.shape[0] for part in case.modules() if isinstance(part, nn.Conv2d | nn.Linear)]
    return sum(1e-6 * (1 + math.ceil(width / step)) for width in parts)


@pytest.fixture(autouse=True)
def _planted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def measure(self: Latency, cases: Sequence[Any], *, on_round: Any = None, pending: Any = None) -> list[Measurement]:
        name = HOSTS[self.target.host]
        READ.append(name)
        step, times = {"first": (8, 1.0), "slow": (8, 5.0), "other": (12, 1.0)}[name]
        context = {"clock": "scripted", **self.target.facts()}
        return [Measurement((times * seconds(case, step),) * 2, "s", context, "one") for case in cases]

    READ.clear()
    with scripted_device(), monkeypatch.context() as patch:  # undone before the device, which patches the same
        patch.setattr(Latency, "measure", measure)
        yield


def options(host: str, *more: str) -> Config:
    return load(None, [
        f"--target.host={host}", "--target.runtime=onnxruntime", "--target.batch=1", "--target.threads=1",
        "--family.depth=8", "--split.limit=60", "--survey.store=none", "--survey.undecided=1", "--calibrate.networks=8",
        *more,
    ])  # fmt: skip


@pytest.fixture(scope="module")
def surveyed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the first device's run, calibrated; made by the first test."""
    return tmp_path_factory.mktemp("runs") / "first"


@pytest.fixture
def source(surveyed: Path) -> Run:
    run = open_run(options(FIRST), surveyed)
    for stage in (SURVEY, DESIGN, CALIBRATE):
        ensure(run, stage)
    READ.clear()
    return run


@pytest.mark.slow
def test_a_slower_device_of_the_same_staircase_goes_on_with_the_survey(source: Run, tmp_path: Path) -> None:
    run = open_run(options(SLOW), tmp_path / "slow")
    path, table = transfer(source, run, 12)
    record = read_record(path, TransferRecord)
    assert record.can and record.fitted.worst_error < 0.01 and len(record.fitted.networks) <= 12
    error, verdict = table.before
    assert error.startswith(f"Prediction error on {NAME}-2 (") and "each predicted by a fit on the others" in error
    assert f"can use the survey of {NAME} (" in verdict
    assert set(READ) == {"slow"}
    # it is calibrated, and says where its layers come from
    assert all(finished(run, stage) for stage in (SURVEY, DESIGN, CALIBRATE))
    widest = source.design.spaces["hardware"].widest
    for arch in (run.network.base, widest):
        assert run.calibrated.cost(arch) == pytest.approx(5 * source.calibrated.cost(arch), rel=0.01)
    for name in ("survey.json", "cost.json"):
        content = read_json(run.folder / name)
        assert content["borrowed_from"] == record.source and f"not on {NAME}" in content["doubts"][0]
    ensure(run, REPORT)
    assert f"the layers were measured on {NAME} (" in json.dumps(read_json(run.folder / "report.json")["remarks"])
    # nothing is measured again, but a survey of its own when asked for
    READ.clear()
    assert transfer(source, run, 12)[1] == table and READ == []
    ensure(run, SURVEY, again=True)
    assert set(READ) == {"slow"} and not run.survey.borrowed_from
    with pytest.raises(UserError, match=r"survey\.json is a survey of that device itself"):
        transfer(source, run, 12)


def test_a_device_with_another_staircase_needs_a_survey_of_its_own(source: Run, tmp_path: Path) -> None:
    run = open_run(options(OTHER), tmp_path / "other")
    path, table = transfer(source, run)
    assert not read_record(path, TransferRecord).can
    assert f"cannot use the survey of {NAME} (" in table.before[1] and "needs a survey of its own" in table.before[1]
    assert not any((run.folder / name).exists() for name in FILES)
    # what an earlier transfer wrote does not stay
    (run.folder / "survey.json").write_bytes((source.folder / "survey.json").read_bytes())
    content = read_json(source.folder / "survey.json")
    (run.folder / "survey.json").write_text(json.dumps({**content, "borrowed_from": "another"}))
    transfer(source, run, again=True)
    assert not (run.folder / "survey.json").exists()


def test_the_command_names_the_folder_and_what_comes_next(
    source: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["transfer", str(source.folder), "--host", SLOW, "--networks=8", "--out", "there", "--json"]) == 0
    output = capsys.readouterr()
    assert json.loads(output.out)["record"] == "there/transfer.json"
    assert "transfer: next: htas run there" in output.err
    assert read_json(tmp_path / "there" / "survey.json")["borrowed_from"].startswith(f"{NAME} (")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ([], "htas transfer needs the folder of a run and another device: htas transfer RUN --host"),
        (["--host", FIRST], f"was surveyed on {FIRST} itself; name another device with --host"),
        (["--host", SLOW, "--networks=25"], "--networks must be 6 to 24, got 25"),
        (["--host", SLOW, "--design.groups=4"], "htas transfer changes the target alone, and --design.groups=4"),
        (["--host", f"{SLOW},{OTHER}"], "target.host names 2 devices"),
    ],
)
def test_what_cannot_be_transferred_is_one_sentence(
    more: list[str], words: str, source: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["transfer", str(source.folder), "--out", str(tmp_path / "there"), *more]) == 2
    assert words in capsys.readouterr().err.splitlines()[-1]


def test_a_run_that_is_not_calibrated_is_not_transferred(source: Run, tmp_path: Path) -> None:
    bare = open_run(options(FIRST), tmp_path / "bare")
    with pytest.raises(UserError, match=r"survey\.json does not exist; run `htas survey"):
        transfer(bare, open_run(options(SLOW), tmp_path / "slow"))
    borrowed = open_run(options(SLOW), tmp_path / "borrowed")
    transfer(source, borrowed, 8)
    with pytest.raises(UserError, match=rf"borrowed has the survey of {NAME} .*; transfer that one"):
        transfer(borrowed, open_run(options(OTHER), tmp_path / "third"))


def test_a_transfer_that_is_refused_makes_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare = open_run(options(FIRST), tmp_path / "bare")
    assert main(["transfer", str(bare.folder), "--host", SLOW]) == 2
    assert "survey.json does not exist; run `htas survey" in capsys.readouterr().err
    assert [each.name for each in tmp_path.iterdir()] == ["bare"]
