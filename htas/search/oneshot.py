"""A supernet as strategies use it: built, trained by its sub-networks, and judging archs."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from htas.console.progress import progress
from htas.data.split import Batch, Source
from htas.data.task import Inputs, images_in, precise
from htas.errors import UserError, need_above_zero, need_below, need_least
from htas.files import BUFFERS, load_state, path_of, read_tensors, state_of, write_tensors
from htas.graph.arch import Arch
from htas.search.draw import Draw
from htas.search.equality import check
from htas.search.problem import Problem
from htas.search.record import EpochRecord
from htas.search.supernet import Supernet
from htas.text import percent, significant
from htas.training import ranks
from htas.training.int8 import simulated
from htas.training.layout import CopyingViews
from htas.training.loop import EpochLoop
from htas.training.recipe import DECAY, Precision, Recipe
from htas.training.train import mean_score

PREFIX = "supernet/"
"""Prefix of a supernet's tensors in a checkpoint."""
CALIBRATION, JUDGED = 1024, 2500
"""Largest numbers of images: for an arch's norm statistics, and for its accuracy."""
LOST = 10.0
"""A search is given up once its loss exceeds this multiple of the chance-level loss."""


@dataclass(frozen=True)
class SearchOptions:
    """Options of a strategy that trains weights in epochs, from half of the training images."""

    rates: ClassVar[str] = "strategy.lr"
    """Options that a search which diverged should lower."""
    epochs: int = 100
    """Passes over the half of the training images that the weights learn from."""
    batch: int = 256
    """Images of a step."""
    lr: float = 0.1
    """Learning rate of the weights (SGD), falling to 0 along half a cosine."""
    precision: Precision = "auto"
    """Arithmetic of the search: auto is bf16 where the hardware has it."""

    def __post_init__(self) -> None:
        need_least(1, self, "strategy", "epochs", "batch")
        need_above_zero(self, "strategy", "lr")

    @property
    def recipe(self) -> Recipe:
        """How the weights learn."""
        return Recipe(epochs=self.epochs, warmup=0, batch=self.batch, lr=self.lr, precision=self.precision)


@dataclass(frozen=True)
class SupernetOptions(SearchOptions):
    """Options of a strategy that trains a supernet."""

    momentum: float = 0.9
    """Of SGD with Nesterov's correction."""
    weight_decay: float = 5e-4
    """On every weight."""
    shortcut: Literal["project", "pad"] = "project"
    """With adds = 'project', what stands in the supernet where added widths differ: a sliced 1x1 convolution and
    norm as in the network derived, or TAS's padding with zeros."""
    norms: Literal["own", "shared"] = "own"
    """Whether every width has a norm of its own, as TAS's, or the first channels of the widest one's."""
    start: str = "base"
    """Weights at the start: the trained base network's where they fit (base), drawn at random, as TAS's (random), or
    the file that another search of the same space has kept, as `htas sweep` does."""
    keep: bool = False
    """Whether the supernet's weights stay in the run's folder, as supernet-SPACE.safetensors."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start not in ("random", "base") and not self.start.endswith(".safetensors"):
            raise UserError(
                f"strategy.start must be random, base or the .safetensors file of a supernet, got {self.start!r}"
            )
        path_of(self.start, "strategy.start")
        need_least(0, self, "strategy", "momentum", "weight_decay")
        need_below(1, self, "strategy", "momentum")
        if self.weight_decay > 1 and (most := self.lr * self.weight_decay) >= DECAY:
            raise UserError(
                f"strategy.weight_decay = {self.weight_decay:g} at strategy.lr = {self.lr:g} takes {most:.3g} of every "
                f"weight in a step, which must be below {DECAY:g}; lower strategy.weight_decay"
            )

    @property
    def recipe(self) -> Recipe:
        """How the weights learn."""
        return replace(super().recipe, momentum=self.momentum, weight_decay=self.weight_decay)


def build_supernet(problem: Problem, options: SupernetOptions, mix: Literal["interpolate", "pad"] = "pad") -> Supernet:
    """The supernet of a problem's space with the weights that a search starts from; `mix` combines two widths."""
    torch.manual_seed(problem.seed)
    supernet = Supernet(problem.network, problem.space, problem.reset, options.shortcut, mix, options.norms)
    if options.start == "base":
        base = problem.base()
        supernet.inherit(base)
        check(supernet, base)
    elif options.start != "random":
        _load(supernet, path_of(options.start, "strategy.start"))
    return supernet


def some(split: Source, most: int, batch: int = 256) -> Iterator[Batch]:
    """The same images of a split every time, shuffled since data sets may be stored by class, not augmented, in
    batches until there are `most` or more."""
    count = 0
    for images, labels in split.batches(batch, seed=0, channels_last=True):
        if count >= most:
            return
        count += images_in(images)
        yield images, labels


