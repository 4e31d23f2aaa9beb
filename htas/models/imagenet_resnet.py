"""ResNets for large images (He et al. 2016): a 7x7 stem, pooling, four stages, an average and a linear classifier."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from htas.errors import UserError
from htas.models import KaimingFamily

STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
"""Blocks of each stage, by depth."""


@dataclass(frozen=True)
class ImageNetResNet(KaimingFamily):
    """ResNet-18, -34 (basic blocks) and -50 (bottlenecks with the stride in the 3x3 convolution)."""

    linear_std: ClassVar[float | None] = None
    depth: int = 18
    """Layers with weights: 18, 34 or 50."""

    def __post_init__(self) -> None:
        if self.depth not in STAGES:
            raise UserError(f"family.depth must be {', '.join(map(str, STAGES))}, got {self.depth}")

    def build(self, classes: int) -> nn.Module:
        """Any size of image; 11.69, 21.80 and 25.56 M parameters with 1000 classes."""
        net = ResNet(1 if self.depth < 50 else 4, STAGES[self.depth], classes)
        self.reset(net)
        return net

    @property
    def title(self) -> str:
        """`imagenet_resnet:50`."""
        return f"imagenet_resnet:{self.depth}"


class ResNet(nn.Module):
    """The whole network; names of its parts as in torchvision, whose weights it can load."""

    def __init__(self, expansion: int, stages: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        inputs, layers = 64, []
        for number, blocks in enumerate(stages):
            width, stride = 64 * 2**number, 2 if number else 1
            outputs = width * expansion
            rest = (Block(outputs, width, outputs, 1) for _ in range(1, blocks))
            layers.append(nn.Sequential(Block(inputs, width, outputs, stride), *rest))
            inputs = outputs
        self.layer1, self.layer2, self.layer3, self.layer4 = layers
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, images: Tensor) -> Tensor:
        """[N, 3, H, W] to [N, classes]."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut; or a 1x1, a 3x3 and a 1x1 convolution, if outputs are wider than `width`."""

    def __init__(self, inputs: int, width: int, outputs: int, stride: int) -> None:
        super().__init__()
        bottleneck = outputs > width
        kernel, first, second = (1, 1, stride) if bottleneck else (3, stride, 1)
        self.conv1, self.bn1 = _conv(inputs, width, kernel, first), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _conv(width, width, 3, second), nn.BatchNorm2d(width)
        self.conv3 = _conv(width, outputs, 1) if bottleneck else None
        self.bn3 = nn.BatchNorm2d(outputs) if bottleneck else None
        self.relu = nn.ReLU(inplace=True)
        changes = stride > 1 or inputs != outputs
        self.downsample = nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] in and out, with the width and stride of the block; the ReLU stands after the sum."""
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        if self.conv3 is not None and self.bn3 is not None:
            out = self.bn3(self.conv3(self.relu(out)))
        result: Tensor = self.relu(out + (x if self.downsample is None else self.downsample(x)))
        return result


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
