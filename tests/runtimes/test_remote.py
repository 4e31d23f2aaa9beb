"""ONNX Runtime behind an agent keeps the contract, and everything that measures works with it."""

import json
import os
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from htas.cli import main
from htas.errors import UserError
from htas.formats.onnx_file import OnnxFile
from htas.formats.onnx_network import static_graph
from htas.graph.layer import Layer
from htas.metrics.latency import Latency
from htas.runtimes import Runtime, open_runtime
from htas.runtimes._remote import SENDING, _opening
from htas.spaces.layers import widths_at_most
from htas.testing import RuntimeContract
from htas.timing.remote.address import address
from htas.timing.remote.device import Device, Graph, Inputs, RemoteProgram, Settings, device
from htas.timing.target import Target

HERE = f"exec:{shlex.quote(sys.executable)}"
ROOT = Path(__file__).parents[2]
DEVICE = ROOT / "docs" / "device.md"
FAKES = ROOT / "tests" / "timing" / "remote" / "fakes.py"
LAYERS = [Layer("conv", 8, width, (8, 8), (3, 3), padding=(1, 1)) for width in (8, 16, 24)]


@pytest.fixture(scope="module", autouse=True)
def _lock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A lock of these tests' own, and one agent for all of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HTAS_LOCK", str(tmp_path_factory.mktemp("lock") / "lock"))
        yield


def fake(what: str) -> str:
    return f"exec:{shlex.join([sys.executable, str(FAKES), what])}"


def target(host: str = HERE) -> Target:
    return Target(host=host, runtime="onnxruntime", batch=1, threads=1, shapes=((3, 8, 8),))


@pytest.fixture(scope="class")
def connected() -> Iterator[None]:
    """One agent for all tests of a class."""
    with device(HERE).connected():
        yield


@pytest.mark.usefixtures("connected")
class TestRemote(RuntimeContract):
    """The contract, by an agent of this machine."""

    runtime = "onnxruntime"

    def opened(self, plugin: str, **fields: object) -> Runtime:
        return super().opened(plugin, host=HERE, **fields)


def test_layers_are_read_in_chains_and_remade_in_between():
    readings = Latency(target(), rounds=20, limit=5).measure(LAYERS)
    assert all(len(each.values) >= 12 for each in readings)
    context = readings[0].context
    assert context["measured on"] == device(HERE).facts.machine["measured on"] and context["threads"] == "1"
    assert readings[0].estimate > 0 and len({each.survey for each in readings}) == 1


def test_a_device_that_slows_itself_down_raises_a_doubt():
    (reading,) = Latency(target(fake("hot")), rounds=2).measure(LAYERS[:1])
    assert any("slowed itself down meanwhile (a throttled clock)" in doubt for doubt in reading.doubts)
    assert reading.context["throttling"] == "a throttled clock"
    (reading,) = Latency(target(fake("warm")), rounds=2).measure(LAYERS[:1])
    assert reading.context["temperature"] == "61.5 degrees C" and "throttling" not in reading.context


@pytest.mark.parametrize(("seconds", "widths"), [(0.003, 128), (0.05, 48), (1.25, 24)])
def test_where_opening_takes_long_fewer_widths_are_measured(
    seconds: float, widths: int, monkeypatch: pytest.MonkeyPatch
):
    clock, usual = [0.0], Device.open

    def opening(self: Device, graph: Graph, settings: Settings, inputs: Inputs | None) -> RemoteProgram:
        clock[0] += seconds
        return usual(self, graph, settings, inputs)

    monkeypatch.setattr(Device, "open", opening)
    monkeypatch.setattr(Device, "now", lambda self: clock[0])
    _opening.cache_clear()
    runtime = open_runtime(target())
    assert runtime.build_seconds == pytest.approx(seconds)
    assert widths_at_most(runtime.build_seconds) == widths
    took = clock[0]
    assert runtime.build_seconds == open_runtime(target()).build_seconds and clock[0] == took  # tried once
    _opening.cache_clear()


def test_a_device_that_another_program_reads_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HTAS_LOCK", str(tmp_path / "lock"))
    other = Device(address(fake("as it is")))
    other.hold()
    _opening.cache_clear()
    try:
        assert open_runtime(target(fake("as it is"))).build_seconds == SENDING
    finally:
        other.close()


def test_a_fingerprint_is_of_the_device_and_not_of_its_address():
    other = f"exec:env {shlex.quote(sys.executable)}"
    assert target().fingerprint() == target(other).fingerprint() != target("").fingerprint()
    assert Target(host=HERE, runtime="onnxruntime").resolved().threads == device(HERE).facts.cores


def test_two_devices_share_no_readings(tmp_path: Path):
    assert target(fake(f"other {tmp_path / 'asked'}")).fingerprint() != target().fingerprint()


def test_what_does_not_run_there_is_refused():
    with pytest.raises(UserError, match=r"target.runtime 'eager' runs on this machine only; .* 'onnxruntime'"):
        open_runtime(Target(host=HERE))
    with pytest.raises(UserError, match=r"target.host measures on a processor, got target.device 'cuda'"):
        Target(host=HERE, device="cuda")
    with pytest.raises(UserError, match=r"target.host must be ssh://user@board"):
        Target(host="board")


