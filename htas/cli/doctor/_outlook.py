"""Whether a survey started now would be decided: a forecast from the noise of a few layers."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Literal

import numpy as np

from htas.text import percent, plural
from htas.timing.bench import REPEAT, HostTimer
from htas.timing.measurement import Measurement

WIDTHS = 224
"""Widths of the CIFAR ResNets at e = 2: 32, 64 and 128."""
SECONDS = 20.0
SURE = 2.0
"""Standard errors between a difference and the margin; right 19 times of 20."""


@dataclass(frozen=True)
class Outlook:
    """What a survey of `widths` widths in `seconds` could tell apart, if the noise stays the same."""

    widths: int
    seconds: float
    count: int
    """Readings of each width."""
    error: float
    """Standard error of a width's latency after those, as a share of it; of the layer where that is largest."""
    ties: float
    """The margin within which widths count as equal (design.ties)."""

    @property
    def uncertainty(self) -> float:
        """Error of the difference of two widths, as a share of the latency."""
        return SURE * sqrt(2) * self.error

    @property
    def decided(self) -> Literal["yes", "partly", "no"]:
        """`yes` where the uncertainty is within the margin, `no` where it is more than twice as large."""
        if self.count < 2 or self.uncertainty > 2 * self.ties:
            return "no"
        return "yes" if self.uncertainty <= self.ties else "partly"

    @property
    def words(self) -> str:
        """The answer and its reasons."""
        answer = {
            "yes": "would be decided",
            "partly": "would leave some groups undecided",
            "no": "would be decided by noise",
        }[self.decided]
        return (
            f"a survey started now {answer}: {self.widths} widths in {self.seconds:.0f} seconds get "
            f"{plural(self.count, 'reading')} each, so that the difference of two widths is known to "
            f"{percent(self.uncertainty, 1)}, against a margin for ties of {percent(self.ties, 1)}. "
            "This is a forecast from the spread of three layers; it assumes that the noise stays as it is"
        )


def outlook(
    readings: Sequence[Measurement],
    ties: float,
    widths: int = WIDTHS,
    seconds: float = SECONDS,
    shortest: float = HostTimer.shortest,
) -> Outlook:
    """The forecast from readings as a survey takes them; their standard error shrinks with the root of the count.

    `shortest`: least seconds of a reading. The error is that between readings of one survey: a slow phase of the
    machine falls on all widths alike.
    """
    count = int(seconds / widths / float(np.mean([_cost(each, shortest) for each in readings])))
    errors = [each.error / each.estimate * sqrt(len(each.values) / max(count, 1)) for each in readings]
    return Outlook(widths, seconds, count, max(errors), ties)


def _cost(measured: Measurement, shortest: float) -> float:
    """Seconds that one reading takes, with its share of the call before it that is not timed."""
    return max(shortest, measured.median) + measured.median / REPEAT
