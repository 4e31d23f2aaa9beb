"""A network of mobile widths for images of 32 x 32 pixels: MobileNetV2's blocks with 24, 40, 72 and 112 channels."""

from dataclasses import dataclass

from torch import nn

from htas.models import KaimingFamily
from htas.models.mobilenet_v2 import Inverted, conv_norm

BLOCKS = ((4, 24, 2, 1), (4, 40, 3, 2), (4, 72, 3, 2), (4, 112, 2, 1))
"""Of each stage: expansion, outputs, blocks, stride of the first."""
LAST = 448


@dataclass(frozen=True)
class Mobile(KaimingFamily):
    """At a width multiplier in percent; widths are rounded up to whole channels."""

    percent: int = 100

    def build(self, classes: int) -> nn.Module:
        """[N, 3, 32, 32] to [N, classes]."""
        inputs = self._wide(24)
        parts: list[nn.Module] = [conv_norm(3, inputs, 3)]
        for expansion, width, blocks, stride in BLOCKS:
            outputs = self._wide(width)
            for number in range(blocks):
                parts.append(Inverted(inputs, outputs, 1 if number else stride, expansion))
                inputs = outputs
        last = self._wide(LAST)
        parts += [conv_norm(inputs, last, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(last, classes)]
        net = nn.Sequential(*parts)
        self.reset(net)
        return net

    @property
    def title(self) -> str:
        """`mobile:100`."""
        return f"mobile:{self.percent}"

    def _wide(self, channels: int) -> int:
        return -(-channels * self.percent // 100)
