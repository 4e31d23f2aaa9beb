"""CIFAR-10: 32x32 colour photographs of ten classes (Krizhevsky, 2009)."""

from dataclasses import dataclass
from typing import ClassVar

from htas.datasets._cifar import Cifar, CifarSource


@dataclass(frozen=True)
class Cifar10(Cifar):
    """50,000 training and 10,000 test images; mean and deviation as TAS has them."""

    source: ClassVar[CifarSource] = CifarSource(
        hub="uoft-cs/cifar10",
        label="label",
        file="cifar-10-binary.tar.gz",
        md5="c32a1d4ab5d03f1284b67883e8d87530",
        folder="cifar-10-batches-bin",
        train=("data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin", "data_batch_5.bin"),
        test=("test_batch.bin",),
        label_bytes=1,
        pickles=("cifar-10-python.tar.gz", "cifar-10-batches-py", "batches.meta"),
    )
    classes: ClassVar[int] = 10
    mean: ClassVar[tuple[float, ...]] = (125.3 / 255, 123.0 / 255, 113.9 / 255)
    std: ClassVar[tuple[float, ...]] = (63.0 / 255, 62.1 / 255, 66.7 / 255)
