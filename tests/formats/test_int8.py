"""Graphs in int8: every layer that has a kernel for it is one, alone, between neighbours and in networks."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnxruntime.quantization import quantize_static
from torch import Tensor, nn
from torchvision.models import mobilenet_v2, resnet18

from htas.errors import UserError
from htas.formats.export import export
from htas.formats.int8 import check_images, feeds_of, left_in_fp32, needs_seven_bits, quantize, random_feed
from htas.formats.int8_outliers import fp32_nodes
from htas.formats.onnx import chain_graph, layer_graph, network_graph
from htas.formats.onnx_file import OnnxFile
from htas.formats.onnx_network import static_graph
from htas.graph.layer import Layer
from htas.models.cifar_resnet import CifarResNet
from htas.runtimes import open_runtime
from htas.timing.target import Target, instructions, least_instructions

LAYERS = {
    "conv": (Layer("conv", 8, 16, (8, 8), (3, 3), padding=(1, 1)), "QLinearConv"),
    "conv, norm, relu": (
        Layer("conv", 8, 16, (8, 8), (3, 3), padding=(1, 1), norm=True, activation="relu"), "QLinearConv",
    ),
    "strided": (Layer("conv", 8, 16, (8, 8), (3, 3), (2, 2), padding=(1, 1), activation="relu6"), "QLinearConv"),
    "depthwise": (
        Layer("conv", 16, 16, (8, 8), (3, 3), padding=(1, 1), groups=16, norm=True, activation="relu6"), "QLinearConv",
    ),
    "add": (Layer("add", 16, 16, (8, 8), activation="relu"), "QLinearAdd"),
    "average": (Layer("avg_pool", 16, 16, (8, 8), (2, 2), (2, 2)), "QLinearAveragePool"),
    "linear": (Layer("linear", 16, 10, ()), "QGemm"),
}  # fmt: skip


def operators(graph: bytes, folder: Path) -> Counter[str]:
    """What ONNX Runtime makes of a graph."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(folder / "optimised.onnx"), 3
    onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_one_integer_operator(name: str, tmp_path: Path) -> None:
    layer, operator = LAYERS[name]
    module = layer.build()
    alone = operators(quantize(layer_graph(layer, module, 2)), tmp_path)
    assert name == "average" or (
        alone[operator] == 1 and not alone.keys() & {"Conv", "Gemm", "Add", "BatchNormalization", "Relu", "Clip"}
    )
    with_it, without = (
        operators(quantize(chain_graph(layer, part, 2, first=False)), tmp_path) for part in (module, None)
    )
    with_it.subtract(without)
    assert with_it[operator] == 1
    if name != "linear":  # which has no neighbours to be quantized with
        more = {op for op, count in with_it.items() if count > 0}
        assert more == {operator}, "its neighbours are int8 too: nothing is converted between them"


@pytest.mark.parametrize(
    "build", [lambda: CifarResNet(20).build(10), resnet18, mobilenet_v2], ids=["cifar", "resnet18", "mobilenet_v2"]
)
def test_every_convolution_of_a_network_is_an_integer_one(build, tmp_path: Path) -> None:
    network = build().eval()
    graph = static_graph(network, (torch.zeros(1, 3, 64, 64),))
    content = quantize(graph)
    found = operators(content, tmp_path)
    convolutions = sum(isinstance(part, nn.Conv2d) for part in network.modules())
    assert found["QLinearConv"] == convolutions and not found["Conv"] and not left_in_fp32(content)
    assert found["QuantizeLinear"] <= 2 and found["DequantizeLinear"] <= 2
    assert len(content) < 0.5 * len(graph)


def test_ranges_of_activations_do_not_change_which_operators_run(tmp_path: Path) -> None:
    """So that networks without data are as fast as those that are calibrated."""
    graph = static_graph(CifarResNet(8).build(10).eval(), (torch.zeros(2, 3, 32, 32),))
    images = 5 + 20 * np.random.default_rng(0).random((2, 3, 32, 32), np.float32)
    one, other = quantize(graph), quantize(graph, feeds_of(graph, [[images], [images / 3]]))
    assert one != other and operators(one, tmp_path) == operators(other, tmp_path)


