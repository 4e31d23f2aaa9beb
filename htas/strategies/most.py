"""Most: the arch of most multiply-adds within the limits, or of most parameters; the control of every search."""

import time
from dataclasses import dataclass
from typing import Literal

from htas.console.progress import say
from htas.cost.counts import CountCost
from htas.errors import need_above_zero
from htas.search.problem import Problem, SearchOutcome
from htas.search.program import Tables, best_within, decomposed, groups_of, is_sum
from htas.strategies import need_limits
from htas.strategies._trials import ByTrials, Trials


@dataclass(frozen=True)
class Most(ByTrials):
    """Takes the arch of most multiply-adds, or of most parameters, within the limits: it needs no image and no weight,
    so a search that is worth its price finds better ones."""

    count: Literal["macs", "params"] = "macs"
    """What there is to be most of."""
    seconds: float = 60.0
    """Longest time of the solver."""

    def __post_init__(self) -> None:
        super().__post_init__()
        need_above_zero(self, "strategy", "seconds")

    @property
    def title(self) -> str:
        """`most macs`, `most params`."""
        return f"most {self.count}"

    def training_images(self, weights: int) -> float:
        """The training that judges the arch."""
        return float(self.epochs * weights)

    def search(self, problem: Problem) -> SearchOutcome:
        """Raises UserError without limits, and where no arch keeps them."""
        need_limits(bool(problem.limits), self)
        started, network, space = time.monotonic(), problem.network, problem.space
        count = CountCost(network, self.count)
        figure = decomposed(count.cost, space, groups_of(network, space), space.nearest(network.base))
        loss = Tables(space, {group: -table for group, table in figure.tables.items()})
        solution = best_within(network, space, problem.limits, loss, seconds=self.seconds)
        trials = Trials(problem, self.recipe)
        proven = solution.proven and is_sum(count.cost, figure, count.cost(solution.arch))
        why = f"no other arch of the space within the limits has more {self.count}" if proven else solution.sentence
        say(f"{problem.title}: {why}")
        return SearchOutcome(
            solution.arch, (), True, why, trials, time.monotonic() - started, worth=count.cost, cheap=False,
            judge=trials.judge,
        )  # fmt: skip
