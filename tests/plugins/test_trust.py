"""Code that a configuration names: imported only where that is allowed."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from htas import cli
from htas.console.record import NAME
from htas.errors import UserError
from htas.plugins import trust
from htas.plugins.trust import FLAG, VARIABLE, is_trusted, user_code_allowed, without_user_code
from htas.report import write
from htas.run.config import Config
from htas.strategies.blockwise import Blockwise
from tests.report.test_report import REPORT

MODULE = """
from pathlib import Path

Path(__file__).with_name("imported").touch()

def make(classes):
    from htas.models.cifar_resnet import CifarResNet

    return CifarResNet(8).build(classes)
"""
NAMED = {
    "family.factory": ('[family]\nname = "custom"\nfactory = "spy:make"\n', "spy:make"),
    "family.name": ('[family]\nname = "spy:Family"\n', "spy:Family"),
    "data.name": ('[data]\nname = "spy:Data"\n', "spy:Data"),
    "strategy.name": ('[strategy]\nname = "spy:Strategy"\n', "spy:Strategy"),
    "strategy.cost": ('[strategy]\nname = "differentiable"\ncost = "spy:Metric"\n', "spy:Metric"),
    "target.runtime": ('[target]\nruntime = "spy:Runtime"\n', "spy:Runtime"),
    "constraints.metrics": ('[constraints.metrics]\n"spy:Metric" = "50%"\n', "spy:Metric"),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a command, with a module that says when it is imported."""
    (tmp_path / "spy.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(VARIABLE, raising=False)
    before = list(sys.path)
    yield tmp_path
    sys.path[:] = before
    sys.modules.pop("spy", None)


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert cli.main(argv) == 2
    err = capsys.readouterr().err
    assert err.startswith("htas: ") and err.count("\n") == 1
    return err.removeprefix("htas: ").strip()


@pytest.mark.parametrize("option", NAMED)
@pytest.mark.parametrize("by", ["flag", "variable"])
def test_what_a_configuration_names_is_not_imported(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], option: str, by: str
) -> None:
    text, name = NAMED[option]
    (folder / "theirs.toml").write_text(text)
    if by == "variable":
        monkeypatch.setenv(VARIABLE, "1")
    flags = [FLAG] if by == "flag" else []
    for verb in ("plan", "options", "run", "report"):
        sentence = refused(capsys, verb, "theirs.toml", *flags)
        assert sentence.startswith(
            (f"theirs.toml: {option} names {name!r}, code", f"runs/theirs/config.toml: {option}")
        )
        assert not (folder / "imported").exists()


@pytest.mark.parametrize("verb", ["export", "inspect", "measure", "search", "train", "survey", "plan"])
def test_the_folder_of_a_run_is_refused_too(folder: Path, capsys: pytest.CaptureFixture[str], verb: str) -> None:
    (folder / "theirs").mkdir()
    (folder / "theirs" / "config.toml").write_text(NAMED["family.factory"][0])
    more = ["--to=onnx"] if verb == "export" else []
    sentence = refused(capsys, verb, "theirs", *more, FLAG)
    assert sentence.startswith("theirs/config.toml: family.factory names 'spy:make', code that is not of htas, which")
    assert not (folder / "imported").exists()


@pytest.mark.parametrize(
    "argv",
    [
        ("measure", "custom:spy:make", "--rounds=1"),
        ("inspect", "custom:spy:make", "--image=3,32,32"),
        ("measure", "cifar_resnet:8", "--metrics=spy:Metric"),
        ("measure", "cifar_resnet:8", "--runtime=spy:Runtime"),
        ("measure", "spy.nets:Net:8"),
        ("plan", "plain.toml", "--family.name=custom", "--family.factory=spy:make"),
        ("plan", "plain.toml", '--constraints.metrics={"spy:Metric": "50%"}'),
    ],
)
def test_what_a_command_names_itself_is_refused_too(
    folder: Path, capsys: pytest.CaptureFixture[str], argv: tuple[str, ...]
) -> None:
    (folder / "plain.toml").write_text("")
    assert FLAG in refused(capsys, *argv, FLAG)
    assert not (folder / "imported").exists()


