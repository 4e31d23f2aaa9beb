"""Counts by hand and by PyTorch's own counter; latencies of a scripted runtime."""

from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import htas.metrics
from htas.bench import HostTimer, Timer
from htas.layer import Layer
from htas.measurement import Measurement
from htas.metrics import Metric
from htas.metrics.latency import Latency
from htas.metrics.macs import Macs, count_macs
from htas.metrics.params import Params, count_params
from htas.plugins import find, names
from htas.runtimes import Program, Runtime
from htas.target import Target

CONV = Layer("conv", 3, 8, (8, 8), (3, 3), padding=(1, 1), norm=True, activation="relu")
TARGET = Target(batch=2, threads=1, image=(3, 8, 8))
NETWORK = nn.Sequential(
    nn.Conv2d(3, 8, 3, padding=1, bias=False),
    nn.BatchNorm2d(8),
    nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=4),
    nn.ReLU(),
    nn.ConvTranspose2d(8, 4, 2, stride=2),
    nn.AdaptiveAvgPool2d(1),
    nn.Flatten(),
    nn.Linear(4, 10),
)
BIASES = 8 * 4 * 4 + 4 * 8 * 8 + 10  # one per output of the second, third and last operator


@dataclass(frozen=True)
class Scripted(Runtime):
    """A layer takes a millisecond per output channel; `ran` notes what was compiled."""

    def compile(self, model: nn.Module, example: tuple[Tensor, ...]) -> Program:
        compiled.append(example[0].clone())
        return Program(lambda: tick(0.5), model)

    def compile_layer(self, layer: Layer) -> Program:
        compiled.append(layer)
        return Program(lambda: tick(layer.outputs / 1e3), layer.build())

    def describe(self) -> Mapping[str, str]:
        return {"scripted": "1.0"}

    def timer(self) -> Timer:
        return HostTimer(clock=lambda: now)


now = 0.0
compiled: list[Layer | Tensor] = []


def tick(seconds: float) -> None:
    global now
    now += seconds


@pytest.fixture
def scripted() -> Latency:
    compiled.clear()
    return Latency(Target(runtime=f"{__name__}:Scripted", batch=2, image=(3, 8, 8)), rounds=4)


def wide(outputs: int) -> Layer:
    return Layer("conv", 3, outputs, (8, 8))


@pytest.mark.parametrize("name", names(htas.metrics))
def test_a_metric_measures_layers_and_networks_in_their_order(name):
    metric = find(htas.metrics, Metric, name)(TARGET)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout()).train()
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    draws = torch.get_rng_state()
    found = metric.measure([CONV, network, CONV])
    assert [type(each) for each in found] == [Measurement] * 3
    assert {each.unit for each in found} == {metric.unit}
    assert all(value > 0 for each in found for value in each.values)
    assert found[0] == found[2]
    assert network.training and not network._forward_hooks and not network[0]._forward_hooks
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), draws)


@pytest.mark.parametrize("name", names(htas.metrics))
def test_a_metric_of_nothing_is_nothing(name):
    assert find(htas.metrics, Metric, name)(TARGET).measure([]) == []


def test_latencies_come_back_in_the_order_of_the_cases(scripted):
    found = scripted.measure([wide(7), wide(3), nn.Identity()])
    assert [each.median for each in found] == pytest.approx([0.007, 0.003, 0.5])
    assert [len(each.values) for each in found] == [4, 4, 4]


def test_the_same_layer_given_twice_is_measured_once(scripted):
    first, _, second = scripted.measure([wide(7), wide(3), wide(7)])
    assert first is second
    assert compiled == [wide(7), wide(3)]


def test_a_network_is_given_images_of_the_targets_batch_drawn_from_the_seed(scripted):
    scripted.measure([nn.Identity()])
    scripted.measure([nn.Identity()])
    assert compiled[0].shape == (2, 3, 8, 8)
    assert torch.equal(compiled[0], compiled[1])


def test_a_survey_is_one_call_and_its_context_says_where_readings_come_from(scripted):
    first, second = scripted.measure([wide(7), wide(3)])
    (later,) = scripted.measure([wide(3)])
    assert first.survey == second.survey != later.survey
    assert len(first.survey) == 12
    date = first.context["date"]
    assert date.endswith("+00:00")
    assert first.context == {
        "scripted": "1.0",
        "device": "cpu",
        "runtime": f"{__name__}:Scripted",
        "precision": "fp32",
        "batch": "2",
        "threads": str(scripted.target.threads),
        "image": "3x8x8",
        "date": date,
    }


def test_rounds_are_announced(scripted):
    heard = []
    scripted.measure([wide(3)], on_round=lambda done, of: heard.append((done, of)))
    assert heard == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize(("option", "value"), [("rounds", 0), ("reading", 0.0)])
def test_a_wrong_option_of_latency_is_refused(option, value):
    with pytest.raises(ValueError, match=rf"latency\.{option} must be .*, got {value}"):
        Latency(TARGET, **{option: value})


def test_macs_of_a_network_worked_out_by_hand():
    by_hand = (
        8 * 8 * 8 * 27  # 8x8 outputs of 8 channels, 3x3x3 weights each
        + 8 * 4 * 4 * (9 * 2)  # four groups of two channels
        + 8 * 4 * 4 * (4 * 4)  # transposed: every input meets 2x2 weights of 4 channels
        + 4 * 10
        + BIASES
    )
    assert count_macs(NETWORK, (3, 8, 8)) == by_hand


def test_macs_agree_with_pytorchs_own_counter_and_a_bias_per_output():
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        NETWORK(torch.zeros(1, 3, 8, 8))
    assert count_macs(NETWORK, (3, 8, 8)) == counter.get_total_flops() // 2 + BIASES


def test_a_module_used_twice_counts_twice_and_its_parameters_once():
    linear = nn.Linear(3, 3)
    twice = nn.Sequential(linear, linear)
    assert count_macs(twice, (3,)) == 2 * (3 * 3 + 3)
    assert count_params(twice) == 3 * 3 + 3


@pytest.mark.parametrize(
    "layer",
    [
        CONV,
        Layer("conv", 6, 4, (9, 7), (3, 1), (2, 1), (1, 0), groups=2, bias=True),
        Layer("linear", 7, 5, (1, 1), bias=True),
        Layer("max_pool", 4, 4, (8, 8), (2, 2), (2, 2)),
    ],
    ids=lambda layer: layer.op,
)
def test_a_layer_counts_as_much_as_the_module_it_builds(layer):
    image = (layer.inputs,) if layer.op == "linear" else (layer.inputs, *layer.size)
    target = Target(image=image)
    for metric in (Macs(target), Params(target)):
        key, built = metric.measure([layer, layer.build()])
        assert key.values == built.values


def test_frozen_parameters_are_not_counted():
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5))
    network[0].requires_grad_(False)
    assert count_params(network) == 4 * 5 + 5
