"""What a user's functions give is looked at on one batch, before anything is measured."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, default_collate

import htas
from htas.errors import UserError
from htas.run import stages as pipeline

CLASSES = 3
LABELS = torch.arange(60) % CLASSES
IMAGES = torch.randn(60, 1, 8, 8, generator=torch.Generator().manual_seed(0))
DATA = TensorDataset(IMAGES, LABELS), TensorDataset(IMAGES, LABELS)


def network(classes: int = CLASSES) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.Flatten(), nn.Linear(128, classes)
    )  # fmt: skip


class Auxiliary(NamedTuple):
    logits: Tensor
    others: Tensor


class Aided(nn.Module):
    """Logits, and in training those of an auxiliary head, too."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.aid = network(), nn.Linear(64, CLASSES)

    def forward(self, images: Tensor) -> Any:
        logits = self.body(images)
        return Auxiliary(logits, self.aid(images.flatten(1))) if self.training else logits


def divided(items: list[Any]) -> Any:
    """A batch whose images nobody can learn from."""
    images, labels = default_collate(items)
    return images / 0, labels


class Surveying(BaseException):
    """Raised where the survey would begin."""


@pytest.fixture(autouse=True)
def _no_survey(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def stop(run: Any, command: str) -> None:
        raise Surveying

    monkeypatch.setattr(pipeline, "run_all", stop)
    yield


def call(tmp_path: Any, model: nn.Module | None = None, data: Any = DATA, **more: Any) -> None:
    usual = {"example_inputs": IMAGES[:1], "trained": False, "target": htas.Target(threads=1)}
    htas.optimize(model or network(), data=data, out=tmp_path / "run", **{**usual, **more})


GOT = "it got a float32 tensor (8, 3) and a int64 tensor (8,)"
FAULTS = {
    "fails": ({"loss_fn": nn.BCEWithLogitsLoss()}, ("loss_fn fails on a batch of the training data", GOT)),
    "each item's": ({"loss_fn": nn.CrossEntropyLoss(reduction="none")}, ("scalar tensor", "a float32 tensor (8,)")),
    "a number": ({"loss_fn": lambda outputs, labels: 0.5}, ("it gives float",)),
    "no gradient": ({"loss_fn": lambda *both: F.cross_entropy(*both).detach()}, ("without a gradient", ".detach()")),
    "nan": ({"loss_fn": lambda *both: F.cross_entropy(*both) * torch.nan}, ("loss_fn gives nan",)),
    "each answer": ({"eval_fn": lambda outputs, labels: outputs.argmax(1) == labels}, ("one number", "a bool tensor")),
    "no score": ({"eval_fn": lambda outputs, labels: {"f1": 1.0}}, ("eval_fn must give one number", "dict with f1")),
    "score fails": (
        {"eval_fn": lambda outputs, labels: outputs["out"]},
        ("eval_fn fails on a batch", "test_functions"),
    ),
    "distil": ({"distill_fn": lambda outputs, teacher: outputs.mean()}, ("distill_fn fails", "2 positional arguments")),
    "judge": ({"score_func": lambda network, data: 1.0}, ("score_func must take (network)", "data")),
    "train": ({"train_fn": lambda network: None}, ("train_fn must take (network, teacher)",)),
    "in training": ({"model": Aided()}, ("in training mode the model gives Auxiliary", "auxiliary", "loss_fn")),
    "double": (
        {"model": network().double(), "example_inputs": IMAGES[:1].double()},
        ("the model does not run in eval mode on a batch of the training data, in float32: RuntimeError",),
    ),
    "inputs": (
        {"data": (TensorDataset(torch.full((60, *IMAGES.shape[1:]), torch.nan), torch.arange(60) % CLASSES),) * 2},
        ("inputs of item 0 of the training data are NaN or infinite (of 60 items looked at 60 have such inputs)",),
    ),
    "collated inputs": (
        {"data": (DataLoader(DATA[0], 20, collate_fn=divided), DATA[1])},
        ("a batch of the training data has inputs that are NaN or infinite",),
    ),
    "target": ({"target": "cpu"}, ("target must be an htas.Target", "'cpu'")),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_function_that_cannot_be_used_is_named_before_the_survey(name, tmp_path):
    change, parts = FAULTS[name]
    with pytest.raises(UserError) as caught:
        call(tmp_path, **change)
    assert all(part in str(caught.value) for part in parts) and "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [
    {"loss_fn": nn.CrossEntropyLoss(weight=torch.rand(CLASSES)), "eval_fn": lambda o, y: (o.argmax(1) == y).sum()},
    {"loss_fn": nn.CrossEntropyLoss(), "distill_fn": lambda o, t, y: F.mse_loss(o, t), "eval_fn": lambda o, y: 1},
    {"train_fn": lambda network, teacher=None: None, "score_func": float, "ignored_layers": "0"},
    {
        "model": Aided(), "eval_fn": lambda o, y: 0.5,
        "loss_fn": lambda o, y: sum(F.cross_entropy(each, y) for each in ([o] if torch.is_tensor(o) else o)),
    },
])  # fmt: skip
def test_functions_that_give_numbers_are_used_and_the_model_stays_as_it_is(change, tmp_path):
    model = change.get("model", network()).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(Surveying):
        call(tmp_path, **{**change, "model": model})
    assert model.training and all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


class Rare(nn.Module):
    """Finds each item of a class of one in twenty, and takes some others for it."""

    def __init__(self, level: float) -> None:
        super().__init__()
        self.body, self.level = network(2), level
        nn.init.zeros_(self.body[-1].weight)

    def forward(self, images: Tensor) -> Tensor:
        is_rare = (images.mean((1, 2, 3)) > self.level).float()
        return self.body(images) * 0 + torch.stack([1 - is_rare, is_rare], 1)


def test_a_network_that_finds_a_rare_class_is_trained_whatever_its_accuracy(tmp_path):
    labels = (torch.arange(400) % 20 == 0).long()
    images = torch.linspace(0, 0.9, 400)[:, None, None, None].expand(400, 1, 8, 8) + labels[:, None, None, None]
    parts = TensorDataset(images.contiguous(), labels), TensorDataset(images.contiguous(), labels)
    with pytest.raises(Surveying):  # 78 % are right, and 95 % are of the common class
        call(tmp_path, Rare(0.7), parts, trained=True)
    with pytest.raises(UserError, match=r"95\.00 %.*train it first"):
        call(tmp_path, Rare(5.0), parts, trained=True)


class Opened(TensorDataset):
    """Items of a file that each worker opens."""

    opened = False

    def __getitem__(self, number: int) -> Any:
        assert Opened.opened or torch.utils.data.get_worker_info() is None
        return super().__getitem__(number)


def opened(worker: int) -> None:
    Opened.opened = True


def test_workers_begin_as_those_of_the_user_s_loader(tmp_path):
    loader = DataLoader(Opened(IMAGES, LABELS), 8, num_workers=1, worker_init_fn=opened)
    with pytest.raises(Surveying):
        call(tmp_path, data=(loader, DATA[1]))
