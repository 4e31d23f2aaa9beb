"""Items of any torch Dataset of (input, label), or of a DataLoader, as training and searching read them."""

from collections.abc import Callable, Iterator, Mapping, Sized
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Generator, Tensor
from torch.utils import data as torch_data
from torch.utils._pytree import tree_map_only
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from htas.data.split import Batch, Source
from htas.errors import UserError

_UNUSABLE = f"{UserError.__module__}.{UserError.__qualname__}"
SEEN = 8
"""Items that a data set's fingerprint is computed from."""
LABELS = 100_000
"""Items whose labels are looked at one by one, at most, to divide them class by class."""


@dataclass(frozen=True, eq=False)
class Items(Source):
    """Some items of a torch Dataset, which augments and normalises them as it likes; the counterpart of a Split."""

    dataset: TorchDataset[Any]
    picks: Tensor
    """int64 [N], which of its items."""
    device: str = "cpu"
    workers: int = 0
    """Processes that load items."""
    collate: Callable[[list[Any]], Any] | None = None
    varied: TorchDataset[Any] | None = None
    """The same items, augmented; None where `dataset` does that as it likes."""

    def __len__(self) -> int:
        return len(self.picks)

    def where(self, mask: Tensor) -> "Items":
        """The items at a bool mask [N], in their order."""
        return replace(self, picks=self.picks[mask])

    def _only(self, picks: Tensor) -> "Items":
        return replace(self, picks=picks, device="cpu", workers=0)

    def on(self, device: str) -> "Items":
        """The same, put on a device as they are asked for."""
        return replace(self, device=device)

    def draws(
        self, size: int, count: int, *, generator: Generator, augment: bool = False, channels_last: bool = False
    ) -> Iterator[Batch]:
        """`count` batches of `size` items drawn uniformly with replacement: inputs [B, ...] and targets [B, ...].

        All picks are drawn at once, so that workers can load ahead.
        """
        order = torch.randint(len(self), (size * count,), generator=generator)
        return self._batches(order, size, generator, augment, False, channels_last)

    def _batches(
        self, order: Tensor, size: int, generator: Generator, augment: bool, drop_last: bool, channels_last: bool
    ) -> Iterator[Batch]:
        """The generator seeds what the workers draw; raises UserError where an item is no inputs and targets."""
        seeded = Generator().manual_seed(int(torch.randint(2**62, (), generator=generator)))
        picks = self.picks[order].tolist()
        loader: DataLoader[Any] = DataLoader(
            self.varied if augment and self.varied is not None else self.dataset, size,
            sampler=cast(Any, picks), num_workers=self.workers, collate_fn=self.collate, drop_last=drop_last,
            pin_memory=self.device.startswith("cuda"), generator=seeded,
        )  # fmt: skip
        try:
            for batch in loader:
                yield self._placed(batch, channels_last)
        except UserError as error:  # from a worker it comes with a traceback before its last line
            raise UserError(str(error).strip().splitlines()[-1].removeprefix(f"{_UNUSABLE}: ")) from None

    def labels(self) -> Tensor | None:
        """int64 [N]; None where they cannot be had without loading a great many items."""

        def first(labels: Tensor) -> Tensor:
            """One label for each item, of those that have several."""
            return labels.cpu().long().reshape(len(labels), -1)[:, 0]

        for name in ("targets", "labels"):
            labels = getattr(self.dataset, name, None)
            if isinstance(labels, list | Tensor) and len(labels) > int(self.picks.max()):
                labels = first(torch.as_tensor(labels)[self.picks])
                some = torch.linspace(0, len(self) - 1, min(SEEN, len(self))).long()
                _, targets = next(self._only(self.picks[some]).batches(len(some)))
                if torch.equal(labels[some], first(targets)):  # no target_transform
                    return labels
        if isinstance(self.dataset, torch_data.TensorDataset) and len(self.dataset.tensors) == 2:
            return first(self.dataset.tensors[1][self.picks])
        if len(self) > LABELS:
            return None
        return first(torch.cat([labels.cpu() for _, labels in self.batches(256)]))

    def _placed(self, batch: Any, channels_last: bool) -> Batch:
        parts = _divided(batch)
        tensors, targets = tree_map_only(Tensor, lambda each: each.to(self.device, non_blocking=True), parts)
        if channels_last:
            layout = torch.channels_last
            tensors = [each.contiguous(memory_format=layout) if each.dim() == 4 else each for each in tensors]
        if isinstance(targets, Tensor) and not targets.is_floating_point() and not targets.is_complex():
            targets = targets.long()
        return (tensors[0] if len(tensors) == 1 else tuple(tensors)), targets


