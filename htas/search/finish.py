"""The end of a search that has limits: whole networks are measured before one is taken."""

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import nn

from htas import metrics
from htas.console.progress import progress, say, shares
from htas.cost.limits import Limit, parse
from htas.graph import resize
from htas.graph.arch import Arch
from htas.metrics import Metric
from htas.search.moves import AIM, filled, finalists, leanest, miss, next_aim, over, uniforms
from htas.search.problem import Problem, SearchOutcome
from htas.search.record import LimitOutcome
from htas.text import listing, percent, quantity
from htas.timing.measurement import Measurement
from htas.timing.target import Target

FIRST, FINALISTS = 3, 5
"""Archs near the end of a search that are measured whole: in the first turn, which tells how far off predictions are,
and in later ones."""
REPEATS = 2
"""Further turns, where none of them lies within the budget and uses it."""
FRESH = 3
"""Archs that are measured afresh in a turn, at most."""
SHY = 0.01
"""Share of a budget by which archs are sought lower where all that are found have been measured."""
MARGIN = 0.005
"""Share of a budget that the readings by which an arch is proposed should leave."""
LEAST = 0.93
"""Share of a budget that an arch must use to be preferred for its accuracy."""


@dataclass(frozen=True)
class FinishedSearch:
    """What a search ends in."""

    arch: Arch
    limits: tuple[LimitOutcome, ...] = ()
    """What it makes of each."""
    measured: int = 0
    """Archs that were measured whole."""
    uniform: Arch | None = None
    """The widest uniform network within the limits: by prediction, or measured where it is the more accurate."""


@dataclass(frozen=True)
class PairedReading:
    """A network measured in the same rounds as the base network, by one metric."""

    own: Measurement
    base: Measurement

    def ratio(self, limit: Limit) -> float:
        """Over a limit, which is a share of the base as measured here, or a figure."""
        return self.own.estimate / parse(limit.metric, limit.text, self.base.estimate)

    def error(self, limit: Limit) -> float:
        """Standard error of that."""
        own = self.own.error / self.own.estimate
        if limit.text.rstrip().endswith("%"):
            return self.ratio(limit) * math.hypot(own, self.base.error / self.base.estimate)
        return self.ratio(limit) * self.own.standard_error / self.own.estimate


@dataclass
class _Meters:
    """Measures whole networks next to the base; networks and metrics are reused from one run to the next."""

    problem: Problem
    target: Target
    modules: dict[Arch, nn.Module] = field(default_factory=dict)
    metrics: dict[str, Metric] = field(default_factory=dict)

    def against_base(self, archs: Sequence[Arch], metric: str, what: str) -> dict[Arch, PairedReading]:
        """In one interleaved run."""
        network = self.problem.network
        for arch in (network.base, *archs):
            if arch not in self.modules:
                self.modules[arch] = resize(network, arch)
        with progress(f"{metric} {what}, %", 100) as bar:
            base, *readings = self._metric(metric, archs).measure(
                [self.modules[arch] for arch in (network.base, *archs)], on_round=shares(bar)
            )
        return {arch: PairedReading(reading, base) for arch, reading in zip(archs, readings, strict=True)}

    def afresh(self, arch: Arch) -> tuple[LimitOutcome, ...]:
        """What it makes of every limit: of each metric that is measured, a run beside the base network."""
        limits = self.problem.limits
        fresh = {own.metric: self.against_base([arch], own.metric, "anew") for own in limits if own.kind.whole}
        return tuple(_kept(own, arch, fresh.get(own.metric, {}).get(arch)) for own in limits)

    def _metric(self, name: str, archs: Sequence[Arch]) -> Metric:
        if name not in self.metrics:
            self.metrics[name] = metrics.named(name)(self.target)
        costs = [limit.cost for limit in self.problem.limits if limit.metric == name]
        predicted = [cost.cost(arch) for cost in costs for arch in (self.problem.network.base, *archs)]
        return self.metrics[name].reread(time.time_ns() % 2**31, predicted)


def finish(problem: Problem, found: SearchOutcome, target: Target) -> FinishedSearch:
    """Of the archs near the end of a search the most accurate one that keeps the limits when measured.

    Finalists are measured whole, beside the base network; those that keep the limits and use them are measured afresh,
    the most accurate first, until one still does: these readings took no part in proposing it. Where none does, the
    limit is moved for the prediction by what finalists had in common, and others are drawn, REPEATS times at most.
    A uniform network is taken where it is more accurate than all that, or nothing else keeps the limits. From a pool
    of judged networks the best one that keeps the limits is taken, whatever it leaves of them: a device's steps may
    make a wider network faster than a narrower one.
    """
    if not problem.limits:
        return FinishedSearch(found.arch)
    noisy = [limit for limit in problem.limits if limit.kind.noisy]
    meters = _Meters(problem, target)
    turns: dict[str, list[tuple[float, float]]] = {limit.metric: [] for limit in noisy}
    seen: dict[Arch, float] = {}
    tried: dict[Arch, tuple[LimitOutcome, ...]] = {}
    for turn in range(REPEATS + 1):
        new = _proposed(meters, found, noisy, turns, seen, turn)
        seen |= new
        last = turn == REPEATS or not new
        for arch in _by_accuracy(found, {arch: its for arch, its in seen.items() if arch not in tried}, last):
            if found.pool and found.worth(arch) <= _best_worth(found, tried):
                break
            tried[arch] = meters.afresh(arch)
            if (0 if found.pool else LEAST) <= _worst(tried[arch]) <= 1:
                break
        if last or any(LEAST <= _worst(kept) <= 1 for kept in tried.values()):
            break
        best = _best_worth(found, tried)
        better = [arch for arch in found.pool if arch not in seen and found.worth(arch) > best]
        if found.pool and best > -math.inf and not better:
            break
    keep = [arch for arch in tried if _worst(tried[arch]) <= 1]
    nearest = min(tried, key=lambda arch: miss(_worst(tried[arch])))
    arch = max(keep, key=found.worth) if found.pool and keep else nearest
    even, taken = _uniform(meters, found, arch, tried) if found.cheap else (None, arch)
    if taken != arch:
        say(f"{problem.title}: a uniform network within the limits is taken, as nothing that was found is as good")
        arch = taken
    for own in tried[arch]:
        say(
            f"{problem.title}: {own.metric} {quantity(own.measured, own.unit)}, predicted "
            f"{quantity(own.predicted, own.unit)}, {percent(own.ratio, 1)} of what {own.asked!r} allows"
        )
    return FinishedSearch(arch, tried[arch], len(seen) if noisy else 0, even)


