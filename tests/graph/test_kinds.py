"""Networks of kinds that a ResNet has not: what is free in them, resized and searched, beside torch's own counts."""

import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from one_in import one_in
from scripted_device import scripted_device
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from htas.files import from_json, read_json
from htas.graph import Network, ordered, resize, trace
from htas.graph.arch import Arch
from htas.graph.resize import copy_common
from htas.report.result import Result
from htas.run import stages as pipeline
from htas.run.config import load
from htas.run.run import open_run
from htas.search.draw import Draw
from htas.search.supernet import ALL, Supernet
from htas.spaces.layers import widths_of
from htas.spaces.space import Space

pytestmark = pytest.mark.timeout(180)  # whole runs

IMAGES = torch.Size((4, 3, 8, 8))


class DenseLayer(nn.Module):
    """Norm, activation, convolution; the output stands behind the inputs (Huang et al. 2017)."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, 4 * growth, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(4 * growth), nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        new = self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))
        return torch.cat([x, new], 1)


class Dense(nn.Module):
    """Two dense layers, a transition and a depthwise convolution of what is concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.layers = nn.Sequential(DenseLayer(6, 3), DenseLayer(9, 3))
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.norm, self.transition = nn.BatchNorm2d(12), nn.Conv2d(12, 5, 1)
        self.last = nn.Linear(5, 4)

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(self.depthwise(self.layers(self.stem(images))))
        return self.last(self.transition(F.relu(x)).mean((2, 3)))


class GroupedBlock(nn.Module):
    """RegNet's: a convolution in groups of four channels, squeeze and excitation (Radosavovic et al. 2020)."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        grouped = nn.Conv2d(width, width, 3, stride, 1, groups=width // 4, bias=False)
        self.b = nn.Sequential(grouped, nn.BatchNorm2d(width), nn.ReLU())
        self.squeeze, self.excite = nn.Conv2d(width, 3, 1), nn.Conv2d(3, width, 1)
        self.c = nn.Sequential(nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width))
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != width:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        out = self.b(self.a(x))
        out = out * torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(out, 1)))))
        return F.relu(self.c(out) + self.shortcut(x))


class Grouped(nn.Module):
    """Two stages of such blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.one = nn.Sequential(GroupedBlock(8, 8, 1), GroupedBlock(8, 8, 1))
        self.two = nn.Sequential(GroupedBlock(8, 16, 2), GroupedBlock(16, 16, 1))
        self.last = nn.Linear(16, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.two(self.one(self.stem(images))).mean((2, 3)))


class LayerNorm2d(nn.LayerNorm):
    """A user's own: over the channels of images."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


class Next(nn.Module):
    """ConvNeXt's block: linear layers over the channels of every pixel, and a scale (Liu et al. 2022)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.first, self.activation, self.second = nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, width))

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        out = self.scale * self.second(self.activation(self.first(out)))
        return x + out.permute(0, 3, 1, 2)


class ConvNext(nn.Module):
    """A stem, a stage, and a narrower one behind a strided convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 2, 2), LayerNorm2d(6, eps=1e-6))
        self.one = nn.Sequential(Next(6), Next(6))
        self.down = nn.Sequential(LayerNorm2d(6, eps=1e-6), nn.Conv2d(6, 5, 2, 2))
        self.two = nn.Sequential(Next(5))
        self.norm, self.last = nn.LayerNorm(5), nn.Linear(5, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.norm(self.two(self.down(self.one(self.stem(images)))).mean([-2, -1])))


class GroupNorms(nn.Module):
    """Group norms, of which one stands behind a convolution without bias; and a shift for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.GroupNorm(3, 6)
        self.shift = nn.Parameter(torch.linspace(-0.5, 0.5, 6).reshape(1, 6, 1, 1))
        self.body, self.own = nn.Conv2d(6, 4, 3, padding=1), nn.GroupNorm(2, 4)
        self.last = nn.Linear(4, 4)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(images)) + self.shift)
        return self.last(F.relu(self.own(self.body(x))).mean((2, 3)))


