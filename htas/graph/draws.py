"""New values for the weights of a network, drawn as their own modules draw them; through parametrizations, too."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized

from htas.graph.modes import evaluating

STEPS = 15
"""Times that a new weight is computed where its parametrization keeps an estimate of it, such as the largest singular
value; as often as torch does when the parametrization is made."""


def draw_again(module: nn.Module) -> list[str]:
    """Draw all weights of a network, in place; returns the names of parameters that are trained and that none of its
    modules draws: these keep their values."""
    before = {
        name: (tensor, _version(tensor), tensor.detach().clone())
        for name, tensor in module.named_parameters() if tensor.requires_grad
    }  # fmt: skip
    parts = list(module.modules())
    for part in parts:
        _draw(part, "reset_parameters")
    for part in reversed(parts):  # as in their __init__: those of what they hold, then their own (attention)
        _draw(part, "_reset_parameters")
    after = dict(module.named_parameters())
    return [
        name
        for name, (tensor, version, values) in before.items()
        if after.get(name) is tensor and _version(tensor) == version and torch.equal(tensor.detach(), values)
    ]


def _draw(part: nn.Module, name: str) -> None:
    """Call a module's own function that draws its weights, where it has one that asks for nothing."""
    reset = getattr(part, name, None)
    if not callable(reset) or not _asks_nothing(reset):
        return
    if is_parametrized(part):
        draw_through(part, name)
    else:
        reset()


def _asks_nothing(function: Callable[..., Any]) -> bool:
    try:
        inspect.signature(function).bind()
    except (TypeError, ValueError):
        return False
    return True


def _version(tensor: Tensor) -> int:
    """It grows whenever values are written, equal ones too."""
    return 0 if tensor.is_inference() else tensor._version


@torch.no_grad()
def draw_through(part: nn.Module, name: str = "reset_parameters") -> None:
    """Draw the weights of a module that computes some of them (torch.nn.utils.parametrize), as if these were its own,
    and give what they are computed from the values that lead to them."""
    steps: Any = part.parametrizations
    with _plain(part) as weights:
        getattr(part, name)()
    for each, weight in weights.items():
        _assign(steps[each], weight)


@contextmanager
def _plain(part: Any) -> Iterator[dict[str, nn.Parameter]]:
    """For a while the module holds the weights that it computes, by name, and is of its class before
    parametrization."""
    kind, children = type(part), dict(part._modules)
    with evaluating(part):
        weights = {name: nn.Parameter(getattr(part, name).detach().clone()) for name in part.parametrizations}
    part.__class__ = kind.__bases__[0]  # as torch does to remove a parametrization
    del part._modules["parametrizations"]
    part._parameters.update(weights)
    try:
        yield weights
    finally:
        for name in weights:
            weights[name] = part._parameters.pop(name)
        part._modules.clear()
        part._modules.update(children)
        part.__class__ = kind


def _assign(steps: ParametrizationList, weight: Tensor) -> None:
    """Write what a weight is computed from, as torch does when it parametrizes one; nothing where that cannot be."""
    values: Any = weight.detach()
    maps: list[Any] = [*steps.children()]
    try:
        for step in reversed(maps):
            if hasattr(step, "right_inverse"):
                with suppress(NotImplementedError):
                    values = step.right_inverse(values)
    except Exception:  # a user's parametrization may refuse weights of another range
        return
    sources = [getattr(steps, "original" if steps.is_tensor else f"original{i}") for i in range(steps.ntensors)]
    values = [values] if steps.is_tensor else list(values)
    if any(one.shape != other.shape or not other.isfinite().all() for one, other in zip(sources, values, strict=True)):
        return
    for source, each in zip(sources, values, strict=True):
        source.copy_(each)
    settle(steps)


@torch.no_grad()
def settle(steps: nn.Module) -> None:
    """Compute a weight a few times in training mode, where its parametrization keeps an estimate of it."""
    if not list(steps.buffers()):
        return
    modes = {part: part.training for part in steps.modules()}
    steps.train()
    for _ in range(STEPS):
        steps()
    for part, training in modes.items():
        part.training = training
