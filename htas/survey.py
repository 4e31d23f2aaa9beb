"""Section 3.2, first half: measure every distinct layer at every width, and fit f(x) = k x^alpha + b (eq. 1)."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from htas.arch import Arch
from htas.graph import Network
from htas.layer import Layer
from htas.measurement import Measurement
from htas.metrics import Metric, OnRound

EACH = 0.08
"""Seconds for each width of each distinct layer, unless survey.seconds says otherwise."""
UNSTEADY = 1.2
"""The machine's fast and slow moments may be so far apart without a doubt."""
UNSURE = 0.01
"""Relative standard error of a layer's latency, without a doubt."""
SUMMARIES = ("estimate", "error", "minimum", "median", "mean", "spread")
"""Of a Measurement, in survey.json."""
Estimate = Literal["estimate", "minimum", "median", "mean"]
"""What may stand for the readings of a width."""


@dataclass(frozen=True)
class Survey:
    """How the latency of the widths is measured."""

    seconds: float = 0.0
    """Seconds that a survey takes at most; 0 means 0.08 for each width of each distinct layer. It ends earlier when
    every choice is decided."""
    rounds: int = 1000
    """Times that each width's turn comes, at most; it is read three times then."""
    reading: float = 0.0
    """Seconds that a reading lasts at least, a faster layer being repeated; 0 means as short as the clock allows."""
    store: str = "user"
    """Where measurements are kept for the next run: the path of a file, `user` for this user's own, `none`."""

    def __post_init__(self) -> None:
        if not self.seconds >= 0:
            raise ValueError(f"survey.seconds must be 0 (the default) or more, got {self.seconds}")
        if self.rounds < 1:
            raise ValueError(f"survey.rounds must be 1 or more, got {self.rounds}")
        if not self.reading >= 0:
            raise ValueError(f"survey.reading must be 0 (as short as the clock allows) or more, got {self.reading}")

    def limit(self, cases: int) -> float:
        """Seconds for so many layers."""
        return self.seconds or EACH * cases


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
    errors: tuple[float, ...] = ()
    """Standard error of each, in seconds; nothing where they are not known."""

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
    if not all(curve.errors for _, curve in curves):
        return Curve(widths, tuple(sums.tolist()))
    errors = np.sqrt(np.sum([(count * np.asarray(curve.errors)) ** 2 for count, curve in curves], axis=0))
    return Curve(widths, tuple(sums.tolist()), tuple(errors.tolist()))


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
    wanted: Callable[[Mapping[str, Any]], Collection[Layer]] | None = None,
    on_round: OnRound | None = None,
) -> dict[str, Any]:
    """Measure every distinct producing layer at widths 1..e*base, and every layer of frozen width once.

    Returns plain JSON values: by layer key (outputs 0) the widths, and of each the summaries of its readings, in
    seconds. `wanted` is given such values while readings go on, and says which layers need more of them.
    """
    found = cases(network, expand=expand, inputs=inputs)
    numbers = {layer: number for number, layer in enumerate(found)}

    def more(readings: Sequence[Measurement]) -> Collection[int]:
        assert wanted is not None
        return {numbers[layer] for layer in wanted({"layers": _tables(found, readings)})}

    readings = metric.measure(list(found), on_round=on_round, wanted=more if wanted is not None else None)
    return {
        "survey": " ".join(sorted({reading.survey for reading in readings})),
        "context": dict(readings[0].context),
        "layers": _tables(found, readings),
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
    """What the machine did meanwhile, how far its level moved, and how many layers are still uncertain."""
    doubts = list(dict.fromkeys(remark for reading in readings for remark in reading.remarks))
    levels = np.concatenate([reading.levels for reading in readings]) if readings[0].levels else np.ones(1)
    low, high = np.percentile(levels, [10, 90])
    if high > UNSTEADY * low:
        doubts.append(
            f"the machine's speed moved by {100 * (high / low - 1):.0f}% while measuring; that is taken out where "
            "it lasted, but a machine that does nothing else measures better and sooner"
        )
    errors = [reading.error / max(reading.estimate, reading.error) for reading in readings if reading.error]
    if errors and (typical := float(np.median(errors))) > UNSURE:
        doubts.append(
            f"a layer's latency is known to {100 * typical:.1f}% only (standard error, median over {len(readings)} "
            "layers); give survey.seconds more, or stop other work"
        )
    return doubts


def _tables(found: Mapping[Layer, str], readings: Sequence[Measurement]) -> dict[str, dict[str, list[Any]]]:
    """By layer key: the widths, and the summaries of each."""
    tables: dict[str, dict[str, list[Any]]] = {}
    for (layer, key), reading in zip(found.items(), readings, strict=True):
        table = tables.setdefault(key, {column: [] for column in ("widths", *SUMMARIES, "readings")})
        table["widths"].append(layer.outputs)
        for column in SUMMARIES:
            table[column].append(getattr(reading, column))
        table["readings"].append(len(reading.values))
    return tables


def curve(content: Mapping[str, Any], layer: Layer, widths: Sequence[int], estimate: Estimate = "estimate") -> Curve:
    """m(x) of one layer (its outputs do not count) at these widths, from what `survey` returned.

    Layers that differ in their outputs alone share a table, which may hold more widths than are asked for.
    Raises ValueError where the survey lacks one.
    """
    table = content["layers"].get(layer.wide(0).key, {"widths": ()})
    rows = {width: row for row, width in enumerate(table["widths"])}
    if not rows.keys() >= set(widths):
        raise ValueError("survey.json lacks a layer of this network; delete it and run the survey again")
    seconds, errors = (tuple(table[column][rows[width]] for width in widths) for column in (estimate, "error"))
    return Curve(tuple(widths), seconds, errors)
