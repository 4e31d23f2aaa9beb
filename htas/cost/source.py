"""The cost models of one network on one target, by metric."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from htas import metrics
from htas.cost.calibrate import cost_model
from htas.cost.counts import CountCost
from htas.cost.fit import CalibrationRecord
from htas.cost.model import CostModel
from htas.cost.peak import PeakCost, peak_cost
from htas.cost.tables import MetricSum, TableCost
from htas.graph import Network
from htas.metrics import Metric
from htas.plugins.contract import need
from htas.timing.target import Target


@dataclass(frozen=True)
class NetworkCosts:
    """Builds each cost model when it is first needed; a metric chooses which (`Metric.cost`)."""

    network: Network
    target: Target
    calibration: Callable[[], CalibrationRecord]
    """Reads what the calibration wrote, cost.json."""

    def by(self, metric: str) -> CostModel:
        """The cost of an arch by a metric's name; raises UserError where there is no such metric."""
        kind = metrics.named(metric)
        model = kind.cost(self)
        need(model, CostModel, f"{kind.__module__}:{kind.__qualname__}.cost()")
        return model

    @cached_property
    def latency(self) -> TableCost:
        """Seconds: the table of layers, calibrated on whole networks."""
        return cost_model(self.network, self.calibration())

    def fitted(self, metric: type[Metric]) -> TableCost:
        """In the metric's unit, by its fit in cost.json."""
        return cost_model(self.network, self.calibration(), metrics.name_of(metric))

    def counted(self, figure: Literal["macs", "params"]) -> CountCost:
        """Multiply-adds of one image, or trainable parameters."""
        return CountCost(self.network, figure)

    def summed(self, metric: type[Metric]) -> MetricSum:
        """The sum of a metric's figures of single layers."""
        return MetricSum(self.network, metric(self.target))

    @cached_property
    def memory(self) -> PeakCost:
        """Bytes of activations that a batch has alive at once."""
        return peak_cost(self.network, self.target)
