"""What trace finds and resize writes, against PyTorch's own counter, networks run by hand, and brute force."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from one_in import one_in
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from htas.cost.counts import CountCost
from htas.graph import Network, ordered, resize, trace
from htas.graph.arch import Arch
from htas.models.cifar_resnet import CifarResNet
from htas.spaces.space import Space

IMAGE = (3, 8, 8)
Adds = Literal["join", "project"]


class Mixed(nn.Module):
    """Concatenation, depthwise convolution, squeeze and excitation, and a flatten of 2x2 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.left = nn.Conv2d(6, 5, 3, padding=1)
        self.right = nn.Conv2d(6, 4, 1)
        self.each = nn.Conv2d(9, 9, 3, padding=1, groups=9)
        self.each_norm = nn.BatchNorm2d(9)
        self.point = nn.Conv2d(9, 8, 1)
        self.squeeze = nn.Conv2d(8, 3, 1)
        self.excite = nn.Conv2d(3, 8, 1)
        self.hidden = nn.Linear(8 * 2 * 2, 10)
        self.last = nn.Linear(10, 4)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(images)))
        x = torch.cat([self.left(x), self.right(x)], 1)
        x = F.relu(self.each_norm(self.each(x)))
        x = self.point(x)
        x = x * torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        x = F.max_pool2d(x, 4).flatten(1)
        return self.last(self.hidden(x).relu())


class Block(nn.Module):
    """A convolution that keeps the shape, without a shortcut."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.conv(x))


class Rest(nn.Module):
    """What `forward` is given as a function, over parts given by name."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self._run = forward
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self._run(self, x)


