"""What is checked of a traced network: each check finds the fault that it is for."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from htas.graph import Arch, Network, resize, trace, verify

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
