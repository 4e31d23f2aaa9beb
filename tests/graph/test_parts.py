"""Channels that stand in parts: of shuffles, of attention's heads, of groups with one channel each."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from htas.graph import Network, ordered, resize, trace
from htas.graph.arch import Arch

IMAGES = (2, 3, 8, 8)


class Shuffled(nn.Module):
    """Half of the channels is changed, then both halves are shuffled (Ma et al. 2018); 6, 3 and 1.5 pairs of halves."""

    def __init__(self, blocks: int = 3) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 6, 1)
        self.blocks = nn.ModuleList(nn.Conv2d(6, 6, 3, padding=1) for _ in range(blocks))
        self.last = nn.Linear(12, 4)

    @staticmethod
    def shuffle(x: Tensor) -> Tensor:
        images, channels, height, width = x.shape
        return x.view(images, 2, channels // 2, height, width).transpose(1, 2).reshape(images, channels, height, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.shuffle(torch.cat([self.left(x), self.right(x)], 1))
        for block in self.blocks:
            stays, changes = x.chunk(2, 1)
            x = self.shuffle(torch.cat([stays, F.relu(block(changes))], 1))
        return self.last(x.mean((2, 3)))


class Attentive(nn.Module):
    """Two heads over the pixels; `across`: over the channels, as in XCiT (Ali et al. 2021)."""

    def __init__(self, across: bool) -> None:
        super().__init__()
        self.stem, self.qkv, self.proj = nn.Conv2d(3, 16, 1), nn.Linear(16, 48), nn.Linear(16, 16)
        self.across, self.last = across, nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        images, pixels, channels = x.shape
        qkv = self.qkv(x).reshape(images, pixels, 3, 2, channels // 2).permute(2, 0, 3, 1, 4)
        query, key, value = (each.transpose(-1, -2) if self.across else each for each in qkv.unbind(0))
        made = (query @ key.transpose(-1, -2)).softmax(-1) @ value
        made = made.permute(0, 3, 1, 2) if self.across else made.transpose(1, 2)
        return self.last((x + self.proj(made.reshape(images, pixels, channels))).mean(1))


class SingleGroups(nn.Module):
    """A group norm with a group for every channel, as a module or a function."""

    def __init__(self, called: bool) -> None:
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(3, 8, 3), nn.GroupNorm(8, 8), nn.Conv2d(8, 4, 1)
        self.groups, self.called = 8, called

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = self.norm(x) if self.called else F.group_norm(x, self.groups, self.norm.weight, self.norm.bias)
        return self.last(x).mean((2, 3))


class Residual(nn.Module):
    """A block that may be dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


def half(network: Network) -> Arch:
    widths = {name: site.near(site.base / 2) for name, site in network.widths.items()}
    return Arch(widths, network.base.depths)


NETWORKS: dict[str, Any] = {
    "shuffles": Shuffled,
    "attention": lambda: Attentive(False),
    "attention across channels": lambda: Attentive(True),
    "groups of one channel": lambda: SingleGroups(True),
    "groups of one channel, by number": lambda: SingleGroups(False),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_parts_are_free_and_narrower_networks_are_as_foretold(name: str) -> None:
    torch.manual_seed(0)
    module, images = NETWORKS[name]().eval(), torch.randn(IMAGES)
    network = trace(module, images[:1])
    assert all(
        node.site or node.name == "last" for node in network.nodes if node.kind == "conv" and len(node.layout.runs) == 1
    )
    assert network.widths
    small = resize(network, half(network)).eval()
    assert (
        sum(each.numel() for each in small.parameters()) == network.params(half(network)) < network.params(network.base)
    )
    with FlopCounterMode(display=False) as counter:
        small(images[:1])
    biases = sum(step.layer.outputs * step.layer.size[0] * step.layer.size[1] if step.layer.op == "linear" else
                 step.layer.outputs * step.layer.output_size[0] * step.layer.output_size[1]
                 for step in network.steps(half(network))
                 if step.layer and step.layer.macs and step.layer.bias)  # fmt: skip
    assert counter.get_total_flops() // 2 == network.macs(half(network)) - biases
    torch.testing.assert_close(ordered(module, images)(images), module(images), rtol=1e-4, atol=1e-5)


def test_shuffled_channels_do_not_change_places() -> None:
    network = trace(Shuffled().eval(), torch.randn(IMAGES))
    assert network.fixed_order == {"left"}
    assert network.widths["left"].producers == ("left", "right", "blocks.0", "blocks.1", "blocks.2")


def test_the_last_block_of_a_depth_site_is_checked_narrower(monkeypatch: pytest.MonkeyPatch) -> None:
    from htas.graph import verify

    archs = []
    real = verify.resize
    monkeypatch.setattr(verify, "resize", lambda network, arch: archs.append(arch) or real(network, arch))
    blocks = nn.Sequential(*(Residual() for _ in range(3)))
    network = trace(nn.Sequential(nn.Conv2d(3, 8, 1), blocks, nn.Conv2d(8, 4, 1)), torch.randn(IMAGES))
    assert network.depths
    assert {tuple(arch.depths.values()) for arch in archs} == {(3,), (2,)}


def test_unequal_parts_are_the_reason() -> None:
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.conv(x).split([3, 5], 1)[0])

    assert "makes unequal parts of them, of 3, 5 channels" in trace(Parts(), torch.randn(IMAGES)).frozen["conv"]