def plain() -> nn.Sequential:
    return nn.Sequential(
        Block(3, 4), Block(4, 8), Block(8, 8), Block(8, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    )


MAKERS: dict[str, Callable[[], nn.Module]] = {
    "resnet-20": lambda: CifarResNet(20).build(10),
    "bottleneck-20": lambda: CifarResNet(20, "bottleneck").build(10),
    "mixed": Mixed,
    "plain": plain,
}


def made(name: str, adds: Adds = "join") -> Network:
    """A traced network in eval mode, its norms having seen some images."""
    module = MAKERS[name]()
    with torch.no_grad():
        module(torch.randn(8, *IMAGE))
    return trace(module.eval(), torch.zeros(1, *IMAGE), adds=adds)


def drawn(network: Network, rng: random.Random, factor: float = 2.0) -> Arch:
    """Widths up to `factor` times the base, and any depths."""
    return Arch(
        {name: rng.randint(1, round(factor * site.base)) for name, site in network.widths.items()},
        {name: rng.randint(1, site.base) for name, site in network.depths.items()},
    )


def counted(module: nn.Module) -> tuple[int, int]:
    """Multiply-adds, with one per output for a bias, by PyTorch's counter; parameters by their sizes."""
    biases = []

    def note(part: nn.Module, _: Any, output: Tensor) -> None:
        if isinstance(part, nn.Conv2d | nn.Linear) and part.bias is not None:
            biases.append(output.numel())

    handles = [part.register_forward_hook(note) for part in module.modules()]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(torch.zeros(1, *IMAGE))
    for handle in handles:
        handle.remove()
    return counter.get_total_flops() // 2 + sum(biases), sum(p.numel() for p in module.parameters())


def wrapped(forward: Callable[[Any, Tensor], Tensor], adds: Adds = "join", **parts: nn.Module) -> Network:
    return trace(Rest(forward, **parts), torch.zeros(1, *IMAGE), adds=adds)


# -- resize ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adds", ["join", "project"])
@pytest.mark.parametrize("name", MAKERS)
def test_at_base_widths_the_outputs_are_equal_in_both_modes(name: str, adds: Adds) -> None:
    network = made(name, adds)
    resized = resize(network, network.base)
    assert type(resized) is type(network.module)
    images = torch.randn(4, *IMAGE)
    for training in (False, True):
        network.module.train(training)
        resized.train(training)
        assert torch.equal(resized(images), network.module(images))


@pytest.mark.parametrize("adds", ["join", "project"])
@pytest.mark.parametrize("name", one_in(2, MAKERS))
def test_at_any_arch_the_counts_are_those_of_pytorch(name: str, adds: Adds) -> None:
    network = made(name, adds)
    rng = random.Random(1)
    for factor in (0.7, 1.0, 1.7):
        arch = drawn(network, rng, factor)
        resized = resize(network, arch)
        assert counted(resized) == (network.macs(arch), network.params(arch))
        assert resized(torch.randn(2, *IMAGE)).shape == network.module(torch.randn(2, *IMAGE)).shape


@pytest.mark.parametrize("name", MAKERS)
def test_every_module_has_the_widths_of_its_site(name: str) -> None:
    network = made(name)
    arch = drawn(network, random.Random(2))
    resized = dict(resize(network, arch).named_modules())
    for site in network.widths.values():
        for producer in site.producers:
            module = resized.get(producer)  # None where a block was cut
            if module is not None:
                assert module.weight.shape[0] == arch[site.name]


@pytest.mark.parametrize("adds", ["join", "project"])
def test_resize_leaves_the_user_network_as_it_was(adds: Adds) -> None:
    network = made("resnet-20", adds)
    before = {name: value.clone() for name, value in network.module.state_dict().items()}
    resized = resize(network, drawn(network, random.Random(3)))
    with torch.no_grad():
        for parameter in resized.parameters():
            parameter.zero_()
    after = network.module.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(network.module.stem.conv.weight, before["stem.conv.weight"])


def test_narrower_layers_keep_their_first_channels() -> None:
    network = made("resnet-20")
    arch = Arch({name: site.base // 2 for name, site in network.widths.items()}, network.base.depths)
    resized, base = resize(network, arch).state_dict(), network.module.state_dict()
    for name, value in resized.items():
        cut = tuple(slice(length) for length in value.shape)
        assert torch.equal(value, base[name][cut]), name


def test_wider_layers_keep_every_weight_in_their_first_channels() -> None:
    network = made("resnet-20")
    arch = Arch({name: site.base + 3 for name, site in network.widths.items()}, network.base.depths)
    resized, base = resize(network, arch).state_dict(), network.module.state_dict()
    for name, value in base.items():
        assert torch.equal(resized[name][tuple(slice(length) for length in value.shape)], value), name


def test_flattened_and_concatenated_channels_keep_the_right_columns() -> None:
    network = made("mixed")
    arch = Arch({**network.base.widths, "left": 3, "right": 6, "point": 5, "hidden": 12})
    new, old = resize(network, arch), network.module
    for channel in range(5):
        for pixel in range(4):
            column = channel * 4 + pixel
            assert torch.equal(new.hidden.weight[:10, column], old.hidden.weight[:, column])
    for channel in range(3):
        assert torch.equal(new.point.weight[:, channel], old.point.weight[:5, channel])
        assert torch.equal(new.each.weight[channel], old.each.weight[channel])
        assert torch.equal(new.each_norm.weight[channel], old.each_norm.weight[channel])
    for channel in range(4):
        assert torch.equal(new.point.weight[:, 3 + channel], old.point.weight[:5, 5 + channel])
        assert torch.equal(new.each.weight[3 + channel], old.each.weight[5 + channel])
        assert torch.equal(new.each_norm.running_var[3 + channel], old.each_norm.running_var[5 + channel])


def test_a_concatenation_of_the_same_total_but_other_parts_moves_its_columns() -> None:
    network = made("mixed")
    new, old = resize(network, Arch({**network.base.widths, "left": 4, "right": 5})), network.module
    kept = [*range(4), *range(5, 9)]
    assert torch.equal(new.point.weight[:, :8], old.point.weight[:, kept])
    assert torch.equal(new.each.weight[:8], old.each.weight[kept])
    assert torch.equal(new.each_norm.running_mean[:8], old.each_norm.running_mean[kept])


@pytest.mark.parametrize("name", MAKERS)
def test_widened_and_muted_a_network_computes_the_same_and_shrinks_back(name: str) -> None:
    network = made(name)
    images = torch.randn(2, *IMAGE)
    wide_arch = Arch({site: width + 3 for site, width in network.base.widths.items()}, network.base.depths)
    wide = trace(resize(network, wide_arch), torch.zeros(1, *IMAGE))
    with torch.no_grad():
        for site in wide.widths.values():
            for path, offset, repeat in site.consumers:
                reader = wide.module.get_submodule(path)
                if isinstance(reader, nn.Linear) or (isinstance(reader, nn.Conv2d) and reader.groups == 1):
                    reader.weight[:, offset + repeat * (site.base - 3) : offset + repeat * site.base] = 0
    assert torch.allclose(wide.module(images), network.module(images), atol=1e-6)
    assert torch.equal(resize(wide, network.base)(images), network.module(images))


def test_a_cut_network_runs_as_if_the_blocks_were_not_there() -> None:
    network = made("resnet-20")
    arch = Arch(network.base.widths, {"stages.0": 1, "stages.1": 2, "stages.2": 3})
    resized = resize(network, arch)
    names = set(dict(network.module.named_modules()))
    gone = {name for name in names if name.startswith(("stages.0.1", "stages.0.2", "stages.1.2"))}
    assert set(dict(resized.named_modules())) == names - gone
    images = torch.randn(2, *IMAGE)
    for block in ("stages.0.1", "stages.0.2", "stages.1.2"):
        network.module.set_submodule(block, nn.Identity())
    assert torch.equal(resized(images), network.module(images))


def test_blocks_cut_in_the_middle_of_a_sequential_leave_the_other_names() -> None:
    network = made("plain")
    assert network.depths["1+"].producers == ("1", "2", "3")
    resized = resize(network, Arch(network.base.widths, {"1+": 1}))
    assert list(dict(resized.named_children())) == ["0", "1", "4", "5", "6"]


def test_an_arch_of_another_network_is_refused() -> None:
    network = made("plain")
    widths = network.base.widths
    with pytest.raises(ValueError, match="lacks the width site"):
        resize(network, Arch({}, network.base.depths))
    with pytest.raises(ValueError, match="names no width site 'stem'"):
        resize(network, Arch({**widths, "stem": 4}, network.base.depths))
    with pytest.raises(ValueError, match=r"depth of 1\+ must lie in 1..3, got 4"):
        resize(network, Arch(widths, {"1+": 4}))
    with pytest.raises(ValueError, match="must be a positive multiple of 1, got 0"):
        resize(network, Arch({**widths, "0.conv": 0}, network.base.depths))


def test_training_mode_and_number_type_stay() -> None:
    module = CifarResNet(8).build(10).double().train()
    network = trace(module, torch.zeros(1, *IMAGE, dtype=torch.float64), adds="project")
    resized = resize(network, drawn(network, random.Random(0)))
    assert all(part.training for part in resized.modules())
    assert all(value.dtype in (torch.float64, torch.int64) for value in resized.state_dict().values())
    module.eval()
    resized = resize(network, Arch({**network.base.widths, "stem.conv": 7}, network.base.depths))
    assert isinstance(resized, fx.GraphModule)
    assert not any(part.training for part in resized.modules())


# -- projections -------------------------------------------------------------------------------------------------------


def test_a_shortcut_of_another_width_gets_a_projection_with_a_norm() -> None:
    network = trace(CifarResNet(8).build(10).eval(), torch.zeros(1, *IMAGE), adds="project")
    arch = Arch({**network.base.widths, "stages.0.0.conv2.conv": 7}, network.base.depths)
    resized = resize(network, arch)
    assert isinstance(resized, fx.GraphModule)
    assert set(dict(resized.named_parameters())) - set(dict(network.module.named_parameters())) == {
        "stages.0.0.project.conv.weight", "stages.0.0.project.norm.weight", "stages.0.0.project.norm.bias"
    }  # fmt: skip
    seen: list[Tensor] = []
    resized.get_submodule("stages.1.0.conv1.conv").register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    images = torch.randn(2, *IMAGE)
    resized(images)

    def part(name: str, x: Tensor) -> Tensor:
        path = f"stages.0.0.{name}" if name != "stem" else name
        return resized.get_submodule(f"{path}.norm")(resized.get_submodule(f"{path}.conv")(x))

    stem = part("stem", images).relu()
    by_hand = (part("conv2", part("conv1", stem).relu()) + part("project", stem)).relu()
    assert torch.allclose(seen[0], by_hand, atol=1e-6)


def test_without_project_norm_the_projection_is_bare() -> None:
    network = trace(CifarResNet(8).build(10), torch.zeros(1, *IMAGE), adds="project", project_norm=False)
    arch = Arch({**network.base.widths, "stem.conv": 7}, network.base.depths)
    resized = resize(network, arch)
    assert list(dict(resized.get_submodule("stages.0.0.project").named_children())) == ["conv"]
    assert counted(resized.eval()) == (network.macs(arch), network.params(arch))


def test_several_adds_of_one_module_get_projections_of_their_own() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x)
        x = x + net.one(x)
        return net.last((x + net.two(x)).flatten(1))

    network = wrapped(
        forward,
        "project",
        stem=nn.Conv2d(3, 4, 1),
        one=nn.Conv2d(4, 4, 1),
        two=nn.Conv2d(4, 4, 1),
        project=nn.Identity(),
        last=nn.Linear(256, 2),
    )
    resized = resize(network, Arch({"stem": 3, "one": 5, "two": 6})).eval()
    assert {name.split(".")[0] for name, _ in resized.named_parameters()} == {
        "stem", "one", "two", "last", "project2", "project3"
    }  # fmt: skip
    x = resized.stem(images := torch.randn(2, *IMAGE))
    x = resized.one(x) + resized.project2(x)
    x = resized.two(x) + resized.project3(x)
    assert torch.allclose(resized(images), resized.last(x.flatten(1)), atol=1e-6)


def test_with_project_each_convolution_of_a_resnet_is_its_own_site() -> None:
    network = made("resnet-20", "project")
    assert len(network.widths) == 19
    assert network.sites["stages.1.0.conv2.conv"].producers == ("stages.1.0.conv2.conv", "stages.1.0.shortcut.1")
    assert all(len(site.producers) == 1 for site in network.widths.values() if ".0.conv2" not in site.name)


def test_with_join_a_stream_is_one_site() -> None:
    network = made("resnet-20")
    assert len(network.widths) == 3 + 9
    assert network.sites["stages.2.0.conv2.conv"].producers == (
        "stages.2.0.conv2.conv", "stages.2.0.shortcut.1", "stages.2.1.conv2.conv", "stages.2.2.conv2.conv"
    )  # fmt: skip
    assert network.sites["stages.2.0.conv2.conv"].consumers[-1] == ("classifier", 0, 1)
    assert network.base.depths == {"stages.0": 3, "stages.1": 3, "stages.2": 3}


def test_what_binds_the_end_of_a_depth_site_binds_every_block_of_it() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x)
        return net.last(torch.cumsum(net.blocks(x), 1).mean((2, 3)))

    network = wrapped(
        forward,
        "project",
        stem=nn.Conv2d(3, 4, 1),
        blocks=nn.Sequential(Block(4, 4), Block(4, 4), Block(4, 4)),
        last=nn.Linear(4, 2),
    )
    assert set(network.widths) == {"stem"}
    assert {"blocks.0.conv", "blocks.1.conv", "blocks.2.conv"} <= set(network.frozen)
    assert resize(network, Arch({"stem": 2}, {"blocks": 1}))(torch.randn(2, *IMAGE)).shape == (2, 2)


def test_a_join_around_a_depth_site_joins_every_block_of_it() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x)
        return net.last(torch.maximum(x, net.blocks(x)).mean((2, 3)))

    blocks = nn.Sequential(Block(4, 4), Block(4, 4))
    network = wrapped(forward, "project", stem=nn.Conv2d(3, 4, 1), blocks=blocks, last=nn.Linear(4, 2))
    for depth in (1, 2):
        arch = Arch({name: 3 for name in network.widths}, {"blocks": depth})
        assert resize(network, arch)(torch.randn(2, *IMAGE)).shape == (2, 2)
    assert network.sites["stem"].producers == ("stem", "blocks.0.conv", "blocks.1.conv")


