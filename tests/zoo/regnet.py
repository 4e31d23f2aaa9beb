"""RegNet: widths on a quantised line, groups of one width."""

import math
from collections import Counter

from torch import Tensor, nn

from .layers import make_divisible


def stages(depth: int, initial: int, slope: float, multiplier: float, group: int) -> list[tuple[int, int, int]]:
    """Width, depth and group width of each stage (Radosavovic et al., 2020, eqs. 2 to 4)."""
    widths = []
    for block in range(depth):
        exponent = round(math.log((initial + slope * block) / initial, multiplier))
        widths.append(round(initial * multiplier**exponent / 8) * 8)
    found = []
    for width, blocks in sorted(Counter(widths).items()):
        group_width = min(group, width)
        found.append((make_divisible(width, group_width), blocks, group_width))
    return found


class SE(nn.Module):
    """Squeeze and excitation (Hu et al., 2018)."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.f_ex = nn.Sequential(
            nn.Conv2d(channels, squeezed, 1, bias=True),
            nn.ReLU(inplace=True),
            nn.Conv2d(squeezed, channels, 1, bias=True),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.f_ex(x.mean((2, 3), keepdim=True))


class ResBottleneckBlock(nn.Module):
    """The X block, or the Y block where it has squeeze and excitation."""

    def __init__(self, inputs: int, width: int, stride: int, group_width: int, se_ratio: float | None) -> None:
        super().__init__()
        self.proj: nn.Module | None = None
        if inputs != width or stride != 1:
            self.proj = nn.Conv2d(inputs, width, 1, stride=stride, bias=False)
            self.bn = nn.BatchNorm2d(width)
        self.a = nn.Conv2d(inputs, width, 1, bias=False)
        self.a_bn = nn.BatchNorm2d(width)
        self.a_relu = nn.ReLU(inplace=True)
        self.b = nn.Conv2d(width, width, 3, stride=stride, padding=1, groups=width // group_width, bias=False)
        self.b_bn = nn.BatchNorm2d(width)
        self.b_relu = nn.ReLU(inplace=True)
        self.se = SE(width, round(se_ratio * inputs)) if se_ratio else None
        self.c = nn.Conv2d(width, width, 1, bias=False)
        self.c_bn = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.proj is None else self.bn(self.proj(x))
        x = self.a_relu(self.a_bn(self.a(x)))
        x = self.b_relu(self.b_bn(self.b(x)))
        if self.se is not None:
            x = self.se(x)
        x = self.c_bn(self.c(x))
        return self.relu(shortcut + x)


class RegNet(nn.Module):
    """RegNet (Radosavovic et al., 2020), X or Y."""

    def __init__(
        self,
        depth: int,
        initial: int,
        slope: float,
        multiplier: float,
        group: int,
        se_ratio: float | None = None,
        classes: int = 1000,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(inplace=True)
        )
        inputs = 32
        for number, (width, blocks, group_width) in enumerate(stages(depth, initial, slope, multiplier, group), 1):
            stage = nn.Sequential()
            for i in range(blocks):
                block = ResBottleneckBlock(inputs, width, 2 if i == 0 else 1, group_width, se_ratio)
                stage.add_module(f"b{i + 1}", block)
                inputs = width
            self.add_module(f"s{number}", stage)
        self.avg_pool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(inputs, classes, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        for module in self.children():
            if module is self.fc:
                x = x.view(x.size(0), -1)
            x = module(x)
        return x


def regnet_x_400mf() -> RegNet:
    """RegNetX-400MF (Radosavovic et al., 2020)."""
    return RegNet(depth=22, initial=24, slope=24.48, multiplier=2.54, group=16)


def regnet_y_400mf() -> RegNet:
    """RegNetY-400MF (Radosavovic et al., 2020)."""
    return RegNet(depth=16, initial=48, slope=27.89, multiplier=2.09, group=8, se_ratio=0.25)
