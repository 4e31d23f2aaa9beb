"""The layers that a survey measures, and at which widths (section 3.2)."""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from htas.graph import Network, Site
from htas.graph.arch import Arch
from htas.graph.layer import WEIGHTED, Layer, Template

MOST = 128
"""Widths of a site that are measured at most, where building a layer takes no time."""


def widest(base: int, expand: float) -> int:
    """The last width of the expanded global search space (section 3.1)."""
    return int(base * expand + 1e-9)


def widths_of(site: Site, expand: float) -> range:
    """1..e*base, the widths of that space; of a site whose widths must be multiples, only those."""
    return range(site.multiple, widest(site.base, expand) + 1, site.multiple)


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
    def templates(self) -> dict[str, Counter[Template]]:
        """By width site, the templates of the layers that produce it, with their multiplicity; outputs are free."""
        templates: dict[str, Counter[Template]] = {name: Counter() for name in self.network.widths}
        for use in self.network.uses(self.arch):
            if use.site:
                templates[use.site][use.layer.curve_template] += 1
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
            if not use.site and use.layer.op in WEIGHTED:
                layers.setdefault(use.layer, set()).add(use.layer.curve_template.key)
        return layers

    def widths(self, site: str) -> range:
        """The widths of a site in the expanded space."""
        return widths_of(self.network.sites[site], self.expand)
