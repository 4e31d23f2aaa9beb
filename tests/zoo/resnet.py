"""ResNet and what was made of it: wider, in groups, and with squeeze and excitation."""

from typing import Any

import torch
from torch import Tensor, nn

from .residual import BasicBlock, Bottleneck, conv1x1


class ResNet(nn.Module):
    """ResNet (He et al., 2016); `options` go to every block."""

    def __init__(
        self, block: type[BasicBlock] | type[Bottleneck], layers: tuple[int, ...], classes: int = 1000, **options: Any
    ) -> None:
        super().__init__()
        self.inputs = 64
        self.conv1 = nn.Conv2d(3, 64, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.layer1 = self._make_layer(block, 64, layers[0], 1, options)
        self.layer2 = self._make_layer(block, 128, layers[1], 2, options)
        self.layer3 = self._make_layer(block, 256, layers[2], 2, options)
        self.layer4 = self._make_layer(block, 512, layers[3], 2, options)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(512 * block.expansion, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def _make_layer(
        self, block: type[BasicBlock] | type[Bottleneck], planes: int, blocks: int, stride: int, options: dict[str, Any]
    ) -> nn.Sequential:
        downsample = None
        outputs = planes * block.expansion
        if stride != 1 or self.inputs != outputs:
            downsample = nn.Sequential(conv1x1(self.inputs, outputs, stride), nn.BatchNorm2d(outputs))
        layers = [block(self.inputs, planes, stride, downsample, **options)]
        self.inputs = outputs
        layers += [block(outputs, planes, **options) for _ in range(1, blocks)]
        return nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer1(x)
        x = self.layer2(x)
        x = self.layer3(x)
        x = self.layer4(x)
        x = self.avgpool(x)
        x = torch.flatten(x, 1)
        return self.fc(x)


def resnet18() -> ResNet:
    """ResNet-18 (He et al., 2016)."""
    return ResNet(BasicBlock, (2, 2, 2, 2))


def resnet34() -> ResNet:
    """ResNet-34 (He et al., 2016)."""
    return ResNet(BasicBlock, (3, 4, 6, 3))


def resnet50() -> ResNet:
    """ResNet-50 (He et al., 2016)."""
    return ResNet(Bottleneck, (3, 4, 6, 3))


def wide_resnet50_2() -> ResNet:
    """Wide ResNet-50-2 (Zagoruyko and Komodakis, 2016): the 3x3 convolutions are twice as wide."""
    return ResNet(Bottleneck, (3, 4, 6, 3), base_width=128)


def resnext50_32x4d() -> ResNet:
    """ResNeXt-50 with 32 groups of 4 channels (Xie et al., 2017)."""
    return ResNet(Bottleneck, (3, 4, 6, 3), groups=32, base_width=4)


def se_resnet50() -> ResNet:
    """SE-ResNet-50 (Hu et al., 2018)."""
    return ResNet(Bottleneck, (3, 4, 6, 3), squeeze_excite=True)
