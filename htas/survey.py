"""Section 3.2, first half: measure every distinct layer at every width, and fit f(x) = k x^alpha + b (eq. 1)."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import ceil, log2
from typing import Any, Literal

import numpy as np

from htas.arch import Arch
from htas.graph import Network, Site
from htas.layer import WEIGHTED, Layer
from htas.measurement import Measurement
from htas.metrics import Case, Metric, OnRound
from htas.space import group_bounds

EACH = 0.08
"""Seconds for each width of each distinct layer, unless survey.seconds says otherwise."""
UNSTEADY = 1.2
"""The machine's fast and slow moments may be so far apart without a doubt."""
UNSURE = 0.01
"""Relative standard error of a layer's latency, without a doubt."""
MOST = 128
"""Widths of a site that are measured; where it has more, so many of them, and the others are interpolated."""
FEW = 24
"""... where building a layer takes SLOW seconds or more."""
SLOW = 1.0
SOME, DEAR = 48, 0.01
"""Widths of a site where building a layer takes DEAR seconds or more: hundreds of layers are built then."""
FLAT = 0.01
"""Latencies of neighbours that differ by less than this share have no step between them that is worth looking for."""
SEEN = 3.0
"""A difference of so many standard errors is one."""
SUMMARIES = ("estimate", "error", "minimum", "median", "mean", "mean_error", "spread")
"""Of a Measurement, in survey.json."""
Estimate = Literal["estimate", "minimum", "median", "mean"]
"""What may stand for the readings of a width."""


@dataclass(frozen=True)
class Survey:
    """How the latency of the widths is measured."""

    seconds: float = 0.0
    """Seconds that a survey takes at most; 0 means 0.08 for each width of each distinct layer that is measured. It ends
    earlier when every choice is decided. Where building a layer takes seconds, that comes on top."""
    rounds: int = 1000
    """Times that each width's turn comes, at most; it is read three times then."""
    reading: float = 0.0
    """Seconds that a reading lasts at least, a faster layer being repeated; 0 means as short as the clock allows."""
    store: str = "user"
    """Where measurements are kept for the next run: the path of a file, `user` for this user's own, `none`."""

    undecided: float = 0.2
    """Share of the groups that may stay undecided; with more the survey is refused, as chosen by noise. 1 takes any."""

    def __post_init__(self) -> None:
        if not 0 <= self.undecided <= 1:
            raise ValueError(f"survey.undecided must be 0 to 1, got {self.undecided}")
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
    interpolated: tuple[int, ...] = ()
    """Widths that were not measured: their seconds lie on the line between the measured ones beside them."""

    def at(self, width: int) -> float:
        """m(width)."""
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
    guessed = tuple(sorted({width for _, curve in curves for width in curve.interpolated}))
    if not all(curve.errors for _, curve in curves):
        return Curve(widths, tuple(sums.tolist()), (), guessed)
    errors = np.sqrt(np.sum([(count * np.asarray(curve.errors)) ** 2 for count, curve in curves], axis=0))
    return Curve(widths, tuple(sums.tolist()), tuple(errors.tolist()), guessed)


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
    return Arch({name: widths_of(site, expand)[-1] for name, site in network.widths.items()}, network.base.depths)


def widest(base: int, expand: float) -> int:
    """The last width of the expanded global search space (section 3.1)."""
    return int(base * expand + 1e-9)


def widths_of(site: Site, expand: float) -> range:
    """1..e*base, the widths of that space; of a site whose widths must be multiples, only those."""
    return range(site.multiple, widest(site.base, expand) + 1, site.multiple)


def survey(
    network: Network,
    metric: Metric,
    *,
    expand: float,
    inputs: str,
    groups: int = 1,
    most: int = MOST,
    wanted: Callable[[Mapping[str, Any]], Collection[Layer]] | None = None,
    on_round: OnRound | None = None,
) -> dict[str, Any]:
    """Measure every distinct producing layer at widths 1..e*base, and every layer of frozen width once.

    Of a site with more than `most` widths, so many are measured: evenly spaced ones and the ends of its `groups`, then
    widths between those whose latencies differ, so that steps are located. The others are interpolated.

    Returns plain JSON values: by layer key (outputs 0) the widths, and of each the summaries of its readings, in
    seconds, and their number, which is 0 where it is interpolated. `wanted` is given such values while readings go on,
    and says which layers need more of them.
    """
    found = cases(network, expand=expand, inputs=inputs)
    families = _families(network, expand, inputs, groups, most)

    def more(readings: Mapping[Case, Measurement]) -> Collection[Layer]:
        content = {"layers": _tables(found, readings)}
        asked = set(found if wanted is None else wanted(content))
        measured = {layer for layer in found if layer in readings}
        return asked & measured | {layer for family in families for layer in family.split(content, measured, asked)}

    begun = _begun(found, families)
    sampling = len(begun) < len(found)
    readings = metric.sample(list(found), begun, on_round=on_round, wanted=more if wanted or sampling else None)
    return {
        "survey": " ".join(sorted({reading.survey for reading in readings.values()})),
        "context": dict(next(iter(readings.values())).context),
        "layers": _tables(found, readings),
        "cases": len(readings),
        "interpolated": len(found) - len(readings),
        "doubts": _doubts(list(readings.values())),
    }


