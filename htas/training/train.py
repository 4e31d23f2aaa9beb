"""Training along a Recipe: the loop of every network that learns, `Training` and `evaluate`."""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from htas.console.progress import Bar
from htas.data.split import Batch, Source
from htas.data.task import CLASSIFY, Inputs, Task, forward, images_in, precise, scalar
from htas.errors import UserError
from htas.graph.modes import evaluating
from htas.text import percent, significant
from htas.timing.allocator import keep_memory
from htas.training.distill import Distill
from htas.training.layout import placed
from htas.training.loop import EpochLoop, Figures, Values
from htas.training.recipe import Precision, Recipe

MODEL = "model/"
"""Prefix of a network's tensors in a checkpoint."""


def engine(device: str, precision: Precision) -> Any:
    """An accelerate.Accelerator for a device and precision; it gives `device`, `autocast()` and `backward(loss)`.

    On a CPU the process keeps its memory from then on: tensors of other sizes in every step of a search cost 45 000
    page faults a step for memory given back in between.
    """
    if device == "cpu":
        keep_memory()
    from accelerate import Accelerator  # type: ignore[import-untyped]
    from accelerate.state import AcceleratorState  # type: ignore[import-untyped]

    AcceleratorState._reset_state(reset_partial_state=True)  # else the first precision of a process would stay
    return Accelerator(cpu=device == "cpu", mixed_precision="bf16" if has_bf16(device, precision) else "no")


