"""Random search: archs drawn near the limits, judged by a trained supernet, the best one taken."""

import random
from dataclasses import dataclass

from htas.errors import UserError
from htas.graph.arch import Arch
from htas.search.oneshot import Judge
from htas.search.problem import Problem
from htas.strategies._sampled import AROUND, TRIALS, OneShotStrategy, near_limits, trimmed


@dataclass(frozen=True)
class RandomSearch(OneShotStrategy):
    """As many archs as `strategy.archs` says, at random, each near the limits."""

    archs: int = 300
    """How many are judged, each by validation images with norm statistics estimated anew."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.archs < 1:
            raise UserError(f"strategy.archs must be 1 or more, got {self.archs}")

    @property
    def judged(self) -> int:
        """As many as asked for."""
        return self.archs

    def pick(self, problem: Problem, judge: Judge) -> None:
        """Two in three use the limits; one in three lies up to a tenth above or below, for when predictions are off."""
        rng = random.Random(problem.seed)
        archs: dict[Arch, None] = {}  # in the order drawn, by which equal ones are told apart
        for number in range(TRIALS * self.archs):
            if len(archs) == self.archs:
                break
            most = rng.uniform(1 - AROUND, 1 + AROUND) if number % 3 == 2 else 1.0
            archs[trimmed(problem, near_limits(problem, rng, most))] = None
        judge(list(archs))
