"""What a metric is: it measures or counts layers and whole networks, all cases at once.

A metric is one file of this folder.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from htas.layer import Layer
from htas.measurement import Measurement
from htas.target import Target

Case = Layer | nn.Module
"""A layer, or a network that takes one batch of the target's images."""


@dataclass(frozen=True)
class Metric(ABC):
    """A figure of layers and networks. Implementations are frozen dataclasses; further fields are their options."""

    target: Target
    unit: ClassVar[str]
    """Of the readings: `s`, `MACs`, `parameters`."""

    @abstractmethod
    def measure(
        self, cases: Sequence[Case], *, on_round: Callable[[int, int], None] | None = None
    ) -> list[Measurement]:
        """One measurement for each case, in their order; the models themselves stay as they are.

        `on_round` hears how many rounds of readings are done, of how many; a metric that only counts has none.
        """
