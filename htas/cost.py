"""What an arch costs: one function of widths and depths.

Whole numbers give the cost of one arch; probabilities give the differentiable expectation that a search charges
(eq. 6 to 8). Strategies see only that.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from htas.arch import Arch
from htas.space import Space

if TYPE_CHECKING:
    from htas.graph import Network


class CostModel(ABC):
    """Cost of an arch, and expected cost of a distribution over a space."""

    unit: str

    @abstractmethod
    def cost(self, arch: Arch) -> float:
        """The cost of one arch, in `unit`."""

    @abstractmethod
    def expected(self, space: Space, widths: Mapping[str, Tensor], depths: Mapping[str, Tensor]) -> Tensor:
        """The expectation, a differentiable scalar; probabilities [choices] by site, in the order of the space."""


@dataclass(frozen=True)
class Term:
    """Layers of one site that are kept together: count x (k x^alpha + b) seconds."""

    site: str
    """Empty for layers whose width never changes."""
    blocks: tuple[tuple[str, int], ...]
    k: float
    alpha: float
    b: float
    count: int = 1

    def at(self, width: Any) -> Any:
        """f(x) of eq. 1, times the count."""
        return self.count * (self.k * width**self.alpha + self.b)


@dataclass(frozen=True)
class PaperCost(CostModel):
    """Eq. 7 and 8: the sum over layers of f(E[width]), each times the share of archs that keep the layer.

    The input width of a layer is held at the survey's, as in the paper.
    """

    terms: tuple[Term, ...]
    blocks: Mapping[str, int]
    """Blocks of each depth site in the base network."""
    unit: str = "s"

    def cost(self, arch: Arch) -> float:
        """Seconds."""
        return float(
            sum(
                term.at(arch.widths[term.site] if term.site else 0)
                for term in self.terms
                if all(arch.depths[site] > block for site, block in term.blocks)
            )
        )

    def expected(self, space: Space, widths: Mapping[str, Tensor], depths: Mapping[str, Tensor]) -> Tensor:
        """f(E[x]) of eq. 8 for each term, times the probability that it is kept."""
        mean = {site: expectation(space.widths[site], widths[site]) for site in space.widths}
        kept = {site: keeps(space.depths[site], depths[site], self.blocks[site]) for site in space.depths}
        total: Any = 0.0
        for term in self.terms:
            share: Any = 1.0
            for site, block in term.blocks:
                share = share * kept[site][block]
            total = total + share * term.at(mean[term.site] if term.site else 0)
        return torch.as_tensor(total)


@dataclass(frozen=True)
class MacsCost(CostModel):
    """Multiply-adds for one image. The expectation multiplies those of input and output widths, as in TAS."""

    network: "Network"
    unit: str = "MACs"

    def cost(self, arch: Arch) -> float:
        """Multiply-adds, projections included."""
        return float(self.network.macs(arch))

    def expected(self, space: Space, widths: Mapping[str, Tensor], depths: Mapping[str, Tensor]) -> Tensor:
        """Multiply-adds; projections, which exist only where widths differ, are left out as in TAS."""
        mean = {site: expectation(space.widths[site], widths[site]) for site in space.widths}
        stays = {
            name: by_block(space.depths[name], depths[name], site.base) for name, site in self.network.depths.items()
        }
        total: Any = 0.0
        for step in self.network.flow(mean.__getitem__, stays.__getitem__):
            layer = step.node.layer
            if layer is None or step.node.kind not in ("conv", "grouped", "fixed"):
                continue
            height, width = layer.output_size
            over = layer.size[0] * layer.size[1] if layer.op == "conv_transpose" else height * width
            if step.node.kind == "fixed":
                total = total + step.kept * layer.macs
                continue
            inputs = layer.each if step.node.kind == "grouped" else step.given / layer.groups
            each = layer.kernel[0] * layer.kernel[1] * inputs * over + layer.bias * height * width
            total = total + step.kept * each * step.channels
        return torch.as_tensor(total)


def expectation(choices: Sequence[int], probabilities: Tensor) -> Tensor:
    """The mean of the choices, a scalar."""
    return probabilities @ torch.tensor(choices, dtype=probabilities.dtype, device=probabilities.device)


def keeps(choices: Sequence[int], probabilities: Tensor, blocks: int) -> list[Tensor]:
    """For each block, the probability that it is kept: that the depth is above its number."""
    stays = by_block(choices, probabilities, blocks)
    return [torch.stack(stays[block:]).sum() for block in range(blocks)]


def by_block(choices: Sequence[int], probabilities: Tensor, blocks: int) -> list[Tensor]:
    """Probability of keeping 1, 2, ... blocks; zero for depths that are no choice."""
    zero = probabilities.new_zeros(())
    found = dict(zip(choices, probabilities, strict=True))
    return [found.get(depth, zero) for depth in range(1, blocks + 1)]