def _uniform(
    meters: _Meters, found: SearchOutcome, arch: Arch, tried: dict[Arch, tuple[LimitOutcome, ...]]
) -> tuple[Arch | None, Arch]:
    """The widest uniform network within the limits; and what is to be taken, which is among those `tried`: `arch`,
    unless it is less accurate or keeps no limits, and that network, or its like with some widths a choice wider, keeps
    them as measured."""
    space, limits = meters.problem.space, meters.problem.limits
    off = 1.0  # what was measured over what was predicted
    for even in uniforms(limits, space):
        if over(limits, even) * off > 1:
            continue
        own, its = found.validate([arch, even])
        if _worst(tried[arch]) <= 1 and own >= its:
            return even, arch
        wider = filled([replace(limit, most=limit.most / off) for limit in limits], space, even)
        better = wider != even and found.validate([wider])[0] >= its
        for other in (wider, even) if better else (even,):
            proposed = _worst(tried.get(other) or meters.afresh(other))
            fresh = meters.afresh(other) if proposed <= 1 else ()
            if fresh and _worst(fresh) <= 1:
                tried[other] = fresh
                return even, other
            off = max(off, proposed / over(limits, other))
    return None, arch


def _proposed(
    meters: _Meters,
    found: SearchOutcome,
    noisy: Sequence[Limit],
    turns: dict[str, list[tuple[float, float]]],
    seen: Mapping[Arch, float],
    turn: int,
) -> dict[Arch, float]:
    """Archs not `seen` yet, measured whole, each over the limit that it is furthest over, or nearest to."""
    problem = meters.problem
    others = [limit for limit in problem.limits if limit not in noisy]
    least = {limit.metric: limit.ratio(leanest([limit], problem.space)) for limit in noisy}
    new: list[Arch] = []
    for shy in (0.0, SHY, 2 * SHY):
        aims = {metric: next_aim(its, AIM - shy) for metric, its in turns.items()}
        if turn and any(aims[metric] < its for metric, its in least.items()):
            break
        moved = tuple(replace(own, most=own.most * aims.get(own.metric, 1.0)) for own in problem.limits)
        count = FINALISTS if turn else FIRST
        archs = finalists(moved, problem.space, found.arch, found.worth, count, found.pool)
        new = [arch for arch in archs if arch not in seen]
        if new:
            break
    ratios: dict[Arch, list[float]] = {arch: [other.ratio(arch) for other in others] for arch in new}
    for limit in noisy if new else []:
        measured = meters.against_base(new, limit.metric, f"of finalists, turn {turn + 1}")
        for arch, beside in measured.items():
            ratios[arch].append(beside.ratio(limit))
        its = [own[-1] for own in ratios.values()]
        turns[limit.metric].append((aims[limit.metric], statistics.median(its)))
        shown = listing(percent(each, 1) for each in its)
        say(f"{problem.title}: finalists, turn {turn + 1}: {shown} of the {limit.metric} allowed")
    return {arch: max(its) for arch, its in ratios.items()}


def _by_accuracy(found: SearchOutcome, seen: Mapping[Arch, float], last: bool) -> list[Arch]:
    """Those to measure afresh, the most accurate first: they keep the limits, with a margin, and use them, unless they
    are from a pool of judged ones: what they spare is no fault of theirs. At the last turn others come after them:
    those that keep the limits, then the least over."""
    within = [arch for arch in seen if (0 if found.pool else LEAST) <= seen[arch] <= 1 - MARGIN]
    judged = found.validate(within) if found.cheap and within else [found.worth(arch) for arch in within]
    accuracies = dict(zip(within, judged, strict=True))
    ordered = sorted(within, key=accuracies.__getitem__, reverse=True)
    if last:
        rest = [arch for arch in seen if arch not in within]
        ordered += sorted(rest, key=lambda arch: miss(seen[arch]))
    return ordered[:FRESH]


def _best_worth(found: SearchOutcome, tried: Mapping[Arch, tuple[LimitOutcome, ...]]) -> float:
    """Of those that keep the limits."""
    return max((found.worth(arch) for arch, kept in tried.items() if _worst(kept) <= 1), default=-math.inf)


def _worst(limits: Sequence[LimitOutcome]) -> float:
    return max(own.ratio for own in limits)


def _kept(limit: Limit, arch: Arch, fresh: PairedReading | None) -> LimitOutcome:
    predicted = limit.cost.cost(arch)
    if fresh is None:
        return LimitOutcome(limit.metric, limit.text, limit.most, predicted, predicted, 0.0, limit.cost.unit)
    most = parse(limit.metric, limit.text, fresh.base.estimate)
    error = fresh.error(limit) if limit.kind.noisy else 0.0
    return LimitOutcome(limit.metric, limit.text, most, predicted, fresh.own.estimate, error, limit.cost.unit)
