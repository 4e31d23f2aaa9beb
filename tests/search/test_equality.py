"""A supernet that takes over a trained network's weights computes what that does, or says where it does not."""

import pytest
import torch
from torch import Tensor, nn

from htas.errors import UserError
from htas.graph import Network, trace
from htas.search.equality import check
from htas.search.supernet import Supernet
from htas.spaces.space import Space


class Split(nn.Module):
    """Half of the channels go through a branch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.branch, self.last = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(8, 2)

    def forward(self, images: Tensor) -> Tensor:
        one, two = self.norm(self.stem(images)).relu().chunk(2, 1)
        return self.last(torch.cat([one, self.branch(two)], 1).mean((2, 3)))  # type: ignore[no-any-return]


def inherited(share: float) -> tuple[Supernet, nn.Module]:
    """A supernet with the weights of a trained network, whose widths are all these shares of the base or wider."""
    network: Network = trace(Split(), torch.zeros(1, 3, 8, 8))
    widths = {name: (int(share * site.base), 2 * site.base) for name, site in network.widths.items()}
    supernet, trained = Supernet(network, Space("test", widths, {}), lambda module: None), Split()
    nn.init.uniform_(trained.norm.running_mean, -0.5, 0.5)
    supernet.inherit(trained)
    return supernet, trained


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_supernet_with_the_weights_of_a_network_computes_what_it_does(share: float) -> None:
    supernet, trained = inherited(share)
    check(supernet, trained)
    assert supernet.training and trained.training


def test_a_supernet_that_computes_something_else_is_refused_with_the_step() -> None:
    supernet, trained = inherited(1.0)
    with torch.no_grad():
        supernet.body.get_parameter("branch.weight").add_(1.0)
    with pytest.raises(UserError, match=r"from branch on; name branch in design\.ignored"):
        check(supernet, trained)


def test_random_numbers_that_follow_are_the_same_with_and_without_the_check() -> None:
    supernet, trained = inherited(0.5)
    torch.manual_seed(0)
    check(supernet, trained)
    checked = torch.rand(3)
    torch.manual_seed(0)
    assert torch.equal(checked, torch.rand(3))
