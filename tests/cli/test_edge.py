"""How a command ends: for what the operating system refuses, for signals, and in sentences that people can read."""

import errno
import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from htas import cli
from htas.cli import verbs
from htas.cli.edge import FULL, PLACES, RESUMED, SHORT
from htas.errors import PlaceError, UserError
from htas.files import write_text
from htas.run import config

SLOW = """
import subprocess, sys, time
from htas import cli
from htas.cli import verbs

def plan(config, /, *, overrides, out=None):
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"], start_new_session=True)
    print(other.pid, flush=True)
    time.sleep(100)

plan.__annotations__ = verbs.plan.__annotations__
verbs.VERBS["plan"] = plan
sys.argv = ["htas", "plan", "some.toml"]
sys.exit(cli.main())
"""


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some.toml").write_text("")


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one sentence with which a command is refused."""
    assert cli.main(argv) == 2
    err = capsys.readouterr().err
    assert err.startswith("htas: ") and err.count("\n") == 1 and err[:-1].isprintable() and len(err) < 1000
    return err.removeprefix("htas: ").rstrip("\n")


def failing(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Have a function raise that stands in a file of htas."""
    names: dict[str, Any] = {"error": error}
    exec(compile("def fail(*_):\n    raise error\n", str(config.__file__), "exec"), names)
    monkeypatch.setattr(config.Settings, "config", names["fail"])


@pytest.mark.parametrize("number", PLACES, ids=errno.errorcode.get)
def test_a_place_that_cannot_be_used_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    failing(monkeypatch, OSError(number, "words", "x/y"))
    sentence = refused(capsys, "survey", "some.toml")
    assert sentence.startswith(f"x/y cannot be used: {os.strerror(number)}; ")
    assert sentence.endswith("folder with --out" if number in FULL else "name another place with --out")


@pytest.mark.parametrize("number", SHORT, ids=errno.errorcode.get)
def test_what_the_system_has_no_more_of_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    failing(monkeypatch, OSError(number, "words"))
    assert refused(capsys, "survey", "some.toml").startswith(f"{os.strerror(number)}: ")


def test_a_file_that_our_own_code_does_not_find_is_a_fault(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, FileNotFoundError(errno.ENOENT, "words", "x/y"))
    assert cli.main(["survey", "some.toml"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("verb", "end"),
    [("survey", "folder with --out"), ("export", "folder with --file"), ("store", "another folder"), ("", "folder")],
)
def test_only_an_option_that_the_verb_has_is_advised(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], verb: str, end: str
) -> None:
    def fail(words: object) -> None:
        raise PlaceError("cannot write x: why; free some space or name another folder")

    monkeypatch.setattr("htas.cli.app.call", fail)
    assert refused(capsys, *filter(None, [verb])).endswith(f"name {end}" if verb == "store" else end)


def test_what_cannot_be_written_advises_another_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PlaceError, match=r"cannot write .*file/x: .*; free some space or name another folder$"):
        write_text(tmp_path / "file" / "x", "")


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (["plan", "a" * 300], "CONFIG must be a path of at most 4095 bytes, 255 in each name, got 'aaa"),
        (["plan", "/a" * 3000], "CONFIG must be a path"),
        (["plan", "~nosuch/x"], "CONFIG: this machine has no such user as '~nosuch', or no folder of theirs"),
        (["plan", "some.toml", "--out=~nosuch/x"], "--out: this machine has no such user as '~nosuch'"),
        (["store", "ls", "--path=~nosuch/x"], "--path: this machine has no such user as '~nosuch'"),
        (["export", "~nosuch/x", "--to=onnx"], "RUN: this machine has no such user as '~nosuch'"),
        (["export", "some.toml", "--to=onnx"], "some.toml is not the folder of a run: it has no config.toml"),
        (["plan", "some.toml", "--survey.store=~nosuch/x"], "survey.store: this machine has no such user"),
        (["plan", "some.toml", "--data.name=image_folder", "--data.path=~nosuch/x"], "data.path: this machine has no"),
        (["plan", "some.toml", "--data.name=cifar10", "--data.path=~nosuch/x"], "data.path: this machine has no such"),
        (["plan", "some.toml", "--strategy.start=~nosuch/x.safetensors"], "strategy.start: this machine has no such"),
        (["run", "some.toml", "--strategy.start=x.safetensors"], "strategy.start: there is no file x.safetensors"),
        (["plan", "a\0b"], r"every word of a command must be text in UTF-8, without a NUL character, got 'a\x00b'"),
        (["plan", "a\udcffb"], "every word of a command must be text in UTF-8"),
        (["plan", "some.toml", "--design.groups=" + "9" * 400], "design.groups must be a whole number, of at most 18"),
        (["plan", "some.toml", "--design.groups=" + "9" * 5000], "design.groups must be a whole number, of at most 18"),
        (["plan", "some.toml", "--design.expand=" + "9" * 400], "design.expand must be a number, of at most 18"),
        (["plan", "some.toml", "--seed=4294967296"], "seed must be a whole number below 2^32, got "),
        (["plan", "some.toml", "--seed=" + "9" * 5000], "seed must be a whole number, 0 or more, got '999"),
        (["plan", "some.toml", "--design.spaces=" + "[" * 2000 + "]" * 2000], "design.spaces may name hardware, tas"),
        (["plan", "some.toml", "--design.widths=" + "{" * 2000], "design.widths must be a table, each value a list"),
        (["plan", "some.toml", "--design.groups=\x1b[31mred"], r"groups must be a whole number, got \x1b[31mred"),
        (["plan", "some.toml", "--design.groups=" + "x" * 20_000], "xxx (20000 letters)"),
        (["plan", "some.toml", "--design." + "x" * 20_000 + "=1"], "design has no option 'xxx"),
        (["x" * 20_000], "no verb called 'xxx"),
        (["plan", "x " * 100], "does not exist; name a TOML file"),
        (["measure", "a" * 300], "no model family called 'aaa"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)  # fmt: skip
