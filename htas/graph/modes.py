"""A network in eval mode for a while, left as it was; copies of networks, and what wrappers hold."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn

from htas.data.nests import tensors_in

T = TypeVar("T", bound=nn.Module)
USUAL = frozenset(vars(nn.Module()))
"""What every module holds."""


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into eval mode; afterwards every part has the mode that it had."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Let a forward pass keep on the module whatever it wants; afterwards every part holds what it held before, and
    every tensor has the values that it had."""
    held_tensors = [*module.parameters(), *module.buffers(), *tensors_in([_extra(part) for part in module.modules()])]
    values_before = [(tensor, tensor.detach().clone()) for tensor in held_tensors]
    before = [(part, dict(vars(part)), _contents(part)) for part in module.modules()]
    try:
        yield
    finally:
        for part, held, contents in before:
            for name in [name for name in vars(part) if name not in held]:
                del part.__dict__[name]
            part.__dict__.update(held)
            for container, values in contents:
                container.clear()
                (container.extend if isinstance(container, list) else container.update)(values)
        with torch.no_grad():
            for tensor, earlier in values_before:
                if not torch.equal(tensor, earlier):
                    tensor.copy_(earlier)


def _contents(part: nn.Module) -> list[tuple[Any, Any]]:
    """What the lists, dictionaries and sets that a module holds have in them; a buffer may be another tensor then."""
    held = [part._buffers, *_extra(part).values()]
    return [(value, copy.copy(value)) for value in held if type(value) in (list, dict, set)]


def _extra(part: nn.Module) -> dict[str, Any]:
    """What a module holds besides parameters, buffers and submodules."""
    return {name: value for name, value in vars(part).items() if name not in USUAL}


def copied(module: T) -> T:
    """A deep copy; of tensors that a forward pass has left on the module, whose gradients nobody can copy, the
    values."""
    memo: dict[int, Any] = {}
    for part in module.modules():
        for tensor in tensors_in(_extra(part)):
            if not tensor.is_leaf:
                memo[id(tensor)] = tensor.detach().clone()
    return copy.deepcopy(module, memo)


def unwrapped(module: nn.Module) -> nn.Module:
    """The network inside torch.compile, DataParallel and DistributedDataParallel."""
    while True:
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            module = module.module
        elif type(module).__name__ == "OptimizedModule":
            module = module._orig_mod  # type: ignore[assignment]
        else:
            return module
