"""Which widths a survey measures first, and which others only where a choice needs them."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import ceil, log2

import numpy as np

from htas.graph.layer import Layer, Template
from htas.spaces.curve import LayerTable, add, curve
from htas.spaces.layers import MOST, SurveyPlan
from htas.spaces.space import group_bounds

FEW = 24
"""... where building a layer takes SLOW seconds or more."""
SLOW = 1.0
SOME, DEAR = 48, 0.01
"""Widths of a site where building a layer takes DEAR seconds or more: hundreds of layers are built then."""
FLAT = 0.01
"""Neighbours whose latencies differ by less than this fraction have no step between them worth locating."""
SEEN = 3.0
"""Standard errors from which on two latencies differ."""


def at_most(plan: SurveyPlan) -> int:
    """How many layers a survey measures at most."""
    families = site_families(plan)
    of_sites = sum(len(family.at(family.widths)) for family in families)
    return len(plan.layers) - of_sites + sum(family.at_most for family in families)


def widths_at_most(build_seconds: float) -> int:
    """How many widths of a site to measure at most, where a layer takes `build_seconds` to build."""
    return FEW if build_seconds >= SLOW else SOME if build_seconds >= DEAR else MOST


@dataclass(frozen=True)
class SiteFamily:
    """Sites that share layers and so are measured at the same widths: where one layer has a step, all are read."""

    sites: tuple[tuple[range, Counter[Template]], ...]
    """The widths of each, and the layers that produce it."""
    groups: int
    most: int

    @cached_property
    def widths(self) -> list[int]:
        """The widths of all its sites together."""
        return sorted({x for widths, _ in self.sites for x in widths})

    @property
    def first(self) -> set[int]:
        """The widths to begin with: half of the most, evenly spaced, and the ends of every group.

        The spacing is a power of two, so that the widths that hardware is fond of are among them.
        """
        if len(self.widths) <= self.most:
            return set(self.widths)
        spacing = 2 ** ceil(log2(2 * len(self.widths) / self.most))
        ends = {
            widths[end - 1]
            for widths, _ in self.sites
            for _, end in group_bounds(len(widths), min(self.groups, len(widths)))
        }
        return {self.widths[0], *self.widths[spacing - 1 :: spacing], *ends}

    @property
    def at_most(self) -> int:
        """Layers that are measured at most."""
        number = max(self.most, len(self.first))
        longest: dict[Template, int] = {}
        for widths, layers in self.sites:
            longest |= {layer: max(len(widths), longest.get(layer, 0)) for layer in layers}
        return sum(min(length, number) for length in longest.values())

    def at(self, widths: Collection[int]) -> set[Layer]:
        """Its layers at those of `widths` that each site has."""
        return {
            layer.wide(x) for site_widths, layers in self.sites for layer in layers for x in widths if x in site_widths
        }

    def split(self, tables: Mapping[str, LayerTable], measured: set[Layer], open_layers: set[Layer]) -> set[Layer]:
        """The layers to measure next: in the middle and at the ends of intervals that hide a step, to be read together.

        Intervals that a choice may fall into come first, then large steps, then narrow intervals; only as many as the
        remaining widths can follow down to one width. Once every visible step is located, the turn comes to intervals
        without one that a choice may fall into.
        """
        measured_widths = [x for x in self.widths if self.at([x]) <= measured]
        remaining = self.most - len(measured_widths)
        between = {(a, b): [x for x in self.widths if a < x < b] for a, b in pairwise(measured_widths)}
        hiding = {interval: widths for interval, widths in between.items() if widths and remaining > 0}
        is_open = {interval: not self.at(widths).isdisjoint(open_layers) for interval, widths in hiding.items()}
        steps = self._steps(tables, measured_widths) if hiding else {}
        heights = {each: steps[each] for each in hiding if each in steps} or {e: FLAT for e in hiding if is_open[e]}

        def urgency(interval: tuple[int, int]) -> tuple[bool, int, int, float]:
            return is_open[interval], round(log2(heights[interval])), -len(hiding[interval]), heights[interval]

        widths: set[int] = set()
        for first, last in sorted(heights, key=urgency, reverse=True):
            inside = hiding[first, last]
            remaining -= ceil(log2(len(inside) + 1))
            if widths and remaining < 0:
                break
            widths |= {first, inside[(len(inside) - 1) // 2], last}
        return self.at(widths)

    def _steps(self, tables: Mapping[str, LayerTable], measured_widths: Sequence[int]) -> dict[tuple[int, int], float]:
        """The intervals of known widths that hide a step, with its height as a share of the latency."""
        heights: dict[tuple[int, int], float] = {}
        for site_widths, layers in self.sites:
            widths = [x for x in measured_widths if x in site_widths]
            total = add([(count, curve(tables, layer, widths)) for layer, count in layers.items()])
            # few readings may agree by chance: no error counts as smaller than the median error
            typical = float(np.median(np.divide(total.errors, total.seconds)))
            errors = np.maximum(total.errors, np.multiply(total.seconds, typical))
            rows = list(zip(total.widths, total.seconds, errors, strict=True))
            for (first, before, one), (last, after, other) in pairwise(rows):
                height = abs(after - before)
                least = max(FLAT * min(before, after), SEEN * float(np.hypot(one, other)))
                if last - first > site_widths.step and height > least:
                    share = height / max(before, after, height)
                    heights[first, last] = max(share, heights.get((first, last), 0.0))
        return heights


def site_families(plan: SurveyPlan) -> list[SiteFamily]:
    """The sites, those together that share a layer."""
    families: list[SiteFamily] = []
    for site, layers in plan.templates.items():
        mine = (plan.widths(site), layers)
        akin = [family for family in families if any(layers.keys() & theirs.keys() for _, theirs in family.sites)]
        sites = [each for family in akin for each in family.sites]
        joined = SiteFamily(tuple(sites if mine in sites else [*sites, mine]), plan.groups, plan.most)
        families = [*(family for family in families if family not in akin), joined]
    return families


def first_layers(layers: Collection[Layer], families: Sequence[SiteFamily]) -> set[Layer]:
    """The layers that a survey begins with: of every family its first widths, and those of frozen width."""
    begun, sampled = set(layers), set()
    for family in families:
        sampled |= family.at(family.widths) - family.at(family.first)
    return begun - sampled