def has_bf16(device: str, precision: Precision) -> bool:
    """Whether to train in bf16: asked for, or `auto` on hardware that computes it."""
    if precision != "auto":
        return precision == "bf16"
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    features = torch.cpu.get_capabilities()
    return any(features.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


@dataclass(frozen=True)
class TrainingEpoch:
    """Means over the training images of one pass."""

    loss: float
    accuracy: float
    """The task's score; share of right answers where it classifies."""
    seconds: float

    @property
    def scalars(self) -> dict[str, float]:
        """Loss and accuracy."""
        return {"loss": self.loss, "accuracy": self.accuracy}


def smoothed(task: Task, smoothing: float) -> Task:
    """The task with labels spread over all classes; raises UserError if it has a loss of its own."""
    if not smoothing:
        return task
    if not task.classifies:
        raise UserError(f"train.smoothing = {smoothing} is for classification by cross-entropy; set it to 0")
    return replace(task, loss=partial(F.cross_entropy, label_smoothing=smoothing))


class ModelLoop(EpochLoop[Figures]):
    """Epochs that train a network in place, by SGD along a recipe."""

    prefix = MODEL
    """Prefix of the network's tensors in a checkpoint."""

    def __init__(
        self, model: nn.Module, split: Source, recipe: Recipe, *, seed: int, device: str, checkpoint: Path, title: str
    ) -> None:
        super().__init__(title, checkpoint, recipe.length, max(1, len(split) // recipe.batch))
        self.split, self.recipe, self.seed = split, recipe, seed
        self.runner = engine(device, recipe.precision)
        self.model = placed(model, self.runner.device)
        self.sgd = torch.optim.SGD(
            model.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay,
            nesterov=recipe.momentum > 0, foreach=True,
        )  # fmt: skip

    def begin(self, number: int, seed: int) -> None:
        """Prepare an epoch, the first being 0, whose draws start from this seed."""
        return None

    @abstractmethod
    def step(self, images: Inputs, labels: Any, share: float) -> Tensor:
        """Learn from a batch, at this share of all epochs; returns figures, [any number], to be summed."""

    @abstractmethod
    def figures(self, number: int, sums: Tensor) -> Figures:
        """An epoch's figures by their sums over its steps; raises UserError where the training diverged."""

    def epoch(self, number: int, bar: Bar) -> Figures:
        """One pass; raises UserError where the training diverged."""
        seed = epoch_seed(self.seed, number)
        torch.manual_seed(seed)  # for what a network draws itself, as dropout does
        self.begin(number, seed)
        self.model.train()
        sums = torch.zeros((), device=self.runner.device)
        for step, (images, labels) in enumerate(batches(self.split, self.recipe.batch, seed)):
            set_rate(self.sgd, self.recipe.rate(number, step, self.steps))
            sums = sums + self.step(images, labels, self.recipe.share(number, step, self.steps))
            bar.step()
        return self.figures(number, sums)

    @property
    def rate(self) -> float:
        """Learning rate of the weights, now."""
        return float(self.sgd.param_groups[0]["lr"])

    def outputs(self, network: nn.Module, images: Inputs) -> Any:
        """What a network makes of images, in the arithmetic of the recipe and as precise as a loss needs."""
        with self.runner.autocast():
            outputs = forward(network, images)
        return precise(outputs)

    def descend(self, loss: Tensor) -> None:
        """A step of the weights down the gradient of a loss, a scalar."""
        self.sgd.zero_grad()
        self.runner.backward(loss)
        self.sgd.step()

    def tensors(self) -> dict[str, Tensor]:
        """Weights and momenta."""
        weights = {f"{self.prefix}{name}": tensor for name, tensor in self.model.state_dict().items()}
        return {**weights, **optimizer_tensors(self.sgd, "sgd")}

    def load(self, tensors: dict[str, Tensor], values: Values) -> None:
        """Weights and momenta."""
        weights = {k.removeprefix(self.prefix): v for k, v in tensors.items() if k.startswith(self.prefix)}
        self.model.load_state_dict(weights)
        load_optimizer(self.sgd, tensors, "sgd")


class Training(ModelLoop[TrainingEpoch]):
    """The training of a network in place; `run` goes on from the checkpoint, which is written every epoch.

    A teacher gives the loss of `distill`. `rate_option` names what a user lowers where the loss stops being a number.
    `on_epoch` is called with the number of an epoch, its mean loss and its score on the training images, once its
    checkpoint is written. Raises UserError for smoothed labels of a task that has a loss of its own.
    """

    record = TrainingEpoch

    def __init__(
        self,
        model: nn.Module,
        split: Source,
        recipe: Recipe,
        *,
        seed: int,
        device: str,
        checkpoint: Path,
        title: str,
        teacher: nn.Module | None = None,
        distill: Distill | None = None,
        rate_option: str = "train.lr",
        task: Task = CLASSIFY,
        on_epoch: Callable[[int, float, float], None] | None = None,
    ) -> None:
        self.task = smoothed(task, recipe.smoothing)
        super().__init__(model, split, recipe, seed=seed, device=device, checkpoint=checkpoint, title=title)
        self.teacher = placed(teacher, self.runner.device).eval() if teacher is not None else None
        self.distill, self.rate_option, self.on_epoch = distill, rate_option, on_epoch

    def keep(self, path: Path) -> None:
        """Write a checkpoint, and say that an epoch is done."""
        super().keep(path)
        if self.on_epoch is not None:
            self.on_epoch(len(self.epochs), self.epochs[-1].loss, self.epochs[-1].accuracy)

    def step(self, images: Inputs, labels: Any, share: float) -> Tensor:
        """Loss and score, [2]."""
        outputs = self.outputs(self.model, images)
        if self.teacher is None or self.distill is None:
            loss = self.task.loss(outputs, labels)
        else:
            with torch.no_grad():
                target = self.outputs(self.teacher, images)
            loss = self.distill.loss(outputs, target, labels, self.task)
        self.descend(loss)
        with torch.no_grad():
            return torch.stack([loss.detach(), scalar(self.task.score(outputs, labels), loss).to(loss.dtype)])

    def figures(self, number: int, sums: Tensor) -> TrainingEpoch:
        """Raises UserError where the loss is no number any more."""
        mean, accuracy = (sums / self.steps).tolist()
        if not math.isfinite(mean):
            good = f"; its last good state, of epoch {number}, is in {self.checkpoint}" if number else ""
            raise UserError(
                f"training of {self.title} diverged in epoch {number + 1} at a learning rate of {self.rate:.3g}{good}; "
                f"lower {self.rate_option}"
            )
        return TrainingEpoch(mean, accuracy, self.elapsed)

    def summary(self, figures: TrainingEpoch) -> str:
        """Loss and accuracy."""
        return f"loss {significant(figures.loss)}, accuracy {percent(figures.accuracy)}"


def evaluate(
    model: nn.Module, split: Source, *, device: str, precision: Precision = "auto", batch: int = 500,
    task: Task = CLASSIFY,
) -> float:  # fmt: skip
    """Mean score (share of right answers) on a split, in eval mode; the model's mode is restored."""
    runner = engine(device, precision)
    placed(model, runner.device)
    with evaluating(model), torch.no_grad():
        return mean_score(task, split.batches(batch, channels_last=True), runner, partial(forward, model))


def mean_score(task: Task, split: Iterable[Batch], runner: Any, network: Callable[[Inputs], Any]) -> float:
    """Mean score of a network's outputs for all images of some batches."""
    total, count = torch.zeros((), dtype=torch.float64, device=runner.device), 0
    for images, labels in split:
        with runner.autocast():
            outputs = network(images)
        total += scalar(task.score(precise(outputs), labels), total) * images_in(images)
        count += images_in(images)
    return float(total) / count


def batches(split: Source, size: int, seed: int) -> Iterator[Batch]:
    """One augmented pass in random order, whole batches only unless there is less than one."""
    return split.batches(size, seed=seed, augment=True, drop_last=len(split) >= size, channels_last=True)


def epoch_seed(seed: int, epoch: int) -> int:
    """A seed of its own for every epoch, so that a continued run draws what an uninterrupted one would."""
    return seed * 1_000_003 + epoch


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def optimizer_tensors(optimizer: torch.optim.Optimizer, name: str) -> dict[str, Tensor]:
    """The state of an optimizer as flat named tensors; `load_optimizer` reads them back."""
    state = optimizer.state_dict()["state"]
    return {
        f"{name}/{index}/{key}": torch.as_tensor(value)
        for index, values in state.items()
        for key, value in values.items()
        if value is not None
    }


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], name: str) -> None:
    """Put back what `optimizer_tensors` gave."""
    content = optimizer.state_dict()
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith(f"{name}/"):
            _, index, field = key.split("/")
            state.setdefault(int(index), {})[field] = value
    optimizer.load_state_dict({**content, "state": state})
