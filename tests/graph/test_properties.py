"""What holds of every network, arch and space: tried on random small ones."""

import json
import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_graph import IMAGE, counted
from test_kinds import cut, everything, shaken
from torch import Tensor, nn

from htas.cost.counts import CountCost
from htas.files import from_json, to_json
from htas.graph import Network, resize, trace
from htas.graph.arch import Arch
from htas.graph.network import OUTPUT
from htas.search.draw import Draw
from htas.search.problem import rivals
from htas.search.supernet import Supernet
from htas.spaces.space import Space

few = settings(max_examples=15, deadline=None, derandomize=True, database=None)
seeds = st.integers(0, 2**16)


@pytest.fixture(autouse=True, scope="module")
def _float64_on_one_thread() -> Iterator[None]:
    """So that rounding flips no ReLU."""
    threads, kind = torch.get_num_threads(), torch.get_default_dtype()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(kind)


# -- random networks ---------------------------------------------------------------------------------------------------


def conv(inputs: int, outputs: int, rng: random.Random, *, stride: int = 1) -> nn.Sequential:
    """A convolution, mostly with a norm, and an activation."""
    kernel, norm = rng.choice((1, 3)), rng.random() < 0.8
    parts = [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=not norm or rng.random() < 0.3)]
    after = [nn.BatchNorm2d(outputs)] if norm else []
    return nn.Sequential(*parts, *after, rng.choice((nn.ReLU, nn.Hardswish, nn.Tanh))())


class Residual(nn.Module):
    """Two convolutions and a shortcut, which is a convolution where widths differ."""

    def __init__(self, inputs: int, outputs: int, rng: random.Random) -> None:
        super().__init__()
        self.one, self.two = conv(inputs, rng.randint(2, 6), rng), nn.BatchNorm2d(outputs)
        self.mid = nn.Conv2d(self.one[0].out_channels, outputs, 3, padding=1, bias=False)
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.two(self.mid(self.one(x))) + self.shortcut(x))