def test_no_command_of_a_device_is_started(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "theirs.toml").write_text('[target]\nhost = "exec:touch imported"\n')
    sentence = refused(capsys, "run", "theirs.toml", FLAG)
    assert sentence.startswith("target.host names a command, 'exec:touch imported', which --no-user-code")
    assert not (folder / "imported").exists()


def test_without_the_flag_the_module_is_imported(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", "custom:spy:nothing", "--image=3,32,32"]) == 2
    assert (folder / "imported").exists() and "spy has no function 'nothing'" in capsys.readouterr().err


def run_of_others(folder: Path, name: str = "theirs") -> Path:
    """A run whose configuration names the module."""
    run = folder / name
    write(REPORT, run)
    config = Config.default().toml().replace('name = "cifar_resnet"', 'name = "custom"\nfactory = "spy:make"')
    (run / "config.toml").write_text(config.replace('depth = 20\nblock = "basic"\n', ""))
    (run / NAME).write_text(
        '{"state": "finished", "why": "", "lines": ["a"], "work": "", "share": 1.0, "began": 1.0, "time": 2.0,'
        ' "process": 1, "host": "x"}'
    )
    return run


@pytest.mark.slow
def test_report_watch_and_store_import_nothing_of_a_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vl_convert.vegalite_to_svg", lambda chart: "<svg/>")  # they take long to draw
    run, _ = run_of_others(folder), run_of_others(folder, "more")
    (run / "report.html").unlink()
    for argv in ("report theirs", "report theirs more", "watch theirs --once", "store ls"):
        assert cli.main(argv.split()) == 0, capsys.readouterr().err
    assert (run / "report.html").exists() and "the searched network" in capsys.readouterr().out.lower()
    assert not (folder / "imported").exists() and "spy" not in sys.modules


def test_a_report_that_needs_the_code_says_how_it_may_have_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vl_convert.vegalite_to_svg", lambda chart: "<svg/>")
    run = run_of_others(folder)
    (run / "survey.json").write_text("{}")
    os.utime(run / "report.json", (1, 1))
    sentence = refused(capsys, "report", str(run))
    assert "family.factory names 'spy:make'" in sentence and sentence.endswith("--user-code if you trust it")
    assert not (folder / "imported").exists()
    (folder / "own.toml").write_text(NAMED["family.name"][0])
    assert "cannot import 'spy:Family'" in refused(capsys, "report", "own.toml", "--user-code")
    assert (folder / "imported").exists()


def test_a_library_is_trusted_where_it_is_installed_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_trusted("htas.models:ModelFamily") and is_trusted("torchvision.models:resnet18")
    assert not is_trusted("spy:make") and not is_trusted("os:system") and not is_trusted(":x") and not is_trusted(".:x")
    (folder / "timm.py").write_text("")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.delitem(sys.modules, "timm")
    assert not is_trusted("timm:make")


def test_a_package_says_by_an_entry_point_that_it_is_for_htas(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import EntryPoint

    assert not is_trusted("numpy.linalg:norm")
    monkeypatch.setattr(trust, "entry_points", lambda group: [EntryPoint("any", "numpy.random:rand", group)])
    assert is_trusted("numpy.linalg:norm")


@pytest.mark.parametrize(("value", "allowed"), [("", True), ("0", True), ("No", True), ("1", False), ("yes", False)])
def test_the_variable_is_off_by_few_words(monkeypatch: pytest.MonkeyPatch, value: str, allowed: bool) -> None:
    monkeypatch.setenv(VARIABLE, value)
    assert user_code_allowed() == allowed
    with without_user_code():
        assert not user_code_allowed()
    assert os.environ[VARIABLE] == value


def test_a_ray_cluster_that_a_configuration_names_is_not_joined() -> None:
    """What its nodes answer are pickles."""
    for workers, refused in ((2, False), ("local:2", False), ("ray", False), ("board:6379", True)):
        strategy = Blockwise(workers=workers)
        strategy.check()
        with without_user_code():
            if not refused:
                strategy.check()
                continue
            with pytest.raises(UserError) as error:
                strategy.check()
        assert "strategy.workers names a Ray cluster, 'board:6379', which --no-user-code" in str(error.value)
