"""Stages talk through files: each is done once, can be done alone, and goes on where it was interrupted."""

import errno
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from scripted_device import scripted, scripted_device

from htas.errors import UserError
from htas.experiments import budgets as experiment
from htas.experiments.plans import FastestPlan, SweepPlan
from htas.files import from_json, read_json, read_record, read_tensors, write_json
from htas.graph import resize, trace
from htas.graph.arch import Arch
from htas.graph.layer import Layer
from htas.metrics.energy import Energy
from htas.metrics.latency import Latency
from htas.metrics.memory import Memory
from htas.models.cifar_resnet import CifarResNet
from htas.report import read as read_report
from htas.report.result import Result
from htas.run import networks, plan, run
from htas.run import rows as run_rows
from htas.run import stages as pipeline
from htas.run.config import Config, load, read
from htas.run.stage import ensure
from htas.search import finish
from htas.search.record import SearchRecord
from htas.strategies.differentiable import STEP, _Search
from htas.timing.measurement import Measurement
from htas.timing.target import Target
from htas.training import train as training

pytestmark = pytest.mark.timeout(300)  # whole runs

OPTIONS = [
    "family.depth=14", "split.limit=60", "target.threads=1", "survey.rounds=1", "survey.store=none",
    "survey.undecided=1",
    "design.groups=2",
    "strategy.epochs=2", "strategy.batch=30", "strategy.precision=fp32", "strategy.arch_lr=0.3",
    "strategy.mix=interpolate", "strategy.start=random", "strategy.anneal=epoch",
    "train.epochs=2", "train.warmup=0", "train.rest=0", "train.batch=30", "train.precision=fp32",
]  # fmt: skip
FILES = [
    "config.toml", "environment.json", "command.json", "survey.json", "design.json", "cost.json",
    "search-hardware.json", "search-tas.json", "search-grid.json", "controls.json", "networks.json", "measure.json",
    "report.json",
    "report.md", "report.html",
]  # fmt: skip


def options(*more: str) -> Config:
    return load(None, [*OPTIONS, *more])


STAGES = {stage.name: stage for stage in pipeline.STAGES}


def do(name: str, config: Config, folder: Path, again: bool = False) -> None:
    """What the verb of a stage does in the folder of a run."""
    ensure(run.Run(config, folder), STAGES[name], again)


@pytest.fixture(scope="module", autouse=True)
def _scripted() -> Iterator[None]:
    with scripted_device():
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run, to be read only."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert pipeline.run_all(run.open_run(options(), folder), "htas run some.toml") == folder / "report.html"
    return folder


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """The same, to be spoilt."""
    return shutil.copytree(finished, tmp_path / "copied")


GRID = ("design.spaces=[grid]", "design.groups=8")


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


