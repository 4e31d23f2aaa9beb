"""Data as people have them, given to htas.optimize: what it makes of them, or the sentence before the survey."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from one_in import one_in
from PIL import Image
from scripted_device import scripted_device
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)

import htas
from htas.data.split import Data
from htas.errors import UserError
from htas.report import read as read_report
from htas.run import rows
from htas.run import stages as pipeline
from htas.run.run import Run
from htas.search.oneshot import some
from htas.training.train import evaluate

pytestmark = pytest.mark.timeout(300)  # some are whole runs

SHAPE = (1, 8, 8)
CLASSES = 3
QUICK = {
    "survey.store": "none", "survey.rounds": 1, "survey.undecided": 1, "design.groups": 4, "strategy.precision": "fp32",
    "train.precision": "fp32",
}  # fmt: skip


def network() -> nn.Sequential:
    """Small, and without a norm."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(64, CLASSES),
    )  # fmt: skip


def part(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """A bright square at a place that tells the class."""
    labels = torch.arange(count) % CLASSES
    images = 0.3 * torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))
    for number, label in enumerate(labels.tolist()):
        images[number, :, 2 * label : 2 * label + 3, 2 * label : 2 * label + 3] += 1
    return images, labels


TRAIN, TEST = part(90, 0), part(45, 1)
PLAIN = TensorDataset(*TRAIN), TensorDataset(*TEST)


class Stop(BaseException):
    """Raised where the survey would begin."""


def stopped(data: Any, folder: Path, model: nn.Module | None = None, example: Any = None, **more: Any) -> Run:
    """A run that could now be surveyed."""
    runs = []

    def stop(run: Any, command: str) -> None:
        runs.append(run)
        raise Stop

    given = {"trained": False, "options": QUICK, "target": htas.Target(threads=1), "out": folder / "run", **more}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "run_all", stop)
        with pytest.raises(Stop):
            htas.optimize(model or network(), torch.zeros(1, *SHAPE) if example is None else example, data, **given)
    return runs[0]


def surveyed(data: Any, folder: Path, model: nn.Module | None = None, example: Any = None, **more: Any) -> Data:
    """The data of such a run."""
    return stopped(data, folder, model, example, **more).data


def refusal(data: Any, folder: Path, **more: Any) -> str:
    """The one sentence that is raised before the survey."""
    with pytest.raises(UserError) as caught:
        surveyed(data, folder, **more)
    assert "\n" not in str(caught.value) and not folder.joinpath("run").exists()
    return str(caught.value)


def whole(source: Any) -> tuple[Tensor, Tensor]:
    batches = list(source.batches(20))
    return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])


class Listed(Dataset[Any]):
    """Items of any kind, by a function of an image, a label and a number."""

    def __init__(self, images: Tensor, labels: Tensor, make: Any) -> None:
        self.images, self.numbers, self.make = images, labels, make

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> Any:
        return self.make(self.images[number], int(self.numbers[number]), number)


def both(make: Any) -> tuple[Listed, Listed]:
    return Listed(*TRAIN, make), Listed(*TEST, make)


def test_accuracies_are_those_in_fp32_whatever_networks_are_trained_in(tmp_path):
    model = network()
    adam = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(20):
        adam.zero_grad()
        F.cross_entropy(model(TRAIN[0]), TRAIN[1]).backward()
        adam.step()
    with torch.no_grad():
        model[-1].bias += 1e5  # bf16 has steps of 512 there, fp32 of 0.008
        right = float((model(TEST[0]).argmax(1) == TEST[1]).double().mean())
    run = stopped(PLAIN, tmp_path, model, trained=True, options={**QUICK, "train.precision": "bf16"})
    assert rows.train_row(run, rows.base_row(run))[0].accuracy == right


# -- labels ------------------------------------------------------------------------------------------------------------

LABELS = {
    "[N, 1]": lambda labels: labels[:, None],
    "floats": lambda labels: labels.float(),
    "floats [N, 1]": lambda labels: labels.double()[:, None],
    "bytes": lambda labels: labels.to(torch.uint8),
}


