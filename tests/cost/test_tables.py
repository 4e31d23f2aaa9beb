"""Costs of archs from layers at pairs of widths: by hand, against enumeration, and by finite differences."""

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from math import prod
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from htas.cost.counts import CountCost
from htas.cost.tables import Calibration, LayerCost, Table, TableCost, pairs
from htas.graph import Network, trace
from htas.graph.arch import Arch
from htas.graph.layer import Layer
from htas.models.cifar_resnet import CifarResNet
from htas.spaces.space import Space

IMAGE = (3, 8, 8)


class Own(nn.Module):
    """A convolution whose input and output are one site, a depthwise one, a concatenation, and a flattened end."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.own = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.wise = nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.last = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.wise(x + self.own(x))
        return self.last(self.pool(x).flatten(1))  # type: ignore[no-any-return]


class Joined(nn.Module):
    """Two branches side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = (nn.Conv2d(3, width, 3, padding=1) for width in (4, 6))
        self.last = nn.Conv2d(10, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.cat([self.one(x), self.two(x)], 1)).mean((2, 3))  # type: ignore[no-any-return]


class Constant(nn.Module):
    """Blocks whose channels are weighted by a layer of a parameter, for all images at once."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 5)
        self.blocks = nn.Sequential(*(Weighted() for _ in range(3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.blocks(self.stem(x)).mean((2, 3)))  # type: ignore[no-any-return]


class Weighted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.layer = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.Linear(2, 4)
        self.table = nn.Parameter(torch.randn(6, 2))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) * self.layer(self.table).mean(0)[None, :, None, None]


@cache
def network(name: str) -> Network:
    example = torch.zeros(1, *IMAGE)
    if name == "own":
        return trace(Own(), example)
    if name in ("joined", "constant"):
        return trace(Joined() if name == "joined" else Constant(), example)
    depth, adds = name.split()
    kind: Literal["join", "project"] = "project" if adds == "project" else "join"
    return trace(CifarResNet(int(depth)).build(5), example, adds=kind)


def small(net: Network, choices: int = 2) -> Space:
    """So many choices of every width, and every depth."""
    return Space(
        "small",
        {name: tuple(2 * index + number % 3 + 1 for index in range(choices)) for number, name in enumerate(net.widths)},
        {name: tuple(range(1, site.base + 1)) for name, site in net.depths.items()},
    )


def tables(net: Network, space: Space, seed: int = 0) -> dict[Layer, Table]:
    """Random figures for every pair that an arch of the space may need."""
    rng = np.random.default_rng(seed)
    return {
        template: Table(tuple(sorted(i)), tuple(sorted(o)), tuple(map(tuple, rng.uniform(0.1, 1, (len(i), len(o))))))
        for template, (i, o) in pairs(net, [space], 99).items()
    }


def chances(space: Space, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[dict[str, Tensor], ...]:
    """Random probabilities of every choice."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(choices: tuple[int, ...]) -> Tensor:
        return torch.softmax(1.5 * torch.randn(len(choices), generator=generator, dtype=dtype), 0)

    return tuple({site: drawn(choices) for site, choices in sites.items()} for sites in (space.widths, space.depths))


def archs(space: Space, widths: dict[str, Tensor], depths: dict[str, Tensor]) -> Iterator[tuple[float, Arch]]:
    """Every arch with its probability."""
    probabilities = {**widths, **depths}
    for picks in itertools.product(*(range(len(choices)) for choices in space.choices.values())):
        share = prod(float(probabilities[site][pick]) for site, pick in zip(space.choices, picks, strict=True))
        sites = {site: space.choices[site][pick] for site, pick in zip(space.choices, picks, strict=True)}
        yield share, Arch({s: sites[s] for s in space.widths}, {s: sites[s] for s in space.depths})


def test_a_table_is_exact_where_it_was_measured_and_linear_between() -> None:
    table = Table((2, 4), (10, 20, 40), ((1.0, 2.0, 4.0), (3.0, 6.0, 8.0)))
    assert table.at([2, 4], [10, 40]).tolist() == [[1.0, 4.0], [3.0, 8.0]]
    assert table.at([3], [15])[0, 0] == pytest.approx((1 + 2 + 3 + 6) / 4)
    assert table.at([6], [10])[0, 0] == pytest.approx(5.0)  # goes on as between 2 and 4
    assert table.at([2], [60])[0, 0] == pytest.approx(6.0)
    assert Table((7,), (1, 2), ((1.0, 2.0),)).at([3, 99], [2]).tolist() == [[2.0], [2.0]]


def test_a_cost_is_the_sum_of_the_layers_by_hand() -> None:
    net = network("own")
    arch = Arch({"stem": 2}, {})  # the one site: stem, own and wise share it
    assert net.widths.keys() == {"stem"}
    cost = TableCost(net, tables(net, small(net)), Calibration({"conv 3x3": 2.0}, each=0.25, constant=3.0))
    raw = {use.node: cost.tables[use.layer.template].at([use.layer.inputs], [use.layer.outputs])[0, 0]
           for use in net.uses(arch)}  # fmt: skip
    doubled = {"stem", "own"}
    by_hand = 3.0 + sum((2.0 if node in doubled else 1.0) * value + 0.25 for node, value in raw.items())
    assert cost.cost(arch) == pytest.approx(by_hand)


@pytest.mark.parametrize("name", ["own", "8 join", "8 project", pytest.param("14 join", marks=pytest.mark.slow)])
def test_the_expectation_is_the_mean_over_all_archs(name: str) -> None:
    net = network(name)
    space = small(net)
    widths, depths = chances(space)
    for cost in (TableCost(net, tables(net, space), Calibration({}, 0.1, 0.5)), CountCost(net, "macs"),
                 CountCost(net, "params")):  # fmt: skip
        mean = sum(share * cost.cost(arch) for share, arch in archs(space, widths, depths))
        assert float(cost.expected(space, widths, depths)) == pytest.approx(mean, rel=1e-9)


