"""A folder of images as ImageNet is passed around: train/CLASS/*.jpg and val/CLASS/*.jpg."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from htas.data.split import Part
from htas.datasets._encoded import class_names, labelled_files
from htas.datasets._streamed import ImageSource, Streamed
from htas.errors import UserError
from htas.files import path_of

TESTS = ("val", "validation", "test")
"""Names of the folder next to train/; the first that exists is taken."""


@dataclass(frozen=True)
class ImageFolder(Streamed):
    """Images in one folder per class, decoded by worker processes as they are needed; of any size and number."""

    path: str = ""
    """The folder that has train/ and val/ (or validation/, or test/), with the same class folders in both."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.path:
            raise UserError("data.path must be the folder that has train/ and val/; it is empty")
        path_of(self.path, "data.path")

    @property
    def classes(self) -> int:
        """The class folders of train/; labels follow their sorted names."""
        return len(self._names)

    def source(self, part: Part) -> ImageSource:
        """The images of one part, class by class."""
        paths, labels = zip(*labelled_files(self._folder(part), self._names), strict=True)
        return ImageSource(paths, labels)

    @cached_property
    def _names(self) -> list[str]:
        """The names of the classes, in the order of their labels."""
        names = class_names(self._folder("train"), self._folder("test"))
        if not names:
            raise UserError(f"{self._folder('train')} has no class folders; give it one folder of images per class")
        return sorted(names)

    def _folder(self, part: Part) -> Path:
        root = path_of(self.path, "data.path")
        names = ("train",) if part == "train" else TESTS
        folder = next((root / name for name in names if (root / name).is_dir()), None)
        if folder is None:
            raise UserError(f"{root} has no folder {' or '.join(names)}; it must have train/CLASS and val/CLASS")
        return folder
