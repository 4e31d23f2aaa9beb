"""What a metric is: it measures or counts layers and whole networks, all cases at once.

A metric is one file of this folder, or a class of the user's as `package.module:Class`. It owns what the rest of the
package asks about it: its unit, how limits on it are written, whether readings vary, and the cost model of an arch.
"""

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

from torch import nn

from htas import plugins
from htas.graph.layer import Layer
from htas.timing.measurement import Measurement
from htas.timing.target import Target

if TYPE_CHECKING:
    from htas.cost.model import CostModel
    from htas.cost.source import NetworkCosts

Case = Layer | nn.Module
"""A layer, or a network that takes one batch of the target's images."""
OnRound = Callable[[float, str], None] | None
"""Called with the fraction of the work that is done, 0 to 1, and a current figure as text; None where nobody looks."""
Pending = Callable[[Mapping[Case, Measurement]], Collection[Case]] | None
"""Cases that need more readings, or a first one, from the measurements so far; None where all are read alike."""


Elsewhere = Callable[["Metric", Sequence[Case]], list[Measurement]]
"""Reads networks in another process, on the device of the target."""
_elsewhere: ContextVar[Elsewhere | None] = ContextVar("_elsewhere", default=None)


@contextmanager
def measuring_elsewhere(read: Elsewhere) -> Iterator[None]:
    """Metrics that read a meter have their whole networks read by this function."""
    token = _elsewhere.set(read)
    try:
        yield
    finally:
        _elsewhere.reset(token)


def elsewhere() -> Elsewhere | None:
    """What reads whole networks in place of this process."""
    return _elsewhere.get()


@dataclass(frozen=True)
class Metric(ABC):
    """A figure of layers and networks. Implementations are frozen dataclasses; further fields are their options.

    The defaults are those of a figure that is read from a meter, on whole networks.
    """

    target: Target
    unit: ClassVar[str]
    """Unit of the readings: `s`, `MACs`, `parameters`."""
    units: ClassVar[Mapping[str, float]] = {}
    """Units in which a limit may be written, each as a multiple of `unit`; without any a limit is a share, "50%"."""
    example: ClassVar[str] = "50%"
    """A limit as a person writes it."""
    noisy: ClassVar[bool] = True
    """Whether two readings of one network differ; a limit is then checked on fresh readings."""
    whole: ClassVar[bool] = True
    """Whether a limit is checked by measuring the whole network; otherwise its cost model counts exactly."""
    fitted: ClassVar[bool] = True
    """Whether the calibration measures whole networks by this metric, so that `cost` predicts others."""

    @classmethod
    def cost(cls, costs: "NetworkCosts") -> "CostModel":
        """The cost model that charges an arch in this metric's unit."""
        return costs.fitted(cls)

    def check(self) -> None:
        """Raise UserError where this machine cannot take the readings."""
        self.target.check()

    def reread(self, seed: int, predicted: Sequence[float] = ()) -> Self:
        """The metric for another run over networks whose predicted figures are given: other draws, enough readings."""
        return self

    @abstractmethod
    def measure(self, cases: Sequence[Case], *, on_round: OnRound = None, pending: Pending = None) -> list[Measurement]:
        """One measurement for each case, in their order; models are not changed.

        A metric that reads repeats `pending` cases, within its limits; one that counts ignores both arguments.
        """

    def sample(
        self, cases: Sequence[Case], first: Collection[Case], *, on_round: OnRound = None, pending: Pending = None
    ) -> dict[Case, Measurement]:
        """Measure the `first` of the cases, then others while they are `pending`; returns the measured cases only.

        This implementation measures one set after the other, which suits counted figures. A metric whose readings
        depend on the moment overrides it and adds the others to the same rounds.
        """
        begun = [case for case in dict.fromkeys(cases) if case in set(first)]
        readings = dict(zip(begun, self.measure(begun, on_round=on_round, pending=pending), strict=True))
        while pending is not None and (new := [case for case in pending(readings) if case not in readings]):
            readings |= zip(new, self.measure(new), strict=True)
        return readings


@dataclass(frozen=True)
class CountedMetric(Metric):
    """A figure that is worked out, each time the same."""

    noisy: ClassVar[bool] = False
    fitted: ClassVar[bool] = False

    @abstractmethod
    def count(self, case: Case) -> int:
        """The figure of one case, in `unit`; models are not changed."""

    def measure(self, cases: Sequence[Case], *, on_round: OnRound = None, pending: Pending = None) -> list[Measurement]:
        """One reading for each case."""
        return [Measurement((float(self.count(case)),), self.unit) for case in cases]


def named(name: str) -> type[Metric]:
    """The class of a metric by its file's name, or as `package.module:Class`; raises UserError that lists the names."""
    return plugins.find(sys.modules[__name__], Metric, name)  # type: ignore[type-abstract]


def name_of(metric: type[Metric]) -> str:
    """The name by which `named` finds a metric."""
    folder, _, file = metric.__module__.rpartition(".")
    return file if folder == __name__ else f"{metric.__module__}:{metric.__qualname__}"
