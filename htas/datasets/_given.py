"""Data that were given as they are, to htas.optimize: any torch Dataset of (input, label), or a DataLoader of them."""

from collections.abc import Callable, Iterator, Sized
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Generator, Tensor
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset
from torch.utils.data import Dataset as TorchDataset

from htas.datasets import Data, Dataset, Images, Part, Shape, proportional
from htas.files import Unusable
from htas.task import CLASSIFY, Task

_KNOWN: dict[str, tuple["Items", "Items", Task]] = {}
LABELS = 100_000
"""Items whose labels are looked at one by one, at most, to divide them class by class."""


@dataclass(frozen=True, eq=False)
class Items:
    """Some items of a torch Dataset, which augments and normalises them as it likes; the counterpart of a Split."""

    dataset: TorchDataset[Any]
    picks: Tensor
    """int64 [N], which of its items."""
    device: str = "cpu"
    workers: int = 0
    """Processes that load items."""
    collate: Callable[[list[Any]], Any] | None = None

    def __len__(self) -> int:
        return len(self.picks)

    def where(self, chosen: Tensor) -> "Items":
        """The items at a bool mask [N], in their order."""
        return Items(self.dataset, self.picks[chosen], self.device, self.workers, self.collate)

    def on(self, device: str) -> "Items":
        """The same, put on a device as they are asked for."""
        return Items(self.dataset, self.picks, device, self.workers, self.collate)

    def batches(
        self,
        size: int,
        *,
        seed: int | None = None,
        augment: bool = False,
        drop_last: bool = False,
        channels_last: bool = False,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Every item once: inputs [B, ...] and labels [B]; the seed draws the order, None keeps it as it is."""
        generator = Generator().manual_seed(seed or 0)
        order = self.picks if seed is None else self.picks[torch.randperm(len(self), generator=generator)]
        loader: DataLoader[Any] = DataLoader(
            self.dataset, size, sampler=cast(Any, order.tolist()), num_workers=self.workers, collate_fn=self.collate,
            drop_last=drop_last, generator=generator,
        )  # fmt: skip
        for batch in loader:
            yield self._placed(batch, channels_last)

    def sample(
        self, size: int, *, generator: Generator, augment: bool = False, channels_last: bool = False
    ) -> tuple[Tensor, Tensor]:
        """So many items drawn uniformly with replacement."""
        picks = self.picks[torch.randint(len(self), (size,), generator=generator)].tolist()
        items = cast(TorchDataset[Any], Subset(self.dataset, picks))
        loader: DataLoader[Any] = DataLoader(items, size, num_workers=0, collate_fn=self.collate)
        return self._placed(next(iter(loader)), channels_last)

    def labels(self) -> Tensor | None:
        """int64 [N]; None where they cannot be had without loading a great many items."""
        for name in ("targets", "labels"):
            found = getattr(self.dataset, name, None)
            if isinstance(found, list | Tensor) and len(found) > int(self.picks.max()):
                return torch.as_tensor(found)[self.picks].long().reshape(len(self), -1)[:, 0]
        if isinstance(self.dataset, TensorDataset) and len(self.dataset.tensors) == 2:
            return self.dataset.tensors[1][self.picks].long().reshape(len(self), -1)[:, 0]
        if len(self) > LABELS:
            return None
        return torch.cat([labels.cpu() for _, labels in self.batches(256)]).long().reshape(len(self), -1)[:, 0]

    def _placed(self, batch: Any, channels_last: bool) -> tuple[Tensor, Tensor]:
        if (
            not isinstance(batch, tuple | list)
            or len(batch) != 2
            or not all(isinstance(each, Tensor) for each in batch)
        ):
            raise ValueError(
                "an item of data must be a pair (input tensor, label), of which a batch is a pair of tensors; got "
                f"{_shown(batch)}: give a Dataset of such pairs, or a DataLoader with a collate_fn that makes them"
            )
        inputs, labels = (each.to(self.device, non_blocking=True) for each in batch)
        if channels_last and inputs.dim() == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        return inputs, labels


@dataclass(frozen=True)
class GivenData(Dataset):
    """The user's training and validation items; only the process that they were given to has them."""

    key: str
    """By which that process knows them."""
    count: int
    """Classes."""
    image: tuple[int, ...]
    """Shape of an input."""
    sizes: tuple[int, ...]
    """Training and validation items."""
    task: str = ""
    """What of the task is the user's own."""

    mean = std = ()
    flip, crop = False, 0

    @staticmethod
    def of(train: Any, test: Any, classes: int, image: tuple[int, ...], task: Task = CLASSIFY) -> "GivenData":
        """Remember them; raises ValueError for what is no data."""
        parts = items(train, "the training data"), items(test, "the validation data")
        sizes = tuple(len(part) for part in parts)
        key = f"{type(parts[0].dataset).__name__}-{sizes[0]}-{sizes[1]}"
        _KNOWN[key] = *parts, task
        return GivenData(key, classes, image, sizes, task.name)

    @property
    def classes(self) -> int:
        """As many as the network has outputs."""
        return self.count

    @property
    def shape(self) -> Shape:
        """Of an input."""
        return cast(Shape, tuple(self.image))

    def read(self, part: Part) -> Images:
        """Never: items are loaded as they are asked for."""
        raise NotImplementedError

    def load(self, *, device: str, validation: float, seed: int, limit: int) -> Data:
        """As `htas.datasets.load`; raises Unusable in another process."""
        if self.key not in _KNOWN:
            raise Unusable(
                "the data of this run were given to htas.optimize in Python; call it again with the same data and this "
                "folder as out"
            )
        *parts, task = _KNOWN[self.key]
        train, test = (_limited(part.on(device), limit) for part in parts)
        labels = train.labels() if task.classifies else None
        if labels is not None and (labels.min() < 0 or labels.max() >= self.classes):
            raise ValueError(
                f"labels of the training data must lie in 0 to {self.classes - 1}, as the network has {self.classes} "
                f"outputs; they are {labels.min().item()} to {labels.max().item()}"
            )
        known = labels if labels is not None else torch.zeros(len(train), dtype=torch.long)
        held = proportional(known, round(len(train) * validation), seed)
        return Data(self.classes, self.shape, train, train.where(~held), train.where(held), test, task)


def items(given: Any, what: str) -> Items:
    """A torch Dataset, or what a DataLoader loads, as Items; raises ValueError for anything else."""
    loader = given if isinstance(given, DataLoader) else None
    dataset = loader.dataset if loader is not None else given
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__") or not isinstance(dataset, Sized):
        raise ValueError(
            f"{what} must be a torch Dataset with a length and items by number, or a DataLoader of one; got "
            f"{type(given).__name__}"
        )
    if not len(dataset):
        raise ValueError(f"{what} are empty")
    workers = loader.num_workers if loader is not None else 0
    collate = loader.collate_fn if loader is not None else None
    return Items(cast(TorchDataset[Any], dataset), torch.arange(len(dataset)), "cpu", workers, collate)


def _limited(part: Items, limit: int) -> Items:
    if not 0 < limit < len(part):
        return part
    chosen = torch.zeros(len(part), dtype=torch.bool)
    chosen[torch.randperm(len(part), generator=Generator().manual_seed(0))[:limit]] = True
    return part.where(chosen)


def _shown(batch: Any) -> str:
    if isinstance(batch, tuple | list):
        return f"{type(batch).__name__} of {', '.join(type(each).__name__ for each in batch) or 'nothing'}"
    return type(batch).__name__
