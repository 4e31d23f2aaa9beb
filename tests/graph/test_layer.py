"""Layers against the modules they build, and their keys."""

import json

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from htas.graph.layer import ACTIVATIONS, Layer, Template

CASES = {
    "plain": Layer("conv", 3, 8, (9, 7), (3, 3)),
    "strided": Layer("conv", 4, 6, (9, 8), (3, 5), stride=(2, 1), padding=(1, 2), dilation=(2, 1), bias=True),
    "grouped": Layer("conv", 4, 6, (5, 5), (3, 3), groups=2, norm=True),
    "depthwise": Layer("conv", 5, 5, (6, 6), (3, 3), padding=(1, 1), groups=5, norm=True, activation="relu6"),
    "linear": Layer("linear", 7, 3, (1, 1), bias=True),
    "normed linear": Layer("linear", 7, 3, (1, 1), norm=True, activation="gelu"),
    "max pool": Layer("max_pool", 4, 4, (9, 9), (3, 3), stride=(2, 2), padding=(1, 1)),
    "average pool": Layer("avg_pool", 4, 4, (8, 8), (2, 2), stride=(2, 2)),
    "global pool": Layer("global_pool", 4, 4, (8, 6)),
    "add": Layer("add", 4, 4, (5, 5), activation="relu"),
}


@pytest.mark.parametrize("layer", CASES.values(), ids=CASES)
def test_a_layer_says_what_its_module_does(layer: Layer) -> None:
    module, inputs = layer.build(), layer.example(2)
    with FlopCounterMode(display=False) as counter:
        output = module(*inputs)
    shape = (2, layer.outputs) if layer.op == "linear" else (2, layer.outputs, *layer.output_size)
    assert output.shape == shape
    biased = any(isinstance(part, nn.Conv2d | nn.Linear) and part.bias is not None for part in module.modules())
    assert layer.macs == counter.get_total_flops() // 4 + biased * output[0].numel()
    assert layer.params == sum(p.numel() for p in module.parameters())
    assert not module.training


@pytest.mark.parametrize("layer", CASES.values(), ids=CASES)
def test_a_key_reads_back_and_tells_layers_apart(layer: Layer) -> None:
    assert Layer.of(layer.key) == layer
    assert json.loads(layer.key)["layer"] == 1
    assert sum(other.key == layer.key for other in CASES.values()) == 1


@pytest.mark.parametrize("layer", CASES.values(), ids=CASES)
def test_a_template_reads_back_and_gives_its_layers(layer: Layer) -> None:
    for template in (layer.template, layer.curve_template):
        assert Template.of(template.key) == template
        assert template.at(layer.inputs, layer.outputs) == layer
        assert template.kind == layer.kind
    assert layer.curve_template.wide(layer.outputs) == layer
    assert layer.template == layer.template.at(2 * layer.inputs, 3 * layer.outputs).template


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_follows_the_norm(name: str) -> None:
    layer = Layer("conv", 2, 3, (4, 4), norm=True, activation=name)
    kinds = [type(part) for part in layer.build().children()]
    assert kinds == [nn.Conv2d, nn.BatchNorm2d, ACTIVATIONS[name]]


def test_an_add_takes_two_tensors_of_one_shape() -> None:
    one, two = CASES["add"].example(3)
    assert one.shape == two.shape == (3, 4, 5, 5)
    assert torch.equal(CASES["add"].build()(one, two), (one + two).relu())


def test_a_wider_layer_has_more_outputs_and_a_depthwise_one_more_of_all() -> None:
    assert CASES["grouped"].wide(9).outputs == 9
    assert CASES["grouped"].wide(9).inputs == 4
    wide = CASES["depthwise"].wide(9)
    assert (wide.inputs, wide.outputs, wide.groups) == (9, 9, 9)
    assert wide.wide(5) == CASES["depthwise"]
