"""How long and how fast a network learns: the options of `[train]`, and the named recipes."""

import math
from dataclasses import dataclass, field
from typing import Literal

from htas.errors import UserError, need_above_zero, need_below, need_least

Precision = Literal["auto", "bf16", "fp32"]
DECAY = 1.0
"""Share of every weight that a step takes by weight decay, from which on weights change their sign, or grow."""
LEAST_TEMPERATURE = 0.01
"""Least divisor of logits: below it softmax is a step, whose gradients are 0 or beyond any float."""
MOST_TEMPERATURE = 1e4
"""Largest divisor of logits, whose square is a factor of a loss."""


@dataclass(frozen=True)
class Recipe:
    """How a network is trained. The last epoch counts; no choice looks at the test split."""

    epochs: int = 300
    """Passes over the training images after the warm-up; the learning rate falls along them."""
    warmup: int = 5
    """Epochs at the start in which the learning rate rises from 0."""
    rest: int = 0
    """Epochs at the end with learning rate 0: only norm statistics move."""
    batch: int = 256
    """Images of a step."""
    lr: float = 0.1
    """Highest learning rate, from which it falls to 0."""
    anneal: Literal["epoch", "step"] = "step"
    """Whether the learning rate falls once an epoch, as in TAS, or with every step, as a short training needs."""
    fall: Literal["cosine", "line"] = "cosine"
    """Shape of the fall to 0: half a cosine, or a straight line."""
    momentum: float = 0.9
    """Momentum of SGD with Nesterov's correction."""
    weight_decay: float = 5e-4
    """Weight decay of every parameter, norms and biases included."""
    clip: float = field(default=0.0, metadata={"key": "changed"})
    """Largest norm of the gradient of all weights together; a larger one is scaled down to it; 0 for no limit."""
    smoothing: float = 0.0
    """Share of each label that is spread evenly over all classes; below 1."""
    start: str = "random"
    """Weights that a network begins with: drawn anew (random), or the trained base network's, the most important
    channels first (base); those of a network that is given as trained are always inherited. The .safetensors checkpoint
    of a training that diverged is for the network that it trained, and the others are drawn anew."""
    precision: Precision = "auto"
    """Arithmetic of the training; auto is bf16 if the hardware has it."""
    int8_epochs: int = 3
    """Further epochs in simulated int8, where the target is in int8 and that costs a network more than half a point of
    its training images; 0 for none."""

    def __post_init__(self) -> None:
        need_least(1, self, "train", "epochs", "batch")
        need_least(0, self, "train", "warmup", "momentum", "weight_decay", "clip", "int8_epochs")
        need_above_zero(self, "train", "lr")
        need_below(1, self, "train", "momentum")
        if self.weight_decay > 1 and (most := self.lr * self.weight_decay) >= DECAY:
            raise UserError(
                f"train.weight_decay = {self.weight_decay:g} at train.lr = {self.lr:g} takes {most:.3g} of every "
                f"weight in a step, which must be below {DECAY:g}; lower train.weight_decay"
            )
        if self.start not in ("random", "base") and not self.start.endswith(".safetensors"):
            raise UserError(
                f"train.start must be random, base or the .safetensors checkpoint of a training, got {self.start!r}"
            )
        if not 0 <= self.rest < self.epochs:
            raise UserError(f"train.rest must lie in 0..{self.epochs - 1}, below train.epochs, got {self.rest}")
        if not 0 <= self.smoothing < 1:
            raise UserError(f"train.smoothing must be 0 or more and below 1, got {self.smoothing}")

    @property
    def length(self) -> int:
        """All epochs, the warm-up included."""
        return self.warmup + self.epochs

    def rate(self, epoch: int, step: int, steps: int) -> float:
        """Learning rate of a step of an epoch of `steps` steps, both numbers from 0."""
        if epoch < self.warmup:
            return self.lr * (epoch + step / steps) / self.warmup
        if epoch >= self.length - self.rest:
            return 0.0
        share = self.share(epoch, step, steps)
        return cosine(self.lr, 0.0, share) if self.fall == "cosine" else self.lr * (1 - share)

    def share(self, epoch: int, step: int, steps: int) -> float:
        """How much of the training after the warm-up lies before a step of an epoch; that of the epoch's start, where
        the rate falls once an epoch."""
        return (epoch - self.warmup + (step / steps if self.anneal == "step" else 0)) / self.epochs


CLIP = 2.0
"""Norm to which gradients are scaled down where a network starts from trained weights: those of a distilled network
without norms may be 100 times as large, and a step or two along them end at a network that guesses."""
RECIPES = {
    "paper": Recipe(epochs=300, warmup=5, rest=5, batch=256, lr=0.1, anneal="epoch"),
    "short": Recipe(epochs=2, warmup=0, batch=128, lr=0.1),
    "medium": Recipe(epochs=28, warmup=2, batch=128, lr=0.4),
    "digits": Recipe(epochs=7, warmup=1, batch=64, lr=0.1),
    "finetune": Recipe(epochs=10, warmup=0, batch=64, lr=0.02, clip=CLIP),
}
"""Named recipes; `paper` is TAS's E300-W5, `short` is for CIFAR on a CPU, `medium` for CIFAR networks that are to
be told apart, `digits` for the embedded data set, `finetune` for networks that start from trained weights."""


def cosine(start: float, end: float, share: float) -> float:
    """From start to end along half a cosine."""
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
