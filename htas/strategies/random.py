"""Random search: archs drawn near the limits are judged by a trained supernet, and the best one wins."""

import random
from dataclasses import dataclass

from htas.errors import need_least
from htas.graph.arch import Arch
from htas.search.oneshot import Judge
from htas.search.problem import Problem
from htas.strategies._sampled import AROUND, TRIALS, OneShotStrategy, near_limits, trimmed


@dataclass(frozen=True)
class RandomSearch(OneShotStrategy):
    """Judges `strategy.archs` random archs, each near the limits."""

    archs: int = 300
    """Number of archs judged on validation images, each with norm statistics of its own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        need_least(1, self, "strategy", "archs")

    @property
    def judged(self) -> int:
        """The option `archs`."""
        return self.archs

    def pick(self, problem: Problem, judge: Judge) -> None:
        """Two in three use the limits; one in three lies up to a tenth above or below, in case predictions are off."""
        rng = random.Random(problem.seed)
        archs: dict[Arch, None] = {}  # in the order drawn, which decides between equals
        for number in range(TRIALS * self.archs):
            if len(archs) == self.archs:
                break
            most = rng.uniform(1 - AROUND, 1 + AROUND) if number % 3 == 2 else 1.0
            archs[trimmed(problem, near_limits(problem, rng, most))] = None
        judge(list(archs))
