"""The layers that a survey measures, at which widths (section 3.2), and which only where a choice needs them."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import ceil, log2
from typing import Literal

import numpy as np

from htas.graph import Arch, Network, Site
from htas.graph.layer import WEIGHTED, Layer, Template
from htas.graph.network import Use, times
from htas.spaces.curve import LayerTable, Part, add, curve
from htas.spaces.room import filled
from htas.spaces.space import group_slices

MOST = 128
"""Widths of a site that are measured at most, where building a layer takes no time."""
FEW = 24
"""... where building a layer takes SLOW seconds or more."""
SLOW = 1.0
DEAR = 0.01
"""Seconds to build a layer from which on hundreds of layers are felt."""
SOME, SLOWER = 48, 0.02
"""Widths of a site where building a layer takes SLOWER seconds or more."""
SPARE = (96, 64, 48, 32, 24, 16, 12, 8)
"""Widths of a site where more would not fit into memory."""
FLAT = 0.01
"""Neighbours whose latencies differ by less than this fraction have no step between them worth locating."""
SEEN = 3.0
"""Standard errors from which on two latencies differ."""


def widest(base: int, expand: float) -> int:
    """The last width of the expanded global search space (section 3.1)."""
    return int(base * expand + 1e-9)


def widths_of(site: Site, expand: float) -> range:
    """1..e*base, the widths of that space; of a site whose widths must be multiples, only those, and from the least."""
    return range(max(site.multiple, site.least), widest(site.base, expand) + 1, site.multiple)


def widths_at_most(build_seconds: float) -> int:
    """How many widths of a site to measure at most, where a layer takes `build_seconds` to build."""
    return FEW if build_seconds >= SLOW else SOME if build_seconds >= SLOWER else MOST


def fewer(most: int) -> list[int]:
    """That number of widths of a site and smaller ones, where memory is scarce."""
    return [most, *(widths for widths in SPARE if widths < most)]


@dataclass(frozen=True)
class SurveyPlan:
    """Which layers of a network a survey measures, and at which widths."""

    network: Network
    expand: float = 2.0
    """The widest width of a site is this multiple of its base width."""
    inputs: Literal["base", "expanded"] = "base"
    """Whether the input widths of a layer are the base network's, or `expand` times those."""
    groups: int = 1
    """Groups whose first and last width are measured."""
    most: int = MOST
    """Widths of a site that are measured at most; where it has more, the others are interpolated."""

    @cached_property
    def arch(self) -> Arch:
        """The arch whose widths are the layers' input widths."""
        if self.inputs == "base":
            return self.network.base
        return Arch({name: self.widths(name)[-1] for name in self.network.widths}, self.network.base.depths)

    @cached_property
    def templates(self) -> dict[str, Counter[Template | Part]]:
        """By width site, the templates of the layers that produce it, with their multiplicity; outputs are free."""
        templates: dict[str, Counter[Template | Part]] = {name: Counter() for name in self.network.widths}
        for use in self.network.uses(self.arch):
            for segment in use.outputs:
                if segment.site:
                    rest = use.layer.outputs - int(times(self.arch.widths[segment.site], segment.repeat))
                    part = Part(use.curve, segment.repeat, rest)
                    templates[segment.site][use.curve if (part.repeat, rest) == (1, 0) else part] += 1
        return templates

    @cached_property
    def layers(self) -> dict[Layer, set[str]]:
        """Every layer at every width, and those of frozen width, each with the keys of the tables that it goes into.

        There may be two: a depthwise layer of one channel is also a plain one from one channel to one.
        """
        layers: dict[Layer, set[str]] = {}
        for site, templates in self.templates.items():
            for template in templates:
                for width in self.widths(site):
                    layers.setdefault(template.wide(width), set()).add(template.key)
        for use in self.network.uses(self.arch):
            if not use.sites and use.layer.op in WEIGHTED:
                layers.setdefault(use.layer, set()).add(use.curve.key)
        return layers

    def widths(self, site: str) -> range:
        """The widths of a site in the expanded space."""
        return widths_of(self.network.sites[site], self.expand)

    def outputs(self, use: Use) -> list[int]:
        """The numbers of outputs that a layer is measured at, ascending: one of its sites changes at a time."""
        return sorted({
            layer.outputs(width)
            for site in use.sites
            for layer in self.templates[site]
            if layer.key == use.curve.key
            for width in self.widths(site)
        })  # fmt: skip

    @cached_property
    def families(self) -> list["SiteFamily"]:
        """The sites, those together that share a layer."""
        families: list[SiteFamily] = []
        for site, layers in self.templates.items():
            mine = (self.widths(site), layers)
            akin = [family for family in families if any(layers.keys() & theirs.keys() for _, theirs in family.sites)]
            sites = [each for family in akin for each in family.sites]
            joined = SiteFamily(tuple(sites if mine in sites else [*sites, mine]), self.groups, self.most)
            families = [*(family for family in families if family not in akin), joined]
        return families

    @property
    def first(self) -> set[Layer]:
        """The layers that a survey begins with: of every family its first widths, and those of frozen width."""
        later = {layer for family in self.families for layer in family.at(family.widths)}
        begun = {layer for family in self.families for layer in family.at(family.first)}
        return set(self.layers) - (later - begun)

    @property
    def filled(self) -> float:
        """Bytes that the layers of a survey take, about."""
        return filled(self.layers) * self.at_most / len(self.layers)

    @property
    def at_most(self) -> int:
        """How many layers a survey measures at most."""
        of_sites = sum(len(family.at(family.widths)) for family in self.families)
        return len(self.layers) - of_sites + sum(family.at_most for family in self.families)


@dataclass(frozen=True)
class SiteFamily:
    """Sites that share layers and so are measured at the same widths: where one layer has a step, all are read."""

    sites: tuple[tuple[range, Counter[Template | Part]], ...]
    """The widths of each, and the layers that produce it."""
    groups: int
    most: int

    @cached_property
    def widths(self) -> list[int]:
        """The widths of all its sites together."""
        return sorted({x for widths, _ in self.sites for x in widths})

    @property
    def first(self) -> set[int]:
        """The widths to begin with: half of the most, evenly spaced, the least of every site, the ends of every group.

        The spacing is a power of two, so that the widths that hardware is fond of are among them.
        """
        if len(self.widths) <= self.most:
            return set(self.widths)
        spacing = 2 ** ceil(log2(2 * len(self.widths) / self.most))
        ends = {widths[run][-1] for widths, _ in self.sites for run in group_slices(len(widths), self.groups)}
        return {*(widths[0] for widths, _ in self.sites), *self.widths[spacing - 1 :: spacing], *ends}

    @property
    def at_most(self) -> int:
        """Layers that are measured at most."""
        number = max(self.most, len(self.first))
        longest: dict[Template | Part, int] = {}
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
