"""Images and labels of a part of a data set, on a device, in batches."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Generator, Tensor
from torch.nn import functional

from htas.data.copies import drawn_together
from htas.data.task import CLASSIFY, Inputs, Task
from htas.errors import UserError

Part = Literal["train", "test"]
PARTS: tuple[Part, Part] = ("train", "test")
Shape = tuple[int, ...]
"""Of one item of one input, without the batch: channels, height and width of an image."""
Batch = tuple[Inputs, Any]
"""Inputs, and labels or other targets."""
WHOLE = slice(None)


@dataclass(frozen=True, eq=False)
class Images:
    """Images as they were read: `images` uint8 [N, C, H, W], `labels` int64 [N]."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def where(self, mask: Tensor) -> "Images":
        """The images at a bool mask [N], in their order."""
        return Images(self.images[mask], self.labels[mask])

    @staticmethod
    def joined(parts: "Sequence[Images]") -> "Images":
        """The images of all parts, one after the other."""
        return Images(torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts]))


class Source(ABC):
    """Inputs and targets for training and searching: images in memory (Split), or items that are loaded (Items)."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def where(self, mask: Tensor) -> "Source":
        """The items at a bool mask [N], in their order."""

    def copies(self) -> Tensor | None:
        """int64 [N], from 0 on, a number for each item that copies of it have too; None where no item stands twice."""
        return None

    def batches(
        self,
        size: int,
        *,
        seed: int | None = None,
        augment: bool = False,
        drop_last: bool = False,
        channels_last: bool = False,
        only: slice = WHOLE,
    ) -> Iterator[Batch]:
        """Every item once: inputs [B, ...] and targets [B, ...]; of a Split float32 [B, C, H, W] and int64 labels [B].

        The seed draws the order and the augmentation, alike on every device; None keeps the order as it is. The
        last batch may be shorter; `drop_last` leaves it out. `only` is a part of every batch, of equal size where
        batches are, and the rest of it is not loaded. Raises UserError for a size below 1, for augmentation
        without a seed, and for `drop_last` where that would leave no batch at all.
        """
        if size < 1:
            raise UserError(f"a batch must have at least 1 image, got {size}")
        if augment and seed is None:
            raise UserError("augmented batches are drawn at random, so they need a seed; give one")
        if drop_last and size > len(self):
            raise UserError(f"a full batch of {size} cannot be made of {len(self)} images; choose a smaller batch")
        generator = Generator().manual_seed(seed or 0)
        order = torch.arange(len(self)) if seed is None else torch.randperm(len(self), generator=generator)
        return self._batches(order, size, generator, augment, drop_last, channels_last, only)

    def draws(
        self,
        size: int,
        count: int,
        *,
        generator: Generator,
        augment: bool = False,
        channels_last: bool = False,
        only: slice = WHOLE,
    ) -> Iterator[Batch]:
        """`count` batches of `size` items drawn uniformly with replacement: inputs [B, ...] and targets [B, ...].

        The generator must be one of the CPU, so that the draw is the same on every device; each batch is drawn when its
        turn comes. `only` is as in `batches`.
        """
        for _ in range(count):
            picks = torch.randint(len(self), (size,), generator=generator)
            yield from self._batches(picks, size, generator, augment, False, channels_last, only)

    @abstractmethod
    def _batches(
        self, order: Tensor, size: int, generator: Generator, augment: bool, drop_last: bool, channels_last: bool,
        only: slice,
    ) -> Iterator[Batch]:  # fmt: skip
        """The items of these numbers, int64 [N], in batches, of each of which `only` a part is made."""


@dataclass(frozen=True, eq=False)
class Split(Source):
    """Images and labels that live on one device, and how they are normalised and augmented there."""

    images: Tensor
    """uint8 [N, C, H, W]."""
    labels: Tensor
    """int64 [N]."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool
    crop: int

    def __len__(self) -> int:
        return len(self.labels)

    def where(self, mask: Tensor) -> "Split":
        """The images at a bool mask [N], in their order."""
        mask = mask.to(self.labels.device)
        return replace(self, images=self.images[mask], labels=self.labels[mask])

    def _batches(
        self, order: Tensor, size: int, generator: Generator, augment: bool, drop_last: bool, channels_last: bool,
        only: slice,
    ) -> Iterator[tuple[Tensor, Tensor]]:  # fmt: skip
        layout = torch.channels_last if channels_last else torch.contiguous_format
        device = self.images.device
        mean, std = (torch.tensor(x, device=device).mul_(255).view(-1, 1, 1) for x in (self.mean, self.std))
        stop = len(order) - size + 1 if drop_last else len(order)
        for whole in (order[start : start + size] for start in range(0, stop, size)):
            picks = whole[only].to(device)
            images = self.images[picks]
            if augment:
                images = augmented(
                    images, crop=self.crop, flip=self.flip, generator=generator, among=len(whole), only=only
                )
            yield images.float().sub_(mean).div_(std).contiguous(memory_format=layout), self.labels[picks]


