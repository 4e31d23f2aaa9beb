"""EfficientNet: inverted residuals with SiLU, squeeze and excitation, and stochastic depth."""

import torch.nn.functional as F
from torch import Tensor, nn

from .layers import DropPath


class ConvBNAct(nn.Module):
    """A convolution, its normalisation and SiLU, which is written inline."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, activate: bool = True
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.activate = activate

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x))
        return F.silu(x) if self.activate else x


class SqueezeExcitation(nn.Module):
    """Squeeze and excitation (Hu et al., 2018), as narrow as a quarter of what enters the block."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.expand = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        squeezed = F.adaptive_avg_pool2d(x, 1)
        squeezed = self.expand(F.silu(self.reduce(squeezed)))
        return squeezed.sigmoid() * x


class MBConv(nn.Module):
    """The mobile inverted bottleneck."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int, drop_path: float) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.has_shortcut = stride == 1 and inputs == outputs
        self.expand = ConvBNAct(inputs, hidden) if expansion != 1 else nn.Identity()
        self.depthwise = ConvBNAct(hidden, hidden, kernel, stride, groups=hidden)
        self.se = SqueezeExcitation(hidden, max(1, inputs // 4))
        self.project = ConvBNAct(hidden, outputs, activate=False)
        self.drop_path = DropPath(drop_path)

    def forward(self, inputs: Tensor) -> Tensor:
        x = self.expand(inputs)
        x = self.depthwise(x)
        x = self.se(x)
        x = self.project(x)
        if self.has_shortcut:
            x = self.drop_path(x) + inputs
        return x


class EfficientNet(nn.Module):
    """EfficientNet-B0, which the larger ones scale (Tan and Le, 2019)."""

    # expansion, kernel, stride of the first, outputs, repeats
    settings = (
        (1, 3, 1, 16, 1),
        (6, 3, 2, 24, 2),
        (6, 5, 2, 40, 2),
        (6, 3, 2, 80, 3),
        (6, 5, 1, 112, 3),
        (6, 5, 2, 192, 4),
        (6, 3, 1, 320, 1),
    )

    def __init__(self, classes: int = 1000, dropout: float = 0.2, drop_path: float = 0.2) -> None:
        super().__init__()
        self.stem = ConvBNAct(3, 32, 3, 2)
        total = sum(repeats for *_, repeats in self.settings)
        blocks: list[nn.Module] = []
        inputs = 32
        for expansion, kernel, stride, outputs, repeats in self.settings:
            for i in range(repeats):
                rate = drop_path * len(blocks) / total
                blocks.append(MBConv(inputs, outputs, kernel, stride if i == 0 else 1, expansion, rate))
                inputs = outputs
        self.blocks = nn.ModuleList(blocks)
        self.head = ConvBNAct(inputs, 1280)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(1280, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        x = self.avgpool(self.head(x)).flatten(start_dim=1)
        return self.fc(self.dropout(x))


def efficientnet_b0() -> EfficientNet:
    """EfficientNet-B0 (Tan and Le, 2019)."""
    return EfficientNet()
