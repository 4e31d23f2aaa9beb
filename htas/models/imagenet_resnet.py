"""ResNets for large images (He et al. 2016): a 7x7 stem, pooling, four stages, an average and a linear classifier."""

from dataclasses import dataclass

from torch import Tensor, nn

from htas.errors import UserError
from htas.models import ModelFamily

STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
"""Blocks of each stage, by depth."""


@dataclass(frozen=True)
class ImageNetResNet(ModelFamily):
    """ResNet-18, -34 (basic blocks) and -50 (bottlenecks with the stride in the 3x3 convolution)."""

    depth: int = 18
    """Layers with weights: 18, 34 or 50."""

    def __post_init__(self) -> None:
        if self.depth not in STAGES:
            raise UserError(f"family.depth must be {', '.join(map(str, STAGES))}, got {self.depth}")

    def build(self, classes: int) -> nn.Module:
        """Any size of image; 11.69, 21.80 and 25.56 M parameters with 1000 classes."""
        net = ResNet(Basic if self.depth < 50 else Bottleneck, STAGES[self.depth], classes)
        self.reset(net)
        return net

    @property
    def title(self) -> str:
        """`imagenet_resnet:50`."""
        return f"imagenet_resnet:{self.depth}"

    def reset(self, module: nn.Module) -> None:
        """Kaiming normal (fan out) convolutions, unit norms, PyTorch's own linear layers."""
        super().reset(module)
        for part in module.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")


class ResNet(nn.Module):
    """The whole network; names of its parts as in torchvision, whose weights it can load."""

    def __init__(self, block: "type[Basic] | type[Bottleneck]", stages: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        inputs, layers = 64, []
        for number, blocks in enumerate(stages):
            width, stride = 64 * 2**number, 2 if number else 1
            rest = (block(width * block.expansion, width, 1) for _ in range(1, blocks))
            layers.append(nn.Sequential(block(inputs, width, stride), *rest))
            inputs = width * block.expansion
        self.layer1, self.layer2, self.layer3, self.layer4 = layers
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, images: Tensor) -> Tensor:
        """[N, 3, H, W] to [N, classes]."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


class Basic(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] in and out, with the width and stride of the block; the ReLU stands after the sum."""
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        result: Tensor = self.relu(out + (x if self.downsample is None else self.downsample(x)))
        return result


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut; the last has four times the width."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, width * 4, 1, bias=False), nn.BatchNorm2d(width * 4)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, width * 4, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] in and out, with the width and stride of the block; the ReLU stands after the sum."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(out)))))
        result: Tensor = self.relu(out + (x if self.downsample is None else self.downsample(x)))
        return result


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    """A strided 1x1 convolution and a norm where the shape changes."""
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
