"""Multiply-adds and parameters as costs: exact counts, and their expectations."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import product
from math import prod
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from htas.cost.model import expectation, keeps
from htas.cost.tables import Floats, LayerCost, Mixture, mixture
from htas.graph import Arch, Node
from htas.graph.layer import Template
from htas.graph.layout import Layout
from htas.graph.network import Step
from htas.spaces.space import Space


@dataclass(frozen=True)
class CountCost(LayerCost):
    """Multiply-adds for one image, or trainable parameters; projections are counted wherever widths differ."""

    count: Literal["macs", "params"] = "macs"
    unit: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "unit", {"macs": "MACs", "params": "parameters"}[self.count])

    def cost(self, arch: Arch) -> float:
        """The network's own count, projections included."""
        return float(getattr(self.network, self.count)(arch))

    def values(self, template: Template, inputs: Sequence[int], outputs: Sequence[int]) -> Floats:
        """The layers' own counts, [inputs, outputs]."""
        return np.array([[getattr(template.at(i, o), self.count) for o in outputs] for i in inputs], float)

    def template(self, step: Step) -> Template | None:
        """That of its layer; of parameters only a projection's, since all others are the module's own."""
        return super().template(step) if self.count == "macs" or step.node.kind == "project" else None

    def expected(self, space: Space, widths: Mapping[str, Tensor], depths: Mapping[str, Tensor]) -> Tensor:
        """The mean over archs, a scalar; whatever has no layer counts if its block is kept."""
        total: Any = super().expected(space, widths, depths)
        sizes = _Sizes(space, widths, {site: Mixture({site: 1.0}) for site in space.widths})
        for step in self._flow(space, depths):
            if step.node.kind == "depth":
                parts = zip(step.node.segments, step.outputs, strict=True)
                sizes.sources |= {
                    segment.site: mixture(width) for segment, width in parts if segment.site not in space.widths
                }
            if self.count == "macs" and step.node.layer is None and step.node.macs:
                total = total + step.share * self._beside(step.node, sizes)
        if self.count == "macs":
            keep = {name: keeps(space.depths[name], depths[name], s.base) for name, s in self.network.depths.items()}
            for node in self.network.nodes:
                if node.kind == "value" and node.macs:
                    total = total + prod(keep[site][block] for site, block in node.blocks) * self._beside(node, sizes)
        return torch.as_tensor(total + (self._params(space, depths, sizes) if self.count == "params" else 0.0))

    def _beside(self, node: Node, sizes: "_Sizes") -> Any:
        """Expected multiply-adds of a node without a layer, where it runs."""
        each = node.macs / prod(layout.size(self.network.base_widths) for layout in node.scaled)
        return each * sizes.product(node.scaled)

    def _params(self, space: Space, depths: Mapping[str, Tensor], sizes: "_Sizes") -> Any:
        """Expected parameters of the module itself."""
        keep = {name: keeps(space.depths[name], depths[name], s.base) for name, s in self.network.depths.items()}
        total: Any = 0.0
        for name, parameter in self.network.module.named_parameters():
            if not parameter.requires_grad:
                continue
            blocks = (
                (s, at)
                for s in keep
                for at, block in enumerate(self.network.sites[s].producers)
                if name.startswith(f"{block}.")
            )
            share = prod(keep[site][block] for site, block in blocks)
            layouts = self.network.layouts.get(name, (None,) * parameter.dim())
            fixed = prod(size for size, layout in zip(parameter.shape, layouts, strict=True) if layout is None)
            total = total + share * fixed * sizes.product([layout for layout in layouts if layout is not None])
        return total


@dataclass
class _Sizes:
    """Means of products of sizes, each a sum over sites, whose widths are independent."""

    space: Space
    widths: Mapping[str, Tensor]
    sources: dict[str, Mixture]
    """By site, and by what a depth site passes on, the sites and fixed numbers that its width may be."""
    _moments: dict[tuple[str, int], Any] = field(default_factory=dict)

    def product(self, layouts: Sequence[Layout]) -> Any:
        """The mean of the product of the sizes of these layouts."""
        total: Any = 0.0
        for terms in product(*(self._terms(layout).items() for layout in layouts)):
            powers = Counter(site for site, _ in terms if site)
            means = [self._moment(site, power) for site, power in powers.items()]
            total = total + prod(float(share) for _, share in terms) * prod(means)
        return total

    def _terms(self, layout: Layout) -> dict[str, Fraction]:
        """How many positions there are for each channel of a site; for the empty site, how many never change."""
        terms: dict[str, Fraction] = {}
        for run in layout.runs:
            share = Fraction(run.repeat, run.multiple) if run.site else Fraction(run.atoms * run.repeat)
            terms[run.site] = terms.get(run.site, Fraction(0)) + share
        return terms

    def _moment(self, site: str, power: int) -> Any:
        """The mean of a power of a width."""
        if (site, power) not in self._moments:
            total: Any = 0.0
            for source, share in self.sources[site].shares.items():
                if isinstance(source, int):
                    total = total + share * source**power
                else:
                    choices = [width**power for width in self.space.widths[source]]
                    total = total + share * expectation(choices, self.widths[source])
            self._moments[site, power] = total
        return self._moments[site, power]
