"""The networks by name; TAS's published ones against the figures published with them and a count of our own."""

import random
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, Literal

import pytest
import torch
from one_in import one_in
from torch import Tensor, nn

from htas.graph import Network, trace
from htas.graph.arch import Arch
from htas.metrics.macs import count_macs
from htas.metrics.params import count_params
from htas.models import ModelFamily
from htas.models.cifar_resnet import CifarResNet
from htas.run.names import published
from htas.run.networks import CLASSES, build, measure_networks, sized, tas, tas_arch
from htas.timing.target import Target

Block = Literal["basic", "bottleneck"]
IMAGE = (3, 32, 32)

COUNTED = {
    "C010-ResNet110": (119_259_268, 795_864),
    "C010-ResNet20": (22_444_482, 228_130),
    "C010-ResNet32": (34_945_354, 320_539),
    "C100-ResNet32": (42_468_708, 427_330),
}
"""Multiply-adds and parameters of the networks published with TAS."""
ESTIMATED = {
    "C010-ResNet110": 117.498238,
    "C010-ResNet164": 173.023672,
    "C010-ResNet20": 22.444472,
    "C010-ResNet32": 34.945344,
    "C010-ResNet56": 57.93305,
    "C100-ResNet110": 117.653164,
    "C100-ResNet164": 165.583512,
    "C100-ResNet20": 22.433792,
    "C100-ResNet32": 42.4686,  # published as 42.47, rounded by hand
    "C100-ResNet56": 59.472556,
    "CIFAR010-TAS-R110": 117.498238,
    "CIFAR010-TAS-R56": 57.52595,
    "CIFAR100-FIX-R32": 41.095816,
    "CIFAR100-RAND-R32": 42.908996,
    "CIFAR100-TAS-R110": 117.653164,
    "CIFAR100-TAS-R32": 42.493184,
    "CIFAR100-TAS-R56": 59.472556,
}
"""What TAS printed for them, in millions: input widths after a cut are those of the cut blocks, and no bias counts."""
DEEP = (
    "C010-ResNet110", "C010-ResNet164", "C100-ResNet110", "C100-ResNet164", "CIFAR010-TAS-R110", "CIFAR100-TAS-R110",
    "CIFAR010-TAS-R56", "CIFAR100-TAS-R56",
)  # fmt: skip
"""Shallower ones are counted in every test, these in the slow ones."""


def convolutions(
    channels: Sequence[int], blocks: Sequence[int], block: Block, *, estimate: bool = False
) -> Iterator[tuple[int, int, int, int, bool]]:
    """Inputs, outputs, kernel, output side and norm of every convolution of TAS's derived network, and its end.

    The end is (width, 0, 0, 0, False): what the classifier reads.
    """
    each = 2 if block == "basic" else 3
    kernels = (3, 3) if block == "basic" else (1, 3, 1)
    count = (len(channels) - 2) // each // 3
    yield channels[0], channels[1], 3, 32, True
    width = channels[1]
    for stage, kept in enumerate(blocks):
        side = 32 >> stage
        if estimate:
            width = channels[1 + stage * count * each]
        for index in range(kept):
            start = 2 + (stage * count + index) * each
            first = stage > 0 and index == 0
            inside = width
            for place, (kernel, outputs) in enumerate(zip(kernels, channels[start : start + each], strict=True)):
                before = first and block == "bottleneck" and place == 0  # the 3x3 convolution strides
                yield inside, outputs, kernel, side * 2 if before else side, True
                inside = outputs
            if first:
                yield width, inside, 1, side, False
            elif width != inside:
                yield width, inside, 1, side, block == "basic"
            width = inside
    yield (channels[-1] if estimate else width), 0, 0, 0, False


def count(channels: Sequence[int], blocks: Sequence[int], block: Block, classes: int) -> tuple[int, int]:
    """Multiply-adds and parameters, by the rules of TAS's derived networks."""
    *layers, (last, *_) = convolutions(channels, blocks, block)
    macs = sum(i * o * k * k * side * side for i, o, k, side, _ in layers)
    params = sum(i * o * k * k + 2 * o * norm for i, o, k, _, norm in layers)
    return macs + (last + 1) * classes, params + (last + 1) * classes