def at_most(network: Network, *, expand: float, inputs: str, groups: int = 1, most: int = MOST) -> int:
    """How many layers such a survey measures at most."""
    found = cases(network, expand=expand, inputs=inputs)
    families = _families(network, expand, inputs, groups, most)
    of_sites = sum(len(family.at(family.widths)) for family in families)
    return len(found) - of_sites + sum(family.at_most for family in families)


def widths_at_most(build_seconds: float) -> int:
    """How many widths of a site are worth measuring, where a layer takes so long to build."""
    return FEW if build_seconds >= SLOW else SOME if build_seconds >= DEAR else MOST


def cases(network: Network, *, expand: float, inputs: str) -> dict[Layer, set[str]]:
    """The layers that a survey measures, each with the keys of the tables it goes into.

    There may be two: a depthwise layer of one channel is also a plain one from one channel to one.
    """
    found: dict[Layer, set[str]] = {}
    for site, layers in templates(network, expand=expand, inputs=inputs).items():
        for layer in layers:
            for x in widths_of(network.sites[site], expand):
                found.setdefault(layer.wide(x), set()).add(layer.key)
    for use in network.uses(surveyed(network, expand=expand, inputs=inputs)):
        if not use.site and use.layer.op in WEIGHTED:
            found.setdefault(use.layer, set()).add(use.layer.wide(0).key)
    return found


