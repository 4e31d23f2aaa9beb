"""A module as a torch.fx graph, with the shape of every value."""

import inspect
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from htas.modes import evaluating
from htas.text import first_line


def capture(module: nn.Module, inputs: int) -> fx.GraphModule:
    """The module in eval mode as a torch.fx graph, whose nodes know which submodule they stand in; raises ValueError.

    What forward takes beyond so many `inputs` has its default.
    """
    rest = list(inspect.signature(module.forward).parameters.values())[inputs:]
    defaults = {each.name: each.default for each in rest if each.default is not each.empty}
    try:
        with evaluating(module):
            return fx.GraphModule(module, _Tracer().trace(module, defaults or None))
    except Exception as error:  # a forward pass may raise anything
        raise ValueError(
            f"{type(module).__name__} cannot be traced by torch.fx ({first_line(error)}); "
            "keep data-dependent control flow out of forward()"
        ) from error


class _Tracer(fx.Tracer):
    """Layer norms stay whole, those of a user's own class too."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.LayerNorm) or super().is_leaf_module(m, module_qualified_name)


def names(graph: fx.Graph) -> dict[fx.Node, str]:
    """A name for each node that stays when blocks elsewhere are cut: its module, or `owner:operation` and a count."""
    counts: dict[str, int] = {}
    found = {}
    for node in graph.nodes:
        if node.op == "call_module":
            name = str(node.target)
        else:
            what = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "function")
            name = f"{owner_of(node)}:{what}"
        counts[name] = counts.get(name, 0) + 1
        found[node] = name if counts[name] == 1 else f"{name}#{counts[name]}"
    return found


def owner_of(node: fx.Node) -> str:
    stack = stack_of(node)
    return stack[-1] if stack else ""


def stack_of(node: fx.Node) -> list[str]:
    """Paths of the modules under way, the outermost first."""
    return [str(path) for path, _ in (node.meta.get("nn_module_stack") or {}).values()]


def captured(module: nn.Module, examples: tuple[Tensor, ...]) -> fx.GraphModule:
    """`capture`, with the shape of every node's value under meta["shape"] (None where it is no tensor)."""
    graph = capture(module, len(examples))
    try:
        with evaluating(module), torch.no_grad():
            _Shapes(graph).run(*(example.clone() for example in examples))
    except Exception as error:
        shapes = " and ".join(str(tuple(example.shape)) for example in examples)
        what = "an input" if len(examples) == 1 else "inputs"
        raise ValueError(
            f"{type(module).__name__} does not run on {what} of shape {shapes} ({first_line(error)})"
        ) from error
    return graph


class _Shapes(fx.Interpreter):
    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        n.meta["shape"] = tuple(result.shape) if isinstance(result, Tensor) else None
        n.meta["tensors"] = any(isinstance(leaf, Tensor) for leaf in tree_leaves(result))
        if isinstance(result, nn.Parameter) and result.requires_grad:
            n.meta["params"] = result.numel()
        return result
