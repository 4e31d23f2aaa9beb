"""The steps of a torch.fx graph: sets of functions by their effect on channels, and questions about one step."""

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from htas.graph.layer import ACTIVATIONS, Layer

POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
MAPS = (
    *ACTIVATIONS.values(), *POOLS, nn.Dropout, nn.Dropout2d, nn.Identity, nn.Upsample, nn.ZeroPad2d,
    nn.Softplus, nn.Mish,
)  # fmt: skip
MAP_FUNCTIONS = {
    F.relu, torch.relu, F.relu6, F.silu, F.gelu, F.hardswish, F.hardsigmoid, torch.sigmoid, torch.tanh, F.leaky_relu,
    F.elu, F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d, F.dropout, F.interpolate, F.mish,
    torch.abs, torch.exp, torch.neg, operator.neg,
}  # fmt: skip
MAP_METHODS = {"relu", "relu_", "sigmoid", "tanh", "contiguous", "clone", "detach", "float", "abs", "exp", "neg"}
POINTWISE = (
    *ACTIVATIONS.values(), nn.Dropout, nn.Identity, nn.Softplus, nn.Mish,
)  # fmt: skip
"""Maps that know no dimensions."""
SPATIAL_FUNCTIONS = {
    F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d, F.interpolate,
}  # fmt: skip
FUNCTION_ACTIVATIONS = {
    F.relu: "relu", torch.relu: "relu", F.relu6: "relu6", F.silu: "silu", F.hardswish: "hardswish", F.gelu: "gelu",
}  # fmt: skip
ADDS = {operator.add, operator.iadd, torch.add, "add", "add_"}
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
WRITTEN_OUT = {"view", "reshape", torch.reshape}
"""Reshapes that are given sizes."""
RESHAPES = {*WRITTEN_OUT, "flatten", torch.flatten, "squeeze", torch.squeeze, "unsqueeze", torch.unsqueeze}
SHARED = ("conv", "grouped", "norm", "layer_norm")
"""Kinds of nodes whose modules have weights."""
CONCATS = {torch.cat, torch.concat, torch.concatenate}
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)
MOVES = {torch.permute, "permute", torch.transpose, torch.swapaxes, "transpose", "swapaxes", torch.mean, "mean",
         torch.chunk, "chunk", torch.split, "split"}  # fmt: skip
SIZES = {"size", getattr, operator.getitem, operator.floordiv}
JOINS = ADDS | {
    operator.mul, operator.imul, torch.mul, operator.sub, torch.sub, torch.maximum, "mul", "mul_", "sub", "expand_as",
}  # fmt: skip


def plain_add(fxnode: fx.Node) -> bool:
    """Whether this adds images of one shape."""
    shapes = {source.meta["shape"] for source in fxnode.all_input_nodes}
    return fxnode.target in ADDS and len(shapes) == 1 and len(fxnode.meta["shape"]) == 4


def weightless(fxnode: fx.Node, module: nn.Module | None) -> bool:
    """Whether this multiplies nothing by weights or other tensors, or is a layer, whose multiply-adds are known."""
    if module is not None:
        return understood(module) or isinstance(module, (*MAPS, *NORMS, nn.Flatten))
    free = MAP_FUNCTIONS | MAP_METHODS | JOINS | RESHAPES | CONCATS | MOVES | SIZES
    return fxnode.target in free


def private(fxnode: fx.Node) -> bool:
    """Whether this value comes from a convolution, by norms and activations, and goes nowhere else on the way."""
    while len(fxnode.users) == 1 and fxnode.op == "call_module":
        module = fxnode.graph.owning_module.get_submodule(str(fxnode.target))  # type: ignore[union-attr]
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            return True
        fxnode = fxnode.all_input_nodes[0]
    return False


def tied_in(module: nn.Module) -> set[str]:
    """Modules that share a parameter with another one."""
    owners: dict[int, set[int]] = {}
    for part in module.modules():
        for parameter in part.parameters(recurse=False):
            owners.setdefault(id(parameter), set()).add(id(part))
    shared = {part for parts in owners.values() if len(parts) > 1 for part in parts}
    return {name for name, part in module.named_modules(remove_duplicate=False) if id(part) in shared}


def understood(module: nn.Module) -> bool:
    """Whether a Layer describes this module, whose weight is a parameter of its own and not computed."""
    if not isinstance(module._parameters.get("weight"), nn.Parameter):
        return False
    if isinstance(module, nn.Linear):
        return True
    if isinstance(module, nn.ConvTranspose2d):
        return module.groups == 1
    return isinstance(module, nn.Conv2d) and module.padding_mode == "zeros" and padding_of(module) is not None


