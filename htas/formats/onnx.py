"""ONNX graphs as bytes: of a network through PyTorch's exporter, and of layers and most networks directly.

The exporter takes half a second and more, and seconds for a deep network. A survey of hundreds of layers cannot afford
that, nor can a calibration and a search, which measure dozens of networks. A network is written step by step from its
torch.fx graph, with the operators that the exporter would write (a test compares them), in a tenth of the time; one
with any other step is left to the exporter. Files for the user are always the exporter's.
"""

import logging
import operator
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from htas.data.split import Shape
from htas.errors import UserError
from htas.graph.layer import Layer, Sizes, Sum
from htas.graph.modes import copied
from htas.timing.allocator import collector_off

OPSET = 20
IR_VERSION = 9
"""The oldest that has OPSET, so that older runtimes read the graph."""
TAIL = 16
"""Channels that a chain ends in: whole blocks of 8 (AVX2) and of 16 (AVX-512)."""
FUNCTIONS: Mapping[Any, str] = {
    operator.add: "Add", torch.add: "Add", operator.mul: "Mul", torch.mul: "Mul",
    F.relu: "Relu", torch.relu: "Relu", "relu": "Relu",
}  # fmt: skip
"""Functions and methods of a network that are written as one operator."""
ACTIVATIONS: Mapping[type[nn.Module], str] = {
    nn.ReLU: "Relu", nn.Hardswish: "HardSwish", nn.GELU: "Gelu", nn.Sigmoid: "Sigmoid", nn.Tanh: "Tanh",
}  # fmt: skip
"""Those that are one operator without attributes."""
EXPORTED = (nn.modules.conv._ConvTransposeNd, nn.GELU, nn.LeakyReLU, nn.ELU)
"""Modules that are written in a layer only: in a network they may have options, or become part of others."""

Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


class _Unknown(Exception):
    """A step that is not known here."""


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
    inputs = [writer.input(name, shape) for name, shape in zip(names, layer.shapes(batch), strict=True)]
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
    heads = [_head(writer, layer, shape, first) for shape in layer.shapes(batch)]
    lasts = heads if module is None else [_layer(writer, layer, module, heads)] * len(heads)
    channels, size = (layer.inputs, layer.size) if module is None else (layer.outputs, layer.output_size)
    if layer.op == "conv" and set(layer.kernel) == {1} != set(layer.stride):
        # a second reader, or OpenVINO computes only the pixels of the head that the layer takes
        writer.output(_tail(writer, heads[0], layer.inputs, layer.size))
    for last in lasts:
        writer.output(last if layer.op == "linear" else _tail(writer, last, channels, size))
    return writer.content()


def _head(writer: "Writer", layer: Layer, shape: Shape, first: bool) -> str:
    name = f"input{len(writer.inputs)}"
    if first:
        return writer.input(name, shape)
    if layer.op == "linear":
        return writer.node("Relu", [writer.input(name, shape)])
    batch, channels, *size = shape
    weight = writer.constant(torch.randn(channels, 1, *(1 for _ in size)))
    return writer.node("Conv", [writer.input(name, (batch, 1, *size)), weight])


def _tail(writer: "Writer", last: str, channels: int, size: Sizes) -> str:
    # not 1x1: OpenVINO moves the stride of a 1x1 convolution into the layer before it
    kernel = [min(side, 2) for side in size]
    weight = writer.constant(torch.randn(TAIL, channels, *kernel))
    return writer.node("Conv", [last, weight], kernel_shape=kernel, strides=size)


def _layer(writer: "Writer", layer: Layer, module: nn.Module, inputs: list[str]) -> str:
    """The operator, then its norm and activation; the name of what comes out."""
    last = writer.node("Add", inputs) if layer.op == "add" else inputs[0]
    for part in module.modules():
        if not isinstance(part, nn.Sequential | Sum):
            last = _module(writer, part, last, len(layer.shapes(1)[0]))
    return last


