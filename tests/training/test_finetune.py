"""Training on from trained weights: what a network knows is not lost to its first steps."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from htas.data.split import Split
from htas.run.config import Config
from htas.training.distill import Distill
from htas.training.recipe import RECIPES, Recipe
from htas.training.train import Training, evaluate


class Plain(nn.Module):
    """A network without norms, whose gradients grow with its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 32, 3, 2, 1)
        self.three, self.head = nn.Conv2d(32, 32, 3, padding=1), nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Tensor:
        features = self.three(self.two(self.one(images).relu()).relu()).relu()
        return self.head(features.mean((2, 3)))


def digits() -> Split:
    """The first 1,400 of scikit-learn's digits."""
    data = load_digits()
    images = torch.tensor(15 * data.images, dtype=torch.uint8)[:1400, None]
    return Split(images, torch.tensor(data.target)[:1400], mean=(0.0,), std=(1.0,), flip=False, crop=0)


def trained(images: Tensor, labels: Tensor) -> Plain:
    """By Adam, which leaves weights with which a step of SGD may go far too far."""
    torch.manual_seed(0)
    network = Plain()
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(12):
        for picks in torch.randperm(len(images)).split(32):
            optimizer.zero_grad()
            F.cross_entropy(network(images[picks]), labels[picks]).backward()
            optimizer.step()
    return network.eval()


@pytest.mark.usefixtures("one_thread")
def test_a_network_without_norms_keeps_what_it_knows_where_it_is_distilled_from_itself(tmp_path):
    split = digits()
    images, labels = next(split.batches(len(split)))
    network = trained(images, labels)
    before = evaluate(network, split, device="cpu")
    student = Plain()
    student.load_state_dict(network.state_dict())
    recipe = replace(RECIPES["finetune"], batch=70, precision="fp32")
    Training(
        student, split, recipe, seed=0, device="cpu", checkpoint=tmp_path / "c", title="toy", teacher=network,
        distill=Distill(),
    ).run()  # fmt: skip
    assert before > 0.8
    assert evaluate(student, split, device="cpu") > before - 0.03


@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_a_gradient_is_scaled_down_to_the_norm_that_a_recipe_allows(clip, tmp_path, monkeypatch):
    norms = []

    def step(optimizer: torch.optim.Optimizer) -> None:
        norms.append(float(nn.utils.get_total_norm([each.grad for each in optimizer.param_groups[0]["params"]])))

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    network[1].weight.data *= 30
    recipe = Recipe(epochs=1, warmup=0, batch=70, lr=0.1, clip=clip, precision="fp32")
    Training(network, digits(), recipe, seed=0, device="cpu", checkpoint=tmp_path / "c", title="toy").run()
    assert len(norms) == 20 and min(norms) > 0.4
    assert max(norms) > 1 if clip == 0 else max(norms) == pytest.approx(0.5, abs=1e-5)


def test_recipes_without_a_clipped_gradient_have_the_hashes_of_before():
    """What is trained, or half trained, by them stays valid."""
    for name in RECIPES:
        keyed = Config.default().changed({"train.recipe": name}).options(keys=True)
        assert ("train.clip" in keyed) == (name == "finetune")
    assert "train.clip" in Config.default().options()
