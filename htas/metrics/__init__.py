"""What a metric is: it measures or counts layers and whole networks, all cases at once.

A metric is one file of this folder.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from htas.layer import Layer
from htas.measurement import Measurement
from htas.target import Target

Case = Layer | nn.Module
"""A layer, or a network that takes one batch of the target's images."""
OnRound = Callable[[float, str], None]
"""Hears the share of the work that is done, and a figure of the moment."""
Wanted = Callable[[Sequence[Measurement]], Collection[int]]
"""Given the measurements of all cases so far, the numbers of the cases that need more readings."""


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
