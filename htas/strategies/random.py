"""Random search: archs drawn near the limits are judged by a trained supernet, and the best one wins."""

import random
from dataclasses import dataclass

from htas.graph.arch import Arch
from htas.search.oneshot import Judge
from htas.search.problem import Problem
from htas.strategies._sampled import AROUND, TRIALS, ArchsStrategy, near_limits, trimmed


@dataclass(frozen=True)
class RandomSearch(ArchsStrategy):
    """Judges `strategy.archs` random archs, each near the limits."""

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
