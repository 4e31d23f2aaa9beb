"""Names of layers that are functions of weights which modules hold beside others."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from htas.formats.export import export
from htas.graph import resize, trace
from htas.graph.arch import Arch
from htas.search.equality import check
from htas.search.supernet import Supernet
from htas.spaces.space import Space

EXAMPLE = torch.zeros(1, 3, 8, 8)


def weight(outputs: int, inputs: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(outputs, inputs, 3, 3) / (9 * inputs) ** 0.5)


class Three(nn.Module):
    """Convolutions that are functions of the weights that it holds itself."""

    def __init__(self, *, last: bool = True) -> None:
        super().__init__()
        self.one, self.two, self.three = weight(16, 3), weight(24, 16), weight(32, 24)
        if last:
            self.last = nn.Linear(32, 3)

    def features(self, x: Tensor) -> Tensor:
        for kernel in (self.one, self.two, self.three):
            x = F.conv2d(x, kernel, padding=1).relu()
        return x.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.features(x))  # type: ignore[no-any-return]


class Inside(nn.Module):
    """The same in a module of the network, beside a module that holds a single weight."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.single, self.last = Three(last=False), nn.Module(), nn.Linear(8, 3)
        self.single.kernel = nn.Parameter(torch.randn(8, 32))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.linear(self.body.features(x), self.single.kernel).relu())  # type: ignore[no-any-return]


class Standard(nn.Module):
    """A weight that steps make of the parameters of the network itself, and another that is called weight."""

    def __init__(self) -> None:
        super().__init__()
        self.gain, self.kernel, self.weight = nn.Parameter(torch.ones(16, 1, 1, 1)), weight(16, 3), weight(24, 16)
        self.last = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.gain * self.kernel / 2, padding=1).relu()
        return self.last(F.conv2d(x, self.weight, padding=1).relu().mean((2, 3)))  # type: ignore[no-any-return]


class Halves(nn.Module):
    """Two layers with halves of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.both, self.last = nn.Conv2d(3, 8, 3), nn.Parameter(torch.randn(32, 8)), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        x, (one, two) = self.stem(x).relu().mean((2, 3)), self.both.chunk(2)
        return self.last(torch.cat([F.linear(x, one).relu(), F.linear(x, two).sigmoid()], 1))  # type: ignore[no-any-return]


NAMES: dict[type[nn.Module], list[str]] = {
    Three: ["one", "two", "three"],
    Inside: ["body.one", "body.two", "body.three", "single"],
    Standard: ["kernel", "weight"],
}


@pytest.mark.parametrize("kind", [*NAMES, Halves])
def test_every_site_has_a_name_of_its_own_and_is_resized(kind, tmp_path):
    torch.manual_seed(0)
    module = kind().eval()
    network = trace(module, EXAMPLE)
    if kind in NAMES:
        assert [*network.widths] == NAMES[kind] and all(
            site.producers == (name,) for name, site in network.widths.items()
        )
    assert all(network.widths) and network.widths and all(network.frozen)
    half = Arch({name: site.near(site.base / 2) for name, site in network.widths.items()}, {})
    small = resize(network, half)
    assert sum(each.numel() for each in small.parameters()) == network.params(half) < network.params(network.base)
    assert network.macs(half) < network.macs(network.base) / 1.5
    assert small(torch.randn(2, 3, 8, 8)).shape == (2, 3)
    export(small, EXAMPLE, tmp_path / "network.pt2")


@pytest.mark.parametrize("kind", [*NAMES, Halves])
def test_a_supernet_has_the_weights_of_functions(kind):
    torch.manual_seed(0)
    network, trained = trace(kind(), EXAMPLE), kind()
    widths = {name: (site.base // 2, site.base, 2 * site.base) for name, site in network.widths.items()}
    supernet = Supernet(network, Space("test", widths, {}), lambda module: None)
    supernet.inherit(trained)
    check(supernet, trained)
