"""The command line, with a pipeline that only writes down what it was asked."""

import dataclasses
import errno
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import htas
from htas import cli
from htas import report as reports
from htas.cli.experiments import BUDGETS
from htas.cli.parameters import TargetOptions
from htas.cli.sources import load_source, read_source
from htas.cli.verbs import CONFIGURED, VERBS
from htas.console import record
from htas.errors import UserError
from htas.experiments.plans import FastestPlan, SweepPlan
from htas.graph.layer import Layer
from htas.run import networks, plan, run, stage
from htas.run import stages as pipeline
from htas.run.config import TABLES, WITHIN_LIMITS, Config, load
from htas.run.run import Run
from htas.timing.entry import Entry
from htas.timing.measurement import Measurement
from htas.timing.store import Store
from htas.timing.target import Target, usable_cores
from tests.report.test_report import REPORT

Calls = list[tuple[str, dict[str, Any]]]
OWNERS: dict[str, Any] = {"open_run": run, "measure_networks": networks, "ensure": stage}
STAGES = ("survey", "design", "calibrate", "search", "train", "measure", "report")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Calls:
    """What the pipeline was asked, by function and parameter, in an empty folder; wrong calls fail as real ones do."""
    made: Calls = []
    answers = {
        "run_all": Path("runs/report.html"),
        "measure_networks": [
            networks.Figures("cifar_resnet:32", "eager", Measurement((0.004, 0.005, 0.006), "s"), 69_124_736, 466_906)
        ],
        "export_network": (Path("runs/some/base.onnx"), 1.2e-6),
        "survey_page": (Path("runs/some/survey.html"), "site  widths"),
    }

    def recorder(name: str) -> Callable[..., Any]:
        signature = inspect.signature(getattr(OWNERS.get(name, pipeline), name))

        def record(*args: Any, **kwargs: Any) -> Any:
            made.append((name, dict(signature.bind(*args, **kwargs).arguments)))
            return Run(*args) if name == "open_run" else answers.get(name)

        return record

    for name in ("run_all", "open_run", "ensure", "survey_page", "measure_networks", "export_network"):
        monkeypatch.setattr(OWNERS.get(name, pipeline), name, recorder(name))
    monkeypatch.setattr(reports, "read", lambda folder: REPORT)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some.toml").write_text("[design]\ngroups = 4\n")
    return made