def statistical(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Those batches of two items or more: of one alone norms take no statistics where it has one value a channel."""
    return (batch for batch in batches if images_in(batch[0]) > 1)


class Judge:
    """Accuracies of archs, each computed once."""

    def __init__(self, accuracies: Callable[[Sequence[Arch]], list[float]]) -> None:
        self.compute = accuracies
        self.accuracies: dict[Arch, float] = {}
        self.seconds = 0.0
        """Seconds that accuracies took which are those of a search that was interrupted."""

    def __call__(self, archs: Sequence[Arch]) -> list[float]:
        """Accuracy of each arch, 0 to 1."""
        new = [arch for arch in dict.fromkeys(archs) if arch not in self.accuracies]
        if new:
            self.accuracies |= dict(zip(new, self.compute(new), strict=True))
        return [self.accuracies[arch] for arch in archs]


class SearchLoop(EpochLoop[EpochRecord]):
    """The epochs of a search, which train a network on one half of the training images."""

    record = EpochRecord
    batch_option = "strategy.batch"

    def __init__(self, problem: Problem, options: SearchOptions, model: nn.Module) -> None:
        super().__init__(
            model, problem.data.weights, options.recipe, seed=problem.seed, device=problem.device,
            checkpoint=problem.checkpoint, title=problem.title,
        )  # fmt: skip
        self.problem, self.task = problem, problem.data.task
        self.options = options

    def summary(self, figures: EpochRecord) -> str:
        """The loss."""
        return f"loss {significant(figures.train_loss)}"

    def check(self, number: int, loss: float) -> None:
        """Raise UserError where the mean loss of an epoch (the first being 0) says that the search has diverged."""
        lost = LOST * math.log(self.problem.data.classes) if self.task.classifies else math.inf
        if not (math.isfinite(loss) and loss < lost):
            raise self.diverged(number, loss)

    def diverged(self, number: int, loss: float) -> UserError:
        """The error of a search that diverged in an epoch, the first being 0."""
        if cause := self.cause(number):
            return UserError(f"the search diverged in epoch {number + 1}, and not by its learning rate: {cause}")
        rate, warm = significant(self.rate), isinstance(self.options, SupernetOptions)
        what = f"the search diverged in epoch {number + 1} at a learning rate of {rate}: its loss is {loss:.3g}"
        if number == 0:
            return UserError(f"{what}; lower {self.options.rates}, and name another folder with --out")
        start = f"--strategy.start={self.checkpoint} " if warm else ""
        return UserError(
            f"{what}; the last good state, of epoch {number}, is in {self.checkpoint}: begin again "
            f"{'from there ' if warm else ''}at a lower rate with {start}"
            f"--strategy.lr={significant(self.options.lr / 3, 1)} and another --out"
        )


class SupernetLoop(SearchLoop):
    """The epochs of a search that trains a supernet."""

    prefix = PREFIX
    model: Supernet
    options: SupernetOptions

    def __init__(self, problem: Problem, options: SupernetOptions, mix: Literal["interpolate", "pad"] = "pad") -> None:
        super().__init__(problem, options, build_supernet(problem, options, mix))
        self.model.evaluated = self.task.classifies or self.task.train is not None  # the loss takes no other form

    def run(self) -> float:
        """All epochs that are missing; the supernet is written to its file where the options ask for it."""
        seconds = super().run()
        if self.options.keep and ranks.first():
            write_tensors(self.problem.supernet, state_of(self.model), {"space": self.problem.space.name})
        return seconds

    def mixed(self, images: Inputs, draw: Draw) -> Any:
        """What the supernet makes of images with the choices of a draw, as precise as a loss needs."""
        with self.runner.autocast():
            outputs = self.model(images, draw)
        return precise(outputs)

    def judged(self, images: Inputs, draw: Draw, outputs: Any) -> Any:
        """What a score takes: `outputs` of a draw in training, or, where these have a form of their own, those of eval
        mode."""
        if self.model.evaluated or self.problem.network.returns_alike:
            return outputs
        self.model.evaluated = True
        try:
            return self.mixed(images, draw)
        finally:
            self.model.evaluated = False

    def validate(self, archs: Sequence[Arch]) -> list[float]:
        """Accuracy on the validation half of each arch, 0 to 1, its norm statistics estimated for it alone."""
        return ranks.of_first(lambda: self._accuracies(archs))

    def _accuracies(self, archs: Sequence[Arch]) -> list[float]:
        results = []
        with progress(f"{self.problem.title}: validation", len(archs)) as bar:
            for arch in archs:
                results.append(self._accuracy(Draw.of(arch, self.problem.network)))
                bar.step(percent(results[-1], 1))
        return results

    @torch.no_grad()
    def _accuracy(self, draw: Draw) -> float:
        with simulated(self.problem.weight_bits):
            self.model.train()
            for index, (images, _) in enumerate(statistical(some(self.split, CALIBRATION))):
                with CopyingViews(), self.runner.autocast():
                    self.model(images, replace(draw, momentum=1 / (index + 1)))
            self.model.eval()
            judges = some(self.problem.data.validation, JUDGED)
            return mean_score(self.task, judges, self.runner, lambda images: self.model(images, draw))


def need_start(path: Path) -> None:
    """Raise UserError where there is no file of a supernet to start from."""
    if not path.is_file():
        raise UserError(f"strategy.start: there is no file {path}; name one that a search has kept (strategy.keep)")


def _load(supernet: Supernet, path: Path) -> None:
    """Load the weights that another search left, or its checkpoint's; raises UserError if the file is missing or holds
    another network or space."""
    need_start(path)
    tensors, _ = read_tensors(path)
    if any(name.startswith(PREFIX) for name in tensors):
        tensors = {k.removeprefix(PREFIX): v for k, v in tensors.items() if k.startswith(PREFIX)}
    state = supernet.state_dict()
    shapes, others = (
        {name: tensor.shape for name, tensor in each.items() if not name.startswith(BUFFERS)}
        for each in (state, tensors)
    )
    if shapes != others:
        raise UserError(
            f"strategy.start: {path} holds the supernet of another network or space; name one that a search of the "
            "same configuration has kept (strategy.keep), or start from base"
        )
    load_state(supernet, tensors)