def times(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def rows(folder: Path) -> dict[str, Result]:
    return {
        row.name: row
        for row in [from_json(row, Result, "results") for row in read_json(folder / "measure.json")["results"]]
    }


def sentence(error: pytest.ExceptionInfo[UserError]) -> str:
    text = str(error.value)
    assert "\n" not in text and text
    return text


# -- a whole run -------------------------------------------------------------------------------------------------------


def test_a_run_leaves_the_files_of_every_stage_and_no_others(finished):
    found = set(times(finished))
    names = [Path(name).stem for name in found if name.startswith("networks/")]
    assert len(names) == len(rows(finished)) == 6
    assert {name for name in found if "/" not in name} == set(FILES)
    assert {name.split("/")[0] for name in found if "/" in name} == {"networks", "figures"}
    assert all(read_json(finished / name)["format"] == 1 for name in FILES if name.endswith(".json"))


def test_the_folder_says_what_made_it(finished):
    assert load(finished / "config.toml") == options()
    environment = read_json(finished / "environment.json")
    assert environment["seed"] == 0 and environment["packages"]["torch"] == torch.__version__
    assert environment["machine"]["processor"] and environment["date"]


def test_the_report_holds_the_base_the_found_and_the_control_networks(finished):
    report = read_json(finished / "report.json")
    names = [result["name"] for result in report["results"]]
    assert names[:4] == ["base", "hardware", "tas", "grid"]
    assert names[4].startswith("uniform x") and names[5] == "plain cifar_resnet:8"
    assert [search["space"] for search in report["searches"]] == ["hardware", "tas", "grid"]
    assert report["command"] == "htas run some.toml" and report["dataset"] == "digits"
    assert set(report["stages"]) == {"survey", "design", "calibrate", "search", "train", "measure"}
    assert report["test_images"] == 60
    for name in names:
        assert name.replace("_", "\\_") in (finished / "report.md").read_text()


def test_every_row_has_its_own_figures(finished):
    job = run.Run(options(), finished)
    for name, row in rows(finished).items():
        model = run_rows.load_network(job, row)
        assert row.params == sum(parameter.numel() for parameter in model.parameters())
        assert row.measured.minimum == pytest.approx(1e-9 * row.params)
        assert row.predicted == job.calibrated.cost(row.arch)
        assert row.accuracy == training.evaluate(model, job.data.test, device="cpu", precision="fp32")
        assert row.teacher == ("" if name == "base" else "base")


def test_the_searches_found_archs_of_their_spaces_and_judged_their_rivals(finished):
    spaces = run.Run(options(), finished).design.spaces
    for name, space in spaces.items():
        record = read_record(finished / f"search-{name}.json", SearchRecord)
        assert record.arch in space and record.arch == rows(finished)[name].arch
        assert len(record.epochs) == 2 and len(record.rivals) == len(record.rival_costs) == 2


def test_a_report_says_where_every_control_is_slower(copied):
    """The planted latency grows with the parameters, and nothing has fewer than the narrowest arch."""
    job = run.Run(options(), copied)
    narrowest = Arch(dict.fromkeys(job.network.widths, 1), dict.fromkeys(job.network.depths, 1))
    picked = run_rows._pick_controls(job, run_rows.new_row(job, "tiny", narrowest, space="-", strategy="-", cost="-"))
    assert not picked.controls
    assert picked.slower == (
        "Every network with all widths narrowed alike was slower, in one interleaved run before training.",
        "Every shallower member of the family was slower, in one interleaved run before training.",
    )
    content = read_json(copied / "controls.json")
    write_json(copied / "controls.json", {**content, "slower": list(picked.slower)})
    assert run_rows.untrained_rows(job)[1].remarks[-2:] == picked.slower


def test_controls_are_the_widest_and_the_deepest_that_are_not_slower(copied):
    """Told by planted latencies: parameters, so that a network at half its widths is its own control."""
    job = run.Run(options(), copied)
    base = job.network.base
    half = Arch({name: width // 2 for name, width in base.widths.items()}, base.depths)
    found = run_rows._pick_controls(job, run_rows.new_row(job, "hardware", half, space="-", strategy="-", cost="-"))
    assert [control.name for control in found.controls] == ["uniform x0.50"]  # every plain one has more
    assert found.controls[0].arch == half
    found = run_rows._pick_controls(job, run_rows.new_row(job, "hardware", base, space="-", strategy="-", cost="-"))
    assert [control.name for control in found.controls] == ["uniform x1.00", "plain cifar_resnet:14"]
    assert "not above that of hardware" in found.note


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A whole run of one_space(), to be read only, and what it built, traced and read."""
    folder, calls = tmp_path_factory.mktemp("runs") / "one-space", []
    with pytest.MonkeyPatch.context() as patch:

        def count(owner: Any, name: str) -> None:
            original = getattr(owner, name)
            patch.setattr(owner, name, lambda *args, **kwargs: (calls.append(name), original(*args, **kwargs))[1])

        count(CifarResNet, "build")
        count(run, "trace")
        count(run.datasets, "load")
        pipeline.run_all(run.open_run(one_space(), folder), "htas run")
    return folder, calls


def test_a_run_traces_its_network_once_and_reads_its_data_once(counted):
    _, calls = counted
    assert sorted(calls) == ["build", "load", "trace"]


# -- again, and in parts -----------------------------------------------------------------------------------------------


def test_a_second_run_does_nothing_again(copied, monkeypatch):
    before = times(copied)
    for owner, name in [(Latency, "measure"), (_Search, "epoch"), (run_rows, "Training"), (pipeline, "write")]:
        monkeypatch.setattr(owner, name, None)
    monkeypatch.setattr(plan, "show", None)
    pipeline.run_all(run.open_run(options(), copied), "htas run some.toml")
    after = times(copied)
    assert after.pop("command.json") and before.pop("command.json")
    assert after == before


@pytest.mark.parametrize("stage", ["survey", "design", "train", "measure", "report"])
def test_a_stage_alone_makes_its_file_from_those_before(stage, copied):
    job = run.Run(options(), copied)
    path = copied / "report.json" if stage == "report" else STAGES[stage].files(job)[0]
    before, old = times(copied), read_json(path)
    path.unlink()
    do(stage, options(), copied)
    after = times(copied)
    assert {name for name in after if after[name] != before[name]} >= {path.name}
    written = {"report", "figures"} if stage == "report" else {path.stem}
    written |= {"environment"} if stage in ("survey", "measure") else set()  # the machine that measured
    assert all(after[name] == before[name] for name in after if Path(name).parts[0].split(".")[0] not in written)
    new = read_json(path)
    assert without(new, "took") == without(old, "took")


def test_a_survey_chosen_by_noise_is_refused_and_kept(copied, monkeypatch):
    monkeypatch.setattr(pipeline, "DECIDED", 1.1)  # then no group is
    before = times(copied)
    (copied / "design.json").unlink()
    with pytest.raises(
        ValueError,
        match=r"0 of \d+ groups decided.*100% are not, where 90% may be.*too noisy to tell.*--survey\.undecided=1",
    ):
        do("design", options("survey.undecided=0.9"), copied)
    assert not (copied / "design.json").exists()
    assert times(copied)["survey.json"] == before["survey.json"]


def test_choices_made_by_noise_are_accepted_in_the_same_folder_and_nothing_is_done_again(copied):
    before = times(copied)
    accepted = options("survey.undecided=0.5")
    run.open_run(accepted, copied)
    assert load(copied / "config.toml") == accepted
    for stage in ("survey", "design", "search", "train", "measure"):
        do(stage, accepted, copied)
    changed = {name for name, time in times(copied).items() if time != before.get(name)}
    assert changed <= {"config.toml", "environment.json"}


def test_a_second_run_finds_its_layers_in_the_store(tmp_path, capsys):
    stored = options(f"survey.store={tmp_path / 'kept.sqlite'}")
    for name in ("one", "two"):
        run.open_run(stored, tmp_path / name)
        do("survey", stored, tmp_path / name)
    one, two = (read_json(tmp_path / name / "survey.json") for name in ("one", "two"))
    assert "store: 865 of 865 layers were measured before and still hold" in capsys.readouterr().err
    key = next(iter(one["layers"]))
    assert two["layers"][key]["estimate"] == pytest.approx(one["layers"][key]["estimate"])


def without(content: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in content.items() if name not in names}


def test_one_search_alone_is_done_again_when_its_file_is_gone(copied):
    path = copied / "search-grid.json"
    old, before = read_record(path, SearchRecord), times(copied)
    path.unlink()
    do("search", options(), copied)
    new = read_record(path, SearchRecord)
    assert (new.arch, new.accuracy, new.rivals) == (old.arch, old.accuracy, old.rivals)
    changed = {name for name, time in times(copied).items() if time != before[name]}
    assert changed == {"search-grid.json"}


def test_a_stage_refuses_files_that_an_earlier_one_has_outdated(copied):
    config = options()
    content = read_json(copied / "cost.json")
    write_json(copied / "cost.json", {**without(content, "format"), "took": 1e9})
    with pytest.raises(UserError, match=r"search-hardware.json was made from other files .* run `htas search"):
        do("train", config, copied)


def test_another_configuration_may_take_a_folder_in_which_nothing_is_finished(tmp_path):
    run.open_run(options(), tmp_path / "run")
    other = options("train.epochs=1")
    run.open_run(other, tmp_path / "run")
    assert (tmp_path / "run" / "config.toml").read_text() == other.toml()


def test_a_stage_is_done_again_when_asked_for(copied):
    before = times(copied)
    do("measure", options(), copied, again=True)
    assert {name for name, time in times(copied).items() if time != before[name]} == {
        "measure.json",
        "environment.json",
    }


def test_what_follows_a_new_survey_is_done_again(copied, monkeypatch):
    """On a device that prefers multiples of 12, other widths are chosen, and what was found before is dropped."""
    old = read_json(copied / "design.json")["spaces"]["hardware"]

    def other(self: Latency, cases: Sequence[Any], **rest: Any) -> list[Measurement]:
        found = scripted(self, cases, **rest)
        steps = [1e-6 * (1 + math.ceil(case.outputs / 12)) if isinstance(case, Layer) else 0.0 for case in cases]
        return [Measurement((step,), "s", {}, "two") if step else old for step, old in zip(steps, found, strict=True)]

    monkeypatch.setattr(Latency, "measure", other)
    do("survey", options(), copied, again=True)
    do("design", options(), copied)
    new = read_json(copied / "design.json")["spaces"]["hardware"]
    assert new != old
    do("calibrate", options(), copied)
    kill(monkeypatch, _Search, "epoch")
    with pytest.raises(KeyboardInterrupt):
        do("search", options(), copied)


def test_weights_that_are_gone_are_trained_again_and_come_out_equal(copied):
    path = copied / "networks" / "grid.safetensors"
    old, _ = read_tensors(path)
    path.unlink()
    do("train", options(), copied)
    new, _ = read_tensors(path)
    assert old.keys() == new.keys() and all(torch.equal(old[name], new[name]) for name in old)


# -- interruptions -----------------------------------------------------------------------------------------------------


def kill(patch: pytest.MonkeyPatch, owner: Any, name: str, call: int = 1) -> None:
    """Raise KeyboardInterrupt at that call."""
    original, calls = getattr(owner, name), iter(range(1, 1000))

    def killed(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == call:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    patch.setattr(owner, name, killed)


KILLS = [
    (os, "replace", 1),  # config.toml
    (os, "replace", 2),  # environment.json
    (plan, "show", 1),
    (Latency, "measure", 1),
    (os, "replace", 2),  # survey.json, after command.json
    (pipeline, "spaces", 1),
    (pipeline, "fit_cost", 1),
    (_Search, "epoch", 2),
    (_Search, "validate", 1),
    (pipeline, "rivals", 1),
    (run_rows, "resize", 1),
    (training.Training, "epoch", 2),
    (run_rows, "evaluate", 1),
    (run_rows, "write_tensors", 2),
    (training.Training, "keep", 2),
    (pipeline, "write_stage", 1),
    (run_rows, "load_network", 2),
    (pipeline, "write", 1),
]
"""In the order of a run, so that each is met by the attempt after the one before it."""


def one_space() -> Config:
    return options("design.spaces=[hardware]", "family.depth=8", "split.limit=40", "strategy.batch=20")


def outcome(folder: Path) -> Any:
    """What an interruption must not change."""
    search = read_record(folder / "search-hardware.json", SearchRecord)
    courses = [(epoch.validation_loss, epoch.expected_cost) for epoch in search.epochs]
    results = {name: (row.arch, row.accuracy) for name, row in rows(folder).items()}
    return search.arch, search.accuracy, search.rivals, courses, results, read_json(folder / "survey.json")["layers"]


def test_a_run_killed_again_and_again_ends_as_an_uninterrupted_one(counted, tmp_path, monkeypatch):
    config, parts, (whole, _) = one_space(), tmp_path / "parts", counted
    for owner, name, call in KILLS:
        with monkeypatch.context() as patch:
            if name != "show":
                patch.setattr(plan, "show", lambda *args: None)
            kill(patch, owner, name, call)
            with pytest.raises(KeyboardInterrupt):
                pipeline.run_all(run.open_run(config, parts), "htas run")
    monkeypatch.setattr(plan, "show", lambda *args: None)
    pipeline.run_all(run.open_run(config, parts), "htas run")
    assert outcome(parts) == outcome(whole)
    assert {name for name in times(parts) if not name.startswith(".")} == set(times(whole))


def test_a_search_interrupted_before_a_new_survey_does_not_go_on_with_the_old_one(tmp_path, monkeypatch):
    """Nor does a training: what was unfinished belongs to what it was made from."""
    config, folder = one_space(), tmp_path / "run"
    monkeypatch.setattr(plan, "show", lambda *args: None)
    with monkeypatch.context() as patch:
        kill(patch, _Search, "epoch", 2)
        with pytest.raises(KeyboardInterrupt):
            pipeline.run_all(run.open_run(config, folder), "htas run")
    design = read_json(folder / "design.json")
    site = next(iter(design["spaces"]["hardware"]["widths"]))
    design["spaces"]["hardware"]["widths"][site] = [3, 5, 7]
    (folder / "design.json").write_text(json.dumps(design))
    do("calibrate", config, folder)
    do("search", config, folder)
    record = read_record(folder / "search-hardware.json", SearchRecord)
    assert record.arch.widths[site] in (3, 5, 7) and len(record.epochs) == 2
    with monkeypatch.context() as patch:
        kill(patch, training.Training, "epoch", 4)
        with pytest.raises(KeyboardInterrupt):
            do("train", config, folder)
    found = read_json(folder / "search-hardware.json")
    found["arch"]["widths"][site] = next(width for width in (3, 5, 7) if width != record.arch.widths[site])
    (folder / "search-hardware.json").write_text(json.dumps(found))
    do("train", config, folder)
    row = next(row for row in read_json(folder / "networks.json")["results"] if row["name"] == "hardware")
    assert row["arch"]["widths"][site] == found["arch"]["widths"][site]


# -- what cannot be used -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stage, missing, verb",
    [
        ("design", "survey.json", "survey"),
        ("search", "design.json", "design"),
        ("search", "survey.json", "survey"),
        ("train", "search-tas.json", "search"),
        ("train", "survey.json", "survey"),
        ("measure", "networks.json", "train"),
        ("report", "survey.json", "survey"),
    ],
)
def test_a_missing_predecessor_names_the_verb_to_run(stage, missing, verb, copied):
    (copied / missing).unlink()
    before = times(copied)
    with pytest.raises(UserError) as error:
        do(stage, options(), copied)
    assert sentence(error) == f"{copied / missing} does not exist; run `htas {verb} {copied}` first"
    assert times(copied) == before


def test_a_report_of_an_unfinished_run_has_what_is_there_and_names_what_is_missing(copied):
    for name in ("measure.json", "networks.json", "search-tas.json"):
        (copied / name).unlink()
    do("report", options(), copied)
    made = read_report(copied)
    assert [row.name for row in made.results] == ["base", "hardware", "grid"]
    assert all(row.accuracy is None and row.measured is None for row in made.results)
    assert made.curves and [search.space for search in made.searches] == ["hardware", "grid"]
    assert set(made.stages) == {"survey", "design", "calibrate", "search"} and made.predictions
    for name, verb in (("search-tas", "search"), ("networks", "train"), ("measure", "measure")):
        why = f"{copied / name}.json does not exist; run `htas {verb} {copied}` first"
        assert f"Not in this report: {why}." in made.remarks


def test_a_report_without_the_file_that_another_was_made_from_leaves_both_out(copied):
    (copied / "cost.json").unlink()
    do("report", options(), copied)
    made = read_report(copied)
    assert not made.predictions and not made.searches and made.curves
    why = f"search-tas.json was made from {copied / 'cost.json'}, which does not exist; run `htas calibrate {copied}`"
    assert any(why in remark for remark in made.remarks)


def test_a_report_leaves_out_what_was_made_from_other_files(copied):
    content = read_json(copied / "design.json")
    write_json(copied / "design.json", {**content, "curves": content["curves"][:1]})
    do("report", options(), copied)
    made = read_report(copied)
    assert len(made.curves) == 1 and not made.searches and made.results[0].name == "base"
    assert any("cost.json was made from other files than are there now" in remark for remark in made.remarks)


def test_runs_are_compared_on_one_page(finished, copied, tmp_path):
    page = pipeline.compared([finished, copied], tmp_path / "both")
    text = (tmp_path / "both" / "report.md").read_text()
    assert page == tmp_path / "both" / "report.html" and page.exists()
    assert "They differ in nothing that is recorded" in text
    assert text.count("| **searched network (measured widths)**") == 2
    for name in ("whole", "copied"):
        assert re.search(rf"^- \*\*{name}\*\*: .*searched network.* ResNet-14", text, re.MULTILINE), name


def test_a_folder_of_another_configuration_is_refused_with_the_option_that_differs(copied):
    before = times(copied)
    with pytest.raises(UserError) as error:
        run.open_run(options("family.depth=20"), copied)
    assert "depth = 14 there, depth = 20 here" in sentence(error) and "--out" in sentence(error)
    assert times(copied) == before


@pytest.mark.parametrize("make", [lambda path: path.write_text("x"), lambda path: (path.mkdir(), (path / "y").touch())])
def test_what_is_no_folder_of_a_run_is_refused_and_left_alone(make, tmp_path):
    make(tmp_path / "x")
    before = times(tmp_path)
    with pytest.raises(UserError) as error:
        run.open_run(options(), tmp_path / "x")
    assert "is not the folder of a run; name another one with --out" in sentence(error)
    assert times(tmp_path) == before


def test_a_design_that_does_not_fit_is_refused_before_a_folder_is_made(tmp_path):
    with pytest.raises(ValueError, match=r"design\.groups = 40 is more than the 32 widths"):
        run.open_run(options("design.groups=40"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "name, stage",
    [
        ("survey.json", "survey"),
        ("design.json", "design"),
        ("search-tas.json", "search"),
        ("networks.json", "train"),
        ("measure.json", "measure"),
        ("measure.json", "report"),
        ("environment.json", "report"),
    ],
)
@pytest.mark.parametrize("size", [0, 50])
def test_a_truncated_json_file_is_refused_in_a_sentence(name, stage, size, copied):
    path = copied / name
    path.write_bytes(path.read_bytes()[:size])
    before = times(copied)
    with pytest.raises(UserError) as error:
        do(stage, options(), copied)
    assert str(path) in sentence(error) and "delete it" in sentence(error)
    assert times(copied) == before


@pytest.mark.parametrize("size", [0, 50, 3000])
def test_truncated_weights_are_refused_in_a_sentence(size, copied):
    path = copied / "networks" / "base.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    (copied / "measure.json").unlink()
    before = times(copied)
    with pytest.raises(UserError) as error:
        do("measure", options(), copied)
    assert str(path) in sentence(error) and "delete it and run its stage again" in sentence(error)
    assert times(copied) == before


def test_after_deleting_truncated_weights_their_stage_makes_them_again(copied):
    """The advice of the sentence above works."""
    path = copied / "networks" / "tas.safetensors"
    wanted, _ = read_tensors(path)
    path.unlink()
    do("train", options(), copied)
    do("measure", options(), copied)
    found, _ = read_tensors(path)
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize(
    "stage, owner, name, code",
    [
        ("survey", os, "replace", errno.ENOSPC),
        ("survey", os, "fsync", errno.ENOSPC),
        ("survey", tempfile, "mkstemp", errno.EROFS),
        ("train", tempfile, "mkstemp", errno.ENOSPC),
        ("measure", os, "replace", errno.EROFS),
    ],
)
def test_a_full_or_read_only_disk_leaves_the_old_file(stage, owner, name, code, copied, monkeypatch):
    if stage == "train":
        (copied / "networks" / "plain-cifar_resnet-8.safetensors").unlink()
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}

    def failing(*args: Any, **kwargs: Any) -> Any:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(owner, name, failing)
    with pytest.raises(UserError) as error:
        do(stage, options(), copied, stage != "train")
    assert os.strerror(code) in sentence(error) and "--out" in sentence(error)
    monkeypatch.undo()
    assert {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()} == before


# -- networks by name, and export --------------------------------------------------------------------------------------


def test_named_networks_have_their_counts():
    target = Target(threads=1)
    plain, published = networks.measure_networks(["cifar_resnet:32", "tas:C010-ResNet32"], target, 2, 10)
    assert (plain.network, plain.runtime) == ("cifar_resnet:32", "eager")
    assert plain.macs / 1e6 == pytest.approx(69.125, abs=0.001)
    assert plain.params == sum(parameter.numel() for parameter in CifarResNet(32).build(10).parameters())
    assert published.macs / 1e6 == pytest.approx(34.95, abs=0.01)
    assert published.params / 1e6 == pytest.approx(0.321, abs=0.001)
    assert plain.latency.minimum == pytest.approx(1e-9 * plain.params)


def test_further_metrics_are_measured_where_they_are_asked_for(monkeypatch):
    target = Target(threads=1)
    (found,) = networks.measure_networks(["cifar_resnet:8"], target, 2, 10, ["memory"])
    assert found.others["memory"].unit == "bytes" and found.others["memory"].median > 4 * 3 * 32 * 32 * 4
    with pytest.raises(ValueError, match="no metric called 'memry'; did you mean 'memory'"):
        networks.measure_networks(["cifar_resnet:8"], target, 2, 10, ["memry"])


@pytest.mark.parametrize("to, network", [("onnx", ""), ("pt2", "base")])
def test_a_trained_network_is_exported_and_computes_the_same(to, network, finished, tmp_path):
    path, difference = pipeline.export_network(finished, f".{to}", network, tmp_path / f"net.{to}")
    assert path == tmp_path / f"net.{to}" and path.stat().st_size > 10_000
    assert 0 <= difference < 1e-4


def test_an_unknown_network_of_a_run_is_refused_with_the_known_ones(finished, tmp_path):
    with pytest.raises(UserError) as error:
        pipeline.export_network(finished, ".onnx", "hardwear", tmp_path / "x.onnx")
    assert "did you mean 'hardware'" in sentence(error) and "grid" in sentence(error)


def test_export_of_a_run_without_networks_names_the_verb_to_run(copied):
    (copied / "networks.json").unlink()
    with pytest.raises(UserError, match="run `htas train"):
        pipeline.export_network(copied, ".onnx")


# -- the plan ----------------------------------------------------------------------------------------------------------


def test_the_plan_grows_with_spaces_and_epochs(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "_step", lambda *args: 0.01)

    def seconds(*more: str) -> dict[str, float]:
        job = run.Run(options(*more), tmp_path)
        return {stage.split()[0]: time for stage, time in plan.estimate(job)}

    one, three, longer = seconds("design.spaces=[grid]"), seconds(), seconds("train.epochs=4")
    assert three["search"] == pytest.approx(3 * one["search"])
    assert three["search"] == pytest.approx(3 * 2 * 30 * 0.01 * STEP)
    assert longer["train"] == pytest.approx(2 * three["train"])


def test_the_plan_is_said_before_the_first_stage(tmp_path, capsys):
    job = run.Run(options(), tmp_path)
    plan.show(job)
    said = capsys.readouterr().err
    assert said.index("survey") < said.index("search of 3 spaces") < said.index("train 5 networks") < said.index("all")


# -- budgets -----------------------------------------------------------------------------------------------------------


def whole(self: Latency, cases: Sequence[Any], **rest: Any) -> list[Measurement]:
    """Networks take a quarter more than their layers, and a twentieth more again where few are measured together."""
    found = scripted(self, cases, **rest)
    few = len(cases) < 9
    for number, case in enumerate(cases):
        if not isinstance(case, Layer):
            traced = trace(case, torch.zeros(2, *options().data.shapes[0]))
            layers = [use.layer for use in traced.uses(traced.base)]
            steps = sum(1e-6 * (1 + math.ceil(layer.outputs / 8)) for layer in layers)
            slower = 1.05 if few and number else 1.0
            found[number] = Measurement((1.25 * slower * steps,) * 3, "s", {}, "one")
    return found


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


@pytest.mark.parametrize("name, verb", [("survey.json", "design"), ("cost.json", "search")])
def test_readings_of_another_target_are_refused_with_both(name, verb, copied):
    content = read_json(copied / name)
    content["context"] = {**content["context"], "runtime": "onnxruntime", "device": "cpu", "batch": "64"}
    write_json(copied / name, content)
    asked = options()
    with pytest.raises(UserError) as error:
        do(verb, asked, copied, True)
    assert f"{name} was measured with runtime onnxruntime, batch 64, and this run asks for runtime eager, batch" in str(
        error.value
    )


# -- several budgets ---------------------------------------------------------------------------------------------------


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


def test_the_searches_of_a_sweep_share_a_survey_alone_unless_asked(tmp_path, monkeypatch):
    config, folder = options(*GRID, "family.depth=8"), tmp_path / "sweep"
    names = ("latency-80-", "latency-50-")

    def stop(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pipeline, "run_all", stop)
        experiment.sweep(config, folder, SweepPlan(("80%", "50%")), "htas sweep")
    assert [load(folder / name / "config.toml").strategy for name in names] == 2 * [config.strategy]
    assert len({(folder / name / "survey.json").read_text() for name in names}) == 1


@pytest.mark.parametrize("budgets", [("80%", "80%"), (), ("fast",)])
def test_budgets_that_are_none_are_refused(budgets):
    with pytest.raises(UserError, match=r"constraints\.latency must be|--budgets must name different"):
        SweepPlan(budgets)


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
        "design.spaces=[grid]",
        "design.groups=8",
    ]
    kept = [option for option in OPTIONS if not option.startswith("strategy") or "precision" in option]
    page = pipeline.run_all(
        run.open_run(load(None, [*kept, *more, "strategy.batch=30"]), tmp_path / "uniform"), "htas run some.toml"
    )
    record = read_record(page.parent / "search-grid.json", SearchRecord)
    assert record.rivals == () and record.judge.startswith("trained from scratch for 1 epoch")
    assert "Trained from scratch for 1 epoch" in page.read_text()
