"""The command line, with a pipeline that only writes down what it was asked."""

import errno
import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import htas
from htas import cli, pipeline
from htas.config import Config
from htas.measurement import Measurement
from htas.target import usable_cores

Calls = list[tuple[str, dict[str, Any]]]
STAGES = ("survey", "design", "search", "train", "measure", "report")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Calls:
    """What the pipeline was asked, by function and parameter, in an empty folder; wrong calls fail as real ones do."""
    made: Calls = []
    answers = {
        "run": Path("runs/report.html"),
        "measure_networks": [
            pipeline.Figures("cifar_resnet:32", "eager", Measurement((0.004, 0.005, 0.006), "s"), 69_124_736, 466_906)
        ],
        "export_network": (Path("runs/some/base.onnx"), 1.2e-6),
    }

    def recorder(name: str) -> Callable[..., Any]:
        signature = inspect.signature(getattr(pipeline, name))

        def record(*args: Any, **kwargs: Any) -> Any:
            made.append((name, dict(signature.bind(*args, **kwargs).arguments)))
            return answers.get(name)

        return record

    for name in ("run", "open_run", *STAGES, "measure_networks", "export_network"):
        monkeypatch.setattr(pipeline, name, recorder(name))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some.toml").write_text("[design]\ngroups = 4\n")
    return made


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
    assert (opened, ran) == ("open_run", "run")
    config = second["config"]
    assert isinstance(config, Config)
    assert first == {"config": config, "folder": Path("runs/some")}
    assert (config.design.groups, config.design.expand, config.seed) == (4, 3.0, 7)
    assert second["folder"] == Path("runs/some")
    assert second["command"] == "htas run some.toml --design.expand=3 --seed=7"
    assert capsys.readouterr().out == "runs/report.html\n"


def test_run_repeats_its_folder_in_the_command(calls: Calls) -> None:
    assert cli.main(["run", "some.toml", "--out=my runs/1"]) == 0
    assert calls[1][1]["folder"] == Path("my runs/1")
    assert calls[1][1]["command"] == "htas run some.toml --out 'my runs/1'"


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("again", [False, True])
def test_a_stage_works_from_a_file(calls: Calls, stage: str, again: bool) -> None:
    assert cli.main([stage, "some.toml", *(["--again"] if again else [])]) == 0
    assert [name for name, _ in calls] == ["open_run", stage]
    assert calls[1][1]["config"].design.groups == 4
    assert calls[1][1]["folder"] == Path("runs/some")
    assert calls[1][1]["again"] is again


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_works_from_the_folder_of_a_run(calls: Calls, stage: str) -> None:
    Path("done").mkdir()
    Path("done/config.toml").write_text("[design]\ngroups = 3\n")
    assert cli.main([stage, "done"]) == 0
    assert calls[1][1]["config"].design.groups == 3
    assert calls[1][1]["folder"] == Path("done")


def test_a_folder_that_no_run_made_is_refused(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    sentence = refused(capsys, "search", "empty")
    assert sentence == "empty is not the folder of a run: it has no config.toml; name a TOML file first"
    assert calls == []


def test_networks_are_measured_by_name_as_json(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    argv = "measure cifar_resnet:32 --runtime onnxruntime --batch 2 tas:C010-ResNet32 --threads 1 --json"
    assert cli.main(argv.split()) == 0
    ((name, given),) = calls
    assert name == "measure_networks"
    assert given["names"] == ["cifar_resnet:32", "tas:C010-ResNet32"]
    assert (given["target"].runtime, given["target"].batch, given["target"].threads) == ("onnxruntime", 2, 1)
    assert (given["rounds"], given["classes"]) == (40, 10)
    (row,) = json.loads(capsys.readouterr().out)
    assert row == {
        "network": "cifar_resnet:32",
        "runtime": "eager",
        "latency_ms": {"median": 5.0, "min": 4.0, "spread": pytest.approx(1.0)},
        "mmacs": pytest.approx(69.124736),
        "mparams": pytest.approx(0.466906),
    }


def test_networks_are_measured_by_name_as_a_table(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["measure", "cifar_resnet:32", "--rounds=5", "--classes=100"]) == 0
    assert (calls[0][1]["rounds"], calls[0][1]["classes"]) == (5, 100)
    assert calls[0][1]["target"].threads == usable_cores()
    head, row, doubt = capsys.readouterr().out.splitlines()
    assert head.split() == ["network", "runtime", "median", "min", "spread", "MACs", "parameters"]
    assert " ".join(row.split()) == "cifar_resnet:32 eager 5.00 ms 4.00 ms 1.00 ms 69.12 M 0.47 M"
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
        ("measure cifar_resnet:32 --rounds 0", "--rounds and --classes must be 1 or more, got 0 and 10"),
    ],
)
def test_what_measure_would_ignore_is_refused(
    calls: Calls, capsys: pytest.CaptureFixture[str], argv: str, sentence: str
) -> None:
    assert refused(capsys, *argv.split()) == sentence
    assert calls == []


