"""The only ordinary training loop: a Recipe, `train` and `evaluate`."""

import math
from collections.abc import Callable, Iterator
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


def train(
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
    rate: str = "train.lr",
    task: Task = CLASSIFY,
    on_epoch: Callable[[int, float, float], None] | None = None,
) -> float:
    """Train `model` in place. Goes on from `checkpoint` if it exists; it is written every epoch.

    `on_epoch` is called with the number of an epoch, its mean loss and its score on the training images, once its
    checkpoint is written. Returns the seconds of all epochs, those before an interruption included. Raises UserError if
    the loss stops being a number, where `rate` names the option to lower, and for smoothed labels of a task that has
    none.
    """
    task = smoothed(task, recipe.smoothing)
    loop = _Training(model, split, recipe, seed, device, checkpoint, title, teacher, distill, rate, task)
    loop.on_epoch = on_epoch
    loop.run()
    return loop.seconds


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
    """Epochs that train a network by SGD."""

    prefix = MODEL
    """Prefix of the network's tensors in a checkpoint."""
    model: nn.Module
    sgd: torch.optim.SGD

    def tensors(self) -> dict[str, Tensor]:
        """Weights and momenta."""
        weights = {f"{self.prefix}{name}": tensor for name, tensor in self.model.state_dict().items()}
        return {**weights, **optimizer_tensors(self.sgd, "sgd")}

    def load(self, tensors: dict[str, Tensor], values: Values) -> None:
        """Weights and momenta."""
        weights = {k.removeprefix(self.prefix): v for k, v in tensors.items() if k.startswith(self.prefix)}
        self.model.load_state_dict(weights)
        load_optimizer(self.sgd, tensors, "sgd")


class _Training(ModelLoop[TrainingEpoch]):
    record = TrainingEpoch
    on_epoch: Callable[[int, float, float], None] | None = None

    def keep(self, path: Path) -> None:
        """Write a checkpoint, and say that an epoch is done."""
        super().keep(path)
        if self.on_epoch is not None:
            self.on_epoch(len(self.epochs), self.epochs[-1].loss, self.epochs[-1].accuracy)

    def __init__(
        self,
        model: nn.Module,
        split: Source,
        recipe: Recipe,
        seed: int,
        device: str,
        checkpoint: Path,
        title: str,
        teacher: nn.Module | None,
        distill: Distill | None,
        rate: str,
        task: Task,
    ) -> None:
        super().__init__(title, checkpoint, recipe.length, max(1, len(split) // recipe.batch))
        self.split, self.recipe, self.seed, self.distill, self.rate, self.task = (
            split, recipe, seed, distill, rate, task
        )  # fmt: skip
        self.runner = engine(device, recipe.precision)
        self.model = placed(model, self.runner.device)
        self.teacher = placed(teacher, self.runner.device).eval() if teacher is not None else None
        self.sgd = torch.optim.SGD(
            model.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay,
            nesterov=recipe.momentum > 0,
        )  # fmt: skip

    def epoch(self, number: int, bar: Bar) -> TrainingEpoch:
        """One pass; raises UserError where the loss is no number any more."""
        self.model.train()
        seed = epoch_seed(self.seed, number)
        torch.manual_seed(seed)  # for what a network draws itself, as dropout does
        total = torch.zeros(2, device=self.runner.device)
        for step, (images, labels) in enumerate(batches(self.split, self.recipe.batch, seed)):
            set_rate(self.sgd, self.recipe.rate(number, step, self.steps))
            loss, outputs = self._loss(images, labels)
            self.sgd.zero_grad()
            self.runner.backward(loss)
            self.sgd.step()
            with torch.no_grad():
                total += torch.stack([loss.detach(), scalar(self.task.score(outputs, labels), loss).to(loss.dtype)])
            bar.step()
        mean, accuracy = (total / self.steps).tolist()
        if not math.isfinite(mean):
            at = f"{self.sgd.param_groups[0]['lr']:.3g}"
            good = f"; its last good state, of epoch {number}, is in {self.checkpoint}" if number else ""
            raise UserError(
                f"training of {self.title} diverged in epoch {number + 1} at a learning rate of {at}{good}; "
                f"lower {self.rate}"
            )
        return TrainingEpoch(mean, accuracy, self.elapsed)

    def _loss(self, images: Inputs, labels: Any) -> tuple[Tensor, Any]:
        """Loss, a scalar, and the network's outputs."""
        with self.runner.autocast():
            outputs = forward(self.model, images)
        outputs = precise(outputs)
        if self.teacher is None or self.distill is None:
            return self.task.loss(outputs, labels), outputs
        with torch.no_grad(), self.runner.autocast():
            target = forward(self.teacher, images)
        return self.distill.loss(outputs, precise(target), labels, self.task), outputs

    def summary(self, figures: TrainingEpoch) -> str:
        """Loss and accuracy."""
        return f"loss {significant(figures.loss)}, accuracy {percent(figures.accuracy)}"


def evaluate(
    model: nn.Module,
    split: Source,
    *,
    device: str,
    precision: Precision = "auto",
    batch: int = 500,
    task: Task = CLASSIFY,
) -> float:
    """Mean score (share of right answers) on a split, in eval mode; the model's mode is restored."""
    runner = engine(device, precision)
    placed(model, runner.device)
    total = torch.zeros((), dtype=torch.float64, device=runner.device)
    with evaluating(model), torch.no_grad():
        for images, labels in split.batches(batch, channels_last=True):
            with runner.autocast():
                outputs = forward(model, images)
            total += scalar(task.score(precise(outputs), labels), total) * images_in(images)
    return float(total) / len(split)


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