def padding_of(module: nn.Conv2d) -> tuple[int, int] | None:
    """In numbers; None where there is more of it on one side."""
    if module.padding == "valid":
        return (0, 0)
    if module.padding != "same":
        return pair(module.padding)
    reach = [dilation * (size - 1) for dilation, size in zip(module.dilation, module.kernel_size, strict=True)]
    return None if any(each % 2 for each in reach) else (reach[0] // 2, reach[1] // 2)


def layer_of(module: nn.Module, size: tuple[int, int]) -> Layer:
    if isinstance(module, nn.Linear):
        return Layer("linear", module.in_features, module.out_features, size, bias=module.bias is not None)
    assert isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
    transposed = isinstance(module, nn.ConvTranspose2d)
    padding = pair(module.padding) if isinstance(module, nn.ConvTranspose2d) else padding_of(module)
    assert padding is not None
    return Layer(
        "conv_transpose" if transposed else "conv", module.in_channels, module.out_channels, size,
        kernel=pair(module.kernel_size), stride=pair(module.stride), padding=padding,
        dilation=pair(module.dilation), groups=module.groups, bias=module.bias is not None,
        output_padding=pair(module.output_padding) if transposed else (0, 0),
    )  # fmt: skip


def pair(value: Any) -> tuple[int, int]:
    return (int(value[0]), int(value[1])) if isinstance(value, tuple | list) else (int(value), int(value))


def moved(fxnode: fx.Node, axis: int) -> int | None:
    """Where the channels are after dimensions were put in another order, or the mean was taken over some of them; None
    if the node does something else, or moves the channels or the batch."""
    target: Any = fxnode.target
    if fxnode.op not in ("call_function", "call_method") or not fxnode.args or not isinstance(fxnode.args[0], fx.Node):
        return None
    count = len(fxnode.args[0].meta["shape"] or ())
    named: Any = fxnode.kwargs.get("dims", fxnode.kwargs.get("dim"))
    rest: Any = fxnode.args[1:] if named is None else (named, *fxnode.args[1:])
    listed = rest[0] if rest and isinstance(rest[0], tuple | list) else rest
    dims = [dim % count for dim in listed if type(dim) is int]
    if target in (torch.permute, "permute"):
        return dims.index(axis) if len(dims) == count and dims[0] == 0 else None
    if target in (torch.transpose, torch.swapaxes, "transpose", "swapaxes"):
        order = list(range(count))
        if len(dims) != 2 or 0 in dims:
            return None
        order[dims[0]], order[dims[1]] = order[dims[1]], order[dims[0]]
        return order.index(axis)
    if target in (torch.mean, "mean") and dims:
        over: Any = rest[0] if isinstance(rest[0], tuple | list) else rest[:1]
        gone = {dim % count for dim in over}
        if gone & {0, axis}:
            return None
        return axis if len(fxnode.meta["shape"]) == count else axis - sum(dim < axis for dim in gone)
    return None


def sized_by(node: fx.Node) -> tuple[fx.Node, int] | None:
    """The tensor, and the dimension, whose size this is: `x.size(1)`, `x.shape[1]` or an item of `x.size()`."""
    args = node.args
    if node.target == "size" and len(args) == 2 and isinstance(args[0], fx.Node) and isinstance(args[1], int):
        return args[0], args[1]
    if node.target is operator.getitem and isinstance(args[0], fx.Node) and isinstance(args[1], int):
        sizes = args[0]
        whole = (sizes.target == "size" and len(sizes.args) == 1) or (
            sizes.target is getattr and sizes.args[1:] == ("shape",)
        )
        if whole and isinstance(sizes.args[0], fx.Node):
            return sizes.args[0], args[1]
    return None


def only_ones(before: tuple[int, ...], after: tuple[int, ...]) -> bool:
    """Whether sizes of 1 were put in or taken out, and nothing else."""
    return [size for size in before if size != 1] == [size for size in after if size != 1]


def only_at(axis: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size if dim == axis else 1 for dim, size in enumerate(shape))


def layer_norm(x: Tensor, norm: nn.Module, axis: int) -> Tensor:
    """`x`, [N, ...], normed over dimension `axis`, its channels; `norm` has weight and bias [channels] and eps."""
    out = F.layer_norm(x.movedim(axis, -1), norm.weight.shape, norm.weight, norm.bias, norm.eps)  # type: ignore
    return out.movedim(-1, axis)
