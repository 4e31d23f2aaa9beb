"""Trainable parameters."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import nn

from htas.graph.layer import Layer
from htas.metrics import Case, CostSource, Metric, OnRound, Pending
from htas.timing.measurement import Measurement

if TYPE_CHECKING:
    from htas.cost.model import CostModel


@dataclass(frozen=True)
class Params(Metric):
    """Weights, biases, and two per normalised channel; a tensor used twice counts once."""

    unit: ClassVar[str] = "parameters"
    units: ClassVar[Mapping[str, float]] = {"": 1.0, "k": 1e3, "M": 1e6}
    example: ClassVar[str] = "0.3M"
    noisy: ClassVar[bool] = False
    whole: ClassVar[bool] = False
    fitted: ClassVar[bool] = False

    @classmethod
    def cost(cls, source: CostSource) -> "CostModel":
        """An exact sum over layers, projections included."""
        return source.counted("params")

    def measure(
        self, cases: Sequence[Case], *, on_round: OnRound | None = None, pending: Pending | None = None
    ) -> list[Measurement]:
        """One counted reading for each case."""
        return [Measurement((float(_count(case)),), self.unit) for case in cases]


def _count(case: Case) -> int:
    return case.params if isinstance(case, Layer) else count_params(case)


def count_params(model: nn.Module) -> int:
    """Trainable parameters of a network."""
    return sum(tensor.numel() for tensor in model.parameters() if tensor.requires_grad)