def test_parameters_beyond_the_cache_cost_more() -> None:
    """By hand: what every parameter of the layers adds, beyond those that the cache holds."""
    net = network("8 join")
    space = small(net)
    widths, depths = chances(space)
    every = [(share, arch) for share, arch in archs(space, widths, depths)]
    held = {arch: sum(use.layer.params for use in net.uses(arch)) for _, arch in every}
    cached = sorted(held.values())[len(held) // 2]
    plain = TableCost(net, tables(net, space), Calibration({}, 0.1, 0.5))
    cost = replace(plain, calibration=replace(plain.calibration, beyond_cache=1e-4, cache=cached))
    small_one, large_one = cost.parts()
    for _, arch in every:
        more = 1e-4 * (held[arch] - cached)
        assert cost.cost(arch) == pytest.approx(plain.cost(arch) + max(0.0, more))
        assert (small_one.cost(arch), large_one.cost(arch)) == pytest.approx(
            (plain.cost(arch), plain.cost(arch) + more)
        )
    mean = sum(share * held[arch] for share, arch in every)
    expected = float(plain.expected(space, widths, depths)) + 1e-4 * max(0.0, mean - cached)
    assert float(cost.expected(space, widths, depths)) == pytest.approx(expected, rel=1e-9)
    assert float(large_one.expected(space, widths, depths)) == pytest.approx(
        sum(share * large_one.cost(arch) for share, arch in every), rel=1e-9
    )
    assert [type(part) for part in plain.parts()] == [TableCost]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["own", "20 join", "20 project", "32 project"])
def test_the_expectation_is_the_mean_of_twenty_thousand_archs(name: str) -> None:
    net = network(name)
    space = small(net, 4)
    widths, depths = chances(space, 1)
    cost = TableCost(net, tables(net, space))
    rng = random.Random(0)

    def draw(site: str, choices: tuple[int, ...], probabilities: dict[str, Tensor]) -> int:
        return rng.choices(choices, probabilities[site].tolist())[0]

    total = 0.0
    for _ in range(20_000):
        total += cost.cost(
            Arch(
                {site: draw(site, choices, widths) for site, choices in space.widths.items()},
                {site: draw(site, choices, depths) for site, choices in space.depths.items()},
            )
        )
    assert float(cost.expected(space, widths, depths)) == pytest.approx(total / 20_000, rel=0.01)


@pytest.mark.parametrize("name", ["own", "14 join", "14 project", "joined"])
def test_its_gradient_is_that_of_finite_differences(name: str) -> None:
    net = network(name)
    space = small(net, 3)
    cost = TableCost(net, tables(net, space))
    widths, depths = chances(space)
    logits = {site: p.log().requires_grad_() for site, p in {**widths, **depths}.items()}

    def expected(given: dict[str, Tensor]) -> Tensor:
        soft = {site: torch.softmax(row, 0) for site, row in given.items()}
        return cost.expected(space, {s: soft[s] for s in space.widths}, {s: soft[s] for s in space.depths})

    found = torch.autograd.grad(expected(logits), list(logits.values()), allow_unused=True)
    step = 1e-5
    for (site, row), gradient in zip(logits.items(), found, strict=True):
        for index in range(len(row)):
            moved = []
            for sign in (-1, 1):
                other = row.detach().clone()
                other[index] += sign * step
                moved.append(float(expected({**{s: r.detach() for s, r in logits.items()}, site: other})))
            slope = (moved[1] - moved[0]) / (2 * step)
            own = 0.0 if gradient is None else float(gradient[index])
            assert own == pytest.approx(slope, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("name", ["own", "joined", "constant", "14 join", "14 project"])
def test_counts_are_those_of_the_network(name: str) -> None:
    net = network(name)
    space = small(net, 3)
    rng = random.Random(0)
    macs, params = CountCost(net, "macs"), CountCost(net, "params")
    assert (macs.unit, params.unit) == ("MACs", "parameters")
    for _ in range(5):
        arch = space.sample(rng)
        one = {site: _onehot(space.choices[site], arch[site]) for site in space.choices}
        surely = ({s: one[s] for s in space.widths}, {s: one[s] for s in space.depths})
        assert float(macs.expected(space, *surely)) == macs.cost(arch) == net.macs(arch)
        assert float(params.expected(space, *surely)) == params.cost(arch) == net.params(arch)


def _onehot(choices: tuple[int, ...], choice: int) -> Tensor:
    return torch.tensor([float(each == choice) for each in choices], dtype=torch.float64)


def test_a_projection_between_equal_widths_is_free() -> None:
    net = network("8 project")
    projections = [node for node in net.nodes if node.kind == "project"]
    assert projections
    space = small(net)
    made = tables(net, space)
    templates = {node.layer.template for node in projections if node.layer}
    priced = {t: Table(own.inputs, own.outputs, tuple((1000.0,) * len(own.outputs) for _ in own.inputs))
              if t in templates else own for t, own in made.items()}  # fmt: skip
    equal = Arch({site: 16 for site in net.widths}, {site: 1 for site in net.depths})
    cost: Callable[[Arch], float] = TableCost(net, priced).cost
    strided = sum(use.layer.template in templates and use.layer.stride == (2, 2) for use in net.uses(equal))
    assert cost(equal) < 1000.0 * (strided + 1)


def test_a_layer_that_was_not_measured_is_named() -> None:
    net = network("8 join")
    cost: LayerCost = TableCost(net, {})
    with pytest.raises(ValueError, match=r"cost\.json lacks the layer conv 3x3 of this network; calibrate it again"):
        cost.cost(net.base)
