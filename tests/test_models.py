"""What every model family owes, over every file of the folder; the CIFAR ResNets in particular."""

import dataclasses

import pytest
import torch
from torch import nn

from htas import models
from htas.graph import resize, trace
from htas.models import ModelFamily
from htas.models.cifar_resnet import CifarResNet
from htas.networks import build
from htas.plugins import find, names

FAMILIES = names(models)


def default(name: str) -> ModelFamily:
    return find(models, ModelFamily, name)()  # type: ignore[type-abstract]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_a_frozen_dataclass_that_documents_its_options(name: str) -> None:
    family = default(name)
    assert dataclasses.is_dataclass(family) and family.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert type(family).__doc__


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_builds_networks_that_can_be_traced_and_resized(name: str) -> None:
    module = default(name).build(7)
    images = torch.randn(2, 3, 32, 32)
    assert module(images).shape == (2, 7)
    network = trace(module.eval(), images[:1])
    assert network.widths
    assert torch.equal(resize(network, network.base)(images), module(images))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_title_of_a_family_names_it(name: str) -> None:
    family = default(name)
    built, named = family.build(10), build(family.title, 10)
    assert [tuple(p.shape) for p in built.parameters()] == [tuple(p.shape) for p in named.parameters()]
    assert family.member(1) and family.member(1) != family.member(2)


@pytest.mark.parametrize("name", FAMILIES)
def test_reset_draws_every_weight_anew_and_repeats_under_a_seed(name: str) -> None:
    family = default(name)
    module = family.build(10)
    drawn = []
    for _ in range(2):
        for value in module.state_dict().values():
            value.fill_(3)
        torch.manual_seed(5)
        family.reset(module)
        drawn.append({key: value.clone() for key, value in module.state_dict().items()})
    for key, value in drawn[0].items():
        assert not (value == 3).all(), key
        assert torch.equal(value, drawn[1][key]), key


def test_the_weights_are_drawn_as_tas_draws_them() -> None:
    module = CifarResNet(20).build(10)
    wide = module.get_submodule("stages.2.2.conv2.conv")
    assert isinstance(wide, nn.Conv2d)
    assert float(wide.weight.detach().std()) == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.03)  # fan out
    classifier = module.get_submodule("classifier")
    assert isinstance(classifier, nn.Linear)
    assert float(classifier.weight.detach().std()) == pytest.approx(0.01, rel=0.15)
    assert not classifier.bias.any()
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    assert all(bool((norm.weight == 1).all()) and not norm.bias.any() for norm in norms)


def test_the_base_shortcuts_are_those_of_tas() -> None:
    basic = CifarResNet(14).build(10)
    kinds = [type(part) for part in basic.get_submodule("stages.1.0.shortcut").children()]
    assert kinds == [nn.AvgPool2d, nn.Conv2d]
    assert isinstance(basic.get_submodule("stages.0.0.shortcut"), nn.Identity)
    deep = CifarResNet(11, "bottleneck").build(10)
    assert isinstance(deep.get_submodule("stages.0.0.shortcut.norm"), nn.BatchNorm2d)


def test_the_names_of_bottleneck_networks_say_so() -> None:
    assert CifarResNet(20).title == "cifar_resnet:20"
    assert CifarResNet(164, "bottleneck").title == "cifar_resnet:164:bottleneck"
    assert CifarResNet(20).member(2) == "cifar_resnet:14"
    assert CifarResNet(29, "bottleneck").member(2) == "cifar_resnet:20:bottleneck"


@pytest.mark.parametrize(
    ("depth", "block"), [(2, "basic"), (21, "basic"), (-4, "basic"), (2, "bottleneck"), (32, "bottleneck")]
)
def test_a_depth_that_does_not_fit_its_block_is_refused(depth: int, block: str) -> None:
    each = 6 if block == "basic" else 9
    with pytest.raises(ValueError, match=rf"must be {each}n \+ 2 with block = '{block}' .*got {depth}$"):
        CifarResNet(depth, block)  # type: ignore[arg-type]
