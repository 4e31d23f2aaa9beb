"""Costs by hand, by enumeration of tiny spaces, and gradients by finite differences."""

import itertools
import random
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from htas.cost.counts import CountCost
from htas.cost.model import CostModel, expectation, keeps
from htas.cost.paper import PaperCost, Term
from htas.graph import Network, resize, trace
from htas.graph.arch import Arch
from htas.models.cifar_resnet import CifarResNet
from htas.spaces.space import Space, depth_choices

Distribution = tuple[dict[str, Tensor], dict[str, Tensor]]

TERMS = (
    Term("a", (), 2.0, 1.0, 0.5),
    Term("a", (("d", 0),), 1.0, 1.0, 0.25, count=3),
    Term("b", (("d", 2),), 0.5, 1.0, 0.0),
    Term("b", (("d", 1), ("e", 1)), 3.0, 1.0, 1.0),
    Term("", (), 0.0, 1.0, 7.0),
)
PAPER = PaperCost(TERMS, {"d": 3, "e": 2})
SPACE = Space("s", {"a": (2, 5, 6), "b": (1, 4)}, {"d": (1, 3), "e": (1, 2)})


@cache
def resnet(adds: Literal["join", "project"] = "join") -> tuple[Network, Space]:
    network = trace(CifarResNet(20).build(10), torch.zeros(1, 3, 8, 8), adds=adds)
    widths = {name: (site.base // 2, site.base, site.base + 3) for name, site in network.widths.items()}
    return network, Space("s", widths, {name: depth_choices(site.base) for name, site in network.depths.items()})


def uneven(space: Space) -> Distribution:
    """Probabilities by site, drawn at random."""

    def draw(choices: tuple[int, ...]) -> Tensor:
        return torch.softmax(torch.randn(len(choices), dtype=torch.float64), 0)

    return {s: draw(c) for s, c in space.widths.items()}, {s: draw(c) for s, c in space.depths.items()}


def onehot(space: Space, arch: Arch) -> Distribution:
    def at(choices: tuple[int, ...], choice: int) -> Tensor:
        return torch.tensor([float(c == choice) for c in choices], dtype=torch.float64)

    return (
        {site: at(choices, arch[site]) for site, choices in space.widths.items()},
        {site: at(choices, arch[site]) for site, choices in space.depths.items()},
    )


def archs(space: Space, widths: Mapping[str, Tensor], depths: Mapping[str, Tensor]) -> Iterator[tuple[float, Arch]]:
    """Every arch with its probability, sites being independent."""
    for picks in itertools.product(*(range(len(choices)) for choices in space.choices.values())):
        chosen = dict(zip(space.choices, picks, strict=True))
        share = 1.0
        for site, index in chosen.items():
            share *= float({**widths, **depths}[site][index])
        yield (
            share,
            Arch(
                {site: choices[chosen[site]] for site, choices in space.widths.items()},
                {site: choices[chosen[site]] for site, choices in space.depths.items()},
            ),
        )


# -- eq. 7 and 8 -------------------------------------------------------------------------------------------------------


def test_the_paper_cost_by_hand() -> None:
    assert PAPER.cost(Arch({"a": 5, "b": 4}, {"d": 3, "e": 2})) == 10.5 + 3 * 5.25 + 2.0 + 13.0 + 7.0
    assert PAPER.cost(Arch({"a": 5, "b": 4}, {"d": 2, "e": 2})) == 10.5 + 3 * 5.25 + 13.0 + 7.0
    assert PAPER.cost(Arch({"a": 2, "b": 1}, {"d": 1, "e": 1})) == 4.5 + 3 * 2.25 + 7.0


def test_an_exponent_bends_the_curve() -> None:
    model = PaperCost((Term("a", (), 2.0, 0.5, 1.0, count=2),), {})
    assert model.cost(Arch({"a": 9})) == 2 * (2 * 3 + 1)
    space = Space("s", {"a": (1, 9)}, {})
    found = model.expected(space, {"a": torch.tensor([0.5, 0.5])}, {})
    assert float(found) == pytest.approx(2 * (2 * 5**0.5 + 1))  # f(E[x]), not E[f(x)]


def test_with_lines_the_expectation_is_the_mean_over_all_archs() -> None:
    widths, depths = uneven(SPACE)
    mean = sum(share * PAPER.cost(arch) for share, arch in archs(SPACE, widths, depths))
    assert float(PAPER.expected(SPACE, widths, depths)) == pytest.approx(mean)


def test_the_probability_of_keeping_a_block_is_that_of_the_depths_above_it() -> None:
    probabilities = torch.tensor([0.2, 0.5, 0.3])
    assert torch.stack(keeps((1, 3, 4), probabilities, 4)).tolist() == pytest.approx([1.0, 0.8, 0.8, 0.3])
    assert float(expectation((1, 3, 4), probabilities)) == pytest.approx(0.2 + 1.5 + 1.2)
    for block, share in enumerate(keeps((2, 5), torch.tensor([0.4, 0.6]), 5)):
        assert float(share) == pytest.approx(sum(p for p, depth in ((0.4, 2), (0.6, 5)) if depth > block))


# -- certain archs, and gradients --------------------------------------------------------------------------------------


def models() -> Iterator[tuple[CostModel, Space]]:
    """Cost models with a space; with projected adds, most archs have projections."""
    yield PAPER, SPACE
    yield CountCost(resnet()[0]), resnet()[1]
    yield CountCost(resnet("project")[0]), resnet("project")[1]


@pytest.mark.parametrize("index", range(3), ids=["paper", "MACs, join", "MACs, project"])
def test_the_expectation_of_a_certain_arch_is_its_cost(index: int) -> None:
    model, space = list(models())[index]
    rng = random.Random(0)
    for _ in range(5):
        arch = space.sample(rng)
        assert float(model.expected(space, *onehot(space, arch))) == pytest.approx(model.cost(arch), rel=1e-12)


@pytest.mark.parametrize("index", range(3), ids=["paper", "MACs, join", "MACs, project"])
def test_the_gradient_is_that_of_finite_differences(index: int) -> None:
    model, space = list(models())[index]
    start = [torch.randn(len(choices), dtype=torch.float64) for choices in space.choices.values()]
    scale = model.cost(space.widest)

    def expected(logits: list[Tensor]) -> Tensor:
        shares = dict(zip(space.choices, (torch.softmax(row, 0) for row in logits), strict=True))
        widths = {site: shares[site] for site in space.widths}
        return model.expected(space, widths, {site: shares[site] for site in space.depths}) / scale

    for row in start:
        row.requires_grad_()
    expected(start).backward()
    for row in start:
        assert row.grad is not None
        for place in range(len(row)):
            ends = []
            for step in (1e-5, -1e-5):
                with torch.no_grad():
                    row[place] += step
                    ends.append(float(expected(start)))
                    row[place] -= step
            assert float(row.grad[place]) == pytest.approx((ends[0] - ends[1]) / 2e-5, abs=1e-8, rel=1e-4)


# -- multiply-adds -----------------------------------------------------------------------------------------------------


def tiny() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 1, bias=False), nn.ReLU(), nn.Conv2d(4, 6, 3, padding=1), nn.Flatten(), nn.Linear(6 * 64, 2)
    )


