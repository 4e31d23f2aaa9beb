"""A whole network as ONNX, written step by step from its torch.fx graph, where this file knows every step.

PyTorch's exporter takes seconds for a deep network, and a calibration and a search measure dozens; this takes a
tenth of that. It writes the operators that the exporter would (a test compares them); a network with any other step is
left to the exporter. Files for the user are always the exporter's.
"""

import copy
import operator
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from htas.formats.onnx import Writer, add_activation, add_norm, network_graph, weights_of
from htas.graph.layer import ACTIVATIONS

KNOWN = {kind: name for name, kind in ACTIVATIONS.items() if kind not in (nn.GELU, nn.LeakyReLU, nn.ELU)}
"""Activations by their class; those left out have options, which are not looked at."""
FUNCTIONS: Mapping[Any, str] = {
    operator.add: "Add", torch.add: "Add", operator.mul: "Mul", torch.mul: "Mul", F.relu: "Relu", torch.relu: "Relu",
}  # fmt: skip


class _Unknown(Exception):
    """A step that is not known here."""


def is_written(model: nn.Module, example: tuple[Tensor, ...]) -> bool:
    """Whether a network is written here, for inputs like `example`, [N, *shape] each, and not by the slow exporter."""
    return written_graph(copy.deepcopy(model).eval().cpu(), example) is not None


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
                names[node] = writer.input(f"input{len(writer.inputs)}", list(next(inputs).shape))
            case "output":
                writer.output(names[_only(node)])
            case "call_module":
                names[node] = _module(writer, traced.get_submodule(str(node.target)), node, names)
            case "call_function":
                names[node] = _function(writer, node, names)
            case "call_method":
                names[node] = _method(writer, node, names)
            case _:
                raise _Unknown(node.op)
    return writer.content()


def _only(node: fx.Node) -> fx.Node:
    """The one argument of a step that has no other."""
    if len(node.args) != 1 or node.kwargs or not isinstance(node.args[0], fx.Node):
        raise _Unknown(node)
    return node.args[0]


def _alone(source: fx.Node, inplace: bool) -> None:
    """Raise where a value that is overwritten in place has another reader, which would see the new values."""
    if inplace and len(source.users) > 1:
        raise _Unknown(source)


def _shape(node: fx.Node) -> torch.Size:
    shape: torch.Size = node.meta["tensor_meta"].shape
    return shape


def _module(writer: Writer, module: nn.Module, node: fx.Node, names: Mapping[fx.Node, str]) -> str:
    source = _only(node)
    name = names[source]
    if type(module) in KNOWN:
        _alone(source, getattr(module, "inplace", False))
        return add_activation(writer, KNOWN[type(module)], name)
    match module:
        case nn.Identity() | nn.Dropout() | nn.Dropout2d() if not module.training:
            return name
        case nn.Conv2d() if module.padding_mode == "zeros" and not isinstance(module.padding, str):
            return writer.node(
                "Conv", [name, *_folded(writer, module, _norm_after(node))], dilations=module.dilation,
                group=module.groups, kernel_shape=module.kernel_size, strides=module.stride, pads=module.padding * 2,
            )  # fmt: skip
        case nn.BatchNorm1d() | nn.BatchNorm2d() if _is_known(module):
            return name if _norm_after(source) is module else add_norm(writer, module, name)
        case nn.Linear() if len(_shape(source)) == 2:
            return writer.node("Gemm", [name, *weights_of(writer, module)], transB=1)
        case nn.MaxPool2d() if not (module.ceil_mode or module.return_indices):
            window = _window(module.kernel_size, module.stride, module.padding)
            return writer.node("MaxPool", [name], dilations=_pair(module.dilation), **window)
        case nn.AvgPool2d() if not (module.ceil_mode or module.divisor_override):
            window = _window(module.kernel_size, module.stride, module.padding)
            return writer.node("AveragePool", [name], count_include_pad=int(module.count_include_pad), **window)
        case nn.AdaptiveAvgPool2d() if tuple(_shape(node)[2:]) == (1, 1) and len(_shape(node)) == 4:
            return writer.node("ReduceMean", [name, writer.integers([-1, -2])], keepdims=1)
        case nn.Flatten() if module.start_dim == 1 and module.end_dim == -1:
            return _flat(writer, name, node)
        case _:
            raise _Unknown(module)


def _pair(size: Any) -> tuple[int, int]:
    return tuple(size) if isinstance(size, tuple) else (size, size)


def _window(kernel: Any, stride: Any, padding: Any) -> dict[str, tuple[int, ...]]:
    return {"kernel_shape": _pair(kernel), "strides": _pair(stride or kernel), "pads": _pair(padding) * 2}


def _is_known(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> bool:
    return norm.affine and norm.running_mean is not None


def _norm_after(node: fx.Node) -> nn.Module | None:
    """The norm that a convolution feeds alone, which becomes part of it."""
    owner = node.graph.owning_module
    assert owner is not None
    if node.op != "call_module" or not isinstance(owner.get_submodule(str(node.target)), nn.Conv2d):
        return None
    after = list(node.users)
    if len(after) != 1 or after[0].op != "call_module":
        return None
    norm = owner.get_submodule(str(after[0].target))
    return norm if isinstance(norm, nn.BatchNorm2d) and _is_known(norm) else None


def _folded(writer: Writer, conv: nn.Conv2d, norm: nn.Module | None) -> list[str]:
    """Weight and bias of a convolution and the norm after it, without a bias of zeros; their names."""
    weight = conv.weight
    bias = torch.zeros_like(weight[:, 0, 0, 0]) if conv.bias is None else conv.bias
    if norm is not None:
        assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None
        scale = norm.weight.float() * torch.rsqrt(norm.running_var.float() + norm.eps)
        weight = weight.float() * scale[:, None, None, None]
        bias = norm.bias.float() + (bias.float() - norm.running_mean.float()) * scale
    return [writer.weight(tensor) for tensor in ([weight, bias] if bool(bias.any()) else [weight])]


def _flat(writer: Writer, name: str, node: fx.Node) -> str:
    """All but the first dimension as one."""
    return writer.node("Reshape", [name, writer.integers(_shape(node))], allowzero=1)


def _function(writer: Writer, node: fx.Node, names: Mapping[fx.Node, str]) -> str:
    sources = [each for each in node.args if isinstance(each, fx.Node)]
    if node.target is torch.flatten and len(sources) == 1 and node.args[1:] == (1,):
        return _flat(writer, names[sources[0]], node)
    if node.target not in FUNCTIONS or len(sources) < len(node.args) or node.kwargs.keys() - {"inplace"}:
        raise _Unknown(node.target)
    _alone(sources[0], bool(node.kwargs.get("inplace")))
    return writer.node(FUNCTIONS[node.target], [names[each] for each in sources])


def _method(writer: Writer, node: fx.Node, names: Mapping[fx.Node, str]) -> str:
    source = node.args[0]
    if not isinstance(source, fx.Node) or node.kwargs:
        raise _Unknown(node.target)
    if node.target == "flatten" and node.args[1:] == (1,):
        return _flat(writer, names[source], node)
    if node.target == "relu" and len(node.args) == 1:
        return writer.node("Relu", [names[source]])
    raise _Unknown(node.target)
