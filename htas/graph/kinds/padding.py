"""Padding by rows and columns of pixels, or by channels of zeros."""

import numpy as np

from htas.graph.kinds._kind import Kind
from htas.graph.labels import Dims, Labels, bound
from htas.graph.record import Call

FUNCTIONS = {"pad", "constant_pad_nd"}


class Padding(Kind):
    """Padding by rows and columns of pixels, or by channels of zeros."""

    functions = frozenset(FUNCTIONS)

    def label(self, call: Call, labels: Labels) -> None:
        """Padded channels are none of a layer's: what is added to them stays."""
        options = bound(call, "input", "pad", "mode", "value")
        source, sizes = call.values[0], [int(each) for each in options["pad"]]
        dims: Dims = {}
        last = len(source.shape) - 1
        for dim, ids in labels.of(source).items():
            place = 2 * (last - dim)
            before, after = (sizes[place], sizes[place + 1]) if place < len(sizes) else (0, 0)
            if before < 0 or after < 0 or ((before or after) and options.get("mode", "constant") != "constant"):
                labels.stop(call, "adds or drops channels")
                return
            dims[dim] = (
                np.concatenate([np.zeros(before, np.int64), ids, np.zeros(after, np.int64)]) if before or after else ids
            )
        labels.set(call.outputs[0], dims, labels.why(source))
