"""Shortcuts with projections, in networks that torch.fx cannot follow."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from htas.graph import Arch, Network, resize, trace

SHAPE = (2, 3, 8, 8)


def layers(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


class ByPython(nn.Module):
    """Branches on sizes, parts of channels, a loop, a constant, outputs by name, and dropout by a function."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = layers(3, 8), layers(8, 8), layers(4, 8)
        self.blocks, self.last = nn.ModuleList([layers(8, 8), layers(8, 8)]), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Any:
        if x.shape[2] % 4:
            raise ValueError("a size that is no multiple of four")
        x = self.stem(x)
        x = x + self.one(x)
        left, right = x.chunk(2, 1)
        x = torch.cat([left, right * torch.tensor(2.0)], 1)
        for block in self.blocks:
            x = x + block(x)
        x = F.dropout(x.view(x.size(0), x.size(1), -1).mean(-1), 0.5, self.training)
        return {"logits": self.last(x), "features": [x]}


def by_halves(network: Network) -> Arch:
    """Every other site at half of its width."""
    widths = {
        name: site.base // 2 if number % 2 else site.base for number, (name, site) in enumerate(network.widths.items())
    }
    return Arch(widths, network.base.depths)


def test_a_network_with_python_in_its_forward_gets_projections() -> None:
    network = trace(ByPython(), torch.randn(SHAPE), adds="project")
    arch = by_halves(network)
    small = resize(network, arch)
    names = [name for name, _ in small.named_modules() if name.endswith(("project", "project2", "project3"))]
    assert names == [step.node.name for step in network.steps(arch) if step.node.kind == "project" and step.layer]
    assert names
    assert sum(each.numel() for each in small.parameters()) == network.params(arch)
    inputs = torch.randn(3, *SHAPE[1:])
    outputs = small.eval()(inputs)
    assert list(outputs) == ["logits", "features"]
    assert torch.equal(outputs["logits"], small(inputs)["logits"])
    assert not torch.equal(small.train()(inputs)["logits"], small(inputs)["logits"])
    sum(each.sum() for each in tree_leaves(small(inputs))).backward()


def test_at_base_widths_it_is_the_network_itself() -> None:
    module = ByPython().eval()
    network = trace(module, torch.randn(SHAPE), adds="project")
    resized, inputs = resize(network, network.base), torch.randn(SHAPE)
    assert type(resized) is ByPython
    assert torch.allclose(resized(inputs)["logits"], module(inputs)["logits"])


class Turned(nn.Module):
    """What comes out of a block is added to it with its channels turned around."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.last = layers(3, 8), layers(8, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.last((x.flip(1) + self.block(x)).mean((2, 3)))


def test_channels_that_meet_in_another_order_are_not_searched_apart() -> None:
    network = trace(Turned(), torch.randn(SHAPE), adds="project")
    assert "stem.0" not in network.sites
    assert "stem.0" in network.frozen


class TwoParts(nn.Module):
    """A shortcut of two layers' channels side by side: no projection can tell them."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.block, self.last = layers(3, 4), layers(3, 4), layers(8, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.one(x), self.two(x)], 1)
        return self.last((x + self.block(x)).mean((2, 3)))


def test_a_shortcut_of_two_layers_is_not_projected() -> None:
    network = trace(TwoParts(), torch.randn(SHAPE), adds="project")
    assert not any(node.kind == "project" for node in network.nodes)
    assert len(network.widths) == 2
