"""Layers that compute their weight from other parameters, and parameters that no layer draws, at other widths."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from htas.graph import Arch, Network, resize, trace
from htas.graph.order import ordered

IMAGES = torch.zeros(2, 3, 9, 9)
WRAPS = pytest.mark.parametrize("wrap", [weight_norm, spectral_norm])


class Chain(nn.Module):
    """Three convolutions, one of them within its channels, and a classifier."""

    def __init__(self, wrap: Callable[[nn.Module], nn.Module] = lambda layer: layer) -> None:
        super().__init__()
        self.one = wrap(nn.Conv2d(3, 6, 3, padding=1))
        self.apart = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.two = wrap(nn.Conv2d(6, 8, 3, padding=1))
        self.last = nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        maps = F.relu(self.two(F.relu(self.apart(F.relu(self.one(images))))))
        return self.last(maps.mean((2, 3)))


class Bank(nn.Module):
    """A convolution by a parameter of its own, and a scale."""

    def __init__(self) -> None:
        super().__init__()
        self.filters = nn.Parameter(torch.randn(8, 6, 3, 3) * 0.1)
        self.scale = nn.Parameter(torch.full((1, 8, 1, 1), 0.5))

    def forward(self, maps: Tensor) -> Tensor:
        return F.relu(F.conv2d(maps, self.filters)) * self.scale


def at(network: Network, factor: float) -> nn.Module:
    widths = {name: site.near(factor * site.base) for name, site in network.widths.items()}
    return resize(network, Arch(widths, network.base.depths))


def different(weight: Tensor) -> int:
    """The number of filters that are not the same."""
    return len(torch.unique(weight.detach().flatten(1), dim=0))


@WRAPS
def test_new_filters_of_a_computed_weight_differ(wrap: Callable[[nn.Module], nn.Module]) -> None:
    module = Chain(wrap).eval()
    network = trace(module, IMAGES)
    assert {"one", "two"} <= set(network.widths)
    wide, narrow = at(network, 2), at(network, 0.5)
    for name in ("one", "two"):
        layer, base = wide.get_submodule(name), module.get_submodule(name)
        assert len(layer.weight) == 2 * len(base.weight) == layer.out_channels  # type: ignore[arg-type, operator]
        assert different(layer.weight) == len(layer.weight)  # type: ignore[arg-type]
        steps = base.parametrizations.weight  # type: ignore[union-attr]
        old = steps.original if wrap is spectral_norm else steps.original1  # type: ignore[union-attr]
        new = layer.parametrizations.weight.get_parameter("original" if wrap is spectral_norm else "original1")  # type: ignore
        assert torch.equal(new[: len(old), : old.shape[1]], old)  # type: ignore[index, arg-type]
        if wrap is spectral_norm:
            assert float(torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2)) == pytest.approx(1, abs=0.1)  # type: ignore
    assert narrow.get_submodule("one").out_channels == 3
    assert wide(IMAGES).shape == narrow(IMAGES).shape == (2, 4)
    assert torch.equal(at(network, 1)(IMAGES), module(IMAGES))


def test_new_filters_of_a_parameter_that_no_layer_draws_differ() -> None:
    bank, last = Bank(), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    network = trace(nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), bank, last).eval(), IMAGES)
    wide = at(network, 2)
    filters, base = wide.get_parameter("2.filters"), bank.filters
    assert len(filters) == 16 and different(filters) == 16
    assert torch.equal(filters[:8, :6], base)
    assert float(filters.detach()[8:].std()) == pytest.approx(float(base.detach().std()), rel=0.2)
    assert bool((wide.get_parameter("2.scale") == 0.5).all()), "what is the same for all channels stays so"


def test_a_plain_network_at_other_widths_draws_what_it_drew() -> None:
    network = trace(Chain().eval(), IMAGES)
    torch.manual_seed(0)
    wide = at(network, 2)
    torch.manual_seed(0)
    for name in ("one", "apart", "two"):
        layer = wide.get_submodule(name)
        twin = nn.Conv2d(layer.in_channels, layer.out_channels, 3, groups=layer.groups)  # type: ignore[arg-type]
        rows = len(twin.weight) // 2
        assert torch.equal(layer.weight[rows:], twin.weight[rows:])  # type: ignore[index, arg-type]


@WRAPS
def test_the_most_important_channels_of_a_computed_weight_come_first(wrap: Callable[[nn.Module], nn.Module]) -> None:
    layers = [nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)]
    sizes = torch.tensor([3.0, 5.0, 1.0, 6.0, 2.0, 4.0])
    with torch.no_grad():
        layers[0].weight.copy_(torch.randn(1, 3, 3, 3) * sizes[:, None, None, None])
    module = nn.Sequential(*map(wrap, layers), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()
    with torch.no_grad():
        for layer in module[1:3]:  # type: ignore[attr-defined]
            layer.weight = torch.randn(1, 1, 3, 3).expand(layer.weight.shape).clone()
    images = torch.randn(2, 3, 9, 9)
    clone = ordered(module, images)
    norms = clone.get_submodule("0").weight.detach().flatten(1).norm(dim=1)  # type: ignore[operator, union-attr]
    assert torch.equal(norms, norms.sort(descending=True).values)
    assert torch.allclose(clone(images), module(images), atol=1e-5)