@pytest.mark.parametrize("name", LABELS)
def test_labels_of_any_type_and_of_one_column_are_labels(name, tmp_path):
    parts = tuple(TensorDataset(images, LABELS[name](labels)) for images, labels in (TRAIN, TEST))
    data, usual = surveyed(parts, tmp_path / "one"), surveyed(PLAIN, tmp_path / "two")
    for source, other in ((data.train, usual.train), (data.validation, usual.validation), (data.test, usual.test)):
        assert all(map(torch.equal, whole(source), whole(other)))
    model = network()
    assert evaluate(model, data.test, device="cpu") == evaluate(model, usual.test, device="cpu")
    losses = [each.task.loss(model(images), labels) for each in (data, usual) for images, labels in [whole(each.train)]]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("kind", [torch.int64, torch.float64, torch.bool], ids=str)
def test_one_hot_labels_are_divided_by_class_and_judged_by_the_class_that_they_name(kind, tmp_path):
    parts = tuple(TensorDataset(images, F.one_hot(labels, CLASSES).to(kind)) for images, labels in (TRAIN, TEST))
    data, usual = surveyed(parts, tmp_path / "one"), surveyed(PLAIN, tmp_path / "two")
    assert torch.equal(whole(data.validation)[0], whole(usual.validation)[0])
    model = network()
    for size in (CLASSES, 20):  # as many items as classes: [N] and [N, N] can be compared, wrongly
        scores = [evaluate(model, each.test, device="cpu", batch=size) for each in (data, usual)]
        assert scores[0] == scores[1]
    (images, soft), (_, labels) = (next(each.train.batches(20)) for each in (data, usual))
    assert soft.dtype == torch.float32
    torch.testing.assert_close(data.task.loss(model(images), soft), usual.task.loss(model(images), labels))


def mixup(items: list[Any]) -> tuple[Tensor, Tensor]:
    """As torchvision's references have it."""
    images, labels = default_collate(items)
    share, soft = float(torch.rand(())), F.one_hot(labels, CLASSES).float()
    return share * images + (1 - share) * images.roll(1, 0), share * soft + (1 - share) * soft.roll(1, 0)


def test_mixed_up_items_are_divided_by_their_own_classes_alike_at_every_call(tmp_path):
    loaders = DataLoader(PLAIN[0], 10, shuffle=True, collate_fn=mixup), DataLoader(PLAIN[1], 10)
    usual = surveyed(PLAIN, tmp_path / "two").validation.picks
    for number in range(2):
        torch.manual_seed(number)
        assert torch.equal(surveyed(loaders, tmp_path / str(number)).validation.picks, usual)


def test_validation_items_that_are_trained_on_are_named_at_once_and_in_the_report(tmp_path, capsys):
    with scripted_device():
        htas.optimize(
            network(), torch.zeros(1, *SHAPE), (PLAIN[0], PLAIN[0]), target=htas.Target(threads=1), trained=False,
            epochs=1, constraints={"macs": "70%"}, options={**QUICK, "strategy.name": "uniform"}, out=tmp_path / "run",
        )  # fmt: skip
    words = (
        "90 of 90 validation items are training items too, and accuracies on what networks were trained on are no test"
    )
    assert capsys.readouterr().err.startswith(f"data: doubt: {words}")
    assert read_report(tmp_path / "run").remarks[0].startswith(words)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["differentiable", "random"])
def test_a_mixup_collate_function_lasts_through_a_whole_run(strategy, tmp_path):
    loaders = DataLoader(PLAIN[0], 10, collate_fn=mixup), DataLoader(PLAIN[1], CLASSES)
    options = {**QUICK, "strategy.batch": CLASSES}  # as many items as classes
    if strategy == "random":
        options |= {"strategy.name": "random", "strategy.archs": 4}
    with scripted_device():
        result = htas.optimize(
            network(), torch.zeros(1, *SHAPE), loaders, target=htas.Target(threads=1), constraints={"macs": "70%"},
            trained=False, epochs=20, search_epochs=1, options=options, out=tmp_path / "run",
        )  # fmt: skip
    images, labels = TEST
    with torch.no_grad():
        accuracy = float((result.model(images).argmax(1) == labels).float().mean())
    assert result.result.accuracy == pytest.approx(accuracy) and accuracy > 0.7


