"""What a metric is: it measures or counts layers and whole networks, all cases at once.

A metric is one file of this folder.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from htas.graph.layer import Layer
from htas.timing.measurement import Measurement
from htas.timing.target import Target

Case = Layer | nn.Module
"""A layer, or a network that takes one batch of the target's images."""
OnRound = Callable[[float, str], None]
"""Hears the share of the work that is done, and a figure of the moment."""
Wanted = Callable[[Sequence[Measurement]], Collection[int]]
"""Given the measurements of all cases so far, the numbers of the cases that need more readings."""
More = Callable[[Mapping[Case, Measurement]], Collection[Case]]
"""Given what has been measured so far, the cases that need more readings, or a first one."""


@dataclass(frozen=True)
class Metric(ABC):
    """A figure of layers and networks. Implementations are frozen dataclasses; further fields are their options."""

    target: Target
    unit: ClassVar[str]
    """Of the readings: `s`, `MACs`, `parameters`."""

    @abstractmethod
    def measure(
        self, cases: Sequence[Case], *, on_round: OnRound | None = None, wanted: Wanted | None = None
    ) -> list[Measurement]:
        """One measurement for each case, in their order; the models themselves stay as they are.

        A metric that reads goes on where readings are `wanted`, within its limits; one that counts ignores both.
        """

    def sample(
        self,
        cases: Sequence[Case],
        first: Collection[Case],
        *,
        on_round: OnRound | None = None,
        wanted: More | None = None,
    ) -> dict[Case, Measurement]:
        """Measure the `first` of the cases, then others as they are `wanted`: what was measured, of no other case.

        Here one after the other, as is right where figures are counted. A metric that readings of one moment bind
        together has its own, which takes the others into the same rounds.
        """
        begun = [case for case in dict.fromkeys(cases) if case in set(first)]
        measured = self.measure(begun, on_round=on_round, wanted=by_number(begun, wanted))
        found = dict(zip(begun, measured, strict=True))
        while wanted is not None and (new := [case for case in wanted(found) if case not in found]):
            found |= zip(new, self.measure(new), strict=True)
        return found


def by_number(cases: Sequence[Case], wanted: More | None) -> Wanted | None:
    """What is wanted of these cases, by their numbers."""
    if wanted is None:
        return None

    def more(readings: Sequence[Measurement]) -> set[int]:
        asked = set(wanted(dict(zip(cases, readings, strict=True))))
        return {number for number, case in enumerate(cases) if case in asked}

    return more


def by_case(cases: Sequence[Case], wanted: Wanted | None) -> More | None:
    """What is wanted by number, as cases; the inverse of `by_number`."""
    if wanted is None:
        return None
    return lambda found: {cases[number] for number in wanted([found[case] for case in cases])}
