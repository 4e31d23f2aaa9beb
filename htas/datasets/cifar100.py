"""CIFAR-100: 32x32 colour photographs of a hundred classes (Krizhevsky, 2009)."""

from dataclasses import dataclass
from typing import ClassVar

from htas.datasets._cifar import Cifar, CifarSource


@dataclass(frozen=True)
class Cifar100(Cifar):
    """50,000 training and 10,000 test images under their fine labels; mean and deviation as TAS has them."""

    source: ClassVar[CifarSource] = CifarSource(
        hub="uoft-cs/cifar100",
        label="fine_label",
        file="cifar-100-binary.tar.gz",
        md5="03b5dce01913d631647c71ecec9e9cb8",
        folder="cifar-100-binary",
        train=("train.bin",),
        test=("test.bin",),
        label_bytes=2,
        pickles=("cifar-100-python.tar.gz", "cifar-100-python", "meta"),
    )
    classes: ClassVar[int] = 100
    mean: ClassVar[tuple[float, ...]] = (129.3 / 255, 124.1 / 255, 112.4 / 255)
    std: ClassVar[tuple[float, ...]] = (68.2 / 255, 65.4 / 255, 70.4 / 255)
