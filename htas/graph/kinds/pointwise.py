"""Steps that treat every number by itself: activations, and arithmetic of tensors of shapes that fit each other."""

from dataclasses import replace
from itertools import chain, count
from typing import TYPE_CHECKING

from torch import nn

from htas.graph.blocks import ADDS
from htas.graph.channels import Ids
from htas.graph.kinds._kind import Kind
from htas.graph.labels import Labels, broadcast_dim, title
from htas.graph.layer import Layer
from htas.graph.record import Call, Value
from htas.graph.steps import first_value

if TYPE_CHECKING:
    from htas.graph.emit import Emitter
    from htas.graph.network import Kind as NodeKind
    from htas.graph.network import Node


UNARY = {
    "__invert__", "abs", "abs_", "absolute", "acos", "alpha_dropout", "asin", "atan", "bernoulli_", "bfloat16",
    "bitwise_not", "bool", "ceil", "celu", "celu_", "clip", "clone", "contiguous", "cos", "cosh", "cpu", "cuda",
    "data", "detach", "double", "dropout", "dropout1d", "dropout2d", "dropout3d", "elu", "elu_", "empty_like",
    "erf", "exp", "exp_", "expm1", "feature_alpha_dropout", "feature_dropout", "fill_", "float", "floor", "frac",
    "full_like", "gelu", "half", "hardshrink", "hardsigmoid", "hardswish", "hardtanh", "hardtanh_", "int", "isnan",
    "leaky_relu", "leaky_relu_", "log", "log10", "log1p", "log2", "logical_not", "logit", "logsigmoid", "long",
    "mish", "nan_to_num", "neg", "neg_", "negative", "ones_like", "positive", "rand_like", "randn_like",
    "reciprocal", "relu", "relu6", "relu_", "requires_grad_", "round", "rrelu", "rsqrt", "selu", "selu_", "sigmoid",
    "sigmoid_", "sign", "silu", "sin", "sinc", "sinh", "softplus", "softshrink", "softsign", "sqrt", "square",
    "tanh", "tanh_", "tanhshrink", "threshold", "threshold_", "to", "trunc", "type", "type_as", "zero_",
    "zeros_like",
}  # fmt: skip
"""Functions of one tensor (and numbers)."""
MANY = {
    "__radd__", "__rdiv__", "__rfloordiv__", "__rmul__", "__rpow__", "__rsub__", "__rtruediv__", "_weight_norm",
    "add", "add_", "addcdiv", "addcdiv_", "addcmul", "addcmul_", "atan2", "bitwise_and", "bitwise_or", "clamp",
    "clamp_", "clamp_max", "clamp_max_", "clamp_min", "clamp_min_", "copysign", "div", "div_", "divide", "eq",
    "float_power", "floor_divide", "fmax", "fmin", "fmod", "ge", "gt", "hypot", "le", "lerp", "lerp_",
    "logical_and", "logical_or", "lt", "masked_fill", "masked_fill_", "maximum", "minimum", "mul", "mul_",
    "multiply", "ne", "pow", "pow_", "remainder", "rsub", "sub", "sub_", "subtract", "true_divide", "where",
    "xlogy",
}  # fmt: skip
"""Functions of several tensors, of one shape or with sizes of 1."""
FUNCTIONS = UNARY | MANY
MODULES = (
    nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Sigmoid, nn.Tanh, nn.LeakyReLU,
    nn.ELU, nn.SELU, nn.CELU, nn.Softplus, nn.Softsign, nn.Mish, nn.LogSigmoid, nn.Threshold, nn.Identity,
    nn.modules.dropout._DropoutNd, nn.Hardshrink, nn.Softshrink, nn.Tanhshrink, nn.RReLU,
)  # fmt: skip


