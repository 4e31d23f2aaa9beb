"""The runtimes of phones and boards behind an agent keep their contracts; each is skipped where it is not installed."""

import json
import shlex
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import mobile
import pytest
import torch

from htas.cli import main
from htas.errors import UserError
from htas.graph.layer import Layer
from htas.metrics.latency import Latency
from htas.runtimes import Runtime
from htas.testing import RuntimeContract
from htas.testing.runtime import LAYERS, Residual, spread_norms
from htas.timing.remote import device as device_file
from htas.timing.remote.device import device
from htas.timing.target import Target

HERE = f"exec:{shlex.quote(sys.executable)}"
SHAPES = ((3, 8, 8),)
CONVS = [Layer("conv", 8, width, (8, 8), (3, 3), padding=(1, 1)) for width in (8, 16)]
PARTS = {"ncnn": ("ncnn", "pnnx"), "litert": ("ai_edge_litert.interpreter",)}
"""What is imported here to write programs, or to run them."""


@pytest.fixture(scope="module", autouse=True)
def _lock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A lock of these tests' own, and one agent for all of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HTAS_LOCK", str(tmp_path_factory.mktemp("lock") / "lock"))
        with device(HERE).connected():
            yield


@pytest.fixture(params=PARTS)
def runtime(request: pytest.FixtureRequest) -> str:
    """Each that is installed."""
    for part in PARTS[request.param]:
        pytest.importorskip(part)
    return request.param


class Remote(RuntimeContract):
    """The contract, by an agent of this machine."""

    @pytest.fixture
    def plugin(self) -> str:
        for part in PARTS[self.runtime]:
            pytest.importorskip(part)
        return self.runtime

    def opened(self, plugin: str, **fields: object) -> Runtime:
        return super().opened(plugin, host=HERE, **fields)


class TestNcnn(Remote):
    runtime = "ncnn"
    lacks = mobile.NCNN_LACKS


class TestLiteRT(Remote):
    runtime = "litert"
    lacks = mobile.LITERT_LACKS


@pytest.mark.slow
def test_executorch_computes_there_what_pytorch_computes():
    pytest.importorskip("executorch.exir")
    there = mobile.opened("executorch", host=HERE)
    program = there.compile(spread_norms(Residual()).eval(), (torch.randn(2, 3, 8, 8),))  # compares the outputs
    program.run()
    for each in (there.compile_layer(CONVS[0]), *there.chain(LAYERS["add"])):
        each.run()


def test_settings_are_those_of_the_runtime_here_and_versions_those_of_the_device(runtime: str):
    there, here = (mobile.opened(runtime, **host).describe() for host in ({"host": HERE}, {}))
    facts = device(HERE).facts.machine
    assert {**here, **facts} == {**there, "freed memory": here["freed memory"]}


def test_layers_are_read_in_chains_there(runtime: str):
    target = Target(host=HERE, runtime=runtime, batch=1, threads=1, shapes=SHAPES)
    readings = Latency(target, rounds=2, limit=5).measure(CONVS)
    assert {each.context["measured on"] for each in readings} == {device(HERE).facts.machine["measured on"]}
    assert min(each.median for each in readings) > 0


def test_a_layer_that_is_built_again_is_not_sent_again(runtime: str, monkeypatch: pytest.MonkeyPatch):
    sent: list[int] = []
    ask = device_file.Device._ask
    monkeypatch.setattr(device_file.Device, "_ask", lambda *a: sent.append(len(a[2])) or ask(*a))
    there = mobile.opened(runtime, host=HERE)
    programs = [there.compile_layer(CONVS[0]), *there.chain(CONVS[0])]
    assert sum(size > 0 for size in sent) == 4  # and the inputs of the comparison
    sent.clear()
    programs += [there.compile_layer(CONVS[0]), *there.chain(CONVS[0])]
    assert sent and max(sent) == 0


def test_a_network_of_another_batch_than_that_of_before(runtime: str):
    network = spread_norms(Residual()).eval()
    for batch in (1, 3):
        images = torch.randn(batch, 3, 8, 8)
        program = mobile.opened(runtime, host=HERE, batch=batch).compile(network, (images,))  # compares the outputs
        assert program.outputs(images).shape == (batch, 5)


