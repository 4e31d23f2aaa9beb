"""What a data set, a model family and a metric must keep, and what all plug-ins with options have in common."""

import dataclasses

import pytest
import torch
from torch import nn

from htas import datasets, metrics
from htas.data.split import PARTS
from htas.datasets import Dataset, load
from htas.errors import UserError
from htas.graph import Arch, resize, trace
from htas.graph.layer import Layer
from htas.metrics import Metric
from htas.models import ModelFamily
from htas.plugins import find
from htas.plugins.options import options_of
from htas.timing.measurement import Measurement
from htas.timing.target import Target

CONV = Layer("conv", 3, 8, (8, 8), (3, 3), padding=(1, 1), norm=True, activation="relu")
TARGET = Target(batch=2, threads=1, shapes=((3, 8, 8),))


def check_options(kind: type, contract: type) -> None:
    """Assert that a plug-in is a frozen dataclass with a docstring, each of its options with the string beneath."""
    assert dataclasses.is_dataclass(kind) and kind.__dataclass_params__.frozen, "@dataclass(frozen=True) is missing"  # type: ignore[attr-defined]
    assert kind.__doc__, "the class has no docstring, which --help prints"
    inherited = {field.name for field in dataclasses.fields(contract)} if dataclasses.is_dataclass(contract) else set()
    for name, option in options_of(kind).items():
        assert name in inherited or option.about, f"the option {name} has no string beneath"


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
        assert isinstance(images, torch.Tensor) and images.dtype == torch.float32
        assert images.shape == (8, *plugin.shapes[0])
        assert labels.dtype == torch.int64


class FamilyContract:
    """Inherit it in a class `TestMine` that sets `family`, and `shape` where its networks take other images."""

    family: ModelFamily
    shape: tuple[int, ...] = (3, 32, 32)

    @pytest.fixture
    def plugin(self) -> ModelFamily:
        """The family; a fixture of this name in a subclass may give several."""
        return self.family

    def test_it_documents_its_options(self, plugin: ModelFamily) -> None:
        check_options(type(plugin), ModelFamily)

    def test_its_network_has_free_widths_and_can_be_resized(self, plugin: ModelFamily) -> None:
        module, images = plugin.build(7).eval(), torch.randn(2, *self.shape)
        plugin.check(module, (images[:1],), 7)
        assert module(images).shape == (2, 7)
        network = trace(module, images[:1], project_norm=plugin.project_norm)
        assert network.widths, "every width is frozen; `htas inspect` says why"
        assert torch.equal(resize(network, network.base)(images), module(images))
        halves = {
            name: max(1, each.base // 2 // each.multiple) * each.multiple for name, each in network.widths.items()
        }
        model = resize(network, Arch(halves, network.base.depths))
        plugin.reset(model)
        assert model.eval()(images).isfinite().all()

    def test_reset_draws_every_weight_and_repeats_under_a_seed(self, plugin: ModelFamily) -> None:
        module, states = plugin.build(7), []
        for _ in range(2):
            for value in module.state_dict().values():
                value.fill_(3)
            torch.manual_seed(5)
            plugin.reset(module)
            states.append({key: value.clone() for key, value in module.state_dict().items()})
        for key, value in states[0].items():
            assert not (value == 3).all(), f"reset leaves {key} as it was"
            assert torch.equal(value, states[1][key]), f"{key} does not follow the seed"

    def test_its_title_and_its_members_are_words_for_a_table(self, plugin: ModelFamily) -> None:
        assert plugin.title and plugin.member(1) and plugin.member(1) != plugin.member(2)


class MetricContract:
    """Inherit it in a class `TestMine` that sets `metric`, as `--metrics` names it: `module:Class`."""

    metric: str

    @pytest.fixture
    def plugin(self) -> Metric:
        """The metric on a CPU; one whose meter this machine lacks says so in a sentence, and is skipped."""
        metric: Metric = find(metrics, Metric, self.metric)(TARGET)  # type: ignore[type-abstract]
        return self.present(metric)

    @staticmethod
    def present(metric: Metric) -> Metric:
        """The metric, where this machine has what it needs."""
        try:
            assert metric.measure([]) == []
        except UserError as error:
            pytest.skip(str(error))
        return metric

    def test_it_measures_layers_and_networks_in_their_order(self, plugin: Metric) -> None:
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout()).train()
        before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
        random = torch.get_rng_state()
        measurements = plugin.measure([CONV, network, CONV])
        assert [type(each) for each in measurements] == [Measurement] * 3
        assert plugin.unit and {each.unit for each in measurements} == {plugin.unit}
        assert all(value > 0 for each in measurements for value in each.values)
        assert measurements[0] == measurements[2], "a case that stands twice in the list is measured once"
        assert network.training and not network._forward_hooks and not network[0]._forward_hooks
        assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())
        assert torch.equal(torch.get_rng_state(), random), "the process's random numbers have moved on"

    def test_it_samples_what_is_wanted_and_nothing_else(self, plugin: Metric) -> None:
        first, second, third = (Layer("conv", 3, outputs, (8, 8)) for outputs in (4, 8, 16))
        measurements = plugin.sample([first, second, third], [first], pending=lambda _: [first, third])
        assert set(measurements) == {first, third}
        assert {each.unit for each in measurements.values()} == {plugin.unit}
