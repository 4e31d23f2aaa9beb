"""Every runtime computes what PyTorch computes, and leaves the model and the process as they were."""

import importlib
import os
import random
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import htas.runtimes
from htas.cli import main
from htas.errors import UserError
from htas.formats.int8 import needs_seven_bits, quantize
from htas.formats.onnx import chain_graph, layer_graph, network_graph
from htas.formats.onnx_file import OnnxFile
from htas.formats.onnx_network import static_graph, written_graph
from htas.formats.parity import largest_difference, tolerance
from htas.graph import resize, trace
from htas.graph.arch import Arch
from htas.graph.layer import Layer
from htas.metrics.latency import Latency
from htas.models.cifar_resnet import CifarResNet
from htas.plugins import find, names
from htas.run.config import load
from htas.runtimes import Program, Runtime, _graphs, open_runtime
from htas.runtimes._build import Builder, in_words
from htas.testing import RuntimeContract
from htas.testing.runtime import LAYERS, Residual, spread_norms
from htas.timing.bench import CudaTimer, HostTimer
from htas.timing.target import CROWD, Target, instructions

OPTIONAL = ("executorch", "litert", "ncnn")
"""Those whose tests are in files of their own, and skipped where their package is not installed."""
RUNTIMES = [name for name in names(htas.runtimes) if name not in OPTIONAL]


def contract(name: str) -> type[Runtime]:
    return find(htas.runtimes, Runtime, name)


def case(name: str) -> object:
    """Parameters of a test; a compiler takes seconds, and not every machine has one."""
    no_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
    return pytest.param(name, marks=[no_compiler, pytest.mark.slow] if name == "compiled" else [])


ON_CPU = [name for name in RUNTIMES if contract(name).precisions("cpu")]
ONLY_CUDA = [name for name in RUNTIMES if name not in ON_CPU]
BUILT = [case(name) for name in ON_CPU]

CONV = LAYERS["conv"]


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return spread_norms(Residual())


def opened(name: str, **fields: object) -> Runtime:
    return open_runtime(Target(runtime=name, **{"batch": 2, "threads": 1, "shapes": ((3, 8, 8),), **fields}))


def allowed(expected: Tensor, name: str, precision: str) -> float:
    """The largest difference from fp32 that a precision explains."""
    return tolerance(Target(runtime=name, precision=precision)) * float(expected.abs().max())


class TestEveryRuntime(RuntimeContract):
    """All files of the folder that run on a CPU."""

    @pytest.fixture(params=BUILT)
    def plugin(self, request):
        return request.param


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
@pytest.mark.slow
def test_torch_compile_computes_what_pytorch_computes():
    runtime = opened("compiled")
    assert runtime.describe()["torch"] == torch.__version__ and isinstance(runtime.timer(), HostTimer)
    program = runtime.compile(nn.Sequential(nn.Linear(3, 4), nn.ReLU()).eval(), (torch.randn(2, 3),))
    assert (program.outputs(torch.randn(2, 3)) >= 0).all()  # compiling has compared the outputs


def test_eager_computes_with_the_targets_threads():
    with opened("eager", threads=3).session():
        assert torch.get_num_threads() == 3


def test_a_runtime_that_does_not_exist_names_those_that_do():
    with pytest.raises(ValueError, match="no runtime called 'onxruntime'; did you mean 'onnxruntime'"):
        opened("onxruntime")


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_network_is_exported_once_and_opened_again(name, monkeypatch):
    contract(name)
    exported, opens = [], []
    module, kind = importlib.import_module("htas.runtimes._graphs"), type(opened(name))
    whole, opening = module.static_graph, kind.open
    monkeypatch.setattr(module, "static_graph", lambda *a, **k: exported.append(1) or whole(*a, **k))
    monkeypatch.setattr(kind, "open", lambda *a: opens.append(1) or opening(*a))
    monkeypatch.setattr("htas.timing.bench._Run._affords", lambda *_: True)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    target = Target(runtime=name, threads=2, shapes=((3, 8, 8),), batch=2)
    metric = Latency(target, rounds=32)
    (reading,) = metric.measure([network])
    assert reading.estimate > 0 and len(exported) == 1 and len(opens) == 16
    Latency(target, rounds=1, programs=metric.programs).measure([network])
    assert len(exported) == 1 and len(opens) == 17
    program = opened(name).compile(network, (torch.randn(2, 3, 8, 8),))
    images = torch.randn(2, 3, 8, 8)
    assert program.rebuild is not None
    assert torch.equal(program.rebuild().outputs(images), program.outputs(images))


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
def test_a_layer_written_directly_computes_what_the_module_does(layer, dtype):
    module, example = spread_norms(layer.build()), layer.example(2)
    (found,) = run_onnx(layer_graph(layer, module, 2, dtype), [tensor.to(dtype) for tensor in example])
    with torch.no_grad():
        expected = module(*example)
    share = 1e-4 if dtype == torch.float32 else tolerance(Target(precision="fp16"))
    assert found.dtype == dtype
    assert (found - expected).abs().max() <= share * expected.abs().max()
    assert found.shape[2:] == (() if layer.op == "linear" else layer.output_size)


