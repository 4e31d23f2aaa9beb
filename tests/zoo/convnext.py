"""ConvNeXt: a convolutional network with the parts of a transformer."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import DropPath


class LayerNorm2d(nn.LayerNorm):
    """Layer normalisation over the channels of an image."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class Block(nn.Module):
    """Depthwise 7x7, layer normalisation, two linear layers over the channels, and a scale for each channel."""

    def __init__(self, dim: int, drop_path: float = 0.0, layer_scale: float = 1e-6) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, kernel_size=7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.act = nn.GELU()
        self.pwconv2 = nn.Linear(4 * dim, dim)
        self.layer_scale = nn.Parameter(layer_scale * torch.ones(dim))
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        x = self.dwconv(x)
        x = x.permute(0, 2, 3, 1)
        x = self.norm(x)
        x = self.pwconv1(x)
        x = self.act(x)
        x = self.pwconv2(x)
        x = self.layer_scale * x
        x = x.permute(0, 3, 1, 2)
        return shortcut + self.drop_path(x)


class ConvNeXt(nn.Module):
    """ConvNeXt (Liu et al., 2022)."""

    def __init__(
        self, depths: tuple[int, ...], dims: tuple[int, ...], drop_path_rate: float = 0.1, classes: int = 1000
    ) -> None:
        super().__init__()
        stem = nn.Sequential(nn.Conv2d(3, dims[0], kernel_size=4, stride=4), LayerNorm2d(dims[0], eps=1e-6))
        self.downsample_layers = nn.ModuleList([stem])
        for narrow, wide in pairwise(dims):
            self.downsample_layers.append(
                nn.Sequential(LayerNorm2d(narrow, eps=1e-6), nn.Conv2d(narrow, wide, kernel_size=2, stride=2))
            )
        self.stages = nn.ModuleList()
        rates = [drop_path_rate * i / (sum(depths) - 1) for i in range(sum(depths))]
        for depth, dim in zip(depths, dims, strict=True):
            self.stages.append(nn.Sequential(*[Block(dim, rates.pop(0)) for _ in range(depth)]))
        self.norm = nn.LayerNorm(dims[-1], eps=1e-6)
        self.head = nn.Linear(dims[-1], classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """The normalised mean over the pixels of the last stage."""
        for i in range(len(self.stages)):
            x = self.downsample_layers[i](x)
            x = self.stages[i](x)
        return self.norm(x.mean([-2, -1]))

    def forward(self, x: Tensor) -> Tensor:
        x = self.forward_features(x)
        x = self.head(x)
        return x


def convnext_tiny() -> ConvNeXt:
    """ConvNeXt-T (Liu et al., 2022)."""
    return ConvNeXt((3, 3, 9, 3), (96, 192, 384, 768))
