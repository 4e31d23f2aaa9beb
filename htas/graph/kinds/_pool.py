"""The layer that a step of pooling is, whether a module computes it, a function, or a mean over all pixels."""

import re
from collections.abc import Callable
from math import prod
from typing import TYPE_CHECKING, Any

from torch import nn

from htas.graph.labels import Labels, bound
from htas.graph.layer import Layer, Op
from htas.graph.record import Call, Value

if TYPE_CHECKING:
    from htas.graph.emit import Emitter
    from htas.graph.network import Node

NAME = re.compile(r"(adaptive)?_?(max|avg)_?pool([123])d(_with_indices)?", re.IGNORECASE)
"""Names of functions and classes."""


def pool_of(node: "Node", call: Call, value: Value, emitter: "Emitter") -> Layer | None:
    """The layer that a pooling step is, at base widths; None for any other, and for the places of the maxima."""
    if not node.consumed or value is not call.outputs[0]:  # without channels, it has as many images as the batch
        return None
    module = emitter.labels.module(call)
    name = NAME.fullmatch(call.name if module is None else _class_name(module))
    source, dims = call.values[0].shape, int(name[3]) if name else 0
    op: Op = "max_pool" if name and name[2].lower() == "max" else "avg_pool"
    plain = len(source) == dims + 2 and node.axis == 1
    if name and not name[1]:
        return _window(op, node, call, emitter.labels) if plain else None
    channels = source[node.axis] if node.axis < len(source) else 0
    if len(source) in (4, dims + 2) and channels == prod(value.shape[1:]) < prod(source[1:]):
        return Layer("global_pool", node.base, node.base, emitter.unit(call, value))
    return _adaptive(op, node, call, emitter.labels) if plain and name and source[2:] != value.shape[2:] else None


def _window(op: Op, node: "Node", call: Call, labels: Labels) -> Layer:
    """A pool with windows of one size. Padding on one side only, as for `ceil_mode`, counts as part of the input;
    windows of an image that count as images stand one below the other."""
    module, size, out, times = labels.module(call), *_sizes(call, labels)
    options, dims = _options(call, module, dilated=op == "max_pool"), len(size)
    kernel = tuple_of(options("kernel_size", 1), dims)
    stride = tuple_of(options("stride", None) or kernel, dims)
    padding, dilation = (tuple_of(options(*option), dims) for option in (("padding", 0), ("dilation", 1)))
    reach = [far * (side - 1) + 1 for far, side in zip(dilation, kernel, strict=True)]
    sides = zip(size, padding, reach, stride, out, strict=True)
    if times > 1 or any((n + 2 * pad - r) // step + 1 != o for n, pad, r, step, o in sides):
        padding, out = (0,) * dims, (times * out[0], *out[1:])
        size = tuple((o - 1) * step + r for o, step, r in zip(out, stride, reach, strict=True))
    return Layer(op, node.base, node.base, size, kernel, stride, padding, dilation)


def _adaptive(op: Op, node: "Node", call: Call, labels: Labels) -> Layer:
    """A pool to a number of pixels, as one with windows of the size that makes as many."""
    size, out, times = _sizes(call, labels)
    stride = tuple(max(1, n // o) for n, o in zip(size, out, strict=True))
    kernel = tuple(max(1, n - (o - 1) * step) for n, o, step in zip(size, out, stride, strict=True))
    out = (times * out[0], *out[1:])
    size = tuple((o - 1) * step + k for o, step, k in zip(out, stride, kernel, strict=True))
    return Layer(op, node.base, node.base, size, kernel, stride, (0,) * len(size))


def _class_name(module: nn.Module) -> str:
    """That of PyTorch's class which a module is of, or derives from."""
    return next(kind.__name__ for kind in type(module).__mro__ if kind.__module__.startswith("torch.nn."))


def _sizes(call: Call, labels: Labels) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Sizes of the pixels before and after a pool, and the number of windows of an image that count as images."""
    source = call.values[0].shape
    return source[2:], call.outputs[0].shape[2:], max(1, source[0] // labels.images)


def _options(call: Call, module: Any, *, dilated: bool) -> Callable[[str, Any], Any]:
    """Reads an option of a pool, or what is usual."""
    if module is not None:
        return lambda name, usual: getattr(module, name, usual)
    names = ("kernel_size", "stride", "padding", *(("dilation",) if dilated else ()))
    return bound(call, "input", *names).get


def tuple_of(value: Any, dims: int) -> tuple[int, ...]:
    """A number for each dimension."""
    if isinstance(value, list | tuple):
        return tuple(int(each) for each in value) if len(value) == dims else (int(value[0]),) * dims
    return (int(value),) * dims
