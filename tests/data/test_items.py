"""Items of a torch Dataset, as training and searching read them."""

import gc
import weakref
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from htas.data.batch import Format
from htas.data.finite import finite_rows
from htas.data.items import Items
from htas.errors import UserError


class Broken(Dataset[Any]):
    """An item is missing."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, number: int) -> Any:
        if number == 4:
            raise UserError("4.png cannot be decoded; replace it")
        return torch.zeros(1, 2, 2), 0


@pytest.mark.parametrize("workers", [0, 1])
def test_the_iterator_of_a_loader_ends_with_its_error(workers, monkeypatch):
    iterators, begin = [], DataLoader.__iter__

    def iterate(self: DataLoader[Any]) -> Any:
        iterator = begin(self)
        iterators.append(weakref.ref(iterator))
        return iterator

    monkeypatch.setattr(DataLoader, "__iter__", iterate)
    part = Items(Broken(), torch.arange(6), workers=workers, form=Format("the data", ((1, 2, 2),)))
    gc.disable()
    try:
        with pytest.raises(UserError) as caught:
            list(part.batches(2))
        assert str(caught.value) == "4.png cannot be decoded; replace it"
        assert [each() for each in iterators] == [None]
    finally:
        gc.enable()


def test_items_are_finite_where_all_of_their_inputs_are():
    images, numbers = torch.zeros(4, 1, 2, 2), torch.zeros(4)
    images[1, 0, 1, 1], numbers[3] = torch.nan, torch.inf
    assert finite_rows([images, numbers, torch.zeros(4, dtype=torch.long)]).tolist() == [True, False, True, False]
