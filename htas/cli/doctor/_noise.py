"""The noise of the target now, from a few ordinary layers that are read in turn for some seconds, and a forecast from
it: whether a survey started now would be decided."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Literal

import numpy as np
import torch

from htas.files import JsonObject, to_json
from htas.graph.layer import Layer
from htas.metrics.latency import CHEAP
from htas.runtimes import open_runtime
from htas.text import milliseconds, percent, plural
from htas.timing.bench import REPEAT, Bench, HostTimer
from htas.timing.measurement import Measurement
from htas.timing.target import Target

LAYERS = tuple(
    Layer("conv", width, width, (size, size), (3, 3), padding=(1, 1), norm=True, activation="relu")
    for width, size in ((16, 32), (32, 16), (64, 8))
)
"""The three stages of the CIFAR ResNets."""
FEWEST = 12
"""Least readings of a layer; fewer mean that something holds the layers up."""
MOST = 2000
"""Most rounds; more teach nothing."""
SLOW = 1.1
"""A reading above this multiple of its layer's minimum is slow."""
QUIET = {"slow": 0.1, "spread": 0.05, "drift": 0.03}
NOISY = {"slow": 0.4, "spread": 0.2, "drift": 0.1}
"""At most all of QUIET is quiet, above any of NOISY is noisy, anything between is restless."""
WIDTHS = 224
"""Widths of the CIFAR ResNets at e = 2: 32, 64 and 128."""
SECONDS = 20.0
SURE = 2.0
"""Standard errors between a difference and the margin; right 19 times of 20."""


@dataclass(frozen=True)
class Noise:
    """The readings of the test, of each layer in order of time, and what follows from them."""

    layers: tuple[Layer, ...]
    readings: tuple[Measurement, ...]

    @property
    def slow(self) -> float:
        """The share of readings more than 10 % above their layer's minimum."""
        late = [value > SLOW * each.minimum for each in self.readings for value in each.values]
        return float(np.mean(late))

    @property
    def spread(self) -> float:
        """p75 - p25 over the median, of the layer where that is largest."""
        return max(each.spread / each.median for each in self.readings)

    @property
    def drift(self) -> float:
        """How much slower the second half of the test ran than the first; below 0, faster. The median over layers."""
        return float(np.median([each.drift for each in self.readings]))

    @property
    def level(self) -> Literal["quiet", "restless", "noisy"]:
        """The noise in one word; too few readings count as noisy."""
        if min(len(each.values) for each in self.readings) < FEWEST:
            return "noisy"
        figures = {"slow": self.slow, "spread": self.spread, "drift": abs(self.drift)}
        if any(value > NOISY[name] for name, value in figures.items()):
            return "noisy"
        return "quiet" if all(value <= QUIET[name] for name, value in figures.items()) else "restless"

    @property
    def verdict(self) -> str:
        """The level and the figures behind it."""
        fewest = min(len(each.values) for each in self.readings)
        few = f"only {plural(fewest, 'reading')} of a layer in the time of the test, and " if fewest < FEWEST else ""
        return (
            f"{self.level}: {few}"
            f"{percent(self.slow, 0)} of the readings are more than 10 % above their layer's minimum, "
            f"the middle half of them spreads over {percent(self.spread, 1)} of their median, and the second half "
            f"of the test ran {percent(abs(self.drift), 1)} {'slower' if self.drift >= 0 else 'faster'} than the first"
        )

    def rows(self) -> list[tuple[str, str]]:
        """Lines for a terminal: a layer and its readings."""
        return [
            (
                f"conv {layer.inputs} to {layer.outputs}, {layer.size[0]}x{layer.size[1]}",
                f"minimum {milliseconds(each.minimum)}, median {milliseconds(each.median)}, "
                f"spread {milliseconds(each.spread)}, {len(each.values)} readings",
            )
            for layer, each in zip(self.layers, self.readings, strict=True)
        ]

    def json(self) -> JsonObject:
        """As plain JSON values."""
        return {
            "level": self.level,
            "slow": self.slow,
            "spread": self.spread,
            "drift": self.drift,
            "layers": {layer.key: to_json(each) for layer, each in zip(self.layers, self.readings, strict=True)},
        }


def listen(target: Target, seconds: float, now: Callable[[], float] | None = None) -> Noise:
    """Read the layers for about `seconds` of the clock `now`, the runtime's own if None, as a survey does."""
    runtime = open_runtime(target)
    with runtime.session(), torch.random.fork_rng(devices=[]), runtime.priority():
        readings = Bench(runtime.timer(), rounds=MOST, limit=seconds, now=now or runtime.now).run(
            lambda number: runtime.compile_layer(LAYERS[number]).run,
            len(LAYERS),
            rebuild=runtime.build_seconds <= CHEAP,
        )
    return Noise(LAYERS, tuple(Measurement(each.seconds, "s", levels=each.levels) for each in readings))


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
    medians = [each.median for each in readings]  # with its share of the call before it that is not timed
    count = int(seconds / widths / float(np.mean([max(shortest, median) + median / REPEAT for median in medians])))
    errors = [each.error / each.estimate * sqrt(len(each.values) / max(count, 1)) for each in readings]
    return Outlook(widths, seconds, count, max(errors), ties)