def test_export_says_where_and_how_near(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", "runs/some", "--to", "onnx", "--network=base"]) == 0
    assert calls == [("export_network", {"folder": Path("runs/some"), "to": "onnx", "network": "base", "file": None})]
    assert capsys.readouterr().out == "runs/some/base.onnx (outputs differ from PyTorch's by 1.2e-06 at most)\n"


def test_the_demo_runs_the_packaged_configuration(calls: Calls) -> None:
    assert cli.main(["demo", "--out", "here"]) == 0
    assert calls[-1][0] == "run"
    assert calls[-1][1]["folder"] == Path("here")
    assert calls[-1][1]["command"] == "htas demo --out here"
    assert calls[-1][1]["config"].names["data"] == "digits"


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (
            "rnu some.toml",
            "no verb called 'rnu'; did you mean 'run'? choose one of "
            "run, survey, design, search, train, measure, report, export, demo",
        ),
        (
            "survey some.toml --agian",
            "htas survey has no option '--agian'; did you mean '--again'? it has: --out, --again, --table.field=value",
        ),
        ("run some.toml --again", "htas run has no option '--again'; it has: --out, --table.field=value"),
        ("run some.toml other.toml", "htas run has no use for 'other.toml'; see htas run --help"),
        ("run", "the following arguments are required: CONFIG; see htas run --help"),
        ("export runs/some", "the following arguments are required: --to; see htas export --help"),
        ("run no.toml", "no.toml does not exist; name a TOML file, or a folder that a run made"),
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
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(pipeline, "survey", fail)


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
    failing(monkeypatch, ValueError("one\n  two"))
    assert refused(capsys, "survey", "some.toml") == "one two"


@pytest.mark.usefixtures("calls")
def test_ctrl_c_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    failing(monkeypatch, KeyboardInterrupt())
    assert cli.main(["survey", "some.toml"]) == 130
    assert capsys.readouterr().err == "\nhtas: stopped; the same command continues where this one was\n"


@pytest.mark.usefixtures("calls")
@pytest.mark.parametrize("error", [RuntimeError("a bug"), OSError(errno.EIO, "a broken disk")])
def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    failing(monkeypatch, error)
    with pytest.raises(type(error)):
        cli.main(["survey", "some.toml"])


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_the_help_has_every_verb_with_one_line(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    for verb in cli.VERBS:
        assert sum(line.startswith(f"  {verb} ") for line in lines) == 1
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize("verb", cli.VERBS)
def test_the_help_of_a_verb_has_its_arguments(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([verb, "--help"]) == 0
    out = capsys.readouterr().out
    for name, parameter in inspect.signature(cli.VERBS[verb]).parameters.items():
        if name == "overrides":
            assert "--design.groups" in out
        elif parameter.default is not inspect.Parameter.empty:
            assert f"--{name}" in out


def test_the_help_of_run_is_about_the_file_that_is_named(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    Path("some.toml").write_text('[train]\nrecipe = "short"\n')
    assert cli.main(["run", "some.toml", "--help"]) == 0
    assert "(default: short)" in capsys.readouterr().out
    assert calls == []


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"htas {htas.__version__}\n"


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "htas", "rnu"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("htas: no verb called 'rnu'")
