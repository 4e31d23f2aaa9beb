"""A network that is slow and loses packets, or an agent that is killed, makes a survey later, not different."""

import json
import os
import random
import shlex
import subprocess
import sys
import threading
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import network
import psutil
import pytest

from htas.cli import main
from htas.timing.remote.device import Device, device

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

HERE = Path(__file__).parent
DELAY, LOSS, BITS = 0.05, 0.02, 1e6
CONFIG = """
[family]
name = "cifar_resnet"
depth = 8
[target]
runtime = "onnxruntime"
batch = 1
threads = 1
[design]
expand = 1.0
groups = 4
ignored = ["stages.1", "stages.2"]
[survey]
rounds = 4
seconds = 600.0
undecided = 1.0
store = "none"
"""
STEADY = shlex.join([sys.executable, str(HERE / "fakes.py"), "steady"])


@pytest.fixture(scope="module")
def bad() -> str:
    """The words before a command that is to be at the other end of a bad network."""
    if trouble := network.trouble():
        pytest.skip(f"there are no network namespaces here, or no TUN devices: {trouble}")
    return shlex.join([sys.executable, str(HERE / "network.py"), str(DELAY), str(LOSS), str(BITS)])


@pytest.fixture(autouse=True)
def _own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTAS_LOCK", str(tmp_path / "lock"))
    (tmp_path / "small.toml").write_text(CONFIG)


def survey(folder: Path, command: str, *more: str) -> dict[str, Any]:
    """What a survey of that device finds."""
    words = [str(folder.parent / "small.toml"), f"--out={folder}", f"--target.host=exec:{command}", *more]
    assert main(["survey", *words]) == 0 and main(["design", str(folder)]) == 0
    device.cache_clear()
    record, design = (json.loads((folder / f"{name}.json").read_text()) for name in ("survey", "design"))
    restarts = record["context"].get("restarts of the agent", "0")
    return {"layers": record["layers"], "curves": design["curves"], "took": record["took"], "restarts": restarts}


def test_packets_are_late_and_some_are_lost():
    """Of 100 packets of 1000 bytes: each takes its time on the line and arrives after the delay, in the order sent."""
    source, sink = os.pipe()
    line = network.Line(sink, DELAY, LOSS, BITS, seed=1)
    for number in range(100):
        line.take(number.to_bytes(1000, "big"), 0.0)
    assert 0 < line.lost < 10
    assert line.give(DELAY) == pytest.approx(8 * 1000 / BITS), "the first has not left the line"
    arrived = []
    for sent in range(1, 101 - line.lost):
        line.give(DELAY + (sent + 0.5) * 8 * 1000 / BITS)
        arrived.append(os.read(source, 100_000))
    assert {len(packet) for packet in arrived} == {1000} and arrived == sorted(set(arrived))
    os.close(source)
    os.close(sink)


def test_what_is_sent_arrives_whole_in_spite_of_lost_packets(bad: str):
    sent = os.urandom(200_000)
    done = subprocess.run([*shlex.split(bad), "cat"], input=sent, capture_output=True, timeout=120, check=True)
    assert done.stdout == sent


def test_a_survey_over_a_bad_network_is_the_same_and_later(bad: str, tmp_path: Path):
    near, far = survey(tmp_path / "near", STEADY), survey(tmp_path / "far", f"{bad} {STEADY}")
    assert far["took"] > 10 * DELAY  # each request waits for the network
    assert far["layers"] == near["layers"] and far["curves"] == near["curves"]
    counts = {count for layer in far["layers"].values() for count in layer["readings"]}
    assert max(counts) == 12 and not any(count % 3 for count in counts)


@pytest.mark.parametrize("victim", ["agent", "connection"])
def test_a_survey_that_is_killed_again_and_again_is_the_same(
    victim: str, bad: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Readings have their values and their number: none is lost, and none is there twice."""
    rng, words, answers = random.Random(0), "fakes.py" if victim == "agent" else "inside", count(1)
    killed, at = 0, sys.maxsize
    ask = Device._ask

    def kill() -> None:
        nonlocal killed
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                if words in " ".join(process.cmdline()):
                    process.kill()
                    killed += 1
                    return

    def noted(self: Device, *given: Any) -> Any:
        nonlocal at
        answer = ask(self, *given)
        if next(answers) >= at:  # in the middle of one of the next requests
            at += rng.randrange(100, 300)
            threading.Timer(rng.uniform(0, 0.05), kill).start()
        return answer

    monkeypatch.setattr(Device, "_ask", noted)
    good = shlex.join([sys.executable, str(HERE / "network.py"), "0", "0", "1e9"])
    command = STEADY if victim == "agent" else f"{good} {STEADY}"
    calm = survey(tmp_path / "calm", command, "--design.ignored=[]")
    at = next(answers)
    disturbed = survey(tmp_path / "disturbed", command, "--design.ignored=[]")
    assert killed >= 3 and int(disturbed["restarts"]) >= 3
    assert disturbed["layers"] == calm["layers"] and disturbed["curves"] == calm["curves"]
