"""ONNX graphs as bytes: of a whole network through PyTorch's exporter, of one layer directly.

The exporter takes half a second and more, which a survey of hundreds of layers cannot afford.
"""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from htas.data.split import Shape
from htas.errors import UserError
from htas.graph.layer import Layer
from htas.timing.allocator import collector_off

OPSET = 20
IR_VERSION = 9
"""The oldest that has OPSET, so that older runtimes read the graph."""
TAIL = 16
"""Channels that a chain ends in: whole blocks of 8 (AVX2) and of 16 (AVX-512)."""

# name of the operator and its attributes; Clip and the two-step SiLU are written out below
_ACTIVATIONS: Mapping[str, tuple[str, Mapping[str, float]]] = {
    "relu": ("Relu", {}),
    "hardswish": ("HardSwish", {}),
    "gelu": ("Gelu", {}),
    "sigmoid": ("Sigmoid", {}),
    "tanh": ("Tanh", {}),
    "leaky_relu": ("LeakyRelu", {"alpha": 0.01}),
    "elu": ("Elu", {"alpha": 1.0}),
    "hardsigmoid": ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}),
}


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
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
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
    names = ["input", "other"] if layer.op == "add" else ["input"]
    inputs = [writer.input(name, shape) for name, shape in zip(names, _shapes(layer, batch), strict=False)]
    writer.output(_layer(writer, layer, module, inputs))
    return writer.content()


def chain_graphs(
    layer: Layer, module: nn.Module, batch: int, *, first: bool, dtype: torch.dtype = torch.float32
) -> tuple[bytes, bytes]:
    """The layer between neighbours, and the same neighbours without it; `first` where it reads the image.

    A head makes each input of the layer out of one channel, so that it arrives in the memory layout that convolutions
    leave; a tail for each head looks at four pixels of what comes out, so that the layer must leave it as a
    convolution wants it. Both cost next to nothing. A linear layer has no layout: its head is a ReLU, its tail nothing.
    """
    both = (_chain(layer, each, batch, first, dtype) for each in (module, None))
    return next(both), next(both)


def is_first(layer: Layer, shapes: Sequence[Shape]) -> bool:
    """Whether the layer reads the first of the network's inputs, which have these shapes, and not another layer."""
    return (layer.inputs, *layer.size) == shapes[0]


def _chain(layer: Layer, module: nn.Module | None, batch: int, first: bool, dtype: torch.dtype) -> bytes:
    writer = Writer(dtype)
    heads = [_head(writer, layer, shape, first) for shape in _shapes(layer, batch)]
    lasts = heads if module is None else [_layer(writer, layer, module, heads)] * len(heads)
    channels, size = (layer.inputs, layer.size) if module is None else (layer.outputs, layer.output_size)
    if layer.op == "conv" and layer.kernel == (1, 1) != layer.stride:
        # a second reader, or OpenVINO computes only the pixels of the head that the layer takes
        writer.output(_tail(writer, heads[0], layer.inputs, layer.size))
    for last in lasts:
        writer.output(last if layer.op == "linear" else _tail(writer, last, channels, size))
    return writer.content()


def _head(writer: "Writer", layer: Layer, shape: list[int], first: bool) -> str:
    name = f"input{len(writer.inputs)}"
    if first:
        return writer.input(name, shape)
    if layer.op == "linear":
        return writer.node("Relu", [writer.input(name, shape)])
    batch, channels, *size = shape
    return writer.node("Conv", [writer.input(name, [batch, 1, *size]), writer.weight(torch.randn(channels, 1, 1, 1))])


def _tail(writer: "Writer", last: str, channels: int, size: tuple[int, int]) -> str:
    # not 1x1: OpenVINO moves the stride of a 1x1 convolution into the layer before it
    kernel = [min(side, 2) for side in size]
    weight = writer.weight(torch.randn(TAIL, channels, *kernel))
    return writer.node("Conv", [last, weight], kernel_shape=kernel, strides=size)


def _shapes(layer: Layer, batch: int) -> list[list[int]]:
    """Of each input."""
    pixels = layer.size if layer.size != (1, 1) else ()
    shape = [batch, *pixels, layer.inputs] if layer.op == "linear" else [batch, layer.inputs, *layer.size]
    return [shape] * (2 if layer.op == "add" else 1)


