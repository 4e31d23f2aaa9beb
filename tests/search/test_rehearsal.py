"""What a supernet cannot do is said before anything is measured."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from htas.errors import UserError
from htas.graph import trace
from htas.models.cifar_resnet import CifarResNet
from htas.search.rehearsal import rehearse
from htas.search.supernet import Supernet

NETWORK = trace(CifarResNet(14).build(5), torch.zeros(2, 3, 8, 8), adds="join")


@pytest.mark.parametrize("mix", ["pad", "interpolate"])
@pytest.mark.parametrize("norms", ["own", "shared"])
def test_a_network_whose_supernet_works_is_unchanged(mix: Any, norms: Any) -> None:
    before = {name: tensor.clone() for name, tensor in NETWORK.module.state_dict().items()}
    torch.manual_seed(0)
    number = torch.rand(1)
    torch.manual_seed(0)
    rehearse(NETWORK, "project", mix, norms, inherits=True)
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
        rehearse(NETWORK, "project", "pad", "own", inherits=True)


def test_a_supernet_that_cannot_be_built_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Supernet, "inherit", lambda *_: nn.Linear(2, 2)(torch.zeros(1, 3)))
    with pytest.raises(UserError, match=r"cannot be searched by a supernet.*; search with strategy.name=uniform"):
        rehearse(NETWORK, "project", "pad", "own", inherits=True)
