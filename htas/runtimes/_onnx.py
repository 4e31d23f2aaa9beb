"""ONNX graphs as bytes: of a whole network through PyTorch's exporter, of one layer directly.

The exporter takes half a second and more, which a survey of hundreds of layers cannot afford.
"""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from htas.layer import Layer

OPSET = 20
IR_VERSION = 9
"""The oldest that has OPSET, so that older runtimes read the graph."""

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
    """A network in eval mode as one self-contained ONNX file; `dynamic` leaves dimension 0 of the inputs open.

    Raises ValueError where PyTorch cannot export the network.
    """
    batch = torch.export.Dim("batch")
    shapes = tuple({0: batch} for _ in example) if dynamic else None
    with quiet():
        try:
            program = torch.onnx.export(model, example, dynamo=True, dynamic_shapes=shapes, verbose=False)
        except Exception as error:  # the exporter raises many kinds
            raise ValueError(cannot_export(model, "ONNX", error)) from error
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


def layer_graph(layer: Layer, module: nn.Module, batch: int) -> bytes:
    """One layer as ONNX, with the weights of `module`, which layer.build() gave."""
    from onnx import TensorProto, helper

    def declare(name: str, channels: int, size: tuple[int, int]) -> Any:
        shape = [batch, channels] if layer.op == "linear" else [batch, channels, *size]
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    writer = _Writer()
    names = ["input", "other"] if layer.op == "add" else ["input"]
    last = _operator(writer, layer, module, names)
    if layer.norm:
        last = _norm(writer, module, last)
    if layer.activation:
        last = _activation(writer, layer.activation, last)
    graph = helper.make_graph(
        writer.nodes,
        "layer",
        [declare(name, layer.inputs, layer.size) for name in names],
        [declare(last, layer.outputs, layer.output_size)],
        writer.weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    content: bytes = model.SerializeToString()
    return content


class _Writer:
    """Collects nodes and weights; every node has one output, named after its number."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def node(self, op: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Add a node; the name of its output."""
        from onnx import helper

        output = f"value{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [output], **attributes))
        return output

    def weight(self, tensor: Tensor) -> str:
        """Add a constant; its name."""
        from onnx import numpy_helper

        name = f"weight{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(tensor.detach().cpu().numpy(), name))
        return name


def _operator(writer: _Writer, layer: Layer, module: nn.Module, inputs: list[str]) -> str:
    window = {"kernel_shape": layer.kernel, "strides": layer.stride, "pads": layer.padding * 2}
    match layer.op:
        case "conv":
            given = [*inputs, *_weights(writer, module)]
            return writer.node("Conv", given, dilations=layer.dilation, group=layer.groups, **window)
        case "linear":
            return writer.node("Gemm", [*inputs, *_weights(writer, module)], transB=1)
        case "max_pool":
            return writer.node("MaxPool", inputs, dilations=layer.dilation, **window)
        case "avg_pool":
            return writer.node("AveragePool", inputs, count_include_pad=1, **window)
        case "global_pool":
            return writer.node("GlobalAveragePool", inputs)
        case "add":
            return writer.node("Add", inputs)


def _weights(writer: _Writer, module: nn.Module) -> list[str]:
    operator = next(part for part in module.modules() if isinstance(part, nn.Conv2d | nn.Linear))
    return [writer.weight(tensor) for tensor in (operator.weight, operator.bias) if tensor is not None]


def _norm(writer: _Writer, module: nn.Module, last: str) -> str:
    norm = next(part for part in module.modules() if isinstance(part, _BatchNorm))
    assert norm.running_mean is not None and norm.running_var is not None
    tensors = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    return writer.node("BatchNormalization", [last, *(writer.weight(tensor) for tensor in tensors)], epsilon=norm.eps)


def _activation(writer: _Writer, activation: str, last: str) -> str:
    match activation:
        case "relu6":
            bounds = [writer.weight(torch.tensor(bound)) for bound in (0.0, 6.0)]
            return writer.node("Clip", [last, *bounds])
        case "silu":
            return writer.node("Mul", [last, writer.node("Sigmoid", [last])])
        case _:
            op, attributes = _ACTIVATIONS[activation]
            return writer.node(op, [last], **attributes)
