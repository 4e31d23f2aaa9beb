"""The end of a search that has limits: whole networks are measured before one is chosen."""

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


@dataclass(frozen=True)
class Tolerances:
    """How many archs are measured at the end of a search, and how much of a limit they should use."""

    first_finalists: int = 3
    """Archs measured whole in the first turn, which shows how far off predictions are."""
    finalists: int = 5
    """Archs measured whole in each later turn."""
    repeats: int = 2
    """Further turns, if no finalist keeps and uses the limits."""
    fresh_archs: int = 3
    """Largest number of archs measured again, on fresh readings, in a turn."""
    lower_step: float = 0.01
    """Fraction of a limit by which the aim is lowered if all archs near it have been measured."""
    margin: float = 0.005
    """Fraction of a limit that the first readings of an arch should leave free."""
    least_used: float = 0.93
    """Fraction of a limit that an arch must use to be preferred for its accuracy."""


@dataclass(frozen=True)
class FinishedSearch:
    """The arch of a search after measuring."""

    arch: Arch
    limits: tuple[LimitOutcome, ...] = ()
    """One for each limit, in their order."""
    measured: int = 0
    """Number of archs measured whole."""
    uniform: Arch | None = None
    """The widest uniform network within the limits: by prediction, or measured where it is the more accurate."""


@dataclass(frozen=True)
class PairedReading:
    """A network measured in the same rounds as the base network, by one metric."""

    network: Measurement
    base: Measurement

    def ratio(self, limit: Limit) -> float:
        """The network's figure over a limit, which is a share of the base as measured here, or a figure."""
        return self.network.estimate / parse(limit.metric, limit.text, self.base.estimate)

    def error(self, limit: Limit) -> float:
        """Standard error of the ratio."""
        relative = self.network.error / self.network.estimate
        if limit.text.rstrip().endswith("%"):
            return self.ratio(limit) * math.hypot(relative, self.base.error / self.base.estimate)
        return self.ratio(limit) * self.network.standard_error / self.network.estimate


@dataclass
class _Meters:
    """Measures whole networks next to the base; networks and metrics are reused from one run to the next."""

    problem: Problem
    target: Target
    tolerances: Tolerances
    modules: dict[Arch, nn.Module] = field(default_factory=dict)
    metrics: dict[str, Metric] = field(default_factory=dict)

    def against_base(self, archs: Sequence[Arch], metric: str, what: str) -> dict[Arch, PairedReading]:
        """Measure the archs and the base network in one interleaved run; `what` is for the bar."""
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
        """The outcome for every limit, on fresh readings next to the base network for metrics that are measured."""
        limits = self.problem.limits
        fresh = {limit.metric: self.against_base([arch], limit.metric, "again") for limit in limits if limit.kind.whole}
        return tuple(_outcome(limit, arch, fresh.get(limit.metric, {}).get(arch)) for limit in limits)

    def _metric(self, name: str, archs: Sequence[Arch]) -> Metric:
        if name not in self.metrics:
            self.metrics[name] = metrics.named(name)(self.target)
        costs = [limit.cost for limit in self.problem.limits if limit.metric == name]
        predicted = [cost.cost(arch) for cost in costs for arch in (self.problem.network.base, *archs)]
        return self.metrics[name].reread(time.time_ns() % 2**31, predicted)


def finish(
    problem: Problem, outcome: SearchOutcome, target: Target, tolerances: Tolerances = Tolerances()
) -> FinishedSearch:
    """The most accurate arch near the end of a search that keeps the limits when measured.

    Finalists are measured whole, next to the base network. Those that keep and use the limits are measured again, the
    most accurate first, until one still does: these readings took no part in proposing it. If none does, the limit for
    predictions is moved by the error that the finalists have in common, and others are proposed, `repeats` times at
    most. A uniform network wins if it is more accurate than all of them, or if nothing else keeps the limits. From a
    pool of judged networks the best one that keeps the limits wins, however little of them it uses: on a device with
    steps a wider network may be faster than a narrower one.
    """
    if not problem.limits:
        return FinishedSearch(outcome.arch)
    noisy = [limit for limit in problem.limits if limit.kind.noisy]
    meters = _Meters(problem, target, tolerances)
    turns: dict[str, list[tuple[float, float]]] = {limit.metric: [] for limit in noisy}
    ratios: dict[Arch, float] = {}
    fresh: dict[Arch, tuple[LimitOutcome, ...]] = {}
    for turn in range(tolerances.repeats + 1):
        new = _proposed(meters, outcome, noisy, turns, ratios, turn)
        ratios |= new
        last = turn == tolerances.repeats or not new
        unchecked = {arch: ratio for arch, ratio in ratios.items() if arch not in fresh}
        for arch in _by_accuracy(outcome, unchecked, last, tolerances):
            if outcome.pool and outcome.worth(arch) <= _best_worth(outcome, fresh):
                break
            fresh[arch] = meters.afresh(arch)
            if (0 if outcome.pool else tolerances.least_used) <= _worst(fresh[arch]) <= 1:
                break
        if last or any(tolerances.least_used <= _worst(limits) <= 1 for limits in fresh.values()):
            break
        best = _best_worth(outcome, fresh)
        better = [arch for arch in outcome.pool if arch not in ratios and outcome.worth(arch) > best]
        if outcome.pool and best > -math.inf and not better:
            break
    keep = [arch for arch in fresh if _worst(fresh[arch]) <= 1]
    nearest = min(fresh, key=lambda arch: miss(_worst(fresh[arch])))
    arch = max(keep, key=outcome.worth) if outcome.pool and keep else nearest
    even, best_arch = _uniform(meters, outcome, arch, fresh) if outcome.cheap else (None, arch)
    if best_arch != arch:
        say(f"{problem.title}: using a uniform network within the limits, as nothing found was as accurate")
        arch = best_arch
    for limit in fresh[arch]:
        say(
            f"{problem.title}: {limit.metric} {quantity(limit.measured, limit.unit)}, predicted "
            f"{quantity(limit.predicted, limit.unit)}, {percent(limit.ratio, 1)} of what {limit.asked!r} allows"
        )
    return FinishedSearch(arch, fresh[arch], len(ratios) if noisy else 0, even)


