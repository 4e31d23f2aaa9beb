"""A folder of images as ImageNet is passed around: train/CLASS/*.jpg and val/CLASS/*.jpg."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from htas.data.split import Part
from htas.datasets._copies import encoding
from htas.datasets._pictures import class_folders, image_files
from htas.datasets._streamed import ImageSource, Streamed
from htas.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

TESTS = ("val", "validation", "test")
"""Names of the folder next to train/; the first that exists is taken."""


@dataclass(frozen=True)
class ImageFolder(Streamed):
    """Images in one folder per class, decoded by worker processes as they are needed; of any size and number."""

    path: str = ""
    """The folder that has train/ and val/ (or validation/, or test/), with the same class folders in both."""

    @property
    def encoding(self) -> str:
        """How the images of this copy come."""
        return encoding(self.path)

    @property
    def classes(self) -> int:
        """The class folders of train/; labels follow their sorted names."""
        return len(_classes(self.path))

    def source(self, part: Part) -> "Files":
        """The images of one part, class by class."""
        return _files(self.path, part)


class Files(ImageSource):
    """The paths of all images of a part, and their labels."""

    def __init__(self, paths: list[str], labels: list[int]) -> None:
        self.paths, self.labels = paths, labels

    def open(self, number: int) -> "Image":
        """By Pillow, which decodes it later."""
        from PIL import Image

        return Image.open(self.paths[number])

    def name(self, number: int) -> str:
        """Its path."""
        return self.paths[number]


@cache
def _classes(path: str) -> tuple[str, ...]:
    """The names of the classes, in the order of their labels."""
    if not path:
        raise UserError("data.path must be the folder that has train/ and val/; it is empty")
    train, test = (class_folders(_place(path, part)) for part in ("train", "test"))
    for name in sorted(train ^ test):
        where = _place(path, "test" if name in train else "train") / name
        raise UserError(f"{where} is missing; both parts must have the same class folders")
    if not train:
        raise UserError(f"{_place(path, 'train')} has no class folders; give it one folder of images per class")
    return tuple(sorted(train))


def _place(path: str, part: str) -> Path:
    root = Path(path).expanduser()
    names = ("train",) if part == "train" else TESTS
    place = next((root / name for name in names if (root / name).is_dir()), None)
    if place is None:
        raise UserError(f"{root} has no folder {' or '.join(names)}; it must have train/CLASS and val/CLASS")
    return place


@cache
def _files(path: str, part: str) -> Files:
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(_classes(path)):
        images = image_files(_place(path, part) / name)
        paths += images
        labels += [label] * len(images)
    return Files(paths, labels)
