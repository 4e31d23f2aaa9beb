"""A step that nobody listed is tried: does it commute with choosing channels?"""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from htas.data.nests import replaced
from htas.graph.kinds._kind import Kind, counted_macs
from htas.graph.labels import Dims, Labels
from htas.graph.length import length_at
from htas.graph.record import Call, Value

if TYPE_CHECKING:
    from htas.graph.emit import Emitter
    from htas.graph.network import Node


class Unknown(Kind):
    """A step that nobody listed is tried: does it commute with choosing channels?"""

    def label(self, call: Call, labels: Labels) -> None:
        """Channels that the step hands on one by one keep their labels; else the step is not understood."""
        floats = [value for value in dict.fromkeys(call.values) if value.tensor.is_floating_point()]
        labelled = [value for value in floats if labels.of(value)]
        if call.whole:
            labels.stop(call, call.whole)
            return
        if not labelled:
            for out in call.outputs:
                labels.set(out, {}, next((labels.why(value) for value in call.values), "it is no layer's output"))
            return
        if call.name == "__setitem__" or len(call.outputs) != 1 or any(v.param for v in call.values):
            labels.stop(call, "is not understood")
            return
        dims: Dims = {}
        for dim in sorted({dim for value in labelled for dim in labels.of(value)}):
            members = [value for value in labelled if dim in labels.of(value)]
            if len({len(labels.of(value)[dim]) for value in members}) > 1:
                labels.stop(call, "is not understood")
                return
            at = _commutes(call, labels, floats, members, dim)
            if at is None or at in dims:
                labels.stop(call, "is not understood")
                return
            for value in members[1:]:
                labels.channels.tie(labels.of(members[0])[dim], labels.of(value)[dim])
            dims[at] = labels.of(members[0])[dim]
        labels.set(call.outputs[0], dims)

    def complete(self, node: "Node", call: Call, value: Value, emitter: "Emitter") -> "Node":
        """With its multiply-adds."""
        node = super().complete(node, call, value, emitter)
        return node if node.kind == "map" else counted_macs(node, call, emitter.read_layouts(call), emitter)


def _commutes(call: Call, labels: Labels, floats: list[Value], members: list[Value], dim: int) -> int | None:
    """The output's dimension of the channels, if the step on some channels gives those of the step on all."""
    count = members[0].shape[dim]
    out = call.outputs[0].shape
    generator = torch.Generator().manual_seed(0)
    tensors = {value: torch.randn(value.shape, generator=generator) for value in floats}
    some = np.sort(np.random.default_rng(0).permutation(count)[: max(1, count // 2)])
    index = torch.from_numpy(some)
    fewer = {
        value: tensor.index_select(dim, index) if value in members else tensor for value, tensor in tensors.items()
    }
    full, part = _run(call, labels, tensors, {}), _run(call, labels, fewer, {(v, dim): len(some) for v in members})
    if full is None or part is None or count < 2:
        return None
    again = _run(call, labels, tensors, {})
    if again is None or not torch.equal(full, again):  # it draws random numbers
        return None
    for at in range(len(out)):
        if out[at] != count or part.dim() != full.dim():
            continue
        wanted = full.index_select(at, index)
        if wanted.shape == part.shape and torch.allclose(wanted, part, rtol=1e-4, atol=1e-5):
            return at
    return None


def _run(
    call: Call, labels: Labels, tensors: dict[Value, Tensor], sizes: dict[tuple[Value, int], int]
) -> Tensor | None:  # fmt: skip
    def put(leaf: Any) -> Any:
        if isinstance(leaf, Value):
            return tensors[leaf].clone() if leaf in tensors else leaf.tensor
        return length_at(leaf, lambda how, recorded: sizes.get(how[1:], recorded))

    function: Any = labels.modules[call.module] if call.module else call.function
    training = getattr(function, "training", False)
    try:
        with torch.no_grad():
            result = function(*replaced(call.args, put), **replaced(dict(call.kwargs), put))
    except Exception:  # whatever a step makes of other sizes
        return None
    return result if isinstance(result, Tensor) and not training else None