LATE = 3
"""An item that is not among the first that are looked at."""


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda image, label, number: (image, "cat"),
            "targets of the training data are tuple of str; without a loss_fn they must be labels [N] from 0 to 2 or",
        ),
        (
            lambda image, label, number: (image, {"label": label}),
            "targets of the training data are dict with label; without a loss_fn they must be labels [N] from 0 to 2",
        ),
        (
            lambda image, label, number: (image, torch.ones(CLASSES)),
            "targets [N, 3] of the training data are no probabilities that sum to 1; give labels [N] from 0 to 2 or",
        ),
        (
            lambda image, label, number: (image, torch.ones(5) / 5),
            "targets of the training data are of shape (64, 5) for 64 items; without a loss_fn they must be labels [N]",
        ),
        (
            lambda image, label, number: (image, label + 0.5),
            "labels of the training data are no whole numbers; give labels [N] from 0 to 2 or probabilities [N, 3]",
        ),
        (
            lambda image, label, number: (image, label, 0.25),
            "an item of the training data has 3 parts, and the network takes 1 input: give items (input, targets), wh",
        ),
        (
            lambda image, label, number: (image, label, label, 0.25),
            "an item of the training data has 4 parts, and the network takes 1 input: give items (input, targets), wh",
        ),
        (
            lambda image, label, number: (image, label + number % 2),
            "labels of the training data must lie in 0 to 2, as the network has 3 outputs; they are 0 to 3, it",
        ),
        (
            lambda image, label, number: ((image * 255).byte(), label),
            "inputs of the training data are uint8, and example_inputs are floats: make floats of them in the Dataset",
        ),
        (
            lambda image, label, number: (image[:, : 8 - number % 2], label),
            "inputs of the training data have several shapes, (1, 8, 8) of item 0 and (1, 7, 8) of item 1 among them",
        ),
        (
            lambda image, label, number: None if number == LATE else (image, label),
            "item 3 of the validation data is None: leave it out of the Dataset, as no batch has a place for it",
        ),
        (
            lambda image, label, number: (image, label) if number else None,
            "item 0 of the training data is None: leave it out of the Dataset, as no batch has a place for it",
        ),
        (
            lambda image, label, number: (Image.new("L", (8, 8)), label),
            "no batch can be made of items that are tuple of Image, int (default_collate: batch must contain tensors",
        ),
        (
            lambda image, label, number: {}["path"],
            "item 0 of the training data cannot be read: KeyError: 'path' (",
        ),
    ],
)  # fmt: skip
def test_items_that_are_no_inputs_and_targets_are_refused_before_the_survey(make, said, tmp_path):
    assert refusal(both(make), tmp_path).startswith(said)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_late_item_that_cannot_be_used_is_named_before_the_survey_too(workers, tmp_path):
    def make(image: Tensor, label: int, number: int) -> Any:
        if number == LATE:
            raise FileNotFoundError("1.png is missing")
        return image, label

    loader = DataLoader(both(make)[0], 10, num_workers=workers)
    said = refusal((loader, PLAIN[1]), tmp_path)
    assert said.startswith("item 3 of the training data cannot be read: FileNotFoundError: 1.png is missing")


@pytest.mark.parametrize("kind", ["pairs", "dictionaries", "arrays", "tensors", "subset"])
@pytest.mark.parametrize("wrong", [torch.nan, -torch.inf])
def test_an_input_that_is_no_number_is_named_before_the_survey(kind, wrong, tmp_path):
    def make(image: Tensor, label: int, number: int) -> Any:
        image = image + wrong if number == LATE else image
        return {"image": image, "label": label} if kind == "dictionaries" else (image.numpy(), label)

    images = TRAIN[0].clone()
    images[LATE, 0, 1, 2] = wrong
    tensors = TensorDataset(images, TRAIN[1])
    train = {"tensors": tensors, "subset": Subset(tensors, [0, 2, *range(3, 90)])}.get(kind, both(make)[0])
    said = refusal((train, PLAIN[1]), tmp_path)
    number = 2 if kind == "subset" else LATE
    assert said.startswith(f"inputs of item {number} of the training data are NaN or infinite: replace them, or leave")


def test_an_input_of_the_validation_items_that_is_no_number_is_named_too(tmp_path):
    images = TEST[0].clone()
    images[[7, 9], 0, 1, 2] = torch.nan
    said = refusal((PLAIN[0], TensorDataset(images, TEST[1])), tmp_path)
    assert said.startswith(
        "inputs of item 7 of the validation data are NaN or infinite (of 45 items looked at 2 have such inputs): "
    )


