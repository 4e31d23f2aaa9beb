"""Parameters that require no gradients keep their values: in resized networks, in a search, when weights are drawn."""

from itertools import chain

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from htas.graph import Arch, Network, resize, trace
from htas.models import untrained_unchanged
from htas.models.cifar_resnet import CifarResNet
from htas.search.draw import Draw
from htas.search.supernet import Supernet
from htas.spaces.space import Space

REASON = "has weights that are not trained (requires_grad is False)"


class Filtered(nn.Module):
    """Learnt, fixed and learnt convolutions; a norm whose scale is fixed."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.bank = nn.Conv2d(8, 12, 3, padding=1, bias=False).requires_grad_(False)
        self.norm = nn.BatchNorm2d(12).requires_grad_(False)
        self.second = nn.Conv2d(12, 16, 3, bias=False)
        self.scaled = nn.BatchNorm2d(16)
        self.scaled.weight.requires_grad_(False).uniform_(0.5, 1.5)
        self.norm.running_mean.uniform_(-0.5, 0.5)  # type: ignore[union-attr]
        self.head = nn.Linear(16, 3)

    def forward(self, images: Tensor) -> Tensor:
        maps = F.relu(self.norm(self.bank(F.relu(self.first(images)))))
        return self.head(F.relu(self.scaled(self.second(maps))).mean((2, 3)))


def widths_of(network: Network, factor: float) -> dict[str, int]:
    return {name: site.near(factor * site.base) for name, site in network.widths.items()}


def test_a_layer_whose_weights_are_not_trained_keeps_its_widths_and_values() -> None:
    module = Filtered().eval()
    network = trace(module, torch.zeros(2, 1, 9, 9))
    assert set(network.widths) == {"second"}
    assert {network.frozen["first"], network.frozen["bank"]} == {f"bank {REASON}"}
    for factor in (0.5, 2.0):
        other = resize(network, Arch(widths_of(network, factor), network.base.depths))
        with untrained_unchanged(other):
            CifarResNet(8).reset(other)
        assert torch.equal(other.get_parameter("bank.weight"), module.bank.weight)
        assert not torch.equal(other.get_parameter("first.weight"), module.first.weight)
        assert torch.equal(other.get_buffer("norm.running_mean"), module.norm.running_mean)  # type: ignore[arg-type]
        common = min(16, len(other.get_parameter("scaled.weight")))
        assert torch.equal(other.get_parameter("scaled.weight")[:common], module.scaled.weight[:common])


@pytest.mark.parametrize("norms", ["own", "shared"])
def test_a_search_does_not_train_what_is_not_trained(norms: str) -> None:
    def reset(part: nn.Module) -> None:
        with untrained_unchanged(part):
            CifarResNet(8).reset(part)

    module = Filtered().eval()
    network = trace(module, torch.zeros(2, 1, 9, 9))
    space = Space("test", {"second": (8, 16, 24)}, {})
    supernet = Supernet(network, space, reset, mix="pad", norms=norms)  # type: ignore[arg-type]
    assert torch.equal(supernet.body.get_parameter("bank.weight"), module.bank.weight)
    fixed = [tensor for name, tensor in supernet.named_parameters() if not tensor.requires_grad]
    before = [tensor.clone() for tensor in fixed]
    scales = [tensor for name, tensor in supernet.named_parameters() if "scaled" in name and name.endswith("weight")]
    assert scales and not any(tensor.requires_grad for tensor in scales)
    assert all(torch.equal(each[:16], module.scaled.weight[: len(each)]) for each in scales)
    rate = torch.optim.SGD(supernet.parameters(), 0.1)
    supernet.train()(torch.randn(4, 1, 9, 9), Draw.of(Arch({"second": 8}, {}), network)).square().sum().backward()
    rate.step()
    assert all(map(torch.equal, fixed, before))
    assert all(each.requires_grad for each in chain(supernet.body.first.parameters(), supernet.body.head.parameters()))
