"""Every bad device ends a command with one sentence and exit code 2, soon, and without a process that stays."""

import shlex
import shutil
import sys
from pathlib import Path

import psutil
import pytest

from htas.cli import main
from htas.timing.remote import device as device_file
from htas.timing.remote.device import Deadlines

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

FAKES = Path(__file__).with_name("fakes.py")
DEADLINES = Deadlines(connect=5.0, open=10.0, read=2.0, away=2.0)


def fake(what: str) -> str:
    return f"exec:{shlex.join([sys.executable, str(FAKES), what])}"


HOSTS = {
    "ssh://pi@no-such-board.invalid": "has a name that nobody knows",
    "ssh://pi@127.0.0.1:1": "cannot be reached",
    "exec:no-such-command": "cannot be started (No such file or directory); check its spelling, or install it",
    "exec:sh -c 'exec no-such-python'": "has no Python by that name",
    fake("old python"): "has Python 3.6.9, and the agent needs 3.8 or newer",
    fake("nologin"): "ended before the agent spoke (This account is currently not available",
    fake("never"): "did not answer in time",
    fake("much noise"): "its login shell must be silent",
    fake("flood"): "its login shell must be silent",
    fake("garbage"): "sent something that is no answer",
    fake("too much"): "which is too much",
    fake("mute"): "did not answer in time",
    fake("drip"): "sent something that is no answer",
    fake("no numpy"): "install it there",
    fake("old runtime"): "has ONNX Runtime 1.12.1",
    fake("clock jump"): "its clock jumps",
    fake("endless"): "its clock jumps",
    fake("no number"): "makes no sense",
    fake("disk full"): "has no room on its disk for a lock",
    fake("dies"): "lost its agent 3 times at one request",
    fake("silent"): "lost its agent 3 times at one request",
    fake("twice"): "lost its agent 3 times at one request",
}
"""What each of these devices is, in words of the sentence."""


@pytest.fixture(autouse=True)
def _own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTAS_LOCK", str(tmp_path / "lock"))
    monkeypatch.setenv("HTAS_STORE", str(tmp_path / "store.sqlite"))
    monkeypatch.setattr(device_file, "Deadlines", lambda: DEADLINES)
    monkeypatch.chdir(tmp_path)


@pytest.mark.timeout(120)  # nothing waits for ever
@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("verb", ["measure", "survey"])
def test_a_bad_device_ends_the_command_with_one_sentence(verb: str, host: str, capfd: pytest.CaptureFixture[str]):
    if host.startswith("ssh") and shutil.which("ssh") is None:
        pytest.skip("there is no ssh here")
    Path("small.toml").write_text('[family]\nname = "cifar_resnet"\ndepth = 8\n[target]\nruntime = "onnxruntime"\n')
    words = {"measure": ["measure", "cifar_resnet:8", "--batch=1"], "survey": ["survey", "small.toml"]}[verb]
    before = set(psutil.Process().children(recursive=True))
    assert main([*words, "--host", host]) == 2
    said = capfd.readouterr().err
    sentences = [line for line in said.splitlines() if line.startswith("htas: ")]
    assert len(sentences) == 1 and HOSTS[host] in sentences[0] and "Traceback" not in said, said
    assert set(psutil.Process().children(recursive=True)) <= before
