"""Another machine is measured as this one is, and one that misbehaves is one sentence."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from one_in import one_in

from htas.errors import UserError
from htas.formats.onnx import layer_graph
from htas.graph.layer import Layer
from htas.runtimes import open_runtime
from htas.timing.remote import device as device_file
from htas.timing.remote import pipe
from htas.timing.remote.address import address, short_names
from htas.timing.remote.device import COOLER, Deadlines, Device, Graph, RemoteProgram, Settings
from htas.timing.remote.needs import lacking
from htas.timing.remote.watch import RemoteWatch
from htas.timing.target import Target

CONV = Layer("conv", 3, 5, (6, 6), (3, 3), padding=(1, 1))
SETTINGS = Settings(threads=1, spin=50, reading=1e-4, warmup=0.001)
FAKES = Path(__file__).with_name("fakes.py")
SHORT = Deadlines(connect=10.0, open=10.0, read=2.0, away=1.0)
QUICK = Deadlines(connect=1.0, open=5.0, read=0.3, away=0.5)
"""For those that never answer."""


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not end by itself is ended soon."""
    monkeypatch.setattr(pipe, "LEAVING", 0.3)


@pytest.fixture
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A lock of the test's own, as others measure here too."""
    monkeypatch.setenv("HTAS_LOCK", str(tmp_path / "lock"))
    return tmp_path / "lock"


@contextmanager
def opened(what: str = "", deadlines: Deadlines = SHORT) -> Iterator[Device]:
    """A device of this machine: an honest one, or a fake."""
    command = [sys.executable, *([str(FAKES), what] if what else [])]
    device = Device(address(f"exec:{shlex.join(command)}"), deadlines)
    try:
        yield device
    finally:
        device.close()


def graph() -> tuple[Graph, Callable[[torch.Tensor], torch.Tensor]]:
    """A small convolution as a graph and as a module."""
    module = CONV.build().eval()
    return Graph(layer_graph(CONV, module, 2)), module


def program(device: Device) -> RemoteProgram:
    return device.open(graph()[0], SETTINGS, None)


def refusal(what: str) -> str:
    """The sentence of a fake, as it is opened and read."""
    started = time.monotonic()
    deadlines = QUICK if what in ("never", "mute", "much noise", "silent", "drip") else SHORT
    with opened(what, deadlines) as device, pytest.raises(UserError) as error:
        device.read([(program(device), 1)], 1e-4, 3)
    assert time.monotonic() - started < 30
    words = str(error.value)
    assert words.startswith("target.host exec:") and "\n" not in words and "Traceback" not in words
    return words


def children() -> set[int]:
    """The processes below this one."""
    return {child.pid for child in psutil.Process().children(recursive=True)}


def test_the_device_computes_what_pytorch_computes(lock: Path):
    onnx, module = graph()
    with opened() as device, device.connected(), torch.no_grad():
        program = device.open(onnx, SETTINGS, None)
        images = torch.randn(2, 3, 6, 6)
        content, shape, dtype = device.outputs(program, [images.numpy()])
        outputs = np.frombuffer(content, dtype).reshape(shape)
        assert np.allclose(outputs, module(images).numpy(), atol=1e-5)


def test_readings_come_back_in_the_order_asked_with_their_calls(lock: Path):
    with opened() as device, device.connected():
        small, large = (
            device.open(Graph(layer_graph(layer, layer.build(), 2)), SETTINGS, None)
            for layer in (CONV, Layer("conv", 64, 64, (32, 32), (3, 3), padding=(1, 1)))
        )
        turns = device.read([(large, 1), (small, 2), (large, 1)], 0.0, 3)
        assert [loops for _, loops in turns] == [(1, 1, 1), (2, 2, 2), (1, 1, 1)]
        assert min(turns[0][0] + turns[2][0]) > min(turns[1][0]) / 2
        ((seconds, loops),) = device.read([(small, 1)], 1e-3, 3)
        assert loops[-1] > 1 and seconds[-1] >= 1e-4  # too short for the clock: repeated with more calls


def test_it_says_what_it_is(lock: Path):
    with opened() as device:
        facts = device.facts
        assert facts.cores == len(os.sched_getaffinity(0)) and facts.memory > 2**28
        assert facts.versions.keys() >= {"numpy", "onnxruntime"} and facts.identity in facts.machine["measured on"]
        assert facts.python == ".".join(map(str, sys.version_info[:3]))
    assert device._pipe is None