def test_an_add_around_a_depth_site_gets_a_projection_as_wide_as_the_last_kept_block() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x)
        return net.last((x + net.blocks(x)).mean((2, 3)))

    blocks = nn.Sequential(Block(4, 4), Block(4, 4))
    network = wrapped(forward, "project", stem=nn.Conv2d(3, 4, 1), blocks=blocks, last=nn.Linear(4, 2))
    widths = {"stem": 3, "blocks.0.conv": 5, "blocks.1.conv": 6}
    for depth, width in ((1, 5), (2, 6)):
        resized = resize(network, Arch(widths, {"blocks": depth}))
        assert resized.get_submodule("project.conv").weight.shape[:2] == (width, 3)
        assert resized(torch.randn(2, *IMAGE)).shape == (2, 2)


# -- depth -------------------------------------------------------------------------------------------------------------


class Nest(nn.Module):
    """A block made of blocks."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(Block(width, width), Block(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def test_depth_sites_nest() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        return net.last(net.outer(net.stem(x)).mean((2, 3)))

    for adds in ("join", "project"):
        outer = nn.Sequential(Nest(4), Nest(4))
        network = wrapped(forward, adds, stem=nn.Conv2d(3, 4, 1), outer=outer, last=nn.Linear(4, 2))  # type: ignore[arg-type]
        assert set(network.depths) == {"outer", "outer.0.inner", "outer.1.inner"}
        for cut in ((1, 1, 2), (2, 2, 1), (2, 1, 1), (1, 2, 2)):
            arch = Arch({name: 3 for name in network.widths}, dict(zip(network.depths, cut, strict=True)))
            assert counted(resize(network, arch)) == (network.macs(arch), network.params(arch)), (adds, cut)


def test_blocks_that_are_read_from_elsewhere_or_picked_by_index_are_no_depth_site() -> None:
    def peek(net: Any, x: Tensor) -> Tensor:
        first = net.blocks[0](x)
        return net.last((first + net.blocks[1](first)).mean((2, 3)))

    def pick(net: Any, x: Tensor) -> Tensor:
        return net.last(net.blocks[1](net.blocks[0](x)).mean((2, 3)))

    for forward in (peek, pick):
        blocks = nn.Sequential(Block(3, 4), Block(4, 4))
        assert not wrapped(forward, blocks=blocks, last=nn.Linear(4, 2)).depths


class Fork(nn.Module):
    """Keeps the shape of its input, in two parts."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(4, 2, 1)
        self.two = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(x), self.two(x)], 1)


