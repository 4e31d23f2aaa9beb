"""A metric that looks into the store first: what was measured here before, and still holds, is not measured again.

What is reused is whole curves, the layers that differ in their outputs alone, each from one survey. Every survey also
reads an anchor layer. Before a curve is reused the anchor is read again, and the curve rescaled by how far it has
moved; where that is more than MOVED, the machine is not what it was, and the curve is measured anew.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from htas.files import Unusable
from htas.layer import Layer
from htas.measurement import LOW, Measurement
from htas.metrics import Case, Metric, OnRound, Wanted
from htas.progress import say
from htas.store import Entry, Store

ANCHOR = Layer("conv", 16, 16, (32, 32), (3, 3), padding=(1, 1), norm=True, activation="relu")
"""Read in every survey."""
MOVED = 0.03
"""A curve of an anchor that moved by more than this share is measured anew."""


@dataclass(frozen=True)
class Remembering(Metric):
    """Another metric, with a store beside it. The target is the other's."""

    unit: ClassVar[str] = "s"
    metric: Metric
    name: str
    """The other metric's, in the store: `latency`."""
    store: Store
    place: str
    """Digest of all that readings depend on."""
    fresh: bool = False
    """Whether all is measured anew; it is kept either way."""

    def measure(
        self, cases: Sequence[Case], *, on_round: OnRound | None = None, wanted: Wanted | None = None
    ) -> list[Measurement]:
        """One measurement for each case; networks are always measured. A store that fails is said and done without."""
        known = {} if self.fresh else self._known(cases)
        found, anchor = self._measured([case for case in cases if case not in known], cases, known, on_round, wanted)
        held = {case: kept for case, entry in known.items() if (kept := _rescaled(entry, anchor)) is not None}
        if len(held) < len(known):
            say(f"store: the anchor layer moved by more than {MOVED:.0%} since; what it holds is measured anew")
            found, anchor = self._measured(cases, cases, {}, on_round, wanted)
            held = {}
        elif held:
            say(f"store: {len(held)} of {len(cases)} layers were measured before and still hold")
        self._keep(found, anchor)
        return [held[case] if case in held else found[case] for case in cases]

    def _measured(
        self,
        missing: Sequence[Case],
        cases: Sequence[Case],
        known: Mapping[Case, Entry],
        on_round: OnRound | None,
        wanted: Wanted | None,
    ) -> tuple[dict[Case, Measurement], Measurement]:
        """Readings of what is missing, and of the anchor in the same rounds."""
        asked = list(dict.fromkeys([*missing, ANCHOR]))
        numbers = {case: number for number, case in enumerate(asked)}

        def more(readings: Sequence[Measurement]) -> set[int]:
            assert wanted is not None
            so_far = [known[case].measurement if case in known else readings[numbers[case]] for case in cases]
            open_ones = {numbers[cases[number]] for number in wanted(so_far) if cases[number] in numbers}
            return open_ones | {numbers[ANCHOR]} if open_ones else set()

        readings = self.metric.measure(asked, on_round=on_round, wanted=more if wanted is not None else None)
        return dict(zip(asked, readings, strict=True)), readings[numbers[ANCHOR]]

    def _known(self, cases: Sequence[Case]) -> dict[Case, Entry]:
        """The stored measurements of whole curves."""
        curves: dict[str, list[Layer]] = {}
        for case in cases:
            if isinstance(case, Layer):
                curves.setdefault(case.wide(0).key, []).append(case)
        found: dict[Case, Entry] = {}
        try:
            for layers in curves.values():
                entries = self.store.curve(self.place, self.name, [layer.key for layer in layers])
                found |= dict(zip(layers, entries, strict=True)) if entries else {}
        except Unusable as error:
            say(f"store: {error}; all is measured anew")
            return {}
        return found

    def _keep(self, found: Mapping[Case, Measurement], anchor: Measurement) -> None:
        """Put what was measured now into the store."""
        steady = tuple(np.divide(anchor.values, anchor.levels or 1.0).tolist())
        entries = [
            Entry(self.place, self.name, case.key, reading, steady, reading.doubts)
            for case, reading in found.items()
            if isinstance(case, Layer)
        ]
        try:
            self.store.add(entries)
        except Unusable as error:
            say(f"store: {error}; this survey is not in it")


def _rescaled(entry: Entry, anchor: Measurement) -> Measurement | None:
    """A stored measurement at today's speed of the machine; None where that moved too far, or is not known."""
    if not entry.anchor:
        return None
    ratio = anchor.estimate / float(np.percentile(entry.anchor, LOW))
    if abs(ratio - 1) > MOVED:
        return None
    remark = f"measured on {entry.date[:10]} and rescaled by {ratio:.3f}, as the anchor layer moved"
    kept = entry.measurement
    return replace(kept, values=tuple(value * ratio for value in kept.values), remarks=(*kept.remarks, remark))
