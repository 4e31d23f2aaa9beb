"""Gated linear units: one half of the channels gates the other."""

from torch import nn

from htas.graph.kinds._kind import Kind
from htas.graph.labels import Labels, bound
from htas.graph.record import Call

FUNCTIONS = {"glu"}
MODULES = (nn.GLU,)


class Gated(Kind):
    """Gated linear units: one half of the channels gates the other."""

    functions = frozenset(FUNCTIONS)
    modules = MODULES

    def label(self, call: Call, labels: Labels) -> None:
        """A channel and the one that gates it stand and fall together."""
        source, module = call.values[0], labels.module(call)
        named = module.dim if isinstance(module, nn.GLU) else bound(call, "input", "dim").get("dim", -1)
        dims, along = dict(labels.of(source)), int(named) % len(source.shape)
        if along in dims:
            half = len(dims[along]) // 2
            labels.channels.tie(dims[along][:half], dims[along][half:])
            dims[along] = dims[along][:half]
        labels.set(call.outputs[0], dims, labels.why(source))
