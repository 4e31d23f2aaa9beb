"""A strategy finds an arch in a Problem.

Add one: a file here with one frozen dataclass that derives from Strategy; its fields are its options. `search` is the
contract; everything else has a default.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from htas import metrics, plugins
from htas.errors import UserError
from htas.files import path_of
from htas.plugins.contract import is_users_own, place_of
from htas.search.oneshot import SupernetOptions, need_start
from htas.search.problem import Problem, SearchOutcome, checked
from htas.text import listing


def need_limits(limited: bool, strategy: "Strategy") -> None:
    """Raise UserError where nothing says what an arch may cost, for a strategy that seeks the most accurate one."""
    if strategy.seeks_within_limits and not limited:
        name = strategy.title.partition(",")[0]
        raise UserError(
            f"strategy {name} looks for the most accurate network within limits, and none is given; give one, such as "
            '--constraints.latency="50%", or take the strategy differentiable, which can weigh cost against accuracy'
        )


def check_charge(option: str, charge: str) -> None:
    """Raise UserError unless an option names a cost: `table`, `paper`, or a metric other than latency."""
    names = ["table", "paper", *(name for name in plugins.names(metrics) if name != "latency")]
    if ":" in charge:
        plugins.check_name("htas.metrics", charge)
        metrics.named(charge)
    elif charge not in names:
        raise UserError(
            f"strategy.{option} must be one of {listing(names)}, or a metric of your own as 'package.module:Class', "
            f"got {charge!r}"
        )


class Strategy(ABC):
    """How a space is searched. Implementations are frozen dataclasses."""

    seeks_within_limits: ClassVar[bool] = False
    """Whether it looks for the most accurate arch within limits, and so cannot search without one."""

    @abstractmethod
    def search(self, problem: Problem) -> SearchOutcome:
        """The arch to train. Looks at the training images only; goes on from `problem.checkpoint` if that exists."""

    def outcome(self, problem: Problem) -> SearchOutcome:
        """What `search` finds; of a strategy of the user's, raises UserError where that is not as its fields say, now
        or when it judges archs."""
        outcome = self.search(problem)
        return checked(outcome, problem.space, place_of(type(self))) if is_users_own(type(self)) else outcome

    def check(self) -> None:
        """Raise UserError where a package that the search needs is not installed."""
        return None

    @property
    def title(self) -> str:
        """Name and what matters most about it, for a table: `differentiable, lambda 1`."""
        return self.name

    @property
    def name(self) -> str:
        """The name of its file, or of a class of the user's."""
        folder, _, file = type(self).__module__.rpartition(".")
        return file if folder == __name__ else type(self).__name__.lower()

    @property
    def charged(self) -> str:
        """The cost that the search weighs archs by: `table` (calibrated latency), `paper` (eq. 7, 8), or a metric."""
        return "table"

    @property
    def trains_anew(self) -> bool:
        """Whether it may find another arch where networks begin with the base network's weights (`Problem.anew`)."""
        return False

    @property
    def processes(self) -> int:
        """Number of processes that search at the same time."""
        return 1

    @property
    def files(self) -> tuple[Path, ...]:
        """Files that the search starts from; a search is repeated where they have changed."""
        return ()

    def training_images(self, weights: int) -> float:
        """Estimated cost of a search, in training images of the base network; `weights` is the number of images that
        the weights learn from."""
        return 0.0

    def sharing(self, supernet: Path) -> "tuple[Strategy, Strategy] | None":
        """The search that leaves its supernet at this path, and the shorter one that starts from it for another budget;
        None where searches of several budgets share nothing in this way."""
        return None


@dataclass(frozen=True)
class SupernetStrategy(SupernetOptions, Strategy):
    """A strategy that trains a supernet."""

    def check(self) -> None:
        """Raise UserError where the supernet that `start` names does not exist."""
        if self.start not in ("base", "random"):
            need_start(path_of(self.start, "strategy.start"))

    @property
    def files(self) -> tuple[Path, ...]:
        """The supernet of another search, where `start` names one."""
        start = path_of(self.start, "strategy.start")
        return (start,) if start.is_file() else ()

    @property
    def supernet_key(self) -> dict[str, object]:
        """Options that the supernet's weights depend on, where its training ends before any arch is judged: searches
        alike in these share one supernet. Empty where weights and archs are learnt together."""
        return {}
