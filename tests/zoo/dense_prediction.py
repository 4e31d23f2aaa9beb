"""Dense prediction: an output for each pixel, or at several scales."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .residual import BasicBlock, conv1x1


class DoubleConv(nn.Module):
    """Two 3x3 convolutions, each normalised."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.double_conv = nn.Sequential(
            nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.double_conv(x)


class Up(nn.Module):
    """Twice the resolution, then the features of the same resolution on the way down."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(inputs, outputs, kernel_size=2, stride=2)
        self.conv = DoubleConv(2 * outputs, outputs)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.conv(torch.cat([skip, self.up(x)], dim=1))


class UNet(nn.Module):
    """U-Net (Ronneberger et al., 2015), with padding and batch normalisation."""

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        self.inc = DoubleConv(3, 32)
        self.down1 = nn.Sequential(nn.MaxPool2d(2), DoubleConv(32, 64))
        self.down2 = nn.Sequential(nn.MaxPool2d(2), DoubleConv(64, 128))
        self.down3 = nn.Sequential(nn.MaxPool2d(2), DoubleConv(128, 256))
        self.up1 = Up(256, 128)
        self.up2 = Up(128, 64)
        self.up3 = Up(64, 32)
        self.outc = nn.Conv2d(32, classes, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.inc(x)
        x2 = self.down1(x1)
        x3 = self.down2(x2)
        x = self.down3(x3)
        x = self.up1(x, x3)
        x = self.up2(x, x2)
        x = self.up3(x, x1)
        return self.outc(x)


def unet() -> UNet:
    """U-Net (Ronneberger et al., 2015), three levels from 32 to 256 channels."""
    return UNet()


def stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Two residual blocks."""
    downsample = None
    if stride != 1 or inputs != outputs:
        downsample = nn.Sequential(conv1x1(inputs, outputs, stride), nn.BatchNorm2d(outputs))
    return nn.Sequential(BasicBlock(inputs, outputs, stride, downsample), BasicBlock(outputs, outputs))


class FeaturePyramid(nn.Module):
    """A feature pyramid (Lin et al., 2017) on a narrow ResNet-18 (He et al., 2016)."""

    def __init__(self, widths: tuple[int, int, int, int] = (32, 64, 128, 256), channels: int = 64) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, widths[0], 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        self.layer1 = stage(widths[0], widths[0], 1)
        self.layer2 = stage(widths[0], widths[1], 2)
        self.layer3 = stage(widths[1], widths[2], 2)
        self.layer4 = stage(widths[2], widths[3], 2)
        self.lateral = nn.ModuleList([nn.Conv2d(width, channels, 1) for width in widths])
        self.smooth = nn.ModuleList([nn.Conv2d(channels, channels, 3, padding=1) for _ in widths])

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        bodies = [self.layer1(self.stem(x))]
        for layer in (self.layer2, self.layer3, self.layer4):
            bodies.append(layer(bodies[-1]))
        merged = [self.lateral[3](bodies[3])]
        for level in (2, 1, 0):
            lateral = self.lateral[level](bodies[level])
            merged.insert(0, lateral + F.interpolate(merged[0], size=lateral.shape[-2:], mode="nearest"))
        outputs = [smooth(level) for smooth, level in zip(self.smooth, merged, strict=True)]
        outputs.append(F.max_pool2d(outputs[-1], kernel_size=1, stride=2))
        return tuple(outputs)


def fpn() -> FeaturePyramid:
    """A feature pyramid (Lin et al., 2017) that returns five scales."""
    return FeaturePyramid()
