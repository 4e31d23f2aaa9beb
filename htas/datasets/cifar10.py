"""CIFAR-10: 32x32 colour photographs of ten classes (Krizhevsky, 2009)."""

from dataclasses import dataclass
from typing import ClassVar

from htas.data.split import Images, Part, Shape
from htas.datasets import Dataset
from htas.datasets._binary import Archive
from htas.datasets._cifar import CifarSource, read
from htas.datasets._copies import encoding
from htas.datasets._parquet import Columns

SOURCE = CifarSource(
    hub="uoft-cs/cifar10",
    folder="plain_text",
    columns=Columns(image="img", label="label"),
    archive=Archive(
        file="cifar-10-binary.tar.gz",
        md5="c32a1d4ab5d03f1284b67883e8d87530",
        folder="cifar-10-batches-bin",
        train=("data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin", "data_batch_5.bin"),
        test=("test_batch.bin",),
        train_images=10_000,
        test_images=10_000,
        label_bytes=1,
        pickles=("cifar-10-python.tar.gz", "cifar-10-batches-py", "batches.meta"),
    ),
    classes=10,
    shape=(3, 32, 32),
)


@dataclass(frozen=True)
class Cifar10(Dataset):
    """50,000 training and 10,000 test images; mean and deviation as TAS has them."""

    path: str = ""
    """A local copy: a folder in the hub's parquet layout, cifar-10-binary.tar.gz or a folder with it or its .bin
    files, or a folder of train/CLASS/*.png and test/CLASS/*.png; empty for the Hugging Face hub."""

    classes: ClassVar[int] = SOURCE.classes
    shapes: ClassVar[tuple[Shape, ...]] = (SOURCE.shape,)
    mean: ClassVar[tuple[float, ...]] = (125.3 / 255, 123.0 / 255, 113.9 / 255)
    std: ClassVar[tuple[float, ...]] = (63.0 / 255, 62.1 / 255, 66.7 / 255)
    flip: ClassVar[bool] = True
    crop: ClassVar[int] = 4

    @property
    def encoding(self) -> str:
        """How the images of this copy come."""
        return encoding(self.path)

    def read(self, part: Part) -> Images:
        """All images of one part; raises UserError that names the file at fault."""
        return read(SOURCE, self.path, part)
