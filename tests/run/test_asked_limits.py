"""Controls keep the limits and bounds of a run where any of their kind does; the rows of others say what they break."""

import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import scripted_device as device
import test_controls
from scripted_device import scripted_device
from whole_run import do, options, rows

from htas.cost.limits import Limit
from htas.experiments.budgets import _table as sweep_table
from htas.graph import Arch
from htas.run import limits, run
from htas.run import rows as run_rows
from htas.run.controls import candidates, of_one_stage
from htas.run.optimize import OptimizationResult
from htas.run.optimize import _card as card_of
from htas.run.run import Run
from htas.search.record import LimitOutcome
from htas.timing.measurement import Measurement

OPTIONS = ("design.spaces=tas", "calibrate.networks=24")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on the planted device, up to its calibration; to be copied."""
    folder = tmp_path_factory.mktemp("runs") / "planted"
    with scripted_device(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "seconds", test_controls.seconds)
        run.open_run(options(*OPTIONS), folder)
        for stage in ("survey", "design", "calibrate"):
            do(stage, options(*OPTIONS), folder)
    return folder


def within(prepared: Path, folder: Path, *asked: str) -> Run:
    """The same run with limits or bounds."""
    job = run.open_run(options(*OPTIONS, *asked), folder)
    for name in ("survey", "design", "cost"):
        shutil.copy(prepared / f"{name}.json", folder)
    return job


def picked(job: Run, searched: Arch, monkeypatch: pytest.MonkeyPatch) -> dict[str, Arch]:
    """The controls of a searched network, by kind, on the planted device."""
    row = run_rows.new_row(job, "tas", searched, space="tas", strategy="knapsack", cost="table")
    with scripted_device(), monkeypatch.context() as patch:
        patch.setattr(device, "seconds", test_controls.seconds)
        return {each.kind: each.arch for each in run_rows._pick_controls(job, row).controls}


def times(job: Run, share: float) -> Arch:
    """The base network with all of its widths narrowed or widened alike."""
    widths = {name: job.network.sites[name].near(share * site.base) for name, site in job.network.widths.items()}
    return Arch(widths, job.network.base.depths)


def test_the_base_network_is_no_control_of_itself(prepared: Path, tmp_path: Path) -> None:
    job = within(prepared, tmp_path / "run")
    assert job.network.base not in [each.arch for each in candidates(job)]


def test_controls_keep_limits_that_the_searched_network_keeps(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow searched network of few parameters: faster uniform networks have several times as many."""
    job = within(prepared, tmp_path / "run", "constraints.params=60%")
    least, free = 0.6 * job.network.params(job.network.base), within(prepared, tmp_path / "free")
    without, with_limit = (picked(each, times(job, 1.5), monkeypatch) for each in (free, job))
    assert job.network.params(without["uniform"]) > job.network.params(job.network.base) > least
    assert {kind: job.network.params(arch) <= least for kind, arch in with_limit.items() if kind != "plain"} == {
        "uniform": True,
        "stage": True,
    }