def _uniform(
    meters: _Meters, outcome: SearchOutcome, arch: Arch, fresh: dict[Arch, tuple[LimitOutcome, ...]]
) -> tuple[Arch | None, Arch]:
    """The widest uniform network within the limits, and the arch to take, which is a key of `fresh`: `arch`, unless it
    is less accurate or breaks the limits, and the uniform network, perhaps with some widths a choice wider, keeps them
    when measured."""
    space, limits = meters.problem.space, meters.problem.limits
    off = 1.0  # measured over predicted
    for even in uniforms(limits, space):
        if over(limits, even) * off > 1:
            continue
        accuracy, even_accuracy = outcome.validate([arch, even])
        if _worst(fresh[arch]) <= 1 and accuracy >= even_accuracy:
            return even, arch
        wider = filled([replace(limit, most=limit.most / off) for limit in limits], space, even)
        better = wider != even and outcome.validate([wider])[0] >= even_accuracy
        for other in (wider, even) if better else (even,):
            proposed = _worst(fresh.get(other) or meters.afresh(other))
            again = meters.afresh(other) if proposed <= 1 else ()
            if again and _worst(again) <= 1:
                fresh[other] = again
                return even, other
            off = max(off, proposed / over(limits, other))
    return None, arch


def _proposed(
    meters: _Meters,
    outcome: SearchOutcome,
    noisy: Sequence[Limit],
    turns: dict[str, list[tuple[float, float]]],
    known_ratios: Mapping[Arch, float],
    turn: int,
) -> dict[Arch, float]:
    """Archs without a ratio yet, measured whole, each with its cost over the limit that it is worst at."""
    problem = meters.problem
    others = [limit for limit in problem.limits if limit not in noisy]
    least = {limit.metric: limit.ratio(leanest([limit], problem.space)) for limit in noisy}
    new: list[Arch] = []
    for lower in (0.0, meters.tolerances.lower_step, 2 * meters.tolerances.lower_step):
        aims = {metric: next_aim(values, AIM - lower) for metric, values in turns.items()}
        if turn and any(aims[metric] < ratio for metric, ratio in least.items()):
            break
        moved = tuple(replace(limit, most=limit.most * aims.get(limit.metric, 1.0)) for limit in problem.limits)
        count = meters.tolerances.finalists if turn else meters.tolerances.first_finalists
        archs = finalists(moved, problem.space, outcome.arch, outcome.worth, count, outcome.pool)
        new = [arch for arch in archs if arch not in known_ratios]
        if new:
            break
    ratios: dict[Arch, list[float]] = {arch: [other.ratio(arch) for other in others] for arch in new}
    for limit in noisy if new else []:
        measured = meters.against_base(new, limit.metric, f"of finalists, turn {turn + 1}")
        for arch, pair in measured.items():
            ratios[arch].append(pair.ratio(limit))
        values = [row[-1] for row in ratios.values()]
        turns[limit.metric].append((aims[limit.metric], statistics.median(values)))
        text = listing(percent(each, 1) for each in values)
        say(f"{problem.title}: finalists, turn {turn + 1}: {text} of the {limit.metric} allowed")
    return {arch: max(values) for arch, values in ratios.items()}


def _by_accuracy(
    outcome: SearchOutcome, ratios: Mapping[Arch, float], last: bool, tolerances: Tolerances
) -> list[Arch]:
    """Archs to measure again, the most accurate first: they keep the limits with a margin, and use them unless they are
    from a pool of judged archs. At the last turn others follow: those that keep the limits, then the nearest."""
    least = 0 if outcome.pool else tolerances.least_used
    within = [arch for arch in ratios if least <= ratios[arch] <= 1 - tolerances.margin]
    judged = outcome.validate(within) if outcome.cheap and within else [outcome.worth(arch) for arch in within]
    accuracies = dict(zip(within, judged, strict=True))
    ordered = sorted(within, key=accuracies.__getitem__, reverse=True)
    if last:
        rest = [arch for arch in ratios if arch not in within]
        ordered += sorted(rest, key=lambda arch: miss(ratios[arch]))
    return ordered[: tolerances.fresh_archs]


def _best_worth(outcome: SearchOutcome, fresh: Mapping[Arch, tuple[LimitOutcome, ...]]) -> float:
    """The highest worth of archs that keep the limits."""
    return max((outcome.worth(arch) for arch, limits in fresh.items() if _worst(limits) <= 1), default=-math.inf)


def _worst(limits: Sequence[LimitOutcome]) -> float:
    return max(limit.ratio for limit in limits)


def _outcome(limit: Limit, arch: Arch, fresh: PairedReading | None) -> LimitOutcome:
    predicted = limit.cost.cost(arch)
    if fresh is None:
        return LimitOutcome(limit.metric, limit.text, limit.most, predicted, predicted, 0.0, limit.cost.unit)
    most = parse(limit.metric, limit.text, fresh.base.estimate)
    error = fresh.error(limit) if limit.kind.noisy else 0.0
    return LimitOutcome(limit.metric, limit.text, most, predicted, fresh.network.estimate, error, limit.cost.unit)
