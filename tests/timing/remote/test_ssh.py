"""A real sshd on this machine, where one is installed or can be got: the same readings, over ssh."""

import json
import os
import pwd
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import sshd
from debian import Missing

from htas.cli import main
from htas.errors import UserError
from htas.formats.onnx import layer_graph
from htas.graph.layer import Layer
from htas.timing.remote.address import address
from htas.timing.remote.device import Device, Graph, Settings

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
COMMANDS = re.findall(
    r"^htas (?:measure|doctor|inspect|survey) .*(?:ssh://pi@board|ssh pi@board htas/bin/python3)[ \"].*$",
    (ROOT / "docs" / "device.md").read_text(),
    re.MULTILINE,
)
"""Those of the document for one board over ssh."""


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An address of this machine, with keys of the test's own; its python3 is the one that runs the test."""
    try:
        words = sshd.command()
    except Missing as error:
        pytest.skip(str(error))
    for name in ("host", "key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)], check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "login").write_text(
        f'#!/bin/sh\nPATH={tmp_path}/bin:/usr/bin:/bin\nexec /bin/sh -c "$SSH_ORIGINAL_COMMAND"\n'
    )
    (tmp_path / "bin" / "python3").write_text(f'#!/bin/sh\nHTAS_LOCK={tmp_path}/lock exec {sys.executable} "$@"\n')
    (tmp_path / "server").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {tmp_path}/host\nAuthorizedKeysFile {tmp_path}/key.pub\n"
        f"StrictModes no\nUsePAM no\nPidFile none\nForceCommand {tmp_path}/bin/login\n"
    )
    (tmp_path / "client").write_text(f"Host *\n IdentityFile {tmp_path}/key\n UserKnownHostsFile {tmp_path}/known\n")
    (tmp_path / "bin" / "ssh").write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {tmp_path}/client "$@"\n')
    for name in ("login", "python3", "ssh"):
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    server = subprocess.Popen([*words, "-D", "-e", "-f", str(tmp_path / "server")], stderr=subprocess.PIPE)
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        if server.poll() is not None:
            assert server.stderr
            pytest.skip(f"sshd does not run here: {server.stderr.read().decode()[:200]}")
        key = " ".join((tmp_path / "host.pub").read_text().split()[:2])
        (tmp_path / "known").write_text(f"[127.0.0.1]:{port} {key}\n")
        yield f"ssh://{pwd.getpwuid(os.getuid()).pw_name}@127.0.0.1:{port}"
    finally:
        server.terminate()
        server.communicate()


def test_a_board_is_read_over_ssh_and_nothing_stays_there(board: str):
    layer = Layer("conv", 3, 5, (6, 6), (3, 3), padding=(1, 1))
    device = Device(address(board))
    with device.connected():
        program = device.open(Graph(layer_graph(layer, layer.build(), 1)), Settings(1, 50, 1e-4, 0.001), None)
        assert len(device.read([(program, 1)], 0.0, 3)) == 1
        pid = device.facts.pid
        assert Path(f"/proc/{pid}").exists()
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists():
            return
        time.sleep(0.05)
    raise AssertionError("the agent lives on")


def test_an_unknown_host_key_and_a_refused_key_are_sentences(board: str, tmp_path: Path):
    known = (tmp_path / "known").read_text()
    (tmp_path / "known").write_text("")
    with pytest.raises(UserError, match="has a host key that is not known yet; connect by hand once"):
        _ = Device(address(board)).facts
    other = (tmp_path / "key.pub").read_text().split()[1]
    (tmp_path / "known").write_text(f"{known.split()[0]} ssh-ed25519 {other}\n")
    with pytest.raises(UserError, match="has another host key than the last time"):
        _ = Device(address(board)).facts
    (tmp_path / "known").write_text(known)
    (tmp_path / "key.pub").write_text("")
    with pytest.raises(UserError, match="refuses this user's key"):
        _ = Device(address(board)).facts


def test_an_interrupted_command_leaves_no_process_on_either_side(board: str, tmp_path: Path):
    """Ctrl-C in the middle of a measurement over ssh: 130, no traceback; agent, login and ssh are gone."""
    command = [sys.executable, "-m", "htas", "measure", "cifar_resnet:8", "--rounds=100000", "--batch=1"]
    with subprocess.Popen(
        [*command, f"--host={board}"], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    ) as process:  # fmt: skip
        while not ((tmp_path / "lock").exists() and (tmp_path / "lock").read_text()):
            assert process.poll() is None
            time.sleep(0.05)
        agent = psutil.Process(json.loads((tmp_path / "lock").read_text())["pid"])
        below = [agent, *psutil.Process(process.pid).children(recursive=True)]
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
    assert process.returncode == 130 and "Traceback" not in said
    gone, left = psutil.wait_procs(below, timeout=10)
    assert not left and len(gone) >= 2


@pytest.mark.timeout(300)
@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_of_the_document_run_over_ssh(
    command: str, board: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    where, _, port = board.removeprefix("ssh://").rpartition(":")
    words = [
        word.replace("ssh://pi@board", board).replace("ssh pi@board htas/bin/", f"ssh -p {port} {where} ")
        for word in shlex.split(command)[1:]
    ]
    assert board in words or any(f"exec:ssh -p {port}" in word for word in words)
    if "ncnn" in words:
        pytest.importorskip("pnnx")
    if words[0] == "survey":
        words[1] = str(ROOT / words[1])
        words += ["--survey.seconds=4", "--survey.store=none", "--survey.undecided=1", "--target.threads=1"]
    monkeypatch.chdir(tmp_path)
    assert main(words) == 0