def estimated(channels: Sequence[int], blocks: Sequence[int], block: Block, classes: int) -> float:
    """TAS's own figure, in millions."""
    *layers, (last, *_) = convolutions(channels, blocks, block, estimate=True)
    return (sum(i * o * k * k * side * side for i, o, k, side, _ in layers) + last * classes) / 1e6


@cache
def base(depth: int, block: Block, classes: int, adds: Literal["join", "project"]) -> Network:
    family = CifarResNet(depth, block)
    module = family.build(classes)
    return trace(module, torch.zeros(1, *IMAGE), adds=adds, project_norm=family.project_norm)


def test_seventeen_networks_are_published() -> None:
    assert published().keys() == ESTIMATED.keys()


@pytest.mark.parametrize("name", ESTIMATED)
def test_the_lists_of_tas_give_the_estimates_printed_with_them(name: str) -> None:
    facts = published()[name]
    found = estimated(facts.channels, facts.blocks, facts.block, CLASSES[facts.dataset])
    assert found == pytest.approx(ESTIMATED[name], abs=1e-4 if name == "C100-ResNet32" else 1e-7)


@pytest.mark.parametrize(
    "name",
    one_in(4, [pytest.param(name, marks=[pytest.mark.slow] if name in DEEP else []) for name in ESTIMATED]),
)
def test_the_networks_of_tas_have_the_counts_of_the_rules(name: str) -> None:
    facts = published()[name]
    expected = count(facts.channels, facts.blocks, facts.block, CLASSES[facts.dataset])
    assert expected == COUNTED.get(name, expected)
    module = tas(facts)
    assert (count_macs(module, IMAGE), count_params(module)) == expected


def test_the_lists_of_tas_without_cuts_are_counted_as_estimated() -> None:
    for name in ("C010-ResNet20", "CIFAR100-RAND-R32"):
        facts = published()[name]
        classes = CLASSES[facts.dataset]
        macs, _ = count(facts.channels, facts.blocks, facts.block, classes)
        assert macs == round(ESTIMATED[name] * 1e6) + classes


@pytest.mark.parametrize(
    ("depth", "block", "macs"),
    [(20, "basic", 40.81), (32, "basic", 69.12), 
     pytest.param(56, "basic", 125.75, marks=pytest.mark.slow),
     pytest.param(110, "basic", 253.15, marks=pytest.mark.slow),
     pytest.param(164, "bottleneck", 247.65, marks=pytest.mark.slow)],
)  # fmt: skip
def test_base_networks_have_the_multiply_adds_of_the_papers(depth: int, block: Block, macs: float) -> None:
    network = base(depth, block, 10, "join")
    assert network.macs(network.base) / 1e6 == pytest.approx(macs, abs=0.005)
    assert network.params(network.base) == count_params(network.module)


@pytest.mark.parametrize(("depth", "block"), [(20, "basic"), (32, "basic"), (20, "bottleneck")])
def test_random_project_archs_have_the_counts_of_the_rules(depth: int, block: Block) -> None:
    network = base(depth, block, 10, "project")
    rng = random.Random(depth)
    full = [site.base for site in network.widths.values()]
    for factor in (1.0, 2.0):
        channels = [3, *(rng.randint(1, round(factor * width)) for width in full)]
        blocks = [rng.randint(1, site.base) for site in network.depths.values()]
        arch = tas_arch(network, channels, blocks)
        macs, params = count(channels, blocks, block, 10)
        if block == "bottleneck":  # the base network has a norm on its first shortcut
            assert channels[1] != channels[4]
            params += 2 * channels[4]
        assert (network.macs(arch), network.params(arch)) == (macs, params)


@pytest.mark.parametrize(("depth", "block"), [(20, "basic"), (20, "bottleneck")])
def test_random_join_archs_have_the_counts_of_the_rules(depth: int, block: Block) -> None:
    network = base(depth, block, 10, "join")
    rng = random.Random(depth)
    widths = {name: rng.randint(2, 2 * site.base) for name, site in network.widths.items()}
    depths = {name: rng.randint(1, site.base) for name, site in network.depths.items()}
    sites = {module: name for name, site in network.widths.items() for module in site.producers}
    searched = [node.module for node in network.nodes if node.kind == "conv" and "shortcut" not in node.name][:-1]
    channels = [3, *(widths[sites[module]] for module in searched)]
    macs, params = count(channels, list(depths.values()), block, 10)
    if block == "bottleneck":
        assert channels[1] != channels[4]
        params += 2 * channels[4]
    arch = Arch(widths, depths)
    assert (network.macs(arch), network.params(arch)) == (macs, params)


