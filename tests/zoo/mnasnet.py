"""MNASNet: inverted residuals found by a search for latency on a phone."""

import torch
from torch import Tensor, nn

MOMENTUM = 1 - 0.9997


class InvertedResidual(nn.Module):
    """Pointwise, depthwise, pointwise, with an identity shortcut where the shapes allow it."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.apply_residual = inputs == outputs and stride == 1
        self.layers = nn.Sequential(
            nn.Conv2d(inputs, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden, momentum=MOMENTUM),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, hidden, kernel, padding=kernel // 2, stride=stride, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden, momentum=MOMENTUM),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs, momentum=MOMENTUM),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x) + x if self.apply_residual else self.layers(x)


def stack(inputs: int, outputs: int, kernel: int, stride: int, expansion: int, repeats: int) -> nn.Sequential:
    """Inverted residuals of one width; the first has the stride."""
    first = InvertedResidual(inputs, outputs, kernel, stride, expansion)
    rest = [InvertedResidual(outputs, outputs, kernel, 1, expansion) for _ in range(repeats - 1)]
    return nn.Sequential(first, *rest)


class MNASNet(nn.Module):
    """MnasNet-B1 at depth multiplier 1.0 (Tan et al., 2019)."""

    def __init__(self, classes: int = 1000, dropout: float = 0.2) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1, stride=2, bias=False),
            nn.BatchNorm2d(32, momentum=MOMENTUM),
            nn.ReLU(inplace=True),
            nn.Conv2d(32, 32, 3, padding=1, stride=1, groups=32, bias=False),
            nn.BatchNorm2d(32, momentum=MOMENTUM),
            nn.ReLU(inplace=True),
            nn.Conv2d(32, 16, 1, bias=False),
            nn.BatchNorm2d(16, momentum=MOMENTUM),
            stack(16, 24, kernel=3, stride=2, expansion=3, repeats=3),
            stack(24, 40, kernel=5, stride=2, expansion=3, repeats=3),
            stack(40, 80, kernel=5, stride=2, expansion=6, repeats=3),
            stack(80, 96, kernel=3, stride=1, expansion=6, repeats=2),
            stack(96, 192, kernel=5, stride=2, expansion=6, repeats=4),
            stack(192, 320, kernel=3, stride=1, expansion=6, repeats=1),
            nn.Conv2d(320, 1280, 1, bias=False),
            nn.BatchNorm2d(1280, momentum=MOMENTUM),
            nn.ReLU(inplace=True),
        )
        self.classifier = nn.Sequential(nn.Dropout(p=dropout, inplace=True), nn.Linear(1280, classes))

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(x)
        x = torch.mean(x, [2, 3])
        return self.classifier(x)


def mnasnet1_0() -> MNASNet:
    """MNASNet 1.0 (Tan et al., 2019)."""
    return MNASNet()
