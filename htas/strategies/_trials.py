"""Accuracies by short trainings of whole networks, for strategies without a supernet."""

import time
from collections.abc import Sequence
from typing import Protocol

import torch

from htas.arch import Arch
from htas.files import digest, read_json, write_json
from htas.graph import resize
from htas.problem import Problem
from htas.progress import say
from htas.text import percent, plural
from htas.train import Precision, Recipe, evaluate, train


class Options(Protocol):
    """How long a trial is."""

    @property
    def epochs(self) -> int: ...
    @property
    def batch(self) -> int: ...
    @property
    def lr(self) -> float: ...
    @property
    def precision(self) -> Precision: ...


def check(options: Options) -> None:
    """Raise ValueError for an option out of range."""
    for name in ("epochs", "batch"):
        if getattr(options, name) < 1:
            raise ValueError(f"strategy.{name} must be 1 or more, got {getattr(options, name)}")
    if not options.lr > 0:
        raise ValueError(f"strategy.lr must be above 0, got {options.lr}")


class Trials:
    """Trains each arch on the weights' half of the training images, from scratch, and judges it on the other half.

    What was found out is kept at the problem's checkpoint, so an interrupted search goes on.
    """

    def __init__(self, problem: Problem, options: Options) -> None:
        self.problem = problem
        self.recipe = Recipe(
            epochs=options.epochs, warmup=0, batch=options.batch, lr=options.lr, precision=options.precision
        )
        self.path = problem.checkpoint.with_suffix(".json")
        self.known: dict[str, float] = read_json(self.path)["accuracies"] if self.path.exists() else {}
        self.seconds = 0.0

    @property
    def judge(self) -> str:
        """How accuracies are found, for a report."""
        return f"trained from scratch for {plural(self.recipe.epochs, 'epoch')} on one part of the training images"

    def __call__(self, archs: Sequence[Arch]) -> list[float]:
        """Validation accuracy of each, 0 to 1; every arch is trained once."""
        return [self._one(arch) for arch in archs]

    def _one(self, arch: Arch) -> float:
        key = digest(arch.json())
        if key not in self.known:
            started = time.monotonic()
            problem = self.problem
            torch.manual_seed(problem.seed)
            model = resize(problem.network, arch)
            problem.reset(model)
            checkpoint = problem.checkpoint.with_name(f"{problem.checkpoint.stem}-{key}.safetensors")
            title = f"{problem.title}: trial {len(self.known) + 1}"
            train(
                model, problem.data.weights, self.recipe, seed=problem.seed, device=problem.device,
                checkpoint=checkpoint, title=title,
            )  # fmt: skip
            found = evaluate(model, problem.data.validation, device=problem.device, precision=self.recipe.precision)
            self.known[key] = found
            say(f"{title}: {percent(found)} on validation images")
            write_json(self.path, {"accuracies": self.known})
            checkpoint.unlink(missing_ok=True)
            self.seconds += time.monotonic() - started
        return self.known[key]
