"""Items of any torch Dataset of (input, label), or of a DataLoader, as training and searching read them."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Generator, Tensor
from torch.utils import data as torch_data
from torch.utils._pytree import tree_map_only
from torch.utils.data import DataLoader, default_collate
from torch.utils.data import Dataset as TorchDataset

from htas.console.blame import blame
from htas.data.batch import Format, class_targets, one_class, one_shape, shape_of, stacked, unlike
from htas.data.copies import numbered, origins
from htas.data.finite import CHUNK, finite_item, finite_rows, need_finite
from htas.data.split import WHOLE, Batch, Source
from htas.errors import UserError
from htas.text import plural

_UNUSABLE = f"{UserError.__module__}.{UserError.__qualname__}"
SEEN = 8
"""Items that a data set's fingerprint is computed from."""
USUAL = Format()
"""Of data sets that make sure of their items themselves."""
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
    begin: Callable[[int], None] | None = None
    """Called in each of them, with its number, before it loads items."""
    collate: Callable[[list[Any]], Any] | None = None
    """Makes a batch of items, in the user's way; None for torch's."""
    varied: TorchDataset[Any] | None = None
    """The same items, augmented; None where `dataset` does that as it likes."""
    form: Format = USUAL
    """What batches hold."""

    def __len__(self) -> int:
        return len(self.picks)

    def where(self, mask: Tensor) -> "Items":
        """The items at a bool mask [N], in their order."""
        return replace(self, picks=self.picks[mask])

    def origins(self) -> Tensor:
        """int64 [N, 2], of each item the data set that holds it and its number there: equal rows are one item."""
        return origins(self.dataset, self.picks)

    def copies(self) -> Tensor | None:
        """int64 [N], from 0 on, a number for each item that copies of it have too; None where no item stands twice."""
        numbers = numbered(self.origins())
        return numbers if int(numbers.max()) + 1 < len(self) else None

    def item(self, number: int) -> Any:
        """An item as the data set gives it; raises UserError where the user's code fails."""
        picked = int(self.picks[number])
        try:
            return self.dataset[picked]
        except Exception as error:
            raise UserError(f"item {picked} of {self.form.what} cannot be read: {blame(error)}") from error

    def some(self, count: int) -> Batch:
        """One batch of at most `count` items from all over, an even number since some collate functions pair them;
        raises UserError where an input of an item is NaN or infinite."""
        least = min(count, len(self))
        picks = self.picks[torch.linspace(0, len(self) - 1, least - least % 2 or 1).long()]
        inputs, targets = next(self._only(picks).batches(len(picks)))
        if self.collate is None:
            finite = finite_rows((inputs,) if isinstance(inputs, Tensor) else inputs)
            need_finite(self.form.what, picks.tolist(), finite)
        return inputs, targets

    def check_finite(self) -> None:
        """Raise UserError where an input of a TensorDataset is NaN or infinite. Of other data sets only those items are
        looked at that are read for their labels, or by `some`; what a collate function makes of them is not known."""
        if not isinstance(self.dataset, torch_data.TensorDataset) or self.collate is not None:
            return
        inputs = self.dataset.tensors[: len(self.form.shapes) or -1]
        if any(each.is_floating_point() for each in inputs):
            parts = torch.split(self.picks, CHUNK)
            rows = [finite_rows([each[picks] for each in inputs]) for picks in parts]
            need_finite(self.form.what, self.picks.tolist(), torch.cat(rows))

    def _only(self, picks: Tensor) -> "Items":
        return replace(self, picks=picks, device="cpu", workers=0)

    def on(self, device: str) -> "Items":
        """The same, put on a device as they are asked for."""
        return replace(self, device=device)

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

        All picks are drawn at once, so that workers can load ahead.
        """
        order = torch.randint(len(self), (size * count,), generator=generator)
        return self._batches(order, size, generator, augment, False, channels_last, only)

    def _batches(
        self, order: Tensor, size: int, generator: Generator, augment: bool, drop_last: bool, channels_last: bool,
        only: slice,
    ) -> Iterator[Batch]:  # fmt: skip
        """The generator seeds what the workers draw, for every part of a batch in another way; raises UserError where
        an item is no inputs and targets."""
        seeded = Generator().manual_seed(int(torch.randint(2**62, (), generator=generator)) + (only.start or 0))
        dataset = self.varied if augment and self.varied is not None else self.dataset
        if only != WHOLE:
            batches = [order[start : start + size] for start in range(0, len(order), size)]
            parts = [batch[only] for batch in batches if not drop_last or len(batch) == size]
            order, size = torch.cat(parts), len(parts[0])
        picks = self.picks[order].tolist()
        starts = iter(range(0, len(picks), size))
        for batch in self._loaded(dataset, picks, size, self.collate or stacked, drop_last, seeded):
            start = next(starts)
            yield self._placed(batch, picks[start : start + size], channels_last)

    def _loaded(
        self, dataset: TorchDataset[Any], picks: Sequence[int], size: int, collate: Callable[[list[Any]], Any],
        drop_last: bool, seeded: Generator,
    ) -> Iterator[Any]:  # fmt: skip
        """Batches of the items of these numbers, as `collate` makes them."""
        loader: DataLoader[Any] = DataLoader(
            dataset, size, sampler=cast(Any, picks), num_workers=self.workers, collate_fn=collate, drop_last=drop_last,
            worker_init_fn=self.begin, pin_memory=self.device.startswith("cuda"), generator=seeded,
        )  # fmt: skip
        done = 0
        try:
            for batch in loader:
                yield batch
                done += 1
        except Exception as error:  # a user's code may raise anything; of a worker, with a traceback in its message
            lines = str(error).strip().splitlines()
            if isinstance(error, UserError):
                said = lines[-1].removeprefix(f"{_UNUSABLE}: ")
            elif self.form.shapes:  # the user's data, not a data set of this package
                said = f"{self.form.what} cannot be read: {blame(error)}"
            else:
                raise
            error.__traceback__ = None  # its frames would keep the loader, whose workers then wait
            raise UserError(self._fault(dataset, picks[done * size : (done + 1) * size]) or said) from None

    def _fault(self, dataset: TorchDataset[Any], picks: Sequence[int]) -> str:
        """The first of the items by these numbers of which a batch cannot be made, in a sentence; empty where that
        cannot be said of one alone."""
        what = self.form.what
        sizes: dict[tuple[int, ...], int] = {}
        for number in picks:
            try:
                item = dataset[number]
            except UserError:  # a data set of this package
                return ""
            except Exception as error:  # the user's code, once more
                return f"item {number} of {what} cannot be read: {blame(error)}"
            if self.collate is None:
                if item is None:
                    return (
                        f"item {number} of {what} is None: leave it out of the Dataset, as no batch has a place for it"
                    )
                if shape := shape_of(item):
                    sizes.setdefault(shape, number)
                if len(sizes) > 1:
                    return unlike(what, sizes)
        return ""

    def labels(self) -> Tensor | None:
        """int64 [N], the most probable classes of items that have probabilities; None where they cannot be had without
        loading a great many items."""
        some = torch.linspace(0, len(self) - 1, min(SEEN, len(self))).long()
        tensors = self.dataset.tensors if isinstance(self.dataset, torch_data.TensorDataset) else ()
        lists = [tensors[1]] if len(tensors) == 2 else [getattr(self.dataset, name, None) for name in _LISTS]
        for listed in lists:
            with suppress(TypeError, ValueError, RuntimeError, IndexError):  # strings, dictionaries, of fewer items
                labels = self._classes(torch.as_tensor(listed)[self.picks])
                if torch.equal(labels[some], self._only(self.picks[some])._read_labels()):  # no target_transform
                    return labels
        return None if len(self) > LABELS else self._read_labels()

    def _read_labels(self) -> Tensor:
        """The labels [N] that items have before a collate_fn mixes them; otherwise, those of batches."""
        alone, picks, labels = partial(_targets, self.form), self.picks.tolist(), None
        with suppress(UserError, TypeError, ValueError, RuntimeError):
            batches = list(self._loaded(self.dataset, picks, 256, alone, False, Generator()))
            labels = torch.cat([self._classes(targets) for targets, _ in batches])
        if labels is None:
            return torch.cat([one_class(labels) for _, labels in self.on("cpu").batches(256)])
        if self.collate is None:
            need_finite(self.form.what, picks, torch.cat([finite for _, finite in batches]))
        return labels

    def _classes(self, targets: Tensor) -> Tensor:
        return one_class(class_targets(targets, len(targets), self.form))

    def _placed(self, batch: Any, picks: Sequence[int], channels_last: bool) -> Batch:
        parts = self.form.divided(batch, self._numbers(picks), ordered=self.collate is None)
        tensors, targets = tree_map_only(Tensor, lambda each: each.to(self.device, non_blocking=True), parts)
        if channels_last:
            layout = torch.channels_last
            tensors = [each.contiguous(memory_format=layout) if each.dim() == 4 else each for each in tensors]
        if isinstance(targets, Tensor) and not targets.is_floating_point() and not targets.is_complex():
            targets = targets.long()
        return (tensors[0] if len(tensors) == 1 else tuple(tensors)), targets

    def _numbers(self, picks: Sequence[int]) -> list[Sequence[int]]:
        """The numbers that items may have: in this data set, and in those that it is a part of."""
        numbers, dataset = [picks], self.dataset
        while isinstance(dataset, torch_data.Subset):
            numbers.append([int(dataset.indices[number]) for number in numbers[-1]])
            dataset = dataset.dataset
        return numbers


_LISTS = ("targets", "labels")
"""Attributes of a data set that may hold the labels of all items."""


def _targets(form: Format, items: list[Any]) -> tuple[Tensor, Tensor]:
    """The targets of items, [N, ...], and whether their inputs are finite, bool [N]; raises UserError where inputs have
    several shapes."""
    one_shape(items)
    finite = torch.tensor([finite_item(form.inputs(each)) for each in items])
    return torch.stack([torch.as_tensor(form.target(each)) for each in items]), finite


def items(data: Any, what: str) -> Items:
    """A torch Dataset, or the items of a DataLoader, as Items; raises UserError for anything else."""
    loader = data if isinstance(data, DataLoader) else None
    dataset = loader.dataset if loader is not None else data
    numbered = hasattr(dataset, "__getitem__") and not isinstance(dataset, torch_data.IterableDataset)
    if not numbered or not isinstance(dataset, Sized):
        kind = f"{'' if loader is None else 'a DataLoader of '}{type(dataset).__name__}"
        raise UserError(
            f"{what} must be a torch Dataset with a length and items by number, or a DataLoader of one; got {kind}"
        )
    try:
        count = len(dataset)
    except (TypeError, ValueError, OverflowError) as error:  # what __len__ returns is no length
        raise UserError(f"{what} have no length: {type(dataset).__name__}.__len__ fails ({blame(error)})") from error
    if not count:
        raise UserError(f"{what} are empty")
    if isinstance(dataset, tuple | list) and all(hasattr(each, "shape") for each in dataset):
        raise UserError(
            f"{what} are {plural(len(dataset), 'array')}, not items; give torch.utils.data.TensorDataset(inputs, "
            "labels), of tensors"
        )
    picks = _picks(loader, count, what)
    workers = loader.num_workers if loader is not None else 0
    collate = loader.collate_fn if loader is not None and loader.collate_fn is not default_collate else None
    begin = loader.worker_init_fn if loader is not None else None
    return Items(cast(TorchDataset[Any], dataset), picks, "cpu", workers, begin, collate, form=Format(what))


def _picks(loader: DataLoader[Any] | None, count: int, what: str) -> Tensor:
    """The numbers of the items that a loader loads, int64 [N]; raises UserError where its samplers do not say."""
    if loader is None:
        return torch.arange(count)
    if loader.batch_sampler is None:
        raise UserError(
            f"the DataLoader of {what} has batch_size=None, so that its Dataset makes whole batches; give a Dataset of "
            "single items"
        )
    sampler: Any = loader.batch_sampler
    if type(sampler) is torch_data.BatchSampler:
        sampler = sampler.sampler
    listed: Any = ()
    if type(sampler) in (torch_data.RandomSampler, torch_data.SequentialSampler):
        listed = range(len(sampler.data_source))
    elif isinstance(sampler, torch_data.SubsetRandomSampler):
        listed = sampler.indices
    elif isinstance(sampler, Sequence | Tensor):  # numbers, or a list of them for each batch
        listed = sampler
    groups = (each if isinstance(each, Sequence | Tensor) and not _single(each) else (each,) for each in listed)
    numbers = [int(number) for group in groups for number in group]
    if isinstance(sampler, torch_data.WeightedRandomSampler):
        raise UserError(
            f"the DataLoader of {what} has a WeightedRandomSampler, and batches are drawn here without weights: give a "
            "DataLoader without it, and weigh the classes in the loss, loss_fn=torch.nn.CrossEntropyLoss(weight=...)"
        )
    if isinstance(sampler, torch_data.RandomSampler) and sampler.num_samples != len(numbers):
        raise UserError(
            f"the DataLoader of {what} has a RandomSampler that draws {sampler.num_samples} of {len(numbers)} items, "
            "and an epoch has every item once here: give a Subset of the items, or leave num_samples out and set epochs"
        )
    if len(set(Counter(numbers).values())) > 1:
        raise UserError(
            f"the sampler of the DataLoader of {what} lists some items more often than others, and an epoch has every "
            "item once here: list each once, and weigh the classes in the loss, "
            "loss_fn=torch.nn.CrossEntropyLoss(weight=...)"
        )
    if not numbers or min(numbers) < 0 or max(numbers) >= count:
        raise UserError(
            f"the DataLoader of {what} has a {type(sampler).__name__}, which does not say which items are its own; "
            "give a torch.utils.data.Subset of the Dataset instead"
        )
    return torch.tensor(list(dict.fromkeys(numbers)))


def _single(number: Any) -> bool:
    return isinstance(number, Tensor) and number.dim() == 0


def limited(part: Items, limit: int) -> Items:
    if not 0 < limit < len(part):
        return part
    mask = torch.zeros(len(part), dtype=torch.bool)
    mask[torch.randperm(len(part), generator=Generator().manual_seed(0))[:limit]] = True
    return part.where(mask)