def test_blocks_that_lay_out_their_channels_differently_have_the_parts_of_both() -> None:
    module = nn.Sequential(Block(3, 4), Fork(), nn.Flatten(), nn.Linear(256, 2)).eval()
    network = trace(module, torch.zeros(1, *IMAGE))
    assert {name: site.producers for name, site in network.widths.items()} == {
        "0.conv": ("0.conv", "1.one"), "0.conv[1]": ("0.conv", "1.two")
    }  # fmt: skip
    assert set(network.depths) == {"0+"}
    images = torch.randn(2, *IMAGE)
    torch.testing.assert_close(resize(network, network.base)(images), module(images))
    for one, two, depth in ((1, 2, 2), (2, 1, 1), (1, 1, 2)):
        arch = Arch({"0.conv": one, "0.conv[1]": two}, {"0+": depth})
        narrow = resize(network, arch)
        assert counted(narrow) == (network.macs(arch), network.params(arch))
        assert narrow[0].conv.out_channels == one + two
        assert torch.equal(narrow[0].conv.weight[one:], module[0].conv.weight[2 : 2 + two])


# -- what is frozen ----------------------------------------------------------------------------------------------------


def test_what_cannot_change_says_why() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.grouped(net.stem(x))
        x = net.twice(net.twice(net.before(x)).repeat(1, 1, 1, 1))
        return net.last(torch.cumsum(net.summed(x), 1).flatten(1))

    network = wrapped(
        forward,
        stem=nn.Conv2d(3, 8, 1),
        grouped=nn.Conv2d(8, 16, 1, groups=4),
        before=nn.Conv2d(16, 8, 1),
        twice=nn.Conv2d(8, 8, 1),
        summed=nn.Conv2d(8, 8, 1),
        last=nn.Linear(512, 2),
    )
    assert {name: (site.base, site.multiple) for name, site in network.widths.items()} == {
        "stem": (8, 2), "before": (8, 1)
    }  # fmt: skip
    assert network.frozen == {
        "summed": "cumsum, which reads it, depends on the order of its channels",
        ":cumsum": "cumsum depends on the order of its channels",
        "last": "it is the network's output",
    }
    narrow = Arch({"stem": 4, "before": 5}, {})
    assert counted(resize(network, narrow)) == (network.macs(narrow), network.params(narrow))
    assert counted(resize(network, network.base)) == (network.macs(network.base), network.params(network.base))
    assert torch.equal(resize(network, network.base)(images := torch.randn(2, *IMAGE)), network.module(images))