class Up(nn.Module):
    """A U-Net of one level: a transposed convolution beside what was there before (Ronneberger et al. 2015)."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm, self.down = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Conv2d(6, 8, 3, 2, 1)
        self.up, self.up_norm = nn.ConvTranspose2d(8, 5, 2, 2), nn.BatchNorm2d(5)
        self.two, self.last = nn.Conv2d(11, 6, 3, padding=1), nn.Linear(6, 4)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.norm(self.one(images)))
        up = F.relu(self.up_norm(self.up(F.relu(self.down(x)))))
        return self.last(self.two(torch.cat([x, up], dim=1)).relu().mean((2, 3)))


class Twice(nn.Module):
    """A convolution and its norm that are called twice, and squeeze and excitation in the manner of a first author."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.other = nn.Conv2d(6, 7, 1)
        self.squeeze, self.excite = nn.Linear(7, 3), nn.Linear(3, 7)
        self.last = nn.Linear(7, 4)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(self.stem(images))))
        x = self.other(F.relu(self.norm(self.conv(x))))
        count, channels, _, _ = x.size()
        y = F.adaptive_avg_pool2d(x, 1).view(count, channels)
        y = torch.sigmoid(self.excite(F.relu(self.squeeze(y)))).view(count, channels, 1, 1)
        return self.last((x * y.expand_as(x)).mean((2, 3)))


class Residual(nn.Module):
    """Two convolutions added to what comes in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.one, self.two = nn.BatchNorm2d(width), nn.Conv2d(width, 4, 1), nn.Conv2d(4, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.two(self.one(self.norm(x)).relu())


class Listed(nn.Module):
    """Residual blocks in a list, and by their names."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, 6, 3, padding=1), nn.ModuleList(Residual(6) for _ in range(3))
        self.down, self.block1, self.block2 = nn.Conv2d(6, 8, 3, 2, 1), Residual(8), Residual(8)
        self.last = nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        for block in self.blocks:
            x = block(x)
        return self.last(self.block2(self.block1(self.down(x))).mean((2, 3)))


KINDS = {
    "dense": Dense,
    "grouped": Grouped,
    "next": ConvNext,
    "group norms": GroupNorms,
    "up": Up,
    "twice": Twice,
    "listed": Listed,
}


@pytest.fixture(autouse=True)
def _float64_on_one_thread() -> Iterator[None]:
    threads, kind = torch.get_num_threads(), torch.get_default_dtype()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(kind)


@pytest.fixture(params=list(KINDS))
def network(request: pytest.FixtureRequest) -> Network:
    module = shaken(KINDS[request.param]())
    return trace(module, torch.zeros(IMAGES))


def shaken(module: nn.Module) -> nn.Module:
    """Norms at distinct random values."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d | nn.LayerNorm | nn.GroupNorm):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.uniform_(part.bias, -0.5, 0.5)
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.running_var, 0.5, 1.5)
            nn.init.uniform_(part.running_mean, -0.5, 0.5)
    return module


def everything(network: Network) -> Space:
    """All widths up to one and a half times the base, and all depths."""
    widths = {name: tuple(widths_of(site, 1.5)) for name, site in network.widths.items()}
    return Space("test", widths, {name: tuple(range(1, site.base + 1)) for name, site in network.depths.items()})


def alive(module: nn.Module) -> None:
    """No activation is dead."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear) and part.bias is not None:
            nn.init.constant_(part.bias, 0.5)


def archs(network: Network, count: int = 6) -> list[Arch]:
    rng, space = random.Random(0), everything(network)
    return [network.base, space.narrowest, space.widest, *(space.sample(rng) for _ in range(count))]


