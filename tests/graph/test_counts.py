"""Multiply-adds foretold are those that torch counts, where pixels, windows or steps of time count as images."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from one_in import one_in
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from htas.graph import Arch, Network, resize, trace
from htas.graph.layer import WEIGHTED


class Folded(nn.Module):
    """A stem, something between, and a head over the mean of all pixels, of any number of dimensions."""

    def __init__(self, dims: int, **parts: nn.Module) -> None:
        super().__init__()
        conv, norm = ((nn.Conv1d, nn.BatchNorm1d), (nn.Conv2d, nn.BatchNorm2d), (nn.Conv3d, nn.BatchNorm3d))[dims - 1]
        self.stem = nn.Sequential(conv(3, 8, 3, padding=1), norm(8), nn.ReLU())
        self.inner = nn.ModuleDict(parts)
        self.last = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.between(self.stem(x), **self.inner)
        return self.last(x.flatten(2).mean(2))

    def between(self, x: Tensor, **_: Any) -> Tensor:
        return x


def windows(x: Tensor, side: int) -> Tensor:
    """[N x windows, C, side, side]"""
    n, c, h, w = x.shape
    x = x.view(n, c, h // side, side, w // side, side)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(-1, c, side, side)


def joined(x: Tensor, images: int, height: int, width: int) -> Tensor:
    side, c = x.shape[2], x.shape[1]
    x = x.view(images, height // side, width // side, c, side, side)
    return x.permute(0, 3, 1, 4, 2, 5).reshape(images, c, height, width)


class WindowConvolution(Folded):
    def between(self, x: Tensor, conv: Any) -> Tensor:
        n, _, h, w = x.shape
        return joined(conv(windows(x, 4)), n, h, w)


class WindowMlp(Folded):
    """Tokens of windows, [N x windows, tokens, C], as Swin has them."""

    def between(self, x: Tensor, one: Any, two: Any) -> Tensor:
        n, c, h, w = x.shape
        tokens = windows(x, 4).flatten(2).transpose(1, 2)
        tokens = two(torch.relu(one(tokens)))
        return joined(tokens.transpose(1, 2).reshape(-1, c, 4, 4), n, h, w)


class WindowAttention(Folded):
    def between(self, x: Tensor, qkv: Any, out: Any) -> Tensor:
        n, c, h, w = x.shape
        tokens = windows(x, 4).flatten(2).transpose(1, 2)
        query, key, value = qkv(tokens).chunk(3, -1)
        tokens = out((query @ key.transpose(1, 2)).softmax(-1) @ value)
        return joined(tokens.transpose(1, 2).reshape(-1, c, 4, 4), n, h, w)


class Rows(Folded):
    """A linear layer over all pixels of all images, [N x pixels, C]."""

    def between(self, x: Tensor, one: Any, two: Any) -> Tensor:
        last = x.movedim(1, -1)
        rows = two(torch.relu(one(last.reshape(-1, last.shape[-1]))))
        return rows.view(*last.shape[:-1], -1).movedim(-1, 1)


class Frames(Folded):
    """[N, C, T, H, W], a convolution of two dimensions for each step of time."""

    def between(self, x: Tensor, conv: Any) -> Tensor:
        n, c, t, h, w = x.shape
        frames = conv(x.transpose(1, 2).reshape(-1, c, h, w))
        return frames.view(n, t, -1, h, w).transpose(1, 2)


class Pieces(Folded):
    """[N, C, T] in pieces of four steps."""

    def between(self, x: Tensor, conv: Any) -> Tensor:
        n, c, t = x.shape
        pieces = conv(x.view(n, c, t // 4, 4).transpose(1, 2).reshape(-1, c, 4))
        return pieces.view(n, t // 4, -1, 4).transpose(1, 2).reshape(n, -1, t)


class TimeLast(Folded):
    """Convolutions along one dimension of an image, whose rows count as images."""

    def between(self, x: Tensor, conv: Any) -> Tensor:
        n, c, h, w = x.shape
        rows = conv(x.transpose(1, 2).reshape(n * h, c, w))
        return rows.view(n, h, -1, w).transpose(1, 2)


class Patches(Folded):
    def between(self, x: Tensor, conv: Any) -> Tensor:
        n, c, _, _ = x.shape
        patches = x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5)
        out = conv(patches.reshape(-1, c, 4, 4))
        return out.view(n, -1, out.shape[1], 4, 4).transpose(1, 2).flatten(2)


class Shared(Folded):
    """A parameter for all images goes through layers of its own, as SwinV2's table of positions."""

    def __init__(self, dims: int, **parts: nn.Module) -> None:
        super().__init__(dims, **parts)
        self.table = nn.Parameter(torch.randn(12, 2))

    def between(self, x: Tensor, one: Any, two: Any) -> Tensor:
        return x * two(torch.relu(one(self.table))).mean(0)[None, :, None, None]


class Composed(Folded):
    """A weight that is a product of two."""

    def __init__(self) -> None:
        super().__init__(2)
        self.one, self.two = nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(4, 8))

    def between(self, x: Tensor) -> Tensor:
        return x * (self.one @ self.two).mean(0)[None, :, None, None]