def test_what_forward_does_not_take_and_what_a_collate_function_replaces_may_be_no_number(tmp_path):
    def make(image: Tensor, label: int, number: int) -> Any:
        return {"x": image, "depth": torch.full((4,), torch.nan), "label": label}

    def replaced(items: list[Any]) -> Any:
        images, labels = default_collate(items)
        return images.nan_to_num(), labels

    assert surveyed(both(make), tmp_path).train
    images = TRAIN[0].clone()
    images[LATE] = torch.nan
    loader = DataLoader(TensorDataset(images, TRAIN[1]), 10, collate_fn=replaced)
    assert surveyed((loader, PLAIN[1]), tmp_path / "2").train


def test_whole_arrays_are_no_items(tmp_path):
    for arrays in (TRAIN, [each.numpy() for each in TRAIN]):
        said = refusal((arrays, TEST), tmp_path)
        assert said.startswith("the training data are 2 arrays, not items; give torch.utils.data.TensorDataset(inputs")


def test_labels_of_the_validation_items_are_looked_at_before_the_survey(tmp_path):
    wrong = TensorDataset(TEST[0], torch.where(torch.arange(45) == 7, 5, TEST[1]))
    said = refusal((PLAIN[0], wrong), tmp_path)
    assert said == (
        "labels of the validation data must lie in 0 to 2, as the network has 3 outputs; they are 0 to 5, item 7 has 5"
    )


# -- images ------------------------------------------------------------------------------------------------------------


def test_double_images_are_those_of_the_network_s_type(tmp_path):
    parts = tuple(TensorDataset(images.double(), labels) for images, labels in (TRAIN, TEST))
    images, _ = whole(surveyed(parts, tmp_path).test)
    assert images.dtype == torch.float32 and torch.equal(images, TEST[0])


class Scaling(nn.Module):
    """Takes bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = network()

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images.float() / 255)


def test_bytes_are_for_a_network_that_makes_floats_of_them(tmp_path):
    parts = tuple(TensorDataset((images.clamp(0, 1) * 255).byte(), labels) for images, labels in (TRAIN, TEST))
    example = torch.zeros(1, *SHAPE, dtype=torch.uint8)
    data = surveyed(parts, tmp_path, Scaling(), example)
    images, _ = whole(data.test)
    assert torch.equal(Scaling()(images), Scaling()(parts[1].tensors[0]))


def test_a_late_image_of_another_size_is_one_sentence_too(tmp_path, monkeypatch):
    def make(image: Tensor, label: int, number: int) -> Any:
        return image if number != LATE else image[:, :7], label

    said = "data have several shapes, (1, 8, 8) of item 0 and (1, 7, 8) of item 3 among them"
    assert said in refusal(both(make), tmp_path)
    train = both(make)[0]
    train.targets = TRAIN[1].tolist()  # so that not every item is read before the survey
    monkeypatch.setattr("htas.run.optimize.try_functions", lambda *args, **options: None)  # which reads some
    data = surveyed((train, PLAIN[1]), tmp_path)
    with pytest.raises(UserError, match=re.escape(said)):
        whole(data.train)


# -- few items ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "batch"), [(4, 2), (14, 7), (30, 8), (160, 8), (400, 20)])
def test_few_items_are_searched_and_trained_in_batches_of_several(count, batch, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        runs = []
        patch.setattr(pipeline, "run_all", lambda run, command: runs.append(run))
        htas.optimize(
            network(), torch.zeros(1, *SHAPE), (TensorDataset(*part(count, 0)), PLAIN[1]), trained=False,
            target=htas.Target(threads=1), options=QUICK, out=tmp_path / "run",
        )  # fmt: skip
    assert (runs[0].config.strategy.batch, runs[0].config.train.batch) == (batch, batch)


def test_too_few_items_are_one_sentence(tmp_path):
    said = refusal((TensorDataset(*part(3, 0)), PLAIN[1]), tmp_path)
    assert said.startswith("the training data have 3 items, of which the search learns from 1 and judges by 2; both")


# -- what else a data set has ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "listed",
    [["cat", "dog", "eel"] * 30, {"cat": 0}, [{"boxes": 1}] * 90, np.arange(90) % CLASSES, F.one_hot(TRAIN[1])],
    ids=["texts", "dictionary", "dictionaries", "array", "one-hot"],
)
@pytest.mark.parametrize("name", one_in(2, ["labels", "targets"]))
def test_an_attribute_of_labels_may_be_anything(name, listed, tmp_path):
    train, test = both(lambda image, label, number: (image, label))
    setattr(train, name, listed)
    data = surveyed((train, test), tmp_path)
    assert whole(data.validation)[1].bincount().tolist() == [15, 15, 15]
    assert torch.equal(data.validation.picks, surveyed(PLAIN, tmp_path / "plain").validation.picks)


def files(image: Tensor, label: int, number: int) -> Any:
    return image, label, f"{number}.png"


@pytest.mark.parametrize("last", [lambda image, label, number: (image, label, number), files], ids=["number", "file"])
def test_an_item_may_end_with_its_number_or_file(last, tmp_path):
    train, test = both(last)
    for parts in ((train, test), (Subset(train, range(89, -1, -1)), Subset(test, range(45)))):
        data = surveyed(parts, tmp_path / str(type(parts[0]).__name__))
        images, labels = whole(data.test)
        assert torch.equal(images, TEST[0]) and torch.equal(labels, TEST[1])


class Two(nn.Module):
    """Two inputs of one shape, which are not alike."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = network()

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        return self.layers(before - 2 * after)