def test_a_resized_network_has_the_shapes_and_counts_that_were_foretold(network):
    images = torch.randn(IMAGES)
    assert torch.equal(resize(network, network.base).eval()(images), network.module.eval()(images))
    for arch in archs(network):
        net = resize(network, arch).eval()
        with FlopCounterMode(display=False) as counter:
            assert net(images).shape == (len(images), 4)
        biases = network.macs(arch) - counter.get_total_flops() / 2 / len(images)
        assert 0 <= biases == pytest.approx(_biases(net, images) / len(images))
        assert sum(parameter.numel() for parameter in net.parameters()) == network.params(arch)


def _biases(net: nn.Module, images: Tensor) -> float:
    """One multiply-add for each output of a layer that has a bias."""
    found = []
    hooks = [
        part.register_forward_hook(lambda part, given, out: found.append(out.numel() if part.bias is not None else 0))
        for part in net.modules()
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)
    ]
    net(images)
    for hook in hooks:
        hook.remove()
    return float(sum(found))


@torch.no_grad()
def cut(made: Supernet, arch: Arch) -> nn.Module:
    """The sub-network of an arch as a module of its own: the resized network with the supernet's weights."""
    network = made.network
    net, widths = resize(network, arch).train(made.training), network.widths_at(arch)
    tensors = {**dict(made.body.named_parameters()), **dict(made.body.named_buffers())}
    own = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    for name in own.keys() & tensors.keys():
        layouts = network.layouts.get(name, (None,) * own[name].dim())
        copy_common(own[name], tensors[name], layouts, made.widest, widths)
    for step in network.steps(arch):
        if step.node.kind not in ("norm", "layer_norm"):
            continue
        norms = made._norms(step.node)
        norm = norms[ALL] if ALL in norms else norms[str(step.channels)]
        layouts = (step.node.layout,) if ALL in norms else (None,)
        for name in ("weight", "bias", "running_mean", "running_var"):
            tensor, into = getattr(norm, name, None), getattr(net.get_submodule(step.node.module), name, None)
            if tensor is not None and into is not None:
                copy_common(into, tensor, layouts, made.widest, widths)
    return net


@pytest.mark.parametrize("training", one_in(2, [True, False]), ids=["train", "eval"])
def test_a_supernet_at_one_width_per_site_equals_the_network_cut_out_of_it(network, training):
    made = shaken(Supernet(network, everything(network), lambda module: None)).train(training)
    images = torch.randn(IMAGES)
    for arch in archs(network):
        net = cut(made, arch)
        wanted, found = net(images), made(images, Draw.of(arch, network))
        torch.testing.assert_close(found, wanted)
        again = cut(made, arch)  # running statistics have moved alike
        torch.testing.assert_close(again.state_dict(), {**again.state_dict(), **_running(net)})


def _running(net: nn.Module) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in net.state_dict().items() if "running" in name}


def test_a_mixture_of_two_widths_trains_every_weight_that_it_uses(network):
    space = everything(network)
    made = Supernet(network, space, alive)
    rng = random.Random(1)
    shares = {site: torch.tensor([0.3, 0.7], requires_grad=True) for site in space.widths}
    pairs = {site: (tuple(rng.sample(choices, 2)), shares[site]) for site, choices in space.widths.items()}
    depths = {site: [0.0] * (network.sites[site].base - 1) + [1.0] for site in space.depths}
    made(torch.randn(IMAGES), Draw(pairs, depths)).square().sum().backward()
    assert all(share.grad is not None and share.grad.abs().sum() > 0 for share in shares.values())


def test_a_supernet_starts_from_the_trained_network(network):
    space = everything(network)
    made = Supernet(network, space, lambda module: None).eval()
    made.inherit(network.module)
    images = torch.randn(IMAGES)
    torch.testing.assert_close(made(images, Draw.of(network.base, network)), network.module.eval()(images))


def with_classes(name: str, classes: int) -> nn.Module:
    """One of these networks, with so many classes."""
    net = KINDS[name]()
    net.last = nn.Linear(net.last.in_features, classes)
    return net


dense, grouped, next_, group_norms, up, twice, listed = (partial(with_classes, name) for name in KINDS)


