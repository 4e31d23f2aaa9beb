"""Steps that work within each channel: pooling, resizing, padding of pixels."""

from dataclasses import replace
from typing import TYPE_CHECKING

from torch import nn

from htas.graph.kinds._kind import Kind
from htas.graph.kinds._pool import pool_of
from htas.graph.labels import Labels, title
from htas.graph.record import Call, Value

if TYPE_CHECKING:
    from htas.graph.emit import Emitter
    from htas.graph.network import Kind as NodeKind
    from htas.graph.network import Node


POOLS = ("max", "avg", "adaptive_avg", "adaptive_max", "lp", "fractional_max")
FUNCTIONS = {
    *(f"{name}_pool{dims}d" for name in POOLS for dims in (1, 2, 3)), "interpolate", "upsample", "upsample_nearest",
    *(f"{name}_pool{dims}d_with_indices" for name in ("max", "adaptive_max") for dims in (1, 2, 3)),
    "upsample_bilinear", "grid_sample", "local_response_norm",
}  # fmt: skip
MODULES = (
    nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AvgPoolNd, nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd, nn.modules.pooling._LPPoolNd, nn.Upsample,
    nn.modules.padding._ConstantPadNd, nn.modules.padding._ReflectionPadNd, nn.modules.padding._ReplicationPadNd,
    nn.CircularPad2d, nn.CircularPad1d, nn.CircularPad3d,
)  # fmt: skip


class Spatial(Kind):
    """Steps that work within each channel: pooling, resizing, padding of pixels."""

    functions = frozenset(FUNCTIONS)
    modules = MODULES

    def label(self, call: Call, labels: Labels) -> None:
        """Images and channels stay, pixels have no labels."""
        source = call.values[0]
        dims = labels.of(source)
        kept = {}
        for dim, ids in dims.items():
            if dim <= 1:
                kept[dim] = ids
            else:
                labels.channels.freeze(ids, f"{title(call, labels.modules)} takes it for height or width")
        for out in call.outputs:
            labels.set(out, kept, labels.why(source))

    def plain_kind(self, call: Call, value: Value, order: list[Value], emitter: "Emitter") -> "NodeKind":
        """A map, as where channels are free."""
        sources = [each for each in order if each.derived]
        return "map" if len(sources) == 1 and emitter.same(sources[0], value) else "fixed"

    def complete(self, node: "Node", call: Call, value: Value, emitter: "Emitter") -> "Node":
        """With the layer of a pool, which may read another tensor for its sizes."""
        return replace(node, layer=pool_of(node, call, value, emitter)) if node.kind in ("map", "move") else node
