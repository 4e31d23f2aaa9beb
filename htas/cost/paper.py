"""The paper's cost: the latency of each layer alone, added (eq. 7 and 8)."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from math import prod
from typing import Any

import torch
from torch import Tensor

from htas.cost.model import CostModel, expectation, keeps
from htas.graph import Arch, Network
from htas.graph.layer import WEIGHTED
from htas.graph.network import times
from htas.spaces.curve import Fit, LayerTable, curve
from htas.spaces.design import Design
from htas.spaces.space import Space


@dataclass(frozen=True)
class Term:
    """Layers of one site that stay or go together: count x (k x^alpha + b) seconds (eq. 1)."""

    site: str
    """Empty for layers whose width never changes, and for those of several sites."""
    blocks: tuple[tuple[str, int], ...]
    k: float
    alpha: float
    b: float
    count: int = 1
    parts: tuple[tuple[str, int | Fraction], ...] = ()
    """Sites among the outputs where these are not one site's, each with its outputs for each channel."""
    rest: int = 0
    """Outputs that are of no site."""

    def at(self, widths: Mapping[str, Any]) -> Any:
        """f(x) of eq. 1 at these widths by site, times the count."""
        parts = ((self.site, 1),) if self.site else self.parts
        width = self.rest + sum(times(widths[site], repeat) for site, repeat in parts)
        return self.count * (self.k * width**self.alpha + self.b)


@dataclass(frozen=True)
class PaperCost(CostModel):
    """Eq. 7 and 8: the sum over layers of f(E[width]), each times the probability of keeping the layer.

    The input width of a layer is held at the survey's, as in the paper.
    """

    terms: tuple[Term, ...]
    blocks: Mapping[str, int]
    """Blocks of each depth site in the base network."""
    unit: str = "s"

    def cost(self, arch: Arch) -> float:
        """Seconds."""
        there = [term for term in self.terms if all(arch.depths[site] > block for site, block in term.blocks)]
        return float(sum(term.at(arch.widths) for term in there))

    def expected(self, space: Space, widths: Mapping[str, Tensor], depths: Mapping[str, Tensor]) -> Tensor:
        """f(E[x]) of eq. 8 for each term times the probability of keeping it: seconds, a scalar."""
        mean = {site: expectation(space.widths[site], widths[site]) for site in space.widths}
        keep = {site: keeps(space.depths[site], depths[site], self.blocks[site]) for site in space.depths}
        total: Any = 0.0
        for term in self.terms:
            share = prod(keep[site][block] for site, block in term.blocks)
            total = total + share * term.at(mean)
        return torch.as_tensor(total)


def paper_cost(network: Network, tables: Mapping[str, LayerTable], design: Design) -> PaperCost:
    """Eq. 7 and 8: a fitted line for every layer, a constant for layers whose width never changes."""
    terms: Counter[Term] = Counter()
    plan = design.survey_plan(network)
    for use in network.uses(plan.arch):
        if use.layer.op not in WEIGHTED:
            continue
        layer, estimate = use.curve, design.estimate
        sites = tuple((segment.site, segment.repeat) for segment in use.outputs if segment.site)
        rest = use.layer.outputs - int(sum(times(plan.arch.widths[site], repeat) for site, repeat in sites))
        if sites:
            fit = curve(tables, layer, plan.outputs(use), estimate).fit(design.alpha)
        else:
            fit = Fit(0.0, 1.0, curve(tables, layer, [use.layer.outputs], estimate).seconds[0])
        parts, rest = ((), 0) if use.site or not sites else (sites, rest)
        terms[Term(use.site, use.blocks, fit.k, fit.alpha, fit.b, 1, parts, rest)] += 1
    return PaperCost(
        tuple(replace(term, count=count) for term, count in terms.items()),
        {name: site.base for name, site in network.depths.items()},
    )
