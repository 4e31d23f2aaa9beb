"""ONNX graphs as bytes: of a network through PyTorch's exporter, and of layers directly.

The exporter takes half a second and more, and seconds for a deep network. A survey of hundreds of layers cannot afford
that, so a layer is written here, with the operators that the exporter would write (a test compares them).
"""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from htas.data.split import Shape
from htas.errors import UserError
from htas.graph.layer import Layer, Sizes, Sum
from htas.timing.allocator import collector_off

OPSET = 20
IR_VERSION = 9
"""The oldest that has OPSET, so that older runtimes read the graph."""
AFTER_PATH = ":"
"""Between the path of a module and the number of a step, in the name of a node."""
TAIL = 16
"""Channels that a chain ends in: whole blocks of 8 (AVX2) and of 16 (AVX-512)."""
ACTIVATIONS: Mapping[type[nn.Module], str] = {
    nn.ReLU: "Relu", nn.Hardswish: "HardSwish", nn.Sigmoid: "Sigmoid", nn.Tanh: "Tanh",
}  # fmt: skip
"""Those that are one operator without attributes."""
Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


class Unknown(Exception):
    """A step that is not known here."""


@dataclass(frozen=True)
class Window:
    """How a convolution or a pool looks at its input; a number for each dimension of the pixels."""

    kernel: Sizes
    stride: Sizes
    padding: Sizes
    dilation: Sizes
    output_padding: Sizes
    groups: int = 1

    @staticmethod
    def of(kernel: Sequence[int], **attributes: Any) -> "Window":
        """That of ONNX's attributes, or of some of them; raises Unknown where two sides are padded differently."""
        dims = len(kernel)
        pads = tuple(attributes.get("pads", (0,) * 2 * dims))
        if pads[:dims] != pads[dims:]:
            raise Unknown("other padding on the other side")
        usual = {"strides": (1,) * dims, "dilations": (1,) * dims, "output_padding": (0,) * dims}
        stride, dilation, more = (tuple(attributes.get(name, sizes)) for name, sizes in usual.items())
        return Window(tuple(kernel), stride, pads[:dims], dilation, more, attributes.get("group", 1))

    def sizes(self, before: Sequence[int], *, transposed: bool = False) -> Sizes:
        """Of the output, for an input of these sizes."""
        spans = [
            far * (side - 1) + 1 - 2 * pad
            for far, side, pad in zip(self.dilation, self.kernel, self.padding, strict=True)
        ]
        if transposed:
            steps = zip(before, self.stride, spans, self.output_padding, strict=True)
            return tuple((size - 1) * step + span + more for size, step, span, more in steps)
        return tuple((size - span) // step + 1 for size, step, span in zip(before, self.stride, spans, strict=True))


class GraphWriter(Protocol):
    """Takes steps in ONNX's words and writes them in any format."""

    inputs: list[Any]
    """Those declared so far."""
    path: str
    """Of the module whose steps come now; empty where it has none."""

    @property
    def input_shapes(self) -> list[Shape]:
        """Their shapes, [N, *shape]."""

    def input(self, name: str, shape: Shape) -> str:
        """Declare an input; its name."""

    def output(self, name: str) -> None:
        """Declare that a value is an output."""

    def node(self, op: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Add a step; the name of its output. Raises Unknown where the format has none like it."""

    def constant(self, tensor: Tensor) -> str:
        """Add a constant of any shape; its name."""


def network_graph(model: nn.Module, example: tuple[Tensor, ...], *, dynamic: bool) -> bytes:
    """A network in eval mode as one self-contained ONNX file, for inputs like `example`, [N, *shape] each.

    `dynamic` leaves dimension 0 of the inputs open.
    Raises UserError where PyTorch cannot export the network.
    """
    batch = torch.export.Dim("batch")
    shapes = tuple({0: batch} for _ in example) if dynamic else None
    with quiet(), collector_off():
        try:
            program = torch.onnx.export(model, example, dynamo=True, dynamic_shapes=shapes, verbose=False)
        except Exception as error:  # the exporter raises many kinds
            raise UserError(cannot_export(model, "ONNX", error)) from error
    assert program is not None
    content: bytes = program.model_proto.SerializeToString()
    return content


@contextmanager
def quiet() -> Iterator[None]:
    """Silence for PyTorch's exporters: they warn of what their users cannot change, and print whole graphs."""
    with without_logging(), warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        warnings.simplefilter("ignore")
        yield


@contextmanager
def without_logging() -> Iterator[None]:
    """No messages of any logger."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def cannot_export(model: nn.Module, form: str, error: Exception) -> str:
    """The sentence for a network that PyTorch's exporters refuse."""
    cause = error.__cause__ or error
    reason = str(cause).strip().split("\n", 1)[0]
    return (
        f"PyTorch cannot export this {type(model).__name__} to {form} ({type(cause).__name__}: {reason}); "
        "keep forward() free of Python branches on tensor values and of fixed batch sizes"
    )


def layer_graph(layer: Layer, module: nn.Module, batch: int, dtype: torch.dtype = torch.float32) -> bytes:
    """One layer as ONNX, with the weights of `module`, which layer.build() gave."""
    writer = Writer(dtype)
    write_layer(writer, layer, module, batch)
    return writer.content()


def chain_graph(
    layer: Layer, module: nn.Module | None, batch: int, *, first: bool, dtype: torch.dtype = torch.float32
) -> bytes:
    """The layer between neighbours, or the same neighbours without a module (see `write_chain`), as ONNX."""
    writer = Writer(dtype)
    write_chain(writer, layer, module, batch, first=first)
    return writer.content()


def write_layer(writer: GraphWriter, layer: Layer, module: nn.Module, batch: int) -> None:
    """One layer, with the weights of `module`, which layer.build() gave."""
    names = ["input", "other"] if layer.op == "add" else ["input"]
    inputs = [writer.input(name, shape) for name, shape in zip(names, layer.shapes(batch), strict=True)]
    writer.output(_layer(writer, layer, module, inputs))


def write_chain(writer: GraphWriter, layer: Layer, module: nn.Module | None, batch: int, *, first: bool) -> None:
    """The layer between neighbours, or the same neighbours without a module; `first` where it reads the image.

    A head makes each input of the layer out of one channel, so that it arrives in the memory layout that convolutions
    leave; a tail for each head looks at four pixels of what comes out, so that the layer must leave it as a
    convolution wants it. Both cost next to nothing. A linear layer has no layout: its head is a ReLU, its tail nothing.
    """
    heads = [_head(writer, layer, shape, first) for shape in layer.shapes(batch)]
    lasts = heads if module is None else [_layer(writer, layer, module, heads)] * len(heads)
    channels, size = (layer.inputs, layer.size) if module is None else (layer.outputs, layer.output_size)
    if layer.op == "conv" and set(layer.kernel) == {1} != set(layer.stride):
        # a second reader, or OpenVINO computes only the pixels of the head that the layer takes
        writer.output(_tail(writer, heads[0], layer.inputs, layer.size))
    for last in lasts:
        writer.output(last if layer.op == "linear" else _tail(writer, last, channels, size))


def is_first(layer: Layer, shapes: Sequence[Shape]) -> bool:
    """Whether the layer reads the first of the network's inputs, which have these shapes, and not another layer."""
    return (layer.inputs, *layer.size) == shapes[0]


def _head(writer: GraphWriter, layer: Layer, shape: Shape, first: bool) -> str:
    name = f"input{len(writer.inputs)}"
    if first:
        return writer.input(name, shape)
    if layer.op == "linear":
        return writer.node("Relu", [writer.input(name, shape)])
    batch, channels, *size = shape
    weight = writer.constant(torch.randn(channels, 1, *(1 for _ in size)))
    return writer.node("Conv", [writer.input(name, (batch, 1, *size)), weight])


def _tail(writer: GraphWriter, last: str, channels: int, size: Sizes) -> str:
    # not 1x1: OpenVINO moves the stride of a 1x1 convolution into the layer before it
    kernel = [min(side, 2) for side in size]
    weight = writer.constant(torch.randn(TAIL, channels, *kernel))
    return writer.node("Conv", [last, weight], kernel_shape=kernel, strides=size)


def _layer(writer: GraphWriter, layer: Layer, module: nn.Module, inputs: list[str]) -> str:
    """The operator, then its norm and activation; the name of what comes out."""
    last = writer.node("Add", inputs) if layer.op == "add" else inputs[0]
    for part in module.modules():
        if not isinstance(part, nn.Sequential | Sum):
            last = module_node(writer, part, last, len(layer.shapes(1)[0]))
    return last


def module_node(writer: GraphWriter, module: nn.Module, name: str, rank: int, norm: Norm | None = None) -> str:
    """One module for an input with this many dimensions; the name of what comes out. A `norm` becomes part of it.

    Raises where the module, or an option of it, is not known here.
    """
    match module:
        case nn.modules.conv._ConvNd() if module.padding_mode == "zeros" and not isinstance(module.padding, str):
            transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
            more = {"output_padding": module.output_padding} if transposed else {}
            return writer.node(
                "ConvTranspose" if transposed else "Conv", [name, *_folded(writer, module, norm)],
                dilations=module.dilation, group=module.groups, **_window(module), **more,
            )  # fmt: skip
        case nn.BatchNorm1d() | nn.BatchNorm2d() | nn.BatchNorm3d() if is_known(module):
            tensors = [module.weight, module.bias, module.running_mean, module.running_var]
            weights = [writer.constant(tensor) for tensor in tensors if tensor is not None]
            return writer.node("BatchNormalization", [name, *weights], epsilon=module.eps)
        case nn.Linear() if rank > 2:
            last = writer.node("MatMul", [name, writer.constant(module.weight.t())])
            return last if module.bias is None else writer.node("Add", [last, writer.constant(module.bias)])
        case nn.Linear():
            weights = [writer.constant(tensor) for tensor in (module.weight, module.bias) if tensor is not None]
            return writer.node("Gemm", [name, *weights], transB=1)
        case nn.modules.pooling._MaxPoolNd() if not (module.ceil_mode or module.return_indices):
            return writer.node("MaxPool", [name], dilations=_each(module.dilation, module), **_window(module))
        case nn.modules.pooling._AvgPoolNd() if not (module.ceil_mode or getattr(module, "divisor_override", None)):
            counted = int(bool(module.count_include_pad))
            return writer.node("AveragePool", [name], count_include_pad=counted, **_window(module))
        case nn.modules.pooling._AdaptiveAvgPoolNd(output_size=1) if rank == rank_of(module):
            return writer.node("GlobalAveragePool", [name])
        case nn.ReLU6():
            bounds = [writer.constant(torch.tensor(bound)) for bound in (0.0, 6.0)]
            return writer.node("Clip", [name, *bounds])
        case nn.SiLU():
            return writer.node("Mul", [name, writer.node("Sigmoid", [name])])
        case nn.LeakyReLU():
            return writer.node("LeakyRelu", [name], alpha=module.negative_slope)
        case nn.ELU():
            return writer.node("Elu", [name], alpha=module.alpha)
        case nn.Hardsigmoid():
            return writer.node("HardSigmoid", [name], alpha=1 / 6, beta=0.5)
        case nn.GELU():
            return writer.node("Gelu", [name], approximate=module.approximate)
        case _ if type(module) in ACTIVATIONS:
            return writer.node(ACTIVATIONS[type(module)], [name])
        case _:
            raise Unknown(module)


def _folded(writer: GraphWriter, conv: nn.modules.conv._ConvNd, norm: Norm | None) -> list[str]:
    """Weight and bias of a convolution and the norm after it, without a bias of zeros; their names."""
    weight: Tensor = conv.weight
    bias = torch.zeros(conv.out_channels, device=weight.device) if conv.bias is None else conv.bias
    if norm is not None:
        assert norm.running_mean is not None and norm.running_var is not None
        scale = norm.weight.float() * torch.rsqrt(norm.running_var.float() + norm.eps)
        weight = weight.float() * scale.view(-1, *(1 for _ in weight.shape[1:]))
        bias = norm.bias.float() + (bias.float() - norm.running_mean.float()) * scale
    return [writer.constant(tensor) for tensor in ([weight, bias] if bool(bias.any()) else [weight])]


def is_known(norm: Norm) -> bool:
    return norm.affine and norm.running_mean is not None


def rank_of(module: nn.Module) -> int:
    """Number of dimensions of the tensors that a convolution or pool takes in batches: two more than its name says."""
    names = (kind.__name__ for kind in type(module).__mro__ if kind.__module__.startswith("torch.nn"))
    return next(int(name[-2]) + 2 for name in names if name[-2:] in ("1d", "2d", "3d"))


def _each(size: Any, module: nn.Module) -> tuple[int, ...]:
    """A number for each dimension of the pixels."""
    return tuple(size) if isinstance(size, tuple | list) else (size,) * (rank_of(module) - 2)


def _window(module: nn.Module) -> Mapping[str, tuple[int, ...]]:
    """The attributes of a convolution, or of a pool."""
    sizes = (module.kernel_size, module.stride, module.padding)
    kernel, stride, padding = (_each(size, module) for size in sizes)
    return {"kernel_shape": kernel, "strides": stride, "pads": padding * 2}


class Writer:
    """Collects inputs, nodes and weights; every node has one output, named after its number."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.path = ""
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    @property
    def input_shapes(self) -> list[Shape]:
        """Shapes of the inputs, [N, *shape]."""
        return [tuple(side.dim_value for side in each.type.tensor_type.shape.dim) for each in self.inputs]

    def input(self, name: str, shape: Shape) -> str:
        """Declare an input; its name."""
        self.inputs.append(self._declare(name, shape))
        return name

    def output(self, name: str) -> None:
        """Declare that a value is an output, of whatever shape it has."""
        self.outputs.append(self._declare(name, None))

    def node(self, op: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Add a node; the name of its output."""
        from onnx import helper

        output = f"value{len(self.nodes)}"
        name = f"{self.path}{AFTER_PATH}{len(self.nodes)}" if self.path else ""
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=name, **attributes))
        return output

    def constant(self, tensor: Tensor) -> str:
        """Add a constant of any shape, whose real numbers take the writer's number format; its name."""
        from onnx import numpy_helper

        name = f"weight{len(self.weights)}"
        values = tensor.detach().cpu().to(self.dtype if tensor.is_floating_point() else tensor.dtype)
        self.weights.append(numpy_helper.from_array(values.numpy(), name))
        return name

    def content(self) -> bytes:
        """All of it as one file."""
        from onnx import helper

        graph = helper.make_graph(self.nodes, "layer", self.inputs, self.outputs, self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        content: bytes = model.SerializeToString()
        return content

    def _declare(self, name: str, shape: Shape | None) -> Any:
        from onnx import TensorProto, helper

        kind = TensorProto.FLOAT16 if self.dtype == torch.float16 else TensorProto.FLOAT
        return helper.make_tensor_value_info(name, kind, shape)