def test_the_agent_imports_only_the_runtime_that_is_asked_for(runtime: str):
    fresh = device_file.Device(device_file.address(f"exec:env {shlex.quote(sys.executable)}"))
    with fresh.connected():
        fresh.check(runtime)
        maps = Path(f"/proc/{fresh.facts.pid}/maps").read_text()
    libraries = {"ncnn": "/ncnn/", "litert": "/ai_edge_litert/", "onnxruntime": "/onnxruntime/", "torch": "/torch/"}
    assert {name for name, part in libraries.items() if part in maps} == {runtime}


def test_the_threads_of_ncnn_sleep_soon_there(tmp_path: Path):
    pytest.importorskip("ncnn")
    said = tmp_path / "said"
    script = tmp_path / "start"
    script.write_text(f'#!/bin/sh\nOMP_DISPLAY_ENV=verbose exec {shlex.quote(sys.executable)} "$@" 2> {said}\n')
    script.chmod(0o755)
    device_file.Device(device_file.address(f"exec:{script}")).check("ncnn")
    assert "GOMP_SPINCOUNT = '20000'" in said.read_text()


def test_an_ncnn_without_batches_is_refused_in_a_sentence(tmp_path: Path):
    (tmp_path / "ncnn").mkdir()
    (tmp_path / "ncnn" / "__init__.py").write_text("__version__ = '1.0.2021'\nclass Mat: pass\n")
    meta = tmp_path / "ncnn-1.0.2021.dist-info"
    meta.mkdir()
    (meta / "METADATA").write_text("Metadata-Version: 2.1\nName: ncnn\nVersion: 1.0.2021\n")
    host = f"exec:env PYTHONPATH={tmp_path} {shlex.quote(sys.executable)}"
    with pytest.raises(
        UserError, match=r"has ncnn 1.0.2021, and .*; install a newer one there: .* pip install -U ncnn"
    ):
        mobile.opened("ncnn", host=host)


@pytest.mark.parametrize(("name", "package"), [("ncnn", "ncnn"), ("litert", "ai-edge-litert")])
def test_a_device_without_the_package_is_refused_with_the_command_that_installs_it(name: str, package: str):
    with pytest.raises(
        UserError, match=rf"has no numpy, {package}; install it there: .* -m pip install numpy {package}"
    ):
        mobile.opened(name, host=f"exec:{shlex.quote(sys.executable)} -S")


def test_half_precision_is_for_devices_with_instructions_for_it(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("ncnn")
    with pytest.raises(UserError, match="'ncnn' has no fp16 on cpu of exec:"):
        mobile.opened("ncnn", host=HERE, precision="fp16")
    facts = device(HERE).facts
    monkeypatch.setattr(device(HERE), "_facts", replace(facts, flags=(*facts.flags, "asimdhp")))
    assert mobile.opened("ncnn", host=HERE, precision="fp16").target.precision == "fp16"


def test_networks_are_measured_by_name_there(runtime: str, capsys: pytest.CaptureFixture[str]):
    options = f"--runtime {runtime} --rounds 2 --batch 1 --json".split()
    assert main(["measure", "cifar_resnet:8", "--host", HERE, *options]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["runtime"] == runtime and row["latency_ms"]["estimate"] > 0


def test_the_doctor_says_what_each_runtime_lacks(capsys: pytest.CaptureFixture[str]):
    assert main(["doctor", "--host", f"exec:{shlex.quote(sys.executable)} -S"]) == 0
    words = capsys.readouterr().out
    for package in ("numpy", "onnxruntime", "ncnn", "ai-edge-litert"):
        assert f"-m pip install {package}\n" in words


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_search_space_is_surveyed_and_calibrated_there(runtime: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HTAS_STORE", str(tmp_path / "store.sqlite"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.toml").write_text(
        f'[family]\nname = "cifar_resnet"\ndepth = 8\n[target]\nruntime = "{runtime}"\nbatch = 1\n'
        "[survey]\nseconds = 4.0\nundecided = 1.0\n[calibrate]\nnetworks = 8\n"
    )
    assert main(["survey", "small.toml", "--host", HERE]) == 0
    assert main(["design", "runs/small"]) == 0
    assert main(["calibrate", "runs/small"]) == 0