def test_dictionaries_of_several_inputs_are_read_by_forward_s_names(tmp_path):
    for order in (("before", "after", "label"), ("label", "after", "before"), ("after", "note", "label", "before")):
        parts = both(
            lambda image, label, number, order=order: {
                name: {"before": image, "after": -image, "label": label, "note": number}[name] for name in order
            }
        )
        data = surveyed(parts, tmp_path / order[0], Two(), [torch.zeros(1, *SHAPE)] * 2)
        (before, after), labels = next(data.test.batches(45))
        assert torch.equal(before, TEST[0]) and torch.equal(after, -TEST[0]) and torch.equal(labels, TEST[1])


def test_other_names_of_several_inputs_are_refused(tmp_path):
    parts = both(lambda image, label, number: {"left": image, "right": image, "label": label})
    said = refusal(parts, tmp_path, model=Two(), example=[torch.zeros(1, *SHAPE)] * 2)
    assert said == (
        "an item of the training data is a dictionary with left, right, label, and forward takes before, after: name "
        "the inputs so"
    )


def test_a_dictionary_s_only_input_is_that_of_its_shape(tmp_path):
    parts = both(lambda image, label, number: {"idx": number, "pixel_values": image, "labels": label})
    assert torch.equal(whole(surveyed(parts, tmp_path).test)[0], TEST[0])


# -- loaders -----------------------------------------------------------------------------------------------------------

ALL = TensorDataset(torch.cat([TRAIN[0], TEST[0]]), torch.cat([TRAIN[1], TEST[1]]))
FIRST, LAST = range(90), range(90, 135)


class Balanced(Sampler[list[int]]):
    """A batch sampler of the user's."""

    def __iter__(self) -> Iterator[list[int]]:
        yield [0, 1]

    def __len__(self) -> int:
        return 1


