"""What is checked of a traced network: each check finds the fault that it is for."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from timm.layers import ScaledStdConv2d
from torch import nn

from htas.errors import UserError
from htas.graph import Arch, Network, resize, trace, verify
from htas.spaces.design import Design, spaces
from htas.spaces.layers import widths_of

EXAMPLES = (torch.zeros(2, 3, 8, 8),)


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(96, 4)]
    return trace(nn.Sequential(*layers), EXAMPLES)


def test_a_network_that_is_right_passes_every_check(network):
    sites = list(network.sites)
    assert len(sites) == 2
    assert verify.failure(network, EXAMPLES, sites, trains=True) == ""
    assert verify.permuted(network, EXAMPLES, sites) == ""
    assert verify.planted(network, EXAMPLES, sites) == ""


def test_weights_that_are_not_those_of_the_whole_network_are_found(network, monkeypatch):
    def other(of: Network, arch: Arch) -> nn.Module:
        small = resize(of, arch)
        with torch.no_grad():
            small.get_parameter("2.weight").add_(0.1)
        return small

    monkeypatch.setattr(verify, "resize", other)
    assert verify.planted(network, EXAMPLES, list(network.sites)).startswith("computes something else than the whole")


def test_channels_that_are_told_of_at_another_place_are_found(network):
    layouts = {**network.layouts, "2.weight": (None, network.layouts["2.weight"][1], None, None)}
    wrong = replace(network, layouts=layouts)
    assert verify.permuted(wrong, EXAMPLES, ["2"]).startswith("computes something else when")
    assert verify.failure(wrong, EXAMPLES, ["2"], trains=False) != ""


class Turned(nn.Module):
    """Its output has channels where others have images."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 5, 1)

    def forward(self, images):
        return torch.relu(self.last(self.first(images)).mean((2, 3)).transpose(0, 1))


def test_frozen_channels_in_the_place_of_images_are_no_fault():
    network = trace(Turned(), torch.zeros(2, 3, 8, 8))
    assert list(network.widths) == ["first"]
    narrow = resize(network, Arch({"first": 3}, {}))
    assert narrow(torch.zeros(4, 3, 8, 8)).shape == (5, 4)


class Standardised(nn.Conv2d):
    """Weights over their deviation, as weight standardisation has them: of a single one there is none."""

    def forward(self, images):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / weight.flatten(1).std(1).view(-1, 1, 1, 1)
        return F.conv2d(images, weight, self.bias)


def normed(layer: nn.Module) -> nn.Module:
    """A network whose second convolution is `layer`."""
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), layer, nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 4))


STARVED = {"gives nan": Standardised(8, 6, 1), "fails in training": ScaledStdConv2d(8, 6, 1)}


@pytest.mark.parametrize("name", STARVED)
def test_a_site_that_one_channel_starves_has_a_least_width(name):
    torch.manual_seed(0)
    network = trace(normed(STARVED[name]), EXAMPLES)
    site = network.widths["0"]
    assert (site.least, site.near(0.4), site.near(3)) == (2, 2, 3)
    assert widths_of(site, 1.0) == range(2, 9)
    with pytest.raises(UserError, match="the width of 0 must be 2 or more, as steps of the network need, got 1"):
        network.check(Arch({**network.base.widths, "0": 1}, {}))
    space = spaces(network, {}, Design(spaces=("explicit",), widths={"8": [2, 8], "6": [2, 6]}))["explicit"]
    assert space.widths["0"] == (2, 8)
    with pytest.raises(UserError, match=r"the choices of 0 in design.widths must be at least 2, got 1"):
        spaces(network, {}, Design(spaces=("explicit",), widths={"8": [1, 8], "6": [2, 6]}))
    small = resize(network, Arch({name: each.least for name, each in network.widths.items()}, {})).train()
    assert small(torch.randn(3, 3, 8, 8)).isfinite().all()


def test_a_site_that_nothing_starves_may_have_one_channel(network):
    assert {site.least for site in network.widths.values()} == {1}
    assert verify.starved(network, EXAMPLES, list(network.widths), trains=True) == ""