def test_it_loads_nothing_large_that_it_can_do_without(lock: Path):
    """OpenSSL and numpy.random take 10 MB of a small device."""
    with opened() as device, device.connected():
        program(device)
        maps = Path(f"/proc/{device.facts.pid}/maps").read_text()
        assert "onnxruntime" in maps and "libcrypto" not in maps and "numpy/random" not in maps


def test_nothing_is_left_behind(lock: Path):
    before = children()
    with opened() as device:
        with device.connected():
            program(device)
            pid = device.facts.pid
            assert children() > before
        assert not Path(f"/proc/{pid}").exists()
    assert children() == before


def test_the_agent_ends_when_its_host_is_killed(lock: Path):
    script = (
        "import sys, time; from htas.timing.remote.address import address; "
        "from htas.timing.remote.device import Device; d = Device(address('exec:' + sys.executable)); "
        "d._users = 1; print(d.facts.pid, flush=True); time.sleep(100)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as host:
        assert host.stdout
        pid = int(host.stdout.readline())
        assert Path(f"/proc/{pid}").exists()
        host.kill()
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists():
            return
        time.sleep(0.05)
    raise AssertionError("the agent lives on")


def test_a_killed_agent_is_started_again_and_the_round_repeated(lock: Path):
    with opened() as device, device.connected():
        mine = [program(device) for _ in range(3)]
        turns = [(each, 1) for each in mine]
        assert len(device.read(turns, 0.0, 3)) == 3
        pid = device.facts.pid
        os.kill(pid, signal.SIGKILL)
        readings = device.read(turns, 0.0, 3)
        assert [len(seconds) for seconds, _ in readings] == [3, 3, 3]
        assert device.restarts == 1 and device.facts.pid != pid
        clock = device.now()
        assert time.monotonic() - clock >= device.outage > 0


def test_a_round_of_many_programs_is_repeated_in_pieces(lock: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(device_file, "PIECE", 2)
    with opened() as device, device.connected():
        mine = [program(device) for _ in range(5)]
        rounds: list[int] = []
        read = device._read

        def counted(turns: Any, least: float, repeat: int) -> Any:
            rounds.append(len(turns))
            return read(turns, least, repeat)

        monkeypatch.setattr(device, "_read", counted)
        device.read([(each, 1) for each in mine], 0.0, 1)
        os.kill(device.facts.pid, signal.SIGKILL)
        readings = device.read([(each, number) for number, each in enumerate(mine, 1)], 0.0, 1)
        assert [loops for _, (loops,) in readings] == [1, 2, 3, 4, 5]
        assert rounds == [5, 5, 2, 2, 1]


def test_an_agent_that_dies_in_the_middle_of_a_round_costs_that_round(lock: Path, tmp_path: Path):
    with opened(f"dies once {tmp_path / 'died'}") as device, device.connected():
        assert len(device.read([(program(device), 1)], 0.0, 3)) == 1
        assert device.restarts == 1


def test_the_clock_of_a_survey_stands_still_in_an_outage_and_never_goes_back(lock: Path):
    with opened("dies") as device, device.connected():
        mine = program(device)
        before = device.now()
        with pytest.raises(UserError, match="lost its agent 3 times"):
            device.read([(mine, 1)], 0.0, 1)
        assert before <= device.now() and device.restarts == 2


def test_an_agent_that_is_killed_while_it_starts_is_started_again(lock: Path, tmp_path: Path):
    script = tmp_path / "start"
    script.write_text(
        f'#!/bin/sh\n[ -e {tmp_path}/begun ] || {{ touch {tmp_path}/begun; kill -9 $$; }}\nexec {sys.executable} "$@"\n'
    )
    script.chmod(0o755)
    device = Device(address(f"exec:{script}"), SHORT)
    assert device.facts.cores and device.restarts == 1


def test_a_device_that_is_too_hot_is_waited_for_and_no_other(lock: Path, monkeypatch: pytest.MonkeyPatch):
    waits: list[float] = []
    with opened("heat") as device, device.connected():
        mine = program(device)
        monkeypatch.setattr(time, "sleep", waits.append)
        device.read([(mine, 1)], 0.0, 1)  # the second look: hot
        assert waits == [] and device.state and device.state.hot
        device.read([(mine, 1)], 0.0, 1)
        assert waits == [COOLER] * 3 and not device.state.hot
        device.read([(mine, 1)], 0.0, 1)
        assert len(waits) == 3 and device.outage >= 3 * COOLER


@pytest.mark.slow
def test_an_interrupted_command_leaves_no_process(lock: Path, tmp_path: Path):
    """Ctrl-C in the middle of a measurement: 130, no traceback, and neither agent nor command lives on."""
    command = [sys.executable, "-m", "htas", "measure", "cifar_resnet:8", "--rounds", "100000", "--batch", "1"]
    agent = [sys.executable, "-u"]
    with subprocess.Popen(
        [*command, "--host", f"exec:{shlex.join(agent)}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    ) as process:  # fmt: skip
        while not (lock.exists() and lock.read_text()):
            assert process.poll() is None
            time.sleep(0.05)
        below = psutil.Process(process.pid).children(recursive=True)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
    assert below and not any(each.is_running() for each in below)
    assert process.returncode == 130 and "Traceback" not in said


def test_a_graph_is_sent_once(lock: Path):
    onnx, _ = graph()
    with opened() as device, device.connected():
        first = device.open(onnx, SETTINGS, None)
        sent: list[int] = []
        assert device._pipe
        ask = device._pipe.ask
        device._pipe.ask = lambda header, body, seconds: sent.append(len(body)) or ask(header, body, seconds)  # type: ignore
        second = device.open(onnx, SETTINGS, None)
        assert sent == [0] and first.number != second.number
        del first
        device.read([(second, 1)], 0.0, 1)
        assert len(device._opened) == 1


@pytest.mark.parametrize(
    ("what", "words"),
    one_in(
        2,
        [
            ("old python", "has Python 3.6.9, and the agent needs 3.8 or newer"),
            ("nologin", "ended before the agent spoke .This account is currently not available"),
            ("never", "did not answer in time"),
            ("much noise", "printed .* bytes before the agent spoke; its login shell must be silent"),
            ("garbage", "sent something that is no answer"),
            ("too much", "which is too much"),
            ("no object", "another question"),
            ("another", "another question"),
            ("list", "cannot be read"),
            ("mute", "did not answer in time"),
            ("no numpy", "has no numpy; install it there: .* -m pip install numpy"),
            (
                "broken runtime",
                "cannot import ONNX Runtime .ModuleNotFoundError: No module named 'no_such_part'.; install it",
            ),
            (
                "old runtime",
                "has ONNX Runtime 1.12.1, and graphs need 1.17; install a newer one there: .*pip install -U",
            ),
            ("clock jump", "its clock jumps"),
            ("negative", "sent readings that no clock gives|opened a program without reading it"),
            ("disk full", "has no room on its disk for a lock"),
            ("dies", "lost its agent 3 times at one request: it closed the connection"),
            ("silent", "lost its agent 3 times at one request: it did not answer in time"),
            ("twice", "lost its agent 3 times|no answer"),
            ("drip", "sent something that is no answer|did not answer in time"),
            ("digits", "cannot be read"),
            ("flood", "printed .* bytes before"),
            ("flood later", "which is too much|sent something that is no answer|printed .* bytes|cannot be read"),
            ("endless", "read inf s in what took .* so its clock jumps"),
            ("no number", "an answer that makes no sense: a number without end"),
            ("many calls", "sent readings of no calls, or of too many"),
        ],
    ),
)
def test_a_device_that_misbehaves_is_one_sentence(what: str, words: str, lock: Path):
    assert re.search(words, sentence := refusal(what)), sentence


@pytest.mark.parametrize("minor", [6, 7, 8, 9, 13])
def test_other_pythons_are_described_or_refused(minor: int, lock: Path):
    """Without this one's packages, those that are installed here."""
    pythons = sorted((Path.home() / ".pyenv" / "versions").glob(f"3.{minor}.*/bin/python"))
    if not pythons:
        pytest.skip(f"there is no Python 3.{minor} here")
    device = Device(address(f"exec:env -u PYTHONPATH {shlex.quote(str(pythons[0]))}"))
    if minor >= 8:
        assert device.facts.python.startswith(f"3.{minor}.")
        assert device.facts.versions.keys() <= {"numpy", "onnxruntime", "ncnn", "ai-edge-litert"}
    else:
        with pytest.raises(UserError, match=f"has Python 3.{minor}.* and the agent needs 3.8 or newer"):
            _ = device.facts


@pytest.mark.skipif(not Path("/usr/bin/python3").exists(), reason="there is no Python of the system here")
def test_a_python_that_pip_may_not_change_gets_another_one(lock: Path):
    device = Device(address("exec:env -u PYTHONPATH /usr/bin/python3"))
    facts = replace(device.facts, versions={"numpy": "2.0.0"})
    managed = list(Path("/usr/lib").glob(f"python{facts.python.rpartition('.')[0]}/EXTERNALLY-MANAGED"))
    assert facts.managed == bool(managed)
    words = lacking(replace(facts, managed=True), "onnxruntime")
    assert "python3 -m venv htas && htas/bin/pip install onnxruntime (and name htas/bin/python3 with exec:)" in words
    assert lacking(replace(facts, managed=False), "onnxruntime").endswith("/python3 -m pip install onnxruntime")


def test_what_a_login_shell_prints_is_skipped(lock: Path):
    with opened("noise") as device:
        assert len(device.read([(program(device), 1)], 0.0, 3)) == 1


def test_another_device_behind_the_same_address_is_refused(lock: Path, tmp_path: Path):
    assert "another device answers now" in refusal(f"other {tmp_path / 'asked'}")


def test_a_runtime_that_is_another_version_than_before_is_refused(lock: Path):
    with opened("updated") as device, device.connected():
        mine = program(device)
        os.kill(device.facts.pid, signal.SIGKILL)
        with pytest.raises(UserError, match=r"the device has onnxruntime 9\.\d+ now, and had 9\.\d+; begin again"):
            device.read([(mine, 1)], 0.0, 1)


def test_a_second_reader_is_refused_by_name(lock: Path):
    with opened() as first, first.connected(), opened() as second:
        program(first)
        with pytest.raises(UserError, match=rf"is read by another program: .*@.*, process {first.facts.pid}, since"):
            program(second)
    with opened() as third:
        program(third)


def test_what_a_device_says_cannot_move_the_cursor(lock: Path):
    with opened("escapes") as device:
        assert device.facts.board == "[2Jboard"


@pytest.mark.parametrize("what", ["objects", "too few"])
def test_outputs_that_are_none_refuse_the_network(what: str, lock: Path):
    host = f"exec:{shlex.join([sys.executable, str(FAKES), what])}"
    target = Target(runtime="onnxruntime", host=host, batch=1, threads=1, shapes=((3, 6, 6),))
    with pytest.raises(UserError, match=r"the device.s ONNX Runtime cannot run this Conv2d") as error:
        open_runtime(target).compile(CONV.build(), (torch.randn(1, 3, 6, 6),))
    assert "\n" not in str(error.value)


def test_a_device_that_is_started_anew_meanwhile_is_a_doubt(lock: Path, tmp_path: Path):
    with opened(f"reboots {tmp_path / 'again'}") as device, device.connected():
        mine, watch = program(device), RemoteWatch(device)
        device.read([(mine, 1)], 0.0, 1)
        (tmp_path / "again").touch()
        os.kill(device.facts.pid, signal.SIGKILL)
        assert len(device.read([(mine, 1)], 0.0, 1)) == 1
        assert any("the device was restarted 1 time meanwhile" in remark for remark in watch.remarks())


@pytest.mark.skipif(os.geteuid() != 0, reason="a full disk of one's own needs root")
def test_a_full_disk_is_one_sentence(tmp_path: Path):
    script = f'mount -t tmpfs -o nr_inodes=1 none {tmp_path} && HTAS_LOCK={tmp_path}/lock exec {sys.executable} "$@"'
    device = Device(address(f"exec:unshare -m sh -c {shlex.quote(script)} sh"), SHORT)
    try:
        device.hold()
    except UserError as error:
        if "lock" not in str(error):
            pytest.skip(f"no disk can be mounted here: {error}")
        assert re.search("has no room on its disk for a lock .* free some space there", str(error))
    else:
        raise AssertionError("there was room")
    finally:
        device.close()


def test_a_device_that_stays_away_ends_with_a_sentence(lock: Path, tmp_path: Path):
    link = tmp_path / "python"
    link.symlink_to(sys.executable)
    wrapper = tmp_path / "start"
    wrapper.write_text(f'#!/bin/sh\n[ -e {link} ] || exit 5\nexec {sys.executable} "$@"\n')
    wrapper.chmod(0o755)
    device = Device(address(f"exec:{wrapper}"), SHORT)
    with device.connected():
        mine = program(device)
        link.unlink()
        os.kill(device.facts.pid, signal.SIGKILL)
        with pytest.raises(UserError, match=r"stays away.; the same command goes on from here once it is back"):
            device.read([(mine, 1)], 0.0, 3)
        link.symlink_to(sys.executable)
        assert len(device.read([(mine, 1)], 0.0, 3)) == 1


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("board", "target.host must be ssh://user@board"),
        ("ssh://", "must be ssh"),
        ("ssh://-oProxyCommand=touch x@board", "must be ssh"),
        ("ssh://pi@-oProxyCommand=x", "must be ssh"),
        ("ssh://pi@board;rm", "must be ssh"),
        ("ssh://pi@board:99999", "must be ssh"),
        ("exec:", "has no command"),
        ("exec:python 'x", "is no command"),
    ],
)
def test_what_is_no_address_is_refused(host: str, words: str):
    with pytest.raises(UserError, match=words):
        address(host)


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("ssh://pi@board:2222", "board-2222"),
        ("exec:/opt/python3.12/bin/python3", "python3"),
        ("exec:ssh pi@board htas/bin/python3", "board"),
        ("exec:ssh -i key -p 2222 pi@board docker exec -i NAME python3", "board"),
        ("exec:docker run -i --rm --hostname bench IMAGE python3", "bench"),
        ("exec:docker exec -i -u me NAME python3", "NAME"),
        ("exec:docker", "docker"),
        ("exec:adb -s 1f3a shell -T python3", "1f3a"),
        ("exec:adb shell -T python3", "adb"),
        ("exec:env HTAS_LOCK=/tmp/second taskset -c 2,3 python3", "python3-cores-2-3"),
        ("exec:ssh pi@board taskset -c 4-7 python3", "board-cores-4-7"),
        ("exec:nice -n 5 taskset 0x3 python3", "python3"),
        ("exec:env", "env"),
    ],
)
def test_a_device_is_called_by_what_its_host_reaches(host: str, name: str):
    assert short_names([host, host]) == [name, f"{name}-2"]


