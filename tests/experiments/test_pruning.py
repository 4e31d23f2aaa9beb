"""Torch-Pruning's widths become an arch whose network is the one that it left."""

import pytest
import torch
from torch import nn

from htas.experiments import pruning
from htas.graph import resize, trace
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


@pytest.mark.parametrize("criterion", pruning.CRITERIA)
def test_every_criterion_leaves_fewer_channels_the_more_is_pruned(criterion, network):
    model = ranked(network)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    archs = [pruning.pruned(network, model, torch.zeros(2, 3, 8, 8), criterion, ratio) for ratio in (0.0, 0.3, 0.6)]
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
    arch = pruning.pruned(network, model, torch.zeros(2, 3, 8, 8), "l1", 0.02)
    assert arch.widths["stages.0.0.conv1.conv"] in (9, 10)
    others = {site: width for site, width in arch.widths.items() if site != "stages.0.0.conv1.conv"}
    assert others == {site: network.base.widths[site] for site in others}


def test_an_unknown_criterion_is_refused(network):
    with pytest.raises(ValueError, match="no criterion of pruning called 'l2'"):
        pruning.pruned(network, FAMILY.build(10), torch.zeros(2, 3, 8, 8), "l2", 0.5)
