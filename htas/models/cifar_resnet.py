"""ResNets for 32x32 images: the base networks of the TAS and HTAS papers (not the zero-padded ones of He et al.).

A 3x3 stem, three stages of n blocks at widths 16, 32, 64, an average over the image and a linear classifier.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from htas.errors import UserError
from htas.models import ModelFamily, draw_kaiming

WIDTHS = (16, 32, 64)


@dataclass(frozen=True)
class CifarResNet(ModelFamily):
    """ResNet-20, 32, 44, 56, 110 (basic) and 164 (bottleneck)."""

    depth: int = 20
    """Layers with weights: 6n + 2 with basic blocks, 9n + 2 with bottlenecks."""
    block: Literal["basic", "bottleneck"] = "basic"
    """`basic`: two 3x3 convolutions; `bottleneck`: 1x1, 3x3, 1x1 with four times the outputs."""

    def __post_init__(self) -> None:
        if self.block not in ("basic", "bottleneck"):
            raise UserError(f"family.block must be 'basic' or 'bottleneck', got {self.block!r}")
        if self.depth < self._each + 2 or self.depth % self._each != 2:
            examples = "8, 14, 20, 32, 44, 56, 110" if self.block == "basic" else "11, 20, 29, 56, 110, 164"
            raise UserError(
                f"family.depth must be {self._each}n + 2 with block = {self.block!r} ({examples}, ...), "
                f"got {self.depth}"
            )

    def build(self, classes: int) -> nn.Module:
        """Weights as TAS draws them: [N, 3, H, W] in, [N, classes] logits out."""
        net = ResNet(1 if self.block == "basic" else 4, (self.depth - 2) // self._each, classes)
        self.reset(net)
        return net

    @property
    def title(self) -> str:
        """`cifar_resnet:20`, `cifar_resnet:164:bottleneck`."""
        return self._named(self.depth)

    @property
    def project_norm(self) -> bool:
        """TAS projects with a norm in basic blocks and without one in bottlenecks."""
        return self.block == "basic"

    def member(self, blocks: int) -> str:
        """`cifar_resnet:14` for two basic blocks a stage."""
        return self._named(self._each * blocks + 2)

    def reset(self, module: nn.Module) -> None:
        """Kaiming normal (fan out) convolutions, unit norms, linear weights from N(0, 0.01), no bias (TAS)."""
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.reset_parameters()
        draw_kaiming(module, linear_std=0.01)

    def _named(self, depth: int) -> str:
        return f"cifar_resnet:{depth}" + ("" if self.block == "basic" else f":{self.block}")

    @property
    def _each(self) -> int:
        return 6 if self.block == "basic" else 9


class ResNet(nn.Module):
    """The whole network: stem, three stages, classifier."""

    def __init__(self, expansion: int, blocks: int, classes: int) -> None:
        super().__init__()
        self.stem = ConvNorm(3, WIDTHS[0], 3)
        self.relu = nn.ReLU()
        self.stages = nn.Sequential()
        inputs = WIDTHS[0]
        for stage, width in enumerate(WIDTHS):
            body = nn.Sequential()
            for index in range(blocks):
                body.append(Block(inputs, width, width * expansion, stride=2 if stage and index == 0 else 1))
                inputs = width * expansion
            self.stages.append(body)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(inputs, classes)

    def forward(self, images: Tensor) -> Tensor:
        """[N, 3, H, W] to [N, classes]."""
        features = self.stages(self.relu(self.stem(images)))
        logits: Tensor = self.classifier(self.pool(features).flatten(1))
        return logits


class ConvNorm(nn.Sequential):
    """A convolution without bias, then a batch norm."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs)


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut; or a 1x1, a 3x3 and a 1x1 convolution, if outputs are wider than `width`."""

    def __init__(self, inputs: int, width: int, outputs: int, stride: int) -> None:
        super().__init__()
        bottleneck = outputs > width
        self.conv1 = ConvNorm(inputs, width, 1) if bottleneck else ConvNorm(inputs, width, 3, stride)
        self.conv2 = ConvNorm(width, width, 3, stride if bottleneck else 1)
        self.conv3 = ConvNorm(width, outputs, 1) if bottleneck else None
        self.shortcut = shortcut(inputs, outputs, stride)
        self.relu = nn.ReLU()

    def forward(self, inputs: Tensor) -> Tensor:
        """[N, C, H, W] in and out, with the width and stride of the block; the ReLU stands after the sum."""
        out = self.conv2(self.relu(self.conv1(inputs)))
        if self.conv3 is not None:
            out = self.conv3(self.relu(out))
        result: Tensor = self.relu(out + self.shortcut(inputs))
        return result


def shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    """TAS's: average pooling and a bare 1x1 convolution where the size changes, 1x1 and norm where the width does."""
    if stride == 2:
        return nn.Sequential(nn.AvgPool2d(2, 2), nn.Conv2d(inputs, outputs, 1, bias=False))
    return nn.Identity() if inputs == outputs else ConvNorm(inputs, outputs, 1)
