"""Another architecture: a Debian of 64-bit ARM under emulation is surveyed and measured, and says what it is.

Its times are the emulator's, and stand nowhere.
"""

import json
import shlex
from pathlib import Path

import arm
import pytest
import torch

from htas.cli import main
from htas.files import read_json
from htas.graph.layer import Layer
from htas.runtimes import open_runtime
from htas.timing.remote.device import device
from htas.timing.target import Target

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

EMULATED = "is emulated, so that its times are no real one's"


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of the ARM system."""
    monkeypatch.setenv("HTAS_LOCK", str(tmp_path / "lock"))
    monkeypatch.setenv("HTAS_STORE", str(tmp_path / "store.sqlite"))
    try:
        return f"exec:{shlex.join(arm.command())}"
    except arm.Missing as error:
        pytest.skip(str(error))


def test_it_says_that_it_is_an_arm_system_and_emulated(host: str):
    facts, here = device(host).facts, Target(runtime="onnxruntime").machine()
    assert facts.architecture == "aarch64" and facts.emulated
    assert facts.versions.keys() >= {"numpy", "onnxruntime"}
    assert facts.processor.startswith("aarch64, emulated") and not facts.flags
    assert facts.machine["processor"] != here["processor"] and "gpu" in facts.machine
    there = Target(runtime="onnxruntime", host=host).fingerprint()
    assert there != Target(runtime="onnxruntime", host="exec:python3").fingerprint()


def test_its_networks_and_layers_compute_what_pytorch_computes(host: str):
    target = Target(runtime="onnxruntime", host=host, batch=2, threads=1, shapes=((3, 8, 8),))
    runtime = open_runtime(target)
    layer = Layer("conv", 3, 5, (8, 8), (3, 3), padding=(1, 1), norm=True, activation="relu")
    module, images = layer.build().eval(), torch.randn(2, 3, 8, 8)
    with runtime.session(), torch.no_grad():
        program = runtime.compile(module, (images,))
        assert torch.allclose(program.outputs(images), module(images), atol=1e-5)


def test_it_is_measured_and_surveyed(host: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    options = ["--batch=1", "--threads=1", "--rounds=2"]
    assert main(["measure", "cifar_resnet:8", f"--host={host}", *options]) == 0
    assert EMULATED in capsys.readouterr().out
    config = tmp_path / "board.toml"
    config.write_text(
        '[family]\nname = "cifar_resnet"\ndepth = 8\n[target]\nruntime = "onnxruntime"\nbatch = 1\nthreads = 1\n'
        "[design]\nexpand = 1.0\ngroups = 4\n"
    )
    folder = tmp_path / "out"
    words = ["--survey.rounds=1", "--survey.seconds=600", "--survey.undecided=1", "--survey.store=none"]
    assert main(["survey", str(config), f"--out={folder}", f"--target.host={host}", *words]) == 0
    record = json.loads((folder / "survey.json").read_text())
    assert record["context"]["architecture"] == "aarch64" and any(EMULATED in doubt for doubt in record["doubts"])
    counts = [count for layer in record["layers"].values() for count in layer["readings"]]
    assert set(counts) == {0, 3} and counts.count(3) >= record["cases"] > 100  # others are interpolated
    environment = read_json(folder / "environment.json")
    assert environment["machine"]["processor"].startswith("aarch64, emulated")
