"""Peak memory told of any arch, against the metric that counts it tensor by tensor."""

import random
from functools import cache

import pytest
import torch
from one_in import one_in
from torch import Tensor, nn

from htas.cost.peak import _channels, peak_cost
from htas.graph import Network, resize, trace
from htas.graph.arch import Arch
from htas.metrics.memory import Memory, lives, peak
from htas.models.cifar_resnet import CifarResNet
from htas.spaces.space import Space
from htas.timing.target import Target

TARGET = Target(batch=3, shapes=((3, 16, 16),))


class Branches(nn.Module):
    """Two branches put side by side, and a depthwise layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.one, self.other = nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(8, 10, 1)
        self.wise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.head = nn.Linear(16, 10)

    def forward(self, images: Tensor) -> Tensor:
        features = torch.relu(self.stem(images))
        features = torch.cat([self.one(features), torch.relu(self.other(features))], dim=1)
        return self.head(self.wise(features).mean((2, 3)))


@cache
def network(name: str) -> Network:
    adds = "project" if name == "project" else "join"
    made = {"bottleneck": CifarResNet(29, "bottleneck").build(10), "branches": Branches()}
    torch.manual_seed(0)
    module = made.get(name) or CifarResNet(20).build(10)
    return trace(module, torch.zeros(1, *TARGET.shapes[0]), adds=adds)  # type: ignore[arg-type]


def space(net: Network) -> Space:
    widths = {
        name: tuple(max(1, site.base * part // 4) for part in (1, 3, 4, 6, 8)) for name, site in net.widths.items()
    }
    return Space("some", widths, {name: tuple(range(1, site.base + 1)) for name, site in net.depths.items()})


def certain(choices: tuple[int, ...], choice: int) -> Tensor:
    return torch.tensor([float(each == choice) for each in choices], dtype=torch.float64)


@pytest.mark.parametrize("name", one_in(2, ["bottleneck", "basic", "branches", "project"]))
def test_what_is_told_of_an_arch_is_what_is_counted(name: str) -> None:
    net, rng = network(name), random.Random(1)
    cost = peak_cost(net, TARGET)
    archs = [net.base, *(space(net).sample(rng, rng.uniform(-3, 3)) for _ in range(10))]
    assert any(arch.depths != net.base.depths for arch in archs) or not net.depths
    for arch, counted in zip(archs, Memory(TARGET).measure([resize(net, arch) for arch in archs]), strict=True):
        assert cost.cost(arch) == counted.estimate


@pytest.mark.parametrize("name", ["basic", "bottleneck", "branches"])
def test_the_expectation_of_what_is_certain_is_its_cost(name: str) -> None:
    net, rng = network(name), random.Random(3)
    cost, made = peak_cost(net, TARGET), space(net)
    for _ in range(10):
        arch = made.sample(rng)
        widths = {site: certain(choices, arch[site]) for site, choices in made.widths.items()}
        depths = {site: certain(choices, arch[site]) for site, choices in made.depths.items()}
        assert float(cost.expected(made, widths, depths)) == pytest.approx(cost.cost(arch))


def test_the_expectation_is_differentiable_and_no_more_than_the_mean() -> None:
    net = network("basic")
    cost, made = peak_cost(net, TARGET), space(net)
    generator = torch.Generator().manual_seed(4)
    logits = {site: torch.randn(len(choices), generator=generator, dtype=torch.float64, requires_grad=True)
              for site, choices in made.choices.items()}  # fmt: skip
    shares = {site: own.softmax(0) for site, own in logits.items()}
    found = cost.expected(made, {s: shares[s] for s in made.widths}, {s: shares[s] for s in made.depths})
    found.backward()  # type: ignore[no-untyped-call]
    stem = next(iter(made.widths))
    assert logits[stem].grad is not None and float(logits[stem].grad[-1]) > 0 > float(logits[stem].grad[0])
    rng = random.Random(5)
    drawn = [Arch(*({site: rng.choices(choices, shares[site].tolist())[0] for site, choices in part.items()}
                    for part in (made.widths, made.depths))) for _ in range(400)]  # fmt: skip
    mean = sum(map(cost.cost, drawn)) / len(drawn)
    assert 0.8 * mean < float(found.detach()) < 1.02 * mean


def test_lives_of_tensors_add_up_to_the_peak() -> None:
    net = network("basic").module.eval()
    images = (torch.zeros(2, *TARGET.shapes[0]),)
    found = lives(net, images)
    assert found[0].owner == "" and found[0].size == 2 * 3 * 16 * 16 * 4
    alive = [sum(life.size for life in found if life.born <= moment < life.died) for moment in range(len(found))]
    assert max(alive) == peak(net, images)
    assert "stages.0.0.conv1.conv" in {life.owner for life in found}


def test_a_tensor_that_follows_no_width_is_refused_by_its_module() -> None:
    net = network("branches")
    channels = [{node.name: width for node in net.nodes} for width in (2, 3, 4)]
    with pytest.raises(ValueError, match=r"self\.odd makes a tensor whose size follows no layer's width"):
        _channels(net, [4, 9, 16], channels, (), "self.odd")
