"""The contract of data sets, and how one becomes tensors on a device, with train, validation and test apart.

A data set is one file of this folder. It only reads; splitting, shuffling, augmenting and checking come free.
"""

import math
from abc import ABC, abstractmethod
from math import prod

import torch
from torch import Tensor

from htas.data.split import PARTS, Data, Images, Part, Shape, Split, proportional
from htas.errors import UserError
from htas.text import plural

KEPT = 0
"""Seed of the images that `limit` keeps, so that they are the same in every run."""
LEAST_STD = 1e-4
"""Least standard deviation of a channel: a single grey level of one image in a thousand deviates by more."""


class Dataset(ABC):
    """The contract: a frozen dataclass whose fields are its options, each documented by the string beneath."""

    @property
    @abstractmethod
    def classes(self) -> int:
        """Number of classes; labels are 0 to classes - 1."""

    @property
    @abstractmethod
    def shapes(self) -> tuple[Shape, ...]:
        """Shape of each input of a network, without the batch; of images one: channels, height and width."""

    @property
    @abstractmethod
    def mean(self) -> tuple[float, ...]:
        """Of each channel over the training part, black 0 and white 1."""

    @property
    @abstractmethod
    def std(self) -> tuple[float, ...]:
        """Standard deviation of each channel, in the units of `mean`."""

    @property
    def flip(self) -> bool:
        """Whether a mirrored image is still an image of its class; False by default."""
        return False

    @property
    def crop(self) -> int:
        """Black pixels padded on each side before a random crop to the old size; 0, the default, for none."""
        return 0

    def read(self, part: Part) -> Images:
        """All images of one part, uint8 [N, C, H, W], always in the same order; raises UserError that names the file at
        fault. A data set overrides this method or `load`."""
        raise NotImplementedError(f"{type(self).__name__} has neither read() nor load()")

    def load(self, *, device: str, validation: float, seed: int, limit: int) -> "Data":
        """On a device, in parts: as `htas.datasets.load`, which checks the options."""
        train, test = (_read(self, part, limit) for part in PARTS)

        def split(part: Images) -> Split:
            return Split(part.images.to(device), part.labels.to(device), self.mean, self.std, self.flip, self.crop)

        return Data.of(
            self.classes, self.shapes, split(train), train.labels, split(test), validation=validation, seed=seed
        )

    @property
    def doubts(self) -> tuple[str, ...]:
        """What speaks against the accuracies that it tells, in sentences for the report; nothing by default."""
        return ()

    @property
    def encoding(self) -> str:
        """How its images come, where copies of it differ: `PNG images, lossless`, `JPEG images of quality 95`."""
        return ""

    @property
    def name(self) -> str:
        """Its name in a configuration: its file, or 'package.module:Class' when it is not of this folder."""
        folder, _, file = type(self).__module__.rpartition(".")
        return file if folder == __name__ else f"{type(self).__module__}:{type(self).__qualname__}"


def load(dataset: Dataset, *, device: str = "cpu", validation: float = 0.5, seed: int = 0, limit: int = 0) -> Data:
    """Read a data set, check it and put it on a device.

    `validation` is the share of the training part that is drawn from it, class by class, with `seed`. A `limit`
    above 0 keeps at most this many images of training and of test, the same ones in every run.
    Raises UserError for a file or option that cannot be used.
    """
    if not 0 < validation < 1:
        raise UserError(f"validation is a share of the training images between 0 and 1, got {validation}")
    if limit < 0:
        raise UserError(f"limit must be 0 (all images) or more, got {limit}")
    check(dataset)
    data = dataset.load(device=device, validation=validation, seed=seed, limit=limit)
    if not len(data.weights) or not len(data.validation):
        count = len(data.train)
        raise UserError(
            f"validation = {validation} of {count} images leaves one side empty; raise limit or change validation"
        )
    return data


