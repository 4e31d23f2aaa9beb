"""Limits are kept as they are measured or counted; several budgets share what they can; other strategies end alike."""

import math
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from scripted_device import scripted, scripted_device
from torch import nn
from whole_run import OPTIONS, do, kill, options, rows

from htas.errors import UserError
from htas.experiments import budgets as experiment
from htas.experiments.plans import FastestPlan, SweepPlan
from htas.files import from_json, read_json, read_record
from htas.graph import resize, trace
from htas.graph.layer import Layer
from htas.metrics.energy import Energy
from htas.metrics.latency import Latency
from htas.metrics.memory import Memory
from htas.report.result import Result
from htas.run import plan, run
from htas.run import stages as pipeline
from htas.run.config import Config, load, read
from htas.search import finish
from htas.search.record import SearchRecord
from htas.strategies.differentiable import _Search
from htas.timing.measurement import Measurement

pytestmark = pytest.mark.timeout(300)  # whole runs


@pytest.fixture(scope="module", autouse=True)
def _scripted() -> Iterator[None]:
    with scripted_device():
        yield


GRID = ("design.spaces=[grid]", "design.groups=8", "calibrate.networks=24")
"""A cost model that is good enough for narrow limits."""


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The survey, the design and the cost model of GRID, which no limit and no strategy changes; to be read only."""
    folder = tmp_path_factory.mktemp("runs") / "calibrated"
    run.open_run(options(*GRID), folder)
    for stage in ("survey", "design", "calibrate"):
        do(stage, options(*GRID), folder)
    return folder


def begun(config: Config, calibrated: Path, folder: Path) -> Path:
    """The folder of a run of GRID in which these three stages are finished."""
    run.open_run(config, folder)
    for name in ("survey", "design", "cost"):
        shutil.copy(calibrated / f"{name}.json", folder)
    return folder


LAYERS: dict[tuple[torch.Size, ...], list[Layer]] = {}


def layers_of(module: nn.Module) -> list[Layer]:
    """The layers of a ResNet; traced once where parameters are of the same shapes."""
    shapes = tuple(parameter.shape for parameter in module.parameters())
    if shapes not in LAYERS:
        traced = trace(module, torch.zeros(2, *options().data.shapes[0]))
        LAYERS[shapes] = [use.layer for use in traced.uses(traced.base)]
    return LAYERS[shapes]


def whole(self: Latency, cases: Sequence[Any], **rest: Any) -> list[Measurement]:
    """Networks take a quarter more than their layers, and a twentieth more again where few are measured together."""
    found = scripted(self, cases, **rest)
    few = len(cases) < 9
    for number, case in enumerate(cases):
        if not isinstance(case, Layer):
            steps = sum(1e-6 * (1 + math.ceil(layer.outputs / 8)) for layer in layers_of(case))
            slower = 1.05 if few and number else 1.0
            found[number] = Measurement((1.25 * slower * steps,) * 3, "s", {}, "one")
    return found


@pytest.mark.slow
def test_a_budget_is_kept_when_measured_and_used(tmp_path, monkeypatch):
    """Whole networks take a quarter more than their layers, and beside the base network a twentieth more again: a moved
    limit corrects that."""
    config, folder = options(*GRID, "family.depth=8", "constraints.latency=60%"), tmp_path / "run"

    monkeypatch.setattr(Latency, "measure", whole)
    monkeypatch.setattr(plan, "show", lambda *args: None)
    pipeline.run_all(run.open_run(config, folder), "htas run")
    record = read_record(folder / "search-grid.json", SearchRecord)
    (kept,) = record.limits
    assert (kept.metric, kept.asked, kept.unit) == ("latency", "60%", "s")
    assert record.strategy == "differentiable within latency 60%"
    assert record.measured_archs >= 2
    assert 0.93 <= kept.ratio <= 1.0
    assert kept.predicted * 1.05 == pytest.approx(kept.measured, rel=0.02)
    text = (folder / "report.md").read_text()
    assert "measured again" in text and "60%" in text


@pytest.mark.slow
def test_counted_limits_need_no_clock(calibrated, tmp_path, monkeypatch):
    config = options(*GRID, "constraints.params=50%", "constraints.macs=70%")
    folder = begun(config, calibrated, tmp_path / "run")
    monkeypatch.setattr(finish._Finish, "against_base", None)
    monkeypatch.setattr(finish, "uniforms", lambda *args: [])  # which may be more accurate by chance, and use less
    do("search", config, folder)
    record = read_record(folder / "search-grid.json", SearchRecord)
    network = run.Run(config, folder).network
    assert {kept.metric: kept.unit for kept in record.limits} == {"macs": "MACs", "params": "parameters"}
    assert network.params(record.arch) <= 0.5 * network.params(network.base)
    assert network.macs(record.arch) <= 0.7 * network.macs(network.base)
    assert max(kept.ratio for kept in record.limits) >= 0.9


@pytest.mark.slow
def test_memory_is_kept_as_it_is_counted(calibrated, tmp_path):
    config = options(*GRID, "constraints.memory=60%")
    folder = begun(config, calibrated, tmp_path / "run")
    do("search", config, folder)
    record = read_record(folder / "search-grid.json", SearchRecord)
    job = run.Run(config, folder)
    base, found = Memory(job.target).measure([resize(job.network, arch) for arch in (job.network.base, record.arch)])
    (kept,) = record.limits
    assert (kept.metric, kept.unit, kept.measured, kept.error) == ("memory", "bytes", found.estimate, 0.0)
    assert kept.predicted == kept.measured
    assert 0.85 <= kept.ratio <= 1.0 and kept.limit == pytest.approx(0.6 * base.estimate)


@pytest.mark.slow
def test_energy_is_metered_in_the_calibration_and_at_the_end(tmp_path, monkeypatch):
    """A meter is planted that shows 20 watts."""
    monkeypatch.setattr("htas.metrics.energy.meter", lambda *_: None)

    def metered(self: Energy, cases: Sequence[Any], *, on_round: Any = None, pending: Any = None) -> list[Measurement]:
        return [Measurement((20 * each.estimate,) * 3, "J") for each in whole(None, cases)]

    monkeypatch.setattr(Latency, "measure", whole)

    monkeypatch.setattr(Energy, "measure", metered)
    config = options("design.spaces=[grid]", "design.groups=8", "constraints.energy=50%", "constraints.latency=70%")
    folder = tmp_path / "run"
    run.open_run(config, folder)
    for stage in ("survey", "design", "calibrate", "search"):
        do(stage, config, folder)
    assert read_json(folder / "cost.json")["fits"]["energy"]["unit"] == "J"
    record = read_record(folder / "search-grid.json", SearchRecord)
    kept = {own.metric: own for own in record.limits}
    assert set(kept) == {"energy", "latency"} and kept["energy"].unit == "J"
    assert max(own.ratio for own in kept.values()) <= 1.0 and kept["energy"].ratio > 0.85


def test_energy_without_a_meter_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("htas.metrics.energy.POWERCAP", tmp_path)
    monkeypatch.setattr("htas.metrics.energy.meter.__defaults__", (tmp_path,))
    with pytest.raises(ValueError, match="energy needs a meter, and this machine shows none"):
        run.open_run(options("constraints.energy=50%"), tmp_path / "run")
    assert not (tmp_path / "run" / "config.toml").exists()


@pytest.mark.parametrize("latency, words", [("1%", "cannot be kept"), ("900%", "even the widest")])
def test_a_budget_that_makes_no_sense_is_refused_before_the_search(latency, words, calibrated, tmp_path, monkeypatch):
    config = options(*GRID, f"constraints.latency={latency}")
    folder = begun(config, calibrated, tmp_path / "run")
    kill(monkeypatch, _Search, "epoch")
    with pytest.raises(ValueError, match=words):
        do("search", config, folder)


# -- several budgets ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_sweep_makes_a_front_from_one_survey_and_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "show", lambda *args: None)
    config, folder = options(*GRID, "family.depth=8"), tmp_path / "sweep"
    with monkeypatch.context() as patch:
        kill(patch, _Search, "epoch", 3)  # in the second search
        with pytest.raises(KeyboardInterrupt):
            experiment.sweep(config, folder, SweepPlan(("80%", "50%"), share=True), "htas sweep")
    first = (folder / "latency-80-" / "report.json").stat().st_mtime_ns
    page, table = experiment.sweep(config, folder, SweepPlan(("80%", "50%"), share=True), "htas sweep")
    assert (folder / "latency-80-" / "report.json").stat().st_mtime_ns == first
    assert page == folder / "report.html" and page.exists()
    surveys = {(folder / name / "survey.json").read_text() for name in ("latency-80-", "latency-50-")}
    assert len(surveys) == 1
    one, other = (load(folder / name / "config.toml").strategy for name in ("latency-80-", "latency-50-"))
    kept = folder / "latency-80-" / "supernet-grid.safetensors"
    assert kept.exists() and (one.start, one.epochs, other.start, other.epochs) == ("random", 2, str(kept), 1)
    found = {
        row.name: row
        for row in [from_json(row, Result, "results") for row in read_json(folder / "sweep.json")["results"]]
    }
    assert list(found) == ["base", "80%", "50%"]
    assert found["50%"].measured.estimate < found["80%"].measured.estimate < found["base"].measured.estimate
    assert str(table).splitlines()[0].split()[0] == "budget" and "*" in str(table)
    (warned,) = re.findall(r"The search for (\S+) has not converged\.", (folder / "report.md").read_text())
    assert warned in ("80%", "50%"), "an epoch or two are too short for any"
    again = (folder / "sweep.json").stat().st_mtime_ns
    experiment.sweep(config, folder, SweepPlan(("80%", "50%"), share=True), "htas sweep")
    assert (folder / "sweep.json").stat().st_mtime_ns == again


@pytest.mark.slow
def test_the_searches_of_a_sweep_share_a_survey_alone_unless_asked(tmp_path, monkeypatch):
    config, folder = options(*GRID, "family.depth=8"), tmp_path / "sweep"
    names = ("latency-80-", "latency-50-")

    def stop(*args, **more):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pipeline, "run_all", stop)
        experiment.sweep(config, folder, SweepPlan(("80%", "50%")), "htas sweep")
    assert [load(folder / name / "config.toml").strategy for name in names] == 2 * [config.strategy]
    assert len({(folder / name / "survey.json").read_text() for name in names}) == 1


def test_budgets_of_another_unit_are_different_ones():
    assert SweepPlan(("60%", "600 ms", "60 ms", "6%")).budgets


@pytest.mark.parametrize(
    "budgets", [("80%", "80%"), (), ("fast",), ("60%", "60.0%"), ("60%", "60 %"), ("8ms", "8 ms"), ("0.008s", "8 ms")]
)
def test_budgets_that_are_none_are_refused(budgets):
    with pytest.raises(UserError, match=r"constraints\.latency must be|--budgets must name different"):
        SweepPlan(budgets)


@pytest.mark.slow
def test_the_fastest_network_at_an_accuracy_is_found_by_halving(tmp_path, monkeypatch):
    """Held-out accuracies are planted: they fall below 55 % of the base's parameters."""
    monkeypatch.setattr(plan, "show", lambda *args: None)
    config = options(*GRID, "family.depth=8")
    trained = []

    def judged(job, arch, seed, folder, teacher):
        trained.append((arch, seed))
        share = job.network.params(arch) / job.network.params(job.network.base)
        return (0.9 if share > 0.55 else 0.8) + 0.001 * seed

    monkeypatch.setattr(experiment, "_judged", judged)
    page, table = experiment.fastest(config, tmp_path / "fastest", FastestPlan("-1", seeds=2), "htas fastest")
    assert page.exists()
    assert len(trained) == 2 * (1 + 4)
    tried = read_json(tmp_path / "fastest" / "fastest.json")["tried"]
    assert len(tried) == 4
    met = [each["share"] for each in tried if min(each["accuracies"]) > 0.85]
    assert 0.5 <= min(met) <= 0.75
    assert f"taken: {100 * min(met):.2f}% of the base's latency, clearly met" in str(table)