@pytest.mark.slow
@pytest.mark.parametrize("factory", ["grouped", "dense", "next_", "group_norms", "up", "twice", "listed"])
def test_a_whole_run_finds_a_smaller_network_of_any_kind(factory, tmp_path):
    torch.set_default_dtype(torch.float32)
    options = [
        "family.name=custom", f"family.factory={__name__}:{factory}", "split.limit=60", "target.threads=1",
        "target.batch=2", "survey.rounds=1", "survey.store=none", "survey.undecided=1", "design.groups=4",
        "design.spaces=[grid]", "constraints.macs=60%", "strategy.epochs=1", "strategy.batch=30",
        "strategy.precision=fp32", "strategy.arch_lr=0.3", "train.epochs=1", "train.warmup=0", "train.rest=0",
        "train.batch=30", "train.precision=fp32",
    ]  # fmt: skip
    with scripted_device():
        pipeline.run_all(open_run(load(None, options), tmp_path / "run"), "htas run")
    rows = {
        row.name: row
        for row in [
            from_json(row, Result, "results") for row in read_json(tmp_path / "run" / "measure.json")["results"]
        ]
    }
    assert rows["grid"].macs <= 0.6 * rows["base"].macs


def test_residual_blocks_are_dropped_wherever_they_are_called():
    network = trace(Listed(), torch.zeros(IMAGES))
    assert {name: site.producers for name, site in network.depths.items()} == {
        "blocks": ("blocks.0", "blocks.1", "blocks.2"),
        "block1+": ("block1", "block2"),
    }
    net = resize(network, Arch(network.base.widths, {"blocks": 1, "block1+": 1}))
    assert [type(part) for part in (*net.blocks, net.block1, net.block2)] == [
        Residual, nn.Identity, nn.Identity, Residual, nn.Identity,
    ]  # fmt: skip


def test_a_shortcut_through_an_identity_is_one():
    class Named(Residual):
        def __init__(self, width: int) -> None:
            super().__init__(width)
            self.shortcut, self.path = nn.Identity(), nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return self.path(self.two(self.one(self.norm(x)).relu())) + self.shortcut(x)

    class Chain(Named):
        def forward(self, x: Tensor) -> Tensor:
            x = self.two(self.one(self.norm(x)).relu())
            return self.path(x) + self.shortcut(x)

    for block, sites in ((Named, {"blocks": 3, "block1+": 2}), (Chain, {})):
        listed = Listed()
        listed.blocks = nn.ModuleList(block(6) for _ in range(3))
        listed.block1, listed.block2 = block(8), block(8)
        depths = trace(listed, torch.zeros(IMAGES)).depths
        assert {name: site.base for name, site in depths.items()} == sites


def test_blocks_over_channels_that_come_last_are_dropped():
    class Last(Next):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    class Stage(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.blocks = nn.Conv2d(3, 6, 3, padding=1), nn.Sequential(Last(6), Last(6), Last(6))
            self.last = nn.Linear(6, 4)

        def forward(self, images: Tensor) -> Tensor:
            return self.last(self.blocks(self.stem(images).permute(0, 2, 3, 1)).mean((1, 2)))

    network, images = trace(Stage(), torch.zeros(IMAGES)), torch.randn(IMAGES)
    assert {name: site.base for name, site in network.depths.items()} == {"blocks": 3}
    for depth in (1, 2, 3):
        net = resize(network, arch := Arch({name: 3 for name in network.widths}, {"blocks": depth}))
        assert net(images).shape == (len(images), 4)
        assert sum(parameter.numel() for parameter in net.parameters()) == network.params(arch)


def test_ordered_channels_compute_the_same_and_the_first_are_the_most_important(network):
    images = torch.randn(IMAGES)
    made = ordered(network.module, torch.zeros(IMAGES)).eval()
    torch.testing.assert_close(made(images), network.module.eval()(images))
    again = ordered(made, torch.zeros(IMAGES)).eval()
    for name, tensor in made.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    if not any(isinstance(part, nn.GroupNorm) for part in made.modules()):
        assert any(
            not torch.equal(one, two) for one, two in zip(made.parameters(), network.module.parameters(), strict=True)
        )


def test_all_is_free_but_the_classes(network):
    assert set(network.frozen) == {"last"}


def test_groups_of_channels_stay_whole():
    network = trace(Grouped(), torch.zeros(IMAGES))
    grouped = {name for name, site in network.widths.items() if site.multiple == 4}
    assert grouped == {"one.0.a.0", "one.1.a.0", "two.0.a.0", "two.1.a.0"}
    with pytest.raises(ValueError, match=r"one\.0\.a\.0 must be a positive multiple of 4, got 6"):
        network.check(Arch({**network.base.widths, "one.0.a.0": 6}, network.base.depths))


# -- networks that are easily taken for what they are not --------------------------------------------------------------


class Rest(nn.Module):
    """Whatever parts a test gives, and its forward pass."""

    def __init__(self, run: Callable[..., Tensor], **parts: Any) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, images: Tensor) -> Tensor:
        return self.run(self, images)


