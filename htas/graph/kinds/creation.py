"""Steps that make tensors of given sizes, and read no numbers."""

from htas.data.nests import leaves_in
from htas.graph.kinds._kind import Kind
from htas.graph.labels import Dims, Labels
from htas.graph.length import Length, leaves_of
from htas.graph.record import Call

FUNCTIONS = {"new_empty", "new_zeros", "new_ones", "new_full", "zeros", "ones", "full", "empty", "rand", "randn"}


class Creation(Kind):
    """Steps that make tensors of given sizes, and read no numbers."""

    functions = frozenset(FUNCTIONS)

    def label(self, call: Call, labels: Labels) -> None:
        """A size that is a tensor's number of channels makes a dimension of these channels."""
        out = call.outputs[0]
        sizes = [leaf for leaf in leaves_in(call.args) if type(leaf) in (int, Length)][: len(out.shape)]
        dims: Dims = {}
        for dim, size in enumerate(sizes):
            leaves = [leaf for leaf, _ in leaves_of(size)]
            if not any(leaf[0] == "size" and leaf[2] in labels.of(leaf[1]) for leaf in leaves):
                continue
            whole = isinstance(size, Length) and size.how[0] == "size"
            if not whole or [int(each) for each in sizes] != list(out.shape):
                labels.stop(call, "is given the number of channels")
                return
            dims[dim] = labels.of(leaves[0][1])[leaves[0][2]]
        labels.set(out, dims, "it is no layer's output")
