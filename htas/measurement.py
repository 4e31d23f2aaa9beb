"""A measurement is a value with a history: the readings, their unit, and where they came from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import sqrt
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Measurement:
    """Readings of one figure; every summary is computed from them, none is stored."""

    values: tuple[float, ...]
    unit: str
    context: Mapping[str, str] = field(default_factory=dict)
    survey: str = ""
    """The readings of one survey were interleaved; only those may be compared closely."""

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("a measurement needs at least one reading, got none")

    @property
    def median(self) -> float:
        """The middle reading."""
        return float(np.median(self.values))

    @property
    def minimum(self) -> float:
        """The lowest reading: what the work costs when nothing disturbs it."""
        return min(self.values)

    @property
    def mean(self) -> float:
        """The average, as the paper takes it; one interruption moves it."""
        return float(np.mean(self.values))

    @property
    def spread(self) -> float:
        """The 75th percentile less the 25th."""
        low, high = np.percentile(self.values, [25, 75])
        return float(high - low)

    @property
    def standard_error(self) -> float:
        """Of the median, for readings that are roughly normal: 1.2533 x s / sqrt(n), s from the spread."""
        return 1.2533 * self.spread / 1.349 / sqrt(len(self.values))

    @property
    def doubts(self) -> tuple[str, ...]:
        """Why these readings may mislead, in words; empty when nothing speaks against them."""
        doubts = []
        if self.minimum > 0 and self.spread > 0.1 * self.median:
            share = round(100 * self.spread / self.median)
            doubts.append(f"the readings spread over {share}% of their median; stop other work and measure again")
        return tuple(doubts)

    def json(self) -> dict[str, Any]:
        """As plain JSON values; `Measurement.of` reads them back."""
        return {
            "values": list(self.values),
            "unit": self.unit,
            "context": dict(self.context),
            "survey": self.survey,
        }

    @staticmethod
    def of(content: Mapping[str, Any]) -> "Measurement":
        """Read what `json` gave."""
        return Measurement(tuple(content["values"]), content["unit"], content["context"], content["survey"])