def is_written(model: nn.Module, example: tuple[Tensor, ...]) -> bool:
    """Whether a network is written here, for inputs like `example`, [N, *shape] each, and not by the slow exporter."""
    return written_graph(copied(model).eval().cpu(), example) is not None


def static_graph(model: nn.Module, example: tuple[Tensor, ...]) -> bytes:
    """A network in eval mode as one self-contained ONNX file for inputs of exactly the shapes of `example`,
    [N, *shape] each: written here, or by PyTorch's exporter where a step is not known here.

    Raises UserError where PyTorch cannot export the network.
    """
    return written_graph(model, example) or network_graph(model, example, dynamic=False)


def written_graph(model: nn.Module, example: tuple[Tensor, ...]) -> bytes | None:
    """A network in eval mode as ONNX for inputs of exactly the shapes of `example`, [N, *shape] each; None for an
    unknown step."""
    if any(part._forward_hooks or part._forward_pre_hooks for part in model.modules()):
        return None  # a graph of steps would lack the hooks
    try:
        traced = fx.symbolic_trace(model)
        with torch.no_grad():
            ShapeProp(traced).propagate(*example)
        return _write(traced, example)
    except Exception:  # the exporter may succeed, or its error is the one to show
        return None


def _write(traced: fx.GraphModule, example: tuple[Tensor, ...]) -> bytes:
    writer = Writer(example[0].dtype)
    names: dict[fx.Node, str] = {}
    inputs = iter(example)
    for node in traced.graph.nodes:
        match node.op:
            case "placeholder":
                names[node] = writer.input(f"input{len(writer.inputs)}", next(inputs).shape)
            case "output":
                writer.output(names[_only(node)])
            case "call_module":
                names[node] = _called_module(writer, traced.get_submodule(str(node.target)), node, names)
            case "call_function" | "call_method":
                names[node] = _called_function(writer, node, names)
            case _:
                raise _Unknown(node.op)
    return writer.content()


def _only(node: fx.Node) -> fx.Node:
    """The one argument of a step that has no other."""
    if len(node.args) != 1 or node.kwargs or not isinstance(node.args[0], fx.Node):
        raise _Unknown(node)
    return node.args[0]


def _check_overwritten(source: fx.Node, inplace: bool) -> None:
    """Raise where a value that is overwritten in place has another reader, which would see the new values."""
    if inplace and len(source.users) > 1:
        raise _Unknown(source)


def _shape(node: fx.Node) -> torch.Size:
    shape: torch.Size = node.meta["tensor_meta"].shape
    return shape


def _called_module(writer: "Writer", module: nn.Module, node: fx.Node, names: Mapping[fx.Node, str]) -> str:
    source = _only(node)
    name, rank = names[source], len(_shape(source))
    _check_overwritten(source, getattr(module, "inplace", False))
    match module:
        case nn.Identity() | nn.modules.dropout._DropoutNd() if not module.training:
            return name
        case nn.modules.batchnorm._BatchNorm() if _norm_after(source) is module:
            return name
        case nn.modules.pooling._AdaptiveAvgPoolNd() if set(_shape(node)[2:]) == {1} and rank == _rank(module):
            axes = writer.constant(-torch.arange(1, rank - 1))
            return writer.node("ReduceMean", [name, axes], keepdims=1)
        case nn.Flatten() if module.start_dim == 1 and module.end_dim == -1:
            return _flat(writer, name, node)
    windowed = isinstance(
        module, nn.modules.conv._ConvNd | nn.modules.pooling._MaxPoolNd | nn.modules.pooling._AvgPoolNd
    )
    if windowed and rank != _rank(module):
        raise _Unknown(module)  # PyTorch takes it for an input without a batch
    if isinstance(module, EXPORTED) or (isinstance(module, nn.Linear) and rank != 2):
        raise _Unknown(module)
    return _module(writer, module, name, rank, _norm_after(node))