STEPS: list[tuple[Callable[[Any, Tensor], Tensor], tuple[int, ...]]] = [
    (lambda net, x: net.last(torch.cat([net.conv(x)] * 2, 1).mean((2, 3))[:, :4]), ()),
    (lambda net, x: net.last(torch.chunk(net.conv(x), 2, 1)[0].mean((2, 3)).repeat(1, 2)), (4,)),
    (lambda net, x: net.last((net.conv(x) * net.scale.weight[0]).mean((2, 3))), (4,)),
    (lambda net, x: net.last(net.conv(x).mean((2, 3)).view(-1, 4)), ()),
    (lambda net, x: net.last(net.tokens(net.conv(x).flatten(2)).mean(2)), (4,)),
    (lambda net, x: net.last(F.max_pool2d(net.conv(x), 2, return_indices=True)[0].mean((2, 3))), (4,)),
]


@pytest.mark.parametrize(("forward", "widths"), STEPS)
def test_what_can_be_followed_is_free_and_the_rest_freezes_what_it_reads(
    forward: Callable[[Any, Tensor], Tensor], widths: tuple[int, ...]
) -> None:
    network = wrapped(
        forward,
        conv=nn.Conv2d(3, 4, 1),
        scale=nn.Linear(8, 1, bias=False),
        tokens=nn.Linear(64, 5),
        last=nn.Linear(4, 2),
    )
    assert tuple(site.base for site in network.widths.values()) == widths
    assert set(network.frozen) >= ({"last"} if widths else {"conv", "last"})
    assert all(site.producers == ("conv",) for site in network.widths.values())
    images = torch.randn(2, *IMAGE)
    assert torch.equal(resize(network, network.base)(images), network.module(images))
    if widths:
        narrow = Arch({name: site.base - site.multiple for name, site in network.widths.items()}, {})
        assert counted(resize(network, narrow))[1] == network.params(narrow)
        assert resize(network, narrow)(images).shape == (2, 2)


