"""Items that are copies of one another: a Subset or a ConcatDataset may list an item of another data set twice."""

from contextlib import suppress
from typing import Any, cast

import torch
from torch import Generator, Tensor
from torch.utils.data import ConcatDataset, Subset, TensorDataset


def origins(dataset: Any, picks: Tensor) -> Tensor:
    """int64 [N, 2], of each item the data set that holds it, behind Subsets and ConcatDatasets, and its number there;
    `picks` are the numbers [N] of the items in `dataset`."""
    if isinstance(dataset, Subset):
        with suppress(TypeError, ValueError, IndexError):  # a class of the user's that numbers its items in another way
            numbers = torch.tensor([int(dataset.indices[pick]) for pick in picks.tolist()], dtype=torch.int64)
            if (numbers < 0).any():  # counted from the end
                numbers = torch.where(numbers < 0, numbers + len(dataset.dataset), numbers)  # type: ignore[arg-type]
            return origins(dataset.dataset, numbers)
    if isinstance(dataset, ConcatDataset):
        ends = torch.tensor([0, *dataset.cumulative_sizes])
        which = torch.searchsorted(ends, picks, right=True) - 1
        places = torch.empty(len(picks), 2, dtype=torch.int64)
        for number in set(which.tolist()):
            places[which == number] = origins(dataset.datasets[number], picks[which == number] - ends[number])
        return places
    holder = dataset.tensors[0] if isinstance(dataset, TensorDataset) and dataset.tensors else dataset
    return torch.stack([torch.full_like(picks, id(holder)), picks], 1)


def numbered(places: Tensor) -> Tensor:
    """int64 [N], a number for each row of `places`, [N, 2]; equal rows have equal numbers, from 0 on."""
    _, holders = torch.unique(places[:, 0], return_inverse=True)
    _, numbers = torch.unique(holders * (places[:, 1].max() + 1) + places[:, 1], return_inverse=True)
    return cast(Tensor, numbers)


def shared(first: Tensor, second: Tensor) -> int:
    """How many rows of `second` are rows of `first` too, both as `origins` gives them."""
    numbers = numbered(torch.cat([first, second]))
    return int(torch.isin(numbers[len(first) :], numbers[: len(first)]).sum())


def drawn_together(labels: Tensor, copies: Tensor, count: int, seed: int) -> Tensor:
    """A bool mask [N] of about `count` items drawn at random, with all copies of an item or none of them; each class
    has its share, but for the copies of one item.

    `labels` and `copies` are int64 [N]; copies of one item have one number, from 0 on.
    """
    sizes = torch.bincount(copies)
    classes = torch.zeros_like(sizes).scatter_reduce(0, copies, labels, "amin", include_self=False)
    order = torch.randperm(len(sizes), generator=Generator().manual_seed(seed))
    order = order[classes[order].argsort(stable=True)]  # class after class, at random within each
    total, before = 0, 0
    mask = torch.zeros(len(sizes), dtype=torch.bool)
    for number, size in zip(order.tolist(), sizes[order].tolist(), strict=True):
        before += size
        if (2 * total + size) * len(labels) < 2 * before * count:  # nearer to the share of all items so far
            mask[number] = True
            total += size
    return mask[copies]
