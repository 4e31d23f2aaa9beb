"""HTAS: the fastest width and depth of a network, for one device.

    import htas

    result = htas.optimize(model, example_inputs=images, data=(training, validation),
                           target=htas.Target(runtime="onnxruntime", batch=1), constraints={"latency": "50%"})
    result.model                      # a plain nn.Module, trained and measured
    result.report("report.html")
    result.save("fast/")
    result.export("fast.onnx")

Every step alone: `trace` reads the free widths and depths of a network, `ordered` sorts its channels, `resize` writes
an Arch into it, `Target` says where it must be fast. Stages with files are functions of `htas.pipeline`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from htas.api import Optimized, optimize
    from htas.arch import Arch
    from htas.graph import Network, Site, ordered, resize, trace
    from htas.space import Space
    from htas.target import Target

__version__ = "0.1.0"

__all__ = [
    "Arch",
    "Network",
    "Optimized",
    "Site",
    "Space",
    "Target",
    "optimize",
    "ordered",
    "resize",
    "trace",
]

_PLACES = {
    "Optimized": "api", "optimize": "api", "Arch": "arch", "Network": "graph", "Site": "graph",
    "ordered": "graph", "resize": "graph", "trace": "graph", "Space": "space", "Target": "target",
}  # fmt: skip
"""Where each name is found, when it is asked for: importing this package stays quick."""


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'htas' has no attribute {name!r}; it has {', '.join(__all__)}")
    found = getattr(import_module(f"htas.{_PLACES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