def run_onnx(graph: bytes, tensors: list[Tensor]) -> list[Tensor]:
    """All outputs of a graph, as the CPU computes them: fp16 by casts."""
    from onnxruntime import InferenceSession, SessionOptions

    options = SessionOptions()
    options.log_severity_level = 3  # errors
    session = InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    fed = [argument.name for argument in session.get_inputs()]
    feed = {name: tensor.numpy() for name, tensor in zip(fed, tensors, strict=True)}
    return [torch.from_numpy(found) for found in session.run(None, feed)]


def resnet(kind: str) -> nn.Module:
    """Random archs of ResNets: joined adds, projected ones, bottlenecks."""
    family = CifarResNet(20 if kind == "bottleneck" else 14, "bottleneck" if kind == "bottleneck" else "basic")
    traced = trace(family.build(10), torch.zeros(2, 3, 32, 32), adds="project" if kind == "project" else "join")
    rng = random.Random(3)
    widths = {site: rng.randrange(2, 2 * base) for site, base in traced.base.widths.items()}
    model = resize(traced, Arch(widths, {**traced.base.depths, "stages.1": 1}))
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.uniform_(part.running_mean, -0.5, 0.5)
            nn.init.uniform_(part.running_var, 0.5, 1.5)
    return model.eval()


def operators(graph: bytes) -> Counter[str]:
    import onnx

    return Counter(node.op_type for node in onnx.load_from_string(graph).graph.node)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["join", "project", "bottleneck"])
def test_a_written_network_has_the_operators_that_the_exporter_writes(kind):
    model, images = resnet(kind), torch.randn(2, 3, 32, 32)
    written, exported = written_graph(model, (images,)), network_graph(model, (images,), dynamic=False)
    assert written is not None
    assert operators(written) == operators(exported)
    (found,), (expected,) = run_onnx(written, [images]), run_onnx(exported, [images])
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
def test_a_written_network_computes_what_pytorch_does(dtype):
    """Every step that is known, with its options."""

    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=True), nn.BatchNorm2d(8), nn.SiLU(), nn.Dropout())
            self.deep = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=4, bias=False)
            self.pools = nn.Sequential(nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(3, 2, 1, count_include_pad=False))
            self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.Hardsigmoid())
            self.acts = nn.Sequential(nn.ReLU6(), nn.Hardswish(), nn.Tanh(), nn.Identity(), nn.Sigmoid())
            self.head = nn.Sequential(nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten(), nn.Linear(8, 5), nn.BatchNorm1d(5))

        def forward(self, images: Tensor) -> Tensor:
            out = self.first(images)
            out = torch.relu(torch.nn.functional.relu(self.deep(out)) + out)
            out = self.pools(out)
            out = out * self.gate(out)
            logits: Tensor = self.head(self.acts(out).relu())
            return logits

    model, images = Steps().eval().to(dtype), torch.randn(2, 3, 32, 32).to(dtype)
    written = written_graph(model, (images,))
    assert written is not None
    with torch.no_grad():
        expected = model(images)
    (found,) = run_onnx(written, [images])
    share = 1e-4 if dtype == torch.float32 else tolerance(Target(precision="fp16"))
    assert found.dtype == dtype and (found - expected).abs().max() <= share * expected.abs().max()


class Branches(nn.Module):
    """A branch on a value: no graph."""

    def forward(self, images: Tensor) -> Tensor:
        return images if images.sum() > 0 else -images


class Sorts(nn.Module):
    """A function that is not known."""

    def forward(self, images: Tensor) -> Tensor:
        return images.sort(1).values


class Overwrites(nn.Module):
    """What is overwritten in place is read again."""

    def __init__(self, function: bool) -> None:
        super().__init__()
        self.function, self.relu = function, nn.ReLU(inplace=True)

    def forward(self, images: Tensor) -> Tensor:
        half = torch.mul(images, images.relu())
        return (torch.nn.functional.relu(half, inplace=True) if self.function else self.relu(half)) + half


class OverwritesPart(nn.Module):
    """What is overwritten in place is part of something else."""

    def forward(self, images: Tensor) -> Tensor:
        half = images * 2
        half[:, :1].relu_()
        return half


class OverwritesAlone(nn.Module):
    """What is overwritten in place is part of what nobody reads."""

    def forward(self, images: Tensor) -> Tensor:
        part = torch.stack([images * 2, images], 1).flatten(1, 2)[:, :3]
        part += images
        return part


class Two(nn.Module):
    """Twice the input."""

    def forward(self, images: Tensor) -> Tensor:
        return images + images


def hooked() -> nn.Module:
    """A module whose output a hook changes."""
    made = Two()
    made.register_forward_hook(lambda module, given, found: -found)
    return made


UNKNOWN = [
    OverwritesPart(), hooked(), Branches(), Sorts(), *map(nn.Sequential, (
        nn.Conv2d(3, 3, 3, padding_mode="reflect"), nn.AvgPool2d(3, ceil_mode=True), nn.AdaptiveAvgPool2d(3),
        nn.GroupNorm(1, 3), nn.BatchNorm2d(3, track_running_stats=False), nn.Conv2d(3, 3, 2, padding="same"),
    )),
]  # fmt: skip


class Step(nn.Module):
    """One function."""

    def __init__(self, run: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, images: Tensor) -> Any:
        return self.run(self, images)