def test_parameters_outside_modules_are_counted() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)
            self.scale = nn.Parameter(torch.ones(4, 1, 1))
            self.norm = nn.GroupNorm(2, 4)
            self.last = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.norm(self.conv(x) * self.scale).mean((2, 3)))

    network = trace(Scaled(), torch.zeros(1, *IMAGE))
    assert network.params(network.base) == 3 * 4 + 4 + 4 + 8 + 10
    assert network.widths["conv"].multiple == 2
    wide = resize(network, Arch({"conv": 6}, {}))
    assert network.params(Arch({"conv": 6}, {})) == counted(wide)[1] == 3 * 6 + 6 + 6 + 12 + 14
    assert wide.scale.shape == (6, 1, 1)


def test_a_module_that_cannot_be_traced_is_refused_in_one_sentence() -> None:
    def branches(net: Any, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x

    said = r"^Rest depends on the values of a tensor \(.*test_graph\.py, line \d+\): keep control flow"
    with pytest.raises(ValueError, match=said) as caught:
        wrapped(branches)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"^Sequential does not run on an input of shape \(1, 3, 8, 8\)"):
        trace(nn.Sequential(nn.Conv2d(4, 4, 1)), torch.zeros(1, *IMAGE))

    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    with pytest.raises(ValueError, match=r"^Two does not run on an input of shape \(1, 3, 8, 8\).*argument: 'y'"):
        trace(Two(), torch.zeros(1, *IMAGE))