def test_a_layer_that_the_device_cannot_run_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("htas.runtimes._graphs.layer_graph", lambda *_: b"no graph")
    with pytest.raises(UserError, match="the device's ONNX Runtime cannot run the layer conv 3x3, 8 to 16 channels"):
        open_runtime(target()).compile_layer(LAYERS[1])


def test_an_onnx_file_is_quantized_before_it_is_sent(tmp_path: Path):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3))
    path, images = tmp_path / "net.onnx", torch.randn(1, 3, 8, 8)
    path.write_bytes(static_graph(network.eval(), (images,)))
    outputs = []
    for where, precision in ((HERE, "fp32"), (HERE, "int8"), ("", "int8")):
        runtime = open_runtime(replace(target(where), precision=precision))
        with runtime.session():
            outputs.append(runtime.compile(OnnxFile(path, 1), ()).outputs(images))
    assert not torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[1], outputs[2])


def test_networks_are_measured_by_name_there(capsys: pytest.CaptureFixture[str]):
    assert main(["measure", "cifar_resnet:8", "--host", HERE, "--rounds", "2", "--batch", "1", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["runtime"] == "onnxruntime" and row["latency_ms"]["estimate"] > 0


def test_the_doctor_says_what_the_device_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    from htas.cli import doctor

    examine = doctor.examine
    monkeypatch.setattr(doctor, "examine", lambda options: examine(options, 0.5))
    assert main(["doctor", "--host", HERE, "--threads", "1"]) == 0
    words = capsys.readouterr().out
    assert words.startswith(HERE) and "readings now (onnxruntime, cpu, fp32, batch 4, threads 1)" in words
    assert main(["doctor", f"--target.host={fake('no numpy')}"]) == 0
    words = capsys.readouterr().out
    there = {name: rest for name, _, rest in (line.strip().partition(" ") for line in words.splitlines())}
    assert "not here" in there["numpy"] and there["numpy"].endswith("-m pip install numpy")
    assert "torch" not in there and " executorch" in there["executorch"], "each runtime with all that it needs"


def test_a_device_that_is_not_there_ends_the_command_with_one_sentence(capsys: pytest.CaptureFixture[str]):
    assert main(["doctor", "--host", "exec:no-such-command"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_search_space_is_surveyed_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Survey, design and the store, with widths and depths of a small network."""
    monkeypatch.setenv("HTAS_STORE", str(tmp_path / "store.sqlite"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.toml").write_text(
        '[family]\nname = "cifar_resnet"\ndepth = 8\n[target]\nruntime = "onnxruntime"\nbatch = 1\n'
        "[survey]\nseconds = 4.0\nundecided = 1.0\n"
    )
    assert main(["survey", "small.toml", "--host", HERE]) == 0
    environment = json.loads((tmp_path / "runs" / "small" / "environment.json").read_text())
    assert environment["machine"] == device(HERE).facts.machine
    survey = json.loads((tmp_path / "runs" / "small" / "survey.json").read_text())
    assert survey["context"]["measured on"] == environment["machine"]["measured on"]
    assert main(["design", "runs/small"]) == 0


COMMANDS = re.findall(
    r"^htas .*$", "".join(re.findall(r"```bash\n(.*?)```", DEVICE.read_text(), re.DOTALL)), re.MULTILINE
)


TOOLS = {
    # ssh and adb hand their words to a shell there; docker starts a program
    "ssh": 'while [ "${1#-}" != "$1" ]; do case $1 in -o|-p) shift 2;; *) shift;; esac; done\n'
    'HTAS_LOCK={here}/$1.lock; export HTAS_LOCK; shift; cd {here} && exec sh -c "$*"',
    "adb": '[ "$1 $2" = "shell -T" ] && shift 2 && exec sh -c "$*"',
    "docker": 'while [ "$1" != IMAGE ] && [ "$1" != NAME ]; do shift; done; shift; exec "$@"',
    "python3": 'exec {python} "$@"',
    "htas/bin/python3": 'exec {python} "$@"',
}
"""What the commands of the document start: this machine, by the same words."""


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A board, a phone and containers that are this machine."""
    for name, script in TOOLS.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        script = script.replace("{here}", str(tmp_path)).replace("{python}", sys.executable)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_of_the_document_run(command: str, tools: None) -> None:
    words = shlex.split(command)[1:]
    if "ncnn" in words:
        pytest.importorskip("pnnx")
    if words[0] in ("survey", "run"):
        words = [str(ROOT / word) if word.endswith(".toml") else word for word in words]
        words += ["--survey.seconds=4", "--survey.store=none", "--survey.undecided=1", "--target.threads=1"]
        words += ["--split.limit=60", "--train.epochs=1", "--strategy.epochs=1", "--calibrate.networks=8"]
        words += ["--design.spaces=hardware", "--calibrate.seconds=20"]
    if words[0] == "measure":
        words += ["--rounds=2"]
    assert main(words) == 0