def conv(inputs: int, outputs: int, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


def halved(network: Network) -> nn.Module:
    widths = {name: site.near(site.base / 2) for name, site in network.widths.items()}
    return resize(network, Arch(widths, network.base.depths))


def tied() -> nn.Module:
    first, second = conv(6, 6, bias=False), conv(6, 6, bias=False)
    second.weight = first.weight
    return nn.Sequential(conv(3, 6), first, second, conv(6, 4))


def twice_named() -> nn.Module:
    first = conv(3, 6)
    return Rest(lambda net, x: net.last(net.again(x) + net.first(x)), first=first, again=first, last=conv(6, 4))


def pixels_last() -> nn.Module:
    def run(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x).permute(0, 2, 3, 1) / 2
        return net.last(net.mlp(torch.cumsum(x, -1)).permute(0, 3, 1, 2))

    return Rest(run, stem=conv(3, 6), mlp=nn.Linear(6, 8), last=conv(8, 4))


def squeezed_last() -> nn.Module:
    def run(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x).permute(0, 2, 3, 1)
        x = x * torch.sigmoid(net.gate(x.mean((1, 2), keepdim=True)))
        return net.last(x.permute(0, 3, 1, 2))

    return Rest(
        run, stem=nn.Sequential(conv(3, 6, bias=False), nn.BatchNorm2d(6)), gate=nn.Linear(6, 6), last=conv(6, 4)
    )


def back_up() -> nn.Module:
    def run(net: Any, x: Tensor) -> Tensor:
        return net.last(net.up(net.down(x), output_size=x.shape[2:]))

    return Rest(run, down=nn.Conv2d(3, 6, 3, 2, 1), up=nn.ConvTranspose2d(6, 5, 3, 2, 1), last=conv(5, 4))


def gained() -> nn.Module:
    return Rest(lambda net, x: net.last(net.stem(x) * net.gain), stem=conv(3, 6), gain=nn.Parameter(torch.tensor(2.0)),
                last=conv(6, 4))  # fmt: skip


def concatenated() -> nn.Module:
    class Fire(nn.Module):
        def __init__(self, inputs: int) -> None:
            super().__init__()
            self.squeeze, self.one, self.two = nn.Conv2d(inputs, 3, 1), nn.Conv2d(3, 4, 1), conv(3, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.squeeze(x).relu()
            return torch.cat([self.one(x), self.two(x)], 1)

    return nn.Sequential(conv(3, 6), nn.Sequential(Fire(6), Fire(9)), conv(9, 4))


def normed_weight() -> nn.Module:
    return nn.Sequential(conv(3, 6), nn.utils.parametrizations.weight_norm(conv(6, 6)), conv(6, 4))


def same_padding() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding="same"), nn.Conv2d(6, 4, 3, padding="valid"))


