"""What a metric must keep."""

import pytest
import torch
from torch import nn

from htas import metrics
from htas.errors import UserError
from htas.graph.layer import Layer
from htas.metrics import Metric
from htas.plugins import find
from htas.timing.measurement import Measurement
from htas.timing.target import Target

CONV = Layer("conv", 3, 8, (8, 8), (3, 3), padding=(1, 1), norm=True, activation="relu")
TARGET = Target(batch=2, threads=1, shapes=((3, 8, 8),))


class MetricContract:
    """Inherit it in a class `TestMine` that sets `metric`, as `--metrics` names it: `module:Class`."""

    metric: str

    @pytest.fixture
    def plugin(self) -> Metric:
        """The metric on a CPU; one whose meter this machine lacks says so in a sentence, and is skipped."""
        metric: Metric = find(metrics, Metric, self.metric)(TARGET)  # type: ignore[type-abstract]
        return self.present(metric)

    @staticmethod
    def present(metric: Metric) -> Metric:
        """The metric, where this machine has what it needs."""
        try:
            assert metric.measure([]) == []
        except UserError as error:
            pytest.skip(str(error))
        return metric

    def test_it_measures_layers_and_networks_in_their_order(self, plugin: Metric) -> None:
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout()).train()
        before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
        random = torch.get_rng_state()
        measurements = plugin.measure([CONV, network, CONV])
        assert [type(each) for each in measurements] == [Measurement] * 3
        assert plugin.unit and {each.unit for each in measurements} == {plugin.unit}
        assert all(value > 0 for each in measurements for value in each.values)
        assert measurements[0] == measurements[2], "a case that stands twice in the list is measured once"
        assert network.training and not network._forward_hooks and not network[0]._forward_hooks
        assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())
        assert torch.equal(torch.get_rng_state(), random), "the process's random numbers have moved on"

    def test_it_samples_what_is_wanted_and_nothing_else(self, plugin: Metric) -> None:
        first, second, third = (Layer("conv", 3, outputs, (8, 8)) for outputs in (4, 8, 16))
        measurements = plugin.sample([first, second, third], [first], pending=lambda _: [first, third])
        assert set(measurements) == {first, third}
        assert {each.unit for each in measurements.values()} == {plugin.unit}
