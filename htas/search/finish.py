"""The end of a search that has limits: whole networks are measured before one is chosen."""

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn

from htas import metrics
from htas.console.progress import progress, say, shares
from htas.cost.constraints import parse
from htas.cost.limits import Limit
from htas.graph import Arch, resize
from htas.metrics import Metric
from htas.search.moves import AIM, filled, finalists, leanest, miss, next_aim, over, uniforms
from htas.search.problem import Problem, SearchOutcome
from htas.search.record import LimitOutcome
from htas.text import listing, percent, quantity
from htas.timing.measurement import Measurement
from htas.timing.target import Target

FIRST_FINALISTS, FINALISTS = 3, 5
"""Archs measured whole: in the first turn, which shows how far off predictions are, and in each later one."""
TURNS = 3
"""Most turns, if no finalist keeps and uses the limits."""
FRESH_ARCHS = 3
"""Largest number of archs measured again, on fresh readings, in a turn."""
LOWER_STEP = 0.01
"""Fraction of a limit by which the aim is lowered if all archs near it have been measured."""
MARGIN = 0.005
"""Fraction of a limit that the first readings of an arch should leave free."""
LEAST_USED = 0.93
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
        if limit.relative:
            if self.network is self.base:
                return 0.0
            return self.ratio(limit) * math.hypot(relative, self.base.error / self.base.estimate)
        return self.ratio(limit) * self.network.standard_error / self.network.estimate


def finish(problem: Problem, outcome: SearchOutcome, target: Target) -> FinishedSearch:
    """The most accurate arch near the end of a search that keeps the limits when measured.

    Finalists are measured whole, next to the base network. Those that keep and use the limits are measured again, the
    most accurate first, until one still does: these readings took no part in proposing it. If none does, the limit for
    predictions is moved by the error that the finalists have in common, and others are proposed, in TURNS turns at
    most. A uniform network wins if it is more accurate than all of them, or if nothing else keeps the limits. From a
    pool of judged networks the best one that keeps the limits wins, however little of them it uses: on a device with
    steps a wider network may be faster than a narrower one.
    """
    if not problem.limits:
        return FinishedSearch(outcome.arch)
    end = _Finish(problem, outcome, target)
    end.take_turns()
    keep = [arch for arch in end.fresh if end.worst(arch) <= 1]
    nearest = min(end.fresh, key=lambda arch: miss(end.worst(arch)))
    arch = max(keep, key=outcome.worth) if outcome.pool and keep else nearest
    even, best_arch = end.uniform(arch) if outcome.cheap else (None, arch)
    if best_arch != arch:
        why = "nothing found was as accurate" if end.worst(arch) <= 1 else "nothing found kept them when measured again"
        say(f"{problem.title}: using a uniform network within the limits, as {why}")
    for limit in end.fresh[best_arch]:
        say(
            f"{problem.title}: {limit.metric} {quantity(limit.measured, limit.unit)}, predicted "
            f"{quantity(limit.predicted, limit.unit)}, {percent(limit.ratio, 1)} of what {limit.asked!r} allows"
        )
    for each in problem.limits:
        if remark := each.cost.remark(best_arch):
            say(f"{problem.title}: {each.metric}: {remark}")
    return FinishedSearch(best_arch, end.fresh[best_arch], len(end.ratios) if end.noisy else 0, even)


