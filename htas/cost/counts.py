"""Multiply-adds and parameters of an arch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING, Literal

import numpy as np
from torch import Tensor

from htas.cost.tables import NORM, SCALE, Floats, LayerCost
from htas.graph.arch import Arch
from htas.graph.layer import Layer, Template
from htas.metrics import Metric
from htas.spaces.space import Space

if TYPE_CHECKING:
    from htas.graph.network import Step


@dataclass(frozen=True)
class MetricSum(LayerCost):
    """The sum of a metric's figures of single layers."""

    metric: Metric
    unit: str = ""
    _figures: dict[Layer, float] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "unit", self.metric.unit)

    def values(self, template: Template, inputs: Sequence[int], outputs: Sequence[int]) -> Floats:
        """The metric's figures, [inputs, outputs]; each layer is measured once."""
        layers = [[template.at(i, o) for o in outputs] for i in inputs]
        new = [layer for layer in dict.fromkeys(chain.from_iterable(layers)) if layer not in self._figures]
        if new:
            self._figures.update(
                (layer, reading.estimate) for layer, reading in zip(new, self.metric.measure(new), strict=True)
            )
        return np.array([[self._figures[layer] for layer in row] for row in layers], float)


@dataclass(frozen=True)
class CountCost(LayerCost):
    """Multiply-adds for one image, or trainable parameters; projections are counted wherever widths differ."""

    count: Literal["macs", "params"] = "macs"
    unit: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "unit", {"macs": "MACs", "params": "parameters"}[self.count])

    def cost(self, arch: Arch) -> float:
        """The network's own count, projections included."""
        return float(getattr(self.network, self.count)(arch))

    def values(self, template: Template, inputs: Sequence[int], outputs: Sequence[int]) -> Floats:
        """The layers' own counts, [inputs, outputs]."""
        return np.array([[getattr(template.at(i, o), self.count) for o in outputs] for i in inputs], float)

    def template(self, step: "Step") -> Template | None:
        """The norm of a convolution counts as a norm by itself, that of a projection with the projection."""
        template = super().template(step)
        if self.count == "macs" or step.node.kind == "project":
            return template
        if step.node.again:
            return None
        if step.node.kind in ("layer_norm", "scale"):
            return (None, SCALE, NORM)[step.node.params]
        if step.node.kind in ("norm", "fixed"):
            return NORM if step.node.kind == "norm" else None
        return replace(template, norm=False) if template else None

    def expected(self, space: Space, widths: Mapping[str, Tensor], depths: Mapping[str, Tensor]) -> Tensor:
        """The mean over archs, a scalar; fixed parts of the network count if their block is kept."""
        total = super().expected(space, widths, depths)
        for step in self._flow(space, depths):
            if step.node.kind == "fixed":
                total = total + step.share * getattr(step.node, self.count)
        return total