def other_size() -> nn.Module:
    def run(net: Any, x: Tensor) -> Tensor:
        y, z = net.one(x), net.two(x)
        return net.last(y.mean((2, 3)).view(y.size(0), z.size(1)) + z.mean((2, 3)))

    return Rest(run, one=conv(3, 6), two=conv(3, 6), last=nn.Linear(6, 4))


def one_channel() -> nn.Module:
    return Rest(lambda net, x: net.last(net.stem(x) * net.gain), stem=conv(3, 1), last=conv(1, 4),
                gain=nn.Parameter(torch.full((1, 1, 1, 1), 2.0)))  # fmt: skip


def flat_groups() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 7), nn.Flatten(), nn.GroupNorm(8, 24), nn.Linear(24, 4))


TRAPS = [
    tied, twice_named, pixels_last, squeezed_last, back_up, gained, concatenated, normed_weight, same_padding,
    other_size, one_channel, flat_groups,
]  # fmt: skip


@pytest.mark.parametrize("make", TRAPS, ids=lambda make: make.__name__)
def test_what_is_free_can_be_ordered_resized_searched_and_counted(make):
    module, images = make().eval(), torch.randn(IMAGES)
    for part in module.parameters():
        nn.init.uniform_(part, -0.5, 0.5)
    wanted = module(images)
    torch.testing.assert_close(ordered(module, images)(images), wanted)
    network = trace(module, images)
    assert halved(network).eval()(images).shape == wanted.shape
    unique = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    assert network.params(network.base) == unique
    made = Supernet(network, everything(network), lambda module: None, mix="pad").eval()
    made.inherit(module)
    torch.testing.assert_close(made(images, Draw.of(network.base, network)), wanted)
    if network.depths:  # two depths of the same network at once are their mean
        shallow = Arch(network.base.widths, dict.fromkeys(network.depths, 1))
        one, other = (Draw.of(arch, network) for arch in (network.base, shallow))
        both = Draw(one.widths, {name: [0.5, 0.5] for name in network.depths})
        before = {}
        for draw in (one, other, both):
            before[id(draw)] = made(images, draw)
        torch.testing.assert_close(before[id(both)], (before[id(one)] + before[id(other)]) / 2)


def test_an_argument_that_is_not_given_has_its_default_and_dropout_is_off_where_it_is_judged():
    class Optional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.last = conv(3, 6), conv(6, 4)

        def forward(self, x: Tensor, mask: Tensor | None = None, scale: float = 2.0, features: bool = False) -> Tensor:
            x = F.dropout(self.stem(x) * scale, 0.5, self.training)
            if mask is not None:
                x = x * mask
            return x if features else self.last(x)

    module, images = Optional().train(), torch.randn(IMAGES)
    network = trace(module, images)
    made = Supernet(network, everything(network), lambda module: None).eval()
    made.inherit(module)
    torch.testing.assert_close(made(images, Draw.of(network.base, network)), module.eval()(images))
    assert halved(network)(images).shape == (4, 4, 8, 8)


def test_a_block_with_a_further_argument_is_no_block_to_drop():
    class Weighed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv(6, 6)
            self.rest = nn.Identity()

        def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
            return x + scale * self.conv(x)

    def run(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x)
        for block in net.blocks:
            x = block(x, scale=0.5)
        return net.last(x)

    blocks = nn.ModuleList(Weighed() for _ in range(3))
    network = trace(Rest(run, stem=conv(3, 6), blocks=blocks, last=conv(6, 4)), torch.zeros(IMAGES))
    assert not network.depths and set(network.widths) == {"stem"}


def test_what_does_not_learn_does_not_learn_when_resized():
    module = nn.Sequential(conv(3, 6, bias=False), nn.BatchNorm2d(6), conv(6, 4))
    module[0].requires_grad_(False)
    module[1].requires_grad_(False)
    net = halved(trace(module, torch.zeros(IMAGES)))
    assert [parameter.requires_grad for parameter in net.parameters()] == [False, False, False, True, True]
