"""The loss that networks learn by, and the score that judges them."""

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from htas.data.batch import one_class
from htas.data.marks import mark
from htas.data.nests import replaced
from htas.errors import UserError
from htas.files import LARGEST

Outputs = Any
"""A tensor, or whatever a network returns."""
Inputs = Tensor | tuple[Tensor, ...]
"""A batch of inputs, [N, ...]: a tensor, or one for each input of a network that has several."""


def forward(model: nn.Module, inputs: Inputs) -> Outputs:
    """The outputs of a model for a batch of inputs, [N, ...] each."""
    return model(inputs) if isinstance(inputs, Tensor) else model(*inputs)


def images_in(inputs: Inputs) -> int:
    """The number of items in a batch."""
    return len(inputs if isinstance(inputs, Tensor) else inputs[0])


def right(logits: Tensor, labels: Tensor) -> Tensor:
    """Fraction of right answers, a float64 scalar, from logits [N, classes] and int64 labels [N], or probabilities
    [N, classes], of which the most probable class is right."""
    return (logits.argmax(1) == one_class(labels)).double().mean()


@dataclass(frozen=True)
class Task:
    """Classification, unless other functions are given."""

    loss: Callable[[Outputs, Any], Tensor] = F.cross_entropy
    """From the outputs and targets of a batch to a scalar tensor."""
    score: Callable[[Outputs, Any], Tensor | float] = right
    """From the same to the mean over the batch, the higher the better. It is reported as an accuracy is."""
    distil: Callable[[Outputs, Outputs, Any], Tensor] | None = None
    """From a student's outputs, its teacher's and the targets to a loss; None for the one of training/distill.py."""
    train: Callable[[nn.Module, nn.Module | None], object] | None = None
    """Trains a whole network in place, in the user's way; the teacher is None for the base network, and without one."""
    judge: Callable[[nn.Module], float] | None = None
    """Score of a whole, trained network, in the user's way."""
    scored_by: str = "eval_fn"
    """The argument of htas.optimize that `score` comes from."""

    @property
    def classifies(self) -> bool:
        """Whether outputs are logits and targets are labels."""
        return self.loss is F.cross_entropy

    @property
    def counts(self) -> bool:
        """Whether the score is the share of right answers, whose noise follows from the number of items."""
        return self.score is right and self.judge is None

    @property
    def as_usual(self) -> bool:
        """Whether networks are trained here, and judged by shares of right answers: a short training then tells of a
        long one, and its noise is known."""
        return self.counts and self.train is None

    @property
    def name(self) -> str:
        """The functions that are the user's own, for a configuration; empty where none is."""
        usual = Task()
        parts = [(name, getattr(self, name)) for name in ("loss", "score", "distil", "train", "judge")]
        return ", ".join(
            f"{name} {_named(each)} {mark(each)}" for name, each in parts if each is not getattr(usual, name)
        )


CLASSIFY = Task()


def need_score(score: float, function: str, whose: str) -> float:
    """The score that a function of the user's, an argument of htas.optimize, gives for `whose`; raises UserError where
    it is no finite number, or one that no file of a run holds."""
    if not abs(score) <= LARGEST:
        allowed = f"number of at most {LARGEST:g}" if isfinite(score) else "finite number"
        raise UserError(
            f"{function} gives {score:g} for {whose}; it must give a {allowed} there, such as 0 for a network that "
            "predicts nothing: mend it"
        )
    return score


def unit(loss: Callable[[Outputs, Any], Tensor]) -> Callable[[Outputs, Any], Tensor]:
    """A score from a loss: 1 / (1 + loss), a float64 scalar, which is 1 where the loss is 0."""

    def score(outputs: Outputs, targets: Any) -> Tensor:
        return 1 / (1 + loss(outputs, targets).detach().double())

    score.__qualname__ = f"1 / (1 + {_named(loss)})"
    return score


def precise(outputs: Outputs) -> Outputs:
    """The outputs in fp32, whatever their type under autocast."""
    return replaced(outputs, lambda each: each.float() if torch.is_tensor(each) and each.is_floating_point() else each)


def scalar(value: Tensor | float, like: Tensor) -> Tensor:
    """A score as a float64 scalar tensor, on the device of `like`, of any shape."""
    return torch.as_tensor(value, dtype=torch.float64, device=like.device)


def _named(function: Any) -> str:
    return getattr(function, "__qualname__", type(function).__name__)
