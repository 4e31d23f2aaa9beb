"""Scores of the user's own functions that are no finite numbers: the function and the network are named at once."""

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scripted_device import scripted_device
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from whole_run import QUICK

import htas
from htas.data.items import items
from htas.data.task import Task, need_score
from htas.errors import UserError
from htas.search.oneshot import some
from htas.training.loop import engine
from htas.training.train import SEARCHED, evaluate, mean_score, users_score

CLASSES = 3
LABELS = torch.arange(90) % CLASSES
IMAGES = torch.randn(90, 1, 8, 8, generator=torch.Generator().manual_seed(0)) + LABELS.view(-1, 1, 1, 1)
DATA = TensorDataset(IMAGES, LABELS), TensorDataset(IMAGES[:30], LABELS[:30])


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()
        )
        self.head = nn.Linear(16, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images).mean((2, 3)))


def called(folder: Path, **more: Any) -> htas.OptimizationResult:
    torch.manual_seed(0)
    usual: dict[str, Any] = {"trained": False, "epochs": 1, "options": QUICK, "constraints": {"macs": "60%"}}
    with scripted_device():
        return htas.optimize(
            Net(), torch.zeros(1, 1, 8, 8), DATA, target=htas.Target(threads=1), out=folder, **{**usual, **more}
        )


def narrow(network: nn.Module) -> bool:
    return sum(each.numel() for each in network.parameters()) < sum(each.numel() for each in Net().parameters())


@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore")
def test_a_network_that_score_func_has_no_number_for_is_named_and_its_training_goes_on(tmp_path):
    class Scored:
        """Mended without a change of its text, as by a library that it calls."""

        def __call__(self, network: nn.Module) -> float:
            return math.nan if narrow(network) and not (tmp_path / "mended").exists() else 0.5

    with pytest.raises(UserError, match=r"score_func gives nan for the network hardware; it must give a finite number"):
        called(tmp_path / "run", score_func=Scored())
    kept = tmp_path / "run/checkpoints"
    assert [path.name.startswith("train-hardware") for path in kept.iterdir()] == [True]
    assert [path.name for path in (tmp_path / "run/networks").iterdir()] == ["base.safetensors"]
    (tmp_path / "mended").touch()
    assert called(tmp_path / "run", score_func=Scored()).result.accuracy == 0.5


def nothing(outputs: Tensor, labels: Tensor) -> Tensor:
    return outputs.mean() * torch.nan


@pytest.mark.parametrize("functions", [{"eval_fn": nothing}, {"eval_fn": nothing, "loss_fn": F.cross_entropy}])
def test_an_eval_fn_without_a_number_for_the_given_model_is_refused_before_the_survey(functions, tmp_path):
    with pytest.raises(UserError, match=r"eval_fn gives nan for the given model, on a batch of the training data; it"):
        called(tmp_path / "run", trained=True, **functions)
    assert not (tmp_path / "run").exists()


@pytest.mark.timeout(300)
def test_an_eval_fn_without_a_number_for_the_base_network_writes_no_weights(tmp_path):
    def rare(outputs: Tensor, labels: Tensor) -> float:
        return math.nan if len(labels) == 30 else 0.5  # of the validation items alone

    with pytest.raises(UserError, match=r"eval_fn gives nan for the network base; it must give a finite number there"):
        called(tmp_path / "run", eval_fn=rare)
    assert not (tmp_path / "run/networks").exists()


def test_an_epoch_whose_score_is_no_number_is_no_checkpoint(tmp_path):
    with pytest.raises(UserError, match=r"eval_fn gives nan for training images in epoch 1 of train base; it must"):
        called(tmp_path / "run", eval_fn=nothing)
    assert not (tmp_path / "run/checkpoints").exists()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e31])
def test_scores_of_every_way_are_finite(value):
    split = items(DATA[1], "the validation data")
    task, network = Task(score=lambda outputs, labels: value), nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES))
    runner = engine("cpu", "fp32")
    for compute in (
        lambda: evaluate(network, split, device="cpu", task=task),
        lambda: mean_score(task, some(split, 8), runner, network),
        lambda: users_score(replace(task, judge=lambda model: value), network, SEARCHED),
    ):
        with pytest.raises(UserError, match=re.escape(f"gives {value:g} for a network of the search; it must")):
            compute()
    assert need_score(0.25, "eval_fn", SEARCHED) == 0.25
