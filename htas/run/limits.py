"""The limits of a run as numbers, and which of its limits and bounds a network breaks, in words."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

from htas import metrics
from htas.cost import limits as budget
from htas.cost.fit import CalibrationRecord
from htas.cost.limits import Limit
from htas.cost.source import NetworkCosts
from htas.graph import Arch
from htas.report.result import Result
from htas.run.run import Run
from htas.search import moves
from htas.search.finish import MARGIN, PairedReading
from htas.search.record import LimitOutcome
from htas.spaces.design import possible_spaces
from htas.text import plural
from htas.timing.measurement import noise

LATENCY = "latency"
"""The limited metric that a report measures."""

MOST_SITES = 3
"""Sites named at most that break their bounds."""


def limits(run: Run) -> tuple[Limit, ...]:
    """The constraints as numbers."""
    costs = {metric: run.costs.by(metric) for metric in run.config.constraints.by_metric}
    return budget.limits(run.config.constraints, costs, run.network.base)


def need_possible(run: Run) -> None:
    """Raise UserError where no network of a space can keep a limit that is counted, or every one does, before anything
    is measured."""
    network, constraints = run.network, run.config.constraints
    costs = NetworkCosts(network, run.target, _uncalibrated)
    with suppress(_UncalibratedError):  # a cost model of the user's may look at what was measured
        counted = {name: costs.by(name) for name in constraints.by_metric if not metrics.named(name).fitted}
        exact = budget.limits(constraints, counted, network.base)
        for space in possible_spaces(network, run.config.design).values() if exact else ():
            moves.need_possible(exact, space, network.base)


class _UncalibratedError(Exception):
    """Nothing has been measured yet."""


def _uncalibrated() -> CalibrationRecord:
    raise _UncalibratedError


def broken(run: Run, arch: Arch) -> tuple[str, ...]:
    """The bounds that an arch breaks, and the limits by what is counted or predicted, each in words; but for latency,
    which is measured."""
    network, design = run.network, run.config.design
    outside = []
    for name, width in arch.widths.items():
        least, most = design.bounds_of(network.sites[name])
        if not least <= width <= most:
            outside.append(f"{name} has {width} channels, where design.bounds allows {least:.0f} to {most:.0f}")
    more = [f"{plural(len(outside) - MOST_SITES, 'other site')} out of bounds"] if len(outside) > MOST_SITES else []
    costs = [_by_cost(limit, arch) for limit in limits(run) if limit.metric != LATENCY]
    return (*outside[:MOST_SITES], *more, *filter(None, costs))


def _by_cost(limit: Limit, arch: Arch) -> str:
    cost = limit.cost.cost(arch)
    words = LimitOutcome(limit.metric, limit.text, limit.most, cost, cost, 0.0, limit.cost.unit).breach
    return f"{words}, by prediction" if words and limit.kind.noisy else words


def judged_rows(run: Run, rows: Sequence[Result], base: Result) -> list[Result]:
    """Measured networks with what each breaks of the limits and bounds of a run; the base network is the measure."""
    return [row if row.name == base.name else replace(row, breaks=tuple(_breaches(run, row, base))) for row in rows]


def _breaches(run: Run, row: Result, base: Result) -> Iterator[str]:
    if row.space in run.config.design.spaces:
        outcomes = run.search(row.space).limits
        yield from (each.breach for each in outcomes if each.metric != LATENCY and each.breach)
    else:
        yield from broken(run, row.arch)
    yield from filter(None, (_slow(limit, row, base) for limit in limits(run) if limit.metric == LATENCY))


def _slow(limit: Limit, row: Result, base: Result) -> str:
    """That a network takes longer than it may, in words; empty where that may be noise, as a search may use all but
    MARGIN of a limit, and reads networks in another run than this."""
    assert row.measured is not None and base.measured is not None
    pair = PairedReading(row.measured, base.measured)
    ratio, reach = pair.ratio(limit), 2 * pair.error(limit)
    if limit.relative and row.measured.estimate:
        reach = max(reach, ratio * noise(row.measured, base.measured) / row.measured.estimate)
    if ratio <= 1 + MARGIN + reach:
        return ""
    seconds = row.measured.estimate
    return LimitOutcome(
        limit.metric, limit.text, seconds / ratio, row.predicted or 0.0, seconds, 0.0, limit.cost.unit
    ).breach
