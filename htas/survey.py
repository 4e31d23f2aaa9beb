"""Section 3.2, first half: measure every distinct layer at every width, and fit f(x) = k x^alpha + b (eq. 1)."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from htas.arch import Arch
from htas.graph import Network
from htas.layer import Layer
from htas.measurement import Measurement
from htas.metrics import Metric


@dataclass(frozen=True)
class Survey:
    """How the latency of the widths is measured."""

    rounds: int = 40
    """Readings of every width, taken in shuffled rounds over all of them."""
    reading: float = 0.002
    """Shortest reading in seconds; a faster layer is repeated within it."""

    estimate: Literal["minimum", "mean"] = "minimum"
    """What stands for the readings of a width: the minimum, which interruptions cannot raise, or the paper's mean."""

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"survey.rounds must be 1 or more, got {self.rounds}")
        if not self.reading > 0:
            raise ValueError(f"survey.reading must be above 0 seconds, got {self.reading}")


@dataclass(frozen=True)
class Fit:
    """f(x) = k x^alpha + b (eq. 1), in seconds."""

    k: float
    alpha: float
    b: float

    def __call__(self, width: float) -> float:
        return float(self.k * width**self.alpha + self.b)


@dataclass(frozen=True)
class Curve:
    """m(x): seconds of work at each width."""

    widths: tuple[int, ...]
    seconds: tuple[float, ...]

    def at(self, width: int) -> float:
        """m(width); the width must have been measured."""
        return self.seconds[self.widths.index(width)]

    def fit(self, alpha: float | Literal["fit"]) -> Fit:
        """Least squares; `fit` finds the exponent too, between 0.1 and 3."""
        if alpha != "fit":
            return _line(self, float(alpha))[0]
        from scipy.optimize import minimize_scalar

        found = minimize_scalar(lambda exponent: _line(self, exponent)[1], bounds=(0.1, 3.0), method="bounded")
        return _line(self, float(found.x))[0]


def _line(curve: Curve, alpha: float) -> tuple[Fit, float]:
    """The best k and b at this exponent, and the squared error that remains."""
    x, y = np.asarray(curve.widths, float) ** alpha, np.asarray(curve.seconds)
    if len(set(curve.widths)) == 1:
        return Fit(0.0, alpha, float(y.mean())), 0.0
    columns = np.stack([x, np.ones_like(x)], axis=1)
    (k, b), *_ = np.linalg.lstsq(columns, y, rcond=None)
    return Fit(float(k), alpha, float(b)), float(((columns @ (k, b) - y) ** 2).sum())


def add(curves: Sequence[tuple[int, Curve]]) -> Curve:
    """The sum of curves over the same widths, each times its count."""
    widths = curves[0][1].widths
    assert all(curve.widths == widths for _, curve in curves)
    sums = np.sum([count * np.asarray(curve.seconds) for count, curve in curves], axis=0)
    return Curve(widths, tuple(float(value) for value in sums))


def templates(network: Network, *, expand: float, inputs: str) -> dict[str, Counter[Layer]]:
    """The layers that produce each width site, with their multiplicity; `outputs` is left at 0, to be filled in.

    Their input widths are the base network's, or e times those (`inputs="expanded"`).
    """
    found: dict[str, Counter[Layer]] = {name: Counter() for name in network.widths}
    for use in network.uses(surveyed(network, expand=expand, inputs=inputs)):
        if use.site:
            found[use.site][use.layer.wide(0)] += 1
    return found


def surveyed(network: Network, *, expand: float, inputs: str) -> Arch:
    """The arch whose widths are the input widths of a survey: the base, or e times it (`inputs="expanded"`)."""
    if inputs == "base":
        return network.base
    return Arch({name: widest(site.base, expand) for name, site in network.widths.items()}, network.base.depths)


def widest(base: int, expand: float) -> int:
    """The last width of the expanded global search space (section 3.1)."""
    return int(base * expand + 1e-9)


def survey(
    network: Network,
    metric: Metric,
    *,
    expand: float,
    inputs: str,
    estimate: Literal["minimum", "mean"] = "minimum",
    on_round: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Measure every distinct producing layer at widths 1..e*base, and every layer of frozen width once.

    Returns plain JSON values: by layer key (outputs 0) the widths, and the estimate, median and spread of each in
    seconds.
    """
    found = cases(network, expand=expand, inputs=inputs)
    readings = metric.measure(list(found), on_round=on_round)
    layers: dict[str, dict[str, list[Any]]] = {}
    for (layer, key), reading in zip(found.items(), readings, strict=True):
        _record(layers.setdefault(key, {}), layer.outputs, reading, getattr(reading, estimate))
    return {
        "survey": readings[0].survey,
        "context": dict(readings[0].context),
        "layers": layers,
        "cases": len(found),
        "doubts": _doubts(readings),
    }


def cases(network: Network, *, expand: float, inputs: str) -> dict[Layer, str]:
    """The layers that a survey measures, each with the key of the table it goes into."""
    found: dict[Layer, str] = {}
    for site, layers in templates(network, expand=expand, inputs=inputs).items():
        for layer in layers:
            found |= {layer.wide(x): layer.key for x in range(1, widest(network.sites[site].base, expand) + 1)}
    for use in network.uses(surveyed(network, expand=expand, inputs=inputs)):
        if not use.site and use.layer.op in ("conv", "linear"):
            found.setdefault(use.layer, use.layer.wide(0).key)
    return found


def _doubts(readings: Sequence[Measurement]) -> list[str]:
    """How many layers are in doubt, and the doubt of the worst."""
    doubtful = [reading for reading in readings if reading.doubts]
    if not doubtful:
        return []
    worst = max(doubtful, key=lambda reading: reading.spread / reading.median)
    return [f"{len(doubtful)} of {len(readings)} layers, at worst: {worst.doubts[0]}"]


def _record(table: dict[str, list[Any]], width: int, reading: Measurement, estimate: float) -> None:
    for column, value in (
        ("widths", width),
        ("estimate", estimate),
        ("median", reading.median),
        ("spread", reading.spread),
    ):
        table.setdefault(column, []).append(value)


def curve(content: Mapping[str, Any], layer: Layer, widths: Sequence[int]) -> Curve:
    """m(x) of one layer (its outputs do not count) at these widths, from what `survey` returned.

    Layers that differ in their outputs alone share a table, which may hold more widths than are asked for.
    Raises ValueError where the survey lacks one.
    """
    table = content["layers"].get(layer.wide(0).key, {"widths": (), "estimate": ()})
    found = dict(zip(table["widths"], table["estimate"], strict=True))
    if not found.keys() >= set(widths):
        raise ValueError("survey.json lacks a layer of this network; delete it and run the survey again")
    return Curve(tuple(widths), tuple(found[width] for width in widths))
