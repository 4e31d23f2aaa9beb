"""Limits that a network must keep, as numbers."""

from collections.abc import Mapping
from dataclasses import dataclass

from htas import metrics
from htas.cost.constraints import Constraints, parse
from htas.cost.model import CostModel
from htas.graph.arch import Arch
from htas.metrics import Metric


@dataclass(frozen=True)
class Limit:
    """One constraint as a number."""

    metric: str
    text: str
    """As the user wrote it: "50%", "8 ms"."""
    cost: CostModel
    most: float
    """In the cost's unit."""

    @property
    def kind(self) -> type[Metric]:
        """The class of the metric, which says how the limit is checked."""
        return metrics.named(self.metric)

    @property
    def relative(self) -> bool:
        """Whether it is a share of the base network's cost."""
        return self.text.rstrip().endswith("%")

    def ratio(self, arch: Arch) -> float:
        """The cost of an arch over the limit: at most 1 if the limit is kept."""
        return self.cost.cost(arch) / self.most


def limits(constraints: Constraints, costs: Mapping[str, CostModel], base: Arch) -> tuple[Limit, ...]:
    """The constraints as numbers, of the metrics that `costs` has a cost model for."""
    return tuple(
        Limit(metric, text, costs[metric], parse(metric, text, costs[metric].cost(base)))
        for metric, text in constraints.by_metric.items()
        if metric in costs
    )
