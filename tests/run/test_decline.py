"""Trainings that lose what they began with, or end at guessing, are named, and nothing is concluded from them."""

import pytest
import torch
import torch.nn.functional as F
from scripted_device import scripted_device
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from whole_run import QUICK

import htas
from htas.report import read
from htas.run.decline import decline

CLASSES = 3


class Net(nn.Module):
    """Two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 16, 3, 2, 1)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.two(self.one(images).relu()).relu().mean((2, 3)))


def items(count: int, seed: int) -> TensorDataset:
    """Stripes as wide as the class."""
    labels = torch.arange(count) % CLASSES
    images = 0.2 * torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    for number, label in enumerate(labels.tolist()):
        images[number, :, :, torch.arange(8) // (label + 1) % 2 == 0] += 1
    return TensorDataset(images, labels)


@pytest.fixture(scope="module")
def net() -> Net:
    """Trained until it knows the classes."""
    torch.manual_seed(0)
    network, (images, labels) = Net(), items(240, 0).tensors
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()
    return network.eval()


def forget(network: Net, teacher: nn.Module | None) -> None:
    """A training that ends at a network whose outputs are always the same."""
    nn.init.zeros_(network.head.weight)


@pytest.mark.usefixtures("one_thread")
def test_a_training_that_loses_its_weights_is_named_and_nothing_is_concluded(net, tmp_path, capsys):
    with scripted_device():
        result = htas.optimize(
            net, torch.zeros(1, 1, 8, 8), (items(240, 0), items(90, 1)), target=htas.Target(threads=1, batch=2),
            constraints={"latency": "100%"}, train_fn=forget, options={**QUICK, "design.expand": 1.0},
            out=tmp_path / "run",
        )  # fmt: skip
    base, found = result.results[0], result.result
    assert base.accuracy > 0.8 and found.accuracy == pytest.approx(1 / CLASSES)
    said = "Its training lost what it began with: its accuracy on training images was "
    assert found.lost.startswith(said) and found.lost.endswith("let train_fn take smaller steps.") and not base.lost
    failed = "Its training failed: its accuracy cannot be told from guessing, and the base network's is "
    assert any(each.startswith(failed) for each in found.remarks)
    assert f"train {found.name}: {found.lost}" in capsys.readouterr().err
    text = str(result)
    assert "The searched network is no better than guessing, 33.33 % with 3 classes, where Net has" in text
    assert "its training failed and says nothing about the network" in text and found.lost[1:] in text
    assert not any(words in text for words in ("needs no search", "more accurate", "less accurate", "as accurate"))
    page = (result.folder / "report.md").read_text()
    assert found.lost.partition(";")[0] in page
    again = read(result.folder).results  # from the files of the weights
    assert [each.lost for each in again] == [each.lost for each in result.results]


@pytest.mark.parametrize(
    "before, after, lost",
    [
        ([0.9] * 10, [0.5] * 10, True),
        ([0.9, 0.8] * 5, [0.88, 0.8] * 5, False),  # a point
        ([0.9, 0.1] * 5, [0.1, 0.7] * 5, False),  # -10 points, with a standard error of 23
        ([0.5] * 10, [0.9] * 10, False),
        ([0.9] * 4, [0.1] * 4, False),  # of so few images nothing is known
    ],
)
def test_only_a_clear_loss_is_named(before, after, lost):
    assert bool(decline(before, after, "lower train.lr")) == lost
    if lost:
        assert "was 90.00 % before the first step, and is 50.00 % after the last; lower train.lr." in decline(
            before, after, "lower train.lr"
        )