def test_ssh_asks_for_nothing_and_gets_no_shell_of_ours():
    words = address("ssh://pi@board:2222").words
    assert words[0] == "ssh" and "BatchMode=yes" in words and words[words.index("-p") + 1] == "2222"
    assert words[words.index("--") + 1] == "pi@board" and words[-1].startswith("exec python3 -u -c '")
    assert "StrictHostKeyChecking" not in " ".join(words)


def test_a_command_that_does_not_exist_is_one_sentence():
    with pytest.raises(UserError, match=r"the command 'no-such-command' cannot be started .No such file"):
        _ = Device(address("exec:no-such-command")).facts


def test_no_python_there_is_one_sentence(lock: Path):
    with pytest.raises(UserError, match=r"has no Python by that name .*install it there: sudo apt"):
        _ = Device(address("exec:sh -c 'exec no-such-python'")).facts


@pytest.mark.parametrize(
    "said",
    ["error: device 'x' not found", "Error response from daemon: No such container: NAME", "adb: no devices/emulators"],
)
def test_what_another_command_says_is_in_the_sentence(said: str):
    script = shlex.quote(f"echo {shlex.quote(said)} >&2; exit 1")
    with pytest.raises(UserError, match=rf"ended before the agent spoke \({re.escape(said)}\); try by hand: sh -c"):
        _ = Device(address(f"exec:sh -c {script}"), SHORT).facts


