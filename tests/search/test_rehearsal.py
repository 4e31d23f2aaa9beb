"""What a supernet cannot do is said before anything is measured."""

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from htas.errors import UserError
from htas.graph import trace
from htas.models.cifar_resnet import CifarResNet
from htas.search.rehearsal import rehearse
from htas.search.supernet import Supernet

FAMILY = CifarResNet(14)
NETWORK = trace(FAMILY.build(5), torch.zeros(2, 3, 8, 8), adds="join")


@pytest.mark.parametrize("mix", ["pad", "interpolate"])
@pytest.mark.parametrize("norms", ["own", "shared"])
def test_a_network_whose_supernet_works_is_unchanged(mix: Any, norms: Any) -> None:
    before = {name: tensor.clone() for name, tensor in NETWORK.module.state_dict().items()}
    torch.manual_seed(0)
    number = torch.rand(1)
    torch.manual_seed(0)
    rehearse(NETWORK, FAMILY.reset, "project", mix, norms, inherits=True)
    assert torch.equal(torch.rand(1), number)
    assert all(torch.equal(tensor, before[name]) for name, tensor in NETWORK.module.state_dict().items())


@pytest.mark.parametrize("part", ["norm", "conv"])
def test_the_step_at_which_a_supernet_fails_is_named(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> Tensor:
        raise RuntimeError("sizes differ")

    monkeypatch.setattr(Supernet, f"_{part}", fail)
    first = next(node.name for node in NETWORK.nodes if node.kind == part)
    sentence = f"cannot be searched by a supernet: .*sizes differ.*, at {re.escape(first)}; name .* in design.ignored"
    with pytest.raises(UserError, match=sentence):
        rehearse(NETWORK, FAMILY.reset, "project", "pad", "own", inherits=True)


def test_a_supernet_that_cannot_be_built_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Supernet, "inherit", lambda *_: nn.Linear(2, 2)(torch.zeros(1, 3)))
    with pytest.raises(UserError, match=r"cannot be searched by a supernet.*; search with strategy.name=uniform"):
        rehearse(NETWORK, FAMILY.reset, "project", "pad", "own", inherits=True)


class ActiveNorm(nn.BatchNorm2d):
    """A norm with an activation inside, as timm's: its forward calls the function on its own tensors."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training, 0.1, self.eps)
        return F.relu(x)


@pytest.mark.parametrize("norms", ["own", "shared"])
def test_weights_of_norms_that_functions_read_can_be_drawn(norms: Any) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), ActiveNorm(8), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(64, 2))
    network = trace(net, torch.zeros(2, 3, 8, 8))
    assert "0" in network.widths
    rehearse(network, FAMILY.reset, "project", "pad", norms, inherits=True)
