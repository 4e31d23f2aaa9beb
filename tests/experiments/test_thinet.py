"""ThiNet removes the channels without which the next layers' outputs change least."""

from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from htas.errors import UserError
from htas.experiments import pruning
from htas.experiments.arm_tables import Pruning
from htas.experiments.thinet import PLACES, ThiNet, contributions, gram, order, scales
from htas.graph import Network, trace

pytestmark = pytest.mark.usefixtures("one_thread")


def samples(seed: int, count: int = 40, channels: int = 5) -> Tensor:
    return torch.randn(count, channels, generator=torch.Generator().manual_seed(seed))


def products(x: Tensor) -> Tensor:
    every = torch.arange(x.shape[1])
    return gram(x, every, every, x.shape[1])


@pytest.mark.parametrize("seed", range(5))
def test_channels_are_removed_in_the_greedy_order_of_the_paper(seed):
    """Algorithm 1 by hand, on the samples themselves; the first one is the best single one of all."""
    x, removed = samples(seed), []
    while len(removed) < 5:
        rest = [channel for channel in range(5) if channel not in removed]
        removed.append(min(rest, key=lambda channel: float(x[:, [*removed, channel]].sum(1).square().sum())))
    assert order(products(x)).tolist() == removed
    best = min(combinations(range(5), 1), key=lambda each: float(x[:, each].sum(1).square().sum()))
    assert removed[0] == best[0]


def test_a_channel_that_makes_up_for_one_that_is_removed_follows_it():
    """The fourth alone is longer than the second; with the third, which it is the opposite of, it is shorter."""
    x = samples(0, count=4000) * torch.tensor([0.5, 0.9, 0.6, 1.0, 3.0])
    x[:, 3] = -2 * x[:, 2]
    assert order(products(x)).tolist() == [0, 2, 3, 1, 4]
    assert x.square().sum(0).argsort().tolist() == [0, 2, 1, 3, 4]


def test_factors_are_those_of_least_squares():
    x, keep = samples(1).double(), [0, 2, 3]
    wanted = torch.linalg.lstsq(x[:, keep], x.sum(1, keepdim=True)).solution.squeeze(1)
    torch.testing.assert_close(scales(products(x), keep), wanted)
    x[:, 1], x[:, 4] = 0, x[:, 2]  # what is removed adds nothing, or what another adds
    torch.testing.assert_close(scales(products(x), keep), torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64))
    x[:, 0] = 0  # as a channel that no image has brought to life
    torch.testing.assert_close(scales(products(x), keep), torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, padding=1),
        nn.Conv2d(4, 6, (3, 1), stride=2, dilation=(2, 1), bias=False),
        nn.Conv2d(4, 6, 3, groups=2, padding="same", padding_mode="reflect"),
        nn.Linear(4, 6),
    ],
    ids=["plain", "strided", "grouped", "linear"],
)
@torch.no_grad()
def test_contributions_add_up_to_outputs_of_the_layer(layer):
    """Every sum is an output of its image, less the bias."""
    images = torch.randn(3, *((4,) if isinstance(layer, nn.Linear) else (4, 9, 9)))
    sums = contributions(layer, images, torch.Generator().manual_seed(0)).sum(1).view(3, PLACES)
    bias = torch.zeros(6) if layer.bias is None else layer.bias
    outputs = (layer(images).flatten(2) if images.dim() == 4 else layer(images)[:, :, None]) - bias[:, None]
    for image in range(3):
        away = (sums[image][:, None] - outputs[image].flatten()).abs().amin(1)
        assert float(away.max()) < 1e-5
    assert len(set(sums.flatten().tolist())) > PLACES


def test_a_layer_of_another_kind_is_refused():
    with pytest.raises(
        UserError, match=r"prune = 'thinet' needs linear layers and convolutions of images, .*Transpose"
    ):
        contributions(nn.ConvTranspose2d(4, 4, 3), torch.zeros(1, 4, 5, 5), torch.Generator())


class Shortcut(nn.Module):
    """Eight channels that a second layer adds to, and that two layers read, one of them after a flattening."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Linear(8 * 4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.first(x))
        x = x + self.second(x)
        return self.last(functional.adaptive_avg_pool2d(x, 2).flatten(1))


def shortcut() -> tuple[Shortcut, Network]:
    torch.manual_seed(0)
    model = Shortcut().eval()
    return model, trace(model, torch.zeros(2, 3, 8, 8))


def pruned(model: nn.Module, network: Network, ratio: float, importance: Any) -> nn.Module:
    return pruning.pruned(network, model, torch.zeros(2, 3, 8, 8), Pruning("thinet"), ratio, importance)[1]


def images(seed: int) -> list[tuple[Tensor, None]]:
    return [(torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(seed)), None) for _ in range(2)]


def test_channels_that_no_layer_makes_anything_of_go_first_and_nothing_changes():
    """Three are read with weights of zero by both layers, though their own filters are the largest."""
    pytest.importorskip("torch_pruning")
    model, network = shortcut()
    with torch.no_grad():
        for channel in (1, 4, 6):
            model.first.weight[channel] *= 10
            model.second.weight[:, channel] = 0
            model.last.weight.view(2, 8, 4)[:, channel] = 0
    narrow = pruned(model, network, 3 / 8, ThiNet(images(0)))
    x = torch.randn(4, 3, 8, 8)
    assert narrow.first.out_channels == narrow.second.out_channels == 5
    torch.testing.assert_close(narrow(x), model(x), atol=1e-4, rtol=1e-4)


def test_a_channel_counts_by_all_layers_that_read_it():
    """One matters to the second layer alone, one to the last alone, so both stay; the others matter little."""
    pytest.importorskip("torch_pruning")
    model, network = shortcut()
    with torch.no_grad():
        model.second.weight *= 0.01
        model.last.weight *= 0.01
        model.second.weight[:, 2] *= 100
        model.last.weight.view(2, 8, 4)[:, 5] *= 100
    importance = ThiNet(images(0))
    narrow = pruned(model, network, 6 / 8, importance)
    (grams,) = importance.grams.values()
    assert {*grams} == {"second", "last"}
    assert torch.equal(narrow.first.weight, model.first.weight[[2, 5]])


def test_least_squares_bring_the_outputs_nearer_and_copies_are_judged_alike(monkeypatch):
    pytest.importorskip("torch_pruning")
    model, network = shortcut()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    importance = ThiNet(iter(images(0)))  # which are read once
    scaled, again = (pruned(model, network, 0.5, importance) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(scaled.parameters(), again.parameters(), strict=True))
    monkeypatch.setattr(ThiNet, "rescale", lambda *parts: None)
    plain = pruned(model, network, 0.5, importance)
    assert torch.equal(plain.first.weight, scaled.first.weight)
    x = images(1)[0][0]
    away = [float((each(x) - model(x)).detach().square().mean()) for each in (scaled, plain)]
    assert away[0] < away[1]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