def _called_function(writer: "Writer", node: fx.Node, names: Mapping[fx.Node, str]) -> str:
    sources = [each for each in node.args if isinstance(each, fx.Node)]
    if node.target in (torch.flatten, "flatten") and len(sources) == 1 and node.args[1:] == (1,) and not node.kwargs:
        return _flat(writer, names[sources[0]], node)
    if node.target not in FUNCTIONS or len(sources) < len(node.args) or node.kwargs.keys() - {"inplace"}:
        raise _Unknown(node.target)
    _check_overwritten(sources[0], bool(node.kwargs.get("inplace")))
    return writer.node(FUNCTIONS[node.target], [names[each] for each in sources])


def _norm_after(node: fx.Node) -> Norm | None:
    """The norm that a convolution feeds alone, which becomes part of it."""

    def called(step: fx.Node) -> nn.Module | None:
        owner = step.graph.owning_module
        return owner.get_submodule(str(step.target)) if owner is not None and step.op == "call_module" else None

    if not isinstance(called(node), nn.Conv1d | nn.Conv2d | nn.Conv3d) or len(node.users) != 1:
        return None
    norm = called(next(iter(node.users)))
    return norm if isinstance(norm, Norm) and _is_known(norm) else None


def _flat(writer: "Writer", name: str, node: fx.Node) -> str:
    """All but the first dimension as one."""
    return writer.node("Reshape", [name, writer.constant(torch.tensor(_shape(node)))], allowzero=1)


def _module(writer: "Writer", module: nn.Module, name: str, rank: int, norm: Norm | None = None) -> str:
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
        case nn.BatchNorm1d() | nn.BatchNorm2d() | nn.BatchNorm3d() if _is_known(module):
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
        case nn.modules.pooling._AdaptiveAvgPoolNd(output_size=1) if rank == _rank(module):
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
        case _ if type(module) in ACTIVATIONS:
            return writer.node(ACTIVATIONS[type(module)], [name])
        case _:
            raise _Unknown(module)


def _folded(writer: "Writer", conv: nn.modules.conv._ConvNd, norm: Norm | None) -> list[str]:
    """Weight and bias of a convolution and the norm after it, without a bias of zeros; their names."""
    weight: Tensor = conv.weight
    bias = torch.zeros(conv.out_channels, device=weight.device) if conv.bias is None else conv.bias
    if norm is not None:
        assert norm.running_mean is not None and norm.running_var is not None
        scale = norm.weight.float() * torch.rsqrt(norm.running_var.float() + norm.eps)
        weight = weight.float() * scale.view(-1, *(1 for _ in weight.shape[1:]))
        bias = norm.bias.float() + (bias.float() - norm.running_mean.float()) * scale
    return [writer.constant(tensor) for tensor in ([weight, bias] if bool(bias.any()) else [weight])]


def _is_known(norm: Norm) -> bool:
    return norm.affine and norm.running_mean is not None


def _rank(module: nn.Module) -> int:
    """Number of dimensions of the tensors that a convolution or pool takes in batches: two more than its name says."""
    names = (kind.__name__ for kind in type(module).__mro__ if kind.__module__.startswith("torch.nn"))
    return next(int(name[-2]) + 2 for name in names if name[-2:] in ("1d", "2d", "3d"))


def _each(size: Any, module: nn.Module) -> tuple[int, ...]:
    """A number for each dimension of the pixels."""
    return tuple(size) if isinstance(size, tuple | list) else (size,) * (_rank(module) - 2)


def _window(module: nn.Module) -> Mapping[str, tuple[int, ...]]:
    """The attributes of a convolution, or of a pool."""
    sizes = (module.kernel_size, module.stride, module.padding)
    kernel, stride, padding = (_each(size, module) for size in sizes)
    return {"kernel_shape": kernel, "strides": stride, "pads": padding * 2}


class Writer:
    """Collects inputs, nodes and weights; every node has one output, named after its number."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

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
        self.nodes.append(helper.make_node(op, list(inputs), [output], **attributes))
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
