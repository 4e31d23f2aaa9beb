"""What an arch costs: one function of widths and depths.

Whole numbers give the cost of one arch; probabilities give the differentiable expectation that a search charges
(eq. 6 to 8). Strategies see only that.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from htas.graph.arch import Arch
from htas.spaces.space import Space


class CostModel(ABC):
    """Cost of an arch, and expected cost of a distribution over a space."""

    unit: str

    @abstractmethod
    def cost(self, arch: Arch) -> float:
        """The cost of one arch, in `unit`."""

    @abstractmethod
    def expected(self, space: Space, widths: Mapping[str, Tensor], depths: Mapping[str, Tensor]) -> Tensor:
        """The expectation, a differentiable scalar; probabilities [choices] by site, in the order of the space."""

    def parts(self) -> "tuple[CostModel, ...]":
        """Costs whose largest is this one: sums over layers where it is none. A limit holds for each of them."""
        return (self,)

    def remark(self, arch: Arch) -> str:
        """A sentence that a reader of the cost of an arch must know; empty for none."""
        return ""


def expectation(choices: Sequence[int], probabilities: Tensor) -> Tensor:
    """The mean of the choices under probabilities [choices], a scalar."""
    return probabilities @ torch.tensor(choices, dtype=probabilities.dtype, device=probabilities.device)


def keeps(choices: Sequence[int], probabilities: Tensor, blocks: int) -> list[Tensor]:
    """Probability of keeping each block: that the depth exceeds its number, the first being 0."""
    stays = by_block(choices, probabilities, blocks)
    return [torch.stack(stays[block:]).sum() for block in range(blocks)]


def by_block(choices: Sequence[int], probabilities: Tensor, blocks: int) -> list[Tensor]:
    """Probability of keeping exactly 1, 2, ... blocks; zero for depths that are no choice."""
    zero = probabilities.new_zeros(())
    by_depth = dict(zip(choices, probabilities, strict=True))
    return [by_depth.get(depth, zero) for depth in range(1, blocks + 1)]
