"""Regularised evolution (Real et al., "Regularized evolution for image classifier architecture search", AAAI 2019)."""

import random
from collections import deque
from dataclasses import dataclass

from htas.errors import UserError, need_least
from htas.graph.arch import Arch
from htas.search.moves import changed, over
from htas.search.oneshot import Judge
from htas.search.problem import Problem
from htas.strategies._sampled import AROUND, TRIALS, ArchsStrategy, near_limits, trimmed


@dataclass(frozen=True)
class Regularized(ArchsStrategy):
    """A queue of archs: the best one of a random sample gets a child, which differs at one site, and the oldest dies.

    Ageing, the queue, and samples with replacement are the paper's Algorithm 1. Unlike there, archs are judged by a
    trained supernet and not by a training each, a mutation is another choice at a site and not an edge of a cell, and
    there are limits: a child more than AROUND over them is drawn again, and one over them wins no sample that has
    another.
    """

    population: int = 50
    """Number of archs in the queue; 100 in the paper, which judges 20 000."""
    sample: int = 12
    """Number of archs that compete to be a parent; a quarter of the queue in the paper."""

    def __post_init__(self) -> None:
        super().__post_init__()
        need_least(2, self, "strategy", "population")
        if not 1 <= self.sample <= self.population:
            raise UserError(f"strategy.sample must lie in 1..strategy.population, {self.population}, got {self.sample}")

    def pick(self, problem: Problem, judge: Judge) -> None:
        """Cycles until `strategy.archs` archs are judged; TRIALS times as many at most, since children repeat."""
        rng = random.Random(problem.seed)
        size = min(self.population, self.archs)
        first = [trimmed(problem, near_limits(problem, rng, rng.uniform(1 - AROUND, 1.0))) for _ in range(size)]
        judge(first)
        queue = deque(first, maxlen=size)  # a child at the end pushes out the oldest
        for _ in range(TRIALS * self.archs):
            if len(judge.accuracies) >= self.archs:
                break
            parent = winner(problem, judge, rng.choices(queue, k=self.sample))
            child = mutated(problem, rng, parent)
            if child is not None:
                judge([child])
                queue.append(child)


def winner(problem: Problem, judge: Judge, sample: list[Arch]) -> Arch:
    """The most accurate arch of a sample, those within the limits first."""
    accuracies = dict(zip(sample, judge(sample), strict=True))
    return max(accuracies, key=lambda arch: (over(problem.limits, arch) <= 1, accuracies[arch]))


def mutated(problem: Problem, rng: random.Random, parent: Arch) -> Arch | None:
    """Another network, with another choice at one random site and no more than AROUND over the limits; None if TRIALS
    draws make none."""
    sites = [site for site, choices in problem.space.choices.items() if len(choices) > 1]
    for _ in range(TRIALS if sites else 0):
        site = rng.choice(sites)
        others = [choice for choice in problem.space.choices[site] if choice != parent[site]]
        child = trimmed(problem, changed(parent, site, rng.choice(others)))
        if child != parent and over(problem.limits, child) <= 1 + AROUND:
            return child
    return None
