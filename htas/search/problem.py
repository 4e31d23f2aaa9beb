"""What a strategy may look at, and what it returns."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from htas.cost.limits import Limit
from htas.cost.model import CostModel
from htas.data.split import Data
from htas.errors import UserError
from htas.graph import Arch, Network
from htas.plugins.contract import need, need_fields
from htas.search.record import EpochRecord
from htas.spaces.space import Space
from htas.text import quoted, shortened


@dataclass(frozen=True)
class Problem:
    """Find the arch of `space` that is best on `data` (train and validation only) at the price of `cost`."""

    network: Network
    reset: Callable[[nn.Module], None]
    """Draws new weights for a network of this family."""
    data: Data
    space: Space
    cost: CostModel
    device: str
    seed: int
    checkpoint: Path
    """File from which a strategy goes on after an interruption."""
    base: Callable[[], nn.Module]
    """Returns the trained base network; the first call may train it."""
    title: str = "search"
    limits: tuple[Limit, ...] = ()
    """Limits on the cost of the arch."""
    trained: Path | None = None
    """File of a supernet that searches with the same options share; written by the first of them."""
    anew: bool = True
    """Whether the network of an arch is trained from new weights, and not from the trained base network's."""
    weight_bits: int = 0
    """Bits of weights, 8 or 7, where archs are judged in simulated int8; 0 where the target is not in int8."""
    again: Callable[[], "Problem"] | None = None
    """Makes the problem again in another process, which it can be sent to; None where only this one has the data."""
    anywhere: Callable[[Path], "Problem"] | None = None
    """As `again`, on any machine, from a folder there that has the files of this run."""

    def __post_init__(self) -> None:
        self.network.check(self.space.widest)
        self.network.check(self.space.narrowest)

    @property
    def folder(self) -> Path:
        """Of the run."""
        return self.checkpoint.parent.parent

    @property
    def supernet(self) -> Path:
        """File of the supernet that searches for other budgets may start from."""
        return self.folder / f"supernet-{self.space.name}.safetensors"

    @property
    def journal(self) -> Path:
        """File of the archs judged by a search that was interrupted."""
        return self.checkpoint.with_suffix(".journal")


def unfinished(*checkpoints: Path) -> list[Path]:
    """Files of searches that were interrupted: of the supernet, of short trainings, of archs judged."""
    return [path.with_suffix(suffix) for path in checkpoints for suffix in (path.suffix, ".json", ".journal")]


def rivals(problem: Problem, arch: Arch, count: int, *, seed: int, tolerance: float = 0.05) -> list[Arch]:
    """Random archs of the space whose cost lies within the fraction `tolerance` of `arch`'s, or the nearest ones.

    Draws lean to wide or narrow at random, since uniform draws seldom reach the ends of a space.
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
    """The result of a search, with the means to judge other archs."""

    arch: Arch
    epochs: tuple[EpochRecord, ...]
    converged: bool
    why: str
    """The figures behind `converged`, in words."""
    validate: Callable[[Sequence[Arch]], list[float]]
    """Validation accuracy, 0 to 1, of any archs of the space, all judged in the same way, such as by a supernet."""
    seconds: float
    worth: Callable[[Arch], float] = lambda arch: 0.0
    """How much the search prefers an arch; only its order counts, among archs near the limits."""
    pool: tuple[Arch, ...] = ()
    """The only archs that may replace `arch` if it misses the limits when measured; empty for any arch."""
    cheap: bool = True
    """Whether `validate` takes seconds for an arch, as a supernet does, and not a training."""
    estimates: bool = False
    """Whether `worth` is an estimate for any arch that tells more than `validate`, whose networks are not trained."""
    judge: str = "in the supernet"
    """How `validate` finds accuracies, for a report."""


def checked(outcome: SearchOutcome, space: Space, place: str) -> SearchOutcome:
    """The outcome of a search of the user's, `mine:Search`, which judges archs or raises UserError, as this does, where
    it is not as its fields say."""
    need_fields(outcome, f"what {place}.search() gives")
    for arch in (outcome.arch, *outcome.pool):
        if arch not in space:
            got = f"widths {shortened(str(arch.widths))} and depths {shortened(str(arch.depths))}"
            raise UserError(
                f"{place}.search() must give archs of the space {space.name}, it gives {got}; mend it there"
            )

    def validate(archs: Sequence[Arch]) -> list[float]:
        accuracies = outcome.validate(archs)
        what = f"what validate() of {place}.search() gives"
        need(accuracies, list[float], what)
        if len(accuracies) != len(archs) or not all(0 <= each <= 1 for each in accuracies):
            got = quoted(list(accuracies))
            raise UserError(f"{what} must be one accuracy, 0 to 1, for each of {len(archs)} archs, it is {got}")
        return [float(each) for each in accuracies]

    def worth(arch: Arch) -> float:
        value = outcome.worth(arch)
        what = f"what worth() of {place}.search() gives"
        need(value, float, what)
        if math.isnan(value):
            raise UserError(f"{what} must be a number that can be compared, it is {value}; mend it there")
        return float(value)

    return replace(outcome, validate=validate, worth=worth)