def test_what_is_too_long_too_deep_or_no_text_is_refused_in_a_short_sentence(
    capsys: pytest.CaptureFixture[str], argv: list[str], part: str
) -> None:
    assert part in refused(capsys, *argv)


def test_a_path_in_the_folder_of_this_user_is_written_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert refused(capsys, "plan", "some.toml", "--out=~/x", "--design.groups=0")
    seen = []
    monkeypatch.setattr("htas.cli.verbs.load_source", lambda *words: seen.append(words[-1]) or 1 / 0)
    assert cli.main(["plan", "~/some.toml", "--out=~/x"]) == 2
    assert seen == [tmp_path / "x"]


def test_a_folder_called_like_a_network_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "d.onnx").mkdir()
    assert refused(capsys, "inspect", "d.onnx").startswith("no model family called 'd.onnx'")
    (tmp_path / "d.onnx" / "config.toml").write_text("design = 1")
    assert refused(capsys, "inspect", "d.onnx").startswith("d.onnx/config.toml: design must be a table")


def test_a_long_sentence_keeps_its_beginning_and_its_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, UserError("the beginning " + "and so on " * 1000 + "the end"))
    sentence = refused(capsys, "survey", "some.toml")
    assert sentence.startswith("the beginning and so on") and sentence.endswith("the end") and " ... " in sentence


def test_a_fault_prints_no_escape_sequences(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, RuntimeError("\x1b[31mred"))
    assert cli.main(["survey", "some.toml", "--again"]) == 1
    err = capsys.readouterr().err
    assert "\x1b" not in err and r"\x1b[31mred" in err


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGINT, "stopped"),
        (signal.SIGTERM, "stopped by SIGTERM"),
        (signal.SIGHUP, "stopped by SIGHUP"),
    ],
)
def test_a_signal_ends_the_command_and_all_that_it_started(number: signal.Signals, words: str) -> None:
    heard = functools.partial(signal.signal, number, signal.SIG_DFL)  # the tests may run where it is ignored
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", SLOW], stdout=pipe, stderr=pipe, text=True, preexec_fn=heard)
    assert process.stdout
    child = int(process.stdout.readline())
    time.sleep(0.2)
    process.send_signal(number)
    _, err = process.communicate(timeout=50)
    assert err == f"\nhtas: {words}\n"  # a plan keeps nothing
    assert process.returncode == 128 + number
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(
    ("argv", "resumes"),
    [
        (["survey", "some.toml"], True),
        (["--no-user-code", "train", "some.toml"], True),
        (["measure", "some.toml"], True),
        (["measure", "resnet20", "--runtime=eager"], False),
        (["plan", "some.toml"], False),
        (["doctor"], False),
        ([], False),
    ],
)
def test_a_command_that_keeps_nothing_does_not_say_that_it_continues(
    argv: list[str], resumes: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(words: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("htas.cli.app.call", stopped)
    assert cli.main(argv) == 130
    more = "; the same command continues where this one was" if resumes else ""
    assert capsys.readouterr().err == f"\nhtas: stopped{more}\n"
    assert set(RESUMED) < set(verbs.VERBS)


def test_a_signal_that_is_ignored_stays_so() -> None:
    raised = "import os, signal; os.kill(os.getpid(), signal.SIGHUP); other.kill()"
    words = ["nohup", sys.executable, "-c", SLOW.replace("time.sleep(100)\n\nplan", f"{raised}\n\nplan")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr


def test_handlers_are_as_before_after_a_command() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    assert cli.main(["--version"]) == 0
    assert before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]


def test_ctrl_c_before_anything_is_imported_is_no_traceback() -> None:
    script = """
import sys

class Interrupt:
    def find_spec(self, name, *_):
        if name == "htas.cli.edge":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupt())
from htas.cli import main
sys.exit(main(["run", "some.toml"]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "\nhtas: stopped\n")


def test_every_verb_that_writes_elsewhere_has_the_option_that_is_advised() -> None:
    assert {"survey", "export"} <= set(verbs.VERBS)
    assert "out" in verbs.VERBS["survey"].__annotations__ and "file" in verbs.VERBS["export"].__annotations__
