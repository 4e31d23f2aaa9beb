"""A supernet as strategies use it: built, trained by its sub-networks, and judging archs."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from htas.console.progress import progress
from htas.data.split import Batch, Source
from htas.data.task import CLASSIFY, Inputs, Task, images_in, precise, scalar
from htas.errors import UserError, need_above_zero, need_least
from htas.files import read_tensors, write_tensors
from htas.graph.arch import Arch
from htas.search.inherit import inherit
from htas.search.problem import Problem
from htas.search.record import EpochRecord
from htas.search.supernet import Draw, Supernet
from htas.text import percent, significant
from htas.training.layout import placed
from htas.training.recipe import Precision
from htas.training.train import ModelLoop, engine, epoch_seed

PREFIX = "supernet/"
"""Prefix of a supernet's tensors in a checkpoint."""
CALIBRATION, JUDGED = 1024, 2500
"""Largest numbers of images: for an arch's norm statistics, and for its accuracy."""
LOST = 10.0
"""A search is given up once its loss exceeds this multiple of the chance-level loss."""


class SearchOptions(Protocol):
    """Options of a strategy that trains weights in epochs."""

    rates: ClassVar[str]
    """Options that a search which diverged should lower."""

    @property
    def epochs(self) -> int:
        """Passes over the weights' half of the training images."""

    @property
    def batch(self) -> int:
        """Images of a step."""

    @property
    def lr(self) -> float:
        """Learning rate at its highest."""

    @property
    def precision(self) -> Precision:
        """Arithmetic of the training."""


@dataclass(frozen=True)
class SupernetOptions:
    """Options of a strategy that trains a supernet."""

    rates: ClassVar[str] = "strategy.lr"
    epochs: int = 100
    """Passes over the half of the training images that the weights learn from."""
    batch: int = 256
    """Images of a step."""
    lr: float = 0.1
    """Learning rate of the weights (SGD), falling to 0 along half a cosine."""
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
    precision: Precision = "auto"
    """Arithmetic of the search: auto is bf16 where the hardware has it."""

    def __post_init__(self) -> None:
        need_least(1, self, "strategy", "epochs", "batch")
        if self.start not in ("random", "base") and not self.start.endswith(".safetensors"):
            raise UserError(
                f"strategy.start must be random, base or the .safetensors file of a supernet, got {self.start!r}"
            )
        need_above_zero(self, "strategy", "lr")
        need_least(0, self, "strategy", "momentum", "weight_decay")


def build_supernet(
    problem: Problem, options: SupernetOptions, device: Any, mix: Literal["interpolate", "pad"] = "pad"
) -> Supernet:  # fmt: skip
    """The supernet of a problem's space with the weights that a search starts from; `mix` combines two widths."""
    torch.manual_seed(problem.seed)
    supernet = Supernet(problem.network, problem.space, problem.reset, options.shortcut, mix, options.norms)
    if options.start == "base":
        inherit(supernet, problem.base())
    elif options.start != "random":
        _load(supernet, Path(options.start))
    return placed(supernet, device)


def sampled_step(
    supernet: Supernet,
    sgd: torch.optim.Optimizer,
    runner: Any,
    images: Inputs,
    labels: Any,
    draws: Sequence[Draw],
    task: Task = CLASSIFY,
) -> Tensor:
    """One weight step by the gradients of several sub-networks; returns the mean of their losses, a scalar.

    The first learns from the labels, the others half from the labels and half from its logits [N, classes]: the
    sandwich rule of Yu and Huang, "Universally slimmable networks", 2019, if the first is the widest and another the
    narrowest. If outputs are no logits, all learn from the targets.
    """
    sgd.zero_grad()
    losses = []
    soft: Tensor | None = None
    for draw in draws:
        with runner.autocast():
            outputs = supernet(images, draw)
        outputs = precise(outputs)
        loss = task.loss(outputs, labels)
        if soft is not None:
            loss = (loss + F.cross_entropy(outputs, soft)) / 2
        runner.backward(loss / len(draws))
        losses.append(loss.detach())
        soft = outputs.detach().softmax(1) if soft is None and task.classifies else soft
    sgd.step()
    return torch.stack(losses).mean()


@torch.no_grad()
def _accuracy(problem: Problem, supernet: Supernet, runner: Any, arch: Arch) -> float:
    draw = Draw.of(arch, problem.network)
    supernet.train()
    for index, (images, _) in enumerate(some(problem.data.weights, CALIBRATION)):
        with runner.autocast():
            supernet(images, replace(draw, momentum=1 / (index + 1)))
    supernet.eval()
    total, count = torch.zeros((), dtype=torch.float64, device=runner.device), 0
    for images, labels in some(problem.data.validation, JUDGED):
        with runner.autocast():
            outputs = supernet(images, draw)
        total += scalar(problem.data.task.score(precise(outputs), labels), total) * images_in(images)
        count += images_in(images)
    return float(total) / count


