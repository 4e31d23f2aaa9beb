"""Convolutions of any number of dimensions, plain, within groups, or transposed, and linear layers."""

from collections.abc import Iterable
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from htas.graph.channels import Ids
from htas.graph.kinds._kind import Kind
from htas.graph.kinds._pool import tuple_of
from htas.graph.labels import Labels, bound, title
from htas.graph.layer import Layer
from htas.graph.length import leaves_of
from htas.graph.record import Call, Value

if TYPE_CHECKING:
    from htas.graph.emit import Emitter
    from htas.graph.network import Kind as NodeKind
    from htas.graph.network import Node


FUNCTIONS = {"conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "linear"}
MODULES = (nn.modules.conv._ConvNd, nn.Linear)


def parts(call: Call, labels: Labels) -> tuple[Value, Value, Value | None, int]:
    """Input, weight, bias and number of groups of a step of this kind."""
    if call.module:
        module: Any = labels.modules[call.module]
        (source,) = call.values
        bias = labels.param(f"{call.module}.bias") if module.bias is not None else None
        return source, labels.param(f"{call.module}.weight"), bias, getattr(module, "groups", 1)
    if call.name == "linear":
        options = bound(call, "input", "weight", "bias")
        return options["input"], options["weight"], options.get("bias"), 1
    names = ("stride", "padding", "output_padding", "groups", "dilation") if "transpose" in call.name else (
        "stride", "padding", "dilation", "groups")  # fmt: skip
    options = bound(call, "input", "weight", "bias", *names)
    return options["input"], options["weight"], options.get("bias"), int(options.get("groups", 1))


class Convolution(Kind):
    """Convolutions of any number of dimensions, plain, within groups, or transposed, and linear layers."""

    functions = frozenset(FUNCTIONS)
    modules = MODULES

    def label(self, call: Call, labels: Labels) -> None:
        """The weight's inputs are the channels read, its outputs are new ones; groups of channels stay whole."""
        source, weight, bias, groups = parts(call, labels)
        dims, kernel = labels.of(source), labels.of(weight)
        module = labels.module(call)
        linear = call.name == "linear" or isinstance(module, nn.Linear)
        turned = "transpose" in call.name or isinstance(module, nn.modules.conv._ConvTransposeNd)
        axis = axis_of(call, labels)
        out, into = (1, 0) if turned else (0, 1)
        outputs = kernel.get(out)
        rest = {dim: ids for dim, ids in dims.items() if dim != axis}
        for dim, ids in [] if linear else list(rest.items()):
            if dim > axis and not _as_many(call, labels, dim, axis):
                labels.channels.freeze(ids, f"{title(call, labels.modules)} takes it for height or width")
                del rest[dim]
            elif dim > axis and weight.shape[dim - axis + 1] > 1:
                labels.unordered.append(ids)
        read = dims.get(axis)
        if groups > 1:
            outputs = _grouped(call, labels, source, weight, groups, turned, axis)
        elif into in kernel:
            if read is None:
                labels.channels.freeze(kernel[into], labels.why(source))
            else:
                labels.channels.tie(kernel[into], read)
        elif read is not None:
            labels.channels.freeze(read, f"{title(call, labels.modules)} reads it with a weight that is not understood")
        one = f"{title(call, labels.modules)} has one output"
        if outputs is not None and len(outputs) == 1:
            labels.channels.freeze(outputs, one)
            outputs = None
        if outputs is None:
            labels.set(call.outputs[0], rest, one if call.outputs[0].shape[axis] == 1 else labels.why(weight))
        else:
            labels.set(call.outputs[0], rest | {axis: outputs})
        if bias is not None and 0 in labels.of(bias):
            if outputs is None:
                labels.freeze(bias, "its layer's outputs never change")
                return
            else:
                labels.channels.tie(labels.of(bias)[0], outputs)

    def order(self, call: Call, order: list[Value], emitter: "Emitter") -> list[Value]:
        """The input, then the weight and the bias of a function, then what is read for its size."""
        source, weight, bias, _ = parts(call, emitter.labels)
        first = [source] if call.module else [source, weight, *([bias] if bias is not None else [])]
        return [*first, *(each for each in order if each not in first)]

    def node_kind(self, call: Call, value: Value, order: list[Value], emitter: "Emitter") -> "NodeKind":
        """`conv`, or `grouped` where the number of groups is the width."""
        source, _, _, groups = parts(call, emitter.labels)
        if groups == 1:
            return "conv" if _along(call, emitter) else "move"
        out = emitter.inside(call.outputs[0]).get(emitter.axis(call.outputs[0]))
        read = emitter.labels.of(source).get(emitter.axis(source))
        if out is None or read is None or emitter.is_frozen(out):
            return "fixed"
        one, two = emitter.labels.channels.roots(out), emitter.labels.channels.roots(read)
        return "grouped" if set(one.tolist()) == set(two.tolist()) else "conv"

    def complete(self, node: "Node", call: Call, value: Value, emitter: "Emitter") -> "Node":
        """With its layer, and the site that it makes."""
        layer, segments = layer_of(call, emitter.labels), node.segments
        if node.kind == "move":
            source, axis = parts(call, emitter.labels)[0], axis_of(call, emitter.labels)
            made = emitter.labels.of(call.outputs[0])
            lines = [*emitter.labels.of(source).values(), *(made[dim] for dim in made if dim == axis)]
            scaled = tuple(layout for layout in map(emitter.atoms.layout, lines) if layout.free)
            return replace(node, macs=replace(layer, bias=False).macs, scaled=scaled)
        if not node.module:
            node = replace(node, module=owner_of(call, emitter.labels), called=False)
        elif node.module in emitter.first:
            node = replace(node, again=True)
        emitter.first.setdefault(node.module, node.name)
        site = segments[0].site if len(segments) == 1 and segments[0].repeat == 1 else ""
        return replace(node, layer=layer, site=site if site in emitter.atoms.names.values() else "")


def axis_of(call: Call, labels: Labels) -> int:
    """The dimension of its input that a layer works along."""
    source, weight, _, _ = parts(call, labels)
    linear = call.name == "linear" or isinstance(labels.module(call), nn.Linear)
    return len(source.shape) - 1 if linear else len(source.shape) - len(weight.shape) + 1


def _as_many(call: Call, labels: Labels, dim: int, axis: int) -> bool:
    """Whether a convolution over channels, as over height or width, makes as many of any number of them."""
    module: Any = labels.module(call)
    stride = module.stride if module is not None else _options(call)("stride", 1)
    source, weight, _, groups = parts(call, labels)
    steps = tuple_of(stride, len(weight.shape) - 2)
    return groups == 1 and steps[dim - axis - 1] == 1 and source.shape[dim] == call.outputs[0].shape[dim]


def _groups_given(call: Call) -> Any:
    """The number of groups that a function is given; None for a module."""
    return None if call.module else _options(call)("groups", None)


FEW = 4
"""Groups of this number or fewer stay, and each gets narrower; of more, whole groups are dropped."""


def _grouped(
    call: Call, labels: Labels, source: Value, weight: Value, groups: int, turned: bool, axis: int
) -> Any:  # fmt: skip
    """Few groups stay, and each has fewer channels; of many, each is one channel, and their number is the width."""
    kernel, read = labels.of(weight), labels.of(source).get(axis)
    outputs, inputs = (1, 0) if turned else (0, 1)
    why = f"{title(call, labels.modules)} has {groups} groups"
    if turned or outputs not in kernel or read is None:
        labels.freeze(weight, why if read is not None else labels.why(source))
        if read is not None:
            labels.channels.freeze(read, why)
        return kernel.get(outputs) if not turned else None
    into, out = read.reshape(groups, -1), kernel[outputs].reshape(groups, -1)
    if groups <= FEW and min(into.shape[1], out.shape[1]) >= 3 * groups and inputs in kernel:
        labels.channels.tie(into, np.broadcast_to(kernel[inputs], into.shape))
        labels.channels.tie(out, np.broadcast_to(out[:1], out.shape))
        return kernel[outputs]
    if inputs in kernel:
        labels.channels.freeze(kernel[inputs], why)
    given = _groups_given(call)
    if given is not None:
        leaves = [leaf for leaf, _ in leaves_of(given)]
        if not leaves:
            labels.channels.freeze(read, f"{title(call, labels.modules)} is given its number of groups")
        for leaf in leaves:
            if leaf[0] == "attribute":
                labels.count(leaf, read.reshape(groups, -1)[:, 0])
    first = into[:, :1]
    labels.channels.tie(into, np.broadcast_to(first, into.shape))
    labels.channels.tie(out, np.broadcast_to(first, out.shape))
    return kernel[outputs]


def layer_of(call: Call, labels: Labels) -> Layer:
    """The layer that a runtime computes here, at base widths. Padding that is not the same on both sides, or is not of
    zeros, counts as part of the input; windows that count as images stand one below the other. Where each image has
    weights of its own, the layer is that of one image."""
    source, weight, bias, groups = parts(call, labels)
    module: Any = labels.module(call)
    linear = call.name == "linear" or isinstance(module, nn.Linear)
    if linear:
        spatial = source.shape[1:-1]
        if source.shape[0] != labels.images:  # pixels, or steps of time, before the images
            spatial = (max(1, prod(source.shape[:-1]) // labels.images),)
        pixels = (spatial[0], prod(spatial[1:])) if spatial else (1, 1)
        return Layer("linear", weight.shape[1], weight.shape[0], pixels, bias=bias is not None)
    dims = len(weight.shape) - 2
    turned = "transpose" in call.name or isinstance(module, nn.modules.conv._ConvTransposeNd)
    options: Any = (lambda name, default: getattr(module, name, default)) if module is not None else _options(call)
    kernel, stride = tuple(weight.shape[2:]), tuple_of(options("stride", 1), dims)
    dilation = tuple_of(options("dilation", 1), dims)
    size = source.shape[-dims:]
    out = call.outputs[0].shape[-dims:]
    times = max(1, source.shape[0] // labels.images) if len(source.shape) > dims + 1 else 1
    inputs, outputs = (
        (weight.shape[0], weight.shape[1] * groups) if turned else (weight.shape[1] * groups, weight.shape[0])
    )
    if _images_are_groups(call, labels):
        times = source.shape[0] if len(source.shape) > dims + 1 else 1
        inputs, outputs, groups = (number // labels.images for number in (inputs, outputs, groups))
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    if turned:
        padding, extra = tuple_of(options("padding", 0), dims), tuple_of(options("output_padding", 0), dims)
        size = (times * size[0], *size[1:])
    else:
        padding, extra = _padding(options("padding", 0), reach, dims), (0,) * dims
        zeros = getattr(module, "padding_mode", "zeros") == "zeros"
        fits = (
            zeros
            and times == 1
            and all(
                (n + 2 * p - r) // s + 1 == o for n, p, r, s, o in zip(size, padding, reach, stride, out, strict=True)
            )
        )
        if not fits:
            padding, out = (0,) * dims, (times * out[0], *out[1:])
            size = tuple((o - 1) * s + r for o, s, r in zip(out, stride, reach, strict=True))
    return Layer(
        "conv_transpose" if turned else "conv", inputs, outputs, size, kernel=kernel, stride=stride, padding=padding,
        dilation=dilation, groups=groups, bias=bias is not None, output_padding=extra,
    )  # fmt: skip


def _images_are_groups(call: Call, labels: Labels) -> bool:
    """Whether a convolution works on the channels of all images at once, each image with weights of its own."""
    source, weight, _, groups = parts(call, labels)
    if not weight.derived or groups % labels.images:
        return False
    sizes = [leaf for leaf, _ in leaves_of(_groups_given(call)) if leaf[0] == "size" and leaf[2] == 0]
    by_images = any(0 not in labels.of(leaf[1]) and leaf[1].shape[0] % labels.images == 0 for leaf in sizes)
    return by_images or source.shape[0] % labels.images > 0


def _options(call: Call) -> Any:
    names = ("stride", "padding", "output_padding", "groups", "dilation") if "transpose" in call.name else (
        "stride", "padding", "dilation", "groups")  # fmt: skip
    options = bound(call, "input", "weight", "bias", *names)
    return options.get


def _padding(value: Any, reach: list[int], dims: int) -> tuple[int, ...]:
    if value == "same":
        return tuple((each - 1) // 2 for each in reach)
    return (0,) * dims if value == "valid" else tuple_of(value, dims)


def owner_of(call: Call, labels: Labels) -> str:
    """The module that a layer is, or that owns its weight; empty for the whole network."""
    return call.module or parts(call, labels)[1].param.rpartition(".")[0] or call.owner


def layer_names(calls: Iterable[Call], labels: Labels) -> dict[Call, str]:
    """By layer the module that it is, or that owns its weight; where that is the whole network, or owns the weights of
    several layers, the path of the weight, or of the parameter that it is made of."""
    layers = {call: owner_of(call, labels) for call in calls}
    paths = {call: _path(parts(call, labels)[1]) or f"{call.owner}:{call.name}" for call in layers if not call.module}
    weights: dict[str, set[str]] = {}
    for call, path in paths.items():
        weights.setdefault(layers[call], set()).add(path)
    apart = {call for call in paths if not layers[call] or len(weights[layers[call]]) > 1}
    return {call: paths[call] if call in apart else name for call, name in layers.items()}


def _path(weight: Value) -> str:
    """The parameter that a weight is, or is made of: the first of the largest; empty where it is made of none."""
    rest, visited = [weight], {weight}
    largest = Value(torch.empty(0))
    while rest:
        value = rest.pop()
        if value.param and value.tensor.numel() > largest.tensor.numel():
            largest = value
        sources = value.call.values if value.call is not None else []
        rest += [each for each in reversed(sources) if each not in visited]
        visited.update(sources)
    return largest.param


def made_by(call: Call, emitter: "Emitter") -> Ids | None:
    """The elements of a layer's outputs, where it makes them: a convolution within groups may only hand them on."""
    made = emitter.inside(call.outputs[0]).get(axis_of(call, emitter.labels))
    handed = parts(call, emitter.labels)[3] > 1 and KIND.node_kind(call, call.outputs[0], [], emitter) == "grouped"
    return None if handed else made


def counted_in(node: "Node", call: Call, emitter: "Emitter") -> "Node":
    """A layer of constants with its multiply-adds, but for a bias, once for any number of images: these grow with both
    sides."""
    weight, read = parts(call, emitter.labels)[1].shape, call.values[0]
    turned = layer_of(call, emitter.labels).op == "conv_transpose"
    macs = prod(weight[1:]) * prod((read if turned else call.outputs[0]).shape)
    made = (emitter.atoms.layout(ids) for ids in emitter.labels.of(call.outputs[0]).values())
    scaled = {*emitter.read_layouts(call), *(layout for layout in made if layout.free)}
    return replace(node, macs=macs, scaled=tuple(scaled))


def _along(call: Call, emitter: "Emitter") -> bool:
    """Whether no dimension but the one that a layer works along has free channels."""
    source, axis = parts(call, emitter.labels)[0], axis_of(call, emitter.labels)
    return not any(
        dim != axis and not emitter.is_frozen(ids)
        for value in (source, call.outputs[0])
        for dim, ids in emitter.labels.of(value).items()
    )


KIND = Convolution()
