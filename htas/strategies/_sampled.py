"""Base of strategies that train a supernet by its sub-networks and pick an arch afterwards."""

import random
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from htas.console.progress import say
from htas.data.task import Inputs
from htas.errors import need_least
from htas.graph.arch import Arch
from htas.search.draw import Draw
from htas.search.moves import USED, changed, over
from htas.search.oneshot import CALIBRATION, JUDGED, Judge, SupernetLoop
from htas.search.problem import Problem, SearchOutcome
from htas.search.record import EpochRecord
from htas.strategies import SupernetStrategy, need_limits
from htas.text import percent
from htas.training import ranks

STEP, PASS = 1.3, 0.5
"""Time of a weight step of a random arch at e = 2, and of a forward pass, in training steps of the base network."""
LEANING = 3.0
"""Largest leaning to wide or narrow of the archs that the weights learn from."""
TRIALS = 20
"""Largest number of draws for each arch to judge: in a small space many repeat."""
Accuracies = Callable[[Sequence[Arch]], Iterator[tuple[Arch, float | None]]]
"""The accuracy of each arch as soon as it is there; None for one that could not be judged."""
AROUND = 0.1
"""Archs are judged up to this fraction above the limits, in case predictions are too high."""


@dataclass(frozen=True)
class OneShotStrategy(SupernetStrategy):
    """One-shot: the weights of the supernet learn from archs drawn at random; then archs are judged by them."""

    seeks_within_limits = True
    sampling: Literal["uniform", "sandwich"] = "sandwich"
    """Archs of a step: one at random (uniform), or the widest, two at random and the narrowest, where the others learn
    from the widest (sandwich; Yu and Huang 2019)."""

    @property
    def supernet_key(self) -> dict[str, object]:
        """Every option of this class; those of a subclass only decide which archs are judged."""
        return {each.name: getattr(self, each.name) for each in fields(OneShotStrategy) if each.name != "keep"}

    @property
    def title(self) -> str:
        """Its name, and how the weights learn."""
        return f"{self.name}, {self.sampling} sampling"

    def training_images(self, weights: int) -> float:
        """The training steps at e = 2, and the passes that judge archs."""
        step = STEP * (4 if self.sampling == "sandwich" else 1)
        return self.epochs * weights * step + self.judged * (CALIBRATION + JUDGED) * PASS

    @property
    @abstractmethod
    def judged(self) -> int:
        """Approximate number of archs judged."""

    @abstractmethod
    def pick(self, problem: Problem, judge: Judge) -> None:
        """Ask the judge about archs; the most accurate one within the limits wins."""

    def search(self, problem: Problem) -> SearchOutcome:
        """Train the supernet, judge archs, and return the most accurate one within the limits."""
        need_limits(bool(problem.limits), self)
        run = _Training(problem, self)
        run.run()
        if ranks.first() and problem.trained is not None and not problem.trained.exists():
            run.keep(problem.trained)
        started = time.monotonic()
        judge = Judge(run.validate)
        judge.accuracies = ranks.of_first(lambda: self._accuracies(problem, judge))
        arch = best(problem, judge)
        seconds = run.seconds + time.monotonic() - started + judge.seconds
        accuracy = percent(judge([arch])[0])
        say(f"{problem.title}: {len(judge.accuracies)} archs judged, the best within the limits at {accuracy}")
        why = f"{len(judge.accuracies)} archs were judged by a supernet trained for {self.epochs} epochs"
        accuracies = dict(judge.accuracies)
        return SearchOutcome(
            arch, tuple(run.epochs), True, why, judge, seconds, worth=lambda one: accuracies.get(one, -1.0),
            pool=tuple(sorted(accuracies, key=accuracies.__getitem__, reverse=True)),
        )  # fmt: skip

    def _accuracies(self, problem: Problem, judge: Judge) -> dict[Arch, float]:
        self.pick(problem, judge)
        return judge.accuracies


@dataclass(frozen=True)
class ArchsStrategy(OneShotStrategy):
    """A one-shot strategy that judges a number of archs."""

    archs: int = 300
    """Number of archs judged on validation images, each with norm statistics of its own; fewer if draws repeat
    themselves."""

    def __post_init__(self) -> None:
        super().__post_init__()
        need_least(1, self, "strategy", "archs")

    @property
    def judged(self) -> int:
        """The option `archs`."""
        return self.archs


def best(problem: Problem, judge: Judge) -> Arch:
    """The most accurate judged arch within the limits; if none is, the one least over them."""
    within = [arch for arch in judge.accuracies if over(problem.limits, arch) <= 1]
    if within:
        return max(within, key=judge.accuracies.__getitem__)
    return min(judge.accuracies, key=lambda arch: over(problem.limits, arch))


