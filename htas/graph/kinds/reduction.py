"""Steps that take a mean, a sum, a maximum or shares along dimensions."""

from math import prod
from typing import TYPE_CHECKING, Any

from torch import nn

from htas.graph.kinds._kind import Kind
from htas.graph.kinds.pointwise import Pointwise
from htas.graph.labels import Dims, Labels, bound, dims_of
from htas.graph.record import Call, Value

if TYPE_CHECKING:
    from htas.graph.emit import Emitter
    from htas.graph.network import Kind as NodeKind

AWAY = {
    "all", "amax", "amin", "any", "argmax", "argmin", "count_nonzero", "linalg_vector_norm", "logsumexp", "max",
    "mean", "median", "min", "nanmean", "nansum", "norm", "prod", "std", "std_mean", "sum", "var", "var_mean",
    "vector_norm",
}  # fmt: skip
STAYING = {"softmax", "log_softmax", "normalize", "softmin", "gumbel_softmax"}
ORDERED = {
    "argsort", "cummax", "cummin", "cumprod", "cumsum", "diff", "kthvalue", "logcumsumexp", "msort", "sort", "topk",
}  # fmt: skip
"""Those whose results depend on what stands before and after."""
FUNCTIONS = AWAY | STAYING | ORDERED
MODULES = (nn.Softmax, nn.LogSoftmax, nn.Softmax2d, nn.Softmin)


class Reduction(Kind):
    """Steps that take a mean, a sum, a maximum or shares along dimensions."""

    functions = frozenset(FUNCTIONS)
    modules = MODULES

    def label(self, call: Call, labels: Labels) -> None:
        """Channels that are reduced are read, whatever their number; the others stay."""
        source = call.values[0]
        dims, count = labels.of(source), len(source.shape)
        module: Any = labels.module(call)
        if call.name in ORDERED and not _apart(call, dims, count):
            labels.stop(call, "depends on the order of its channels")
            return
        if call.name in ORDERED and any(len(out.shape) != count for out in call.outputs):
            labels.stop(call, "is not understood")
            return
        if module is not None or call.name in STAYING | ORDERED:
            for out in call.outputs:
                labels.set(out, dims, labels.why(source))
            return
        if len(call.values) > 1:  # torch.max of two tensors
            POINTWISE.label(call, labels)
            return
        second = {"norm": "p", "vector_norm": "ord", "linalg_vector_norm": "ord"}.get(call.name)
        options = bound(call, "input", *([second] if second else []), "dim", "keepdim")
        named = options.get("dim", options.get("axis"))
        if named is not None and not isinstance(named, int | tuple | list):
            named = None
        gone = dims_of(named, count)
        for out in call.outputs:
            keeps = len(out.shape) == count
            kept = {}
            for dim, ids in dims.items():
                if dim not in gone:
                    kept[dim if keeps else dim - sum(other < dim for other in gone)] = ids
            labels.set(out, kept, labels.why(source))

    def plain_kind(self, call: Call, value: Value, order: list[Value], emitter: "Emitter") -> "NodeKind":
        """A map where nothing but height and width are reduced."""
        source = order[0] if len(order) == 1 and order[0].derived else None
        if source is None or len(source.shape) < 3 or source.shape[:2] != value.shape[:2]:
            return "fixed"
        return "map" if prod(value.shape[2:]) == 1 else "fixed"


def _apart(call: Call, dims: Dims, count: int) -> bool:
    """Whether the dimension that a step works along is named, and has no channels."""
    leading = {"topk": ("k",), "kthvalue": ("k",), "diff": ("n",)}.get(call.name, ())
    options = bound(call, "input", *leading, "dim")
    last = {"sort", "argsort", "topk", "kthvalue", "diff"}
    along = options.get("dim", options.get("axis", -1 if call.name in last else 0))
    return not dims or (isinstance(along, int) and along % count not in dims)


POINTWISE = Pointwise()