@pytest.mark.slow
def test_a_training_that_failed_is_named_and_sets_no_floor(tmp_path, monkeypatch, capsys):
    """Of ten classes one share in ten is guessing."""
    given = iter([(0.9, 0.92), (0.91, 0.1), (0.9, 0.1)])
    monkeypatch.setattr(experiment, "_accuracies", lambda *parts: next(given))
    config = options(*GRID, "strategy.epochs=1", "train.lr=0.5")
    with pytest.raises(UserError, match="no budget tried keeps"):
        experiment.fastest(config, tmp_path / "fastest", FastestPlan("-1", seeds=2, tries=1), "htas fastest")
    words = "a training failed, and counts all the same: seed 1 (10.00 %); lower train.lr"
    assert words in " ".join(capsys.readouterr().err.split())
    words = "training failed with seed 1 (10.00 %), so there is no accuracy to keep; lower train.lr (it is 0.5)"
    with pytest.raises(UserError, match=re.escape(words)):
        experiment.fastest(config, tmp_path / "fastest", FastestPlan("-1", seeds=2, tries=1), "htas fastest")


def test_held_out_accuracy_is_trained_on_one_half_and_judged_on_the_other_once(tmp_path, monkeypatch):
    config, folder = options("design.spaces=[grid]"), tmp_path / "run"
    run.open_run(config, folder)
    job = run.Run(config, folder)
    seen = []
    original = experiment.Training

    def noted(model, split, *args, **kwargs):
        seen.append((split, kwargs["teacher"] is not None))
        return original(model, split, *args, **kwargs)

    monkeypatch.setattr(experiment, "Training", noted)
    base = job.network.base
    first = experiment._judged(job, base, 0, folder, base)
    assert [(split is job.data.weights, taught) for split, taught in seen] == [(True, False), (True, True)]
    assert experiment._judged(job, base, 0, folder, base) == first
    assert len(seen) == 2


