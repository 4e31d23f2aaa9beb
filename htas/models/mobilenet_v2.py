"""MobileNetV2 (Sandler et al. 2018): inverted residuals around depthwise convolutions."""

from dataclasses import dataclass

from torch import Tensor, nn

from htas.errors import UserError
from htas.models import KaimingFamily

BLOCKS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Of each stage: expansion, outputs, blocks, stride of the first (table 2 of the paper)."""
LAST = 1280


@dataclass(frozen=True)
class MobileNetV2(KaimingFamily):
    """MobileNetV2 at any width multiplier."""

    percent: int = 100
    """Width multiplier in percent: 100 is the paper's 1.0, of 3.50 M parameters with 1000 classes."""

    def __post_init__(self) -> None:
        if self.percent < 1:
            raise UserError(f"family.percent must be 1 or more, got {self.percent}")

    def build(self, classes: int) -> nn.Module:
        """Any size of image, halved five times."""
        net = Net(self.percent / 100, classes)
        self.reset(net)
        return net

    @property
    def title(self) -> str:
        """`mobilenet_v2:100`."""
        return f"mobilenet_v2:{self.percent}"


class Net(nn.Module):
    """The whole network; names of its parts as in torchvision, whose weights it can load."""

    def __init__(self, multiplier: float, classes: int) -> None:
        super().__init__()
        inputs, last = rounded(32 * multiplier), rounded(LAST * max(1.0, multiplier))
        parts: list[nn.Module] = [conv_norm(3, inputs, 3, 2)]
        for expansion, width, blocks, stride in BLOCKS:
            outputs = rounded(width * multiplier)
            for number in range(blocks):
                parts.append(Inverted(inputs, outputs, stride if number == 0 else 1, expansion))
                inputs = outputs
        self.features = nn.Sequential(*parts, conv_norm(inputs, last, 1))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, classes))

    def forward(self, images: Tensor) -> Tensor:
        """[N, 3, H, W] to [N, classes]."""
        logits: Tensor = self.classifier(self.pool(self.features(images)).flatten(1))
        return logits


class Inverted(nn.Module):
    """Expand, convolve each channel by itself, project without an activation."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        wide = [conv_norm(inputs, hidden, 1)] if expansion > 1 else []
        narrow = nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv = nn.Sequential(*wide, conv_norm(hidden, hidden, 3, stride, hidden), *narrow)
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] in and out; the input is added where the shapes are the same."""
        out: Tensor = self.conv(x)
        return x + out if self.adds else out


def conv_norm(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution, a norm and a ReLU6."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU6(inplace=True))


def rounded(width: float) -> int:
    """To a multiple of 8, not more than a tenth below it."""
    nearest = max(8, int(width + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * width else nearest
