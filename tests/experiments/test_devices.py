"""One configuration on several devices: planted ones, and two agents of this machine."""

import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from scripted_device import scripted_device
from torch import nn

from htas.cli import main
from htas.errors import UserError
from htas.experiments import devices
from htas.files import from_json, read_json
from htas.graph.arch import Arch
from htas.graph.layer import Layer
from htas.metrics.latency import Latency
from htas.report.devices import CrossedNetwork, DevicesReport, SurveyedDevice, _staircases, alike, verdicts
from htas.report.result import Result
from htas.report.survey import INTERPOLATED, MEASURED
from htas.run.config import Config, load
from htas.run.stage import ensure
from htas.run.stages import STAGES
from htas.spaces.curve import Curve, CurveRecord, Fit
from htas.timing.measurement import Measurement
from htas.timing.target import Target

FAKES = Path(__file__).parents[1] / "timing" / "remote" / "fakes.py"


NAME = Path(sys.executable).name
"""What the first device is called by."""


def host(folder: Path, name: str, *words: str) -> str:
    """An agent of this machine with a lock of its own."""
    return f"exec:{shlex.join(['env', f'HTAS_LOCK={folder / name}', sys.executable, *words])}"


# -- what a page says --------------------------------------------------------------------------------------------------


def crossed(home: str, width: int, **seconds: float) -> CrossedNetwork:
    row = Result(home or "base", "cifar_resnet:8", Arch({"a": width}), "join", "-", "-", "-", {}, 1, 1, accuracy=0.9)
    readings = {name: Measurement((value,) * 10 + (1.001 * value,) * 10, "s") for name, value in seconds.items()}
    return CrossedNetwork(row, home, seconds, readings)


def device(name: str, widths: tuple[int, ...] = (2, 4), certain: tuple[float, ...] = (1.0, 1.0)) -> SurveyedDevice:
    curve = Curve((1, 2, 3, 4), (1.0, 1.0, 2.0, 2.0), (0.1,) * 4)
    record = CurveRecord(
        ("a",), 2, curve, Fit(0.5, 1.0, 0.2), ((1, 2), (3, 4)), {"hardware": widths}, certain=certain
    )  # fmt: skip
    return SurveyedDevice(name, f"ssh://{name}", {"processor": name}, (record,), "2 of 2 groups decided")


def page(*networks: CrossedNetwork) -> DevicesReport:
    return DevicesReport(
        "cifar_resnet:8",
        "onnxruntime",
        "htas run",
        (device("pi"), device("jetson")),
        (crossed("", 9, pi=9, jetson=9), *networks),
    )


def test_a_page_says_whether_each_device_is_fastest_with_its_own_network() -> None:
    both = page(crossed("pi", 1, pi=2, jetson=4), crossed("jetson", 2, pi=3, jetson=3))
    first, pi, jetson = verdicts(both)
    assert first == "Each device's own network is the fastest there."
    assert pi.startswith("On pi the network found for it is 1.50 times as fast as the one found for jetson")
    assert jetson.startswith("On jetson the network found for it is 1.33 times as fast as the one found for pi")
    one = page(crossed("pi", 1, pi=2, jetson=2), crossed("jetson", 2, pi=3, jetson=3))
    first, _, jetson = verdicts(one)
    assert first == "A device's own network is the fastest on pi, and not on jetson."
    assert jetson.startswith("On jetson the network found for pi is 1.50 times as fast as the one found for it")
    none = page(crossed("pi", 1, pi=3, jetson=3), crossed("jetson", 2, pi=3, jetson=3))
    assert verdicts(none)[0] == "No device's own network is clearly the fastest there."
    assert "no clear difference" in verdicts(none)[1]
    assert verdicts(page(crossed("pi", 1, pi=3, jetson=3), crossed("jetson", 1, pi=3, jetson=3))) == [
        "The searches for pi and jetson found the same network."
    ]
    unfinished = page(crossed("pi", 1, pi=2), crossed("jetson", 2, pi=3))
    assert verdicts(unfinished)[-1] == "Not all networks are measured on jetson yet."


