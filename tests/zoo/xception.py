"""Xception: depthwise separable convolutions with residual shortcuts."""

import torch.nn.functional as F
from torch import Tensor, nn


class SeparableConv2d(nn.Module):
    """A filter for each channel and a pointwise convolution, with nothing between them."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(inputs, inputs, 3, 1, 1, groups=inputs, bias=False)
        self.pointwise = nn.Conv2d(inputs, outputs, 1, 1, 0, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(x))


class Block(nn.Module):
    """Separable convolutions, each after a ReLU, and a shortcut."""

    def __init__(
        self, inputs: int, outputs: int, repeats: int, stride: int = 1, relu_first: bool = True, grow_first: bool = True
    ) -> None:
        super().__init__()
        self.skip: nn.Conv2d | None = None
        if outputs != inputs or stride != 1:
            self.skip = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
            self.skip_bn = nn.BatchNorm2d(outputs)
        layers: list[nn.Module] = []
        channels = inputs
        for i in range(repeats):
            wider = outputs if grow_first or i == repeats - 1 else inputs
            if i > 0 or relu_first:
                layers.append(nn.ReLU(inplace=i > 0))
            layers += [SeparableConv2d(channels, wider), nn.BatchNorm2d(wider)]
            channels = wider
        if stride != 1:
            layers.append(nn.MaxPool2d(3, stride, 1))
        self.rep = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.skip_bn(self.skip(x)) if self.skip is not None else x
        out = self.rep(x)
        out += shortcut
        return out


class Xception(nn.Module):
    """Xception (Chollet, 2017)."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3, 2, 0, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(32, 64, 3, bias=False)
        self.bn2 = nn.BatchNorm2d(64)
        self.entry = nn.Sequential(
            Block(64, 128, 2, 2, relu_first=False),
            Block(128, 256, 2, 2),
            Block(256, 728, 2, 2),
        )
        self.middle = nn.Sequential(*(Block(728, 728, 3) for _ in range(8)))
        self.exit = Block(728, 1024, 2, 2, grow_first=False)
        self.conv3 = SeparableConv2d(1024, 1536)
        self.bn3 = nn.BatchNorm2d(1536)
        self.conv4 = SeparableConv2d(1536, 2048)
        self.bn4 = nn.BatchNorm2d(2048)
        self.fc = nn.Linear(2048, classes)

    def features(self, x: Tensor) -> Tensor:
        """The last feature map, before its ReLU."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.exit(self.middle(self.entry(x)))
        x = self.relu(self.bn3(self.conv3(x)))
        return self.bn4(self.conv4(x))

    def logits(self, features: Tensor) -> Tensor:
        """What the classifier says of a feature map."""
        x = self.relu(features)
        x = F.adaptive_avg_pool2d(x, (1, 1))
        x = x.view(x.size(0), -1)
        return self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(self.features(x))


def xception() -> Xception:
    """Xception (Chollet, 2017)."""
    return Xception()