def split(_: nn.Module, images: Tensor) -> Tensor:
    one, two, three = images.chunk(3, 1)
    four, five = images.split([3, 5], dim=-1)
    six, seven, _ = images.unbind(1)
    return torch.cat([two, one * 2, 1 - three], dim=1) + torch.cat((five, four), -1) + (six - seven)[:, None]


def moved(_: nn.Module, images: Tensor) -> Tensor:
    n, c, h, w = images.shape
    x = images.view(n, c, h // 2, 2, w).permute(0, 3, 1, 2, 4).flatten(0, 1).transpose(1, -1)
    return x.movedim(1, 2).unsqueeze(1).squeeze(1).mT.contiguous().view(n, -1)


def indexed(_: nn.Module, images: Tensor) -> Tensor:
    x = images[:, 1:, ::2, -3] + images[:, 0, None, 1::2, 1]
    return x + images[..., 1][:, 1:, :4] + images.narrow(1, 1, 2).select(3, 2)[:, :, :4]


def reduced(_: nn.Module, images: Tensor) -> Tensor:
    x = images.mean((2, 3), keepdim=True) + images.amax(1, True) - images.sum(1, keepdim=True) / 3
    return x * images.max(dim=1, keepdim=True)[0].softmax(-1) + images.mean()


def weighted(net: Any, images: Tensor) -> Tensor:
    weight = net.conv.weight - net.conv.weight.mean((1, 2, 3), keepdim=True)
    x = F.conv2d(images, weight, net.conv.bias, 1, 1)
    x = F.batch_norm(x, net.norm.running_mean, net.norm.running_var, net.norm.weight, net.norm.bias, net.training)
    return F.linear(x, net.linear.weight, net.linear.bias)


def resized(_: nn.Module, images: Tensor) -> Tensor:
    x = F.interpolate(images, scale_factor=2) + F.interpolate(images, (16, 16), mode="bilinear", align_corners=False)
    x = F.max_pool2d(x, 2) + F.avg_pool2d(x, 3, stride=2, padding=1) + F.adaptive_avg_pool2d(x, 8)
    return F.pad(x, (1, 2, 0, 1)) + F.pad(x, [1, 2, 0, 1], mode="reflect") + F.pad(x, (2, 1, 1, 0), "constant", 1.5)


KNOWN = [
    OverwritesAlone(), nn.Sequential(nn.AvgPool2d(2, ceil_mode=True), nn.Flatten(), nn.Dropout(inplace=True)),
    Overwrites(True), Overwrites(False),
    *map(nn.Sequential, (nn.LeakyReLU(0.2), nn.GELU("tanh"), nn.Linear(8, 4), nn.AdaptiveAvgPool2d(2),
    nn.Conv2d(3, 3, 3, padding="same"), nn.Upsample(scale_factor=2), nn.LayerNorm(8), nn.ReflectionPad2d((1, 2, 0, 1)),
    nn.ConvTranspose2d(3, 4, 3, 2, 1, 1),
    nn.MaxPool2d(3, 2, ceil_mode=True), nn.MaxPool2d(2, 3, 1, ceil_mode=True), nn.MaxPool2d(3, ceil_mode=True),
    nn.Softmax(1), nn.ZeroPad2d(1), nn.Hardtanh(-0.5, 0.5),
    nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True))),
    nn.LayerNorm(8), Step(split), Step(moved), Step(indexed), Step(reduced), Step(resized),
    Step(lambda _, x: F.silu(x, inplace=True).clamp(min=0.1)),
    Step(lambda _, x: F.hardswish(x) * F.hardsigmoid(x) + F.gelu(x) ** 2 + F.leaky_relu(x, 0.3) - F.relu6(x)),
    Step(lambda _, x: F.dropout(x, 0.5, False) @ x.transpose(2, 3)), Step(lambda _, x: {"a": x * 2, "b": [x, x * 2]}),
    Step(weighted, conv=nn.Conv2d(3, 4, 3), norm=nn.BatchNorm2d(4), linear=nn.Linear(8, 3)),
    Step(lambda _, x: F.pixel_shuffle(torch.cat([x] * 4, 1), 2)), Step(lambda _, x: x.clone().add_(x).mul_(0.5)),
]  # fmt: skip


@pytest.mark.parametrize("model", KNOWN, ids=lambda model: type(model).__name__)
def test_a_step_that_is_known_computes_what_pytorch_does(model):
    images = torch.randn(2, 3, 8, 8)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.running_mean, -0.5, 0.5)
    written = written_graph(model.eval(), (images,))
    assert written is not None
    with torch.no_grad():
        expected = tree_leaves(model(images.clone()))
    for found, wanted in zip(run_onnx(written, [images]), expected, strict=True):
        assert found.shape == wanted.shape
        assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("model", UNKNOWN, ids=lambda model: type(model).__name__)
def test_a_network_with_a_step_that_is_not_known_is_not_written_directly(model):
    images = torch.randn(2, 3, 8, 8)
    assert written_graph(model.eval(), (images,)) is None
    assert written_graph(Two(), (images,)) is not None, "without a hook"


