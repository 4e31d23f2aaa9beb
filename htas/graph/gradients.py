"""The steps of a run for which a user's forward turns gradients off (torch.no_grad)."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

CHECKPOINTS = "torch.utils.checkpoint"
"""It turns gradients off, and computes them later."""
_modes: list[bool] = []
"""Whether gradients are on, by context under way, the innermost last."""


def gradients_off() -> bool:
    """Whether the forward that is being recorded has turned gradients off."""
    return bool(_modes) and not _modes[-1]


@contextmanager
def noticing_gradients() -> Iterator[None]:
    """While `gradients_off` follows torch's context managers, though gradients are off for other reasons, too."""
    modes: dict[type[Any], Callable[[Any], bool]] = {
        torch.no_grad: lambda context: False,
        torch.enable_grad: lambda context: True,
        torch.inference_mode: lambda context: not context.mode,
        torch.set_grad_enabled: lambda context: bool(context.mode),
    }
    before = {kind: (kind.__enter__, kind.__exit__) for kind in modes}
    outer = _modes[:]
    _modes.clear()
    for kind, mode in modes.items():
        kind.__enter__, kind.__exit__ = _following(*before[kind], mode)
    try:
        yield
    finally:
        for kind, (enter, leave) in before.items():
            kind.__enter__, kind.__exit__ = enter, leave
        _modes[:] = outer


def _following(enter: Any, leave: Any, mode: Callable[[Any], bool]) -> tuple[Any, Any]:
    def entered(context: Any) -> Any:
        checkpoints = sys._getframe(1).f_globals.get("__name__") == CHECKPOINTS
        _modes.append(not gradients_off() if checkpoints else mode(context))
        return enter(context)

    def ended(context: Any, *error: Any) -> Any:
        _modes.pop()
        return leave(context, *error)

    return entered, ended
