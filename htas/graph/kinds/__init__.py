"""The kinds of steps, a file each: which functions and modules are of the kind, what it does to channels, and how its
nodes are computed at other widths. A new kind is a new file."""

from importlib import import_module
from inspect import isabstract
from pkgutil import iter_modules

from htas.graph.kinds._kind import Kind
from htas.graph.kinds.conv import Convolution
from htas.graph.kinds.norm import Norm
from htas.graph.kinds.pointwise import Pointwise
from htas.graph.kinds.spatial import Spatial
from htas.graph.kinds.unknown import Unknown
from htas.graph.labels import Labels
from htas.graph.record import Call

__all__ = ["KINDS", "Convolution", "Kind", "Norm", "Pointwise", "Spatial", "kind_of"]


def _found() -> list[Kind]:
    """One object of every class of a kind in this folder."""
    modules = [import_module(f"{__name__}.{file.name}") for file in iter_modules(__path__) if file.name[0] != "_"]
    classes = [each for module in modules for each in vars(module).values() if isinstance(each, type)]
    return [kind() for kind in dict.fromkeys(classes) if issubclass(kind, Kind) and not isabstract(kind)]


KINDS = _found()
UNKNOWN = Unknown()
BY_FUNCTION = {name: kind for kind in KINDS for name in kind.functions}


def kind_of(call: Call, labels: Labels) -> Kind:
    """The kind of a step, by its module's class or its function's name."""
    if call.whole:
        return UNKNOWN
    if call.module:
        module = labels.modules[call.module]
        return next((kind for kind in KINDS if isinstance(module, kind.modules)), UNKNOWN)
    return BY_FUNCTION.get(call.name, UNKNOWN)
