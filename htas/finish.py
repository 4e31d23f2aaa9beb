"""The end of a search that has limits: whole networks are measured before one is taken."""

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from htas.arch import Arch
from htas.budget import USED, Limit, finalists, leanest, next_aim, over, parse
from htas.graph import resize
from htas.measurement import Measurement
from htas.metrics.latency import Latency
from htas.problem import Problem
from htas.progress import progress, say, shares
from htas.result import Kept
from htas.strategies import Found
from htas.target import Target
from htas.text import percent, quantity

FINALISTS = 5
"""Archs near the end of a search that are measured whole, in a turn."""
REPEATS = 2
"""Further turns, where none of them lies within the budget and uses it."""
MARGIN = 0.005
"""Share of a budget that the readings by which an arch is proposed should leave."""
LEAST = 0.93
"""Share of a budget that an arch must use to be preferred for its accuracy."""
ROUNDS = 60
"""Times that every network's turn comes; it is read three times then."""


@dataclass(frozen=True)
class Taken:
    """What a search ends in."""

    arch: Arch
    limits: tuple[Kept, ...] = ()
    """What it makes of each."""
    measured: int = 0
    """Archs that were measured whole."""


@dataclass(frozen=True)
class Beside:
    """A network measured in the same rounds as the base network."""

    own: Measurement
    base: Measurement

    def ratio(self, limit: Limit) -> float:
        """Over a limit of latency, which is a share of the base as measured here, or a time."""
        return self.own.estimate / parse("latency", limit.text, self.base.estimate)

    def error(self, limit: Limit) -> float:
        """Standard error of that."""
        own = self.own.error / self.own.estimate
        if limit.text.rstrip().endswith("%"):
            return self.ratio(limit) * math.hypot(own, self.base.error / self.base.estimate)
        return self.ratio(limit) * self.own.standard_error / self.own.estimate


def finish(problem: Problem, found: Found, target: Target) -> Taken:
    """Of the archs near the end of a search the most accurate one that keeps the limits when measured.

    Finalists are measured whole, beside the base network. Where what they have in common misses the limit, the limit is
    moved by as much for the prediction, and finalists are drawn again, REPEATS times at most. Then, the most accurate
    first, each is measured afresh until one keeps the limits; these readings took no part in proposing it.
    """
    if not problem.limits:
        return Taken(found.arch)
    latency = next((limit for limit in problem.limits if limit.metric == "latency"), None)
    if latency is None:
        archs = finalists(problem.limits, problem.space, found.arch, found.worth, FINALISTS)
        seen = {arch: over(problem.limits, arch) for arch in archs}
    else:
        seen = _proposed(problem, found, target, latency)
    tried: dict[Arch, tuple[Kept, ...]] = {}
    for arch in _by_accuracy(found, seen)[:FINALISTS]:
        beside = _against_base(problem, [arch], target, "measured anew, %")[arch] if latency else None
        tried[arch] = tuple(_kept(limit, arch, beside) for limit in problem.limits)
        if _worst(tried[arch]) <= 1:
            break
    arch = min(tried, key=lambda arch: max(_worst(tried[arch]), 1.0))  # the first that keeps them, or the least over
    for own in tried[arch]:
        say(
            f"{problem.title}: {own.metric} {quantity(own.measured, own.unit)}, predicted "
            f"{quantity(own.predicted, own.unit)}, {percent(own.ratio, 1)} of what {own.asked!r} allows"
        )
    return Taken(arch, tried[arch], len(seen) if latency else 0)


def _proposed(problem: Problem, found: Found, target: Target, latency: Limit) -> dict[Arch, float]:
    """Archs that were measured whole, each over the limit that it is furthest over, or nearest to."""
    others = [limit for limit in problem.limits if limit is not latency]
    least = latency.ratio(leanest([latency], problem.space))
    seen: dict[Arch, float] = {}
    turns: list[tuple[float, float]] = []
    for turn in range(REPEATS + 1):
        aim = next_aim(turns)
        moved = tuple(replace(own, most=own.most * (aim if own is latency else 1)) for own in problem.limits)
        archs = finalists(moved, problem.space, found.arch, found.worth, FINALISTS)
        new = [arch for arch in archs if arch not in seen]
        if not new or (turns and aim < least):
            break
        measured = _against_base(problem, new, target, f"finalists, turn {turn + 1}, %")
        ratios = {arch: each.ratio(latency) for arch, each in measured.items()}
        turns.append((aim, statistics.median(ratios.values())))
        seen |= {arch: max([ratio, *(other.ratio(arch) for other in others)]) for arch, ratio in ratios.items()}
        if any(USED <= its <= 1 - MARGIN for its in seen.values()):
            break
    return seen


def _by_accuracy(found: Found, seen: dict[Arch, float]) -> list[Arch]:
    """Those that keep the limits, the most accurate first, of these those that use them before the others; where none
    does, all, the least over first."""
    within = [arch for arch in seen if seen[arch] <= 1]
    if not within:
        return sorted(seen, key=seen.__getitem__)
    accuracies = dict(zip(within, found.validate(within), strict=True))
    return sorted(within, key=lambda arch: (seen[arch] >= LEAST, accuracies[arch]), reverse=True)


def _worst(limits: Sequence[Kept]) -> float:
    return max(own.ratio for own in limits)


def _against_base(problem: Problem, archs: Sequence[Arch], target: Target, title: str) -> dict[Arch, Beside]:
    """Whole networks beside the base, in one interleaved run."""
    network = problem.network
    modules = [resize(network, arch) for arch in (network.base, *archs)]
    with progress(title, 100) as bar:
        base, *readings = Latency(target, rounds=ROUNDS, seed=time.time_ns() % 2**31).measure(
            modules, on_round=shares(bar)
        )
    return {arch: Beside(reading, base) for arch, reading in zip(archs, readings, strict=True)}


def _kept(limit: Limit, arch: Arch, fresh: Beside | None) -> Kept:
    predicted = limit.cost.cost(arch)
    if fresh is None or limit.metric != "latency":
        return Kept(limit.metric, limit.text, limit.most, predicted, predicted, 0.0, limit.cost.unit)
    most = parse("latency", limit.text, fresh.base.estimate)
    measured = fresh.own.estimate
    return Kept(limit.metric, limit.text, most, predicted, measured, fresh.error(limit), limit.cost.unit)