class Upwards(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 8, 3, 2, 1), nn.ConvTranspose2d(8, 4, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x).relu())  # type: ignore[no-any-return]


class Outlying(nn.Module):
    """A step between two convolutions that puts values among activations, or cuts them off."""

    def __init__(self, step: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.step = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 64, 1), step

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.step(self.first(x)))  # type: ignore[no-any-return]


def padded(value: float) -> Callable[[Tensor], Tensor]:
    return lambda x: F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=value), 3, 2)


def masked(value: float, *, added: bool) -> Callable[[Tensor], Tensor]:
    """Pixels that attend to those before them."""
    mask = torch.ones(64, 64).triu(1).bool()

    def step(x: Tensor) -> Tensor:
        pixels = x.flatten(2).transpose(1, 2)
        scores = pixels @ pixels.transpose(1, 2)
        scores = scores + mask * value if added else scores.masked_fill(mask, value)
        return (scores.softmax(-1) @ pixels).transpose(1, 2).unflatten(2, (8, 8))

    return step


def off(content: bytes, network: nn.Module, images: Tensor) -> float:
    """Distance of what ONNX Runtime computes from PyTorch, as a share of the outputs."""
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    outputs = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: images.numpy()})[0])
    with torch.no_grad():
        expected = network(images)
    return float((outputs - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    ("step", "kinds"),
    [
        pytest.param(padded(-np.inf), {"Pad", "MaxPool"}, id="padded with infinity"),
        pytest.param(padded(-1e4), {"Pad", "MaxPool"}, id="padded"),
        pytest.param(masked(-np.inf, added=False), {"Where", "Softmax"}, id="masked with infinity"),
        pytest.param(masked(-1e9, added=True), {"Add", "Softmax"}, id="a mask added"),
        pytest.param(lambda x: x.clamp(min=0.5), {"Clip"}, id="clamped from below"),
        pytest.param(nn.Hardtanh(2, 4), {"Clip"}, id="hardtanh"),
        pytest.param(lambda x: x.clamp(max=-0.1), {"Clip"}, id="clamped from above"),
        pytest.param(padded(-1.0), set(), id="padded with little"),
        pytest.param(nn.ReLU6(), set(), id="relu6"),
    ],
)
def test_values_far_outside_of_activations_stay_in_fp32(step: Callable[[Tensor], Tensor], kinds: set[str]) -> None:
    torch.manual_seed(0)
    network, images = Outlying(step).eval(), torch.randn(16, 3, 8, 8)
    graph = static_graph(network, (images,))
    feeds, model = feeds_of(graph, [[images.numpy()]]), onnx.load_from_string(graph)
    names = fp32_nodes(model, feeds)
    assert {node.op_type for node in model.graph.node if node.name in names} == kinds
    content = quantize(graph, feeds, seven_bits=True)
    assert off(content, network, images) < 0.04 and not left_in_fp32(content)


def test_neither_biases_nor_positions_are_outliers() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Linear(8, 8), nn.Linear(8, 4)
            self.positions = nn.Parameter(torch.randn(5, 8))
            nn.init.constant_(self.head.bias, 100.0)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.embed(x) + self.positions)  # type: ignore[no-any-return]

    model = onnx.load_from_string(static_graph(Tokens().eval(), (torch.randn(2, 5, 8),)))
    assert fp32_nodes(model, [random_feed(model)]) == []