def test_controls_keep_the_limit_of_latency_that_the_searched_network_misses(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = within(prepared, tmp_path / "run", "constraints.latency=70%")
    controls = picked(job, job.network.base, monkeypatch)
    base, uniform = (job.calibrated.cost(arch) for arch in (job.network.base, controls["uniform"]))
    assert uniform <= 0.75 * base


def test_a_control_out_of_bounds_says_which(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network with all widths narrowed alike has 64 channels there; the control stays, for comparison."""
    job = within(prepared, tmp_path / "run", 'design.bounds={"32"=[32,32],"64"=[64,64]}', "constraints.macs=90%")
    uniform = picked(job, times(job, 0.8), monkeypatch)["uniform"]
    words = limits.broken(job, uniform)
    assert all("channels, where design.bounds allows 32 to 32" in each for each in words[:3])
    sites = [name for name, site in job.network.widths.items() if site.base > 16]
    assert words[3:] == (f"{len(sites) - 3} other sites out of bounds",)
    assert not any("8x8" in each.name for each in of_one_stage(job, times(job, 0.8)))


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("params=50%", "% of the base network's, where 50% was asked for"),
        ("params=0.01M", "where 0.01M was asked for"),
        ("params=101%", ""),
    ],
)
def test_a_network_above_a_counted_limit_says_by_how_much(
    asked: str, words: str, prepared: Path, tmp_path: Path
) -> None:
    job = within(prepared, tmp_path / "run", f"constraints.{asked}", "constraints.latency=10%")
    breaks = limits.broken(job, job.network.base)
    assert len(breaks) == bool(words), "latency is measured"
    assert not words or (breaks[0].startswith("params is ") and breaks[0].endswith(words))


def measured(milliseconds: float, jitter: float = 0.0) -> Measurement:
    """Readings of one run, of which every second one is slower."""
    return Measurement(tuple(1e-3 * (milliseconds + jitter * (place % 2)) for place in range(96)), "s", {}, "one")


@pytest.mark.parametrize(
    ("asked", "milliseconds", "words"),
    [
        ("50%", 2.0, ""),
        ("50%", 2.008, ""),  # of what a search may use all but 0.5 %
        ("50%", 2.64, "latency is 2.64 ms, 66.0 % of the base network's, where 50% was asked for"),
        ("2 ms", 2.64, "latency is 2.64 ms, where 2 ms was asked for"),
        ("2 ms", 1.9, ""),
    ],
)
def test_a_measured_network_that_misses_its_budget_says_so(
    asked: str, milliseconds: float, words: str, prepared: Path, tmp_path: Path
) -> None:
    job = within(prepared, tmp_path / "run", f"constraints.latency={asked}")
    base = replace(run_rows.base_row(job), measured=measured(4.0))
    row = run_rows.new_row(job, "uniform x0.50", times(job, 0.5), space="-", strategy="uniform", cost="-")
    judged = limits.judged_rows(job, [base, replace(row, measured=measured(milliseconds))], base)
    assert [each.breaks for each in judged] == [(), (words,) if words else ()]


def test_what_noise_explains_is_not_missed(prepared: Path, tmp_path: Path) -> None:
    job = within(prepared, tmp_path / "run", "constraints.latency=50%")
    base = replace(run_rows.base_row(job), measured=measured(4.0))
    row = run_rows.new_row(job, "uniform x0.50", times(job, 0.5), space="-", strategy="uniform", cost="-")
    rng = random.Random(0)
    noisy = Measurement(tuple(2.23e-3 * (1 + rng.gauss(0, 0.1)) for _ in range(96)), "s", {}, "one")
    assert noisy.estimate > 2.02e-3, "above the limit, by more than a search leaves free"
    (judged,) = limits.judged_rows(job, [replace(row, measured=noisy)], base)
    assert judged.breaks == ()


@pytest.mark.parametrize(("error", "missed"), [(0.0, True), (0.004, True), (0.02, False)])
def test_a_search_misses_its_limit_by_more_than_its_noise(error: float, missed: bool) -> None:
    outcome = LimitOutcome("latency", "45%", 2.0e-3, 1.9e-3, 2.02e-3, error, "s")
    assert outcome.breach == (
        "latency is 2.02 ms, 45.5 % of the base network's, where 45% was asked for" if missed else ""
    )


def test_a_run_says_everywhere_that_its_budget_is_missed(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The stages of a finished run again, of which the readings miss a limit."""
    monkeypatch.setattr(limits, "_slow", lambda limit, row, base: "latency is too long" if row.space == "tas" else "")
    monkeypatch.setattr(limits, "limits", lambda run: [Limit("latency", "50%", run.calibrated, 1.0)])
    with scripted_device():
        do("measure", options(), copied, again=True)
        do("report", options(), copied, again=True)
    assert "measure: tas: misses its limit: latency is too long" in capsys.readouterr().err
    assert [row.name for row in rows(copied).values() if row.breaks] == ["tas"]
    result = OptimizationResult(run.Run(options(), copied))
    words = "misses its limit: latency is too long."
    assert str(result).startswith(f"The searched network (TAS's widths) {words}")
    assert f"\n`tas` {words}\n" in card_of(result)
    assert f"The searched network (TAS's widths) {words}" in (copied / "report.md").read_text()


def test_the_table_of_a_sweep_marks_a_missed_budget(prepared: Path, tmp_path: Path) -> None:
    job = within(prepared, tmp_path / "run")
    base = replace(run_rows.base_row(job), measured=measured(4.0))
    found = [
        replace(base, name="70%", space="tas"),
        replace(base, name="45%", space="tas", breaks=("latency is long",)),
    ]
    table = sweep_table([base, *found])
    assert str(table).splitlines()[0] == "45%: the searched network misses its limit: latency is long."
    assert [row[table.rows[0].index("its budget")] for row in table.rows[1:]] == ["", "kept", "missed"]