def some(split: Source, most: int) -> Iterator[Batch]:
    """The same images of a split every time, shuffled since data sets may be stored by class, not augmented, in
    batches until there are `most` or more."""
    count = 0
    for images, labels in split.batches(256, seed=0, channels_last=True):
        if count >= most:
            return
        count += len(labels)
        yield images, labels


class Judge:
    """Accuracies of archs, each computed once."""

    def __init__(self, accuracies: Callable[[Sequence[Arch]], list[float]]) -> None:
        self._find = accuracies
        self.accuracies: dict[Arch, float] = {}

    def __call__(self, archs: Sequence[Arch]) -> list[float]:
        """Accuracy of each arch, 0 to 1."""
        new = [arch for arch in dict.fromkeys(archs) if arch not in self.accuracies]
        if new:
            self.accuracies |= dict(zip(new, self._find(new), strict=True))
        return [self.accuracies[arch] for arch in archs]


class SearchLoop(ModelLoop[EpochRecord]):
    """The epochs of a search."""

    record = EpochRecord

    def __init__(self, problem: Problem, options: SearchOptions) -> None:
        self.problem = problem
        self.runner = engine(problem.device, options.precision)
        steps = max(1, len(problem.data.weights) // options.batch)
        super().__init__(problem.title, problem.checkpoint, options.epochs, steps)

    def seeded(self, epoch: int) -> int:
        """The seed of an epoch's draws; those of the network itself, as dropout's, start from it too."""
        seed = epoch_seed(self.problem.seed, epoch)
        torch.manual_seed(seed)
        return seed

    @property
    def rate(self) -> float:
        """Learning rate of the weights, now."""
        return float(self.sgd.param_groups[0]["lr"])

    def summary(self, figures: EpochRecord) -> str:
        """The loss."""
        return f"loss {significant(figures.train_loss)}"


class SupernetLoop(SearchLoop):
    """The epochs of a search that trains a supernet."""

    prefix = PREFIX

    def __init__(self, problem: Problem, options: SupernetOptions, mix: Literal["interpolate", "pad"] = "pad") -> None:
        super().__init__(problem, options)
        self.save = options.keep
        self.model = self.supernet = build_supernet(problem, options, self.runner.device, mix)
        self.sgd = torch.optim.SGD(
            self.supernet.parameters(), options.lr, options.momentum, weight_decay=options.weight_decay,
            nesterov=options.momentum > 0, foreach=True,
        )  # fmt: skip

    def run(self) -> None:
        """All epochs that are missing; the supernet is written to its file where the options ask for it."""
        super().run()
        if self.save:
            write_tensors(self.problem.supernet, self.supernet.state_dict(), {"space": self.problem.space.name})

    def validate(self, archs: Sequence[Arch]) -> list[float]:
        """Accuracy on the validation half of each arch, 0 to 1, its norm statistics estimated for it alone."""
        results = []
        with progress(f"{self.problem.title}: validation", len(archs)) as bar:
            for arch in archs:
                results.append(_accuracy(self.problem, self.supernet, self.runner, arch))
                bar.step(percent(results[-1], 1))
        return results


def check_sane(problem: Problem, options: SearchOptions, loss: float, epoch: int, rate: float) -> None:
    """Raise UserError where the mean loss of an epoch (the first being 0) says that a search has diverged."""
    lost = LOST * math.log(problem.data.classes) if problem.data.task.classifies else math.inf
    if not (math.isfinite(loss) and loss < lost):
        raise diverged(problem, options, loss, epoch, rate)


def diverged(problem: Problem, options: SearchOptions, loss: float, epoch: int, rate: float) -> UserError:
    """The error of a search that diverged in an epoch (the first being 0), at this learning rate."""
    what = f"the search diverged in epoch {epoch + 1} at a learning rate of {significant(rate)}: its loss is {loss:.3g}"
    if epoch == 0:
        return UserError(f"{what}; lower {options.rates}, and name another folder with --out")
    again = f"--strategy.lr={significant(options.lr / 3, 1)} and another --out"
    if isinstance(options, SupernetOptions):
        again = f"--strategy.start={problem.checkpoint} {again}"
    return UserError(
        f"{what}; the last good state, of epoch {epoch}, is in {problem.checkpoint}: begin again "
        f"{'from there ' if isinstance(options, SupernetOptions) else ''}at a lower rate with {again}"
    )


def _load(supernet: Supernet, path: Path) -> None:
    """Load the weights that another search left, or its checkpoint's; raises UserError if the file is missing or holds
    another network or space."""
    if not path.exists():
        raise UserError(f"strategy.start: there is no file {path}; name one that a search has kept (strategy.keep)")
    tensors, _ = read_tensors(path)
    if any(name.startswith(PREFIX) for name in tensors):
        tensors = {k.removeprefix(PREFIX): v for k, v in tensors.items() if k.startswith(PREFIX)}
    state = supernet.state_dict()
    shapes, others = ({name: tensor.shape for name, tensor in each.items()} for each in (state, tensors))
    if shapes != others:
        raise UserError(
            f"strategy.start: {path} holds the supernet of another network or space; name one that a search of the "
            "same configuration has kept (strategy.keep), or start from base"
        )
    supernet.load_state_dict(tensors)