@dataclass(frozen=True, eq=False)
class Data:
    """A data set on a device. Nothing of `test` is in the others; `weights` and `validation` share no image."""

    classes: int
    shapes: tuple[Shape, ...]
    """Of every input of the network."""
    train: Source
    """The whole training part."""
    weights: Source
    """The part of `train` that weight steps of a search see."""
    validation: Source
    """The rest of `train`: architecture steps, and every choice."""
    test: Source
    task: Task = CLASSIFY
    """The loss and the score."""

    @property
    def plain_bytes(self) -> int:
        """Memory that it takes, where it is images and labels in the memory of this machine and no function of a
        user's; else 0."""
        parts = [each for each in (self.train, self.weights, self.validation, self.test) if type(each) is Split]
        tensors = [tensor for each in parts for tensor in (each.images, each.labels) if tensor.device.type == "cpu"]
        plain = type(self) is Data and self.task == CLASSIFY and len(tensors) == 8
        return sum(each.untyped_storage().nbytes() for each in tensors) if plain else 0

    @staticmethod
    def of(
        classes: int,
        shapes: tuple[Shape, ...],
        train: Source,
        labels: Tensor,
        test: Source,
        *,
        validation: float,
        seed: int,
        task: Task = CLASSIFY,
    ) -> "Data":
        """Divide `train`, class by class with `seed`: the share `validation` for validation, the rest for weights;
        copies of one item go to one side.

        `labels` are the int64 labels [N] of `train`, or zeros where it has no classes.
        """
        copies, count = train.copies(), round(len(train) * validation)
        held_out = proportional(labels, count, seed) if copies is None else drawn_together(labels, copies, count, seed)
        return Data(classes, shapes, train, train.where(~held_out), train.where(held_out), test, task)


def proportional(labels: Tensor, count: int, seed: int) -> Tensor:
    """A bool mask [N] of `count` images drawn at random, each class within one of its share."""
    order = torch.randperm(len(labels), generator=Generator().manual_seed(seed))
    order = order[labels[order].argsort(stable=True)]  # class after class, at random within each
    share = torch.arange(len(labels) + 1) * count // len(labels)
    mask = torch.zeros(len(labels), dtype=torch.bool)
    mask[order] = share.diff() > 0
    return mask


def augmented(
    images: Tensor, *, crop: int, flip: bool, generator: Generator, among: int = 0, only: slice = WHOLE
) -> Tensor:
    """Each image padded with black by `crop`, cut out at a random place, and mirrored half of the time.

    Takes and gives uint8 [B, C, H, W]; the draws come from a CPU generator, in one order for every device. With
    `among`, the images are `only` a part of a batch of so many, and get what they would get in it.
    """
    count, channels, height, width = images.shape
    top, start = torch.randint(2 * crop + 1, (2, among or count), generator=generator)[:, only].to(images.device)
    mirrored = torch.rand(among or count, generator=generator)[only].to(images.device) < 0.5
    rows = top[:, None] + torch.arange(height, device=images.device)
    columns = start[:, None] + torch.arange(width, device=images.device)
    if flip:
        columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    padded = functional.pad(images, (crop, crop, crop, crop)).flatten(2)
    # One flat gather: twenty times as fast on a CPU as indexing by image, row and column.
    pixels = rows[:, :, None] * (width + 2 * crop) + columns[:, None, :]
    picks = pixels.view(count, 1, -1).expand(-1, channels, -1)
    return padded.gather(2, picks).view(images.shape)