class Pointwise(Kind):
    """Steps that treat every number by itself: activations, and arithmetic of tensors of shapes that fit each other."""

    functions = frozenset(FUNCTIONS)
    modules = MODULES

    def label(self, call: Call, labels: Labels) -> None:
        """What meets at one dimension is one channel; a size of 1 meets all of them and binds nothing."""
        if not call.values:
            labels.stop(call, "reads no tensor")
            return
        out = call.outputs[0]
        count = len(out.shape)
        dims = {}
        for dim in range(count):
            if out.shape[dim] == 1 and len(call.values) == 1:
                if dim in labels.of(call.values[0]):
                    dims[dim] = labels.of(call.values[0])[dim]
                continue
            plain: list[Value] = []
            met: list[Ids] = []
            for value in call.values:
                own = dim - broadcast_dim(value.tensor, 0, count)
                if own < 0 or own >= len(value.shape):
                    continue
                ids = labels.of(value).get(own)
                if value.shape[own] != out.shape[dim]:
                    if ids is not None:
                        labels.channels.freeze(
                            ids, f"{title(call, labels.modules)} uses its only channel for all others"
                        )
                    continue
                if ids is None:
                    plain.append(value)
                else:
                    met.append(ids)
            for ids in met[1:]:
                labels.channels.tie(met[0], ids)
            if met and plain:
                labels.channels.freeze(
                    met[0],
                    f"{title(call, labels.modules)} joins it with a fixed number of channels: {labels.why(plain[0])}",
                )
            elif met:
                dims[dim] = met[0]
        labels.set(out, dims, labels.why(call.values[0]))

    def plain_kind(self, call: Call, value: Value, order: list[Value], emitter: "Emitter") -> "NodeKind":
        """Of one tensor a map, of two of one shape a join."""
        sources = [each for each in order if each.derived]
        if len(sources) == 1 and emitter.same(sources[0], value):
            return "map"
        return "join" if len(sources) == 2 and sources[0].shape == sources[1].shape == value.shape else "fixed"

    def free_kind(self, call: Call, value: Value, order: list[Value], emitter: "Emitter") -> "NodeKind":
        """`scale` by a parameter of the channels, a `join` of two tensors of the same channels, or a map of one."""
        if len(order) == 2:
            if not order[1].derived and order[1].param and _scale_axis(order, value, emitter) is not None:
                return "scale"
            if call in emitter.mode.skips or all(emitter.same(each, value) for each in order):
                return "join"
        return super().free_kind(call, value, order, emitter)

    def complete(self, node: "Node", call: Call, value: Value, emitter: "Emitter") -> "Node":
        """With the parameter of a scale, the layer of an addition, and a projection on its shortcut."""
        if node.kind == "scale":
            return replace(node, param=emitter.nodes[node.inputs[1]].param)
        if node.kind != "join":
            return super().complete(node, call, value, emitter)
        layer = Layer("add", node.base, node.base, emitter.unit(call, value))
        if emitter.follower.adds == "project" and call in emitter.mode.skips:
            return _projected(node, call, layer, emitter)
        plain = call.name in ADDS and call.values[0].shape == call.values[1].shape and len(value.shape) >= 3
        return replace(node, layer=layer if plain else None)


def _scale_axis(order: list[Value], value: Value, emitter: "Emitter") -> int | None:
    """The dimension of a parameter that has a number for each channel of a tensor, and nothing else."""
    param = order[1]
    dims = {dim for dim, size in enumerate(param.shape) if size > 1}
    if len(dims) != 1 or len(param.shape) > len(value.shape) or not emitter.same(order[0], value):
        return None
    (dim,) = dims
    return dim if dim + len(value.shape) - len(param.shape) == emitter.axis(value) else None


def _projected(node: "Node", call: Call, add: Layer, emitter: "Emitter") -> "Node":
    """With a project node on the shortcut of an addition."""
    skip, branch = emitter.mode.skips[call]
    source, other = (emitter.nodes[node.inputs[place]] for place in (skip, branch))
    owner = node.name.rsplit(":", 1)[0]
    stem = f"{owner}.project" if owner else "project"
    names = chain([stem], (f"{stem}{number}" for number in count(2)))
    name = next(name for name in names if name not in emitter.labels.modules and name not in emitter.nodes)
    normed = emitter.follower.normed
    emitter.nodes[name] = replace(
        node, name=name, kind="project", inputs=(source.name, other.name), run=first_value, segments=other.segments,
        consumed=source.segments, layout=other.layout, normed=normed, axis=1,
        layer=Layer("conv", source.base, other.base, add.size, norm=normed),
    )  # fmt: skip
    inputs = tuple(name if index == skip else each for index, each in enumerate(node.inputs))
    return replace(node, inputs=inputs, consumed=other.segments, layer=add)