def trimmed(problem: Problem, arch: Arch) -> Arch:
    """The arch with the narrowest widths in the blocks that it cuts: the same for all archs of one network."""
    used = {site for use in problem.network.uses(arch) for site in use.sites}
    choices = problem.space.widths
    return Arch({site: width if site in used else choices[site][0] for site, width in arch.widths.items()}, arch.depths)


def near_limits(problem: Problem, rng: random.Random, most: float = 1.0) -> Arch:
    """A random arch that uses `most` of the limits or a little less: drawn, then narrowed or widened one choice of a
    random site at a time."""
    space, limits = problem.space, problem.limits
    arch = space.sample(rng, rng.uniform(-LEANING, LEANING))
    for _ in range(10 * sum(map(len, space.choices.values()))):
        ratio = over(limits, arch)
        if USED * most <= ratio <= most:
            break
        other = step(problem, rng, arch, 1 if ratio < most else -1)
        if other is None or (ratio < most < over(limits, other)):
            break
        arch = other
    return arch


def step(problem: Problem, rng: random.Random, arch: Arch, by: int) -> Arch | None:
    """The arch with the next choice up (1) or down (-1) at a random site; None if no site has one."""
    sites = []
    for site, choices in problem.space.choices.items():
        index = choices.index(arch[site]) + by
        if 0 <= index < len(choices):
            sites.append((site, choices[index]))
    return changed(arch, *rng.choice(sites)) if sites else None


def supernet_of(problem: Problem, strategy: OneShotStrategy) -> SupernetLoop:
    """The supernet that the search of this strategy has trained, from its file."""
    run = _Training(problem, strategy)
    run.restore()
    assert len(run.epochs) == run.length, "it is trained before others judge by it"
    return run


class _Training(SupernetLoop):
    """Training of the supernet by archs drawn at random."""

    options: OneShotStrategy

    def begin(self, number: int, seed: int) -> None:
        """Archs are drawn by the epoch's seed."""
        self.rng = random.Random(seed)
        self.costs: list[float] = []

    def step(self, images: Inputs, labels: Any, share: float) -> Tensor:
        """A step of the archs drawn; returns the mean of their losses."""
        archs = self._archs(self.rng)
        self.costs.append(sum(map(self.problem.cost.cost, archs)) / len(archs))
        return self.learn(images, labels, [Draw.of(arch, self.problem.network) for arch in archs])

    def learn(self, images: Inputs, labels: Any, draws: Sequence[Draw]) -> Tensor:
        """One weight step by the gradients of several sub-networks; returns the mean of their losses, a scalar.

        The first learns from the labels, the others half from the labels and half from its logits [N, classes]: the
        sandwich rule of Yu and Huang, "Universally slimmable networks", 2019, if the first is the widest and another
        the narrowest. If outputs are no logits, all learn from the targets.
        """
        self.sgd.zero_grad()
        losses = []
        soft: Tensor | None = None
        for draw in draws:
            outputs = self.mixed(images, draw)
            loss = self.task.loss(outputs, labels)
            if soft is not None:
                loss = (loss + F.cross_entropy(outputs, soft)) / 2
            self.runner.backward(loss / len(draws))
            losses.append(loss.detach())
            soft = outputs.detach().softmax(1) if soft is None and self.task.classifies else soft
        self.update(self.sgd)
        return torch.stack(losses).mean()

    def figures(self, number: int, sums: Tensor) -> EpochRecord:
        """The mean loss, and the mean cost of the archs drawn."""
        loss = float(sums) / self.steps
        self.check(number, loss)
        base = self.problem.cost.cost(self.problem.network.base)
        cost = sum(cost / base for cost in self.costs) / self.steps
        return EpochRecord(number + 1, None, loss, None, None, cost, None, None, self.elapsed)

    def _archs(self, rng: random.Random) -> list[Arch]:
        space = self.problem.space
        if self.options.sampling == "uniform":
            return [space.sample(rng, rng.uniform(-LEANING, LEANING))]
        others = [space.sample(rng, rng.uniform(-LEANING, LEANING)) for _ in range(2)]
        return [space.widest, *others, space.narrowest]

    def restore(self) -> None:
        """Go on from the checkpoint, if there is one, or from the supernet that another search has trained."""
        super().restore()
        trained = self.problem.trained
        if not self.epochs and trained is not None and trained.exists():
            self.restore_from(trained)
            say(f"{self.problem.title}: the supernet is that of another search, {trained.name}")
