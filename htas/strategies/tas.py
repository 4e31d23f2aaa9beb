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
    cost: str = "macs"
    loss: Literal["lambda", "band"] = "band"
    weight: float = 2.0
    mix: Literal["interpolate", "pad"] = "interpolate"
    shortcut: Literal["project", "pad"] = "pad"
    start: str = "random"