class Gated(nn.Module):
    """A block that looks at its data."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.rest = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        if x.mean() > 0:  # looked at
            return x + self.conv(x)
        return x - self.conv(x)


class Around(nn.Module):
    def __init__(self, gates: int) -> None:
        super().__init__()
        self.stem, self.mid = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)
        self.gates = nn.Sequential(*(Gated() for _ in range(gates)))
        self.last = nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.mid(self.gates(self.stem(x))).relu())


def test_what_looks_at_its_data_stays_whole_and_the_rest_is_searched() -> None:
    module = Around(1)
    network = trace(module, torch.zeros(2, *IMAGE))
    lines = Path(__file__).read_text().splitlines()
    line = next(at for at, text in enumerate(lines, 1) if text.endswith("# looked at"))
    why = network.frozen["gates.0"]
    assert why.startswith("Gated gates.0 depends on the values of a tensor (")
    assert why.endswith(f"test_graph.py, line {line})")
    assert list(network.widths) == ["mid"] and "stem" in network.frozen
    images = torch.randn(3, *IMAGE)
    with FlopCounterMode(display=False) as counter:
        module(images)
    biases = 8 + 12 + 4  # of layers, which torch does not count
    assert network.macs(network.base) == counter.get_total_flops() // 2 // 3 + biases * 64
    assert network.params(network.base) == sum(each.numel() for each in module.parameters())
    free = (12 * 4 + 4) * 64  # of `mid` the inputs are frozen
    assert network.searchable == pytest.approx(free / network.macs(network.base))
    narrow = resize(network, Arch({"mid": 5}, network.base.depths))
    assert narrow(images).shape == module(images).shape and narrow.mid.out_channels == 5


def test_blocks_that_stay_whole_can_still_be_dropped() -> None:
    module = Around(3).eval()
    network = trace(module, torch.zeros(1, *IMAGE))
    assert {name: site.producers for name, site in network.depths.items()} == {
        "gates": ("gates.0", "gates.1", "gates.2")
    }
    shallow = Arch({"mid": 12}, {"gates": 1})
    images = torch.randn(1, *IMAGE)
    expected = module.last(module.mid(module.gates[0](module.stem(images))).relu())
    torch.testing.assert_close(resize(network, shallow)(images), expected)
    inside = 8 * 8 * 9 * 64
    assert network.macs(network.base) - network.macs(shallow) == 2 * inside
    cost = CountCost(network, "macs")
    space = Space("some", {"mid": (12,)}, {"gates": (1, 3)})
    halves = cost.expected(space, {"mid": torch.ones(1)}, {"gates": torch.tensor([0.5, 0.5])})
    assert float(halves) == (network.macs(network.base) + network.macs(shallow)) / 2


def test_multiply_adds_of_what_is_no_layer_are_counted_by_torch() -> None:
    def attend(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x).flatten(2)
        return net.last((x.transpose(1, 2) @ x).mean(1))

    network = wrapped(attend, stem=nn.Conv2d(3, 6, 1), last=nn.Linear(64, 5))
    assert network.macs(network.base) == 3 * 6 * 64 + 6 * 64 + 64 * 64 * 6 + 64 * 5 + 5


@pytest.mark.filterwarnings("ignore:.*quantize")
def test_hooks_and_quantised_layers_are_refused_by_name() -> None:
    def watch(module: nn.Module, given: Any, output: Any) -> None: ...

    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1))
    handle = module[0].register_forward_hook(watch)
    said = (
        r"^Conv2d 0 has a forward hook, .*watch \(.*test_graph\.py, line \d+\), which resized layers would lose: remove"
    )
    with pytest.raises(ValueError, match=said):
        trace(module, torch.zeros(1, *IMAGE))
    handle.remove()
    assert trace(module, torch.zeros(1, *IMAGE)).widths
    nn.utils.spectral_norm(module[0])  # torch's own, which computes a weight
    assert "0" in trace(module, torch.zeros(1, *IMAGE)).widths
    quantised = nn.Sequential(torch.ao.nn.quantized.Conv2d(3, 4, 1))
    with pytest.raises(ValueError, match=r"^Conv2d 0 is quantised \(torch\.ao\.nn\.quantized.*floating point"):
        trace(quantised, torch.zeros(1, *IMAGE))


def test_a_network_on_another_device_is_refused() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1, device="meta"))
    with pytest.raises(ValueError, match=r"^the network must be on the CPU, it is on meta: call model\.cpu\(\) first"):
        trace(module, torch.zeros(1, *IMAGE))


def test_tied_weights_stay_tied_and_are_counted_once() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)).eval()
    module[2].weight = module[1].weight
    network, images = trace(module, torch.zeros(1, *IMAGE)), torch.randn(2, *IMAGE)
    assert {name: site.producers for name, site in network.widths.items()} == {"0": ("0", "1", "2")}
    for width in (2, 4, 7):
        arch = Arch({"0": width}, {})
        resized = resize(network, arch)
        assert resized[2].weight is resized[1].weight and resized[2].out_channels == width
        unique = sum(parameter.numel() for parameter in resized.parameters())
        assert network.params(arch) == unique == 3 * width + width + width * width + 2 * width + 2 * width + 2
        assert resized(images).shape == (2, 2, 8, 8)
    torch.testing.assert_close(resize(network, network.base)(images), module(images))
    sorted_ = ordered(module, torch.zeros(1, *IMAGE))
    torch.testing.assert_close(sorted_(images), module(images))
    assert sorted_[2].weight is sorted_[1].weight and not torch.equal(sorted_[0].weight, module[0].weight)


def test_trace_leaves_modes_and_the_example_alone() -> None:
    module = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)).train()
    module[2].eval()
    example = torch.randn(1, *IMAGE)
    kept, state = example.clone(), {name: value.clone() for name, value in module.state_dict().items()}
    trace(module, example)
    assert [part.training for part in module] == [True, True, False, True]
    assert torch.equal(example, kept)
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())


# -- layers ------------------------------------------------------------------------------------------------------------


def test_layers_take_in_the_norm_and_activation_that_follow() -> None:
    network = made("resnet-20")
    uses = network.uses(network.base)
    described = {(u.layer.op, u.layer.norm, u.layer.activation): u.node for u in reversed(uses)}
    assert described == {
        ("conv", True, "relu"): "stem.conv",
        ("conv", True, ""): "stages.0.0.conv2.conv",
        ("add", False, "relu"): "stages.0.0:add",
        ("avg_pool", False, ""): "stages.1.0.shortcut.0",
        ("conv", False, ""): "stages.1.0.shortcut.1",
        ("global_pool", False, ""): "pool",
        ("linear", False, ""): "classifier",
    }
    assert len(uses) == 19 + 9 + 2 * 2 + 2
    assert len({use.layer for use in uses if use.layer.op == "conv"}) == 1 + 2 + 3 + 3 + 2  # stem, stages, shortcuts


def test_function_activations_are_taken_in_too_and_depthwise_layers_belong_to_a_site() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        return net.last(F.relu6(net.each(F.silu(net.conv(x)))).mean((2, 3)))

    each = nn.Conv2d(4, 4, 3, groups=4)
    network = wrapped(forward, conv=nn.Conv2d(3, 4, 1), each=each, last=nn.Linear(4, 2))
    conv, wise, *_ = network.uses(Arch({"conv": 7}))
    assert (conv.layer.activation, wise.layer.activation) == ("silu", "relu6")
    assert (wise.site, wise.layer.groups, wise.layer.inputs, wise.layer.outputs) == ("conv", 7, 7, 7)


def layers(network: Network, arch: Arch) -> Iterator[tuple[str, int, int]]:
    for use in network.uses(arch):
        if use.layer.op == "conv":
            yield use.node, use.layer.inputs, use.layer.outputs


def test_what_follows_a_cut_reads_the_last_kept_block() -> None:
    network = trace(CifarResNet(14).build(10), torch.zeros(1, *IMAGE), adds="project")
    widths = {**network.base.widths, "stages.0.0.conv2.conv": 5, "stages.0.1.conv2.conv": 9}
    found = {node: (i, o) for node, i, o in layers(network, Arch(widths, {**network.base.depths, "stages.0": 1}))}
    assert found["stages.1.0.conv1.conv"] == (5, 32)
    assert "stages.0.1.conv1.conv" not in found
    found = {node: (i, o) for node, i, o in layers(network, Arch(widths, network.base.depths))}
    assert found["stages.1.0.conv1.conv"] == (9, 32)
    assert found["stages.0.1.project"] == (5, 9)


# -- what the user wants as it is --------------------------------------------------------------------------------------


def test_ignored_modules_keep_their_widths_and_blocks() -> None:
    module = CifarResNet(14).build(4)
    network = trace(module, torch.zeros(1, *IMAGE), ignored=["stages.1", "stages.0.0.conv1"])
    assert network.frozen["stages.0.0.conv1.conv"] == "design.ignored names it"
    assert all(
        network.frozen[f"stages.1.{n}.conv{k}.conv"] == "design.ignored names it" for n in (0, 1) for k in (1, 2)
    )
    assert set(network.depths) == {"stages.0", "stages.2"}
    assert "stages.0.1.conv1.conv" in network.widths and "stem.conv" in network.widths
    with pytest.raises(ValueError, match=r"stages\.7"):
        trace(module, torch.zeros(1, *IMAGE), ignored=["stages.7"])