class Tied(nn.Module):
    """A decoder with the weights of its encoder, whose channels are of unlike sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 16, 3, 2, 1), nn.Linear(256, 64, bias=False)
        with torch.no_grad():
            self.conv.weight *= torch.logspace(-2, 0, 16).view(-1, 1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.conv(x).relu()
        rows = F.linear(self.linear(maps.flatten(1)), self.linear.weight.t())
        return F.conv_transpose2d(rows.view_as(maps), self.conv.weight, None, 2, 1, 1)


def test_tied_weights_have_scales_for_the_channels_of_each_reader() -> None:
    torch.manual_seed(0)
    network, images = Tied().eval(), torch.randn(16, 3, 8, 8)
    graph = static_graph(network, (images,))
    content = quantize(graph, feeds_of(graph, [[images.numpy()]]), seven_bits=True)
    assert off(content, network, images) < 0.04 and len(content) < len(graph)


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.up, self.last = (
            nn.Conv2d(3, 16, 3),
            nn.ConvTranspose2d(16, 8, 2, 2, groups=4),
            nn.Conv2d(8, 4, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.up(self.conv(x).relu()).relu())  # type: ignore[no-any-return]


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_groups_of_a_transposed_convolution_are_quantized(runtime: str) -> None:
    torch.manual_seed(0)
    network, images = Grouped().eval(), torch.randn(8, 3, 8, 8)
    target = Target(runtime=runtime, precision="int8", batch=8, threads=1, shapes=((3, 8, 8),))
    program = open_runtime(target).deploy(network, (images,), (images,))
    with torch.no_grad():
        expected = network(images)
    assert float((program.outputs(images) - expected).norm() / expected.norm()) < 0.04
    assert ("up" in program.remark) == (runtime == "onnxruntime")


def test_the_layer_at_fault_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(model: onnx.ModelProto, path: Path, *others: object, **options: object) -> None:
        if any(node.op_type == "ConvTranspose" for node in model.graph.node):
            raise ValueError("operands could not be broadcast")
        quantize_static(model, path, *others, **options)

    images = torch.randn(12, 3, 8, 8)
    monkeypatch.setattr("onnxruntime.quantization.quantize_static", refuse)
    target = Target(runtime="onnxruntime", precision="int8", batch=4, threads=1, shapes=((3, 8, 8),))
    with pytest.raises(UserError, match=r"quantizer fails with this network \(ValueError: op.*\); export it in fp32"):
        export(Grouped(), images[:4], tmp_path / "net.onnx", [images])
    with pytest.raises(UserError, match=r"ONNX Runtime cannot run layer 'up' \(ConvTranspose2d\) in int8"):
        open_runtime(target).deploy(Grouped(), (images[:4],), (images,))


class Joined(nn.Module):
    """A norm behind a concatenation, as in DenseNet, and one of vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)])
        self.norm, self.conv, self.flat = nn.BatchNorm2d(16), nn.Conv2d(16, 8, 3), nn.BatchNorm1d(8)
        for norm in (self.norm, self.flat):
            nn.init.uniform_(norm.running_mean)  # type: ignore[arg-type]
            nn.init.uniform_(norm.running_var, 0.5, 2.0)  # type: ignore[arg-type]
            nn.init.uniform_(norm.weight, 0.5, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        joined = torch.cat([conv(x) for conv in self.convs], 1)
        return self.flat(self.conv(self.norm(joined).relu()).mean((2, 3)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_norm_without_a_convolution_before_it_is_an_integer_one(runtime: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, images = Joined().eval(), torch.randn(8, 3, 12, 12)
    target = Target(runtime=runtime, precision="int8", batch=8, threads=1, shapes=((3, 12, 12),))
    with torch.no_grad():
        expected = network(images)
    outputs = open_runtime(target).deploy(network, (images,), (images,)).outputs(images)  # OpenVINO ended the process
    assert (outputs - expected).abs().max() < 0.05 * expected.abs().max()
    found = operators(quantize(static_graph(network, (images,))), tmp_path)
    assert found["QLinearConv"] == 4 and found["BatchNormalization"] == 1, "that of vectors stays"


def test_what_stays_in_fp32_is_named(tmp_path: Path) -> None:
    images = (torch.randn(1, 3, 8, 8),)
    content = quantize(static_graph(Upwards().eval(), images))
    target = Target(runtime="onnxruntime", precision="int8", batch=1, threads=1, shapes=((3, 8, 8),))
    remarks = [
        open_runtime(replace(target, runtime=name)).deploy(Upwards(), images, images).remark
        for name in ("onnxruntime", "openvino")
    ]
    assert remarks == ["Not quantized, since ONNX Runtime has no such layer in int8: up.", ""]
    assert operators(content, tmp_path)["ConvTranspose"] == 1
    # what OpenVINO runs
    core = pytest.importorskip("openvino").Core()
    compiled = core.compile_model(core.read_model(content), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    kinds = [each.get_rt_info() for each in compiled.get_runtime_model().get_ops()]
    assert [each["runtimePrecision"] for each in kinds if each["layerType"] == "Deconvolution"] == ["u8"]


def test_weights_have_seven_bits_where_sums_would_overflow() -> None:
    assert needs_seven_bits(["sse2", "avx2"]) and not needs_seven_bits(["sse2", "avx2", "avx512_vnni"])
    assert not needs_seven_bits(["asimd", "neon"]) and not needs_seven_bits([])
    assert needs_seven_bits(least_instructions("x86_64")) and needs_seven_bits(least_instructions("AMD64"))
    assert not needs_seven_bits(least_instructions("arm64"))
    layer = LAYERS["conv"][0]
    module = layer.build()
    for seven, most in ((True, 64), (False, 127)):
        model = onnx.load_from_string(quantize(layer_graph(layer, module, 1), seven_bits=seven))
        weights = [onnx.numpy_helper.to_array(each) for each in model.graph.initializer if len(each.dims) == 4]
        assert [np.abs(each.astype(int)).max() for each in weights] == [most]


def by_hand(opset: int, dtype: type[np.floating] = np.float32) -> onnx.ModelProto:
    """A file of someone else's: a convolution, ReLU, norm and linear layer, for any batch."""
    rng, helper = np.random.default_rng(0), onnx.helper
    weights = {"kernel": rng.normal(size=(8, 3, 3, 3)), "linear": rng.normal(size=(8, 5))}
    weights |= {name: 0.5 + rng.random(8) for name in ("scale", "shift", "mean", "variance")}
    nodes = [
        helper.make_node("Conv", ["x", "kernel"], ["conv"]),
        helper.make_node("Relu", ["conv"], ["relu"]),
        helper.make_node("BatchNormalization", ["relu", "scale", "shift", "mean", "variance"], ["norm"]),
        helper.make_node("GlobalAveragePool", ["norm"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "linear"], ["y"]),
    ]
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    x, y = (helper.make_tensor_value_info(*each) for each in (("x", kind, ["N", 3, 8, 8]), ("y", kind, ["N", 5])))
    values = [onnx.numpy_helper.from_array(value.astype(dtype), name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "hand", [x], [y], values)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


@pytest.mark.parametrize("opset", [9, 12, 17])
def test_files_of_old_versions_are_quantized(opset: int, tmp_path: Path) -> None:
    model = by_hand(opset)
    if opset == 9:  # its weights are inputs
        model.ir_version = 3
        for each in model.graph.initializer:
            model.graph.input.append(onnx.helper.make_tensor_value_info(each.name, each.data_type, each.dims))
    graph = model.SerializeToString()
    x = np.random.default_rng(1).normal(size=(2, 3, 8, 8)).astype(np.float32)
    content = quantize(graph, [{"x": x}], seven_bits=needs_seven_bits(instructions()))
    expected, found = (
        onnxruntime.InferenceSession(each, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        for each in (graph, content)
    )
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()
    assert operators(content, tmp_path)["QLinearConv"] == 2


def test_weights_of_another_precision_are_refused() -> None:
    with pytest.raises(UserError, match="starts from weights in fp32, and this network has some in float16"):
        quantize(by_hand(17, np.float16).SerializeToString())


def test_what_cannot_be_quantized_is_a_sentence(tmp_path: Path) -> None:
    graph = quantize(layer_graph(LAYERS["conv"][0], LAYERS["conv"][0].build(), 1))
    with pytest.raises(UserError, match="is quantized already; name its file as it is"):
        quantize(graph)
    (tmp_path / "twice.onnx").write_bytes(graph)
    runtime = open_runtime(Target(runtime="onnxruntime", precision="int8", batch=1, threads=1))
    with pytest.raises(UserError, match=r"twice\.onnx: this network is quantized already"):
        runtime.compile(OnnxFile(tmp_path / "twice.onnx", 1), ())
    image = np.random.default_rng(0).random((1, 3, 4, 4), np.float32)
    check_images([np.concatenate([image, 2 * image])], [image])
    for images, why in (
        ([np.repeat(image, 3, axis=0)], "all 3 images that calibrate int8 are alike in input 0"),
        ([np.full_like(image, np.nan)], "not finite, in input 0"),
        ([image, image], "for each of the 1 input, got them for 2"),
        ([image[:0]], "at least one, got 0"),
        ([image[..., 1:]], r"must be \[3, 4, 4\] of float32 in input 0, they are \[3, 4, 3\] of float32"),
        ([image.astype(np.uint8)], r"they are \[3, 4, 4\] of uint8"),
    ):
        with pytest.raises(UserError, match=why):
            check_images(images, [image])
    with pytest.raises(UserError, match="equally many images for each input, and at least one, got 2, 1"):
        check_images([np.concatenate([image, 2 * image]), image], [image, image])


@pytest.mark.parametrize("suffix", [".onnx", pytest.param(".xml", marks=pytest.mark.slow)])
def test_a_quantized_file_is_smaller_and_close(suffix: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = CifarResNet(8).build(10).eval()
    images = torch.randn(40, 3, 32, 32)
    example, path = images[:1], tmp_path / f"net{suffix}"
    assert export(network, example, tmp_path / f"plain{suffix}") < 1e-4
    off = export(network, example, path, [images.double()])
    with torch.no_grad():
        assert 1e-5 < off < 0.5 * float(network(images).abs().max())
    sizes = [sum(each.stat().st_size for each in tmp_path.glob(f"{name}.*")) for name in ("net", "plain")]
    assert sizes[0] < 0.7 * sizes[1]  # the rest is what the graph looks like
    with pytest.raises(UserError, match=r"int8 is written to \.onnx and \.xml"):
        export(network, example, tmp_path / "net.pt2", [images])
    assert not (tmp_path / "net.pt2").exists()


def test_a_file_has_the_bits_of_the_machine_that_runs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network, images = nn.Sequential(*(nn.Conv2d(64, 64, 3) for _ in range(2))).eval(), torch.rand(8, 64, 8, 8)
    path, difference = tmp_path / "net.onnx", {}
    monkeypatch.setattr("htas.formats.export.instructions", lambda: frozenset({"sse2", "avx2"}))
    for seven, most in ((True, 64), (False, 127)):
        difference[most] = export(network, images[:1], path, [images], seven_bits=seven)
        weights = [onnx.numpy_helper.to_array(each) for each in onnx.load(path).graph.initializer]
        assert {np.abs(each.astype(int)).max() for each in weights if each.ndim == 4} == {most}
    assert difference[127] < difference[64], "eight bits are not compared in sums that overflow here"


@pytest.mark.slow
def test_the_exporters_graph_is_quantized_as_well(tmp_path: Path) -> None:
    network = CifarResNet(8).build(10).eval()
    graph = network_graph(network, (torch.zeros(2, 3, 32, 32),), dynamic=True)
    assert not operators(quantize(graph), tmp_path)["Conv"]
