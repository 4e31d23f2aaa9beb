"""One multiplier for all widths and all blocks: the simplest way to a faster network, and the control of a search."""

import time
from dataclasses import dataclass

from htas.console.progress import say
from htas.search.moves import over
from htas.search.problem import Problem, SearchOutcome
from htas.strategies import need_limits
from htas.strategies._trials import ByTrials, Trials, multiples, widest_of


@dataclass(frozen=True)
class Uniform(ByTrials):
    """Picks the largest multiple of the base widths within the limits, every width the nearest choice of its site."""

    @property
    def title(self) -> str:
        """`uniform, one multiplier`."""
        return "uniform, one multiplier"

    def training_images(self, weights: int) -> float:
        """The training that judges the arch."""
        return float(self.epochs * weights)

    def search(self, problem: Problem) -> SearchOutcome:
        """Pick by predicted cost alone; no weight is trained."""
        need_limits(bool(problem.limits), self)
        started = time.monotonic()
        pool = multiples(problem.network.base.widths, problem.space, problem.space.widest.depths)
        why = f"the widest of {len(pool)} multiples of the base widths within the limits, all blocks kept"
        if all(over(problem.limits, arch) > 1 for arch in pool):
            why = (
                f"none of {len(pool)} multiples of the base widths, all blocks kept, is predicted within the limits; "
                "this is the nearest to them"
            )
        if any(len(choices) > 1 for choices in problem.space.depths.values()):
            say(f"{problem.title}: uniform does not search depths and keeps all blocks; scaled tries depths, too")
        return widest_of(problem, Trials(problem, self.recipe), pool, why, time.monotonic() - started)
