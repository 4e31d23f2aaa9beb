"""A knapsack: the choices that cost the trained network least, within the limits, by an integer program."""

import time
from dataclasses import dataclass

import torch

from htas.console.progress import say
from htas.errors import need_above_zero, need_least
from htas.search.importance import derivatives, images_at_once, losses
from htas.search.inherited import Inherited
from htas.search.oneshot import some
from htas.search.problem import Problem, SearchOutcome
from htas.search.program import best_within
from htas.strategies import Strategy, need_limits
from htas.training.layout import placed
from htas.training.loop import engine


@dataclass(frozen=True)
class Knapsack(Strategy):
    """From the trained base network to an arch in minutes, without a supernet: what each width and each depth adds to
    the loss is estimated on training images, and a program over whole numbers finds the arch of least loss within the
    limits, exactly where costs add up layer by layer.

    A multiple-choice knapsack as in "Knapsack Pruning with Inner Distillation" (Aflalo et al. 2020) and HALP (Shen et
    al. 2022), with the calibrated cost of pairs of widths, with depths, and with widths beyond the base network's.
    """

    seeks_within_limits = True
    images: int = 512
    """Training images from which the importance of channels is estimated."""
    batch: int = 32
    """Images at a time; fewer where a gigabyte of memory would not hold them."""
    seconds: float = 60.0
    """Longest time of the solver; it then gives the best arch so far, and by how much another may be better."""

    def __post_init__(self) -> None:
        need_least(1, self, "strategy", "images", "batch")
        need_above_zero(self, "strategy", "seconds")

    def training_images(self, weights: int) -> float:
        """The passes that estimate importance, and those that judge archs."""
        return float(min(self.images, weights))

    def search(self, problem: Problem) -> SearchOutcome:
        """Raises UserError without limits, where no arch keeps them, and where an importance is not finite."""
        need_limits(bool(problem.limits), self)
        started, network = time.monotonic(), problem.network
        torch.manual_seed(problem.seed)
        base = placed(problem.base(), engine(problem.device, "fp32").device)
        images = some(problem.data.weights, self.images, images_at_once(network, self.batch))
        loss = losses(network, problem.space, derivatives(network, base, images, problem.data.task))
        solution = best_within(network, problem.space, problem.limits, loss, seconds=self.seconds)
        say(f"{problem.title}: {solution.sentence}")
        return SearchOutcome(
            solution.arch, (), True, solution.sentence, Inherited(problem, base), time.monotonic() - started,
            worth=lambda arch: -loss(arch), estimates=True, judge=Inherited.title,
        )  # fmt: skip
