"""Section 3.2, first half: measure every distinct layer at every width, and fit f(x) = k x^alpha + b (eq. 1)."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from htas.errors import UserError, need_least
from htas.files import path_of
from htas.graph.layer import Layer
from htas.metrics import Case, Metric, OnRound
from htas.metrics.latency import CHEAP
from htas.spaces.curve import SUMMARIES, LayerTable, SurveyRecord
from htas.spaces.layers import DEAR, SurveyPlan
from htas.timing.measurement import Measurement

EACH = 0.08
"""Seconds for each width of each distinct layer, unless survey.seconds says otherwise."""
REBUILT = 6
"""Times that a layer which takes from DEAR to CHEAP seconds to build is built, about, until choices are decided."""
UNSTEADY = 1.2
"""Ratio of the machine's slow moments to its fast ones that raises no doubt."""
UNSURE = 0.01
"""Relative standard error of a layer's latency, without a doubt."""


@dataclass(frozen=True)
class Survey:
    """How the latency of the widths is measured."""

    seconds: float = 0.0
    """Seconds that a survey takes at most, building layers included; 0 means 0.08 for each width of each distinct layer
    that is measured, and what it takes to build that again and again. It ends earlier when every choice is decided."""
    rounds: int = 1000
    """Times that each width's turn comes, at most; it is read three times then."""
    reading: float = 0.0
    """Seconds that a reading lasts at least, a faster layer being repeated; 0 means as short as the clock allows."""
    store: str = field(default="user", metadata={"key": False})
    """Where measurements are kept for the next run: the path of a file, `user` for this user's own, `none`."""

    undecided: float = field(default=0.2, metadata={"key": False})
    """Largest fraction of groups left undecided; above it the survey is rejected, since noise picked the widths. 1
    turns the check off."""

    def __post_init__(self) -> None:
        if not 0 <= self.undecided <= 1:
            raise UserError(f"survey.undecided must be 0 to 1, got {self.undecided}")
        if not self.seconds >= 0:
            raise UserError(f"survey.seconds must be 0 (the default) or more, got {self.seconds}")
        need_least(1, self, "survey", "rounds")
        if not self.reading >= 0:
            raise UserError(f"survey.reading must be 0 (as short as the clock allows) or more, got {self.reading}")
        if not self.store:
            raise UserError("survey.store must be the path of a file, user or none; it is empty")
        path_of(self.store, "survey.store")

    def limit(self, cases: int, building: float = 0.0) -> float:
        """Seconds for a number of layers, each of which takes `building` seconds to build."""
        builds = 1 if building > CHEAP else REBUILT if building >= DEAR else 0
        return self.seconds or (EACH + builds * building) * cases


def survey(
    plan: SurveyPlan,
    metric: Metric,
    *,
    pending: Callable[[Mapping[str, LayerTable]], Collection[Layer]] | None = None,
    on_round: OnRound = None,
) -> SurveyRecord:
    """Measure every distinct producing layer at widths 1..e*base, and every layer of frozen width once.

    Of a site with more widths than the plan measures, some are: evenly spaced ones and the ends of its groups, then
    widths between those whose latencies differ, so that steps are located. The others are interpolated.

    `pending` gets the tables while readings go on, and says which layers need more of them.
    """
    layers, begun = plan.layers, plan.first

    def more(readings: Mapping[Case, Measurement]) -> Collection[Layer]:
        tables = _tables(layers, readings)
        open_layers = set(layers if pending is None else pending(tables))
        measured = {layer for layer in layers if layer in readings}
        return open_layers & measured | {
            layer for family in plan.families for layer in family.split(tables, measured, open_layers)
        }

    sampling = len(begun) < len(layers)
    readings = metric.sample(list(layers), begun, on_round=on_round, pending=more if pending or sampling else None)
    return SurveyRecord(
        survey=" ".join(sorted({reading.survey for reading in readings.values()})),
        context=dict(next(iter(readings.values())).context),
        layers=_tables(layers, readings),
        cases=len(readings),
        interpolated=len(layers) - len(readings),
        doubts=_doubts(list(readings.values())),
    )


def _doubts(readings: Sequence[Measurement]) -> tuple[str, ...]:
    """Remarks on the machine, how far its level moved, and how uncertain the layers still are."""
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
    return tuple(doubts)


def _tables(
    keys_by_layer: Mapping[Layer, Collection[str]], readings: Mapping[Case, Measurement]
) -> dict[str, LayerTable]:
    """By layer key: the widths, and the summaries and the number of readings of each."""
    layers: dict[str, list[Layer]] = {}
    for layer, keys in keys_by_layer.items():
        for key in keys:
            layers.setdefault(key, []).append(layer)
    return {key: _table(mine, readings) for key, mine in layers.items()}


def _table(layers: Sequence[Layer], readings: Mapping[Case, Measurement]) -> LayerTable:
    """Summaries by width. One that was not read lies on the line between its neighbours, uncertain by half their
    difference."""
    by_width = {layer.outputs: readings[layer] for layer in layers if layer in readings}
    widths, measured = [layer.outputs for layer in layers], sorted(by_width)
    figures = {column: [getattr(by_width[width], column) for width in measured] for column in SUMMARIES}
    table = {column: np.interp(widths, measured, figures[column]).tolist() for column in SUMMARIES}
    for row, width in enumerate(widths):
        if width not in by_width:
            above = int(np.searchsorted(measured, width))
            before, after = figures["estimate"][above - 1 : above + 1]
            table["error"][row] = float(np.hypot((after - before) / 2, table["error"][row]))
    counts = tuple(len(by_width[width].values) if width in by_width else 0 for width in widths)
    return LayerTable(tuple(widths), readings=counts, **{column: tuple(table[column]) for column in SUMMARIES})
