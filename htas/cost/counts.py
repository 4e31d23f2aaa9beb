"""Multiply-adds and parameters of an arch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from htas.cost.model import CostModel, by_block, expectation
from htas.cost.tables import NORM, SCALE, Floats, LayerCost, Mixture
from htas.graph.arch import Arch
from htas.graph.layer import Layer
from htas.spaces.space import Space

if TYPE_CHECKING:
    from htas.graph import Network
    from htas.graph.network import Step


@dataclass(frozen=True)
class MacsCost(CostModel):
    """Multiply-adds for one image. The expectation multiplies those of input and output widths, as in TAS."""

    network: "Network"
    unit: str = "MACs"

    def cost(self, arch: Arch) -> float:
        """Multiply-adds, projections included."""
        return float(self.network.macs(arch))

    def expected(self, space: Space, widths: Mapping[str, Tensor], depths: Mapping[str, Tensor]) -> Tensor:
        """Multiply-adds; projections, which exist only where widths differ, are left out as in TAS."""
        mean = {site: expectation(space.widths[site], widths[site]) for site in space.widths}
        stays = {
            name: by_block(space.depths[name], depths[name], site.base) for name, site in self.network.depths.items()
        }
        total: Any = 0.0
        for step in self.network.flow(mean.__getitem__, stays.__getitem__):
            layer = step.node.layer
            if layer is None or step.node.kind not in ("conv", "grouped", "fixed"):
                continue
            height, width = layer.output_size
            over = layer.size[0] * layer.size[1] if layer.op == "conv_transpose" else height * width
            if step.node.kind == "fixed":
                total = total + step.kept * layer.macs
                continue
            inputs = layer.each if step.node.kind == "grouped" else step.given / layer.groups
            each = layer.kernel[0] * layer.kernel[1] * inputs * over + layer.bias * height * width
            total = total + step.kept * each * step.channels
        return torch.as_tensor(total)


@dataclass(frozen=True)
class CountCost(LayerCost):
    """Multiply-adds for one image, or trainable parameters."""

    count: Literal["macs", "params"] = "macs"
    unit: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "unit", {"macs": "MACs", "params": "parameters"}[self.count])

    def cost(self, arch: Arch) -> float:
        """As the network counts them, projections included."""
        return float(getattr(self.network, self.count)(arch))

    def values(self, template: Layer, inputs: Sequence[int], outputs: Sequence[int]) -> Floats:
        """As the layer counts them."""
        return np.array([[getattr(template.sized(i, o), self.count) for o in outputs] for i in inputs], float)

    def template(self, step: "Step") -> Layer | None:
        """Parameters of a norm are counted where it stands, and those of a projection with it."""
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
        """What is no layer of ours is counted where its block is kept."""
        total = super().expected(space, widths, depths)
        stays = {name: by_block(space.depths[name], depths[name], s.base) for name, s in self.network.depths.items()}
        for step in self.network.flow(lambda site: Mixture({site: 1.0}), stays.__getitem__):
            own = getattr(step.node, self.count)
            if step.node.kind == "fixed" and own:
                total = total + step.kept * own
        return total