MOST_CLASSES = 1_000_000
"""More outputs than any network has, which a label that is no class asks for."""
MOST_NUMBERS = 2**31
"""Numbers of an item, of which no batch fits into a memory."""


def check(dataset: Dataset) -> None:
    """Raise UserError where what a data set says of its images cannot be: classes, shapes, means, deviations, crop."""
    name, classes, shapes = dataset.name, dataset.classes, dataset.shapes
    if not 1 <= classes <= MOST_CLASSES:
        raise UserError(f"{name} has {classes} classes, which must be 1 to {MOST_CLASSES}; check its labels")
    if not shapes or any(not shape or min(shape) < 1 for shape in shapes):
        raise UserError(f"{name} has inputs of shapes {list(map(list, shapes))}, which must have sizes of 1 or more")
    if (most := max(map(prod, shapes))) > MOST_NUMBERS:
        raise UserError(f"{name} has inputs of {most:,} numbers, which may be {MOST_NUMBERS:,}; give it smaller ones")
    overridden = type(dataset).load is not Dataset.load  # it may normalise in another way
    for what, figures in (("mean", dataset.mean), ("std", dataset.std)):
        if len(figures) != shapes[0][0] and (figures or not overridden):
            raise UserError(
                f"{name} has {plural(len(figures), what)} for {plural(shapes[0][0], 'channel')}; give one for each"
            )
        least = LEAST_STD if what == "std" else -math.inf
        for channel, figure in enumerate(figures):
            if not (math.isfinite(figure) and figure >= least):
                allowed = f"{least:g} or more, where white is 1" if what == "std" else "a number"
                raise UserError(f"{name} has the {what} {figure:g} in channel {channel}, which must be {allowed}")
    if not 0 <= dataset.crop <= min(shapes[0][1:], default=0):
        raise UserError(
            f"{name} has crop = {dataset.crop}, pixels padded on each side, which must be 0 to "
            f"{min(shapes[0][1:], default=0)}, the smaller side of an image"
        )


def _read(dataset: Dataset, part: Part, limit: int) -> Images:
    """One part, checked once, so that nothing after needs to, and limited."""
    read = dataset.read(part)
    images, labels = read.images, read.labels
    where = f"the {part} part of {dataset.name}"
    for what, each in (("images", images), ("labels", labels)):
        if not isinstance(each, Tensor) or each.layout != torch.strided or each.device.type == "meta":
            kind = f"a {each.device} tensor, {each.layout}" if isinstance(each, Tensor) else type(each).__name__
            raise UserError(f"{what} in {where} must be a torch tensor with values, they are {kind}; make one of them")
    if images.dtype != torch.uint8 or images.shape[1:] != torch.Size(dataset.shapes[0]):
        actual = f"{str(images.dtype).removeprefix('torch.')} {list(images.shape[1:])}"
        raise UserError(f"images in {where} must be uint8 {list(dataset.shapes[0])}, they are {actual}")
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        actual = f"{str(labels.dtype).removeprefix('torch.')} {list(labels.shape)}"
        raise UserError(f"{where} must have one int64 label for each of {len(images)} images, it has {actual}")
    checked_labels(labels, dataset.classes, part, dataset.name)
    return read.where(proportional(labels, limit, KEPT)) if 0 < limit < len(read) else read


def checked_labels(labels: Tensor, classes: int, part: Part, name: str) -> None:
    """Raise UserError where the int64 labels [N] of a part of a data set are not those of its classes."""
    where = f"the {part} part of {name}"
    if len(labels) == 0:
        raise UserError(f"{where} has no images; check its files")
    if labels.min() < 0 or labels.max() >= classes:
        bounds = f"{labels.min().item()} to {labels.max().item()}"
        raise UserError(f"labels in {where} must lie in 0 to {classes - 1}, they are {bounds}")
    present = len(set(labels.tolist()))
    if part == "train" and present < classes:
        raise UserError(f"{where} has images of {present} classes only, it must have {classes}")
