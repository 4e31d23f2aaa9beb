"""A module as a torch.fx graph, with the shape of every value."""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import fx, nn

from htas.console.blame import blame
from htas.errors import UserError
from htas.graph.modes import evaluating


def capture(module: nn.Module, inputs: int) -> fx.GraphModule:
    """The module in eval mode as a torch.fx graph, whose nodes know their submodules.

    Parameters of forward() after the first `inputs` ones have their defaults. Where torch.fx cannot follow a submodule,
    each of its class is one node. Raises UserError where it cannot follow the network's own
    forward.
    """
    rest = list(inspect.signature(module.forward).parameters.values())[inputs:]
    defaults = {each.name: each.default for each in rest if each.default is not each.empty}
    reasons: dict[type[nn.Module], str] = {}
    while True:
        tracer = _Tracer(reasons)
        try:
            with evaluating(module):
                graph = fx.GraphModule(module, tracer.trace(module, defaults or None))
        except Exception as error:  # a forward pass may raise anything
            kind = type(module.get_submodule(tracer.stuck))
            if kind is type(module) or kind in reasons:
                raise UserError(
                    f"{type(module).__name__} cannot be traced by torch.fx: {blame(error)}; keep control flow that "
                    "depends on data out of its forward(), or move it into a submodule, which then stays as it is"
                ) from error
            reasons[kind] = f"cannot be followed by torch.fx: {blame(error)}"
        else:
            return graph


class _Tracer(fx.Tracer):
    """Layer norms stay whole, those of a user's own class too, and so do classes that cannot be followed."""

    def __init__(self, whole: Mapping[type[nn.Module], str]) -> None:
        super().__init__()
        self.whole = whole
        self.stuck = ""
        """The innermost submodule whose forward raised."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.LayerNorm) or type(m) in self.whole or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.stuck = self.stuck or self.path_of_module(m)
            raise


def names(graph: fx.Graph) -> dict[fx.Node, str]:
    """A name for each node that stays when blocks elsewhere are cut: its module, or `owner:operation` and a count."""
    counts: dict[str, int] = {}
    by_node = {}
    for node in graph.nodes:
        if node.op == "call_module":
            name = str(node.target)
        else:
            what = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "function")
            name = f"{owner_of(node)}:{what.removeprefix('i') if what == 'iadd' else what.strip('_')}"
        counts[name] = counts.get(name, 0) + 1
        by_node[node] = name if counts[name] == 1 else f"{name}#{counts[name]}"
    return by_node


def owner_of(node: fx.Node) -> str:
    stack = stack_of(node)
    return stack[-1] if stack else ""


def stack_of(node: fx.Node) -> list[str]:
    """Paths of the modules under way, the outermost first."""
    return [str(path) for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