class Writer:
    """Collects inputs, nodes and weights; every node has one output, named after its number."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def input(self, name: str, shape: Sequence[int]) -> str:
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
        self.nodes.append(helper.make_node(op, list(inputs), [output], **attributes))
        return output

    def weight(self, tensor: Tensor) -> str:
        """Add a constant of any shape, in the writer's number format; returns its name."""
        return self._constant(tensor.detach().cpu().to(self.dtype).numpy())

    def integers(self, values: Sequence[int]) -> str:
        """Add a constant of whole numbers, such as a shape; its name."""
        return self._constant(np.asarray(values, dtype=np.int64))

    def content(self) -> bytes:
        """All of it as one file."""
        from onnx import helper

        graph = helper.make_graph(self.nodes, "layer", self.inputs, self.outputs, self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        content: bytes = model.SerializeToString()
        return content

    def _constant(self, values: NDArray[Any]) -> str:
        from onnx import numpy_helper

        name = f"weight{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def _declare(self, name: str, shape: Sequence[int] | None) -> Any:
        from onnx import TensorProto, helper

        kind = TensorProto.FLOAT16 if self.dtype == torch.float16 else TensorProto.FLOAT
        return helper.make_tensor_value_info(name, kind, shape)


def _layer(writer: Writer, layer: Layer, module: nn.Module, inputs: list[str]) -> str:
    """The operator, then its norm and activation; the name of what comes out."""
    last = _operator(writer, layer, module, inputs)
    if layer.norm:
        last = add_norm(writer, module, last)
    if layer.activation:
        last = add_activation(writer, layer.activation, last)
    return last


def _operator(writer: Writer, layer: Layer, module: nn.Module, inputs: list[str]) -> str:
    window = {"kernel_shape": layer.kernel, "strides": layer.stride, "pads": layer.padding * 2}
    match layer.op:
        case "conv":
            operands = [*inputs, *weights_of(writer, module)]
            return writer.node("Conv", operands, dilations=layer.dilation, group=layer.groups, **window)
        case "conv_transpose":
            operands = [*inputs, *weights_of(writer, module)]
            more = {"dilations": layer.dilation, "output_padding": layer.output_padding}
            return writer.node("ConvTranspose", operands, group=layer.groups, **more, **window)
        case "linear" if layer.size != (1, 1):
            linear = next(part for part in module.modules() if isinstance(part, nn.Linear))
            last = writer.node("MatMul", [*inputs, writer.weight(linear.weight.t())])
            return last if linear.bias is None else writer.node("Add", [last, writer.weight(linear.bias)])
        case "linear":
            return writer.node("Gemm", [*inputs, *weights_of(writer, module)], transB=1)
        case "max_pool":
            return writer.node("MaxPool", inputs, dilations=layer.dilation, **window)
        case "avg_pool":
            return writer.node("AveragePool", inputs, count_include_pad=1, **window)
        case "global_pool":
            return writer.node("GlobalAveragePool", inputs)
        case "add":
            return writer.node("Add", inputs)


def weights_of(writer: Writer, module: nn.Module) -> list[str]:
    """Weight and bias, if it has one, of the first convolution or linear layer in a module; their names."""
    operator = next(part for part in module.modules() if isinstance(part, nn.Conv2d | nn.ConvTranspose2d | nn.Linear))
    return [writer.weight(tensor) for tensor in (operator.weight, operator.bias) if tensor is not None]


def add_norm(writer: Writer, module: nn.Module, last: str) -> str:
    """The first batch norm in a module; the name of what comes out."""
    norm = next(part for part in module.modules() if isinstance(part, _BatchNorm))
    assert norm.running_mean is not None and norm.running_var is not None
    tensors = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    return writer.node("BatchNormalization", [last, *(writer.weight(tensor) for tensor in tensors)], epsilon=norm.eps)


def add_activation(writer: Writer, activation: str, last: str) -> str:
    """An activation by the name that Layer has for it; the name of what comes out."""
    match activation:
        case "relu6":
            bounds = [writer.weight(torch.tensor(bound)) for bound in (0.0, 6.0)]
            return writer.node("Clip", [last, *bounds])
        case "silu":
            return writer.node("Mul", [last, writer.node("Sigmoid", [last])])
        case _:
            op, attributes = _ACTIVATIONS[activation]
            return writer.node(op, [last], **attributes)
