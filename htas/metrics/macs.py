"""Multiply-adds of one image, which many papers call FLOPs."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from htas.graph.layer import Layer
from htas.graph.modes import copied
from htas.metrics import Case, CountedMetric

if TYPE_CHECKING:
    from htas.cost.model import CostModel
    from htas.cost.source import NetworkCosts


@dataclass(frozen=True)
class Macs(CountedMetric):
    """Multiply-adds of convolutions and linear layers; a bias counts as one per output, as TAS counts it.

    What a network computes outside such modules (attention, norms, functional calls) is not counted.
    """

    unit: ClassVar[str] = "MACs"
    units: ClassVar[Mapping[str, float]] = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}
    example: ClassVar[str] = "20M"
    whole: ClassVar[bool] = False

    @classmethod
    def cost(cls, costs: "NetworkCosts") -> "CostModel":
        """An exact sum over layers, projections included."""
        return costs.counted("macs")

    def count(self, case: Case) -> int:
        """Multiply-adds of one image."""
        return case.macs if isinstance(case, Layer) else count_macs(case, *self.target.shapes)


def count_macs(model: nn.Module, *shapes: tuple[int, ...]) -> int:
    """Multiply-adds of a network for one image, with a shape for each input; counted while a copy runs."""
    network = copied(model).eval().cpu()
    counts: list[int] = []

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        counts.append(_each(module, inputs[0], output))

    for module in network.modules():
        if isinstance(module, _ConvNd | nn.Linear):
            module.register_forward_hook(count)
    with torch.inference_mode():
        network(*(torch.zeros(1, *shape) for shape in shapes))
    return sum(counts)


def _each(module: nn.Module, inputs: Tensor, output: Tensor) -> int:
    bias = 0 if module.bias is None else output.numel()
    match module:
        case nn.Linear():
            return output.numel() * module.in_features + bias
        case _ConvTransposeNd():
            return inputs.numel() * prod(module.kernel_size) * (module.out_channels // module.groups) + bias
        case _ConvNd():
            return output.numel() * prod(module.kernel_size) * (module.in_channels // module.groups) + bias
        case _:
            raise AssertionError(type(module))
