"""Accuracies by short trainings of whole networks, for strategies without a supernet."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from htas.console.progress import say
from htas.files import digest, read_json, to_json, write_json
from htas.graph import Arch, resize
from htas.search.moves import over
from htas.search.oneshot import SearchOptions
from htas.search.problem import Problem, SearchOutcome
from htas.search.record import EpochRecord
from htas.spaces.space import Space
from htas.strategies import Strategy
from htas.text import percent, plural
from htas.training import ranks
from htas.training.int8 import simulated
from htas.training.recipe import Recipe
from htas.training.train import Training, evaluate

STEPS = 32
"""Number of multipliers up to the base width, and as many up to twice the base width."""


@dataclass(frozen=True)
class ByTrials(SearchOptions, Strategy):
    """A strategy without a supernet; it judges an arch by training it from scratch on half of the training images."""

    seeks_within_limits = True
    epochs: int = 5
    """Epochs of each such training; the other half of the images judges."""
    batch: int = 128


def widest_of(
    problem: Problem, trials: "Trials", pool: Sequence[Arch], why: str, seconds: float, *,
    epochs: Sequence[EpochRecord] = (), converged: bool = True,
) -> SearchOutcome:  # fmt: skip
    """The outcome of a search that picks the widest arch within the limits from a pool that grows in width."""
    order = {arch: number for number, arch in enumerate(pool)}
    return SearchOutcome(
        widest_within(problem, pool), tuple(epochs), converged, why, trials, seconds,
        worth=lambda arch: float(order.get(arch, -1)), pool=tuple(pool), cheap=False, judge=trials.judge,
    )  # fmt: skip


def multiples(base: Mapping[str, float], space: Space, depths: Mapping[str, int]) -> list[Arch]:
    """Archs at multiples of the base widths, each width the nearest choice of its site; narrowest first."""
    most = max((choices[-1] / base[site] for site, choices in space.widths.items()), default=1.0)
    archs = (
        Arch({site: nearest(choices, number / STEPS * base[site]) for site, choices in space.widths.items()}, depths)
        for number in range(1, math.ceil(STEPS * most) + 1)
    )
    return list(dict.fromkeys(archs))


def nearest(choices: Sequence[int], width: float) -> int:
    """The choice nearest to a width in proportion; the wider of two equally near."""
    return min(reversed(choices), key=lambda choice: max(choice / width, width / choice))


def widest_within(problem: Problem, pool: Sequence[Arch]) -> Arch:
    """The last arch within the limits of a pool that grows in width; the cheapest if none is."""
    within = [arch for arch in pool if over(problem.limits, arch) <= 1]
    return within[-1] if within else min(pool, key=lambda arch: over(problem.limits, arch))


class Trials:
    """Trains each arch from scratch on the weights' half of the training images and judges it on the other half.

    Accuracies are written next to the problem's checkpoint, so an interrupted search goes on.
    """

    def __init__(self, problem: Problem, recipe: Recipe) -> None:
        self.problem, self.recipe = problem, recipe
        self.path = problem.checkpoint.with_suffix(".json")
        content: dict[str, Any] = read_json(self.path) if self.path.exists() else {"accuracies": {}, "seconds": 0.0}
        self.accuracies: dict[str, float] = content["accuracies"]
        self.seconds: float = content["seconds"]
        """Seconds of all trainings, those before an interruption included."""

    @property
    def judge(self) -> str:
        """How archs are judged, for a report."""
        return f"trained from scratch for {plural(self.recipe.length, 'epoch')} on one part of the training images"

    def __call__(self, archs: Sequence[Arch]) -> list[float]:
        """Validation accuracy of each arch, 0 to 1; every arch is trained once."""
        return [self._one(arch) for arch in archs]

    def _one(self, arch: Arch) -> float:
        key = digest(to_json(arch))
        if key not in self.accuracies:
            started = time.monotonic()
            problem = self.problem
            torch.manual_seed(problem.seed)
            model = resize(problem.network, arch)
            problem.reset(model)
            checkpoint = problem.checkpoint.with_name(f"{problem.checkpoint.stem}-{key}.safetensors")
            title = f"{problem.title}: trial {len(self.accuracies) + 1}"
            Training(
                model, problem.data.weights, self.recipe, seed=problem.seed, device=problem.device,
                checkpoint=checkpoint, title=title, rate_option="strategy.lr", task=problem.data.task,
            ).run()  # fmt: skip
            self.accuracies[key] = ranks.of_first(partial(self._judged, model))
            say(f"{title}: {percent(self.accuracies[key])} on validation images")
            self.seconds += time.monotonic() - started
            if ranks.first():
                write_json(self.path, {"accuracies": self.accuracies, "seconds": self.seconds})
                checkpoint.unlink(missing_ok=True)
        return self.accuracies[key]

    def _judged(self, model: nn.Module) -> float:
        problem = self.problem
        with simulated(problem.weight_bits):
            return evaluate(
                model, problem.data.validation, device=problem.device, precision=self.recipe.precision,
                task=problem.data.task,
            )  # fmt: skip