class _Finish:
    """The archs measured whole at the end of one search; networks and metrics are reused from one run to the next."""

    def __init__(self, problem: Problem, outcome: SearchOutcome, target: Target) -> None:
        self.problem, self.outcome, self.target = problem, outcome, target
        self.noisy = [limit for limit in problem.limits if limit.kind.noisy]
        self.modules: dict[Arch, nn.Module] = {}
        self.metrics: dict[str, Metric] = {}
        self.turns: dict[str, list[tuple[float, float]]] = {limit.metric: [] for limit in self.noisy}
        """By metric, each turn's aim and the measured cost of its archs over the limit."""
        self.ratios: dict[Arch, float] = {}
        """Cost over the limit that an arch is worst at, by the readings that proposed it."""
        self.fresh: dict[Arch, tuple[LimitOutcome, ...]] = {}
        """The same on fresh readings, limit by limit."""

    def take_turns(self) -> None:
        """Measure finalists, then the best of them again, until one keeps the limits as it should or none is left."""
        outcome = self.outcome
        for turn in range(TURNS):
            new = self._measure_finalists(turn)
            last = turn == TURNS - 1 or not new
            for arch in self._by_accuracy(last):
                if outcome.pool and outcome.worth(arch) <= self._best_worth():
                    break
                self.fresh[arch] = self._afresh(arch)
                if (0 if outcome.pool else LEAST_USED) <= self.worst(arch) <= 1:
                    break
            if last or any(LEAST_USED <= self.worst(arch) <= 1 for arch in self.fresh):
                break
            best = self._best_worth()
            better = [arch for arch in outcome.pool if arch not in self.ratios and outcome.worth(arch) > best]
            if outcome.pool and best > -math.inf and not better:
                break

    def uniform(self, arch: Arch) -> tuple[Arch | None, Arch]:
        """The widest uniform network within the limits, and the arch to take, which is a key of `fresh`: `arch`, unless
        it is less accurate or breaks the limits, and the uniform network, perhaps with some widths a choice wider,
        keeps them when measured."""
        space, limits = self.problem.space, self.problem.limits
        off = 1.0  # measured over predicted
        for even in uniforms(limits, space):
            if over(limits, even) * off > 1:
                continue
            accuracy, even_accuracy = self._judged([arch, even])
            if self.worst(arch) <= 1 and accuracy >= even_accuracy:
                return even, arch
            wider = filled([replace(limit, most=limit.most / off) for limit in limits], space, even)
            better = wider != even and self._judged([wider])[0] >= even_accuracy
            for other in (wider, even) if better else (even,):
                proposed = _worst(self.fresh.get(other) or self._afresh(other))
                again = self._afresh(other) if proposed <= 1 else ()
                if again and _worst(again) <= 1:
                    self.fresh[other] = again
                    return even, other
                off = max(off, proposed / over(limits, other))
        return None, arch

    def worst(self, arch: Arch) -> float:
        """Cost over the limit that an arch is worst at, on fresh readings."""
        return _worst(self.fresh[arch])

    def against_base(self, archs: Sequence[Arch], metric: str, what: str) -> dict[Arch, PairedReading]:
        """Measure the archs and the base network in one interleaved run; `what` is for the bar."""
        network = self.problem.network  # which is read once: its share of itself is exact
        every = [network.base, *(arch for arch in archs if arch != network.base)]
        self.modules |= {arch: resize(network, arch) for arch in every if arch not in self.modules}
        if metric not in self.metrics:
            self.metrics[metric] = metrics.named(metric)(self.target)
        costs = [limit.cost for limit in self.problem.limits if limit.metric == metric]
        predicted = [cost.cost(arch) for cost in costs for arch in every]
        meter = self.metrics[metric].reread(time.time_ns() % 2**31, predicted)
        with progress(f"{metric} {what}, %", 100) as bar:
            readings = meter.measure([self.modules[arch] for arch in every], on_round=shares(bar))
        by_arch = dict(zip(every, readings, strict=True))
        return {arch: PairedReading(by_arch[arch], by_arch[network.base]) for arch in archs}

    def _afresh(self, arch: Arch) -> tuple[LimitOutcome, ...]:
        """The outcome for every limit, on fresh readings next to the base network for metrics that are measured."""
        outcomes = []
        for limit in self.problem.limits:
            predicted = limit.cost.cost(arch)
            most, measured, error = limit.most, predicted, 0.0
            if limit.kind.whole:
                pair = self.against_base([arch], limit.metric, "again")[arch]
                most, measured = parse(limit.metric, limit.text, pair.base.estimate), pair.network.estimate
                error = pair.error(limit) if limit.kind.noisy else 0.0
            outcomes.append(LimitOutcome(limit.metric, limit.text, most, predicted, measured, error, limit.cost.unit))
        return tuple(outcomes)

    def _measure_finalists(self, turn: int) -> list[Arch]:
        """Propose archs without a ratio yet, and measure them whole."""
        problem, outcome = self.problem, self.outcome
        least = {limit.metric: limit.ratio(leanest([limit], problem.space)) for limit in self.noisy}
        new: list[Arch] = []
        for lower in (0.0, LOWER_STEP, 2 * LOWER_STEP):
            aims = {metric: next_aim(values, AIM - lower) for metric, values in self.turns.items()}
            if turn and any(aims[metric] < ratio for metric, ratio in least.items()):
                break
            moved = tuple(replace(limit, most=limit.most * aims.get(limit.metric, 1.0)) for limit in problem.limits)
            count = FINALISTS if turn else FIRST_FINALISTS
            archs = finalists(moved, problem.space, outcome.arch, outcome.worth, count, outcome.pool)
            new = [arch for arch in archs if arch not in self.ratios]
            if new:
                break
        counted = [limit for limit in problem.limits if limit not in self.noisy]
        ratios = {arch: [limit.ratio(arch) for limit in counted] for arch in new}
        for limit in self.noisy if new else []:
            pairs = self.against_base(new, limit.metric, f"of finalists, turn {turn + 1}")
            values = [pair.ratio(limit) for pair in pairs.values()]
            for arch, value in zip(pairs, values, strict=True):
                ratios[arch].append(value)
            self.turns[limit.metric].append((aims[limit.metric], statistics.median(values)))
            text = listing(percent(each, 1) for each in values)
            say(f"{problem.title}: finalists, turn {turn + 1}: {text} of the {limit.metric} allowed")
        self.ratios |= {arch: max(values) for arch, values in ratios.items()}
        return new

    def _by_accuracy(self, last: bool) -> list[Arch]:
        """Archs to measure again, the most accurate first: they keep the limits with a margin, and use them unless they
        are from a pool of judged archs. At the last turn others follow: those that keep the limits, then the nearest.
        """
        least = 0 if self.outcome.pool else LEAST_USED
        ratios = {arch: ratio for arch, ratio in self.ratios.items() if arch not in self.fresh}
        exact = self.problem.network.base if all(each.relative for each in self.noisy) else None
        most = {arch: 1.0 if arch == exact else 1 - MARGIN for arch in ratios}
        within = [arch for arch in ratios if least <= ratios[arch] <= most[arch]]
        accuracies = dict(zip(within, self._judged(within), strict=True))
        ordered = sorted(within, key=accuracies.__getitem__, reverse=True)
        if last:
            rest = [arch for arch in ratios if arch not in within]
            ordered += sorted(rest, key=lambda arch: miss(ratios[arch]))
        return ordered[:FRESH_ARCHS]

    def _judged(self, archs: Sequence[Arch]) -> list[float]:
        """By validation images, or by the search's own estimate where that tells more or costs no training."""
        outcome = self.outcome
        if outcome.cheap and not outcome.estimates and archs:
            return outcome.validate(archs)
        return [outcome.worth(arch) for arch in archs]

    def _best_worth(self) -> float:
        return max((self.outcome.worth(arch) for arch in self.fresh if self.worst(arch) <= 1), default=-math.inf)


def _worst(limits: Sequence[LimitOutcome]) -> float:
    return max(limit.ratio for limit in limits)