NAMES = ("label", "labels", "target", "targets")
"""The entry of a batch by names that is not an input."""


def _divided(batch: Any) -> tuple[list[Tensor], Any]:
    """The inputs of a batch, and its targets: (input, targets), ((input, input), targets), (input, input, targets), or
    a dictionary of inputs with "label", "labels", "target" or "targets"."""
    inputs: Any = ()
    targets: Any = None
    if isinstance(batch, Mapping):
        keys = [name for name in NAMES if name in batch]
        if len(keys) == 1:
            inputs, targets = [each for name, each in batch.items() if name != keys[0]], batch[keys[0]]
    elif isinstance(batch, tuple | list) and len(batch) >= 2:
        *inputs, targets = batch
        if len(inputs) == 1 and isinstance(inputs[0], tuple | list):
            inputs = inputs[0]
    if not inputs or not all(isinstance(each, Tensor) for each in inputs):
        raise UserError(
            "an item of data must be (input tensor, targets), with several inputs (input, input, targets), or a "
            f'dictionary of them with "label", of which batches of tensors are made; got {_shown(batch)}: give a '
            "Dataset of such items, or a DataLoader with a collate_fn that makes them"
        )
    return list(inputs), targets


def items(data: Any, what: str) -> Items:
    """A torch Dataset, or the items of a DataLoader, as Items; raises UserError for anything else."""
    loader = data if isinstance(data, DataLoader) else None
    dataset = loader.dataset if loader is not None else data
    numbered = hasattr(dataset, "__getitem__") and not isinstance(dataset, torch_data.IterableDataset)
    if not numbered or not isinstance(dataset, Sized):
        raise UserError(
            f"{what} must be a torch Dataset with a length and items by number, or a DataLoader of one; got "
            f"{type(data).__name__}"
        )
    if not len(dataset):
        raise UserError(f"{what} are empty")
    workers = loader.num_workers if loader is not None else 0
    collate = loader.collate_fn if loader is not None else None
    return Items(cast(TorchDataset[Any], dataset), _picks(loader, len(dataset), what), "cpu", workers, collate)


def _picks(loader: DataLoader[Any] | None, count: int, what: str) -> Tensor:
    """The numbers of the items that a loader loads, int64 [N]; raises UserError where its sampler does not say."""
    sampler = loader.sampler if loader is not None else None
    if isinstance(sampler, torch_data.SubsetRandomSampler):
        return torch.as_tensor(list(sampler.indices), dtype=torch.long)
    if sampler is not None and type(sampler) not in (torch_data.RandomSampler, torch_data.SequentialSampler):
        raise UserError(
            f"the DataLoader of {what} has a {type(sampler).__name__}, which does not say which items are its own; "
            "give a torch.utils.data.Subset of the Dataset instead"
        )
    return torch.arange(count)


def limited(part: Items, limit: int) -> Items:
    if not 0 < limit < len(part):
        return part
    mask = torch.zeros(len(part), dtype=torch.bool)
    mask[torch.randperm(len(part), generator=Generator().manual_seed(0))[:limit]] = True
    return part.where(mask)


def _shown(batch: Any) -> str:
    if isinstance(batch, tuple | list):
        return f"{type(batch).__name__} of {', '.join(type(each).__name__ for each in batch) or 'nothing'}"
    if isinstance(batch, Mapping):
        return f"{type(batch).__name__} with {', '.join(map(str, batch)) or 'nothing'}"
    return type(batch).__name__