def test_a_network_of_tas_runs_and_its_weights_are_drawn_as_its_family_draws_them() -> None:
    module = build("tas:C100-ResNet20", 10)
    assert module(torch.randn(2, *IMAGE)).shape == (2, 100)
    weight = module.get_submodule("stages.0.0.project.conv").weight
    assert isinstance(weight, Tensor)
    assert float(weight.detach().std()) == pytest.approx((2 / weight.shape[0]) ** 0.5, rel=0.4)


# -- by name -----------------------------------------------------------------------------------------------------------


def test_a_name_gives_a_network_of_a_family_with_its_options() -> None:
    assert count_params(build("cifar_resnet:8", 10)) == count_params(CifarResNet(8).build(10))
    assert count_params(build("cifar_resnet:11:bottleneck", 7)) == count_params(CifarResNet(11, "bottleneck").build(7))
    assert count_params(build("cifar_resnet", 10)) == count_params(CifarResNet().build(10))


class Tiny(ModelFamily):
    """A family of one's own."""

    def build(self, classes: int) -> nn.Module:
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, classes))

    @property
    def title(self) -> str:
        return "tiny"


def test_a_family_of_your_own_is_named_by_its_class(monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses
    import sys
    from types import ModuleType

    module: Any = ModuleType("my.nets")
    module.Tiny = dataclasses.dataclass(frozen=True)(Tiny)
    monkeypatch.setitem(sys.modules, "my", ModuleType("my"))
    monkeypatch.setitem(sys.modules, "my.nets", module)
    assert count_params(build("my.nets:Tiny", 5)) == 20


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar_resent:20", "no model family called 'cifar_resent'; did you mean 'cifar_resnet'?"),
        ("resnet", "choose one of cifar_resnet"),
        ("cifar_resnet:twenty", "depth of 'cifar_resnet:twenty' must be a whole number, got 'twenty'"),
        ("cifar_resnet:²", "must be a whole number"),
        ("cifar_resnet:-20", "must be 6n \\+ 2 with block = 'basic' .* got -20"),
        ("cifar_resnet:21", "must be 6n \\+ 2 with block = 'basic'"),
        ("cifar_resnet:32:bottleneck", "must be 9n \\+ 2 with block = 'bottleneck' .* got 32"),
        ("cifar_resnet:20:wide", "block of 'cifar_resnet:20:wide' must be one of basic, bottleneck, got 'wide'"),
        ("cifar_resnet:20:basic:3", "too many parts; write it as cifar_resnet:depth:block"),
        ("tas:C010-ResNet33", "no TAS network called 'C010-ResNet33'; did you mean 'C010-ResNet32'"),
        ("no.such:Thing", "cannot import 'no.such:Thing'"),
    ],
)
def test_a_name_that_does_not_exist_is_refused_with_the_right_ones(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(name, 10)


def test_lazy_layers_get_their_sizes_from_the_targets_inputs():
    target = Target(batch=2, shapes=((3, 8, 8),))
    network = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(5)).train()
    assert sized(network, target)(torch.zeros(1, 3, 8, 8)).shape == (1, 5)
    assert network.training and int(network[1].num_batches_tracked) == 1, "only the pass above counts"
    assert count_params(network) == 4 * 3 * 9 + 4 + 2 * 4 + 4 * 36 * 5 + 5
    assert sized(nn.Flatten(), target)(torch.zeros(1, 2, 2)).shape == (1, 4)


def lazy() -> nn.Module:
    """For measure_networks, which builds it by its name."""
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(5))


def test_a_network_with_lazy_layers_is_measured_by_name():
    (figures,) = measure_networks([f"custom:{__name__}:lazy"], Target(batch=1, shapes=((3, 4, 4),)), 1, 10)
    assert (figures.params, figures.macs) == (48 * 5 + 5, 48 * 5 + 5)
