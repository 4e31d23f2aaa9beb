"""Networks in the ways people write them: what is free in each, what is not and why, and that nothing is wrong."""

import copy
import inspect
import io
import math
import pickle
import random
from collections import OrderedDict, UserDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from one_in import one_in
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from htas.errors import UserError
from htas.graph import Network, ordered, resize, trace
from htas.graph.arch import Arch
from htas.graph.verify import alike
from htas.run.user import UserNetwork
from htas.search.draw import Draw
from htas.search.supernet import Supernet
from htas.spaces.space import Space

pytestmark = pytest.mark.timeout(120)

IMAGES = (2, 3, 16, 16)


class Parts(nn.Module):
    """Whatever parts a test gives, and its forward pass."""

    def __init__(self, run: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def conv(inputs: int, outputs: int, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


def layers(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(conv(inputs, outputs, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def around(step: Callable[[Any, Tensor], Tensor], /, width: int = 8, after: int = 8, **parts: Any) -> nn.Module:
    """A step, tensors to tensors, between two convolutions; `after` channels come out of it."""

    def run(net: Any, x: Tensor) -> Tensor:
        return net.last(net.two(step(net, net.one(x))).mean((2, 3)))

    return Parts(run, one=layers(3, width), two=layers(after, 6), last=nn.Linear(6, 4), **parts)


# -- how a network is judged -------------------------------------------------------------------------------------------


def shaken(module: nn.Module) -> nn.Module:
    """Parameters and statistics at distinct values."""
    torch.manual_seed(0)
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm | nn.LayerNorm | nn.GroupNorm) and part.weight is not None:
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.uniform_(part.bias, -0.5, 0.5)
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.running_var is not None:
            nn.init.uniform_(part.running_var, 0.5, 1.5)
            nn.init.uniform_(part.running_mean, -0.5, 0.5)
    return module


def far(one: Any, two: Any) -> float:
    """The largest difference of two outputs, as a share of the largest number."""
    pairs = list(zip(tree_leaves(one), tree_leaves(two), strict=True))
    assert all(a.shape == b.shape for a, b in pairs)
    return max(float((a - b).abs().max() / a.abs().max().clamp_min(1e-6)) for a, b in pairs)


def archs(network: Network, count: int = 6) -> list[Arch]:
    rng = random.Random(0)
    found = []
    for _ in range(count):
        widths = {
            name: rng.randint(1, site.base // site.multiple) * site.multiple for name, site in network.widths.items()
        }
        found.append(Arch(widths, {name: rng.randint(1, site.base) for name, site in network.depths.items()}))
    return found


def examined(module: nn.Module, shape: tuple[int, ...] = IMAGES, *, trains: bool = True, images: int = 1) -> Network:
    """The traced network, after all that must hold of it has been checked; its work is counted on so many images."""
    shaken(module).eval()
    state = copy.deepcopy(module.state_dict())
    network = trace(module, torch.randn(shape))
    inputs = torch.randn(shape[0] + 1, *shape[1:])
    with torch.no_grad():
        wanted = module(inputs.clone())
        assert far(wanted, resize(network, network.base).eval()(inputs.clone())) <= 1e-5
        assert far(wanted, ordered(module, torch.randn(shape)).eval()(inputs.clone())) <= 1e-4
    assert all(torch.equal(tensor, state[name]) for name, tensor in module.state_dict().items())
    tried = archs(network)
    for arch in tried:
        small = resize(network, arch).eval()
        assert sum(each.numel() for each in small.parameters() if each.requires_grad) == network.params(arch)
        with torch.no_grad():
            small(inputs.clone())
        if trains:
            out = small.train()(inputs.clone())
            sum(each.float().mean() for each in tree_leaves(out) if each.requires_grad).backward()
    space = Space(
        "all",
        {name: tuple(range(site.multiple, site.base + 1, site.multiple)) for name, site in network.widths.items()},
        {name: tuple(range(1, site.base + 1)) for name, site in network.depths.items()},
    )
    for arch in (network.base, *tried[:2]):
        small = resize(network, Arch({site: max(width, 2) for site, width in arch.widths.items()}, arch.depths)).eval()
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # attention in its parts
            small(inputs[:images].clone())
        wanted = counter.get_total_flops() / 2 / images + _biases(small, inputs[:images], network)
        assert network.macs(Arch({site: max(width, 2) for site, width in arch.widths.items()}, arch.depths)) == wanted
    supernet = Supernet(network, space, lambda module: None, norms="shared", mix="pad")
    supernet.inherit(module)
    supernet.eval()
    with torch.no_grad():
        for arch in (network.base, *tried[:3]):
            small = resize(network, arch).eval()
            assert far(small(inputs.clone()), supernet(inputs.clone(), Draw.of(arch, network))) <= 1e-4
    copied = pickle.loads(pickle.dumps(module.state_dict()))
    assert copied.keys() == state.keys()
    copy.deepcopy(module)
    return network


@torch.no_grad()
def _biases(module: nn.Module, inputs: Tensor, network: Network) -> float:
    """A multiply-add for each output of a layer with a bias, which torch does not count."""
    found = []
    layers = {node.module for node in network.nodes if node.layer is not None}
    for name, part in module.named_modules():
        if name in layers and isinstance(part, nn.modules.conv._ConvNd | nn.Linear) and part.bias is not None:
            part.register_forward_hook(lambda part, given, out: found.append(out.numel()))
    module(inputs)
    return sum(found) / len(inputs)


# -- subclasses of torch.nn's own layers -------------------------------------------------------------------------------


class Same(nn.Conv2d):
    """TensorFlow's padding."""

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        tall = max((-(height // -self.stride[0]) - 1) * self.stride[0] + self.kernel_size[0] - height, 0)
        wide = max((-(width // -self.stride[1]) - 1) * self.stride[1] + self.kernel_size[1] - width, 0)
        x = F.pad(x, [wide // 2, wide - wide // 2, tall // 2, tall - tall // 2])
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class Standardised(nn.Conv2d):
    """Weight standardisation (Qiao et al. 2019)."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        weight = weight - weight.mean(dim=(1, 2, 3), keepdim=True)
        weight = weight / (weight.std(dim=(1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class StandardisedByNorm(nn.Conv2d):
    """Weight standardisation as timm has it."""

    def forward(self, x: Tensor) -> Tensor:
        weight = F.batch_norm(
            self.weight.reshape(1, self.out_channels, -1), None, None, training=True, momentum=0.0, eps=1e-6
        ).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Normed(nn.Conv2d):
    """A norm and an activation inside, as detectron2 has it."""

    def __init__(self, *sizes: Any, **options: Any) -> None:
        super().__init__(*sizes, **options)
        self.norm, self.activation = nn.BatchNorm2d(self.out_channels), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        return self.activation(self.norm(x))


class NormAct(nn.BatchNorm2d):
    """timm's BatchNormAct2d."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(super().forward(x))


class NormActByHand(nn.BatchNorm2d):
    """The same, by the norm's function."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, self.eps
        )
        return F.leaky_relu_(x, 0.1)


class Cosine(nn.Linear):
    """A cosine head."""

    def forward(self, x: Tensor) -> Tensor:
        return 10 * F.linear(F.normalize(x, dim=1), F.normalize(self.weight, dim=1))


class Masked(nn.Conv2d):
    """A masked convolution (van den Oord et al. 2016)."""

    def __init__(self, *sizes: Any, **options: Any) -> None:
        super().__init__(*sizes, **options)
        self.register_buffer("mask", torch.ones_like(self.weight))
        self.mask[:, :, self.kernel_size[0] // 2 + 1 :] = 0

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight * self.mask, self.bias)


class Cropped(nn.ConvTranspose2d):
    """Without its last row and column."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, :, :-1, :-1]


class Plain(nn.Conv2d):
    """Nothing of its own."""


class Over(nn.LayerNorm):
    """Of the channels of images."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps).permute(
            0, 3, 1, 2
        )


def body(middle: nn.Module, after: int = 8, head: nn.Module | None = None) -> nn.Module:
    """A convolution, the part in question, another convolution and a head."""

    def run(net: Any, x: Tensor) -> Tensor:
        return net.last(net.two(net.middle(net.one(x))).mean((2, 3)))

    return Parts(run, one=layers(3, 8), middle=middle, two=layers(after, 6), last=head or nn.Linear(6, 4))


SUBCLASSES = {
    "same padding": (lambda: body(Same(8, 10, 3, 2), 10), Same),
    "same padding, depthwise": (lambda: body(Same(8, 8, 3, 2, groups=8)), Same),
    "weight standardisation": (lambda: body(Standardised(8, 10, 3, padding=1), 10), Standardised),
    "weight standardisation by a norm": (lambda: body(StandardisedByNorm(8, 10, 3, padding=1), 10), StandardisedByNorm),
    "norm and activation inside": (lambda: body(Normed(8, 10, 3, padding=1, bias=False), 10), Normed),
    "norm with an activation": (lambda: body(NormAct(8)), NormAct),
    "norm with an activation, by hand": (lambda: body(NormActByHand(8)), NormActByHand),
    "cosine head": (lambda: body(nn.Identity(), head=Cosine(6, 4, bias=False)), Cosine),
    "masked": (lambda: body(Masked(8, 10, 3, padding=1), 10), Masked),
    "cropped": (lambda: body(Cropped(8, 10, 2, 2, bias=False), 10), Cropped),
    "plain": (lambda: body(Plain(8, 10, 3, padding=1), 10), Plain),
    "norm over channels": (lambda: body(Over(8)), Over),
}


@pytest.mark.parametrize("name", one_in(2, SUBCLASSES))
def test_a_subclass_computes_what_its_forward_does_at_any_width(name: str) -> None:
    make, kind = SUBCLASSES[name]
    network = examined(make())
    assert set(network.frozen) == {"last"}
    assert {"one.0", "two.0"} <= set(network.widths)
    narrow = resize(network, Arch({site: 3 for site in network.widths}, network.base.depths))
    assert [type(part) for part in narrow.modules()] == [type(part) for part in network.module.modules()]
    assert any(type(part) is kind for part in narrow.modules())


# -- weights that a forward reads by itself ----------------------------------------------------------------------------


def tied_autoencoder() -> nn.Module:
    def run(net: Any, x: Tensor) -> Tensor:
        code = torch.relu(net.encoder(net.one(x).mean((2, 3))))
        return net.last(F.linear(code, net.encoder.weight.t()))

    return Parts(run, one=layers(3, 8), encoder=nn.Linear(8, 6), last=nn.Linear(8, 4))


def tied_convolutions() -> nn.Module:
    def run(net: Any, x: Tensor) -> Tensor:
        return net.last(F.conv_transpose2d(net.two(net.one(x)).relu(), net.two.weight, padding=1))

    return Parts(run, one=layers(3, 8), two=conv(8, 6), last=conv(8, 3))


def penalty() -> nn.Module:
    def run(net: Any, x: Tensor) -> Any:
        return net.last(net.two(net.one(x)).mean((2, 3))), net.two[0].weight.square().sum()

    return Parts(run, one=layers(3, 8), two=layers(8, 6), last=nn.Linear(6, 4))


def gate_by_scale() -> nn.Module:
    def run(net: Any, x: Tensor) -> Tensor:
        x = net.one(x)
        return net.last((x * torch.sigmoid(net.one[1].weight).view(1, -1, 1, 1)).mean((2, 3)))

    return Parts(run, one=layers(3, 8), last=nn.Linear(8, 4))


def attention_by_scale() -> nn.Module:
    """Of NAM (Liu et al. 2021)."""

    def run(net: Any, x: Tensor) -> Tensor:
        rest = x = net.one(x)
        x = net.norm(x)
        weight = net.norm.weight.data.abs() / torch.sum(net.norm.weight.data.abs())
        x = torch.mul(weight, x.permute(0, 2, 3, 1).contiguous()).permute(0, 3, 1, 2).contiguous()
        return net.last((torch.sigmoid(x) * rest).mean((2, 3)))

    return Parts(run, one=layers(3, 8), norm=nn.BatchNorm2d(8), last=nn.Linear(8, 4))


def shared_weight() -> nn.Module:
    first, second = conv(8, 8, bias=False), conv(8, 8, bias=False)
    second.weight = first.weight
    return Parts(lambda net, x: net.last(net.second(net.first(net.one(x)).relu()).mean((2, 3))),
                 one=layers(3, 8), first=first, second=second, last=nn.Linear(8, 4))  # fmt: skip


def normed_weight() -> nn.Module:
    return body(nn.utils.parametrizations.weight_norm(conv(8, 10)), 10)


WEIGHTS = {
    "tied autoencoder": (tied_autoencoder, {"one.0", "encoder"}),
    "tied convolutions": (tied_convolutions, {"one.0", "two"}),
    "penalty on a weight": (penalty, {"one.0", "two.0"}),
    "gate by a norm's scale": (gate_by_scale, {"one.0"}),
    "attention by a norm's scale": (attention_by_scale, {"one.0"}),
    "one weight for two layers": (shared_weight, {"one.0"}),
    "weight norm": (normed_weight, {"one.0", "middle", "two.0"}),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_weight_that_is_read_twice_changes_for_both(name: str) -> None:
    make, free = WEIGHTS[name]
    assert free <= set(examined(make()).widths)


# -- dimension 1 is not always channels --------------------------------------------------------------------------------


def recurrent_columns() -> nn.Module:
    def run(net: Any, x: Tensor) -> Tensor:
        x = net.one(x).mean(2).permute(2, 0, 1)  # [T, N, C]
        return net.last(net.lstm(x)[0]).permute(1, 0, 2)

    return Parts(run, one=layers(3, 8), lstm=nn.LSTM(8, 5), last=nn.Linear(5, 4))


def recurrent_batches() -> nn.Module:
    def run(net: Any, x: Tensor) -> Tensor:
        x = net.two(net.one(x)).flatten(2).transpose(1, 2)  # [N, T, C]
        return net.last(net.gru(x)[0][:, -1])

    return Parts(run, one=layers(3, 8), two=layers(8, 6), gru=nn.GRU(6, 5, batch_first=True), last=nn.Linear(5, 4))


def similarities() -> nn.Module:
    def run(net: Any, x: Tensor) -> Tensor:
        x = net.two(net.one(x)).mean((2, 3))
        return x @ x.t()  # [N, N]

    return Parts(run, one=layers(3, 8), two=layers(8, 6))


def similarities_inside() -> nn.Module:
    def run(net: Any, x: Tensor) -> Tensor:
        x = net.two(net.one(x)).mean((2, 3))
        return net.last(torch.softmax(x @ x.t(), 1) @ x)

    return Parts(run, one=layers(3, 8), two=layers(8, 6), last=nn.Linear(6, 4))


def turned_mlp() -> nn.Module:
    """Linear layers over [T, N, C]."""

    def run(net: Any, x: Tensor) -> Tensor:
        x = net.one(x).flatten(2).permute(2, 0, 1)
        return net.last(torch.relu(net.norm(net.hidden(x))).mean(0))

    return Parts(run, one=layers(3, 8), hidden=nn.Linear(8, 6), norm=nn.LayerNorm(6), last=nn.Linear(6, 4))


def mixed_tokens() -> nn.Module:
    """Linear layers over pixels (Tolstikhin et al. 2021)."""

    def run(net: Any, x: Tensor) -> Tensor:
        x = net.one(x).flatten(2)
        x = x + net.back(torch.relu(net.tokens(x)))
        return net.last(x.mean(2))

    return Parts(run, one=nn.Conv2d(3, 8, 4, 4), tokens=nn.Linear(16, 10), back=nn.Linear(10, 16), last=nn.Linear(8, 4))


DIMENSIONS = {
    "[T, N, C] before an LSTM": (recurrent_columns, set()),
    "[N, T, C] before a GRU": (recurrent_batches, {"one.0"}),
    "[N, N] similarities": (similarities, {"one.0", "two.0"}),
    "similarities inside": (similarities_inside, {"one.0", "two.0"}),
    "linear layers over [T, N, C]": (turned_mlp, {"one.0", "hidden"}),
    "linear layers over pixels": (mixed_tokens, {"one"}),
}


@pytest.mark.parametrize("name", DIMENSIONS)
def test_images_are_never_taken_for_channels(name: str) -> None:
    make, free = DIMENSIONS[name]
    network = examined(make(), images=IMAGES[0])  # similarities grow with the square of their number
    assert free <= set(network.widths)


# -- what only training does -------------------------------------------------------------------------------------------


class Auxiliary(nn.Module):
    """A second head that only training runs (Szegedy et al. 2015)."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = layers(3, 8), layers(8, 6)
        self.aux, self.last = (
            nn.Sequential(nn.Conv2d(8, 5, 1), nn.Flatten(), nn.Linear(5 * 16 * 16, 4)),
            nn.Linear(6, 4),
        )

    def forward(self, x: Tensor) -> Any:
        x = self.one(x)
        aux = self.aux(x) if self.training else None
        x = self.last(self.two(x).mean((2, 3)))
        return (x, aux) if self.training else x


class DropPath(nn.Module):
    """Stochastic depth, as timm has it."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        keep = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(0.8)
        return x * keep.div_(0.8)


class Stochastic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.drop, self.last = layers(3, 8), layers(8, 8), DropPath(), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        return self.last((x + self.drop(self.two(x))).mean((2, 3)))


class Narrower(nn.Module):
    """What training alone reads ties two widths."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.last = layers(3, 8), layers(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        y = self.two(x)
        return self.last((x + y if self.training else y).mean((2, 3)))


def test_a_head_that_only_training_runs_is_resized_too() -> None:
    network = examined(Auxiliary())
    assert {"one.0", "two.0"} <= set(network.widths)


def test_stochastic_depth_is_the_identity() -> None:
    assert set(examined(Stochastic()).widths) == {"one.0"}


def test_what_training_adds_has_one_width_in_eval_too() -> None:
    assert set(examined(Narrower()).widths) == {"one.0"}


# -- what was frozen without need --------------------------------------------------------------------------------------


def in_place(net: Any, x: Tensor) -> Tensor:
    x = x + 1
    x += 1
    x *= 2
    return F.relu_(x)


def focus(_: Any, x: Tensor) -> Tensor:
    return torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)


def spatial_attention(net: Any, x: Tensor) -> Tensor:
    """CBAM's (Woo et al. 2018)."""
    means = torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True)[0]], 1)
    return x * torch.sigmoid(net.gate(means))


def selective(net: Any, x: Tensor) -> Tensor:
    """Selective kernels (Li et al. 2019)."""
    branches = torch.stack([net.a(x), net.b(x)], 1)
    pooled = net.reduce(branches.sum(1).mean((2, 3), keepdim=True)).relu()
    gates = net.select(pooled).view(x.shape[0], 2, -1, 1, 1).softmax(1)
    return (branches * gates).sum(1)


def global_by_view(_: Any, x: Tensor) -> Tensor:
    n, c, h, w = x.size()
    return x * torch.sigmoid(x.view(n, c, h * w).mean(2).view(n, c, 1, 1))


def weighted(net: Any, x: Tensor) -> Tensor:
    """A learned weight for each branch (Tan et al. 2020)."""
    weight = F.relu(net.weights)
    weight = weight / (weight.sum() + 1e-4)
    return weight[0] * x + weight[1] * net.extra(x)


def in_windows(net: Any, x: Tensor) -> Tensor:
    images, channels, height, width = x.shape
    parts = x.view(images, channels, 2, height // 2, 2, width // 2).permute(0, 2, 4, 1, 3, 5)
    parts = net.step(parts.reshape(-1, channels, height // 2, width // 2))
    parts = parts.view(images, 2, 2, -1, height // 2, width // 2).permute(0, 3, 1, 4, 2, 5)
    return parts.reshape(images, -1, height, width)


def of_other_values(net: Any, x: Tensor) -> Tensor:
    parts = (part(x).flatten(2).transpose(1, 2) for part in (net.queries, net.keys, net.values))
    places = net.places.repeat_interleave(x[0, 0].numel() // 2, 0)  # a bias for every pair of pixels, by their half
    return (
        F.scaled_dot_product_attention(*parts, attn_mask=places @ places.T)
        .transpose(1, 2)
        .reshape(len(x), -1, *x.shape[2:])
    )


class TwoScales(nn.Module):
    """As Res2Net of two scales splits its channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.conv = width, conv(width, width)

    def forward(self, x: Tensor) -> Tensor:
        parts = x.split(self.width, 1)
        return torch.cat([self.conv(parts[0]), parts[-1]], 1)


def talking_heads(net: Any, x: Tensor) -> Tensor:
    images, _, height, width = x.shape
    heads = x.reshape(images, 2, -1, height * width)
    shares = net.talk(heads.transpose(2, 3) @ heads).softmax(-1)
    return (shares @ heads.transpose(2, 3)).transpose(2, 3).reshape(images, -1, height, width)


class Shared(nn.Module):
    """Queries and keys of one number of channels, values of another."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.keys, self.width, self.make = 5, width, nn.Conv2d(width, 2 * 5 + width, 1)

    def forward(self, x: Tensor) -> Tensor:
        one, two, three = self.make(x).split([self.keys, self.keys, self.width], 1)
        return three * (one * two).sum(1, keepdim=True)


class OfClass(nn.Module):
    """Its number of channels is the class's."""

    width, parts = 8, (8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(8, 16)

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.conv(x).split(self.parts, 1)
        return torch.cat([one * two, x[:, : self.width]], 1)


STEPS: dict[str, Callable[[], nn.Module]] = {
    "div": lambda: around(lambda net, x: x / 2),
    "div of a tensor": lambda: around(lambda net, x: x / (x.abs().amax((2, 3), keepdim=True) + 1)),
    "clamp": lambda: around(lambda net, x: x.clamp(0, 1)),
    "pow": lambda: around(lambda net, x: x**2),
    "pad": lambda: around(lambda net, x: F.pad(x, (1, 1, 0, 2))),
    "reflection": lambda: around(lambda net, x: F.pad(x, (1, 1, 1, 1), mode="reflect")),
    "casts": lambda: around(lambda net, x: x.double().to(torch.float32).type_as(x)),
    "selu": lambda: around(lambda net, x: F.selu(x)),
    "softplus": lambda: around(lambda net, x: F.softplus(x)),
    "mish by hand": lambda: around(lambda net, x: x * torch.tanh(F.softplus(x))),
    "in place": lambda: around(in_place),
    "sums over pixels": lambda: around(lambda net, x: x * torch.sigmoid(x.sum((2, 3), keepdim=True))),
    "maxima over pixels": lambda: around(lambda net, x: x - x.amax(dim=(-2, -1), keepdim=True)),
    "maxima by max": lambda: around(lambda net, x: x - x.max(3, keepdim=True)[0].max(2, keepdim=True)[0]),
    "flip": lambda: around(lambda net, x: x + torch.flip(x, [3])),
    "roll": lambda: around(lambda net, x: x + torch.roll(x, (1, 1), (2, 3))),
    "slices over pixels": lambda: around(lambda net, x: x[:, :, 1:-1, ::2]),
    "focus": lambda: around(focus, after=32),
    "PReLU": lambda: around(lambda net, x: net.step(x), step=nn.PReLU(8)),
    "PReLU of one": lambda: around(lambda net, x: net.step(x), step=nn.PReLU()),
    "CELU": lambda: around(lambda net, x: net.step(x + 1), step=nn.CELU(inplace=True)),
    "Hardtanh": lambda: around(lambda net, x: net.step(x), step=nn.Hardtanh()),
    "GLU": lambda: around(lambda net, x: net.step(x), after=4, step=nn.GLU(1)),
    "ReflectionPad2d": lambda: around(lambda net, x: net.step(x), step=nn.ReflectionPad2d(1)),
    "ReplicationPad2d": lambda: around(lambda net, x: net.step(x), step=nn.ReplicationPad2d(1)),
    "ConstantPad2d": lambda: around(lambda net, x: net.step(x), step=nn.ConstantPad2d(1, 0.5)),
    "ZeroPad2d": lambda: around(lambda net, x: net.step(x), step=nn.ZeroPad2d(1)),
    "InstanceNorm2d": lambda: around(lambda net, x: net.step(x), step=nn.InstanceNorm2d(8)),
    "InstanceNorm2d with scales": lambda: around(lambda net, x: net.step(x), step=nn.InstanceNorm2d(8, affine=True)),
    "norm without affine": lambda: around(lambda net, x: net.step(x), step=nn.BatchNorm2d(8, affine=False)),
    "norm without statistics": lambda: around(
        lambda net, x: net.step(x), step=nn.BatchNorm2d(8, track_running_stats=False)
    ),
    "SyncBatchNorm": lambda: around(lambda net, x: net.step(x), step=nn.SyncBatchNorm(8)),
    "GroupNorm": lambda: around(lambda net, x: net.step(x), step=nn.GroupNorm(2, 8)),
    "GroupNorm of one": lambda: around(lambda net, x: net.step(x), step=nn.GroupNorm(1, 8)),
    "local response norm": lambda: around(lambda net, x: F.avg_pool2d(x, 2)),
    "padding_mode": lambda: around(lambda net, x: net.step(x), step=conv(8, 8, padding_mode="reflect")),
    "mask of one channel": lambda: around(lambda net, x: x * torch.sigmoid(net.step(x)), step=nn.Conv2d(8, 1, 1)),
    "spatial attention": lambda: around(spatial_attention, gate=nn.Conv2d(2, 1, 7, padding=3)),
    "scalar gate": lambda: around(lambda net, x: x * net.gain, gain=nn.Parameter(torch.tensor(0.5))),
    "gate of one number": lambda: around(lambda net, x: x * net.gain, gain=nn.Parameter(torch.full((1,), 0.5))),
    "weighted sum": lambda: around(weighted, weights=nn.Parameter(torch.ones(2)), extra=conv(8, 8)),
    "concatenation along height": lambda: around(lambda net, x: torch.cat([x, x + 1], 2)),
    "split along width": lambda: around(lambda net, x: x.split(8, 3)[0] + x.chunk(2, 3)[1]),
    "global pooling by view": lambda: around(global_by_view),
    "PixelShuffle": lambda: around(lambda net, x: net.step(x), after=2, step=nn.PixelShuffle(2)),
    "PixelUnshuffle": lambda: around(lambda net, x: net.step(x), after=32, step=nn.PixelUnshuffle(2)),
    "selective kernels": lambda: around(
        selective, a=layers(8, 8), b=conv(8, 8, groups=8), reduce=nn.Conv2d(8, 4, 1), select=nn.Conv2d(4, 16, 1)
    ),
    "channel shuffle": lambda: around(
        lambda net, x: x.view(x.shape[0], 2, x.shape[1] // 2, *x.shape[2:]).transpose(1, 2).reshape(x.shape)
    ),
    "chunk": lambda: around(lambda net, x: torch.cat([x.chunk(2, 1)[1], x.chunk(2, 1)[0].relu()], 1)),
    "halves by slices": lambda: around(lambda net, x: x[:, : x.shape[1] // 2] * x[:, x.shape[1] // 2 :], after=4),
    "softmax over channels": lambda: around(lambda net, x: x.softmax(1)),
    "normalised over channels": lambda: around(lambda net, x: F.normalize(x, dim=1)),
    "squeeze and excitation": lambda: around(
        lambda net, x: x * net.gate(x.mean((2, 3)))[:, :, None, None],
        gate=nn.Sequential(nn.Linear(8, 3), nn.ReLU(), nn.Linear(3, 8), nn.Hardsigmoid()),
    ),
    "efficient channel attention": lambda: around(
        lambda net, x: x * net.gate(x.mean((2, 3)).unsqueeze(1)).sigmoid().transpose(1, 2).unsqueeze(-1),
        gate=nn.Conv1d(1, 1, 3, padding=1),
    ),
    "a convolution of windows": lambda: around(in_windows, step=nn.Sequential(conv(8, 6), nn.ReLU(), conv(6, 8))),
    "attention of wider values": lambda: around(
        of_other_values, after=10, places=nn.Parameter(torch.randn(2, 3)),
        queries=nn.Conv2d(8, 5, 1), keys=nn.Conv2d(8, 5, 1), values=nn.Conv2d(8, 10, 1)
    ),
    "numbers of a class": lambda: around(lambda net, x: net.step(x), after=16, step=OfClass()),
    "talking heads": lambda: around(talking_heads, talk=nn.Conv2d(2, 2, 1)),
    "two scales": lambda: around(lambda net, x: net.step(x), step=TwoScales(4)),
    "ghosts read in groups": lambda: around(
        lambda net, x: net.step(torch.cat([x, net.cheap(x)], 1)), after=12, cheap=conv(8, 8, groups=8),
        step=conv(16, 12, groups=2),
    ),
    "spectral norm": lambda: around(lambda net, x: net.step(x), step=spectral_norm(conv(8, 8))),
    "spectral norm by a hook": lambda: around(lambda net, x: net.step(x), step=nn.utils.spectral_norm(conv(8, 8))),
    "einsum": lambda: around(lambda net, x: torch.einsum("nchw,dc->ndhw", x, net.mix),
    after=5, mix=nn.Parameter(torch.rand(5, 8))),
    "interpolate to another's size": lambda: around(
        lambda net, x: x + F.interpolate(net.step(x), size=x.shape[2:], mode="nearest"), step=nn.Conv2d(8, 8, 3, 2, 1)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", one_in(3, STEPS))
def test_a_step_freezes_nothing_without_need(name: str) -> None:
    network = examined(STEPS[name]())
    assert "two.0" in network.widths and "one.0" in network.widths, network.frozen
    assert ("one.0" in network.fixed_order) == (name == "efficient channel attention")


def first_of(net: Any, x: Tensor) -> Tensor:
    return x * x[:, :1].sigmoid()


def unequal_chunks(net: Any, x: Tensor) -> Tensor:
    one, two, three = x.chunk(3, 1)
    return torch.cat([one, one + two, three], 1)


class Weighed(nn.Module):
    """A query of one number, keys and values, as MobileViTv2 splits them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.make = width, nn.Conv2d(width, 1 + 2 * width, 1)

    def forward(self, x: Tensor) -> Tensor:
        query, keys, values = self.make(x).split([1, self.width, self.width], 1)
        return values.relu() * (keys * query.flatten(2).softmax(-1).view_as(query)).sum((2, 3), keepdim=True)


PINNED: dict[str, tuple[Callable[[], nn.Module], dict[str, int]]] = {
    "a literal and the rest": (
        lambda: around(lambda net, x: torch.cat([x[:, 6:], x[:, :6].relu()], 1), 16, 16), {"one.0": 10}
    ),
    "the last": (lambda: around(lambda net, x: x[:, :-6] * 2, 16, 10), {"one.0": 10}),
    "literal parts": (
        lambda: around(lambda net, x: torch.cat([*reversed(x.split(6, 1))], 1), 16, 16), {"one.0": 4}
    ),
    "one channel by its number": (lambda: around(first_of), {"one.0": 7}),
    "unequal chunks": (lambda: around(unequal_chunks, 22, 22), {"one.0": 18}),
    "parts of one number": (
        lambda: around(lambda net, x: net.step(x), step=Shared(8)), {"one.0": 8, "step.make": 10, "step.make[1]": 8}
    ),
    "a query of one number": (
        lambda: around(lambda net, x: net.step(x), step=Weighed(8)), {"one.0": 8, "step.make": 16}
    ),
}  # fmt: skip
"""Steps that are given the number of some channels, and how many are free all the same."""


@pytest.mark.parametrize("name", PINNED)
def test_only_what_a_step_is_given_the_number_of_stays(name: str) -> None:
    make, free = PINNED[name]
    network = examined(make())
    assert {site: network.sites[site].base for site in free if site in network.sites} == free, network.frozen


def test_a_convolution_before_a_pixel_shuffle_has_multiples_of_its_pixels() -> None:
    assert trace(STEPS["PixelShuffle"](), torch.zeros(IMAGES)).widths["one.0"].multiple == 4


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (
            lambda: nn.Sequential(
                nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(8, 6, 3),
                nn.AdaptiveAvgPool1d(1),
                nn.Flatten(), nn.Linear(6, 4),
            ),
            (2, 3, 32),
        ),
        (
            lambda: nn.Sequential(
                nn.Conv3d(1, 8, 3), nn.BatchNorm3d(8), nn.ReLU(), nn.MaxPool3d(2), nn.Conv3d(8, 6, 1),
                nn.AdaptiveAvgPool3d(1),
                nn.Flatten(), nn.Linear(6, 4),
            ),
            (2, 1, 8, 8, 8),
        ),
        (lambda: nn.Sequential(
            nn.Linear(10, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 6), nn.Linear(6, 4)), (4, 10)),
    ],
    ids=["series", "volumes", "vectors"],
)  # fmt: skip
def test_networks_of_other_dimensions_are_free_too(network: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    made = examined(network(), shape)
    assert len(made.widths) == 2 and len(made.frozen) == 1


# -- parts that people write -------------------------------------------------------------------------------------------


class Swish(torch.autograd.Function):
    """Of EfficientNets, sparing memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        share = torch.sigmoid(x)
        return gradient * (share * (1 + x * (1 - share)))


class SparingSwish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Swish.apply(x)


class ByHand(nn.Module):
    """A convolution that is none of torch.nn's."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3) / 5)
        self.shift = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, padding=1) + self.shift[None, :, None, None]


class Blur(nn.Module):
    """A fixed filter for each channel (Zhang 2019)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        line = torch.tensor([1.0, 2.0, 1.0])
        self.channels = channels
        self.register_buffer("filter", (line[:, None] * line / 16)[None, None].repeat(channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), self.filter, stride=2, groups=x.shape[1])


class BlurByNumber(Blur):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.filter, stride=2, padding=1, groups=self.channels)


class Coordinates(nn.Module):
    """A channel for each coordinate (Liu et al. 2018)."""

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        rows = torch.linspace(-1, 1, h, device=x.device).view(1, 1, h, 1).expand(n, 1, h, w)
        columns = torch.linspace(-1, 1, w, device=x.device).view(1, 1, 1, w).expand(n, 1, h, w)
        return torch.cat([x, rows, columns], 1)


class Reparametrised(nn.Module):
    """RepVGG's block (Ding et al. 2021)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.wide = nn.Sequential(conv(width, width, bias=False), nn.BatchNorm2d(width))
        self.point = nn.Sequential(nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width))
        self.same = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.wide(x) + self.point(x) + self.same(x))


class Ghost(nn.Module):
    """Cheap channels beside those of a convolution (Han et al. 2020)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs
        self.first, self.cheap = layers(inputs, outputs // 2), conv(outputs // 2, outputs // 2, groups=outputs // 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return torch.cat([x, self.cheap(x)], dim=1)[:, : self.outputs, :, :]


class Pyramid(nn.Module):
    """Pooled at several sizes (Zhao et al. 2017)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList(nn.Sequential(nn.AdaptiveAvgPool2d(s), nn.Conv2d(width, 2, 1)) for s in (1, 2, 4))

    def forward(self, x: Tensor) -> Tensor:
        size = x.size()[2:]
        pooled = [F.interpolate(stage(x), size, mode="bilinear", align_corners=False) for stage in self.stages]
        return torch.cat([x, *pooled], 1)


class NonLocal(nn.Module):
    """Attention over pixels (Wang et al. 2018)."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.inner = inner
        self.theta, self.phi, self.g = (nn.Conv2d(width, inner, 1) for _ in range(3))
        self.out = nn.Conv2d(inner, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        n = x.size(0)
        g = self.g(x).view(n, self.inner, -1).permute(0, 2, 1)
        theta = self.theta(x).view(n, self.inner, -1).permute(0, 2, 1)
        weights = F.softmax(torch.matmul(theta, self.phi(x).view(n, self.inner, -1)), dim=-1)
        y = torch.matmul(weights, g).permute(0, 2, 1).contiguous().view(n, self.inner, *x.size()[2:])
        return x + self.out(y)


class Mixture(nn.Module):
    """Convolutions mixed for each image (Yang et al. 2019)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.experts = nn.ModuleList(conv(inputs, outputs) for _ in range(2))
        self.route = nn.Linear(inputs, 2)

    def forward(self, x: Tensor) -> Tensor:
        shares = torch.sigmoid(self.route(x.mean((2, 3))))
        return sum(
            share[:, None, None, None] * part(x) for share, part in zip(shares.unbind(1), self.experts, strict=True)
        )


class Checkpointed(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.block = layers(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.utils.checkpoint.checkpoint(self.block, x, use_reentrant=False)


class Cast(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.block = layers(width, width)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return self.block(x.float()).to(x.dtype)


class Encoded(nn.Module):
    """A transformer's layer between two convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(width, 2, 16, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return self.layer(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(n, c, h, w)


class Gamma(nn.Module):
    """Global response normalisation (Woo et al. 2023)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.ones(1, width, 1, 1)), nn.Parameter(torch.zeros(1, width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        norms = torch.norm(x, p=2, dim=(2, 3), keepdim=True)
        return self.gamma * (x * norms / (norms.mean(dim=1, keepdim=True) + 1e-6)) + self.beta + x


class Deepest(nn.Sequential):
    """A Sequential that keeps what its parts make."""

    def forward(self, x: Tensor) -> Tensor:
        found = []
        for part in self:
            x = part(x)
            found.append(x)
        return torch.cat(found, 1)


class Normalised(nn.Module):
    """Images brought to mean and deviation, by buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.rand(1, 3, 1, 1))
        self.one = layers(3, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.one((x - self.mean) / 0.5)


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


class Scripted(nn.Module):
    step: Any = None

    def forward(self, x: Tensor) -> Tensor:
        return self.step(x)


def scripted() -> nn.Module:
    Scripted.step = staticmethod(torch.jit.script(swish))
    return Scripted()


PARTS: dict[str, tuple[Callable[[], nn.Module], int, set[str]]] = {
    "a function of autograd": (lambda: SparingSwish(), 8, {"one.0"}),
    "a convolution by hand": (lambda: ByHand(8, 10), 10, {"one.0", "middle"}),
    "a fixed filter": (lambda: Blur(8), 8, {"one.0"}),
    "a fixed filter, by its number": (lambda: BlurByNumber(8), 8, {"one.0"}),
    "coordinates": (lambda: Coordinates(), 10, {"one.0"}),
    "RepVGG": (lambda: Reparametrised(8), 8, {"one.0"}),
    "GhostNet": (lambda: Ghost(8, 12), 12, {"one.0", "middle.first.0"}),
    "PSPNet": (lambda: Pyramid(8), 14, {"one.0", "middle.stages.0.1"}),
    "non-local": (lambda: NonLocal(8, 4), 8, {"one.0"}),
    "CondConv": (lambda: Mixture(8, 10), 10, {"one.0", "middle.experts.0"}),
    "checkpointed": (lambda: Checkpointed(8), 8, {"one.0"}),
    "autocast": (lambda: Cast(8), 8, {"one.0", "middle.block.0"}),
    "a transformer's layer": (lambda: Encoded(8), 8, set()),
    "response norm": (lambda: Gamma(8), 8, {"one.0"}),
    "a Sequential's own forward": (lambda: Deepest(conv(8, 4), conv(4, 5)), 9, {"one.0", "middle.0", "middle.1"}),
    "a scripted function": (scripted, 8, set()),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", one_in(2, PARTS))
def test_parts_that_people_write_are_free(name: str) -> None:
    make, after, free = PARTS[name]
    network = examined(body(make(), after))
    assert free | {"two.0"} <= set(network.widths), network.frozen


def test_buffers_of_images_are_no_channels() -> None:
    module = Parts(lambda net, x: net.last(net.images(x).mean((2, 3))), images=Normalised(), last=nn.Linear(8, 4))
    assert set(examined(module).widths) == {"images.one.0"}


def test_an_output_may_be_a_dictionary_of_several() -> None:
    def run(net: Any, x: Tensor) -> Any:
        x = net.one(x)
        y = net.two(x)
        return {"features": [x.mean((2, 3)), net.last(y.mean((2, 3)))], "mask": torch.sigmoid(net.mask(y))}

    module = Parts(run, one=layers(3, 8), two=layers(8, 6), last=nn.Linear(6, 4), mask=nn.Conv2d(6, 1, 1))
    network = examined(module)
    assert set(network.widths) == {"two.0"} and network.frozen["one.0"] == "it is the network's output"


# -- sizes in Python ---------------------------------------------------------------------------------------------------


def multiples(net: Any, x: Tensor) -> Tensor:
    h, w = x.shape[-2:]
    if h % 8 or w % 8:
        raise ValueError("height and width must be multiples of 8")
    return x


def same_pixels(net: Any, x: Tensor) -> Tensor:
    y = net.step(x)
    if x.shape[2:] != y.shape[2:]:
        y = F.interpolate(y, x.shape[2:])
    return x + y


def asserted(net: Any, x: Tensor) -> Tensor:
    assert x.dim() == 4 and x.size(1) == net.step.in_channels
    return net.step(x)


def padded_by_sizes(net: Any, x: Tensor) -> Tensor:
    y = net.step(x)
    high, wide = x.size()[2] - y.size()[2], x.size()[3] - y.size()[3]
    return torch.cat([x, F.pad(y, [wide // 2, wide - wide // 2, high // 2, high - high // 2])], 1)


def by_length(net: Any, x: Tensor) -> Tensor:
    return torch.stack([x[i] for i in range(x.shape[0])]) if len(x) < 0 else x


SIZES: dict[str, Callable[[], nn.Module]] = {
    "raise": lambda: around(multiples),
    "compared": lambda: around(same_pixels, step=nn.Conv2d(8, 8, 3, 2, 1)),
    "asserted": lambda: around(asserted, step=conv(8, 8)),
    "padded": lambda: around(padded_by_sizes, after=13, step=nn.Conv2d(8, 5, 5)),
    "length": lambda: around(by_length),
    "images by length": lambda: around(lambda net, x: x.view(len(x), len(x[0]), -1).view(len(x), *x.shape[1:])),
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_in_python_are_numbers(name: str) -> None:
    network = examined(SIZES[name]())
    assert {"one.0", "two.0"} <= set(network.widths), network.frozen


def test_a_product_of_sizes_follows_them() -> None:
    class Tutorial(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.hidden, self.last = layers(3, 8), nn.Linear(8 * 16, 6), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = F.max_pool2d(self.one(x), 4)
            return self.last(F.relu(self.hidden(x.view(-1, self.num_flat_features(x)))))

        def num_flat_features(self, x: Tensor) -> int:
            total = 1
            for size in x.size()[1:]:
                total *= size
            return total

    assert set(examined(Tutorial()).widths) == {"one.0", "hidden"}


def test_the_channels_of_an_image_can_be_asserted() -> None:
    class Checked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.last = layers(3, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            assert x.size(1) == 3
            x = self.one(x)
            assert x.shape[1] > 0
            return self.last(x.mean((2, 3)))

    assert set(examined(Checked()).widths) == {"one.0"}


# -- a network that keeps what it computes -----------------------------------------------------------------------------


class Keeps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.last = layers(3, 8), layers(8, 6), nn.Linear(6, 4)
        self.features: Any = None
        self.sizes: Any = None
        self.seen: list[Any] = []
        self.width = 8

    def forward(self, x: Tensor) -> Tensor:
        self.features = x = self.one(x)
        self.sizes, self.height = x.shape, x.shape[2]
        self.seen = [x.size(0), x.shape[1] * 2]
        return self.last(self.two(x).mean((2, 3)))


def test_nothing_of_a_run_stays_in_the_network() -> None:
    module = Keeps().eval()
    before = dict(vars(module))
    network = trace(module, torch.randn(IMAGES))
    assert set(network.widths) == {"one.0", "two.0"}
    assert all(vars(module)[name] is before[name] for name in ("features", "sizes", "seen", "width"))
    assert "height" not in vars(module)
    stream = io.BytesIO()
    torch.save(module, stream)
    copy.deepcopy(module)
    narrow = resize(network, Arch({"one.0": 3, "two.0": 2}, {}))
    narrow(torch.randn(IMAGES))
    assert type(narrow.seen[1]) is int
    examined(module)


# -- wrappers ----------------------------------------------------------------------------------------------------------


def small() -> nn.Module:
    return nn.Sequential(layers(3, 8), layers(8, 6), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))


@pytest.mark.filterwarnings("ignore")
def test_networks_in_wrappers_are_those_inside() -> None:
    for wrap in (nn.DataParallel, torch.compile):
        module = small()
        network = trace(wrap(module), torch.zeros(IMAGES))
        assert network.module is module
        assert set(network.widths) == {"0.0", "1.0"}


class Holding(nn.Module):
    """Holds what Python cannot copy."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.last = layers(3, 8), nn.Linear(8, 4)
        self.step = torch.jit.script(swish)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.step(self.one(x)).mean((2, 3)))


@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_resized_is_refused_in_one_sentence() -> None:
    lazy = nn.Sequential(nn.LazyConv2d(8, 3), nn.Flatten(), nn.LazyLinear(4))
    scripted = torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4)))
    recorded = torch.jit.trace(small().eval(), torch.zeros(IMAGES))
    for module, words in (
        (scripted, "TorchScript"),
        (recorded, "TorchScript"),
        (lazy, "run it once"),
        (Holding(), "cannot be copied"),
        (small().half(), "model.float()"),
        (small().to(torch.bfloat16), "model.float()"),
    ):
        with pytest.raises(UserError) as caught:
            trace(module, torch.zeros(IMAGES))
        assert words in str(caught.value) and "\n" not in str(caught.value)


def held(part: nn.Module) -> nn.Module:
    return Parts(lambda net, x: net.part(x), part=part)


@pytest.mark.filterwarnings("ignore")  # PyTorch's own, of old parts of it
@pytest.mark.parametrize(
    "make, way, line",
    [
        (
            lambda: torch.jit.trace(Auxiliary().eval(), torch.zeros(IMAGES)),
            "in Python that it was made from",
            Auxiliary,
        ),
        (lambda: held(nn.Sequential(nn.LazyLinear(4))), "run it once, model(example)", Parts),
        (lambda: held(nn.LazyConv2d(4, 3)), "run it once, model(example)", Parts),
        (lambda: held(torch.ao.nn.quantized.Conv2d(3, 4, 3)), "give the network in floating point", Parts),
        (lambda: held(torch.ao.nn.qat.Linear(3, 4, qconfig=torch.ao.quantization.default_qconfig)), "floating", Parts),
        (lambda: nn.Sequential(torch.ao.nn.quantized.Conv2d(3, 4, 3)), "give the network in floating point", None),
    ],
)
def test_a_refusal_names_the_class_with_its_line_and_the_way_out(make: Any, way: str, line: type | None) -> None:
    with pytest.raises(UserError) as caught:
        trace(make(), torch.zeros(IMAGES))
    said = str(caught.value)
    assert way in said and "\n" not in said
    if line is not None:
        assert f"{line.__name__} ({__file__}, line {inspect.getsourcelines(line)[1]})" in said


@pytest.mark.filterwarnings("ignore")
def test_a_scripted_network_from_a_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    torch.jit.trace(Auxiliary().eval(), torch.zeros(IMAGES)).save(path)
    with pytest.raises(UserError, match="give the network in Python that it was made from, "):
        trace(torch.jit.load(path), torch.zeros(IMAGES))


def test_a_network_of_double_precision_is_searched_as_it_is() -> None:
    module = small().double().eval()
    network = trace(module, torch.zeros(IMAGES, dtype=torch.float64))
    half = Arch({"0.0": 4, "1.0": 3}, {})
    out = resize(network, half)(torch.zeros(IMAGES, dtype=torch.float64))
    assert out.dtype == torch.float64 and set(network.widths) == {"0.0", "1.0"}


def test_the_memory_format_stays() -> None:
    network = trace(small().to(memory_format=torch.channels_last), torch.zeros(IMAGES))
    narrow = resize(network, Arch({"0.0": 4, "1.0": 3}, {}))
    assert narrow[1][0].weight.is_contiguous(memory_format=torch.channels_last)


# -- what cannot be followed -------------------------------------------------------------------------------------------


def branch(net: Any, x: Tensor) -> Tensor:
    x = net.one(x)
    if x.mean() > 0:
        x = -x
    return net.last(x.mean((2, 3)))


def loop(net: Any, x: Tensor) -> Tensor:
    x = net.one(x)
    while x.abs().max() > 1:
        x = x / 2
    return net.last(x.mean((2, 3)))


def count(net: Any, x: Tensor) -> Tensor:
    x = net.one(x)
    return net.last(x.mean((2, 3)) * int((x > 0).sum()))


def numbers(net: Any, x: Tensor) -> Tensor:
    x = net.one(x)
    return net.last(torch.from_numpy(x.mean((2, 3)).detach().numpy()))


@pytest.mark.parametrize("run", [branch, loop, count, numbers])
def test_a_forward_that_looks_at_its_data_is_refused_with_its_line(run: Callable[..., Any]) -> None:
    module = Parts(run, one=layers(3, 8), last=nn.Linear(8, 4))
    with pytest.raises(UserError) as caught:
        trace(module, torch.randn(IMAGES))
    sentence = str(caught.value)
    assert "test_people.py, line " in sentence and "\n" not in sentence and "submodule" in sentence


def test_probabilities_in_eval_and_logits_in_training_are_refused() -> None:
    class Probable(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.last = layers(3, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.last(self.one(x).mean((2, 3)))
            return x if self.training else x.softmax(1)

    with pytest.raises(UserError) as caught:
        trace(Probable(), torch.randn(IMAGES))
    assert "softmax" in str(caught.value) and "training" in str(caught.value) and "\n" not in str(caught.value)


def test_hooks_that_change_outputs_are_refused() -> None:
    module = small()
    module[0].register_forward_hook(lambda part, given, out: out * 2)
    with pytest.raises(UserError, match=r"forward hook, .*test_people\.py, line \d+"):
        trace(module, torch.zeros(IMAGES))


def test_a_run_searches_the_network_inside_a_wrapper() -> None:
    module = Keeps()
    module(torch.randn(IMAGES))  # with gradients, which nobody can copy
    family = UserNetwork.of(nn.DataParallel(module), (torch.randn(IMAGES),), trained=True)
    assert type(family.build(4)) is Keeps and set(trace(module, torch.randn(IMAGES)).widths) == {"one.0", "two.0"}


def test_attention_of_learned_queries_is_traced_for_several_images() -> None:
    def run(net: Any, x: Tensor) -> Tensor:
        pixels = net.one(x).flatten(2).transpose(1, 2)
        return net.last(net.attention(net.query.expand(len(x), -1, -1), pixels, pixels)[0][:, 0])

    parts = {"one": layers(3, 8), "last": nn.Linear(8, 4), "query": nn.Parameter(torch.randn(1, 1, 8))}
    module = Parts(run, attention=nn.MultiheadAttention(8, 2, batch_first=True), **parts)
    network = trace(module, torch.randn(IMAGES))
    assert "not understood" in network.frozen["one.0"]


# -- sizes that Python compares ----------------------------------------------------------------------------------------


class Compared(nn.Module):
    """A residual block that decides in its forward whether to project."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.one, self.two = layers(inputs, outputs), layers(outputs, outputs)
        self.down = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = self.two(self.one(x))
        if x.shape != out.shape:
            x = self.down(x)
        return torch.relu(out + x)


def test_widths_that_forward_compares_are_frozen_where_the_answer_may_change() -> None:
    """At equal widths of its sides the block would not project."""
    parts = nn.Sequential(layers(3, 8), Compared(8, 12), Compared(12, 12), Compared(12, 16))
    network = examined(Parts(lambda net, x: net.last(net.parts(x).mean((2, 3))), parts=parts, last=nn.Linear(16, 4)))
    assert list(network.widths) == [f"parts.{block}.one.0" for block in (1, 2, 3)]
    assert "test_people.py, line" in network.frozen["parts.0.0"]
    assert "forward compares its number of channels" in network.frozen["parts.3.two.0"]
    small = resize(network, Arch(dict.fromkeys(network.widths, 12), network.base.depths)).eval()
    with FlopCounterMode(display=False) as counter:
        small(torch.randn(1, 3, 16, 16))
    assert network.macs(Arch(dict.fromkeys(network.widths, 12), network.base.depths)) == (
        counter.get_total_flops() // 2 + 4
    )


FLIPS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "at least": lambda net, x: x * torch.sigmoid(net.gate(x)) if x.shape[1] >= 6 else x,
    "remainder": lambda net, x: torch.relu(x) if x.shape[1] % 8 == 0 else x,
    "truth": lambda net, x: x if x.size(1) % 8 else torch.relu(x),
    "the larger": lambda net, x: x * max(x.shape[1], 6),
    "a table": lambda net, x: x * {8: 2.0}.get(x.shape[1], 1.0),
    "a range": lambda net, x: x * 2 if x.shape[1] in (7, 8) else x,
    "pixels": lambda net, x: x * 2 if x.shape[1] * 2 == x.shape[2] else x,
}


@pytest.mark.parametrize("name", FLIPS)
def test_a_width_that_decides_what_forward_does_is_frozen(name: str) -> None:
    network = examined(around(FLIPS[name], gate=nn.Conv2d(8, 8, 1)))
    assert "one.0" not in network.widths
    assert "two.0" in network.widths
    assert "compares its number of channels" in network.frozen["one.0"]


LOST: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "a root": lambda net, x: x / math.sqrt(x.shape[1]),
    "a power": lambda net, x: x * x.shape[1] ** -0.5,
    "a share": lambda net, x: torch.cat([x[:, : int(x.shape[1] * 0.5)].relu(), x[:, int(x.shape[1] * 0.5) :]], 1),
    "a quotient": lambda net, x: x * 2 if x.shape[1] / x.shape[2] > 0.2 else x,
}


@pytest.mark.parametrize("name", LOST)
def test_a_width_of_which_forward_makes_a_fraction_is_frozen(name: str) -> None:
    network = examined(around(LOST[name]))
    assert "two.0" in network.widths
    assert "makes another number of its number of channels (" in network.frozen["one.0"]
    assert "test_people.py, line" in network.frozen["one.0"]


@pytest.mark.parametrize(
    "step",
    [
        lambda net, x: torch.cat([x[:, : x.shape[1] >> 1].relu(), x[:, x.shape[1] >> 1 :]], 1),
        lambda net, x: x / x.shape[1] ** 2,
        lambda net, x: x.unflatten(1, (1 << 1, -1)).flatten(1, 2) + x.shape[2] / 2,
    ],
)
def test_whole_numbers_of_a_width_keep_it_free(step: Callable[[Any, Tensor], Tensor]) -> None:
    network = examined(around(step))
    assert {"one.0", "two.0"} == set(network.widths)


class Strict(nn.Module):
    """A convolution that checks what it is given."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.in_channels, self.conv = channels, conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        _, c, h, w = x.shape
        if c != self.in_channels:
            raise ValueError(f"{c} channels instead of {self.in_channels}")
        if h % 2 or w % 2:
            raise ValueError("odd")
        out = self.conv(x)
        assert out.shape[2:] == x.shape[2:] and out.size(0) == x.size(0)
        assert c > 0
        return out


def test_checks_of_sizes_keep_widths_free() -> None:
    """A number that a module compares with its input's channels follows them."""

    def checked(net: Any, x: Tensor) -> Tensor:
        assert net.expected == x.shape[1]
        y = net.middle(x)
        assert (x + y).shape == y.shape
        return x + y

    network = examined(around(checked, middle=Strict(8), expected=8))
    assert set(network.frozen) == {"last"}
    assert {"one.0", "two.0"} == set(network.widths)
    small: Any = resize(network, Arch({"one.0": 5, "two.0": 4}, {}))
    assert (small.expected, small.middle.in_channels) == (5, 5)


def test_widths_that_forward_finds_equal_are_one() -> None:
    def alike(net: Any, x: Tensor) -> Tensor:
        one, two = net.left(x), net.right(x)
        return torch.cat([one, two] if one.shape[1] == two.shape[1] else [two, one], 1)

    network = examined(around(alike, after=12, left=layers(8, 6), right=layers(8, 6)))
    assert "right.0" not in network.widths
    assert set(network.frozen) == {"last"}
    assert network.widths["left.0"].base == 6


# -- what the network returns ------------------------------------------------------------------------------------------


class Unlisted:
    def __init__(self, logits: Tensor) -> None:
        self.logits, self.names = logits, ["logits"]


class Slotted:
    __slots__ = ("__hidden", "logits")

    def __init__(self, logits: Tensor) -> None:
        self.logits, self.__hidden = logits, 1


@dataclass
class Comparable:
    logits: Tensor
    extra: Any = None


@dataclass(eq=False)
class Identical:
    logits: Tensor


@dataclass(frozen=True)
class Frozen:
    logits: Tensor


class Pair(NamedTuple):
    logits: Tensor
    names: tuple[str, ...] = ("logits",)


class Attributes(dict[str, Any]):
    def __init__(self, **entries: Any) -> None:
        super().__init__(**entries)
        self.__dict__ = self


class Keyed(OrderedDict[str, Any]):
    """Keys that are attributes too, as in outputs of transformers."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__(logits=logits)
        self.logits = logits

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        super().__setattr__(key, value)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self["logits"],)


HOLDERS: dict[str, Callable[[Tensor], Any]] = {
    "object": Unlisted,
    "slots": Slotted,
    "dataclass": Comparable,
    "dataclass without comparison": Identical,
    "frozen dataclass": Frozen,
    "named tuple": Pair,
    "namespace": lambda logits: SimpleNamespace(logits=logits, size=4),
    "dictionary with attributes": lambda logits: Attributes(logits=logits),
    "dictionary of a class": Keyed,
    "user dictionary": lambda logits: UserDict(logits=logits),
    "object in a list": lambda logits: [Comparable(logits, {"more": Unlisted(logits.softmax(1))})],
    "distribution": lambda logits: torch.distributions.Normal(logits, torch.ones_like(logits), validate_args=False),
}


def returning(holder: Callable[[Tensor], Any]) -> nn.Module:
    return Parts(
        lambda net, x: holder(net.last(net.two(net.one(x)).mean((2, 3)))),
        one=layers(3, 8), two=layers(8, 6), last=nn.Linear(6, 4),
    )  # fmt: skip


@pytest.mark.parametrize("name", HOLDERS)
def test_an_output_may_be_an_object_and_stays_of_its_class(name: str) -> None:
    module = shaken(returning(HOLDERS[name])).eval()
    network = trace(module, torch.randn(IMAGES))
    assert set(network.widths) == {"one.0", "two.0"} and "last" in network.frozen
    space = Space("all", {"one.0": (4, 8), "two.0": (6,)}, {})
    supernet = Supernet(network, space, lambda module: None, norms="shared", mix="pad")
    supernet.inherit(module)
    inputs = torch.randn(IMAGES)
    with torch.no_grad():
        expected, out = module(inputs), supernet.eval()(inputs, Draw.of(network.base, network))
    assert alike(expected, out) and not alike(expected, module(inputs + 1))
    assert type(out) is type(expected)
    projected = trace(module, torch.randn(IMAGES), adds="project")
    assert alike(expected, resize(projected, projected.base).eval()(inputs))
    if hasattr(expected, "logits"):
        assert out.logits.shape == (2, 4) and far(expected.logits, out.logits) <= 1e-4


@pytest.mark.parametrize(
    "holder, words",
    [
        (lambda logits: map(torch.relu, [logits]), "returns a map, which can be read only once: return a list"),
        (lambda logits: (each for each in [logits]), "returns a generator, which can be read only once"),
        (lambda logits: {logits}, "returns a set, which has no order"),
        (lambda logits: lambda: logits, "returns a function in which no tensor can be found"),
        (lambda logits: None, "returns a NoneType in which no tensor can be found"),
    ],
)
def test_outputs_in_which_no_tensor_is_found_are_refused(holder: Callable[[Tensor], Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        trace(returning(holder), torch.randn(IMAGES))


def test_values_of_a_dictionary_are_returned_as_a_list() -> None:
    network = trace(returning(lambda logits: {"logits": logits}.values()), torch.randn(IMAGES))
    assert set(network.widths) == {"one.0", "two.0"}
    assert network.result((torch.zeros(1),)) == [torch.zeros(1)]


def test_nothing_equals_nothing() -> None:
    assert not alike(None, None) and not alike({"a": 1}, {"a": 1}) and alike([torch.ones(1)], [torch.ones(1)])


# -- modules that the network does not hold ----------------------------------------------------------------------------


class Listed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.last = layers(3, 8), nn.Linear(6, 4)
        self.others = [layers(8, 8), layers(8, 6)]

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        for other in self.others:
            x = other(x)
        return self.last(x.mean((2, 3)))


def enclosed() -> nn.Module:
    module = small()
    two = module[1]
    module[1].forward = lambda x: two[2](two[1](two[0](x)))
    return module


@pytest.mark.parametrize(
    "make, words",
    [
        (Listed, r"Listed reads a parameter of a Conv2d of shape \(8, 8, 3, 3\) that it does not hold.*nn.ModuleList"),
        (enclosed, "Sequential reads 1.0.weight through a function that it keeps"),
    ],
)
def test_modules_that_a_network_calls_and_does_not_hold_are_named(make: Callable[[], nn.Module], words: str) -> None:
    with pytest.raises(UserError, match=words):
        trace(make().eval(), torch.randn(IMAGES))


# -- networks that compute something else each time --------------------------------------------------------------------


class Remembering(nn.Module):
    """Counts its runs, and keeps means of what it computes: in a buffer, in a new one, in a tensor, in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.last = layers(3, 8), nn.Linear(8, 4)
        self.register_buffer("runs", torch.zeros(()))
        self.register_buffer("memory", torch.zeros(8))
        self.register_buffer("newest", torch.zeros(8))
        self.tensor, self.listed = torch.zeros(8), [torch.zeros(8)]

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x).mean((2, 3))
        self.runs += 1
        for memory in (self.memory, self.tensor, self.listed[0]):
            memory.mul_(0.9).add_(x.detach().mean(0), alpha=0.1)
        self.newest = x.detach().mean(0)
        return self.last(x + self.memory)


def test_what_a_forward_pass_writes_into_tensors_is_undone() -> None:
    module = Remembering().eval()
    newest = module.newest
    network = trace(module, torch.randn(IMAGES))
    for tensor in (module.runs, module.memory, module.newest, module.tensor, module.listed[0]):
        assert not tensor.any()
    assert module.newest is newest
    assert "one.0" in network.frozen


def test_a_buffer_that_changes_in_eval_mode_is_named() -> None:
    def run(net: Any, x: Tensor) -> Tensor:
        x = net.one(x).mean((2, 3))
        net.memory.mul_(0.9).add_(x.detach().mean(0), alpha=0.1)
        return net.last(x + net.memory)

    module = Parts(run, one=layers(3, 8), last=nn.Linear(8, 4))
    module.register_buffer("memory", torch.zeros(8))
    network = trace(module.eval(), torch.randn(IMAGES))
    assert network.frozen["one.0"] == "the network keeps state: buffer memory changes in eval mode"


@pytest.mark.parametrize("name", ["randn_like", "dropout"])
def test_random_numbers_in_eval_mode_are_named(name: str) -> None:
    step = {"randn_like": lambda net, x: x + torch.randn_like(x), "dropout": lambda net, x: F.dropout(x)}[name]
    network = trace(around(step).eval(), torch.randn(IMAGES))
    assert f"draws random numbers in eval mode ({name})" in network.frozen["one.0"]


def test_numbers_of_layers_that_forward_compares_are_met_at_equal_widths() -> None:
    """No size of a tensor is compared, so only a network at equal widths shows it."""

    class Compared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)
            self.down, self.last = nn.Conv2d(8, 12, 1), nn.Linear(12, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.one(x)
            other = self.down(x) if self.two.in_channels != self.two.out_channels else x
            return self.last((self.two(x) + other).mean((2, 3)))

    assert len(examined(Compared()).widths) < 2