class Bank(nn.Module):
    """Four weights of a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 8, 8, 3, 3))


class Dynamic(Folded):
    """A weight for each image, mixed of several, and all images' channels side by side (Yang et al. 2019)."""

    def between(self, x: Tensor, bank: Any, mix: Any) -> Tensor:
        n, c, h, w = x.shape
        mixed = mix(x.mean((2, 3))).softmax(1) @ bank.weight.flatten(1)
        out = nn.functional.conv2d(x.reshape(1, -1, h, w), mixed.view(n * 8, c, 3, 3), padding=1, groups=n)
        return out.view(n, 8, h, w)


class DynamicUp(Folded):
    """The same with a transposed convolution, as StyleGAN2 makes larger images."""

    def between(self, x: Tensor, style: Any, conv: Any) -> Tensor:
        n, c, h, w = x.shape
        weight = conv.weight.unsqueeze(0) * style(x.mean((2, 3))).view(n, c, 1, 1, 1)
        out = nn.functional.conv_transpose2d(x.view(1, -1, h, w), weight.flatten(0, 1), stride=2, groups=len(x))
        return out.unflatten(1, (n, 8)).squeeze(0)


class Correlated(Folded):
    """Each image with another of its own as a kernel, channel by channel (Li et al. 2018)."""

    def between(self, x: Tensor, conv: Any) -> Tensor:
        n, c, h, w = x.shape
        kernel = conv(x)[:, :, :3, :3]
        out = nn.functional.conv2d(x.view(1, n * c, h, w), kernel.reshape(n * c, 1, 3, 3), groups=n * c)
        return out.view(n, c, *out.shape[2:])


def square() -> dict[str, nn.Module]:
    return {"one": nn.Linear(8, 12), "two": nn.Linear(12, 8)}


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "convolution of windows": (lambda: WindowConvolution(2, conv=nn.Conv2d(8, 8, 3, padding=1)), (8, 12)),
    "without padding": (lambda: WindowConvolution(2, conv=nn.Conv2d(8, 8, 1)), (8, 8)),
    "within channels": (lambda: WindowConvolution(2, conv=nn.Conv2d(8, 8, 3, padding=1, groups=8)), (8, 8)),
    "turned": (lambda: WindowConvolution(2, conv=nn.ConvTranspose2d(8, 8, 3, padding=1)), (8, 8)),
    "strips": (lambda: WindowConvolution(2, conv=nn.Conv2d(8, 8, (1, 3), padding="same")), (8, 8)),
    "linear layers of windows": (lambda: WindowMlp(2, **square()), (8, 12)),
    "one window": (lambda: WindowMlp(2, **square()), (4, 4)),
    "attention of windows": (lambda: WindowAttention(2, qkv=nn.Linear(8, 24), out=nn.Linear(8, 8)), (8, 8)),
    "rows of pixels": (lambda: Rows(2, **square()), (6, 4)),
    "rows of steps": (lambda: Rows(1, **square()), (9,)),
    "rows of volumes": (lambda: Rows(3, **square()), (2, 4, 3)),
    "frames": (lambda: Frames(3, conv=nn.Conv2d(8, 8, 3, padding=1)), (3, 4, 6)),
    "pieces": (lambda: Pieces(1, conv=nn.Conv1d(8, 8, 3, padding=1)), (12,)),
    "rows that count as images": (lambda: TimeLast(2, conv=nn.Conv1d(8, 8, 3, padding=1)), (4, 6)),
    "patches": (lambda: Patches(2, conv=nn.Conv2d(8, 8, 3, padding=1, bias=False)), (8, 8)),
    "a weight for each image": (lambda: Dynamic(2, bank=Bank(), mix=nn.Linear(8, 4)), (4, 6)),
    "a weight for each image, turned": (
        lambda: DynamicUp(2, style=nn.Linear(8, 8), conv=nn.ConvTranspose2d(8, 8, 2, bias=False)),
        (4, 6),
    ),
    "an image for a kernel": (lambda: Correlated(2, conv=nn.Conv2d(8, 8, 3, padding=1)), (6, 6)),
    "a product of weights": (Composed, (4, 4)),
    "a table for all images": (lambda: Shared(2, one=nn.Linear(2, 6), two=nn.Linear(6, 8)), (4, 4)),
}


def counted(module: nn.Module, images: Tensor, layers: set[str]) -> float:
    """Multiply-adds of a pass; a bias of these layers counts as one for each output."""
    biases: list[int] = []

    def note(part: Any, _: Any, out: Tensor) -> None:
        biases.append(out.numel() if getattr(part, "bias", None) is not None else 0)

    for name, part in module.named_modules():
        if name in layers:
            part.register_forward_hook(note)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module.eval()(images)
    return counter.get_total_flops() / 2 + sum(biases)


def archs(network: Network) -> list[Arch]:
    rng = random.Random(0)
    drawn = [
        {name: rng.randint(2, site.base // site.multiple) * site.multiple for name, site in network.widths.items()}
        for _ in range(3)
    ]
    return [network.base, *(Arch(widths, network.base.depths) for widths in drawn)]


@pytest.mark.parametrize("images", one_in(3, [2, 1, 3]))
@pytest.mark.parametrize("name", NETWORKS)
def test_multiply_adds_foretold_are_those_of_a_pass(name: str, images: int) -> None:
    build, pixels = NETWORKS[name]
    network = trace(build(), torch.randn(images, 3, *pixels))
    for arch in archs(network):
        small = resize(network, arch)
        assert network.params(arch) == sum(each.numel() for each in small.parameters())
        layers = {node.module for node in network.nodes if node.layer is not None and node.layer.op in WEIGHTED}
        assert network.macs(arch) == counted(small, torch.randn(1, 3, *pixels), layers)
