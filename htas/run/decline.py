"""Trainings that lose what their first weights knew: scores of the same training images before and after."""

from functools import partial
from math import ceil, sqrt

import numpy as np
import torch
from torch import nn

from htas.data.split import Data
from htas.data.task import forward
from htas.graph.modes import evaluating
from htas.run.deployed import some_of
from htas.text import percent
from htas.training.layout import placed
from htas.training.loop import engine, same_dice
from htas.training.train import mean_score

IMAGES = 2000
"""Training images, drawn at random, that are looked at: no choice and no doubt looks at the test split."""
BLOCKS = 20
"""Parts of them, whose mean scores tell the noise of a difference."""
FEWEST = 5
"""With fewer blocks the noise is unknown."""
SURE = 3.0
"""Standard errors of a difference from which on it is no chance."""
LOSS = 0.02
"""Fraction of the score before that may be lost without a word: networks that know their training images by heart lose
some of that."""


def block_scores(network: nn.Module, data: Data, device: str, whose: str) -> list[float]:
    """Mean scores of a network on blocks of training images, in eval mode; the same blocks each time. No random number
    is drawn that a training would draw. Raises UserError, as of `whose`, for a score that is no finite number."""
    images, runner = some_of(data.train, IMAGES), engine(device, "fp32")
    placed(network, runner.device)
    with torch.random.fork_rng(), same_dice(), evaluating(network), torch.no_grad():
        blocks = images.batches(ceil(len(images) / BLOCKS), channels_last=True)
        return [mean_score(data.task, [block], runner, partial(forward, network), whose) for block in blocks]


def decline(before: list[float], after: list[float], advice: str) -> str:
    """A sentence, with what to do, where scores of blocks fell clearly beyond their noise; otherwise empty."""
    if len(before) < FEWEST:
        return ""
    changes = np.subtract(after, before)
    change, noise = float(changes.mean()), SURE * float(changes.std(ddof=1)) / sqrt(len(changes))
    first, last = float(np.mean(before)), float(np.mean(after))
    if -change <= max(noise, LOSS * abs(first)):
        return ""
    return (
        f"Its training lost what it began with: its accuracy on training images was {percent(first)} before the first "
        f"step, and is {percent(last)} after the last; {advice}."
    )
