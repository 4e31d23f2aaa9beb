"""All that a strategy may look at."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from htas.cost.limits import Limit
from htas.cost.model import CostModel
from htas.data.split import Data
from htas.graph import Network
from htas.graph.arch import Arch
from htas.search.record import EpochRecord
from htas.spaces.space import Space


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
    limits: tuple[Limit, ...] = ()
    """What the arch may cost at most."""
    trained: Path | None = None
    """Where a supernet lies, or is to be put, that learns in the same way for other searches."""

    def __post_init__(self) -> None:
        self.network.check(self.space.widest)
        self.network.check(self.space.narrowest)

    @property
    def supernet(self) -> Path:
        """Where a strategy keeps what the searches of other budgets may begin with."""
        return self.checkpoint.parent.parent / f"supernet-{self.space.name}.safetensors"


def rivals(problem: Problem, arch: Arch, count: int, *, seed: int, tolerance: float = 0.05) -> list[Arch]:
    """Random archs of the space whose cost lies within `tolerance` of the given one's (the nearest ones, if few do).

    Drawn at random leanings to wide or narrow, since uniform draws seldom reach the ends of a space.
    """
    rng = random.Random(seed)
    cost = problem.cost.cost(arch)
    archs = {problem.space.sample(rng, rng.uniform(-6, 6)) for _ in range(200 * count)} - {arch}
    off = {other: abs(problem.cost.cost(other) / cost - 1) for other in archs}
    ordered = sorted(archs, key=lambda other: (off[other], sorted(other.widths.items()), sorted(other.depths.items())))
    near = [other for other in ordered if off[other] <= tolerance]
    return rng.sample(near, count) if len(near) >= count else ordered[:count]


@dataclass(frozen=True)
class SearchOutcome:
    """What a search leaves behind."""

    arch: Arch
    epochs: tuple[EpochRecord, ...]
    converged: bool
    why: str
    """The figures behind `converged`, in words."""
    validate: Callable[[Sequence[Arch]], list[float]]
    """Validation accuracy, 0 to 1, of any archs of the space, all judged alike (by a supernet, say)."""
    seconds: float
    worth: Callable[[Arch], float] = lambda arch: 0.0
    """How much the search prefers an arch, for choosing among those near the limits; no more than an order."""
    pool: tuple[Arch, ...] = ()
    """The only archs that may be taken instead of `arch` where it turns out to miss the limits; empty for any."""
    cheap: bool = True
    """Whether `validate` takes seconds for an arch, as by a supernet, and not a training."""
    judge: str = "in the supernet"
    """How `validate` finds accuracies, for a report."""
