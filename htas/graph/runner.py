"""A step of a torch.fx graph as a function of its inputs."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import fx, nn


def runner(fxnode: fx.Node, sources: Sequence[fx.Node]) -> Callable[[Callable[[str], nn.Module], tuple[Any, ...]], Any]:
    """A function that computes the node from its modules and the values of `sources`, in their order."""
    target: Any = fxnode.target

    def run(modules: Callable[[str], nn.Module], values: tuple[Any, ...]) -> Any:
        by_source = dict(zip(sources, values, strict=True))
        args = fx.node.map_arg(fxnode.args, by_source.__getitem__)
        kwargs = fx.node.map_arg(fxnode.kwargs, by_source.__getitem__)
        match fxnode.op:
            case "call_module":
                return modules(target)(*args, **kwargs)
            case "call_method":
                return getattr(args[0], target)(*args[1:], **kwargs)
            case "get_attr":
                owner, _, attribute = target.rpartition(".")
                return getattr(modules(owner), attribute)
            case "placeholder":  # one that was not given: its default
                return args[0] if args else None
            case _:
                return target(*args, **kwargs)

    return run


def first_value(_: Callable[[str], nn.Module], values: tuple[Any, ...]) -> Any:
    return values[0]


def last_value(_: Callable[[str], nn.Module], values: tuple[Any, ...]) -> Any:
    return values[-1]
