"""Training along a Recipe: the loop of every network that learns, `Training` and `evaluate`."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from htas.data.nests import form
from htas.data.split import Batch, Source
from htas.data.task import CLASSIFY, Inputs, Outputs, Task, forward, images_in, need_score, precise, scalar
from htas.errors import UserError
from htas.graph.modes import evaluating
from htas.graph.runs import computes_alike
from htas.plugins.contract import need
from htas.text import percent, significant
from htas.training.distill import Distill
from htas.training.int8 import simulated
from htas.training.layout import CopyingViews, placed
from htas.training.loop import OUTPUTS, EpochLoop, engine, finite, same_dice
from htas.training.recipe import Precision, Recipe

SEARCHED = "a network of the search"
"""Whose score it is, unless a caller says so."""


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


class Training(EpochLoop[TrainingEpoch]):
    """The training of a network in place; `run` goes on from the checkpoint, which is written every epoch.

    A teacher gives the loss of `distill`. `rate_option` names what a user lowers where the loss stops being a number.
    `on_epoch` is called with the number of an epoch, its mean loss and its score on the training images, once its
    checkpoint is written. With `weight_bits`, 8 or 7, the network computes in simulated int8, not the teacher. Raises
    UserError for smoothed labels of a task that has a loss of its own.
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
        weight_bits: int = 0,
    ) -> None:
        self.task, self.batch_option = task, rate_option.replace(".lr", ".batch")
        if recipe.smoothing:
            if not task.classifies:
                raise UserError(
                    f"train.smoothing = {recipe.smoothing} is for classification by cross-entropy; set it to 0"
                )
            self.task = replace(task, loss=partial(F.cross_entropy, label_smoothing=recipe.smoothing))
        super().__init__(model, split, recipe, seed=seed, device=device, checkpoint=checkpoint, title=title)
        self.teacher = placed(teacher, self.runner.device).eval() if teacher is not None else None
        self.distill, self.rate_option, self.on_epoch = distill, rate_option, on_epoch
        self.weight_bits = weight_bits
        self._same_outputs: bool | None = None

    def keep(self, path: Path) -> None:
        """Write a checkpoint, and say that an epoch is done."""
        super().keep(path)
        if self.on_epoch is not None:
            self.on_epoch(len(self.epochs), self.epochs[-1].loss, self.epochs[-1].accuracy)

    def step(self, images: Inputs, labels: Any, share: float) -> Tensor:
        """Loss and score, [2]."""
        with simulated(self.weight_bits):
            outputs = self.outputs(self.model, images)
        if self.teacher is None or self.distill is None:
            loss = self.task.loss(outputs, labels)
        else:
            with torch.no_grad():
                target = self.outputs(self.teacher, images)
            loss = self.distill.loss(outputs, target, labels, self.task)
        self.descend(loss)
        with torch.no_grad():
            score = self.task.score(self._judged(outputs, images), labels)
            return torch.stack([loss.detach(), scalar(score, loss).to(loss.dtype)])

    def _judged(self, outputs: Outputs, images: Inputs) -> Outputs:
        """What a score is of: these outputs, or where eval mode has others (boxes in place of maps, probabilities in
        place of logits), those."""
        if self._same_outputs is None:
            usual = self.task.score is CLASSIFY.score  # it takes the highest number, of logits and of probabilities
            alike = (self.task.classifies and usual) or _form(self._in_eval(images)) == _form(outputs)
            self._same_outputs = alike and (usual or self._computes_alike(images))
        return outputs if self._same_outputs else self._in_eval(images)

    def _computes_alike(self, images: Inputs) -> bool:
        few = tuple(each[:2] for each in ((images,) if isinstance(images, Tensor) else images))
        with torch.random.fork_rng(), same_dice():
            return computes_alike(self.model, few)

    def _in_eval(self, images: Inputs) -> Outputs:
        with evaluating(self.model), torch.no_grad():
            return self.outputs(self.model, images)

    def figures(self, number: int, sums: Tensor) -> TrainingEpoch:
        """Raises UserError where the loss is no number any more, or the score is none."""
        mean, accuracy = (sums / self.steps).tolist()
        if not math.isfinite(mean):
            what = f"training of {self.title} diverged in epoch {number + 1}"
            if cause := self.cause(number):
                raise UserError(f"{what}, and not by its learning rate: {cause}")
            good = f"; its last good state, of epoch {number}, is in {self.checkpoint}" if number else ""
            lower = f"lower {self.rate_option}"
            if number and self.rate_option == "train.lr":
                lower = f"go on from there with --train.start={self.checkpoint}, a lower --train.lr and another --out"
            raise UserError(f"{what} at a learning rate of {self.rate:.3g}{good}; {lower}")
        need_score(accuracy, self.task.scored_by, f"training images in epoch {number + 1} of {self.title}")
        return TrainingEpoch(mean, accuracy, self.elapsed)

    def fault(self, images: Inputs) -> str:
        """The teacher's outputs, or the network's, before the first step."""
        with torch.no_grad():
            if self.teacher is not None and not finite(self.outputs(self.teacher, images)):
                return "its teacher's outputs are NaN or infinite; train the base network again, in another folder"
            with evaluating(self.model):
                wrong = not finite(self.outputs(self.model, images))
        return OUTPUTS if wrong else ""

    def summary(self, figures: TrainingEpoch) -> str:
        """Loss and accuracy."""
        return f"loss {significant(figures.loss)}, accuracy {percent(figures.accuracy)}"


def _form(outputs: Outputs) -> object:
    """How outputs are nested, and the shape of each tensor."""
    return form(outputs, lambda leaf: tuple(leaf.shape) if isinstance(leaf, Tensor) else type(leaf))


def evaluate(
    model: nn.Module, split: Source, *, device: str, precision: Precision = "fp32", batch: int = 500,
    task: Task = CLASSIFY, whose: str = SEARCHED,
) -> float:  # fmt: skip
    """Mean score (share of right answers) on a split, in eval mode; the model's mode is restored. In fp32 unless
    something else is named: that is what the network's user computes, whatever it was trained in. Raises UserError, as
    of `whose`, for a score that is no finite number."""
    runner = engine(device, precision)
    placed(model, runner.device)
    with evaluating(model), torch.no_grad():
        batches = split.batches(batch, channels_last=True)
        return mean_score(task, batches, runner, partial(forward, model), whose)


def mean_score(
    task: Task, split: Iterable[Batch], runner: Any, network: Callable[[Inputs], Any], whose: str = SEARCHED
) -> float:
    """Mean score of a network's outputs for all images of some batches; raises UserError, as of `whose`, where it is no
    finite number."""
    total, count = torch.zeros((), dtype=torch.float64, device=runner.device), 0
    for images, labels in split:
        with CopyingViews():
            with runner.autocast():
                outputs = network(images)
            total += scalar(task.score(precise(outputs), labels), total) * images_in(images)
        count += images_in(images)
    return need_score(float(total) / count, task.scored_by, whose)


def users_score(task: Task, model: nn.Module, whose: str) -> float:
    """Score of a whole network, in eval mode, by the user's own `judge`; raises UserError, as of `whose`, where that is
    no finite number."""
    assert task.judge is not None
    score = task.judge(model.eval())
    need(score, float, "score_func(network)")
    return need_score(float(score), "score_func", whose)
