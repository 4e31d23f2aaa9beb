"""A strategy finds an arch in a Problem.

Add one: a file here with one frozen dataclass that derives from Strategy; its fields are its options.
"""

from abc import ABC, abstractmethod
from typing import Any, Literal

from htas.errors import UserError
from htas.search.problem import Problem, SearchOutcome


def need_limits(problem: Problem, strategy: "Strategy") -> None:
    """Raise UserError where nothing says what an arch may cost, for a strategy that seeks the most accurate one."""
    if not problem.limits:
        name = strategy.title.partition(",")[0]
        raise UserError(
            f"strategy {name} looks for the most accurate network within limits, and none is given; give one, such as "
            '--constraints.latency="50%", or take the strategy differentiable, which can weigh cost against accuracy'
        )


class Strategy(ABC):
    """How a space is searched. Implementations are frozen dataclasses."""

    cost: Literal["table", "paper", "macs", "params", "memory", "energy"]
    """What the search is charged: the calibrated latency, that of eq. 7 and 8, or another metric."""

    @abstractmethod
    def search(self, problem: Problem) -> SearchOutcome:
        """The arch to train. Looks at the training images only; goes on from `problem.checkpoint` if that exists."""

    def images(self, weights: int) -> float:
        """How many images of plain training steps of the base network a search takes as long as, about, of a data set
        with so many for its weights; for the outlook before a run."""
        return 0.0

    @property
    def learning(self) -> dict[str, Any]:
        """What the weights of its supernet depend on, where all of their training comes before any arch is judged, so
        that searches alike in this may share them; empty where there is no such supernet."""
        return {}

    @property
    @abstractmethod
    def title(self) -> str:
        """Name and what it is charged, for a table: `differentiable, 1.0 x paper`."""
