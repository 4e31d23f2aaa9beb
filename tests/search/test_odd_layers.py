"""Supernets of layers that compute more than torch.nn's own: spectral norms, layer norms of maps, norms that read their
own weights, and parts that run without gradients."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from htas.graph import Arch, Network, resize, trace
from htas.search.draw import Draw
from htas.search.supernet import Supernet
from htas.spaces.space import Space

IMAGES = torch.zeros(2, 3, 8, 8)


class AbsoluteNorm(nn.BatchNorm2d):
    """As mapillary's: it scales by the size of its weight."""

    def forward(self, inputs: Tensor) -> Tensor:
        weight = self.weight.abs() + self.eps
        args = self.running_mean, self.running_var, weight, self.bias, self.training, 0.1, self.eps
        return F.leaky_relu(F.batch_norm(inputs, *args), 0.01)


class PenalisedNorm(nn.BatchNorm2d):
    """It keeps the sum of its scales for a loss."""

    def forward(self, inputs: Tensor) -> Tensor:
        self.penalty = self.weight.abs().sum()
        return super().forward(inputs)


class PlainNorm(nn.BatchNorm2d):
    """A subclass that adds nothing."""

    def forward(self, inputs: Tensor) -> Tensor:
        return F.relu(super().forward(inputs))


def network_of(*between: nn.Module, second: nn.Module | None = None) -> nn.Module:
    layers = (nn.Conv2d(3, 16, 3, padding=1), *between, nn.ReLU(), second or nn.Conv2d(16, 24, 3))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 4)).eval()


def halves(network: Network) -> Space:
    return Space("test", {name: (site.base // 2, site.base) for name, site in network.widths.items()}, {})


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "spectral norm": lambda: network_of(second=nn.utils.spectral_norm(nn.Conv2d(16, 24, 3))),
    "parametrization": lambda: network_of(second=nn.utils.parametrizations.spectral_norm(nn.Conv2d(16, 24, 3))),
    "layer norm of maps": lambda: network_of(nn.LayerNorm([16, 8, 8])),
    "layer norm of rows": lambda: network_of(nn.LayerNorm([8, 8])),
    "absolute norm": lambda: network_of(AbsoluteNorm(16)),
    "penalised norm": lambda: network_of(PenalisedNorm(16)),
    "plain norm": lambda: network_of(PlainNorm(16)),
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("norms", ["own", "shared"])
def test_a_supernet_computes_what_its_networks_do_and_trains(layer: str, norms: Any) -> None:
    torch.manual_seed(0)
    module = LAYERS[layer]()
    network = trace(module, IMAGES)
    space = halves(network)
    assert {site.base for site in network.widths.values()} == {16, 24}
    supernet = Supernet(network, space, lambda part: None, mix="pad", norms=norms)
    supernet.inherit(module)
    images = torch.randn(3, 3, 8, 8)
    for place in (0, 1) if layer not in ("spectral norm", "parametrization") else (1,):  # which divide by another sigma
        arch = Arch({name: widths[place] for name, widths in space.widths.items()}, {})
        narrow = resize(network, arch).eval()
        with torch.no_grad():
            torch.testing.assert_close(supernet.eval()(images, Draw.of(arch, network)), narrow(images))
    for place in (0, 1):
        arch = Arch({name: widths[place] for name, widths in space.widths.items()}, {})
        supernet.train()(images, Draw.of(arch, network)).square().sum().backward()
    grads = {name: tensor.grad for name, tensor in supernet.named_parameters()}
    assert all(grad is not None and grad.isfinite().all() for name, grad in grads.items() if name.startswith("body.0"))


class Quiet(nn.Module):
    """Its first layers run without gradients, a detached branch and others with them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 3)
        self.gate, self.head = nn.Linear(12, 12), nn.Linear(12, 4)

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            maps = F.relu(self.first(images))
            with torch.enable_grad():
                maps = maps * 1
        features = F.relu(self.second(maps)).mean((2, 3))
        return self.head(features * self.gate(features).sigmoid().detach())


def test_a_search_keeps_gradients_out_of_what_a_forward_keeps_them_out_of() -> None:
    module = Quiet().eval()
    network = trace(module, IMAGES)
    assert network.frozen["first"] == "Conv2d first runs without gradients (torch.no_grad)"
    assert "second" in network.widths
    supernet = Supernet(network, halves(network), lambda part: None, mix="pad", norms="shared")
    supernet.inherit(module)
    supernet.train()(torch.randn(3, 3, 8, 8), Draw.of(network.base, network)).sum().backward()
    learnt = {name.split(".")[1] for name, tensor in supernet.named_parameters() if tensor.grad is not None}
    assert learnt == {"second", "head"}
    assert torch.is_grad_enabled()


class Dropped(nn.Module):
    """A dropout by a function, so that training takes other steps, and a norm."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.first, self.norm, self.second, self.head = nn.Conv2d(3, 16, 3), norm, nn.Conv2d(16, 8, 3), nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        maps = F.dropout(self.norm(self.first(images)), 0.5, self.training)
        return self.head(self.second(maps).mean((2, 3)))


@pytest.mark.parametrize(("norm", "kind"), [(PlainNorm, "norm"), (AbsoluteNorm, "move"), (nn.BatchNorm2d, "norm")])
def test_a_norm_is_of_one_kind_in_training_too(norm: Callable[[int], nn.Module], kind: str) -> None:
    network = trace(Dropped(norm(16)).eval(), IMAGES)
    assert network.training is not None
    for nodes in (network.nodes, network.in_training.nodes):
        assert {node.name: node.kind for node in nodes}["norm" if norm is nn.BatchNorm2d else "norm:batch_norm"] == kind
    supernet = Supernet(network, halves(network), lambda part: None, mix="pad", norms="shared")
    supernet.inherit(network.module)
    supernet.train()(torch.randn(3, 3, 8, 8), Draw.of(network.base, network)).sum().backward()
