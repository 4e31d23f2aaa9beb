"""A measurement is a value with a history: the readings, their unit, and where they came from."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import hypot, sqrt

import numpy as np
from numpy.typing import NDArray

from htas.errors import UserError

LOW = 25.0
"""The percentile of readings over their levels that is the estimate, as interference only ever adds."""
BLOCKS = 6
"""Stretches of time that are left out in turn for a standard error."""
FEW = 0.02
"""Least relative deviation of a reading, where too few were taken to show it: readings of one turn agree with
each other and not with those of the next."""
ALIKE = 1e-9
"""Relative difference of figures that are one."""
DRIFT = 0.1
"""Share by which the second half of the readings may differ from the first without a doubt."""
MOMENTS = 0.075
"""Relative standard deviation of a shared machine's usual level from one quarter of an hour to the next, which readings
of one run cannot tell (docs/decisions.md). It falls on all networks alike, so it is in no comparison within a run."""
CONTENDED = 0.15
"""... of a machine with remarks: other processes ran, or its clock moved."""
STUDENT = 2.57
"""Standard errors to either end of a 95 % interval from BLOCKS stretches (Student's t, 5 degrees of freedom)."""
PAIRS = 16
"""Stretches of a run in which two networks are compared, so that each holds its own programs."""
PAIRED = 2.13
"""Standard errors to either end of a 95 % interval from PAIRS stretches (Student's t, 15 degrees of freedom)."""
LOWER = 1.36
"""Standard deviation of the LOW percentile of normal readings over that of their mean."""
OUTLYING = 3.0
"""Robust standard deviations from the median of the stretches at which one is cut off."""


@dataclass(frozen=True)
class Measurement:
    """Readings of one figure, in order of time; every summary is computed from them, none is stored."""

    values: tuple[float, ...]
    unit: str
    context: Mapping[str, str] = field(default_factory=dict)
    survey: str = ""
    """The readings of one survey were interleaved; only those may be compared closely."""
    levels: tuple[float, ...] = ()
    """How slow the machine was at each reading, where 1 is usual (level.py); empty where it is unknown."""
    remarks: tuple[str, ...] = ()
    """What the machine did during the readings that may mislead, in words."""
    note: str = ""
    """What must be known of the program that was read, such as its layers in another precision, as a sentence."""

    def __post_init__(self) -> None:
        if not self.values:
            raise UserError("a measurement needs at least one reading, got none")
        if self.levels and len(self.levels) != len(self.values):
            raise UserError(f"{len(self.values)} readings need as many levels, got {len(self.levels)}")
        if not all(level > 0 for level in self.levels):
            raise UserError("the levels of readings must be above 0")

    @property
    def estimate(self) -> float:
        """The LOW percentile of the readings, each over the machine's level at that moment, in `unit`."""
        return float(np.percentile(self._steady, LOW))

    @property
    def error(self) -> float:
        """Standard error of the estimate against others of the same survey, which share the machine's levels."""
        return _error(self._steady, LOW)

    @property
    def standard_error(self) -> float:
        """Standard error of the estimate by itself, which includes that of the machine's usual level."""
        level = _error(np.asarray(self.levels), 50) if self.levels else 0.0
        return hypot(self.error, self.estimate * level)

    @property
    def interval(self) -> tuple[float, float]:
        """Where the estimate of a repetition at another hour lies in 95 of 100 cases: from the errors of
        both and the machine's changes from hour to hour (MOMENTS)."""
        moments = CONTENDED if self.remarks else MOMENTS
        reach = sqrt(2) * hypot(STUDENT * self.standard_error, 1.96 * moments * self.estimate)
        return self.estimate - reach, self.estimate + reach

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
    def mean_error(self) -> float:
        """Standard error of the mean, from the means of stretches as for the estimate."""
        count = len(self.values)
        if count < 2:
            return 0.0
        means = [float(block.mean()) for block in np.array_split(np.asarray(self.values), min(BLOCKS, count))]
        return float(np.std(means, ddof=1) / sqrt(len(means)))

    @property
    def spread(self) -> float:
        """The 75th percentile less the 25th."""
        low, high = np.percentile(self.values, [25, 75])
        return float(high - low)

    @property
    def drift(self) -> float:
        """How far the median of the second half of the readings lies above the first's, as a fraction; 0 for few."""
        half = len(self.values) // 2
        first = float(np.median(self.values[:half])) if half >= BLOCKS else 0.0
        return float(np.median(self.values[half:])) / first - 1 if first > 0 else 0.0

    @property
    def doubts(self) -> tuple[str, ...]:
        """Why these readings may mislead, in words; empty for good ones."""
        doubts = list(self.remarks)
        if self.minimum > 0 and self.spread > 0.1 * self.median:
            share = round(100 * self.spread / self.median)
            doubts.append(f"the readings spread over {share}% of their median; stop other work and measure again")
        if abs(self.drift) > DRIFT:
            way = "slower" if self.drift > 0 else "faster"
            doubts.append(
                f"the machine drifted: the second half of the readings is {abs(100 * self.drift):.0f}% {way} than the "
                "first; let it work for a minute first, then measure again"
            )
        return tuple(doubts)

    def scaled(self, factor: float) -> "Measurement":
        """Every reading times `factor`, which brings it to the level of another run."""
        return replace(self, values=tuple(value * factor for value in self.values))

    @property
    def _steady(self) -> NDArray[np.float64]:
        """The readings as they would have been at the machine's usual level."""
        values = np.asarray(self.values, float)
        return values / np.asarray(self.levels) if self.levels else values


def noise(one: Measurement, other: Measurement) -> float:
    """How far the estimates of two networks that are equally fast come to lie apart, in 95 of 100 runs.

    Where they were read in the same rounds, this is seen from the ratio of their readings in each round, in which the
    machine's level cancels. The errors of both do not show it: the levels were found from the same readings, and follow
    what is by chance (in a run of few networks the estimate is often that of a reading which is the level itself).
    The medians of PAIRS stretches of time are compared, as programs are built for each; one that was disturbed is cut
    off. Readings of separate runs, and few of them, have the noise of both errors.
    """
    values = [np.asarray(each.values) / np.asarray(each.levels or 1.0) for each in (one, other)]
    together = one.survey == other.survey and len(one.values) == len(other.values) >= 3 * PAIRS
    if not together or min(map(np.min, values)) <= 0:
        return STUDENT * hypot(one.error, other.error)
    ratios = np.log(values[0] / values[1])
    figures = np.array([np.median(part) for part in np.array_split(ratios, PAIRS)])
    middle = np.median(figures)
    reach = OUTLYING * 1.4826 * np.median(np.abs(figures - middle))
    error = LOWER * np.std(np.clip(figures, middle - reach, middle + reach), ddof=1) / sqrt(PAIRS)
    return float(PAIRED * error * sqrt(one.estimate * other.estimate))


def _error(values: NDArray[np.float64], percentile: float) -> float:
    """Standard error of a percentile of readings in order of time.

    The jackknife over BLOCKS stretches: from what the percentile is without each of them, and not from single readings,
    since what disturbs one often disturbs the next. Nor from how the stretches differ, as one that was disturbed all
    the while moves the whole very little. Too few readings for that are judged by the ranks next to the percentile, and
    never as surer than FEW allows; so are readings of which the percentile is one value whatever is left out: in a run
    of few networks, the one that tells the machine's level has the same reading over it again and again.
    """
    count = len(values)
    if count < 2:
        return 0.0
    if count >= 2 * BLOCKS:
        block = np.repeat(np.arange(BLOCKS), [len(part) for part in np.array_split(values, BLOCKS)])
        order = np.argsort(values, kind="stable")
        figures = [_of_sorted(values[order[block[order] != each]], percentile) for each in range(BLOCKS)]
        if np.ptp(figures) > ALIKE * abs(figures[0]) or np.ptp(values) <= ALIKE * abs(figures[0]):
            return float(np.std(figures) * sqrt(BLOCKS - 1))
    share = percentile / 100
    reach = 100 * sqrt(share * (1 - share) / count)  # a standard deviation of the binomial
    low, high = np.percentile(values, [max(percentile - reach, 0), min(percentile + reach, 100)])
    return max(float(high - low) / 2, FEW * float(np.percentile(values, percentile)) / sqrt(count))


def _of_sorted(values: NDArray[np.float64], percentile: float) -> float:
    """As np.percentile, whose checks take ten times as long for a few hundred values as what it computes."""
    place = percentile / 100 * (len(values) - 1)
    low = int(place)
    return float(values[low] + (place - low) * (values[min(low + 1, len(values) - 1)] - values[low]))
