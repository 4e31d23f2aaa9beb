"""MobileNetV3: searched widths, kernels and activations, with squeeze and excitation."""

import torch
from torch import Tensor, nn

from .layers import make_divisible


class SqueezeExcite(nn.Module):
    """Squeeze and excitation with a piecewise linear gate."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = make_divisible(channels / 4)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.relu = nn.ReLU(inplace=True)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)
        self.gate = nn.Hardsigmoid(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.gate(self.fc2(self.relu(self.fc1(self.avgpool(x)))))
        return scale * x


def conv_bn(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, activation: nn.Module | None = None
) -> list[nn.Module]:
    """A convolution, its normalisation and an activation, if any."""
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs, eps=0.001, momentum=0.01),
    ]
    return [*layers, activation] if activation is not None else layers


class Bneck(nn.Module):
    """The inverted residual of MobileNetV3, with an optional squeeze and excitation."""

    def __init__(
        self, inputs: int, kernel: int, hidden: int, outputs: int, excite: bool, swish: bool, stride: int
    ) -> None:
        super().__init__()
        self.identity = stride == 1 and inputs == outputs
        activation = nn.Hardswish if swish else nn.ReLU
        layers: list[nn.Module] = []
        if hidden != inputs:
            layers += conv_bn(inputs, hidden, 1, activation=activation(inplace=True))
        layers += conv_bn(hidden, hidden, kernel, stride, groups=hidden, activation=activation(inplace=True))
        if excite:
            layers.append(SqueezeExcite(hidden))
        self.block = nn.Sequential(*layers, *conv_bn(hidden, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        result = self.block(x)
        if self.identity:
            result += x
        return result


class MobileNetV3(nn.Module):
    """MobileNetV3 (Howard et al., 2019); a row is kernel, hidden, outputs, excite, swish, stride."""

    def __init__(self, rows: tuple[tuple[int, int, int, bool, bool, int], ...], last: int, classes: int = 1000) -> None:
        super().__init__()
        layers = conv_bn(3, 16, 3, stride=2, activation=nn.Hardswish(inplace=True))
        inputs = 16
        for kernel, hidden, outputs, excite, swish, stride in rows:
            layers.append(Bneck(inputs, kernel, hidden, outputs, excite, swish, stride))
            inputs = outputs
        layers += conv_bn(inputs, 6 * inputs, 1, activation=nn.Hardswish(inplace=True))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(
            nn.Linear(6 * inputs, last),
            nn.Hardswish(inplace=True),
            nn.Dropout(p=0.2, inplace=True),
            nn.Linear(last, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.avgpool(self.features(x))
        x = torch.flatten(x, 1)
        return self.classifier(x)


LARGE = (
    (3, 16, 16, False, False, 1),
    (3, 64, 24, False, False, 2),
    (3, 72, 24, False, False, 1),
    (5, 72, 40, True, False, 2),
    (5, 120, 40, True, False, 1),
    (5, 120, 40, True, False, 1),
    (3, 240, 80, False, True, 2),
    (3, 200, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 480, 112, True, True, 1),
    (3, 672, 112, True, True, 1),
    (5, 672, 160, True, True, 2),
    (5, 960, 160, True, True, 1),
    (5, 960, 160, True, True, 1),
)
SMALL = (
    (3, 16, 16, True, False, 2),
    (3, 72, 24, False, False, 2),
    (3, 88, 24, False, False, 1),
    (5, 96, 40, True, True, 2),
    (5, 240, 40, True, True, 1),
    (5, 240, 40, True, True, 1),
    (5, 120, 48, True, True, 1),
    (5, 144, 48, True, True, 1),
    (5, 288, 96, True, True, 2),
    (5, 576, 96, True, True, 1),
    (5, 576, 96, True, True, 1),
)


def mobilenet_v3_large() -> MobileNetV3:
    """MobileNetV3-Large (Howard et al., 2019)."""
    return MobileNetV3(LARGE, last=1280)


def mobilenet_v3_small() -> MobileNetV3:
    """MobileNetV3-Small (Howard et al., 2019)."""
    return MobileNetV3(SMALL, last=1024)
