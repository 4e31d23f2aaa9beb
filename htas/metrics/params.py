"""Trainable parameters."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from htas.graph.layer import Layer
from htas.metrics import Case, Metric, OnRound, Wanted
from htas.timing.measurement import Measurement


@dataclass(frozen=True)
class Params(Metric):
    """Weights, biases, and two per normalised channel; a tensor used twice counts once."""

    unit: ClassVar[str] = "parameters"

    def measure(
        self, cases: Sequence[Case], *, on_round: OnRound | None = None, wanted: Wanted | None = None
    ) -> list[Measurement]:
        """Counted, so each measurement has one reading."""
        return [Measurement((float(_count(case)),), self.unit) for case in cases]


def _count(case: Case) -> int:
    return case.params if isinstance(case, Layer) else count_params(case)


def count_params(model: nn.Module) -> int:
    """Trainable parameters of a network."""
    return sum(tensor.numel() for tensor in model.parameters() if tensor.requires_grad)