@pytest.mark.parametrize("alpha", ["0", "0.9"])
@pytest.mark.parametrize("start", ["base", "random"])
def test_held_out_accuracy_is_of_networks_that_start_as_those_delivered(start, alpha, tmp_path, monkeypatch):
    """From the base network of the same half of the images: that of the run has seen what judges."""
    config = options("design.spaces=[grid]", f"train.start={start}", f"distill.alpha={alpha}")
    starts = []

    class Shifted:
        """A training after which all weights of the base network are those at the start plus 1."""

        def __init__(self, model, split, *args, **kwargs):
            assert split is job.data.weights
            starts.append((model, [each.detach().clone() for each in model.parameters()], kwargs["teacher"]))

        def run(self):
            with torch.no_grad():
                for each in starts[-1][0].parameters():
                    each += 1
            return 0.0

    monkeypatch.setattr(experiment, "Training", Shifted)
    job = run.Run(config, tmp_path)
    base = job.network.base
    experiment._judged(job, base, 0, tmp_path, base)
    assert len(starts) == (1 if start == "random" and alpha == "0" else 2)
    _, first, teacher = starts[-1]
    assert (teacher is None) == (alpha == "0")
    before = starts[0][1]
    alike = all(
        torch.allclose(one.sum(), other.sum() + other.numel(), atol=1e-2)
        for one, other in zip(first, before, strict=True)
    )
    assert alike == (start == "base"), "in another order of channels"


