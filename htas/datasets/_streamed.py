"""Images that are decoded when they are asked for, by worker processes: data sets that do not fit into memory."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from htas.data.items import Items, limited
from htas.data.split import PARTS, Data, Part, Shape
from htas.datasets import checked_labels
from htas.datasets._encoded import CopiedDataset, unreadable
from htas.errors import UserError, need_least, need_most
from htas.timing.target import usable_cores

if TYPE_CHECKING:
    from PIL.Image import Image

SHORTER = 0.875
"""Share of an image's shorter side that is seen when it is not augmented, as is usual for ImageNet."""
AREA = (0.08, 1.0)
"""Share of an image's area that an augmented crop has (Szegedy et al. 2015)."""
RATIO = (3 / 4, 4 / 3)
"""Its width over its height."""
TRIES = 10
"""Draws of a crop; then the middle is taken."""
MOST_SIZE, MOST_WORKERS = 8192, 256
"""Largest square, whose images take 0.8 GB each, and most processes."""
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class ImageSource:
    """Numbered images that can be opened one by one, in any process."""

    images: Any
    """Paths; of the hub, a memory-mapped table."""
    labels: Sequence[int]
    column: str = ""
    """The column of the table that has the images; empty for paths."""

    def open(self, number: int) -> "Image":
        """By number, not yet decoded if possible; raises UserError where a column holds something else."""
        from PIL import Image

        if not self.column:
            return Image.open(self.images[number])
        image = self.images[number][self.column]
        if not isinstance(image, Image.Image):
            raise UserError(f"column {self.column!r} holds {type(image).__name__}, no image")
        return image

    def name(self, number: int) -> str:
        """A path, or `row 12 of train`."""
        return f"row {number} of {self.images.split}" if self.column else str(self.images[number])


@dataclass(frozen=True)
class Pictures(TorchDataset[tuple[Tensor, int]]):
    """One part as a torch Dataset: float32 [3, size, size] normalised, and the label. Pickled for every worker."""

    options: "Streamed"
    source: ImageSource
    augmented: bool

    def __len__(self) -> int:
        return len(self.source.labels)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        try:
            image = self.source.open(number)
            box = _drawn(image.size) if self.augmented else _middle(image.size)
            pixels = np.asarray(_cut(image, box, self.options.size))
        except unreadable() as error:
            raise UserError(f"{self.source.name(number)} cannot be decoded ({error}); replace it") from error
        tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float()
        if self.augmented and self.options.mirror and torch.rand(()) < 0.5:
            tensor = tensor.flip(2)
        figures = (self.options.mean, self.options.std)
        mean, std = (torch.tensor(values).mul_(255).view(-1, 1, 1) for values in figures)
        return tensor.sub_(mean).div_(std), int(self.source.labels[number])


def _middle(size: tuple[int, int]) -> Box:
    side = SHORTER * min(size)
    x, y = (size[0] - side) / 2, (size[1] - side) / 2
    return x, y, x + side, y + side


def _drawn(size: tuple[int, int]) -> Box:
    """A box somewhere, of some share of the area and of some ratio, drawn by torch's generator of this process."""
    width, height = size
    for _ in range(TRIES):
        share, stretch, x, y = torch.rand(4).tolist()
        area = width * height * (AREA[0] + share * (AREA[1] - AREA[0]))
        ratio = math.exp(math.log(RATIO[0]) + stretch * math.log(RATIO[1] / RATIO[0]))
        wide, high = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if wide <= width and high <= height:
            column, row = x * (width - wide), y * (height - high)
            return column, row, column + wide, row + high
    return _middle(size)


def _cut(image: "Image", box: Box, size: int) -> "Image":
    """The box of an image, size x size. A JPEG is decoded at a half, a quarter or an eighth where that is enough."""
    from PIL import Image as pil

    before, least = image.size, min(box[2] - box[0], box[3] - box[1])
    shrink = least / size
    if shrink > 1 and hasattr(image, "draft"):
        image.draft("RGB", (math.ceil(before[0] / shrink), math.ceil(before[1] / shrink)))
    x, y = image.size[0] / before[0], image.size[1] / before[1]
    placed = box[0] * x, box[1] * y, min(box[2] * x, image.size[0]), min(box[3] * y, image.size[1])
    return image.convert("RGB").resize((size, size), pil.Resampling.BILINEAR, box=placed)


@dataclass(frozen=True)
class Streamed(CopiedDataset):
    """A data set of images of any size, which are cut to squares; subclasses say where they are."""

    size: int = 224
    """Height and width of the square that each image is cut and scaled to."""
    workers: int = -1
    """Processes that decode images; -1 means one for each core that this process may use."""
    mirror: bool = True
    """Whether a mirrored image is still an image of its class."""

    mean: ClassVar[tuple[float, ...]] = (0.485, 0.456, 0.406)
    std: ClassVar[tuple[float, ...]] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        need_least(1, self, "data", "size")
        need_most(MOST_SIZE, self, "data", "size")
        need_most(MOST_WORKERS, self, "data", "workers")
        if self.workers < -1:
            raise UserError(f"data.workers must be -1 (one for each core), 0 (none) or more, got {self.workers}")

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """(3, size, size): of every image, once it is cut."""
        return ((3, self.size, self.size),)

    @abstractmethod
    def source(self, part: Part) -> ImageSource:
        """The images of one part, always in the same order; raises UserError that names what is at fault."""

    def load(self, *, device: str, validation: float, seed: int, limit: int) -> Data:
        """As `htas.datasets.load`."""
        sources = self.source("train"), self.source("test")
        train, test = (limited(self._items(*each, device), limit) for each in zip(sources, PARTS, strict=True))
        labels = torch.as_tensor(sources[0].labels)[train.picks]
        return Data.of(self.classes, self.shapes, train, labels, test, validation=validation, seed=seed)

    def _items(self, source: ImageSource, part: Part, device: str) -> Items:
        checked_labels(torch.as_tensor(source.labels, dtype=torch.int64), self.classes, part, self.name)
        plain, varied = (Pictures(self, source, augmented) for augmented in (False, True))
        workers = usable_cores() if self.workers < 0 else self.workers
        return Items(plain, torch.arange(len(source.labels)), device, workers, varied=varied)
