"""What a data set must keep."""

import pytest
import torch

from htas import datasets
from htas.data.split import Part
from htas.datasets import Dataset, load
from htas.plugins import find
from htas.testing.options import check_options

PARTS: tuple[Part, ...] = ("train", "test")


class DatasetContract:
    """Inherit it in a class `TestMine` that sets `dataset`, of a few images."""

    dataset: Dataset

    @pytest.fixture
    def plugin(self) -> Dataset:
        """The data set; a fixture of this name in a subclass may give several."""
        return self.dataset

    def test_it_documents_its_options(self, plugin: Dataset) -> None:
        check_options(type(plugin), Dataset)

    def test_it_reads_what_it_promises_and_the_same_each_time(self, plugin: Dataset) -> None:
        for part in PARTS:
            one, two = plugin.read(part), plugin.read(part)
            assert one.images.dtype == torch.uint8 and one.images.shape == (len(one.labels), *plugin.shapes[0])
            assert one.labels.dtype == torch.int64
            assert sorted(set(one.labels.tolist())) == list(range(plugin.classes))
            assert torch.equal(one.images, two.images) and torch.equal(one.labels, two.labels)
        assert len(plugin.mean) == len(plugin.std) == plugin.shapes[0][0]
        assert all(0 < mean < 1 for mean in plugin.mean) and all(0 < std < 1 for std in plugin.std)

    def test_a_configuration_finds_it_by_its_name(self, plugin: Dataset) -> None:
        assert find(datasets, Dataset, plugin.name) is type(plugin)  # type: ignore[type-abstract]

    def test_it_loads_into_splits_of_its_shape(self, plugin: Dataset) -> None:
        data = load(plugin)
        assert (data.classes, data.shapes) == (plugin.classes, plugin.shapes)
        assert len(data.weights) + len(data.validation) == len(data.train)
        images, labels = next(data.train.batches(8, seed=0, augment=True))
        assert (
            isinstance(images, torch.Tensor)
            and images.shape == (8, *plugin.shapes[0])
            and images.dtype == torch.float32
        )
        assert labels.dtype == torch.int64