@pytest.mark.parametrize("command", ["sh", "bash", "cat", "ssh"])
def test_a_command_that_starts_no_python_is_told_to(command: str):
    """What forgets python3 at its end: Python's words are then a shell's, and no version."""
    with pytest.raises(UserError, match=r"ended before the agent spoke .*; a command must start Python") as error:
        _ = Device(address(f"exec:{command}"), SHORT).facts
    assert "has Python" not in str(error.value)


def test_a_lock_that_the_user_named_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HTAS_LOCK", str(tmp_path / "none" / "lock"))
    with pytest.raises(UserError, match=r"no folder for a lock .HTAS_LOCK=.*none/lock: .*; make that writable there"):
        Device(address(f"exec:{shlex.quote(sys.executable)}")).hold()


SSH = {
    "ssh: Could not resolve hostname board: Name or service not known": "has a name that nobody knows",
    "Host key verification failed.": "host key that is not known yet; connect by hand once, and check it: ssh pi@board",
    "WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!": "has another host key than the last time",
    "pi@board: Permission denied (publickey).": "put a key there with ssh-copy-id pi@board",
    "ssh: connect to host board port 22: Connection refused": "cannot be reached",
    "bash: line 1: exec: python3: not found": "has no Python by that name",
}


@pytest.mark.parametrize("host", ["ssh://pi@board", "exec:ssh pi@board htas/bin/python3"])
@pytest.mark.parametrize("said", SSH)
def test_what_ssh_says_becomes_one_sentence(
    said: str, host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    code = 127 if "python3" in said else 255
    fake = tmp_path / "ssh"
    fake.write_text(f"#!/bin/sh\necho {shlex.quote(said)} >&2\nexit {code}\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(UserError) as error:
        _ = Device(address(host), SHORT).facts
    words = SSH[said] if host.startswith("ssh") else SSH[said].replace("copy-id pi@board", "copy-id")
    assert words in str(error.value), error.value
    assert capfd.readouterr().err == ""
