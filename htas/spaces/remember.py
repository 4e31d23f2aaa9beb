"""A metric with a store: a layer that was measured here before, and whose readings still hold, is not measured again.

Whole curves are reused, the layers that differ in their outputs alone, each from one survey. A sampled curve has
readings at widths that one survey chose for all curves, so these are reused together, up to the end of that survey, or
not at all. Every survey also reads an anchor layer. Before a curve is reused, the anchor and
some of the survey's layers are read again. A shared machine is faster in one hour and slower in the next: that is one
factor, and the curve is rescaled by it. Where the layers moved apart by more than MOVED, or all of them by more than
FACTOR, the machine has changed, and the curve is measured again.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from htas.console.progress import say
from htas.errors import UserError
from htas.graph.layer import Layer
from htas.metrics import Case, Metric, OnRound, Pending
from htas.timing.entry import Entry
from htas.timing.measurement import LOW, Measurement
from htas.timing.store import Store

ANCHOR = Layer("conv", 16, 16, (32, 32), (3, 3), padding=(1, 1), norm=True, activation="relu")
"""Read in every survey."""
CHECKED = 8
"""Layers of a stored survey that are read again."""
MOVED = 0.03
"""Curves of layers that moved apart by more than this share (root mean square) are measured again."""
FACTOR = 1.5
"""... and of layers that moved together by more than this."""


@dataclass(frozen=True)
class CachedMetric(Metric):
    """Another metric with a store. Its target is the other metric's."""

    unit: ClassVar[str] = "s"
    metric: Metric
    name: str
    """The other metric's, in the store: `latency`."""
    store: Store
    place: str
    """Digest of all that readings depend on."""
    fresh: bool = False
    """Whether everything is measured again; it is stored either way."""

    def measure(self, cases: Sequence[Case], *, on_round: OnRound = None, pending: Pending = None) -> list[Measurement]:
        """One measurement for each case; networks are always measured. A store that fails is reported and ignored,
        one that cannot be written before anything is measured."""
        readings = self.sample(cases, cases, on_round=on_round, pending=pending)
        return [readings[case] for case in cases]

    def sample(
        self, cases: Sequence[Case], first: Collection[Case], *, on_round: OnRound = None, pending: Pending = None
    ) -> dict[Case, Measurement]:
        """Measurements of the `first` cases and of those that became `pending`; of a stored curve, all of it."""
        self._check_store()
        valid = {} if self.fresh else self._still_valid(self._stored_curves(cases, set(first)))
        new: dict[Case, Measurement] = {}
        if not valid or set(first) - set(valid):
            new = self._measured(cases, set(first), valid, on_round, pending)
            self._keep(new)
        if valid:
            number = len({*new, *valid}.intersection(cases))
            say(f"store: {len(valid)} of {number} layers were measured before and still hold")
        both = {**new, **valid}
        return {case: both[case] for case in dict.fromkeys(cases) if case in both}

    def _check_store(self) -> None:
        try:
            self.store.need_writable()
        except UserError as error:
            say(f"store: {error}; unless that is done before the readings are taken, they are for this run alone")

    def _still_valid(self, stored: Mapping[Case, Entry]) -> dict[Case, Measurement]:
        """The stored measurements at today's speed of the machine; nothing where some of them no longer hold."""
        if not stored:
            return {}
        surveys: dict[str, dict[Case, Entry]] = {}
        for case, entry in stored.items():
            surveys.setdefault(entry.survey, {})[case] = entry
        checked = [case for mine in surveys.values() for case in list(mine)[:: max(1, len(mine) // CHECKED)]]
        cases = list(dict.fromkeys([ANCHOR, *checked]))
        today = dict(zip(cases, self.metric.measure(cases, pending=lambda readings: ()), strict=True))
        valid: dict[Case, Measurement] = {}
        for entries in surveys.values():
            factor = _moved(today, entries)
            if factor is None:
                say(
                    f"store: layers moved by more than {MOVED:.0%} against each other since; "
                    "all of them are measured again"
                )
                return {}
            valid |= {case: _rescaled(entry, factor) for case, entry in entries.items()}
        return valid

    def _measured(
        self, cases: Sequence[Case], first: set[Case], valid: Mapping[Case, Measurement], on_round: OnRound,
        pending: Pending,
    ) -> dict[Case, Measurement]:  # fmt: skip
        """Readings of the cases on no stored curve, and of the anchor in the same rounds."""
        curves = {_curve(case) for case in valid}
        needed = list(dict.fromkeys([*(case for case in cases if _curve(case) not in curves), ANCHOR]))

        def more(readings: Mapping[Case, Measurement]) -> set[Case]:
            assert pending is not None
            open_ones = set(pending({**readings, **valid})).intersection(needed)
            return open_ones | {ANCHOR} if open_ones else set()

        begun = [case for case in needed if case in first or case == ANCHOR]
        return self.metric.sample(needed, begun, on_round=on_round, pending=more if pending is not None else None)

    def _stored_curves(self, cases: Sequence[Case], first: set[Case]) -> dict[Case, Entry]:
        """The stored measurements of curves: of all that are whole, and of those that are sampled."""
        curves: dict[str, list[Layer]] = {}
        for case in cases:
            if isinstance(case, Layer):
                curves.setdefault(_curve(case), []).append(case)
        sampled = [layer for layers in curves.values() if not first.issuperset(layers) for layer in layers]
        entries_by_case: dict[Case, Entry] = {}
        try:
            for layers in filter(first.issuperset, curves.values()):
                entries = self.store.curve(self.place, self.name, [layer.key for layer in layers])
                entries_by_case |= dict(zip(layers, entries, strict=True)) if entries else {}
            entries_by_case |= self._samples(sampled, first)
        except UserError as error:
            say(f"store: {error}; all layers are measured again")
            return {}
        return entries_by_case

    def _samples(self, layers: Sequence[Layer], first: set[Case]) -> dict[Case, Entry]:
        """The entries of these layers in the newest survey; empty where it lacks one of the first."""
        begun = self.store.curve(self.place, self.name, [layer.key for layer in layers if layer in first])
        if not begun:
            return {}
        entries = self.store.entries(begun[0].survey)
        stored = {entry.layer: entry for entry in entries if (entry.place, entry.metric) == (self.place, self.name)}
        return {layer: stored[layer.key] for layer in layers if layer.key in stored}

    def _keep(self, readings: Mapping[Case, Measurement]) -> None:
        steady = tuple(np.divide(readings[ANCHOR].values, readings[ANCHOR].levels or 1.0).tolist())
        try:
            self.store.add(
                [
                    Entry(self.place, self.name, case.key, reading, steady, reading.doubts)
                    for case, reading in readings.items()
                    if isinstance(case, Layer) and Entry.storable(reading)
                ]
            )
        except UserError as error:
            say(f"store: {error}; this survey is not in it")


def _curve(case: Case) -> str:
    """The key of a layer's curve; empty for a network."""
    return case.curve_template.key if isinstance(case, Layer) else ""


def _moved(today: Mapping[Case, Measurement], stored: Mapping[Case, Entry]) -> float | None:
    """Latency of a survey's layers today over that of then; None where they did not move together."""
    then = {case: entry.measurement.estimate for case, entry in stored.items()}
    if anchor := next(iter(stored.values())).anchor:
        then[ANCHOR] = float(np.percentile(anchor, LOW))
    ratios = np.asarray([today[case].estimate / then[case] for case in today if case in then])
    with np.errstate(all="ignore"):  # readings of another program may be of any size
        factor = float(np.median(ratios))
        apart = float(np.sqrt(np.mean((ratios / factor - 1) ** 2)))
    return factor if apart <= MOVED and 1 / FACTOR <= factor <= FACTOR else None


def _rescaled(entry: Entry, factor: float) -> Measurement:
    """A stored measurement at today's speed of the machine."""
    remark = f"measured on {entry.date[:10]} and rescaled by {factor:.3f}, as the machine's speed moved"
    return replace(entry.measurement.scaled(factor), remarks=(*entry.measurement.remarks, remark))