def test_a_floor_is_not_judged_by_trainings_that_start_from_a_checkpoint(tmp_path):
    with pytest.raises(UserError, match="a checkpoint has seen the images that judge budgets"):
        experiment.fastest(options("train.start=a.safetensors"), tmp_path, FastestPlan("-1"), "htas fastest")


def test_held_out_accuracy_does_not_depend_on_what_was_made_before(tmp_path, monkeypatch):
    """A process that has not traced the network yet draws the same weights as one that has."""
    config, starts = options("design.spaces=[grid]"), []

    class Untrained:
        def __init__(self, model, *args, **kwargs):
            starts.append([each.detach().clone() for each in model.parameters()])

        def run(self):
            return 0.0

    monkeypatch.setattr(experiment, "Training", Untrained)
    for name in ("made", "new"):
        job = run.Run(config, tmp_path / name)
        if name == "made":
            base = job.network.base
        experiment._judged(job, base, 1, tmp_path / name, None)
    assert all(torch.equal(one, other) for one, other in zip(*starts, strict=True))


def test_a_floor_says_how_sure_it_is():
    tried = experiment.BudgetTrial(0.5, (0.90, 0.91, 0.92), 0.905, (0.93, 0.93, 0.93))
    assert (tried.mean, tried.met) == (pytest.approx(0.91), True)
    assert tried.reach == pytest.approx(4.303 * 0.01 / 3**0.5, rel=1e-3)  # Student's t, 2 degrees of freedom
    assert tried.verdict == "met"
    assert experiment.BudgetTrial(0.5, (0.93, 0.93), 0.905, (0.93, 0.93)).verdict == "clearly met"
    assert experiment.BudgetTrial(0.5, (0.90,), 0.905, (0.93,)).verdict == "not met"
    assert experiment.BudgetTrial(0.5, (0.95,), 0.905, (0.93,)).verdict == "met"


