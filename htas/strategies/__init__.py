"""A strategy finds an arch in a Problem.

Add one: a file here with one frozen dataclass that derives from Strategy; its fields are its options.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from htas.arch import Arch
from htas.problem import Problem
from htas.result import EpochRecord


@dataclass(frozen=True)
class Found:
    """What a search leaves behind."""

    arch: Arch
    epochs: tuple[EpochRecord, ...]
    converged: bool
    why: str
    """The figures behind `converged`, in words."""
    validate: Callable[[Sequence[Arch]], list[float]]
    """Validation accuracy, 0 to 1, of any archs of the space, all judged alike (by a supernet, say)."""
    seconds: float
    worth: Callable[[Arch], float] = lambda arch: 0.0
    """How much the search prefers an arch, for choosing among those near the limits; no more than an order."""


class Strategy(ABC):
    """How a space is searched. Implementations are frozen dataclasses."""

    cost: Literal["table", "paper", "macs", "params", "memory", "energy"]
    """What the search is charged: the calibrated latency, that of eq. 7 and 8, or another metric."""

    @abstractmethod
    def search(self, problem: Problem) -> Found:
        """The arch to train. Looks at the training images only; goes on from `problem.checkpoint` if that exists."""

    @property
    @abstractmethod
    def title(self) -> str:
        """Name and what it is charged, for a table: `differentiable, 1.0 x paper`."""
