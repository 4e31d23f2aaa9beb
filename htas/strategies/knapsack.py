"""A knapsack: the choices that cost the trained network least, within the limits, by an integer program."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil

import torch
from torch import Tensor

from htas.console.progress import say
from htas.errors import UserError, need_above_zero, need_least
from htas.graph.arch import Arch
from htas.report.summary import accuracy, guessing
from htas.search.importance import derivatives, images_at_once, losses
from htas.search.inherited import Inherited
from htas.search.oneshot import some
from htas.search.problem import Problem, SearchOutcome
from htas.search.program import Solution, Tables, best_within
from htas.strategies import Strategy, need_limits
from htas.strategies._trials import Trials
from htas.text import percent
from htas.training.layout import placed
from htas.training.loop import engine
from htas.training.recipe import Recipe

CLOSE = 0.25
"""Share by which estimated losses of archs of other numbers of blocks may differ for trials to decide: the estimate of
a block is that of its channels, and so far from exact (docs/decisions.md)."""
ALIKE = 0.02
"""Accuracies of trials that lie less apart are alike, as trials are short and one seed each."""
TRIAL = Recipe(epochs=2, warmup=1, batch=128, lr=0.1)
"""The training of a trial, on one part of the training images; longer where these are few (STEPS)."""
STEPS = 200
"""Least steps of a trial: fewer leave networks near guessing, where they are alike whatever they are."""


@dataclass(frozen=True)
class Knapsack(Strategy):
    """From the trained base network to an arch in minutes, without a supernet: what each width and each depth adds to
    the loss is estimated on training images, and a program over whole numbers finds the arch of least loss within the
    limits, exactly where costs add up layer by layer. Where archs of other numbers of blocks have nearly the same
    estimate, and networks are trained from new weights, short trainings decide.

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
    trials: int = 3
    """Most archs of other numbers of blocks that are each trained for three short epochs, or 200 steps, where the
    estimate hardly tells them apart; 1 for none."""

    def __post_init__(self) -> None:
        need_least(1, self, "strategy", "images", "batch", "trials")
        need_above_zero(self, "strategy", "seconds")

    @property
    def trains_anew(self) -> bool:
        """Where there may be trials."""
        return self.trials > 1

    def training_images(self, weights: int) -> float:
        """The passes that estimate importance, and as many trials as there may be."""
        trials = self.trials * recipe(weights).length * weights if self.trials > 1 else 0
        return float(min(self.images, weights) + trials)

    def search(self, problem: Problem) -> SearchOutcome:
        """Raises UserError without limits, where no arch keeps them, and where an importance is not finite."""
        need_limits(bool(problem.limits), self)
        started, network = time.monotonic(), problem.network
        torch.manual_seed(problem.seed)
        base = placed(problem.base(), engine(problem.device, "fp32").device)
        images = some(problem.data.weights, self.images, images_at_once(network, self.batch))
        gates = derivatives(network, base, images, problem.data.task)
        loss = losses(network, problem.space, gates)
        solution = best_within(network, problem.space, problem.limits, loss, seconds=self.seconds)
        say(f"{problem.title}: {solution.sentence}")
        tries = self.trains_anew and problem.anew and problem.data.task.as_usual
        close = self._close(problem, gates, solution, loss) if tries else [solution.arch]
        seconds, trials = time.monotonic() - started, Trials(problem, recipe(len(problem.data.weights)))
        choice = _Choice(solution.arch, solution.sentence, {})
        if len(close) > 1:
            choice = _by_trials(trials, close, loss) or choice
        return SearchOutcome(
            choice.arch, (), True, choice.why, Inherited(problem, base), seconds + trials.seconds,
            worth=lambda arch: -loss(arch) - choice.penalties.get(_depths(arch), 0.0), estimates=True,
            judge=Inherited.title,
        )  # fmt: skip

    def _close(self, problem: Problem, gates: Mapping[str, Tensor], solution: Solution, loss: Tables) -> list[Arch]:
        """The arch found, and the best ones with another number of blocks at one depth site whose estimated loss is
        nearly as low, those of least loss first."""
        space, end = problem.space, time.monotonic() + self.seconds
        archs = [solution.arch]
        if any(len(choices) > 1 for choices in space.depths.values()):
            say(f"{problem.title}: looking for archs of other numbers of blocks, {self.seconds:g} s at most")
        for site, choices in space.depths.items():
            for choice in choices:
                if choice == solution.arch[site] or time.monotonic() > end:
                    continue
                fixed = {**solution.arch.depths, site: choice}
                part = replace(space, depths={each: (depth,) for each, depth in fixed.items()})
                try:
                    other = best_within(
                        problem.network, part, problem.limits, losses(problem.network, part, gates),
                        seconds=max(1.0, end - time.monotonic()),
                    )  # fmt: skip
                except UserError:  # no arch of so many blocks keeps the limits
                    continue
                archs.append(other.arch)
        least = loss(solution.arch)
        close = [arch for arch in archs if loss(arch) - least <= CLOSE * abs(least)]
        return sorted(close, key=loss)[: self.trials]


@dataclass(frozen=True)
class _Choice:
    """The arch to take."""

    arch: Arch
    why: str
    penalties: Mapping[tuple[int, ...], float]
    """By numbers of blocks that lost, what is added to the loss of their archs, so that none is preferred to `arch`."""


def recipe(images: int) -> Recipe:
    """The training of a trial on so many training images."""
    steps = max(1, images // TRIAL.batch)
    return replace(TRIAL, epochs=max(TRIAL.epochs, ceil(STEPS / steps) - TRIAL.warmup))


def _depths(arch: Arch) -> tuple[int, ...]:
    """The numbers of blocks of an arch, in one order."""
    return tuple(depth for _, depth in sorted(arch.depths.items()))


def _by_trials(trials: Trials, archs: Sequence[Arch], loss: Tables) -> _Choice | None:
    """The first of archs, which are in the order of their estimates, that trials find as accurate as any: the best one
    is no more than ALIKE above it, or than the noise of so many validation images. None where a trial diverges, or the
    best one is no better than guessing."""
    title = trials.problem.title
    say(f"{title}: {len(archs)} archs of other numbers of blocks have nearly the same estimate: trials decide")
    try:
        accuracies = dict(zip(archs, trials(archs), strict=True))
    except UserError as error:
        say(f"{title}: the estimate decides, as a trial failed: {error}")
        return None
    data, most = trials.problem.data, max(accuracies.values())
    figures = " / ".join(percent(accuracies[arch], 1) for arch in archs)
    if guessing("", most, data.classes, len(data.validation)):
        say(f"{title}: the estimate decides, as no trial is clearly better than guessing: {figures}")
        return None
    leads = {arch: accuracy(most, accuracies[arch], len(data.validation)) for arch in archs}
    best = next(arch for arch, lead in leads.items() if lead.difference < max(ALIKE, lead.noise))
    why = (
        f"of {len(archs)} archs of other numbers of blocks, whose estimated losses are close, the first that is as "
        f"good as any by trials, {percent(accuracies[best], 1)} of {figures}, {trials.judge}"
    )
    say(f"{title}: {why}")
    penalties = {_depths(arch): max(0.0, loss(best) - loss(arch)) for arch in archs if arch != best}
    return _Choice(best, why, penalties)
