"""scikit-learn's handwritten digits at the size of CIFAR images: embedded, so that nothing is downloaded."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn import functional

from htas.data.split import Images, Part, Shape, proportional
from htas.datasets import Dataset

SPLIT = 0
"""Seed of the division into training and test; no run's seed changes it."""
TEST = 359
"""Test images: a fifth of the 1797."""


@dataclass(frozen=True)
class Digits(Dataset):
    """1438 training and 359 test images of ten digits, 8x8 enlarged to 32x32, the one channel three times."""

    classes: ClassVar[int] = 10
    shapes: ClassVar[tuple[Shape, ...]] = ((3, 32, 32),)
    mean: ClassVar[tuple[float, ...]] = (0.3053,) * 3
    std: ClassVar[tuple[float, ...]] = (0.3233,) * 3
    crop: ClassVar[int] = 2

    def read(self, part: Part) -> Images:
        """The same images in every run."""
        from sklearn.datasets import load_digits

        digits = load_digits()
        small = torch.from_numpy(digits.images).float().unsqueeze(1) / 16
        large = functional.interpolate(small, self.shapes[0][1:], mode="bilinear", align_corners=False)
        images = large.mul(255).round().to(torch.uint8).repeat(1, 3, 1, 1)
        labels = torch.from_numpy(digits.target).long()
        test = proportional(labels, TEST, SPLIT)
        return Images(images, labels).where(test if part == "test" else ~test)
