"""Stages talk through files: each is done once, can be done alone, and goes on where it was interrupted."""

import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from one_in import one_in
from scripted_device import scripted, scripted_device
from whole_run import STAGES, do, kill, options, rows, sentence, times

from htas.cli.sources import ensure_stage
from htas.errors import UserError
from htas.files import read_json, read_record, read_tensors, write_json
from htas.graph.arch import Arch
from htas.graph.layer import Layer
from htas.metrics.latency import Latency
from htas.models.cifar_resnet import CifarResNet
from htas.run import networks, plan, run
from htas.run import rows as run_rows
from htas.run import stages as pipeline
from htas.run.config import Config, load
from htas.search.record import SearchRecord
from htas.strategies.differentiable import STEP, _Search
from htas.timing.measurement import Measurement
from htas.timing.target import Target
from htas.training import train as training

pytestmark = pytest.mark.timeout(300)  # whole runs

FILES = [
    "config.toml", "environment.json", "command.json", "survey.json", "design.json", "cost.json",
    "search-hardware.json", "search-tas.json", "search-grid.json", "controls.json", "networks.json", "measure.json",
    "report.json",
    "report.md", "report.html",
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _scripted() -> Iterator[None]:
    with scripted_device():
        yield


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
    assert names[4].startswith("uniform x") and names[5].startswith("stage ") and len(names) == 6
    slower = "Every shallower member of the family was slower, in one interleaved run before training."
    assert slower in report["results"][1]["remarks"]  # each kind of control is a row, or a remark
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
    assert [control.name for control in found.controls] == [
        "uniform x0.94", "plain cifar_resnet:8", "stage 32x32 x0.94"
    ], "the base network itself is none"  # fmt: skip
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


@pytest.mark.slow
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


def test_a_stage_that_is_asked_for_and_finished_says_so(finished, capsys):
    job = run.Run(options(), finished)
    for stage in ("survey", "search", "measure"):
        ensure_stage(stage, job, again=False)
        said = capsys.readouterr().err.strip()
        assert said == f"{stage}: {finished} has it already, with the same options; --again does it anew"


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


@pytest.mark.slow
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


@pytest.mark.slow
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


def test_what_is_left_by_a_process_that_was_killed_when_it_had_written_an_outcome_is_removed(copied):
    searched = read_json(copied / "search-hardware.json")["inputs"]
    trained = run_rows.read_header(copied / "networks" / "base.safetensors").inputs
    names = [f"search-hardware-{searched}{suffix}" for suffix in (".safetensors", ".json", ".journal")]
    left = [copied / "checkpoints" / name for name in (*names, f"train-base-{trained}.safetensors")]
    other = copied / "checkpoints" / f"search-hardware-{trained}.safetensors"  # of unfinished work
    other.parent.mkdir(exist_ok=True)
    for path in (*left, other):
        path.write_text("")
    (copied / "networks.json").unlink()
    pipeline.run_all(run.open_run(load(copied / "config.toml"), copied), "htas run", quiet=True)
    assert [path for path in left if path.exists()] == [] and other.exists()


@pytest.mark.slow
def test_a_search_interrupted_before_a_new_survey_does_not_go_on_with_the_old_one(tmp_path, monkeypatch):
    """Nor does a training: what was unfinished belongs to what it was made from."""
    config, folder = one_space(), tmp_path / "run"
    monkeypatch.setattr(plan, "show", lambda *args: None)
    with monkeypatch.context() as patch:
        kill(patch, _Search, "epoch", 2)
        with pytest.raises(KeyboardInterrupt):
            pipeline.run_all(run.open_run(config, folder), "htas run")
    before = read_json(folder / "design.json")["spaces"]["hardware"]["widths"]
    config = config.changed({"design.groups": config.design.groups + 1})
    do("design", config, folder)
    widths = read_json(folder / "design.json")["spaces"]["hardware"]["widths"]
    assert widths != before
    site, choices = next((site, choices) for site, choices in widths.items() if len(choices) > 1)
    do("calibrate", config, folder)
    do("search", config, folder)
    record = read_record(folder / "search-hardware.json", SearchRecord)
    assert record.arch.widths[site] in choices and len(record.epochs) == 2
    with monkeypatch.context() as patch:
        kill(patch, training.Training, "epoch", 4)
        with pytest.raises(KeyboardInterrupt):
            do("train", config, folder)
    found = read_json(folder / "search-hardware.json")
    found["arch"]["widths"][site] = next(width for width in choices if width != record.arch.widths[site])
    (folder / "search-hardware.json").write_text(json.dumps(found))
    do("train", config, folder)
    row = next(row for row in read_json(folder / "networks.json")["results"] if row["name"] == "hardware")
    assert row["arch"]["widths"][site] == found["arch"]["widths"][site]


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


@pytest.mark.parametrize("to, network", one_in(2, [("onnx", ""), ("pt2", "base")]))
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


def test_the_plan_counts_the_programs_of_whole_networks(tmp_path, monkeypatch):
    job = run.Run(options(), tmp_path)
    monkeypatch.setattr(plan, "_step", lambda *args: 0.01)

    def seconds(build: float) -> dict[str, float]:
        monkeypatch.setattr(plan, "_build", lambda job: build)
        return {stage.split()[0].strip(","): time for stage, time in plan.estimate(job)}

    fast, slow = seconds(0.0), seconds(2.0)
    added = {stage: slow[stage] - fast[stage] for stage in fast if slow[stage] > fast[stage]}
    assert set(added) == {"calibration", "measure"}
    uniform = 16 * job.config.design.expand - 1  # all but the base network itself
    assert added["measure"] >= 2.0 * (uniform + 1 + len(job.config.design.spaces))
    assert fast["measure"] == 45.0


@pytest.mark.parametrize(
    ("host", "layer", "whole"), [("", 5.0, 25.0), ("exec:python", 2.0, 10.0), ("exec:python", 0.2, 0.2)]
)
def test_programs_that_take_seconds_or_another_device_are_not_built_for_the_plan(host, layer, whole, monkeypatch):
    """By hand: a network takes as long as five layers where one takes a second or more; None cannot be compiled."""
    monkeypatch.setattr(plan, "open_runtime", lambda target: SimpleNamespace(build_seconds=layer))
    assert plan._build(SimpleNamespace(target=SimpleNamespace(host=host), network=None)) == whole


def test_a_program_that_is_built_at_once_is_timed(tmp_path, monkeypatch):
    clock = iter([10.0, 13.5])
    monkeypatch.setattr(plan, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    assert plan._build(run.Run(options(), tmp_path)) == 3.5


def test_the_plan_is_said_before_the_first_stage(tmp_path, capsys):
    job = run.Run(options(), tmp_path)
    plan.show(job)
    said = capsys.readouterr().err
    assert said.index("survey") < said.index("search of 3 spaces") < said.index("train 6 networks") < said.index("all")
