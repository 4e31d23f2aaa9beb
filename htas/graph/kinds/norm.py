"""Norms: of each channel by itself, of all channels of a pixel, or of groups of channels."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from htas.graph.channels import Ids
from htas.graph.kinds._kind import Kind
from htas.graph.labels import Labels, bound, title
from htas.graph.length import Leaf, leaves_of
from htas.graph.record import Call, Value

if TYPE_CHECKING:
    from htas.graph.emit import Emitter
    from htas.graph.network import Kind as NodeKind
    from htas.graph.network import Node


BATCH = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
MODULES = (*BATCH, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.PReLU)
FUNCTIONS = {"prelu", "batch_norm", "instance_norm", "layer_norm", "group_norm", "rms_norm"}
FOUR = ("running_mean", "running_var", "weight", "bias")
"""Tensors of a batch norm, in the order of the function's arguments."""
TENSORS = ("weight", "bias", "running_mean", "running_var")


class Norm(Kind):
    """Norms: of each channel by itself, of all channels of a pixel, or of groups of channels."""

    functions = frozenset(FUNCTIONS)
    modules = MODULES

    def label(self, call: Call, labels: Labels) -> None:
        """A norm's numbers are one for each channel that it reads."""
        module: Any = labels.module(call)
        if module is not None:
            source = call.values[0]
            own = [name for name in TENSORS if isinstance(getattr(module, name, None), object)]
            tensors = [labels.param(f"{call.module}.{name}") for name in own if getattr(module, name, None) is not None]
        else:
            source = call.args[0] if call.args else call.kwargs["input"]
            tensors = [value for value in call.values if value is not source]
        dims = labels.of(source)
        labels.set(call.outputs[0], dims, labels.why(source))
        if isinstance(module, nn.LayerNorm | nn.RMSNorm) or call.name in ("layer_norm", "rms_norm"):
            _over_last(call, labels, source, tensors, module)
            return
        axis = 1
        for tensor in tensors:
            for ids in labels.of(tensor).values():
                labels.tie(source, axis, ids)
        if isinstance(module, BATCH) and axis in dims:
            labels.count(("attribute", call.module, "num_features", None), dims[axis])
        if (isinstance(module, nn.GroupNorm) or call.name == "group_norm") and axis in dims:
            _in_groups(call, labels, dims[axis], module)

    def plain_kind(self, call: Call, value: Value, order: list[Value], emitter: "Emitter") -> "NodeKind":
        """A batch norm that is called is one at any widths."""
        return "norm" if call.module and _is_batch_norm(call, emitter) and not _read_beside(call, emitter) else "fixed"

    def free_kind(self, call: Call, value: Value, order: list[Value], emitter: "Emitter") -> "NodeKind":
        """`norm` for a batch norm, `layer_norm` for one of several channels together."""
        if call.name == "prelu" or isinstance(emitter.labels.module(call), nn.PReLU) or _read_beside(call, emitter):
            return "move"
        if (
            _is_batch_norm(call, emitter)
            and emitter.axis(value) == 1
            and (call.module or _of_batch_norm(call, emitter))
        ):
            return "norm"
        if len(getattr(emitter.labels.module(call), "normalized_shape", ())) > 1:
            return "move"
        apart = isinstance(emitter.labels.module(call), BATCH) and not _is_batch_norm(call, emitter)
        return "layer_norm" if call.module and not apart else "move"

    def complete(self, node: "Node", call: Call, value: Value, emitter: "Emitter") -> "Node":
        """A function's norm is that of the module that owns its numbers."""
        if node.kind == "norm" and not node.module:
            return replace(node, module=call.values[-1].param.rpartition(".")[0], called=False)
        return node


def _in_groups(call: Call, labels: Labels, ids: Ids, module: Any) -> None:
    """Groups stay, and each gets narrower; where each is one channel, their number is the width."""
    number = module.num_groups if module is not None else bound(call, "input", "num_groups")["num_groups"]
    groups = int(number)
    if groups > 1 and len(ids) != groups:
        each = ids.reshape(groups, -1)
        labels.channels.tie(each, np.broadcast_to(each[:1], each.shape))
    if groups == 1 or len(ids) != groups:
        return
    leaves: list[Leaf] = [leaf for leaf, _ in leaves_of(number) if leaf[0] == "attribute"]
    if module is not None:
        leaves = [("attribute", call.module, "num_groups", None)]
    for leaf in leaves:
        labels.count(leaf, ids)
    if not leaves and not list(leaves_of(number)):
        labels.channels.freeze(ids, f"{title(call, labels.modules)} is given as many groups as channels")


def _over_last(call: Call, labels: Labels, source: Value, tensors: list[Value], module: Any) -> None:
    shape = (
        module.normalized_shape if module is not None else bound(call, "input", "normalized_shape")["normalized_shape"]
    )
    count = len(tuple(shape)) if not isinstance(shape, int) else 1
    start = len(source.shape) - count
    for tensor in tensors:
        for dim, ids in labels.of(tensor).items():
            labels.tie(source, start + dim, ids)
    if module is not None:
        return
    for place, size in enumerate(shape if isinstance(shape, list | tuple) else [shape]):
        along = labels.of(source).get(start + place)
        if along is None:
            continue
        leaves = [leaf for leaf, _ in leaves_of(size)]
        for leaf in leaves:
            if leaf[0] == "attribute":
                labels.count(leaf, along)
        if not leaves:
            labels.channels.freeze(along, f"{title(call, labels.modules)} is given its size")


def _is_batch_norm(call: Call, emitter: "Emitter") -> bool:
    module = emitter.labels.module(call)
    if module is None:
        return call.name == "batch_norm"
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine and module.track_running_stats


def _of_batch_norm(call: Call, emitter: "Emitter") -> bool:
    """Whether a function normalises by the four tensors of one batch norm, as they are, and no other reads them."""
    options = bound(call, "input", *FOUR, "training", "momentum", "eps")
    tensors = [options.get(name) for name in FOUR]
    owner = getattr(tensors[0], "param", "").rpartition(".")[0]
    norm, values, users = emitter.labels.modules.get(owner), emitter.mode.record.params, emitter.mode.reads.users
    return (
        isinstance(norm, nn.modules.batchnorm._BatchNorm)
        and norm.eps == options.get("eps", 1e-5)
        and all(
            isinstance(each, Value) and each is values.get(f"{owner}.{name}") and len(users[each]) == 1
            for each, name in zip(tensors, FOUR, strict=True)
        )
    )


def _read_beside(call: Call, emitter: "Emitter") -> bool:
    """Whether another step reads a tensor of the module that is called."""
    tensors = (emitter.mode.record.params.get(f"{call.module}.{name}") for name in TENSORS)
    return bool(call.module) and any(value in emitter.mode.reads.users for value in tensors if value is not None)
