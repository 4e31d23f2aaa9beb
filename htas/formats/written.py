"""Networks and layers as bytes that a runtime opens, on this machine or on a device, and how tensors lie in its arrays.

What opens them is in timing/remote/engines.py, which a device gets too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from htas.errors import UserError
from htas.timing.remote.device import Graph
from htas.timing.remote.engines import ENGINES, Refused


@dataclass(frozen=True)
class Layout:
    """Tensors as they are, real numbers in one format."""

    dtype: torch.dtype | None = torch.float32
    """That format; None keeps each tensor's own."""
    shape: torch.Size | None = None
    """Of the first output, where the runtime leaves out dimensions of one."""

    def arrays(self, tensors: Sequence[Tensor]) -> list[np.ndarray]:
        """Inputs [N, ...] as the program takes them."""
        return [np.ascontiguousarray(tensor.detach().numpy()) for tensor in cast(tensors, self.dtype)]

    def tensors(self, arrays: Sequence[np.ndarray]) -> list[Tensor]:
        """Outputs [N, ...] in fp32."""
        first, *others = (torch.from_numpy(np.array(array)).float() for array in arrays)
        if self.shape is not None and first.numel() == self.shape.numel():
            first = first.reshape(self.shape)
        return [first, *others]


def cast(tensors: Sequence[Tensor], dtype: torch.dtype | None) -> tuple[Tensor, ...]:
    """Tensors on the CPU, floating-point ones as `dtype`; None keeps their own."""
    return tuple(
        tensor.cpu().to(dtype) if dtype is not None and tensor.is_floating_point() else tensor.cpu()
        for tensor in tensors
    )


@dataclass(frozen=True, eq=False)
class Written(Graph):
    """A program in the format of its runtime."""

    example: tuple[Tensor, ...] = ()
    """Inputs [N, ...] that it is timed with here; on a device they are other numbers."""
    layout: Layout = Layout()
    remark: str = ""
    """What a reader of its figures must know, as a sentence."""


class Opened:
    """A program that is open on this machine, by an engine of the agent, and has run once with its example.

    Raises UserError where the engine refuses it.
    """

    def __init__(self, engine: str, program: Written, threads: int = 1, *, half: bool = False) -> None:
        kind: Any = ENGINES[engine]
        self.layout = program.layout
        try:
            self.engine = kind(program.content, threads, 0, half)
            if program.example:
                self.engine.put(self.layout.arrays(program.example))
                self.engine.run()  # what cannot be run shows only then
        except Refused as error:
            raise UserError(error.words) from error
        self.run = self.engine.run

    def outputs(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """All outputs, [N, ...] in fp32, for other inputs, which may then stay."""
        try:
            return self.layout.tensors(self.engine.outputs(self.layout.arrays(tensors)))
        except Refused as error:
            raise UserError(error.words) from error
