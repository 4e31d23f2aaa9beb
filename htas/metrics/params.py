"""Trainable parameters."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import nn

from htas.graph.layer import Layer
from htas.metrics import Case, CountedMetric

if TYPE_CHECKING:
    from htas.cost.model import CostModel
    from htas.cost.source import NetworkCosts


@dataclass(frozen=True)
class Params(CountedMetric):
    """Weights, biases, and two per normalised channel; a tensor used twice counts once."""

    unit: ClassVar[str] = "parameters"
    units: ClassVar[Mapping[str, float]] = {"": 1.0, "k": 1e3, "M": 1e6}
    example: ClassVar[str] = "0.3M"
    whole: ClassVar[bool] = False

    @classmethod
    def cost(cls, costs: "NetworkCosts") -> "CostModel":
        """An exact sum over layers, projections included."""
        return costs.counted("params")

    def count(self, case: Case) -> int:
        """Trainable parameters."""
        return case.params if isinstance(case, Layer) else count_params(case)


def count_params(model: nn.Module) -> int:
    """Trainable parameters of a network."""
    return sum(tensor.numel() for tensor in model.parameters() if tensor.requires_grad)