class Branches(nn.Module):
    """Two branches side by side, one of them in front of the other's channels."""

    def __init__(self, inputs: int, outputs: int, rng: random.Random) -> None:
        super().__init__()
        left = rng.randint(1, outputs - 1)
        self.left, self.right = conv(inputs, left, rng), conv(inputs, outputs - left, rng)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.left(x), self.right(x)], 1)


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, width: int, rng: random.Random) -> None:
        super().__init__()
        inner = rng.randint(1, 4)
        self.squeeze = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, inner, 1), nn.ReLU())
        self.excite = nn.Sequential(nn.Conv2d(inner, width, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.excite(self.squeeze(x))


def separable(inputs: int, outputs: int, rng: random.Random) -> nn.Sequential:
    """A depthwise convolution, a norm, and a pointwise one."""
    depthwise = nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=rng.random() < 0.5)
    return nn.Sequential(depthwise, nn.BatchNorm2d(inputs), nn.ReLU6(), conv(inputs, outputs, rng))


def block(kind: str, inputs: int, outputs: int, rng: random.Random) -> tuple[nn.Module, int]:
    """A block of that kind, and its outputs."""
    match kind:
        case "conv":
            return conv(inputs, outputs, rng), outputs
        case "separable":
            return separable(inputs, outputs, rng), outputs
        case "residual":
            return Residual(inputs, outputs, rng), outputs
        case "branches":
            return Branches(inputs, outputs, rng), outputs
        case "gate":
            return Gate(inputs, rng), inputs
        case "pool":
            return rng.choice((nn.MaxPool2d, nn.AvgPool2d))(3, 1, 1), inputs
        case _:
            return nn.Sequential(*(Residual(inputs, inputs, rng) for _ in range(rng.randint(2, 3)))), inputs


class Net(nn.Module):
    """A stem, blocks, and a classifier that sees pixels or their mean."""

    def __init__(self, kinds: Sequence[str], flat: bool, seed: int) -> None:
        super().__init__()
        rng, width = random.Random(seed), 4
        blocks: list[nn.Module] = [conv(IMAGE[0], width, rng, stride=2)]
        for kind in kinds:
            made, width = block(kind, width, rng.randint(2, 6), rng)
            blocks.append(made)
        self.blocks, self.flat = nn.Sequential(*blocks), flat
        pixels = (IMAGE[1] // 2) * (IMAGE[2] // 2) if flat else 1
        self.head = nn.Linear(width * pixels, 3)

    def forward(self, images: Tensor) -> Tensor:
        out = self.blocks(images)
        return self.head(out.flatten(1) if self.flat else out.mean((2, 3)))


@st.composite
def networks(draw: Callable[[Any], Any]) -> Network:
    """Traced, with norms that change something."""
    kinds = st.lists(
        st.sampled_from(("conv", "separable", "residual", "branches", "gate", "pool", "stage")), min_size=1, max_size=4
    )
    seed = draw(seeds)
    torch.manual_seed(seed)
    module = shaken(Net(draw(kinds), draw(st.booleans()), seed)).eval()
    return trace(module, torch.zeros(2, *IMAGE))


def sampled(network: Network, seed: int) -> Arch:
    """Any widths up to one and a half times the base, and any depths."""
    rng = random.Random(seed)
    return everything(network).sample(rng, rng.uniform(-3, 3))


def onehot(choices: Sequence[int], choice: int) -> Tensor:
    """Probabilities of choices of which one is sure."""
    return torch.tensor([float(each == choice) for each in choices])


# -- what holds of them ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@few
@given(networks())
def test_at_its_base_a_resized_network_is_the_network(network: Network) -> None:
    images = torch.randn(2, *IMAGE)
    assert network.widths and all(why == OUTPUT or why.endswith(" has one output") for why in network.frozen.values())
    resized = resize(network, network.base)
    assert torch.equal(resized(images), network.module(images))
    assert trace(resized, images).sites == network.sites


@few
@given(networks(), seeds)
def test_a_resized_network_is_as_large_as_foretold_and_traces_alike(network: Network, seed: int) -> None:
    arch = sampled(network, seed)
    resized = resize(network, arch).eval()
    assert counted(resized) == (network.macs(arch), network.params(arch))
    assert resized(torch.randn(2, *IMAGE)).isfinite().all()
    again = trace(resized, torch.zeros(2, *IMAGE))
    assert again.macs(again.base) == network.macs(arch) and again.params(again.base) == network.params(arch)
    assert sorted(use.layer.key for use in again.uses(again.base)) == sorted(
        use.layer.key for use in network.uses(arch)
    )


@few
@given(networks(), seeds, st.sampled_from(("macs", "params")))
def test_an_expectation_of_one_sure_arch_is_its_cost(network: Network, seed: int, count: Any) -> None:
    arch, space, cost = sampled(network, seed), everything(network), CountCost(network, count)
    widths = {site: onehot(choices, arch.widths[site]) for site, choices in space.widths.items()}
    depths = {site: onehot(choices, arch.depths[site]) for site, choices in space.depths.items()}
    assert float(cost.expected(space, widths, depths)) == pytest.approx(cost.cost(arch))


@few
@given(networks(), seeds)
def test_a_flow_of_whole_numbers_is_one_of_tensors(network: Network, seed: int) -> None:
    arch = sampled(network, seed)
    depths = {site: onehot(range(1, each.base + 1), arch.depths[site]) for site, each in network.depths.items()}
    flow = network.flow(lambda site: torch.tensor(float(arch.widths[site])), depths.__getitem__)
    expected = {step.node.name: float(step.channels) for step in flow if float(step.share) > 0}
    assert expected == {step.node.name: step.channels for step in network.steps(arch)}


@few
@given(networks(), seeds, st.booleans())
def test_a_supernet_at_one_arch_is_the_resized_network(network: Network, seed: int, training: bool) -> None:
    made = shaken(Supernet(network, everything(network), lambda module: None)).train(training)
    arch, images = sampled(network, seed), torch.randn(3, *IMAGE)
    model = cut(made, arch)
    torch.testing.assert_close(made(images, Draw.of(arch, network)), model(images), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("first", [True, False], ids=["branches first", "branches second"])
def test_a_supernet_adds_channels_that_are_laid_out_in_two_ways(first: bool) -> None:
    """Two branches of 2 and 4 channels, plus a convolution of 6."""

    class Added(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.left, self.right = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1), nn.Conv2d(4, 4, 1)
            self.whole, self.last = nn.Conv2d(4, 6, 1), nn.Conv2d(6, 3, 1)

        def forward(self, images: Tensor) -> Tensor:
            x = torch.relu(self.stem(images))
            both, whole = torch.cat([self.left(x), self.right(x)], 1), self.whole(x)
            return self.last(torch.relu(both + whole if first else whole + both))

    network = trace(Added().eval(), torch.zeros(2, *IMAGE))
    made = Supernet(network, everything(network), lambda module: None).eval()
    images = torch.randn(2, *IMAGE)
    assert {name: (site.base, len(site.producers)) for name, site in network.widths.items()} == {
        "stem": (4, 1), "left": (2, 2), "right": (4, 2)
    }  # fmt: skip
    for widths in ((1, 2, 3), (4, 1, 6), (6, 3, 1), (3, 2, 4)):
        arch = Arch(dict(zip(("stem", "left", "right"), widths, strict=True)), {})
        torch.testing.assert_close(made(images, Draw.of(arch, network)), cut(made, arch)(images))


choices = st.lists(st.integers(1, 99), min_size=1, max_size=6, unique=True).map(lambda found: tuple(sorted(found)))
spaces = st.builds(
    partial(Space, "any"),
    st.dictionaries(st.text("abc", min_size=1, max_size=4), choices, min_size=1, max_size=4),
    st.dictionaries(st.text("xyz", min_size=1, max_size=4), choices, max_size=3),
)


@few
@given(spaces, seeds, st.floats(-6, 6))
def test_a_space_is_read_as_it_was_written_and_holds_what_is_drawn_from_it(
    space: Space, seed: int, tilt: float
) -> None:
    assert from_json(json.loads(json.dumps(to_json(space))), Space, "the test") == space
    archs = [space.narrowest, space.widest, space.sample(random.Random(seed), tilt)]
    assert all(arch in space for arch in archs)
    assert from_json(json.loads(json.dumps(to_json(archs))), list[Arch], "the test") == archs
    for site, widths in space.widths.items():
        assert widths[0] <= archs[2].widths[site] <= widths[-1]
        assert Arch({**archs[2].widths, site: widths[-1] + 1}, archs[2].depths) not in space


@pytest.mark.slow
@few
@given(networks(), seeds)
def test_rivals_are_others_of_the_space_and_near_in_cost_where_there_are_such(network: Network, seed: int) -> None:
    space, cost, arch = everything(network), CountCost(network), sampled(network, seed)
    problem: Any = SimpleNamespace(space=space, cost=cost)
    others = rivals(problem, arch, 3, seed=seed)
    assert len(set(others)) == len(others) <= 3 and arch not in others and all(other in space for other in others)
    off = [abs(cost.cost(other) / cost.cost(arch) - 1) for other in others]
    near = [each for each in off if each <= 0.05]
    assert len(near) == 3 or off == sorted(off), "where few are near, the nearest are taken"
