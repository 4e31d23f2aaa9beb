"""ShuffleNetV2: half of the channels pass, then all are shuffled."""

import torch
from torch import Tensor, nn


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Interleave the channels of the groups (Zhang et al., 2018)."""
    batch, channels, height, width = x.size()
    x = x.view(batch, groups, channels // groups, height, width)
    x = torch.transpose(x, 1, 2).contiguous()
    return x.view(batch, channels, height, width)


def depthwise(channels: int, stride: int) -> nn.Conv2d:
    """A 3x3 filter for each channel."""
    return nn.Conv2d(channels, channels, kernel_size=3, stride=stride, padding=1, groups=channels, bias=False)


def pointwise(inputs: int, outputs: int) -> nn.Conv2d:
    """A 1x1 convolution."""
    return nn.Conv2d(inputs, outputs, kernel_size=1, stride=1, padding=0, bias=False)


class InvertedResidual(nn.Module):
    """The unit of ShuffleNetV2: split at stride 1, two branches at stride 2."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        branch = outputs // 2
        self.branch1 = nn.Sequential()
        if stride > 1:
            self.branch1 = nn.Sequential(
                depthwise(inputs, stride),
                nn.BatchNorm2d(inputs),
                pointwise(inputs, branch),
                nn.BatchNorm2d(branch),
                nn.ReLU(inplace=True),
            )
        self.branch2 = nn.Sequential(
            pointwise(inputs if stride > 1 else branch, branch),
            nn.BatchNorm2d(branch),
            nn.ReLU(inplace=True),
            depthwise(branch, stride),
            nn.BatchNorm2d(branch),
            pointwise(branch, branch),
            nn.BatchNorm2d(branch),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            kept, changed = x.chunk(2, dim=1)
            out = torch.cat((kept, self.branch2(changed)), dim=1)
        else:
            out = torch.cat((self.branch1(x), self.branch2(x)), dim=1)
        return channel_shuffle(out, 2)


class ShuffleNetV2(nn.Module):
    """ShuffleNetV2 (Ma et al., 2018)."""

    def __init__(self, repeats: tuple[int, int, int], channels: tuple[int, ...], classes: int = 1000) -> None:
        super().__init__()
        stem, *stages, last = channels
        self.conv1 = nn.Sequential(nn.Conv2d(3, stem, 3, 2, 1, bias=False), nn.BatchNorm2d(stem), nn.ReLU(inplace=True))
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.stage2 = self._make_stage(stem, stages[0], repeats[0])
        self.stage3 = self._make_stage(stages[0], stages[1], repeats[1])
        self.stage4 = self._make_stage(stages[1], stages[2], repeats[2])
        self.conv5 = nn.Sequential(
            nn.Conv2d(stages[2], last, 1, 1, 0, bias=False), nn.BatchNorm2d(last), nn.ReLU(inplace=True)
        )
        self.fc = nn.Linear(last, classes)

    @staticmethod
    def _make_stage(inputs: int, outputs: int, repeats: int) -> nn.Sequential:
        units = [InvertedResidual(inputs, outputs, 2)]
        units += [InvertedResidual(outputs, outputs, 1) for _ in range(repeats - 1)]
        return nn.Sequential(*units)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = self.maxpool(x)
        x = self.stage2(x)
        x = self.stage3(x)
        x = self.stage4(x)
        x = self.conv5(x)
        x = x.mean([2, 3])
        return self.fc(x)


def shufflenet_v2_x1_0() -> ShuffleNetV2:
    """ShuffleNetV2 at width 1.0 (Ma et al., 2018)."""
    return ShuffleNetV2((4, 8, 4), (24, 116, 232, 464, 1024))