@pytest.mark.parametrize(
    "floor, more, words",
    [
        ("", (), "needs an accuracy to keep"),
        ("-1", ("constraints.latency=50%",), "leave constraints.latency out"),
        ("93.5", (), r"--accuracy-floor must be in points below .* such as \"93.5%\", got '93.5'"),
        ("0%", (), "--accuracy-floor must be in points below"),
    ],
)
def test_what_fastest_cannot_do_is_said(floor, more, words):
    with pytest.raises(UserError, match=words):
        FastestPlan(floor).check(read(None, [f"--{each}" for each in more]))


def test_a_floor_is_in_points_below_the_base_or_absolute():
    assert FastestPlan("-0.5").least(0.9) == pytest.approx(0.895)
    assert FastestPlan(" 93.5 %").least(0.9) == 0.935


@pytest.mark.slow
def test_a_space_of_a_single_arch_is_trained_directly_and_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(_Search, "epoch", None)
    one = ["design.spaces=[explicit]", 'design.widths={"16": [8], "32": [16], "64": [32]}', "design.depth=false"]
    page = pipeline.run_all(run.open_run(options(*one), tmp_path / "one"), "htas run some.toml")
    assert "the space explicit has a single choice at every site, so its network is trained directly" in (
        capsys.readouterr().err
    )
    found = rows(page.parent)["explicit"]
    assert set(found.arch.widths.values()) == {8, 16, 32} and found.accuracy is not None
    assert "trained directly" in page.read_text() and "Course of the search" not in page.read_text()
    assert not list((page.parent / "figures").glob("search-*"))


@pytest.mark.slow
def test_other_strategies_leave_a_whole_run_behind(calibrated, tmp_path):
    more = ["strategy.name=random", "strategy.archs=5", "constraints.latency=60%", *GRID]
    kept = [option for option in OPTIONS if not any(name in option for name in ("arch_lr", "mix", "anneal"))]
    config = load(None, [*kept, *more])
    folder = begun(config, calibrated, tmp_path / "random")
    page = pipeline.run_all(run.open_run(config, folder), "htas run some.toml")
    record = read_record(page.parent / "search-grid.json", SearchRecord)
    assert record.strategy == "random within latency 60%" and len(record.epochs) == 2
    assert record.epochs[0].temperature is None and "not of this strategy" in page.read_text()


@pytest.mark.slow
def test_a_network_judged_by_training_says_how(tmp_path):
    more = [
        "strategy.name=uniform",
        "strategy.epochs=1",
        "constraints.latency=60%",
        *GRID,
    ]
    kept = [option for option in OPTIONS if not option.startswith("strategy") or "precision" in option]
    page = pipeline.run_all(
        run.open_run(load(None, [*kept, *more, "strategy.batch=30"]), tmp_path / "uniform"), "htas run some.toml"
    )
    record = read_record(page.parent / "search-grid.json", SearchRecord)
    assert record.rivals == () and record.judge.startswith("trained from scratch for 1 epoch")
    assert "Trained from scratch for 1 epoch" in page.read_text()