@dataclass(frozen=True)
class _Family:
    """Sites that share layers and so are measured at the same widths: where one layer has a step, all are read."""

    sites: tuple[tuple[range, Counter[Layer]], ...]
    """The widths of each, and the layers that produce it."""
    groups: int
    most: int

    @cached_property
    def widths(self) -> list[int]:
        """Of all its sites together."""
        return sorted({x for own, _ in self.sites for x in own})

    @property
    def first(self) -> set[int]:
        """The widths to begin with: half of the most, evenly spaced, and the ends of every group.

        The spacing is a power of two, so that the widths that hardware is fond of are among them.
        """
        if len(self.widths) <= self.most:
            return set(self.widths)
        spacing = 2 ** ceil(log2(2 * len(self.widths) / self.most))
        ends = {own[end - 1] for own, _ in self.sites for _, end in group_bounds(len(own), min(self.groups, len(own)))}
        return {self.widths[0], *self.widths[spacing - 1 :: spacing], *ends}

    @property
    def at_most(self) -> int:
        """Layers that are measured at most."""
        number = max(self.most, len(self.first))
        longest: dict[Layer, int] = {}
        for own, layers in self.sites:
            longest |= {layer: max(len(own), longest.get(layer, 0)) for layer in layers}
        return sum(min(length, number) for length in longest.values())

    def at(self, widths: Collection[int]) -> set[Layer]:
        """Its layers at these widths, as far as each goes."""
        return {layer.wide(x) for own, layers in self.sites for layer in layers for x in widths if x in own}

    def split(self, content: Mapping[str, Any], measured: set[Layer], asked: set[Layer]) -> set[Layer]:
        """The layers to measure next: at the middle of intervals that hide a step, and beside it, to be read with it.

        Those that a choice might fall into come first, then large steps, then narrow intervals; and only so many as
        there are widths left to follow each down to the width. When no step is seen that is not located, it is the turn
        of those that a choice might fall into though none is seen.
        """
        known = [x for x in self.widths if self.at([x]) <= measured]
        left = self.most - len(known)
        between = {(a, b): [x for x in self.widths if a < x < b] for a, b in pairwise(known)} if left > 0 else {}
        hiding = {interval: widths for interval, widths in between.items() if widths}
        is_open = {interval: not self.at(widths).isdisjoint(asked) for interval, widths in hiding.items()}
        steps = self._steps(content, known) if hiding else {}
        found = {each: steps[each] for each in hiding if each in steps} or {e: FLAT for e in hiding if is_open[e]}

        def urgency(interval: tuple[int, int]) -> tuple[bool, int, int, float]:
            return is_open[interval], round(log2(found[interval])), -len(hiding[interval]), found[interval]

        widths: set[int] = set()
        for first, last in sorted(found, key=urgency, reverse=True):
            inside = hiding[first, last]
            left -= ceil(log2(len(inside) + 1))
            if widths and left < 0:
                break
            widths |= {first, inside[(len(inside) - 1) // 2], last}
        return self.at(widths)

    def _steps(self, content: Mapping[str, Any], known: Sequence[int]) -> dict[tuple[int, int], float]:
        """The intervals of known widths that hide a step, with its height as a share of the latency."""
        found: dict[tuple[int, int], float] = {}
        for own, layers in self.sites:
            widths = [x for x in known if x in own]
            total = add([(count, curve(content, layer, widths)) for layer, count in layers.items()])
            # few readings may agree by chance: none is taken for surer than half of them are
            typical = float(np.median(np.divide(total.errors, total.seconds)))
            errors = np.maximum(total.errors, np.multiply(total.seconds, typical))
            rows = list(zip(total.widths, total.seconds, errors, strict=True))
            for (first, before, one), (last, after, other) in pairwise(rows):
                height = abs(after - before)
                least = max(FLAT * min(before, after), SEEN * float(np.hypot(one, other)))
                if last - first > own.step and height > least:
                    share = height / max(before, after, height)
                    found[first, last] = max(share, found.get((first, last), 0.0))
        return found


def _families(network: Network, expand: float, inputs: str, groups: int, most: int) -> list[_Family]:
    """The sites, those together that share a layer."""
    found: list[_Family] = []
    for site, layers in templates(network, expand=expand, inputs=inputs).items():
        mine = (widths_of(network.sites[site], expand), layers)
        akin = [family for family in found if any(layers.keys() & theirs.keys() for _, theirs in family.sites)]
        sites = [each for family in akin for each in family.sites]
        joined = _Family(tuple(sites if mine in sites else [*sites, mine]), groups, most)
        found = [*(family for family in found if family not in akin), joined]
    return found


def _begun(found: Collection[Layer], families: Sequence[_Family]) -> set[Layer]:
    """The layers that a survey begins with: of every family its first widths, and those of frozen width."""
    begun, sampled = set(found), set()
    for family in families:
        sampled |= family.at(family.widths) - family.at(family.first)
    return begun - sampled


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


def _tables(
    found: Mapping[Layer, Collection[str]], readings: Mapping[Case, Measurement]
) -> dict[str, dict[str, list[Any]]]:
    """By layer key: the widths, and the summaries and the number of readings of each."""
    layers: dict[str, list[Layer]] = {}
    for layer, keys in found.items():
        for key in keys:
            layers.setdefault(key, []).append(layer)
    return {key: _table(mine, readings) for key, mine in layers.items()}


def _table(layers: Sequence[Layer], readings: Mapping[Case, Measurement]) -> dict[str, list[Any]]:
    """What was not read is on the line between its neighbours, and uncertain by half of what they differ."""
    known = {layer.outputs: readings[layer] for layer in layers if layer in readings}
    widths, measured = [layer.outputs for layer in layers], sorted(known)
    figures = {column: [getattr(known[width], column) for width in measured] for column in SUMMARIES}
    table = {column: np.interp(widths, measured, figures[column]).tolist() for column in SUMMARIES}
    for row, width in enumerate(widths):
        if width not in known:
            above = int(np.searchsorted(measured, width))
            before, after = figures["estimate"][above - 1 : above + 1]
            table["error"][row] = float(np.hypot((after - before) / 2, table["error"][row]))
    return {"widths": widths, **table, "readings": [len(known[x].values) if x in known else 0 for x in widths]}


def curve(content: Mapping[str, Any], layer: Layer, widths: Sequence[int], estimate: Estimate = "estimate") -> Curve:
    """m(x) of one layer (its outputs do not count) at these widths, from what `survey` returned.

    Layers that differ in their outputs alone share a table, which may hold more widths than are asked for.
    Raises ValueError where the survey lacks one.
    """
    table = content["layers"].get(layer.wide(0).key, {"widths": ()})
    rows = {width: row for row, width in enumerate(table["widths"])}
    if not rows.keys() >= set(widths):
        raise ValueError("survey.json lacks a layer of this network; delete it and run the survey again")
    error = {"estimate": "error", "mean": "mean_error"}.get(estimate)
    seconds, errors = (
        tuple(table[column][rows[width]] for width in widths) if column else () for column in (estimate, error)
    )
    guessed = tuple(width for width in widths if not table["readings"][rows[width]])
    return Curve(tuple(widths), seconds, errors, guessed)
