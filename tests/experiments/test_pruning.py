"""Torch-Pruning's widths become an arch whose network is the one that it left."""

from typing import Any

import pytest
import torch
from torch import nn

from htas.errors import UserError
from htas.experiments import pruning
from htas.experiments.arm_tables import Pruning
from htas.graph import Arch, Network, resize, trace
from htas.models.cifar_resnet import CifarResNet

FAMILY = CifarResNet(14)


@pytest.fixture
def network():
    return trace(FAMILY.build(10), torch.zeros(2, 3, 8, 8), adds="join", project_norm=FAMILY.project_norm)


def ranked(network) -> nn.Module:
    """The base network whose channels matter more the higher their number, by every criterion."""
    model = resize(network, network.base)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            rank = torch.linspace(0.1, 1, len(module.weight))
            nn.init.normal_(module.weight)
            with torch.no_grad():
                module.weight.mul_(rank.view(-1, 1, 1, 1) / module.weight.flatten(1).norm(dim=1).view(-1, 1, 1, 1))
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.bias, 0.0)
            with torch.no_grad():
                module.weight.copy_(torch.linspace(0.1, 1, len(module.weight)))
    return model


def prune(network: Network, model: nn.Module, ratio: float, **options: Any) -> tuple[Arch, nn.Module]:
    images = [(torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(3)), None)]
    how = Pruning(**options)
    importance = pruning.importance_of(how.criterion, images)
    return pruning.pruned(network, model, torch.zeros(2, 3, 8, 8), how, ratio, importance)


@pytest.mark.parametrize("criterion", pruning.CRITERIA)
def test_every_criterion_leaves_fewer_channels_the_more_is_pruned(criterion, network):
    model = ranked(network)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pairs = [prune(network, model, ratio, criterion=criterion) for ratio in (0.0, 0.3, 0.6)]
    archs = [arch for arch, _ in pairs]
    assert archs[0] == network.base
    assert network.params(archs[0]) > network.params(archs[1]) > network.params(archs[2])
    for arch in archs:
        assert resize(network, arch)(torch.zeros(2, 3, 8, 8)).shape == (2, 10)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_filters_that_are_small_beside_their_neighbours_are_pruned_first(network):
    """Eight of sixteen are a hundredth as large, and 2 % of all 336 channels are pruned: six, or seven."""
    model = resize(network, network.base)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight)
    with torch.no_grad():
        model.get_submodule("stages.0.0.conv1.conv").weight[:8] *= 0.01
    arch, _ = prune(network, model, 0.02)
    assert arch.widths["stages.0.0.conv1.conv"] in (9, 10)
    others = {site: width for site, width in arch.widths.items() if site != "stages.0.0.conv1.conv"}
    assert others == {site: network.base.widths[site] for site in others}


@pytest.mark.parametrize("criterion, scope", [("l1", "global"), ("l1", "local"), ("thinet", "local")])
def test_the_weights_that_are_left_are_those_of_the_network_of_the_arch(criterion, scope, network):
    arch, left = prune(network, ranked(network), 0.5, criterion=criterion, scope=scope, round_to=4)
    assert all(width % 4 == 0 for width in arch.widths.values()) and arch != network.base
    model, images = resize(network, arch).eval(), torch.randn(3, 3, 8, 8)
    model.load_state_dict(left.state_dict())
    assert torch.allclose(model(images), left(images), atol=1e-6)


def test_a_local_scope_prunes_every_layer_alike(network):
    arch, _ = prune(network, ranked(network), 0.5, scope="local")
    assert all(width == network.base.widths[site] // 2 for site, width in arch.widths.items())


@pytest.mark.parametrize(
    "options, message",
    [
        ({"criterion": "l2"}, "criterion of prune must be one of l1, bn-scale"),
        ({"scope": "all"}, "scope of prune must be one of global"),
        ({"criterion": "thinet", "scope": "global"}, "scope of prune cannot be global with thinet"),
        ({"round_to": 0}, "round_to of prune must be a whole number, 1 or more, got 0"),
        ({"round_to": "8"}, "round_to of prune must be a whole number, 1 or more, got '8'"),
        ({"weights": "some"}, "weights of prune must be one of new"),
    ],
)
def test_how_to_prune_is_checked(options, message):
    with pytest.raises(UserError, match=message):
        Pruning(**options)


def test_thinet_compares_channels_of_one_layer_where_nothing_else_is_asked_for():
    assert str(Pruning("thinet")) == str(Pruning("thinet", "local")) == "thinet, local"
    assert str(Pruning("l1")) == str(Pruning("l1", "global")) == "l1"