def test_a_report_leaves_what_a_run_says_of_itself(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = []
    for name in ("report", "survey"):
        monkeypatch.setattr(stage, "ensure", lambda *_: recorded.append(record._current is not None))
        assert cli.main([name, "some.toml"]) == 0
    assert recorded == [False, True]


@pytest.mark.parametrize("verb", ["", "run"])
def test_a_reader_that_has_read_enough_gets_no_traceback(verb: str) -> None:
    command = f"{sys.executable} -m htas {verb} --help | (read -r line; echo $line)"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert done.stdout.startswith(f"Usage: htas {verb}".strip()) and done.stderr == "" and done.returncode == 0


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one sentence with which a command is refused."""
    assert cli.main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("htas: ")
    assert err.count("\n") == 1
    return err.removeprefix("htas: ").rstrip("\n")


def test_run_works_in_a_folder_named_like_the_file(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "some.toml", "--design.expand", "3", "--seed=7"]) == 0
    (opened, first), (ran, second) = calls
    assert (opened, ran) == ("open_run", "run_all")
    config = second["run"].config
    assert isinstance(config, Config)
    assert first == {"config": config, "folder": Path("runs/some")}
    assert (config.design.groups, config.design.expand, config.seed) == (4, 3.0, 7)
    assert second["run"].folder == Path("runs/some")
    assert second["command"] == "htas run some.toml --design.expand 3 --seed=7"
    first, *_, last = capsys.readouterr().out.splitlines()
    assert (
        first.startswith("The searched network is 2.00 times as fast as ResNet-20") and last == "runs/report.html"
    )  # the answer, and where to read on


@pytest.mark.parametrize("asked, more", [([], ""), (["--share"], " --share")])
def test_a_sweep_shares_its_supernet_when_asked_and_repeats_that(
    asked: list[str], more: str, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    from htas.experiments import budgets

    found: list[tuple[str, SweepPlan, str]] = []

    def sweep(config: Config, folder: Path, plan: SweepPlan, command: str, processes: None) -> tuple[Path, str]:
        found.append((config.names["strategy"], plan, command))
        return folder / "report.html", "table"

    monkeypatch.setattr(budgets, "sweep", sweep)
    assert cli.main(["sweep", "some.toml", "--budgets", "70%, 30%", *asked]) == 0
    plan, strategy = SweepPlan(("70%", "30%"), bool(asked)), "differentiable" if asked else WITHIN_LIMITS
    assert found == [(strategy, plan, f"htas sweep some.toml --budgets '70%, 30%'{more}")]


@pytest.mark.parametrize("named, strategy", [([], WITHIN_LIMITS), (["--strategy.name=most"], "most")])
def test_the_fastest_network_is_found_by_the_usual_search_within_limits(
    named: list[str], strategy: str, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    from htas.experiments import budgets

    found: list[str] = []

    def fastest(config: Config, folder: Path, plan: FastestPlan, command: str, processes: None) -> tuple[Path, str]:
        found.append(config.names["strategy"])
        return folder / "report.html", "table"

    monkeypatch.setattr(budgets, "fastest", fastest)
    assert cli.main(["fastest", "some.toml", "--accuracy-floor=-0.5", *named]) == 0
    assert found == [strategy]


def test_the_folder_of_a_run_may_be_where_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "mine"
    place.mkdir()
    (place / "config.toml").write_text(load(None).toml())
    monkeypatch.chdir(place)
    assert load_source(Path("."), [], None)[1] == Path(".")
    assert read_source(Path("."), [], None, "-arms")[1] == tmp_path / "mine-arms"
    assert read_source(Path("../mine"), [], None, "-arms")[1] == Path("../mine-arms")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["a", "b", "--again"], "--again is for the report of one run, got 2"),
        (["a", "b", "--seed=3"], "--seed=3 is for the report of one run, got 2"),
        (["a", "c.toml"], "several runs are compared by their folders, and c.toml is none"),
        (["a", "a"], "these are not 2 different runs: a, a"),
        (["a", "b"], "report.json"),
    ],
)
def test_a_report_of_several_runs_takes_their_folders_alone(
    given: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        (tmp_path / name).mkdir()
    assert said in refused(capsys, "report", *given)


def test_a_plan_says_which_search_there_is_and_writes_nothing(
    calls: Calls, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plan, "check", lambda run: None)
    monkeypatch.setattr(plan, "estimate", lambda run: iter([("survey, at most", 60.0), ("measure and report", 30.0)]))
    assert cli.main(["plan", "some.toml", "--constraints.latency=50%"]) == 0
    err = capsys.readouterr().err
    assert " ".join(err.split()).count("all 1 min 30 s") == 1
    assert "the search is knapsack: a program over whole numbers" in err
    assert "cheaper: --strategy.trials=1, no short trainings" in err and "--strategy.name" not in err
    assert "points above the base with all widths narrowed alike" in err
    assert cli.main(["plan", "some.toml"]) == 0
    err = capsys.readouterr().err
    assert "the search is differentiable: " in err and "cheaper" not in err
    assert calls == [] and [path.name for path in Path().iterdir()] == ["some.toml"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--strategy.name=evolution"], "evolution looks for the most accurate network within limits"),
        (["--strategy.name=differentiable", "--strategy.epochs=0"], "strategy.epochs must be 1 or more, got 0"),
        (["--design.ignored=nosuch"], "no module of this network called 'nosuch'"),
        (["--target.host=exec:nosuch"], "target.host exec:nosuch: the command 'nosuch' cannot be started"),
    ],
)
def test_a_plan_refuses_what_a_run_would_refuse_and_prints_no_plan(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, given: list[str], said: str
) -> None:
    source = tmp_path / "some.toml"
    source.write_text('[data]\nname = "digits"\n')
    assert cli.main(["plan", str(source), *given, f"--out={tmp_path / 'run'}"]) == 2
    err = " ".join(capsys.readouterr().err.split())
    assert said in err and "expected on this machine" not in err
    assert not (tmp_path / "run").exists()


def test_run_repeats_its_folder_in_the_command(calls: Calls) -> None:
    assert cli.main(["run", "some.toml", "--out=my runs/1"]) == 0
    assert calls[1][1]["run"].folder == Path("my runs/1")
    assert calls[1][1]["command"] == "htas run some.toml '--out=my runs/1'"


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("again", [False, True])
def test_a_stage_works_from_a_file(calls: Calls, stage: str, again: bool) -> None:
    assert cli.main([stage, "some.toml", *(["--again"] if again else [])]) == 0
    pages = ["survey_page"] if stage == "survey" else []
    assert [name for name, _ in calls] == ["open_run", "ensure", *pages]
    ensured = calls[1][1]
    assert (ensured["stage"].name, ensured["again"]) == (stage, again)
    assert ensured["run"].config.design.groups == 4
    assert ensured["run"].folder == Path("runs/some")


def test_a_survey_prints_its_choices_and_where_its_page_is(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["survey", "some.toml"]) == 0
    assert capsys.readouterr().out == "site  widths\nruns/some/survey.html\n"


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_works_from_the_folder_of_a_run(calls: Calls, stage: str) -> None:
    Path("done").mkdir()
    Path("done/config.toml").write_text("[design]\ngroups = 3\n")
    assert cli.main([stage, "done"]) == 0
    assert calls[1][1]["run"].config.design.groups == 3
    assert calls[1][1]["run"].folder == Path("done")


def test_a_folder_that_no_run_made_is_refused(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    sentence = refused(capsys, "search", "empty")
    assert sentence == "empty is not the folder of a run: it has no config.toml; name a TOML file first"
    assert calls == []


def test_networks_are_measured_by_name_as_json(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    argv = "measure cifar_resnet:32 --runtime onnxruntime --batch 2 tas:C010-ResNet32 --threads 1 --json "
    argv += "--precision bf16 --metrics energy,memory"
    assert cli.main(argv.split()) == 0
    ((name, given),) = calls
    assert name == "measure_networks"
    assert given["names"] == ["cifar_resnet:32", "tas:C010-ResNet32"]
    assert (given["target"].runtime, given["target"].batch, given["target"].threads) == ("onnxruntime", 2, 1)
    assert (given["rounds"], given["classes"]) == (40, 10)
    assert (given["target"].precision, given["others"]) == ("bf16", ["energy", "memory"])
    (row,) = json.loads(capsys.readouterr().out)
    assert row == {
        "network": "cifar_resnet:32",
        "runtime": "eager",
        "latency_ms": {
            "estimate": pytest.approx(4.5),
            "error": pytest.approx(0.5),
            "interval": [pytest.approx(2.4561, abs=1e-3), pytest.approx(6.5439, abs=1e-3)],
            "median": 5.0,
            "min": 4.0,
            "spread": pytest.approx(1.0),
            "doubts": list(Measurement((0.004, 0.005, 0.006), "s").doubts),
        },
        "mmacs": pytest.approx(69.124736),
        "mparams": pytest.approx(0.466906),
    }


def test_doubts_are_in_the_json(
    calls: Calls, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    noisy = Measurement((0.004, 0.005, 0.006), "s", remarks=("other processes ran",))
    partly = replace(noisy, note="Not quantized: up.")
    figures = [networks.Figures("my.onnx", "onnxruntime", partly, 1, 1, others={"energy": noisy})]
    monkeypatch.setattr(networks, "measure_networks", lambda *args: figures)
    assert cli.main(["measure", "my.onnx", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    doubts = list(noisy.doubts)
    assert row["latency_ms"]["note"] == "Not quantized: up."
    assert doubts[0] == "other processes ran" and row["latency_ms"]["doubts"] == row["energy"]["doubts"] == doubts


def test_networks_are_measured_by_name_as_a_table(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["measure", "cifar_resnet:32", "--rounds=5", "--classes=100"]) == 0
    assert (calls[0][1]["rounds"], calls[0][1]["classes"]) == (5, 100)
    assert calls[0][1]["target"].threads == usable_cores()
    head, row, doubt = capsys.readouterr().out.splitlines()
    assert " ".join(head.split()) == "network runtime latency error interval median min spread MACs parameters"
    assert (
        " ".join(row.split())
        == "cifar_resnet:32 eager 4.50 ms 0.500 ms 2.46-6.54 ms 5.00 ms 4.00 ms 1.00 ms 69.12 M 0.467 M"
    )
    assert len(head) == len(row)
    assert doubt.startswith("cifar_resnet:32: the readings spread over 20% of their median")


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        ("measure some.toml --runtime eager", "a run is measured as its configuration says, so leave out --runtime"),
        ("measure some.toml --json", "a run is measured as its configuration says, so leave out --json"),
        (
            "measure cifar_resnet:32 --again",
            "--again is for measuring a run, and 'cifar_resnet:32' is neither a folder nor a TOML file",
        ),
        (
            "measure cifar_resnet:32 --target.batch=2",
            "--target.batch=2 is for measuring a run, and 'cifar_resnet:32' is neither a folder nor a TOML file",
        ),
        (
            "measure some.toml --host ssh://pi@board",
            "a run is measured as its configuration says, so leave out --host; to measure its network elsewhere, write "
            "it by htas export, and measure that .onnx file",
        ),
        (
            "measure cifar_resnet:32 --host ssh://pi@board --host=ssh://jetson",
            "--host and --target.host are one option, given twice; name several devices with commas between",
        ),
        *(
            (words, "the host is empty, as a variable may be that is not set; name one, or leave it out")
            for words in ("measure cifar_resnet:20 --host=", "survey some.toml --target.host=", "doctor --host= --json")
        ),
        ("measure cifar_resnet:32 --rounds 0", "--rounds and --classes must be 1 or more, got 0 and 10"),
    ],
)
def test_what_measure_would_ignore_is_refused(
    calls: Calls, capsys: pytest.CaptureFixture[str], argv: str, sentence: str
) -> None:
    assert refused(capsys, *argv.split()) == sentence
    assert calls == []


@pytest.mark.parametrize("host", ["", " "])
def test_an_empty_host_is_not_this_machine(calls: Calls, capsys: pytest.CaptureFixture[str], host: str) -> None:
    assert "the host is empty" in refused(capsys, "measure", "cifar_resnet:20", "--host", host)
    assert calls == []


@pytest.mark.parametrize(
    ("to", "suffix"), [("onnx", ".onnx"), ("openvino", ".xml"), ("ncnn", ".param"), ("litert", ".tflite")]
)
def test_export_says_where_and_how_near(calls: Calls, capsys: pytest.CaptureFixture[str], to: str, suffix: str) -> None:
    assert cli.main(["export", "runs/some", "--to", to, "--network=base"]) == 0
    asked = {"folder": Path("runs/some"), "suffix": suffix, "network": "base", "file": None}
    assert calls == [("export_network", {**asked, "int8": False})]
    assert capsys.readouterr().out == "runs/some/base.onnx (outputs differ from PyTorch's by 1.2e-06 at most)\n"
    command = ["export", "runs/some", "--to", to, "--network=base", "--precision=int8"]
    if to in ("onnx", "openvino"):
        assert cli.main(command) == 0
        assert calls[1:] == [("export_network", {**asked, "int8": True})]
    else:
        assert "--precision int8 is for --to onnx and --to openvino" in refused(capsys, *command)


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store of two surveys, which is this user's own."""
    path = tmp_path / "store.sqlite"
    monkeypatch.setenv("HTAS_STORE", str(path))
    monkeypatch.chdir(tmp_path)
    Store(path).add([stored(16, "aaa", 1), stored(32, "aaa", 1), stored(16, "bbb", 2)])
    return Store(path)


def stored(outputs: int, survey: str, hour: int) -> Entry:
    """A layer of a survey at so many o'clock."""
    key = Layer("conv", 3, outputs, (32, 32), (3, 3), padding=(1, 1), norm=True, activation="relu").key
    context = {"device": "cpu", "runtime": "eager", "precision": "fp32", "batch": "4", "threads": "2"}
    context |= {"measured on": "board (1234)", "processor": "Cortex-A72"}
    remarks = ("contention; stop other work",) if survey == "aaa" else ()
    readings = Measurement((0.001, 0.002, 0.003), "s", context, survey, remarks=remarks)
    doubts = ("drift; wait",) if outputs == 32 else ()
    return Entry("f00d", "latency", key, readings, (0.5, 0.25), doubts, f"2026-11-23T0{hour}:30:00+00:00")


def columns(line: str) -> list[str]:
    return re.split(r"  +", line.strip())


def test_the_surveys_of_the_store_are_listed(kept: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["store", "ls"]) == 0
    head, new, old = capsys.readouterr().out.splitlines()
    titles = "survey metric date machine place device runtime precision batch threads layers doubtful"
    assert head.replace(" (UTC)", "").split() == titles.split()
    where = ["board (1234)", "f00d", "cpu", "eager", "fp32", "4", "2"]
    assert columns(new) == ["bbb", "latency", "2026-11-23 02:30", *where, "1", "0"]
    assert columns(old) == ["aaa", "latency", "2026-11-23 01:30", *where, "2", "2"]
    assert len(head) == len(new) == len(old)


def test_the_surveys_of_the_store_are_listed_as_json(kept: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["store", "--json", "ls"]) == 0
    new, old = json.loads(capsys.readouterr().out)
    assert (new["survey"], new["layers"], new["doubtful"], new["context"]["runtime"]) == ("bbb", 1, 0, "eager")
    assert old["date"] == "2026-11-23T01:30:00.000000+00:00"


def test_an_empty_store_says_so_and_makes_no_file(kept: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["store", "ls", "--path", "other.sqlite"]) == 0
    assert capsys.readouterr().out == "no measurements in other.sqlite\n"
    assert refused(capsys, "store", "show", "aaa", "--path=other.sqlite") == (
        "no survey called 'aaa': other.sqlite has none"
    )
    assert refused(capsys, "store", "export", "a.csv", "--path=other.sqlite") == (
        "other.sqlite has no measurements to export"
    )
    assert not Path("other.sqlite").exists()
    assert not Path("a.csv").exists()


def test_the_layers_of_a_survey_are_shown(kept: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["store", "show", "aaa"]) == 0
    head, one, two, *doubts = capsys.readouterr().out.splitlines()
    assert head.split() == ["layer", "metric", "readings", "median", "min", "spread", "anchor"]
    words = "conv 3 \N{RIGHTWARDS ARROW} 16, size 32x32, kernel 3x3, padding 1x1, norm, activation relu"
    assert columns(one) == [words, "latency", "3", "2.00 ms", "1.00 ms", "1.00 ms", "375 ms"]
    assert columns(two)[0] == words.replace("16", "32")
    assert doubts == ["2 layers: contention; stop other work", "1 layer: drift; wait"]


def test_a_survey_of_something_else_than_layers_or_seconds_is_shown(
    kept: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    key = '{"network": "cifar_resnet:20"}'
    kept.add([Entry("f00d", "energy", key, Measurement((0.125,), "J", {}, "ccc"))])
    assert cli.main(["store", "show", "ccc"]) == 0
    line = capsys.readouterr().out.splitlines()[1]
    assert columns(line) == [key, "energy", "1", "125 mJ", "125 mJ", "0 mJ", "\N{EN DASH}"]
    assert cli.main(["store", "ls"]) == 0
    assert columns(capsys.readouterr().out.splitlines()[1])[5:10] == ["\N{EN DASH}"] * 5


def test_the_layers_of_a_survey_are_shown_as_json(kept: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["store", "show", "aaa", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [Entry.of(each) for each in shown] == [stored(16, "aaa", 1), stored(32, "aaa", 1)]


@pytest.mark.parametrize("file", ["table.csv", "table.parquet"])
def test_a_store_is_moved_by_a_table(kept: Store, capsys: pytest.CaptureFixture[str], file: str) -> None:
    assert cli.main(["store", "export", file]) == 0
    assert cli.main(["store", "import", file, "--path", "other.sqlite"]) == 0
    assert cli.main(["store", "import", file, "--path", "other.sqlite"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"3 layers written to {file}",
        f"3 new layers from {file} added to other.sqlite",
        f"0 new layers from {file} added to other.sqlite",
    ]
    assert Store(Path("other.sqlite")).entries("aaa") == kept.entries("aaa")


def test_surveys_are_forgotten(kept: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["store", "forget", "aaa"]) == 0
    assert capsys.readouterr().out == f"2 layers removed from {kept.path}\n"
    assert [each.survey for each in kept.surveys()] == ["bbb"]
    assert refused(capsys, "store", "forget", "all") == (
        "htas store forget all removes every measurement; add --yes if you mean it"
    )
    assert [each.survey for each in kept.surveys()] == ["bbb"]
    for left in (1, 0):
        assert cli.main(["store", "forget", "all", "--yes"]) == 0
        assert capsys.readouterr().out == f"{left} layer{'s' * (left == 0)} removed from {kept.path}\n"
    assert kept.surveys() == []


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        ("store", "the following arguments are required: ACTION; see htas store --help"),
        ("store show", "htas store show needs a survey; see htas store --help"),
        ("store import", "htas store import needs a file; see htas store --help"),
        ("store forget --yes", "htas store forget needs a survey, or all; see htas store --help"),
        ("store ls aaa", "htas store ls takes no 'aaa'; htas store show aaa shows one survey"),
        ("store show aaa bbb", "htas store: unexpected argument 'bbb'; see htas store --help"),
        ("store export a.csv --json", "--json is for htas store ls and show, so leave it out of htas store export"),
        ("store ls --yes", "--yes is for htas store forget, so leave it out of htas store ls"),
        ("store show aab", "no survey called 'aab'; did you mean 'aaa'? choose one of bbb, aaa"),
        ("store forget ccc", "no survey called 'ccc'; choose one of bbb, aaa"),
        ("store export a.txt", "a table of measurements is a .csv or a .parquet file, got a.txt"),
        (
            "store ls --paht x",
            "htas store has no option '--paht'; did you mean '--path'? it has: --path, --json, --yes",
        ),
    ],
)
def test_a_wrong_command_to_the_store_gets_one_sentence(
    kept: Store, capsys: pytest.CaptureFixture[str], argv: str, sentence: str
) -> None:
    assert refused(capsys, *argv.split()) == sentence
    assert len(kept.surveys()) == 2


def test_a_wrong_action_names_the_right_ones(kept: Store, capsys: pytest.CaptureFixture[str]) -> None:
    sentence = refused(capsys, "store", "lst")
    assert "'lst'" in sentence
    for action in ("ls", "show", "export", "import", "forget"):
        assert action in sentence


def test_the_help_of_the_store_explains_its_actions(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["store", "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for action in ("ls ", "show SURVEY ", "export FILE ", "import FILE ", "forget SURVEY|all "):
        assert sum(line.startswith(action) for line in lines) == 1
    assert max(map(len, lines)) <= 120


class Findings:
    """What another machine would say of a target."""

    def __init__(self, target: Target) -> None:
        self.target = target

    def json(self) -> dict[str, Any]:
        return {"runtime": self.target.runtime, "batch": self.target.batch, "threads": self.target.threads}

    def lines(self) -> list[str]:
        return ["this machine", f"batch {self.target.batch}"]


def test_the_doctor_examines_the_target_that_is_given(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "htas.cli.doctor", SimpleNamespace(examine=Findings))
    assert cli.main(["doctor"]) == 0
    assert capsys.readouterr().out == "this machine\nbatch 4\n"
    assert cli.main(["doctor", "--runtime=onnxruntime", "--device=cpu", "--batch=2", "--threads=1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"runtime": "onnxruntime", "batch": 2, "threads": 1}
    assert refused(capsys, "doctor", "--batch=-1") == "target.batch must be 0 (the default) or more, got -1"


def test_the_doctor_examines_several_devices_one_after_the_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hosts: list[str] = []
    monkeypatch.setattr("htas.cli.doctor.examine", lambda target: hosts.append(target.host) or Findings(target))
    assert cli.main(["doctor", "--host", "ssh://pi@board,ssh://jetson", "--batch=2"]) == 0
    assert capsys.readouterr().out == "this machine\nbatch 2\n\nthis machine\nbatch 2\n"
    assert hosts == ["ssh://pi@board", "ssh://jetson"]
    assert cli.main(["doctor", "--host", "ssh://pi@board,ssh://jetson", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 2


def test_the_doctor_keeps_what_the_command_asks_of_it() -> None:
    from htas.cli import doctor

    (target, *rest) = inspect.signature(doctor.examine).parameters.values()
    assert target.annotation in (Target, "Target")
    assert all(each.default is not inspect.Parameter.empty for each in rest)
    assert callable(doctor.Findings.json)
    assert callable(doctor.Findings.lines)


def test_the_demo_runs_the_packaged_configuration(calls: Calls) -> None:
    assert cli.main(["demo", "--out", "here"]) == 0
    assert calls[-1][0] == "run_all"
    assert calls[-1][1]["run"].folder == Path("here")
    assert calls[-1][1]["command"] == "htas demo --out here"
    assert calls[-1][1]["run"].config.names["data"] == "digits"


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (
            "rnu some.toml",
            "no verb called 'rnu'; did you mean 'run'? choose one of "
            "run, plan, survey, design, calibrate, transfer, search, train, measure, inspect, sweep, fastest, compare, "
            "reproduce, report, export, store, doctor, watch, demo, options, completion",
        ),
        (
            "survey some.toml --agian",
            "htas survey has no option '--agian'; did you mean '--again'? it has: --host, --json, --out, --again, "
            "--table.field=value",
        ),
        (
            "run some.toml --again",
            "htas run has no option '--again'; it has: --tensorboard, --json, --out, --table.field=value",
        ),
        ("run some.toml other.toml", "htas run: unexpected argument 'other.toml'; see htas run --help"),
        ("run", "the following arguments are required: CONFIG; see htas run --help"),
        ("export runs/some", "the following arguments are required: --to; see htas export --help"),
        ("run no.toml", "no.toml does not exist; name a TOML file, or a folder that a run made"),
        ("--vers", f"no verb called '--vers'; choose one of {', '.join(VERBS)}"),
        ("run some.toml --out", "--out has no value; see htas run --help"),
        ("measure some --rounds=x", "--rounds must be a whole number, got 'x'; see htas measure --help"),
        ("doctor --device=gpu", "--device must be one of cpu, cuda, got 'gpu'; see htas doctor --help"),
        ("run some.toml --design.groups", "--design.groups has no value; write --design.groups=VALUE"),
        ("run some.toml --design.groups=0", "design.groups must be 1 or more, got 0"),
    ],
)
def test_a_wrong_command_gets_one_sentence(
    calls: Calls, capsys: pytest.CaptureFixture[str], argv: str, sentence: str
) -> None:
    assert refused(capsys, *argv.split()) == sentence
    assert calls == []


def test_a_wrong_format_names_the_right_ones(capsys: pytest.CaptureFixture[str]) -> None:
    sentence = refused(capsys, "export", "runs/some", "--to", "onx")
    assert "'onx'" in sentence
    assert "onnx" in sentence
    assert "pt2" in sentence


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Have a function raise that stands in a file of htas."""
    names: dict[str, Any] = {"error": error}
    exec(compile("def fail(*_):\n    raise error\n", str(stage.__file__), "exec"), names)
    monkeypatch.setattr(stage, "ensure", names["fail"])


@pytest.mark.usefixtures("calls")
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_disk_that_cannot_be_used_gets_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    failing(monkeypatch, OSError(number, "words", "runs/some/x"))
    sentence = refused(capsys, "survey", "some.toml")
    assert sentence.startswith("runs/some/x cannot be used: ")
    assert sentence.endswith("free some space or name another folder with --out")


@pytest.mark.usefixtures("calls")
def test_a_mistake_in_several_lines_is_still_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, UserError("one\n  two"))
    assert refused(capsys, "survey", "some.toml") == "one two"


@pytest.mark.usefixtures("calls")
def test_ctrl_c_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    failing(monkeypatch, KeyboardInterrupt())
    assert cli.main(["survey", "some.toml"]) == 130
    assert capsys.readouterr().err == "\nhtas: stopped; the same command continues where this one was\n"


@pytest.mark.usefixtures("calls")
@pytest.mark.parametrize(
    "error", [RuntimeError("a bug"), ValueError("of a library"), OSError(errno.EIO, "a broken disk")]
)
def test_a_fault_is_called_one_and_shows_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    failing(monkeypatch, error)
    assert cli.main(["survey", "some.toml", "--seed", "3"]) == 1
    out, err = capsys.readouterr()
    first, *_, report = err.splitlines()
    assert out == ""
    assert first == "Traceback (most recent call last):"
    assert f"{type(error).__name__}: {error}" in err
    assert report == (
        f"htas: this is a fault of htas {htas.__version__}, unless the lines above end in code of your own; please "
        "report it in the project's issue tracker, with these lines and the command: htas survey some.toml --seed 3"
    )


def test_ctrl_c_while_modules_are_imported_is_no_traceback() -> None:
    script = """
import sys

class Interrupt:
    def find_spec(self, name, *_):
        if name == "htas.cli.app":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupt())
from htas.cli import main
sys.exit(main(["run", "some.toml"]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "\nhtas: stopped; the same command continues where this one was\n"


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_the_help_has_every_verb_with_one_line(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    for verb in VERBS:
        assert sum(line.startswith(f"  {verb}: ") for line in lines) == 1
    assert max(map(len, lines)) <= 120


def flags(parameter: inspect.Parameter) -> list[str]:
    """What a parameter is called on the command line."""
    if parameter.name == "overrides":
        return ["--design.expand"]
    if parameter.name == "command":
        return []
    if parameter.kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL):
        return [parameter.name.upper()]
    if isinstance(parameter.default, TargetOptions):
        return [f"--{field.name} " for field in dataclasses.fields(TargetOptions)]
    return [f"--{parameter.name.replace('_', '-')}"]


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_has_its_arguments(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([verb, "--help"]) == 0
    out = capsys.readouterr().out
    for parameter in inspect.signature(VERBS[verb]).parameters.values():
        for flag in flags(parameter):
            assert flag in out
    assert max(map(len, out.splitlines())) <= 120
    assert (verb in CONFIGURED) == ("htas options shows all of them" in out)


def test_the_help_of_run_is_about_the_file_that_is_named(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    Path("some.toml").write_text('[train]\nrecipe = "short"\n')
    assert cli.main(["run", "some.toml", "--help"]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert "--train.recipe  text; default: short" in lines
    assert "--train.epochs  a whole number; default: 2" in lines
    assert len(lines) < 60
    assert calls == []


def test_the_options_of_a_configuration_are_shown_with_their_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    config = load(None)
    assert cli.main(["options"]) == 0
    out = capsys.readouterr().out
    for table in TABLES:
        assert f"[{table}]" in out
        for field in dataclasses.fields(getattr(config, table)):
            assert f"  --{table}.{field.name}  " in out
    share = "Share of the training images that architectures learn from and choices are judged on"
    assert f"--split.validation a number; default: 0.5 {share}" in " ".join(out.split())


def test_the_options_of_one_table_are_of_the_class_that_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["options", "train", "family", "--train.recipe", "short", "--family.name=vgg"]) == 0
    out = capsys.readouterr().out
    assert "--train.epochs  a whole number; default: 2" in out
    assert "--family.head" in out
    assert "--family.block" not in out and "[design]" not in out
    assert refused(capsys, "options", "desing").startswith("no table called 'desing'; did you mean 'design'?")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_every_verb_and_its_options(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in (*VERBS, "--tensorboard", "--precision"):
        assert word.removeprefix("--") in script


def test_bash_understands_its_completion(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", "bash"]) == 0
    script = tmp_path / "htas.bash"
    script.write_text(capsys.readouterr().out)
    command = f"source {script}; COMP_WORDS=(htas rep) COMP_CWORD=1 COMP_LINE='htas rep'; _htas; echo ${{COMPREPLY[@]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["reproduce", "report"]


LIGHT = """
--version
--help
rnu
--rnu
run --help
measure --help
options
options design
completion bash
run
run some.toml --agian
run some.toml other.toml
run some.toml --out
measure net --batch two
measure net --device tpu
store lst
doctor --design.groups=3
run some.toml --desing.groups=4
run some.toml --design.group=4
run some.toml --design.groups
run some.toml --design.groups=eight
run some.toml --design.adds=jion
run some.toml --seed=one
run some.toml --train.recipe=shrt
run some.toml --family.name=resnet
run some.toml --strategy.name=random --strategy.arch_lr=1
run no.toml
survey some.toml --target.image=3
sweep some.toml --design.group=4
fastest some.toml --design.group=4
compare some.toml arms.toml --design.group=4
inspect some.toml --design.group=4
inspect net --classes=0
measure net --rounds=0
measure net --image=3
measure cifar_resnet:20 vgg
measure some.toml --batch=2
reproduce table4 --quick --full
reproduce table4 --depths=deep
report some.toml other.toml
store show
search some.toml --strategy.epochs=two
demo --design.group=4
run some.toml --design.groups=0
run some.toml --design.spaces=
run some.toml --split.validation=2
run some.toml --train.epochs=0
run some.toml --target.batch=-1
run some.toml --survey.rounds=0
run some.toml --strategy.lr=0
run some.toml --strategy.cost=watts
run some.toml --distill.alpha=2
doctor --batch=-1
run limit.toml
run some.toml --constraints.latency=half
run some.toml --constraints.macs=3ms
run some.toml --constraints.metrics='{"energy": "half"}'
run some.toml --constraints.metrics='{"watts": "50%"}'
run some.toml --constraints.metrics='{"nowhere:Watts": "50%"}'
demo --constraints.memory=all
run some.toml --family.depth=21
run some.toml --family.name=nowhere:Net
run some.toml --family.name=custom --family.factory=net
run some.toml --family.name=vgg --family.depth=12
run some.toml --data.name=hub
run some.toml --data.name=image_folder --data.workers=-3
run some.toml --data.name=image_folder
run some.toml --target.runtime=abacus
run some.toml --target.options='{"spin": 1}'
run some.toml --target.runtime=onnxruntime --target.options='{"spn": 1}'
run some.toml --target.runtime=onnxruntime --target.options='{"spin": "fast"}'
run some.toml --target.runtime=onnxruntime --target.options='{"spin": -1}'
run some.toml --design.bounds='{"16": [1]}'
run some.toml --strategy.cost=nowhere:Watts
run some.toml --strategy.warmup=1000
run some.toml --strategy.start=there
run some.toml --strategy.name=morphnet --strategy.prices=watts
run some.toml --strategy.name=evolution --strategy.mutation=2
run some.toml --train.rest=1000
sweep some.toml --budgets=
sweep some.toml --budgets=half
sweep some.toml --budgets=50%,50%
sweep finished --out finished
fastest some.toml
fastest some.toml --accuracy-floor=x
fastest some.toml --accuracy-floor=-0.3 --seeds=0
fastest some.toml --accuracy-floor=-0.3 --tries=0
fastest some.toml --accuracy-floor=-0.3 --constraints.latency=50%
fastest some.toml --accuracy-floor=-0.3 --out finished
compare some.toml arms.toml --seeds=0
compare some.toml arms.toml --seed=3
compare some.toml arms.toml --against=c
compare some.toml arms.toml --out finished
compare some.toml arms.toml --train.epochs=0
compare some.toml none.toml
compare some.toml one.toml
compare some.toml pruned.toml
compare some.toml targets.toml
compare some.toml wrong.toml
reproduce table9
reproduce table4 --seeds=0
reproduce table4 --depths=20
reproduce table4 --seed=2
reproduce table4 --family.depth=20
reproduce table4 --train.epochs=0
reproduce table4 --out finished
reproduce table5 --second=faster
reproduce table5 --second=runtime=eager
reproduce table5 --second=batch=-1
reproduce table2 --design.groups=4
report finished finished
export finished --to onnx --file net.pt2
measure net
measure cifar_resnet:20:basic:more
measure cifar_resnet:twenty
measure cifar_resnet:21
measure tas:net
measure custom:net
measure nowhere.nets:Net
measure cifar_resnet:20 --metrics=watts
measure cifar_resnet:20 --batch=-1
measure cifar_resnet:20 --runtime=abacus
inspect tas:net
inspect cifar_resnet:20 --runtime=abacus
inspect some.toml --constraints.latency=half
doctor --runtime=abacus
"""
"""Help and refusals, a command a line."""
FILES = {
    "some.toml": "[design]\ngroups = 4\n",
    "limit.toml": '[constraints]\nlatency = "half"\n',
    "finished/config.toml": "",
    "arms.toml": "[a]\n[b]\ntrain.epochs = 2\n",
    "one.toml": "[a]\n",
    "pruned.toml": '[a]\n[b]\nprune = "most"\n',
    "targets.toml": "[a]\n[b]\ntarget.batch = 2\n",
    "wrong.toml": "[a]\n[b]\ntrain.epochs = 0\n",
}
"""What they name."""


def test_help_and_refusals_answer_without_pytorch(tmp_path: Path) -> None:
    script = """
import json, shlex, sys
from htas.cli import main

for line in sys.argv[1].splitlines():
    code = main(shlex.split(line))
    print("END", json.dumps([line, code, [name for name in ("torch", "numpy", "scipy") if name in sys.modules]]))
"""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        [sys.executable, "-c", script, LIGHT], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    ends = [json.loads(line.removeprefix("END ")) for line in done.stdout.splitlines() if line.startswith("END ")]
    assert [line for line, _, _ in ends] == LIGHT.splitlines()
    for line, code, loaded in ends:
        assert loaded == [], line
        assert code == (0 if line in ANSWERED else 2), line
    assert done.stderr.count("\n") == len(ends) - len(ANSWERED)


ANSWERED = ("", "--version", "--help", "run --help", "measure --help", "options", "options design", "completion bash")


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"htas {htas.__version__}\n"


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "htas", "rnu"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("htas: no verb called 'rnu'")


def test_the_help_of_a_sweep_says_which_budgets_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sweep", "--help"]) == 0
    assert f"with commas between; otherwise {BUDGETS}" in " ".join(capsys.readouterr().out.split())
