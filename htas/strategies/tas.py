"""TAS (Dong and Yang 2019): the differentiable search with every setting as its authors published it."""

from dataclasses import dataclass
from typing import Literal

from htas.strategies.differentiable import Differentiable


@dataclass(frozen=True)
class Tas(Differentiable):
    """600 epochs from drawn weights, outputs of two widths interpolated, multiply-adds led into a band below
    `strategy.ratio` of the base network's. TAS's space and projections are options of [design], its training of the
    network found is `train.recipe = "paper"`. With `cost = "paper"` and `loss = "lambda"` it is the search of HTAS."""

    anneal: Literal["epoch", "step"] = "epoch"
    """Whether temperature and learning rate fall once an epoch, or with every step."""
    cost: str = "macs"
    """The cost that the search weighs archs by, as for the strategy differentiable."""
    loss: Literal["lambda", "band"] = "band"
    """`band`: pushes the cost into [ratio - tolerance, ratio] of the base's. `lambda`: eq. 6."""
    weight: float = 2.0
    """Multiplies the cost's part of the loss."""
    mix: Literal["interpolate", "pad"] = "interpolate"
    """How the outputs of two widths meet: channel-wise interpolation, or padding with zeros."""
    shortcut: Literal["project", "pad"] = "pad"
    """With adds = 'project', what stands in the supernet where added widths differ: padding with zeros, or a sliced 1x1
    convolution and norm."""
    start: str = "random"
    """Weights at the start: drawn at random (random), the trained base network's (base), or a supernet's file."""
