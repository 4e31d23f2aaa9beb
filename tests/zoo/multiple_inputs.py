"""Networks that take more than one tensor."""

import torch
from torch import Tensor, nn


class Siamese(nn.Module):
    """Are two images of one class? (Koch et al., 2015): one trunk reads both."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.BatchNorm2d(64),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.BatchNorm2d(64),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
        )
        self.embedding = nn.Sequential(nn.Flatten(), nn.Linear(64 * 4 * 4, 128), nn.Sigmoid())
        self.head = nn.Linear(128, 1)

    def forward_once(self, x: Tensor) -> Tensor:
        """The embedding of one image."""
        return self.embedding(self.trunk(x))

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        distance = torch.abs(self.forward_once(left) - self.forward_once(right))
        return self.head(distance)


def siamese() -> Siamese:
    """A Siamese network (Koch et al., 2015) for images of 32x32."""
    return Siamese()


class ImageAndVector(nn.Module):
    """An image and what else is known of it, joined after pooling (Pacheco and Krohling, 2020)."""

    def __init__(self, known: int = 8, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.conv2 = nn.Conv2d(32, 64, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(64)
        self.conv3 = nn.Conv2d(64, 128, 3, stride=2, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(128)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Linear(128 + known, 64)
        self.fc2 = nn.Linear(64, classes)

    def forward(self, image: Tensor, vector: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(image)))
        x = torch.relu(self.bn2(self.conv2(x)))
        x = torch.relu(self.bn3(self.conv3(x)))
        x = self.pool(x).flatten(1)
        x = torch.cat((x, vector), dim=1)
        return self.fc2(torch.relu(self.fc1(x)))


def two_input() -> ImageAndVector:
    """An image and a vector of eight numbers (Pacheco and Krohling, 2020)."""
    return ImageAndVector()
