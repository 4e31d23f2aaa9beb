"""VGG with batch normalisation: a chain of 3x3 convolutions and three wide linear layers."""

from collections.abc import Sequence

from torch import Tensor, nn

VGG11 = (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M")
VGG16 = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")


def make_layers(configuration: Sequence[int | str]) -> nn.Sequential:
    """The convolutions of a configuration, in which "M" is a max pooling."""
    layers: list[nn.Module] = []
    channels = 3
    for entry in configuration:
        if isinstance(entry, str):
            layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
        else:
            layers += [
                nn.Conv2d(channels, entry, kernel_size=3, padding=1),
                nn.BatchNorm2d(entry),
                nn.ReLU(inplace=True),
            ]
            channels = entry
    return nn.Sequential(*layers)


class VGG(nn.Module):
    """VGG (Simonyan and Zisserman, 2014), normalised as in Ioffe and Szegedy (2015)."""

    def __init__(self, features: nn.Module, classes: int = 1000, dropout: float = 0.5) -> None:
        super().__init__()
        self.features = features
        self.avgpool = nn.AdaptiveAvgPool2d((7, 7))
        self.classifier = nn.Sequential(
            nn.Linear(512 * 7 * 7, 4096),
            nn.ReLU(True),
            nn.Dropout(dropout),
            nn.Linear(4096, 4096),
            nn.ReLU(True),
            nn.Dropout(dropout),
            nn.Linear(4096, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        x = self.avgpool(x)
        x = x.view(x.size(0), -1)
        x = self.classifier(x)
        return x


def vgg11_bn() -> VGG:
    """Configuration A (Simonyan and Zisserman, 2014)."""
    return VGG(make_layers(VGG11))


def vgg16_bn() -> VGG:
    """Configuration D (Simonyan and Zisserman, 2014)."""
    return VGG(make_layers(VGG16))