def test_expected_multiply_adds_are_products_of_expected_widths() -> None:
    network = trace(tiny(), torch.zeros(1, 3, 8, 8))
    space = Space("s", {"0": (1, 4, 8), "2": (2, 6)}, {})
    widths = {"0": torch.tensor([0.5, 0.25, 0.25]), "2": torch.tensor([0.25, 0.75])}
    one, two = 0.5 + 1 + 2, 0.5 + 4.5
    by_hand = 64 * 3 * one + 64 * (9 * one + 1) * two + (64 * two + 1) * 2
    assert float(CountCost(network).expected(space, widths, {})) == pytest.approx(by_hand)
    mean = sum(share * CountCost(network).cost(arch) for share, arch in archs(space, widths, {}))
    assert mean == pytest.approx(by_hand)  # the two widths are independent


def test_input_and_output_of_one_site_are_charged_for_equal_widths() -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 1, bias=False)
            self.wise = nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False)
            self.grouped = nn.Conv2d(3, 3, 1, groups=3)
            self.branch = nn.Conv2d(4, 4, 1, bias=False)
            self.last = nn.Linear(4, 2, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            x = self.wise(self.stem(self.grouped(x)))
            return self.last((x + self.branch(x)).mean((2, 3)))  # type: ignore[no-any-return]

    network = trace(Joined(), torch.zeros(1, 3, 8, 8))
    assert set(network.widths) == {"stem"}
    space = Space("s", {"stem": (2, 6)}, {})
    widths = {"stem": torch.tensor([0.5, 0.5])}
    expected = 64 * 3 * (1 + 1) + 64 * 3 * 4 + 64 * 9 * 4 + 64 * (2 * 2 + 6 * 6) / 2 + 4 * 2
    assert float(CountCost(network).expected(space, widths, {})) == expected
    assert expected == sum(share * CountCost(network).cost(arch) for share, arch in archs(space, widths, {}))


def test_the_input_of_what_follows_a_cut_is_that_of_the_last_kept_block() -> None:
    class Block(nn.Module):
        def __init__(self, inputs: int) -> None:
            super().__init__()
            self.conv = nn.Conv2d(inputs, 4, 1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x)  # type: ignore[no-any-return]

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.Sequential(Block(3), Block(4))
            self.last = nn.Linear(4 * 64, 2, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.blocks(x).flatten(1))  # type: ignore[no-any-return]

    network = trace(Net(), torch.zeros(1, 3, 8, 8), adds="project")
    space = Space("s", {"blocks.0.conv": (2, 4), "blocks.1.conv": (1, 3)}, {"blocks": (1, 2)})
    widths = {"blocks.0.conv": torch.tensor([0.5, 0.5]), "blocks.1.conv": torch.tensor([0.25, 0.75])}
    depths = {"blocks": torch.tensor([0.4, 0.6])}
    one, two = 3.0, 2.5
    by_hand = 64 * 3 * one + 0.6 * 64 * one * two + 2 * 64 * (0.4 * one + 0.6 * two)
    assert float(CountCost(network).expected(space, widths, depths)) == pytest.approx(by_hand)
    mean = sum(share * CountCost(network).cost(arch) for share, arch in archs(space, widths, depths))
    assert mean == pytest.approx(by_hand)


@pytest.mark.parametrize("figure", ["macs", "params"])
def test_the_one_count_has_projections_in_both_its_cost_and_its_expectation(figure: Literal["macs", "params"]) -> None:
    """Against PyTorch's own counter on the resized network, and against the mean over every arch of a space."""
    network, full = resnet("project")
    cost, rng = CountCost(network, figure), random.Random(1)
    projected = 0
    for _ in range(6):
        arch = full.sample(rng)
        projected += any(s.node.kind == "project" and s.channels_in != s.channels for s in network.steps(arch))
        module = resize(network, arch).eval()
        with FlopCounterMode(display=False) as counter:
            module(torch.zeros(1, 3, 8, 8))
        biases = sum(each.bias.numel() for each in module.modules() if isinstance(each, nn.Linear))
        params = sum(tensor.numel() for tensor in module.parameters())
        expected = counter.get_total_flops() / 2 + biases if figure == "macs" else params
        assert cost.cost(arch) == expected
        assert float(cost.expected(full, *onehot(full, arch))) == pytest.approx(expected, rel=1e-12)
    assert projected
    few = sorted(network.widths)[:4]
    space = Space(
        "s",
        {name: (site.base // 2, site.base) if name in few else (site.base,) for name, site in network.widths.items()},
        full.depths,
    )
    widths, depths = uneven(space)
    mean = sum(share * cost.cost(arch) for share, arch in archs(space, widths, depths))
    assert float(cost.expected(space, widths, depths)) == pytest.approx(mean)


def test_multiply_adds_of_a_cut_stage_by_enumeration() -> None:
    network, full = resnet("project")
    base = {name: (site.base,) for name, site in network.widths.items()}
    space = Space("s", base, {name: choices for name, choices in full.depths.items()})
    widths, depths = uneven(space)
    mean = sum(share * CountCost(network).cost(arch) for share, arch in archs(space, widths, depths))
    assert float(CountCost(network).expected(space, widths, depths)) == pytest.approx(mean)


def _norm_conv(inputs: int, outputs: int, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class Multiplied(nn.Module):
    """A depthwise layer with two outputs for each channel, and groups of two channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wise, self.point = _norm_conv(3, 4), _norm_conv(4, 8, 4), _norm_conv(8, 6)
        self.pairs, self.last = _norm_conv(6, 6, 3), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.pairs(self.point(self.wise(self.stem(x)))).mean((2, 3)))  # type: ignore[no-any-return]


class TwoGroups(nn.Module):
    """Two groups that stay, and get narrower."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.same, self.wide = _norm_conv(3, 16), _norm_conv(16, 16, 2), _norm_conv(16, 32, 2)
        self.last = nn.Linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.wide(self.same(self.stem(x))).mean((2, 3)))  # type: ignore[no-any-return]


class Halves(nn.Module):
    """Half of the channels go through a branch, as in ShuffleNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch, self.last = _norm_conv(3, 8), _norm_conv(4, 4), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.stem(x).chunk(2, 1)
        return self.last(torch.cat([one, self.branch(two)], 1).mean((2, 3)))  # type: ignore[no-any-return]


class Attention(nn.Module):
    """A layer norm, a scale, and products of matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.scale = nn.Conv2d(3, 6, 4, 4), nn.LayerNorm(6), nn.Parameter(torch.rand(6))
        self.queries, self.keys, self.last = nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x).flatten(2).transpose(1, 2)) * self.scale
        shares = (self.queries(x) @ self.keys(x).transpose(1, 2)).softmax(-1)
        return self.last((x + shares @ x).mean(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("network", [Multiplied, TwoGroups, Halves, Attention])
def test_a_count_and_its_mean_are_those_of_real_networks(network: type[nn.Module]) -> None:
    traced = trace(network(), torch.zeros(1, 3, 8, 8))
    assert traced.searchable > 0.85
    space = Space("s", {name: (site.multiple, site.base) for name, site in traced.widths.items()}, {})
    widths = {name: torch.tensor([0.25, 0.75], dtype=torch.float64) for name in space.widths}
    params, macs = CountCost(traced, "params"), CountCost(traced, "macs")
    for _, arch in archs(space, widths, {}):
        module = resize(traced, arch)
        assert params.cost(arch) == sum(parameter.numel() for parameter in module.parameters())
    for cost in (params, macs):
        mean = sum(share * cost.cost(arch) for share, arch in archs(space, widths, {}))
        assert float(cost.expected(space, widths, {})) == pytest.approx(mean, rel=1e-3)
