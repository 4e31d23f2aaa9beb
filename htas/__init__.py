"""HTAS: the fastest width and depth of a network, for one device.

    import htas

    result = htas.optimize(model, example_inputs=images, data=(training, validation),
                           target=htas.Target(runtime="onnxruntime", batch=1), constraints={"latency": "50%"})
    result.model                      # a plain nn.Module, trained and measured
    result.report("report.html")
    result.save("fast/")
    result.export("fast.onnx")

Every step alone: `trace` reads the free widths and depths of a network, `ordered` sorts its channels, `resize` writes
an Arch into it, `Target` says where it must be fast. Stages with files are `htas.run.stages.STAGES`.
"""

from importlib import import_module

TYPE_CHECKING = False  # typing's, whose import takes longer than all else here
if TYPE_CHECKING:
    from typing import Any

    from htas.errors import UserError
    from htas.files import __version__ as __version__
    from htas.graph import Arch, Network, Site, ordered, resize, trace
    from htas.run.optimize import OptimizationResult, optimize
    from htas.spaces.space import Space
    from htas.timing.target import Target

__all__ = [
    "Arch", "Network", "OptimizationResult", "Site", "Space", "Target", "UserError", "optimize", "ordered", "resize",
    "trace",
]  # fmt: skip
_PLACES = {
    "OptimizationResult": "run.optimize", "optimize": "run.optimize", "Arch": "graph.arch", "Network": "graph",
    "Site": "graph", "ordered": "graph", "resize": "graph", "trace": "graph", "Space": "spaces.space",
    "Target": "timing.target", "UserError": "errors", "__version__": "files",
}  # fmt: skip
"""The file that defines each public name; it is imported with the first use, so that `import htas` is quick."""


def __getattr__(name: str) -> "Any":
    if name not in _PLACES:
        raise AttributeError(f"module 'htas' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(import_module(f"htas.{_PLACES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
