"""CIFAR-100: 32x32 colour photographs of a hundred classes (Krizhevsky, 2009)."""

from dataclasses import dataclass
from typing import ClassVar

from htas.data.split import Images, Part, Shape
from htas.datasets import Dataset
from htas.datasets._binary import Archive
from htas.datasets._cifar import CifarSource, read
from htas.datasets._copies import encoding
from htas.datasets._parquet import Columns

SOURCE = CifarSource(
    hub="uoft-cs/cifar100",
    folder="cifar100",
    columns=Columns(image="img", label="fine_label"),
    archive=Archive(
        file="cifar-100-binary.tar.gz",
        md5="03b5dce01913d631647c71ecec9e9cb8",
        folder="cifar-100-binary",
        train=("train.bin",),
        test=("test.bin",),
        train_images=50_000,
        test_images=10_000,
        label_bytes=2,
        pickles=("cifar-100-python.tar.gz", "cifar-100-python", "meta"),
    ),
    classes=100,
    shape=(3, 32, 32),
)


@dataclass(frozen=True)
class Cifar100(Dataset):
    """50,000 training and 10,000 test images under their fine labels; mean and deviation as TAS has them."""

    path: str = ""
    """A local copy: a folder in the hub's parquet layout, cifar-100-binary.tar.gz or a folder with it or its .bin
    files, or a folder of train/CLASS/*.png and test/CLASS/*.png; empty for the Hugging Face hub."""

    classes: ClassVar[int] = SOURCE.classes
    shapes: ClassVar[tuple[Shape, ...]] = (SOURCE.shape,)
    mean: ClassVar[tuple[float, ...]] = (129.3 / 255, 124.1 / 255, 112.4 / 255)
    std: ClassVar[tuple[float, ...]] = (68.2 / 255, 65.4 / 255, 70.4 / 255)
    flip: ClassVar[bool] = True
    crop: ClassVar[int] = 4

    @property
    def encoding(self) -> str:
        """How the images of this copy come."""
        return encoding(self.path)

    def read(self, part: Part) -> Images:
        """All images of one part; raises UserError that names the file at fault."""
        return read(SOURCE, self.path, part)