class Each(nn.Module):
    """The outputs of several networks."""

    def __init__(self, models: list[nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(model(images) for model in self.models)


@pytest.mark.slow
def test_steps_that_are_not_known_are_left_to_the_exporter():
    models = [model for model in UNKNOWN if not isinstance(model, Branches)]
    images = torch.randn(2, 3, 8, 8)
    found = run_onnx(static_graph(Each(models).eval(), (images,)), [images])
    for model, own in zip(models, found, strict=True):
        assert torch.allclose(own, model(images.clone()), atol=1e-4), model


def test_a_network_in_fp16_is_exported_in_fp16(network):
    images = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        expected = network.eval()(images)
    (found,) = run_onnx(network_graph(network.half(), (images.half(),), dynamic=False), [images.half()])
    assert found.dtype == torch.float16
    assert (found - expected).abs().max() <= allowed(expected, "eager", "fp16")


def test_a_layers_norm_and_activation_are_fused_into_its_convolution(tmp_path):
    import onnx
    from onnxruntime import InferenceSession, SessionOptions

    layer = LAYERS["conv, norm, relu"]
    options = SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    options.log_severity_level = 3
    InferenceSession(layer_graph(layer, layer.build(), 2), options, providers=["CPUExecutionProvider"])
    operators = {node.op_type for node in onnx.load(tmp_path / "fused.onnx").graph.node}
    assert not operators & {"BatchNormalization", "Relu"}


def test_hundreds_of_programs_live_side_by_side():
    runtime = opened("onnxruntime", threads=2)
    programs = [runtime.compile_layer(CONV) for _ in range(300)]
    for program in programs:
        program.run()
    assert programs[0].outputs(*CONV.example(2)).shape == (2, 5, 9, 8)


def test_onnxruntime_computes_with_the_targets_threads():
    runtimes = [opened("onnxruntime", threads=threads) for threads in (1, 2, 3)]
    runtimes[0].compile_layer(CONV)
    keep, counts = [], [len(os.listdir("/proc/self/task"))]
    for runtime in runtimes:
        keep.append(runtime.compile_layer(CONV))
        counts.append(len(os.listdir("/proc/self/task")))
    assert [after - before for before, after in pairwise(counts)] == [0, 1, 2]  # the caller is one of them


def test_a_network_that_onnx_cannot_hold_is_refused_in_a_sentence():
    class Branching(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images * 2 if images.sum() > 0 else images

    with pytest.raises(
        ValueError, match=r"PyTorch cannot export this Branching to ONNX \(.*\); keep forward"
    ) as caught:
        opened("onnxruntime").compile(Branching(), (torch.randn(2, 3, 8, 8),))
    assert "\n" not in str(caught.value)


@pytest.fixture
def gpu(monkeypatch):
    """PyTorch says that there is a GPU: enough for what is refused before it is used."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


@pytest.mark.parametrize(
    ("name", "provider"), [("onnxruntime", "CUDAExecutionProvider"), ("tensorrt", "TensorrtExecutionProvider")]
)
def test_a_provider_that_is_not_there_is_named_with_the_package_that_has_it(name, provider, gpu, monkeypatch):
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(ValueError, match=rf"needs ONNX Runtime's {provider}, this build has CPU.*onnxruntime-gpu"):
        opened(name, device="cuda")


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_layer_is_quantized_once_however_often_its_program_is_built(name, monkeypatch):
    count = []
    monkeypatch.setattr(_graphs, "quantize", lambda *args, **options: count.append(1) or quantize(*args, **options))
    runtime, layer = opened(name, precision="int8"), Layer("conv", 8, 16, (8, 8))
    images = torch.randn(layer.shapes(runtime.target.batch)[0])
    one, other = (runtime.compile_layer(layer).outputs(images) for _ in range(2))
    assert torch.equal(one, other) and len(count) == 1
    for _ in range(2):
        runtime.chain(layer)
    assert len(count) == 3  # the chain, and its ends alone
    runtime.compile_layer(Layer("conv", 8, 24, (8, 8)))
    monkeypatch.setattr(_graphs, "KEPT", 0)
    for _ in range(2):
        runtime.compile_layer(Layer("conv", 8, 32, (8, 8)))  # no room is left
    assert len(count) == 6


@pytest.mark.parametrize(("name", "lacks"), [("onnxruntime", True), ("openvino", False)])
def test_readings_of_a_network_name_what_stays_in_fp32(name, lacks, tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.ConvTranspose2d(16, 8, 2, 2)).eval()
    target = Target(runtime=name, precision="int8", batch=2, threads=1, shapes=((3, 8, 8),))
    path = tmp_path / "up.onnx"
    path.write_bytes(static_graph(network, target.example()))
    metric = Latency(target, rounds=3)
    for case, layer in ((network, "2"), (OnnxFile(path, 2), "2")):
        for _ in range(2):  # from the export, and built again
            (reading,) = metric.measure([case])
            assert reading.note == (f"Not quantized, since ONNX Runtime has no such layer in int8: {layer}." * lacks)
    (reading,) = Latency(replace(target, precision="fp32"), rounds=3).measure([network])
    assert reading.note == ""


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_an_onnx_file_is_quantized_once(name, tmp_path):
    """A file in fp32 is measured in int8 where that is asked for, and one in int8 only as it is."""
    network, images = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3)).eval(), torch.randn(2, 3, 8, 8)
    plain, small = tmp_path / "plain.onnx", tmp_path / "int8.onnx"
    plain.write_bytes(static_graph(network, (images,)))
    small.write_bytes(quantize(plain.read_bytes(), seven_bits=needs_seven_bits(instructions())))
    runtime, usual = opened(name, precision="int8"), opened(name)
    in_int8 = runtime.compile(OnnxFile(plain, 2), (images,)).outputs(images)
    as_it_is = usual.compile(OnnxFile(small, 2), (images,)).outputs(images)
    assert torch.equal(in_int8, as_it_is)
    assert not torch.equal(in_int8, usual.compile(OnnxFile(plain, 2), (images,)).outputs(images))
    with pytest.raises(UserError, match="is quantized already; name its file as it is, without a precision"):
        runtime.compile(OnnxFile(small, 2), (images,))


def test_what_is_advised_instead_of_int8_has_int8(gpu, tmp_path):
    with pytest.raises(UserError, match=r"or target.runtime 'onnxruntime' or 'openvino' on target.device 'cpu'$"):
        opened("onnxruntime", device="cuda", precision="int8")
    path = tmp_path / "unknown.onnx"
    node = onnx.helper.make_node("Unknown", ["x"], ["y"])
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2, 3]) for name in "xy"]
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([node], "net", values[:1], values[1:])), path)
    with pytest.raises(UserError, match=r"unknown.onnx in int8 .*; replace it, or use target.precision 'fp32'$"):
        opened("onnxruntime", precision="int8").compile(OnnxFile(path, 2), ())


@pytest.mark.parametrize("name", ONLY_CUDA)
def test_a_runtime_for_gpus_refuses_the_cpu(name):
    with pytest.raises(ValueError, match=rf"'{name}' does not run on cpu; use target.device 'cuda', or .* 'eager'"):
        opened(name)


def test_openvino_refuses_cuda(gpu):
    with pytest.raises(ValueError, match=r"'openvino' does not run on cuda; use target.device 'cpu', or"):
        opened("openvino", device="cuda")


def test_a_precision_that_would_be_emulated_is_refused_with_the_reason():
    with pytest.raises(
        ValueError, match=r"no fp16 on cpu \(on a CPU it would cast .*\); use target.precision fp32, int8, or"
    ):
        opened("onnxruntime", precision="fp16")


def test_openvino_names_what_quantized_its_graphs():
    assert "quantizer" not in opened("openvino").describe()
    assert opened("openvino", precision="int8").describe()["quantizer"].startswith("onnxruntime 1.")


def test_openvino_has_the_precisions_of_the_processor(monkeypatch):
    class Core:
        def get_property(self, device: str, name: str) -> list[str]:
            return ["FP32", "INT8", "BF16"]

    monkeypatch.setattr("htas.runtimes.openvino._core", Core)
    assert contract("openvino").precisions("cpu") == ("fp32", "bf16", "int8")
    with pytest.raises(ValueError, match=r"no fp16 on cpu \(OpenVINO finds no instructions.*use .* bf16, int8, or"):
        opened("openvino", precision="fp16")


def test_openvino_refuses_threads_that_it_would_not_take():
    with pytest.raises(ValueError, match=r"OpenVINO takes \d+ threads here; set target.threads to that, or use"):
        opened("openvino", threads=CROWD * (os.cpu_count() or 1)).compile_layer(CONV)


def test_a_package_that_is_not_installed_names_its_extra(monkeypatch):
    contract("openvino")
    sys.modules["htas.runtimes.openvino"]._core.cache_clear()
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ValueError, match=r"'openvino' needs the package openvino, .*pip install 'htas\[openvino\]'"):
        opened("openvino")


def test_without_a_compiler_torch_compile_says_what_to_install(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(ValueError, match=r"'compiled' needs a C\+\+ compiler on a CPU and finds none; install g\+\+"):
        opened("compiled")


@dataclass(frozen=True)
class Optional(Runtime):
    """Has an option of every type."""

    count: int = 1
    share: float = 0.5
    fast: bool = False
    word: str = "a"
    mode: Literal["one", "two"] = "one"

    def compile(self, model: nn.Module, example: tuple[Tensor, ...]) -> Program:
        return Program(lambda: None, model)

    def describe(self) -> Mapping[str, str]:
        return {}


OPTIONAL = f"{__name__}:Optional"


@dataclass(frozen=True)
class Wrong(Runtime):
    """Has the one method that a runtime needs, and computes one percent too much with it."""

    factor: float = 1.01

    def build(self, network: nn.Module, example: tuple[Tensor, ...]) -> Program:
        network.add_module("more", nn.Identity())  # the copy is the runtime's
        return Program(lambda: network(*example), lambda *inputs: self.factor * network(*inputs).detach())

    def describe(self) -> Mapping[str, str]:
        return {}


def test_a_runtime_that_builds_is_compared_by_its_base(network):
    images = (torch.randn(2, 3, 8, 8),)
    with pytest.raises(UserError, match="Wrong' differs from PyTorch by up to"):
        opened(f"{__name__}:Wrong").compile(network.eval(), images)
    right = opened(f"{__name__}:Wrong", options={"factor": 1.0})
    assert torch.equal(right.compile(network, images).outputs(*images), network(*images))
    assert not hasattr(network, "more")
    assert right.compile_layer(CONV).outputs(*CONV.example(2)).shape == (2, 5, 9, 8)


def test_options_of_a_configuration_reach_the_runtime(tmp_path):
    path = tmp_path / "some.toml"
    path.write_text(
        f"[target]\nruntime = '{OPTIONAL}'\noptions = {{ count = 3, share = 1, fast = true, word = 'b' }}\n"
    )
    config = load(path)
    runtime = open_runtime(config.target)
    assert (runtime.count, runtime.share, runtime.fast, runtime.word, runtime.mode) == (3, 1, True, "b", "one")
    path.write_text(config.toml())
    assert load(path).target == config.target
    given = load(None, [f"--target.runtime={OPTIONAL}", '--target.options={"mode": "two"}']).target
    assert open_runtime(given).mode == "two"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cuont": 3}, f"no option of '{OPTIONAL}' called 'cuont'; did you mean 'count'\\? choose one of count, share"),
        ({"count": "3"}, "count must be a whole number, got '3'"),
        ({"count": True}, "count must be a whole number, got True"),
        ({"share": "x"}, "share must be a number, got 'x'"),
        ({"fast": 1}, "fast must be true or false, got 1"),
        ({"word": 1}, "word must be text, got 1"),
        ({"mode": "three"}, "mode must be one of one, two, got 'three'"),
    ],
)
def test_a_wrong_option_names_the_right_ones(options, message):
    with pytest.raises(ValueError, match=f"target.options: {message}"):
        opened(OPTIONAL, options=options)


def test_a_runtime_without_options_says_so():
    with pytest.raises(ValueError, match=r"target.options: 'eager' has no options, got 'mode'; leave them out"):
        opened("eager", options={"mode": "fast"})


def test_targets_with_equal_options_are_equal_and_others_have_other_fingerprints():
    one, same, other = (Target(options={"spin": spin}) for spin in (1, 1, 2))
    assert one == same and hash(one) == hash(same) and one != other
    assert one.fingerprint() == same.fingerprint() != other.fingerprint()


def test_onnxruntimes_threads_spin_as_long_as_its_option_says():
    assert opened("onnxruntime", options={"spin": 0}).describe()["spinning"] == "0 us"
    with pytest.raises(ValueError, match="spin must be 0 microseconds or more, got -1"):
        opened("onnxruntime", options={"spin": -1})


class Transform(nn.Module):
    """An operator that no graph runtime has."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.linalg.eigvalsh(images @ images.mT)


def test_an_operator_that_a_runtime_lacks_names_the_layer():
    network = nn.Sequential(nn.ReLU(), nn.Sequential(nn.ReLU(), Transform()))
    with pytest.raises(
        ValueError, match=r"PyTorch cannot export this Sequential .* layer '1.1' \(Transform\)"
    ) as caught:
        opened("onnxruntime").compile(network, (torch.randn(2, 3, 8, 8),))
    assert "\n" not in str(caught.value)


def failing(error: Exception) -> object:
    def build(*_: object) -> Program:
        raise error

    return build


def test_a_layer_that_a_runtime_cannot_build_is_named():
    layer = Layer("conv", 4, 6, (9, 8), (1, 3), groups=2, activation="elu")
    assert in_words(layer) == "the layer conv 1x3, 4 to 6 channels in 2 groups at 9x8, then elu"
    with pytest.raises(
        ValueError, match=r"It cannot run the layer conv 1x3, .* \(RuntimeError: no kernel\); replace it"
    ):
        Builder("It", Target()).layer(layer, failing(RuntimeError("\nno kernel\nmore lines")))


@pytest.mark.parametrize("words", ["CUDA out of memory. Tried", "Failed to allocate memory for requested buffer"])
def test_a_full_gpu_says_what_to_lower(words):
    target = Target(device="cuda", batch=512)
    full = "It ran out of memory on cuda at batch 512; lower target.batch"
    with pytest.raises(ValueError, match=full):
        Builder("It", target).layer(CONV, failing(torch.OutOfMemoryError(words)))
    with pytest.raises(ValueError, match=full):
        Builder("It", target).network(CONV.build(), CONV.example(2), failing(RuntimeError(words)))
    late = failing(RuntimeError(words))
    with pytest.raises(ValueError, match=full):
        Builder("It", target).layer(CONV, lambda: Program(late, late)).run()


def test_outputs_that_overflow_in_fp16_are_refused_with_the_way_out():
    network = nn.Conv2d(3, 4, 1)
    nn.init.constant_(network.weight, 6e4)
    with pytest.raises(
        ValueError, match=r"eager PyTorch overflows .* in fp16, .*; use target.precision 'bf16' or 'fp32'"
    ):
        opened("eager", precision="fp16").compile(network, (torch.ones(2, 3, 8, 8),))


def test_a_program_that_computes_something_else_is_refused():
    target = Target(batch=2)
    with pytest.raises(ValueError, match="It differs from PyTorch by up to"):
        Builder("It", target).network(CONV.build(), CONV.example(2), lambda *_: Program(int, CONV.build()))


CHAINED = {
    "conv": Layer("conv", 16, 24, (8, 8), (3, 3), padding=(1, 1), norm=True, activation="relu"),
    "odd width": Layer("conv", 16, 18, (8, 8), (3, 3), padding=(1, 1), norm=True, activation="relu"),
    "strided": Layer("conv", 16, 32, (8, 8), (3, 3), (2, 2), (1, 1)),
    "pointwise, strided": Layer("conv", 16, 32, (8, 8), (1, 1), (2, 2)),
    "depthwise": Layer("conv", 16, 16, (8, 8), (3, 3), padding=(1, 1), groups=16, activation="hardswish"),
    "of the image": Layer("conv", 3, 16, (8, 8), (3, 3), padding=(1, 1)),
    "max pool": Layer("max_pool", 16, 16, (8, 8), (2, 2), (2, 2)),
    "global pool": Layer("global_pool", 16, 16, (8, 8)),
    "one pixel": Layer("conv", 16, 4, (1, 1)),
    "add": Layer("add", 16, 16, (8, 8), activation="relu"),
    "linear": Layer("linear", 16, 10, (1, 1), bias=True, activation="relu"),
}


def chain_graphs(layer, module, batch, *, first):
    return [chain_graph(layer, part, batch, first=first) for part in (module, None)]


@pytest.mark.parametrize("layer", CHAINED.values(), ids=CHAINED.keys())
def test_a_chain_differs_from_its_neighbours_by_the_layer(layer):
    import onnx

    module = layer.build()
    first = layer is CHAINED["of the image"]
    graphs = [*chain_graphs(layer, module, 2, first=first), layer_graph(layer, module, 2)]
    chain, neighbours, alone = (Counter(node.op_type for node in onnx.load_from_string(g).graph.node) for g in graphs)
    assert chain - neighbours == alone
    assert not neighbours - chain


def test_a_chain_computes_head_then_layer_then_tail():
    import onnx

    layer = CHAINED["conv"]
    module = spread_norms(layer.build())
    graph, _ = chain_graphs(layer, module, 2, first=False)
    weights = {
        each.name: torch.tensor(onnx.numpy_helper.to_array(each))
        for each in onnx.load_from_string(graph).graph.initializer
    }
    sizes = {tuple(tensor.shape): tensor for tensor in weights.values()}
    image = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        inner = module(torch.conv2d(image, sizes[16, 1, 1, 1]))
        expected = torch.conv2d(inner, sizes[16, 24, 2, 2], stride=8)
    torch.testing.assert_close(run_onnx(graph, [image])[0], expected, rtol=1e-4, atol=1e-4)


def optimised(graph: bytes, path: object) -> Counter[str]:
    """The operators that ONNX Runtime makes of a graph."""
    import onnx
    from onnxruntime import InferenceSession, SessionOptions

    options = SessionOptions()
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 3
    InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(path).graph.node)


@pytest.mark.parametrize("what", ["conv", "strided", "depthwise", "max pool", "global pool", "add"])
def test_in_a_chain_onnxruntime_reorders_nothing_for_the_layer(what, tmp_path):
    layer = CHAINED[what]
    graphs = chain_graphs(layer, layer.build(), 2, first=False)
    found, neighbours = (optimised(graph, tmp_path / "graph.onnx") for graph in graphs)
    for reorder in ("ReorderInput", "ReorderOutput"):
        assert found[reorder] == neighbours[reorder]


def kernels(program_graph: bytes) -> list[tuple[str, str, tuple[int, ...]]]:
    """Type, layout and shape of every step that OpenVINO makes of a graph."""
    import openvino

    core = openvino.Core()
    steps = core.compile_model(core.read_model(program_graph), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = []
    for step in steps.get_runtime_model().get_ordered_ops():
        about = step.get_rt_info()
        kind = about["layerType"].astype(str)
        if kind not in ("Const", "Output"):
            found.append((kind, about["outputLayouts"].astype(str), tuple(step.output(0).shape)))
    return found


@pytest.mark.parametrize("layer", CHAINED.values(), ids=CHAINED.keys())
def test_in_a_chain_openvino_computes_the_same_head(layer):
    first = layer is CHAINED["of the image"]
    found, neighbours = (kernels(graph) for graph in chain_graphs(layer, layer.build(), 2, first=first))
    head = 2 if first else 3 if layer.op != "linear" else 2  # the input, its reorder, the convolution
    assert found[:head] == neighbours[:head]


def test_equal_outputs_have_no_difference_and_close_ones_a_small_one():
    outputs = torch.tensor([[1.0, -100.0]])
    assert largest_difference(outputs, outputs, "it") == 0
    assert largest_difference(outputs, outputs + 0.0078125, "it") == 0.0078125  # 1e-4 x 100 is allowed


@pytest.mark.parametrize("found", [[[1.02, -100.0]], [[float("nan"), -100.0]], [[1.0]]])
def test_other_outputs_are_refused(found):
    with pytest.raises(ValueError, match="PyTorch"):
        largest_difference(torch.tensor([[1.0, -100.0]]), torch.tensor(found), "it")


def test_what_differs_may_be_larger_with_fewer_digits():
    assert tolerance(Target()) == 1e-4
    assert tolerance(Target(precision="bf16")) == 8 / 128
    assert tolerance(Target(precision="fp16")) == tolerance(Target(device="cuda")) == 8 / 1024  # TF32 has 10 digits too


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", ["eager", "cuda_graph", "compiled"])
def test_on_cuda_a_program_computes_what_the_cpu_computes(name, precision, network):
    runtime = opened(name, device="cuda", precision=precision)
    images, other = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    with runtime.session():
        program = runtime.compile(network, (images,))
        program.run()
        with torch.no_grad():
            expected = network.eval()(other)
        difference = (program.outputs(other) - expected).abs().max()
    assert difference <= tolerance(runtime.target) * expected.abs().max()
    assert isinstance(runtime.timer(), CudaTimer)
    assert runtime.describe()["gpu"]


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["eager", "cuda_graph"])
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS.keys())
def test_every_layer_runs_on_cuda(name, layer):
    program = opened(name, device="cuda").compile_layer(layer)
    program.run()
    assert program.outputs(*layer.example(2)).isfinite().all()


@pytest.mark.gpu
def test_graphs_that_share_memory_do_not_disturb_each_other():
    runtime = opened("cuda_graph", device="cuda")
    programs = [runtime.compile_layer(LAYERS["conv, norm, relu"]) for _ in range(3)]
    images = CONV.example(2)
    before = [program.outputs(*images) for program in programs]
    for program in reversed(programs):
        program.run()
    for program, expected in zip(programs, before, strict=True):
        torch.testing.assert_close(program.outputs(*images), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["onnxruntime", "tensorrt"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_onnxruntimes_gpu_providers_compute_what_pytorch_computes(name, precision, network):
    provider = {"onnxruntime": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}[name]
    if provider not in pytest.importorskip("onnxruntime").get_available_providers():
        pytest.skip(f"this build of ONNX Runtime has no {provider}")
    runtime = opened(name, device="cuda", precision=precision)
    runtime.compile(network, (torch.randn(2, 3, 8, 8),)).run()  # compiling has compared the outputs
    runtime.compile_layer(CONV).run()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
def test_more_programs_than_a_compile_cache_holds_are_all_compiled():
    import torch._dynamo.config as dynamo

    runtime = opened("compiled")
    with dynamo.patch(recompile_limit=2, fail_on_recompile_limit_hit=True):
        programs = [
            runtime.compile_layer(Layer("linear", 3, width, (1, 1), activation="relu")) for width in (4, 5, 6, 7)
        ]
        for width, program in enumerate(programs, start=4):
            assert program.outputs(torch.randn(2, 3)).shape == (2, width)


# -- files, and networks with several outputs --------------------------------------------------------------------------


class Pair(nn.Module):
    """Two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.up, self.last = nn.Conv2d(3, 4, 3, 2, 1), nn.ConvTranspose2d(4, 2, 2, 2), nn.Linear(4, 5)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = self.conv(images).relu()
        return self.last(x.mean((2, 3))), self.up(x)


@pytest.mark.parametrize("runtime", ["eager", "onnxruntime"])
def test_a_network_of_two_outputs_runs_and_is_checked(runtime: str) -> None:
    target = Target(runtime=runtime, threads=1, batch=2, shapes=((3, 8, 8),))
    images = torch.randn(2, 3, 8, 8)
    opened, net = open_runtime(target), Pair().eval()
    with opened.session(), torch.no_grad():
        torch.testing.assert_close(opened.compile(net, (images,)).outputs(images), net(images)[0], atol=1e-5, rtol=1e-4)


def test_a_file_runs_as_it_is_at_the_targets_batch(tmp_path: Path) -> None:
    path, net = tmp_path / "pair.onnx", Pair().eval()
    path.write_bytes(network_graph(net, (torch.randn(2, 3, 8, 8),), dynamic=True))
    target = Target(runtime="onnxruntime", threads=1, batch=3, shapes=((3, 8, 8),))
    found, images = OnnxFile(path, 3), torch.randn(3, 3, 8, 8)
    assert [tuple(each.shape) for each in found.example()] == [(3, 3, 8, 8)]
    assert found.count == sum(parameter.numel() for parameter in net.parameters())
    assert found.macs == 9 * 3 * 4 * 16 + 4 * 4 * 2 * 16 + 4 * 5
    program = open_runtime(target).compile(found, ())
    with torch.no_grad():
        torch.testing.assert_close(program.outputs(images), net(images)[0], atol=1e-5, rtol=1e-4)
    assert program.rebuild is not None
    program.rebuild().run()


def test_a_file_that_cannot_be_measured_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    path = tmp_path / "pair.onnx"
    path.write_bytes(network_graph(Pair().eval(), (torch.randn(2, 3, 8, 8),), dynamic=True))
    for name, runtime, said in (
        ("none.onnx", "onnxruntime", "there is no file "),
        ("broken.onnx", "onnxruntime", "is no ONNX file that can be read"),
        (
            "pair.onnx",
            "eager",
            "is an ONNX file, which eager PyTorch cannot run; give --runtime onnxruntime or openvino",
        ),
    ):
        assert main(["measure", str(tmp_path / name), "--runtime", runtime, "--threads", "1"]) == 2
        err = capsys.readouterr().err
        assert said in err and "Traceback" not in err


def test_a_file_that_opens_and_cannot_be_run_says_why(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
    model = onnx.load_from_string(network_graph(net.eval(), (torch.randn(1, 3, 8, 8),), dynamic=False))
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    next(each for each in conv.attribute if each.name == "kernel_shape").ints[:] = [1, 5]
    del model.graph.value_info[:]
    onnx.save(model, tmp_path / "odd.onnx")
    target = Target(runtime="onnxruntime", threads=1, batch=1, shapes=((3, 8, 8),))
    with pytest.raises(UserError, match=r"odd\.onnx.*kernel_shape"):
        open_runtime(target).compile(OnnxFile(tmp_path / "odd.onnx", 1), ())
