"""All that a strategy may look at."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from htas.cost import CostModel
from htas.datasets import Data
from htas.graph import Network
from htas.space import Space


@dataclass(frozen=True)
class Problem:
    """Find the arch of `space` that is best on `data` (train and validation only) at the price of `cost`."""

    network: Network
    reset: Callable[[nn.Module], None]
    """Draws the weights of a network of this family anew."""
    data: Data
    space: Space
    cost: CostModel
    device: str
    seed: int
    checkpoint: Path
    """Where a strategy may keep what it needs to go on after an interruption."""
    base: Callable[[], nn.Module]
    """The trained base network; the first call may have to train it."""
    title: str = "search"

    def __post_init__(self) -> None:
        self.network.check(self.space.widest)
        self.network.check(self.space.narrowest)