def test_groups_with_the_same_width_everywhere_are_counted() -> None:
    report = DevicesReport("", "", "", (device("a"), device("b", (2, 3), (1.0, 0.5)), device("c")))
    assert alike(report) == (
        "The best width is the same on a, b and c in 1 of 2 groups, and in 1 of the 1 that are decided on all of them."
    )


def test_interpolated_widths_are_marked_on_every_device() -> None:
    one = device("pi")
    (curve,) = one.curves
    between = replace(curve, measured=replace(curve.measured, interpolated=(3,)))
    report = DevicesReport("", "", "", (one, replace(one, name="jetson", curves=(between,))))
    (picture,) = _staircases(report)
    kinds = {
        name: [row["what"] for row in rows] for name, rows in picture.chart["datasets"].items() if "widths" in name
    }
    assert kinds == {"widths-0": [MEASURED] * 4, "widths-1": [MEASURED, MEASURED, INTERPOLATED, MEASURED]}


# -- a run of two planted devices --------------------------------------------------------------------------------------


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Two hosts: the first computes 8 channels at a time, the second 12. Stages run in this process, one by one."""
    hosts = [host(tmp_path, name) for name in ("one", "two")]

    def seconds(case: Any, step: int) -> float:
        widths = [case.outputs] if isinstance(case, Layer) else [
            part.weight.shape[0] for part in case.modules() if isinstance(part, nn.Conv2d | nn.Linear)
        ]  # fmt: skip
        return sum(1e-6 * (1 + math.ceil(width / step)) for width in widths)

    def measure(self: Latency, cases: Sequence[Any], *, on_round: Any = None, pending: Any = None) -> list[Measurement]:
        step = {hosts[0]: 8, hosts[1]: 12}[self.target.host]
        context = {"clock": "scripted", "measured on": str(step)}
        return [
            Measurement((value,) * 9 + (1.001 * value,), "s", context, "one")
            for value in (seconds(case, step) for case in cases)
        ]

    def one_by_one(verb: str, runs: Any, *options: str) -> None:
        stage = next(stage for stage in STAGES if stage.name == verb)
        for job in runs.values():
            ensure(job, stage, "--again" in options)

    with scripted_device(), monkeypatch.context() as patch:  # undone before the device, which patches the same
        patch.setattr(Latency, "measure", measure)
        patch.setattr(devices, "_at_once", one_by_one)
        yield ",".join(hosts)


def small(hosts: str, *more: str) -> Config:
    return load(None, [
        f"--target.host={hosts}", "--target.runtime=onnxruntime", "--target.batch=1", "--target.threads=1",
        "--family.depth=8", "--split.limit=60", "--survey.store=none", "--survey.undecided=1", "--calibrate.networks=8",
        "--design.spaces=hardware", "--constraints.latency=50%", "--strategy.name=most", "--train.recipe=short",
        "--train.epochs=1", "--train.warmup=0", "--train.rest=0", "--train.batch=30", "--train.precision=fp32", *more,
    ])  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_each_planted_device_is_fastest_with_its_own_network(planted: str, tmp_path: Path) -> None:
    folder = tmp_path / "both"
    path, table = devices.run(small(planted), folder, "htas run both")
    assert path == folder / "devices.html" and path.exists() and (folder / "devices.md").exists()
    report = from_json(read_json(folder / "devices.json"), DevicesReport, "devices.json")
    one, other = [device.curve("stages.1.0.conv1.conv") for device in report.devices]
    assert one is not None and other is not None
    assert one.choices["hardware"] == (8, 16, 24, 32, 40, 48, 56, 64)
    assert other.choices["hardware"] == (8, 12, 24, 32, 36, 48, 56, 60)  # the widest of a group with no step within
    base, first, second = report.networks
    assert (base.home, first.home, second.home) == ("", NAME, f"{NAME}-2")
    for network, name in ((base, NAME), (base, f"{NAME}-2"), (first, NAME), (second, f"{NAME}-2")):
        assert network.predicted[name] == pytest.approx(network.measured[name].estimate, rel=0.1)
    assert first.result.arch != second.result.arch
    assert first.measured[NAME].estimate < second.measured[NAME].estimate
    assert second.measured[f"{NAME}-2"].estimate < first.measured[f"{NAME}-2"].estimate
    assert table.before[0] == "Each device's own network is the fastest there."
    # the base network is trained once
    weights = [(folder / name / "networks" / "base.safetensors") for name in (NAME, f"{NAME}-2")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.json") if path.name != "progress.json"}
    assert devices.run(small(planted), folder, "htas run both")[1] == table
    after = {path: path.stat().st_mtime_ns for path in before}
    assert {path.name for path in after if after[path] != before[path]} <= {"devices.json", "command.json"}
    # either can be reported alone, and both from what is there
    assert main(["report", str(folder / NAME), "--json"]) == 0
    assert devices.report(small(planted), folder)[1] == table


# -- two agents --------------------------------------------------------------------------------------------------------

SMALL = (
    '[family]\nname = "cifar_resnet"\ndepth = 8\n[target]\nruntime = "onnxruntime"\nbatch = 1\nthreads = 1\n'
    '[survey]\nseconds = 3.0\nundecided = 1.0\nstore = "none"\n'
)


def refusal(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(words) == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("htas: ") and "Traceback" not in line
    return line


@pytest.fixture
def configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.toml").write_text(SMALL)
    return tmp_path / "small.toml"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system places no process on a core")
def test_the_command_of_a_device_on_this_machine_computes_on_its_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = max(os.sched_getaffinity(0))
    address = f"exec:env HTAS_LOCK={tmp_path / 'lock'} taskset -c {core} {shlex.quote(sys.executable)}"
    job: Any = SimpleNamespace(target=Target(host=address), folder=tmp_path)
    with devices._started("version", {"one": job}, []) as processes:
        assert psutil.Process(processes["one"].pid).cpu_affinity() == [core]
        processes["one"].communicate()
    (tmp_path / "boot").write_text("of another machine\n")
    monkeypatch.setattr(devices, "BOOT", tmp_path / "boot")
    assert devices._cores(job) == set()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_devices_are_surveyed_at_once_and_a_lost_one_goes_on_later(
    configuration: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"
    broken.touch()
    hosts = [host(tmp_path, "one"), host(tmp_path, "two", str(FAKES), f"dies while {broken}")]
    command = ["survey", str(configuration), "--host", ",".join(hosts), "--out", "both"]
    sentence = refusal(command, capsys)
    assert f"{NAME}-2: target.host exec:env HTAS_LOCK=" in sentence
    assert "lost its agent 3 times at one request" in sentence
    assert sentence.endswith(f"; {NAME} finished, and is kept; the same command goes on from here")
    kept = (tmp_path / "both" / NAME / "survey.json").read_bytes()
    assert not (tmp_path / "both" / f"{NAME}-2" / "survey.json").exists()
    broken.unlink()
    assert main(command) == 0
    output = capsys.readouterr()
    assert f"widths on {NAME}-2" in output.out
    assert f"{NAME}-2: survey of" in output.err and f"{NAME}: survey of" not in output.err
    assert (tmp_path / "both" / NAME / "survey.json").read_bytes() == kept
    assert (tmp_path / "both" / f"{NAME}-2" / "survey.html").exists()
    report = from_json(read_json(tmp_path / "both" / "devices.json"), DevicesReport, "devices.json")
    assert [device.host for device in report.devices] == hosts and not report.networks


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_ctrl_c_leaves_no_process_on_either_side(configuration: Path, tmp_path: Path) -> None:
    hosts = [host(tmp_path, name) for name in ("one", "two")]
    command = [sys.executable, "-m", "htas", "survey", str(configuration), f"--target.host={','.join(hosts)}"]
    with subprocess.Popen(
        [*command, "--survey.seconds=60"], stderr=subprocess.PIPE, text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    ) as process:  # fmt: skip
        assert process.stderr is not None
        begun: set[str] = set()
        for line in process.stderr:
            begun |= {line.partition(":")[0]} if ": survey of" in line else set()
            if len(begun) == 2:
                break
        deadline, agents = time.monotonic() + 60, 0
        while agents < 2 and time.monotonic() < deadline:
            time.sleep(0.2)
            below = psutil.Process(process.pid).children(recursive=True)
            agents = sum("htas-agent" in " ".join(each.cmdline()) for each in below)
        assert agents == 2
        process.send_signal(signal.SIGINT)
        process.stderr.read()
        assert process.wait(30) == 130
    psutil.wait_procs(below, timeout=10)
    assert not [each for each in below if each.is_running()]


def test_networks_are_measured_on_several_devices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hosts = ",".join(host(tmp_path, name) for name in ("one", "two"))
    words = ["measure", "cifar_resnet:8", "--host", hosts, "--rounds", "2", "--batch", "1", "--threads", "1"]
    assert main(words) == 0
    heading, *rows = capsys.readouterr().out.splitlines()
    assert heading.split()[:3] == ["network", "device", "runtime"]
    assert [row.split()[1] for row in rows[:2]] == [NAME, f"{NAME}-2"]  # below them are doubts
    assert main([*words, "--json"]) == 0
    assert [row["host"] for row in json.loads(capsys.readouterr().out)] == hosts.split(",")


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_a_device_that_is_missing_is_named_before_any_work(
    configuration: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for verb in ("survey", "run"):
        words = [verb, str(configuration), f"--target.host={host(tmp_path, 'one')},exec:no-such-command"]
        assert "target.host exec:no-such-command: the command 'no-such-command' cannot be started" in refusal(
            words, capsys
        )
    assert not (tmp_path / "runs").exists()


def test_one_device_by_two_addresses_is_named(
    configuration: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = host(tmp_path, "one")
    other = here.replace("exec:env ", "exec:env -u NOTHING ")
    words = ["survey", str(configuration), f"--target.host={here},{other}"]
    assert f"target.host names one device twice: {here} and {other} are both " in refusal(words, capsys)
    words[-1] = f"--target.host={here}, {here}"
    assert f"target.host names {here} twice; name each device once" in refusal(words, capsys)


@pytest.mark.parametrize("verb", ["design", "calibrate", "search", "train", "plan", "sweep", "inspect"])
def test_other_verbs_take_one_device(verb: str, configuration: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [verb, str(configuration), "--target.host=ssh://pi@board,ssh://jetson"]
    sentence = refusal(words, capsys)
    assert (
        "target.host names 2 devices, which only htas run, survey, measure NETWORK, doctor and report take" in sentence
    )
    assert "board" in sentence


def test_a_folder_of_something_else_is_refused(configuration: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    hosts = "ssh://pi@board,ssh://jetson"
    with pytest.raises(UserError, match="other exists and is not the folder of several devices"):
        devices.survey(small(hosts), tmp_path / "other", "htas survey")
    (tmp_path / "other" / "config.toml").write_text(small("ssh://pi@board").toml())
    with pytest.raises(UserError, match="other holds a run; name another folder for several devices with --out"):
        devices.survey(small(hosts), tmp_path / "other", "htas survey")


def test_the_folder_of_several_devices_is_not_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "both"
    (folder / "board").mkdir(parents=True)
    (folder / "config.toml").write_text('[target]\nhost = "ssh://board,ssh://jetson"\n')
    words = ["export", str(folder), "--to", "onnx"]
    assert refusal(words, capsys).endswith("holds the runs of 2 devices; name the folder of one: none is trained yet")
    (folder / "board" / "networks.json").touch()
    assert refusal(words, capsys).endswith(f"name the folder of one: {folder}/board")
