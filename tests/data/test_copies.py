"""Items that a data set lists twice: all of their copies are on one side of a division."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset, random_split

from htas.data.copies import drawn_together
from htas.data.split import Source, proportional
from htas.run.user import UserData

LABELS = torch.cat([torch.zeros(50), torch.ones(10)]).long()
IMAGES = torch.arange(60.0).view(60, 1, 1, 1).expand(60, 1, 4, 4).clone()
BASE = TensorDataset(IMAGES, LABELS)
OTHER = TensorDataset(IMAGES + 100, LABELS)
MINORITY = [*range(50), *(list(range(50, 60)) * 5)]


class Twice(Subset[Any]):
    """Numbers its items in a way of its own."""

    def __len__(self) -> int:
        return 2 * len(self.indices)

    def __getitem__(self, number: Any) -> Any:
        return self.dataset[self.indices[number % len(self.indices)]]

    def __getitems__(self, indices: list[int]) -> list[Any]:
        return [self[number] for number in indices]


def numbers(source: Source) -> list[int]:
    """Which items a source has, in its order."""
    return [int(number) for images, _ in source.batches(500) for number in images[:, 0, 0, 0]]


REPEATED: dict[str, Dataset[Any]] = {
    "a class five times": Subset(BASE, MINORITY),
    "counted from the end": Subset(BASE, [*range(60), *range(-60, 0)]),
    "numbers of an array": Subset(BASE, np.array(MINORITY)),  # type: ignore[arg-type]
    "all twice": ConcatDataset([BASE, BASE]),
    "parts that overlap": ConcatDataset([Subset(BASE, range(40)), OTHER, Subset(BASE, range(20, 60))]),
    "a part of a part": Subset(ConcatDataset([OTHER, Subset(BASE, MINORITY), BASE]), range(30, 220)),
    "the same tensors": ConcatDataset([BASE, TensorDataset(IMAGES, LABELS)]),
}


@pytest.mark.parametrize("share", [0.5, 0.2])
@pytest.mark.parametrize("name", REPEATED)
def test_copies_of_an_item_are_on_one_side(name, share):
    data = UserData.of(REPEATED[name], OTHER, 2, ((1, 4, 4),)).load(device="cpu", validation=share, seed=0, limit=0)
    one, two = numbers(data.weights), numbers(data.validation)
    assert not set(one) & set(two) and sorted(one + two) == sorted(numbers(data.train))
    count = share * len(data.train)
    assert abs(len(two) - count) <= 2.5
    minority = [number % 100 >= 50 for number in numbers(data.train)]
    assert abs(sum(number % 100 >= 50 for number in two) - share * sum(minority)) <= 5


def test_items_that_stand_once_are_divided_as_ever():
    parts = random_split(BASE, [30, 30], torch.Generator().manual_seed(0))
    whole = ConcatDataset([*parts, OTHER])
    data = UserData.of(whole, BASE, 2, ((1, 4, 4),)).load(device="cpu", validation=0.5, seed=3, limit=0)
    assert data.train.copies() is None
    labels = torch.tensor([int(whole[number][1]) for number in range(120)])
    held_out = proportional(labels, 60, 3)
    assert numbers(data.validation) == [int(whole[number][0][0, 0, 0]) for number in held_out.nonzero().flatten()]


def test_each_class_has_its_share_but_for_the_copies_of_one_item():
    generator = torch.Generator().manual_seed(0)
    copies = torch.randint(300, (1000,), generator=generator).unique(return_inverse=True)[1]
    labels = copies % 7
    mask = drawn_together(labels, copies, 400, 1)
    most = int(copies.bincount().max())
    assert abs(int(mask.sum()) - 400) <= most / 2
    for label in range(7):
        assert abs(float(mask[labels == label].sum() - 0.4 * (labels == label).sum())) <= most
    assert torch.equal(mask, drawn_together(labels, copies, 400, 1))
    assert not torch.equal(mask, drawn_together(labels, copies, 400, 2))


def test_a_subset_that_numbers_its_items_in_another_way_is_a_data_set_of_its_own():
    data = UserData.of(Twice(BASE, range(60)), OTHER, 2, ((1, 4, 4),))
    assert data.load(device="cpu", validation=0.5, seed=0, limit=0).train.copies() is None


OVERLAPS: dict[str, tuple[Any, Any, str]] = {
    "the same": (BASE, BASE, "60 of 60 validation items are training items too"),
    "loaders of it": (DataLoader(BASE, 8), DataLoader(BASE, 4), "60 of 60"),
    "the same tensors": (BASE, TensorDataset(IMAGES, LABELS), "60 of 60"),
    "some": (Subset(BASE, range(50)), Subset(BASE, range(40, 60)), "10 of 20 validation items are"),
    "one": (Subset(BASE, range(50)), ConcatDataset([OTHER, Subset(BASE, [49])]), "1 of 61 validation items is a"),
    "none": (Subset(BASE, range(50)), Subset(BASE, range(50, 60)), ""),
    "others": (BASE, OTHER, ""),
}


@pytest.mark.parametrize("name", OVERLAPS)
def test_validation_items_that_are_trained_on_are_a_doubt(name):
    train, test, words = OVERLAPS[name]
    doubts = UserData.of(train, test, 2, ((1, 4, 4),)).doubts
    assert len(doubts) == bool(words) and all(doubt.startswith(words) for doubt in doubts)
