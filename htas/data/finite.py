"""Inputs that are NaN or infinite, by the numbers of their items: whatever learns from one is lost."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from htas.errors import UserError

CHUNK = 1024
"""Items of a tensor that are looked at together."""


def finite_rows(inputs: Iterable[Any]) -> Tensor:
    """bool [N], whether an item is free of NaN and infinity in every input [N, ...] of floats."""
    floats = [each for each in inputs if isinstance(each, Tensor) and each.is_floating_point()]
    rows = [each.reshape(len(each), -1).isfinite().all(1) for each in floats if each.dim()]
    return torch.stack(rows).all(0) if rows else torch.ones(0, dtype=torch.bool)


def finite_item(inputs: Iterable[Any]) -> bool:
    """Whether the inputs of a single item, tensors or arrays, are free of NaN and infinity; other kinds count as such
    that are."""
    for each in inputs:
        if isinstance(each, Tensor) and each.is_floating_point() and not bool(each.isfinite().all()):
            return False
        if isinstance(each, np.ndarray) and each.dtype.kind == "f" and not bool(np.isfinite(each).all()):
            return False
    return True


def need_finite(what: str, numbers: Sequence[int], finite: Tensor) -> None:
    """Raise UserError, with the number of the first, where items of these numbers are not finite, by a bool [N]."""
    wrong = [number for number, each in zip(numbers, finite.tolist(), strict=False) if not each]
    if wrong:
        more = f" (of {len(numbers)} items looked at {len(wrong)} have such inputs)" if len(wrong) > 1 else ""
        raise UserError(
            f"inputs of item {min(wrong)} of {what} are NaN or infinite{more}: replace them, or leave those items out"
        )
