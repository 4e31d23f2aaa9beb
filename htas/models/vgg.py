"""VGG with batch norms (Simonyan and Zisserman 2014; Ioffe and Szegedy 2015): a chain of 3x3 convolutions."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from htas.errors import UserError
from htas.models import KaimingFamily

STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
"""Convolutions before each pooling, by depth."""


@dataclass(frozen=True)
class Vgg(KaimingFamily):
    """VGG-11, -13, -16 and -19 with batch norms."""

    depth: int = 16
    """Layers with weights of the paper's network: 11, 13, 16 or 19."""
    head: Literal["small", "large"] = "small"
    """`large`: the paper's three linear layers, 4096 wide, on 7x7 pixels, for 224x224 images (138.37 M parameters with
    depth 16 and 1000 classes); `small`: an average over the image and one linear layer, as is usual for CIFAR."""

    def __post_init__(self) -> None:
        if self.depth not in STAGES:
            raise UserError(f"family.depth must be {', '.join(map(str, STAGES))}, got {self.depth}")
        if self.head not in ("small", "large"):
            raise UserError(f"family.head must be 'small' or 'large', got {self.head!r}")

    def build(self, classes: int) -> nn.Module:
        """Images of 32x32 at least."""
        net = Net(STAGES[self.depth], self.head, classes)
        self.reset(net)
        return net

    @property
    def title(self) -> str:
        """`vgg:16`, `vgg:16:large`."""
        return f"vgg:{self.depth}" + ("" if self.head == "small" else f":{self.head}")


class Net(nn.Module):
    """The whole network."""

    def __init__(self, stages: tuple[int, ...], head: str, classes: int) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        inputs = 3
        for number, convolutions in enumerate(stages):
            outputs = min(512, 64 * 2**number)
            for _ in range(convolutions):
                parts += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
                inputs = outputs
            parts.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*parts)
        self.avgpool = nn.AdaptiveAvgPool2d(1 if head == "small" else 7)
        hidden = (
            nn.Linear(512 * 49, 4096), nn.ReLU(inplace=True), nn.Dropout(),
            nn.Linear(4096, 4096), nn.ReLU(inplace=True), nn.Dropout(),
        ) if head == "large" else ()  # fmt: skip
        self.classifier = nn.Sequential(*hidden, nn.Linear(4096 if hidden else 512, classes))

    def forward(self, images: Tensor) -> Tensor:
        """[N, 3, H, W] to [N, classes]."""
        logits: Tensor = self.classifier(self.avgpool(self.features(images)).flatten(1))
        return logits