SAMPLERS = {
    "subset": lambda numbers: {"batch_sampler": BatchSampler(SubsetRandomSampler(numbers), 10, False)},
    "range": lambda numbers: {"batch_sampler": BatchSampler(numbers, 10, False)},
    "list of lists": lambda numbers: {
        "batch_sampler": [list(numbers[at : at + 9]) for at in range(0, len(numbers), 9)]
    },
    "tensor": lambda numbers: {"sampler": torch.tensor(list(numbers))},
    "list": lambda numbers: {"sampler": [*numbers, *numbers]},
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_loaders_have_the_items_of_their_batch_samplers(name, tmp_path):
    data = surveyed(tuple(DataLoader(ALL, **SAMPLERS[name](numbers)) for numbers in (FIRST, LAST)), tmp_path)
    assert sorted(data.train.picks.tolist()) == list(FIRST) and sorted(data.test.picks.tolist()) == list(LAST)


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(())


@pytest.mark.parametrize(
    ("loader", "said"),
    [
        (
            DataLoader(ALL, batch_sampler=Balanced()),
            "the DataLoader of the training data has a Balanced, which does not say which items are its own; give a",
        ),
        (
            DataLoader(ALL, batch_sampler=BatchSampler(WeightedRandomSampler([1.0] * 135, 9), 3, False)),
            "the DataLoader of the training data has a WeightedRandomSampler, and batches are drawn here without "
            "weights: give a DataLoader without it, and weigh the classes in the loss, loss_fn=torch.nn.CrossEntropy",
        ),
        (
            DataLoader(ALL, sampler=RandomSampler(ALL, num_samples=40)),
            "the DataLoader of the training data has a RandomSampler that draws 40 of 135 items, and an epoch has "
            "every item once here: give a Subset of the items",
        ),
        (
            DataLoader(ALL, sampler=SubsetRandomSampler([*range(40), *[0] * 20])),
            "the sampler of the DataLoader of the training data lists some items more often than others, and an epoch "
            "has every item once here: list each once, and weigh the classes in the loss",
        ),
        (
            DataLoader(ALL, batch_size=None),
            "the DataLoader of the training data has batch_size=None, so that its Dataset makes whole batches; give",
        ),
        (
            DataLoader(Endless()),
            "the training data must be a torch Dataset with a length and items by number, or a DataLoader of one; "
            "got a DataLoader of Endless",
        ),
    ],
    ids=["own", "weighted", "some", "repeated", "none", "iterable"],
)
def test_loaders_that_do_not_say_which_items_are_theirs_are_refused(loader, said, tmp_path):
    assert refusal((loader, PLAIN[1]), tmp_path).startswith(said)


def test_a_sampler_of_the_first_items_has_those_only(tmp_path):
    sampler = SequentialSampler(range(60))
    assert len(surveyed((DataLoader(ALL, sampler=sampler), PLAIN[1]), tmp_path).train) == 60


def test_the_images_that_are_counted_are_those_of_the_inputs(tmp_path):
    train = Listed(*part(300, 0), lambda image, label, number: (image, {"a": label, "b": label}))
    data = surveyed((train, train), tmp_path, loss_fn=lambda outputs, targets: F.cross_entropy(outputs, targets["a"]))
    assert sum(len(images) for images, _ in some(data.train, 200)) == 256  # one batch, though targets have two entries


# -- another loss is another run ---------------------------------------------------------------------------------------


class Weighted:
    """A function of the user's with a tensor in it."""

    def __init__(self, weight: Tensor) -> None:
        self.options = {"weight": weight}

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, **self.options)


@pytest.mark.parametrize(
    "make", [pytest.param(nn.CrossEntropyLoss, marks=pytest.mark.slow), Weighted], ids=["module", "object"]
)
def test_other_class_weights_do_not_go_on_with_the_old_run(make, tmp_path):
    def call(weight: list[float]) -> htas.OptimizationResult:
        with scripted_device():
            return htas.optimize(
                network(), torch.zeros(1, *SHAPE), PLAIN, target=htas.Target(threads=1), constraints={"macs": "70%"},
                trained=False, epochs=1, search_epochs=1, options=QUICK, out=tmp_path / "run",
                loss_fn=make(torch.tensor(weight)),
            )  # fmt: skip

    call([1.0, 1.0, 1.0])
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    call([1.0, 1.0, 1.0])
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    with pytest.raises(UserError, match="holds a run of another configuration"):
        call([1.0, 1.0, 9.0])


def test_another_collate_function_is_another_run(tmp_path):
    keys = []
    for collate in (None, mixup, mixup, default_collate):
        loaders = DataLoader(PLAIN[0], 10, collate_fn=collate), DataLoader(PLAIN[1], 10)
        place = tmp_path / str(len(keys))
        surveyed(loaders, place)
        keys.append((place / "run" / "config.toml").read_text())
    assert keys[0] == keys[3] != keys[1] == keys[2]


# -- as tutorials have them --------------------------------------------------------------------------------------------


def test_a_hugging_face_data_set_gives_its_tensors(tmp_path):
    datasets = pytest.importorskip("datasets")
    parts = []
    for images, labels in (TRAIN, TEST):
        part = datasets.Dataset.from_dict({"pixel_values": images.tolist(), "label": labels.tolist()})
        part.set_format("torch")
        parts.append(part)
    images, labels = whole(surveyed(tuple(parts), tmp_path).test)
    assert torch.equal(images, TEST[0]) and torch.equal(labels, TEST[1])


def test_torchvision_s_fake_data_are_data(tmp_path):
    torchvision = pytest.importorskip("torchvision", exc_type=ImportError)
    from torchvision import transforms

    fake = [
        torchvision.datasets.FakeData(40, (3, 8, 8), CLASSES, transforms.ToTensor(), random_offset=offset)
        for offset in (0, 40)
    ]
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, CLASSES))
    data = surveyed(tuple(fake), tmp_path, model, torch.zeros(1, 3, 8, 8))
    images, labels = whole(data.train)
    assert images.shape == (40, 3, 8, 8) and labels.tolist() == [int(label) for _, label in fake[0]]
