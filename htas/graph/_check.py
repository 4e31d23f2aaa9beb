"""Refusals of networks that are hooked, quantised, or on another device."""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from htas.errors import UserError

KINDS = {"_forward_pre_hooks": "forward pre-hook", "_forward_hooks": "forward hook", "_backward_hooks": "backward hook",
         "_backward_pre_hooks": "backward pre-hook"}  # fmt: skip
QUANTISED = ("torch.ao.", "torch.nn.quantized", "torch.nn.qat", "torch.nn.intrinsic", "torchao", "bitsandbytes")


def check(module: nn.Module) -> None:
    """Raise UserError, in one sentence, where a network could not be searched rightly."""
    for name, part in module.named_modules():
        title = f"{type(part).__name__} {name}" if name else type(part).__name__
        for kind, hook in _hooks(part):
            raise UserError(
                f"{title} has a {kind}, {_named(hook)}, which resized layers would lose: remove it (handle.remove()) "
                "and register it on the network that comes out"
            )
        if type(part).__module__.startswith(QUANTISED):
            raise UserError(
                f"{title} is quantised ({type(part).__module__}): give the network in floating point, and quantise the "
                "one found"
            )
    devices = sorted({str(tensor.device) for tensor in module.state_dict().values()} - {"cpu"})
    if devices:
        raise UserError(
            f"the network must be on the CPU, it is on {' and '.join(devices)}: call model.cpu() first; it is trained "
            "where that is fastest all the same"
        )


def _hooks(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """The user's own: those by which torch.nn.utils computes a weight do that in a copy, too."""
    for attribute, kind in KINDS.items():
        for hook in (getattr(module, attribute, None) or {}).values():
            if not type(hook).__module__.startswith("torch."):
                yield kind, hook


def _named(hook: Any) -> str:
    code = getattr(inspect.unwrap(hook), "__code__", None)
    title = getattr(hook, "__qualname__", type(hook).__name__)
    return f"{title} ({Path(code.co_filename)}, line {code.co_firstlineno})" if code else str(title)
