"""Multiply-adds of attention, of products of activations and of functions are counted, at base and at other widths."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from htas.cost.counts import CountCost
from htas.formats.export import export
from htas.formats.onnx_file import OnnxFile
from htas.graph import Arch, Network, resize, trace
from htas.metrics.macs import Macs, count_macs
from htas.spaces.space import Space
from htas.timing.target import Target

IMAGE = (3, 16, 16)


class Vision(nn.Module):
    """Patches, two blocks of attention and an MLP, and a head over the mean of all tokens."""

    def __init__(self, attention: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 4, 4)
        self.attention = nn.ModuleList(attention() for _ in range(2))
        self.wide, self.narrow = nn.Linear(16, 32), nn.Linear(32, 16, bias=False)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        for attention in self.attention:
            x = x + attention(x)
            x = x + self.narrow(F.gelu(self.wide(x)))
        return self.head(x.mean(1))


class Whole(nn.Module):
    """PyTorch's own module, which in eval mode runs in one piece."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x, x, x, need_weights=False)[0]
        return out


class Heads(nn.Module):
    """Queries, keys and values of four heads, and a product of them."""

    def __init__(self, product: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.product = product
        self.qkv, self.out = nn.Linear(16, 96, bias=False), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        n, count, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, count, 3, 4, -1).permute(2, 0, 3, 1, 4).unbind(0)
        return self.out(self.product(q, k, v).transpose(1, 2).reshape(n, count, -1))


def multiplied(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-2, -1)).softmax(-1) @ v


def summed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.einsum("nhqc,nhkc->nhqk", q, k).softmax(-1)
    return torch.einsum("nhqk,nhkc->nhqc", scores, v)


class Convolutional(nn.Module):
    """Convolutions, then attention between pixels, as in CoAtNet, of a convolution by a function."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1))
        self.attention = Heads(multiplied)
        self.last = nn.Parameter(torch.randn(16, 16, 1, 1))
        self.bias = nn.Parameter(torch.randn(16))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        tokens = x.flatten(2).transpose(1, 2)
        x = x + self.attention(tokens).transpose(1, 2).unflatten(2, x.shape[2:])
        return self.head(F.conv2d(x, self.last, self.bias).mean((2, 3)))


class Asking(nn.Module):
    """Attention to all tokens, of a query that is a parameter and that a module is given."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.query = nn.Conv2d(3, 16, 4, 4), nn.Parameter(torch.randn(1, 1, 16))
        self.asks, self.head = nn.Linear(16, 16, bias=False), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        query = self.asks(self.query.expand(1, -1, -1)).expand(len(x), -1, -1)
        return self.head(F.scaled_dot_product_attention(query, x, x)[:, 0])


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "a module": lambda: Vision(Whole),
    "in one piece": lambda: Vision(lambda: Heads(F.scaled_dot_product_attention)),
    "products": lambda: Vision(lambda: Heads(multiplied)),
    "einsum": lambda: Vision(lambda: Heads(summed)),
    "after convolutions": Convolutional,
    "a query": Asking,
}


def counted(module: nn.Module) -> float:
    """Multiply-adds of an image by PyTorch's own counter, and one for each output of a layer with a bias."""
    biases = [module.last.shape[0] * 16] if isinstance(module, Convolutional) else []  # of 4x4 pixels

    def note(part: nn.Module, _: object, out: Tensor) -> None:
        biases.append(out.numel() if part.bias is not None else 0)

    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            part.register_forward_hook(note)
    module.eval().requires_grad_(False)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            module(torch.zeros(1, *IMAGE))
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    return counter.get_total_flops() / 2 + sum(biases)


def archs(network: Network) -> list[Arch]:
    rng = random.Random(0)
    drawn = [
        {name: rng.randint(1, site.base // site.multiple) * site.multiple for name, site in network.widths.items()}
        for _ in range(3)
    ]
    return [network.base, *(Arch(widths, network.base.depths) for widths in drawn)]


@pytest.mark.parametrize("name", NETWORKS)
def test_the_metric_and_its_cost_count_what_a_pass_takes(name: str) -> None:
    network = trace(NETWORKS[name](), torch.zeros(1, *IMAGE))
    space = Space("all", {site: tuple(range(1, one.base + 1)) for site, one in network.widths.items()}, {})
    metric = Macs(Target(batch=2, threads=1, shapes=(IMAGE,)))
    assert bool(network.widths) or name == "a module"
    for arch in archs(network):
        small = resize(network, arch).eval()
        (reading,) = metric.measure([small])
        certain = {
            site: F.one_hot(torch.tensor(width - 1), network.sites[site].base).double()
            for site, width in arch.widths.items()
        }
        cost = CountCost(network)
        counts = (reading.median, cost.cost(arch), float(cost.expected(space, certain, {})), network.macs(arch))
        assert counts == (counted(small),) * 4


def test_attention_is_a_share_that_counts_and_leaves_pytorch_as_it_was() -> None:
    heads = Heads(multiplied).eval()
    assert count_macs(heads, (100, 16)) == 100 * (16 * 96 + 32 * 16 + 16) + 2 * 100 * 100 * 32
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("name", ["products", "in one piece", "after convolutions"])
def test_products_of_activations_in_an_onnx_file_are_counted(name: str, tmp_path: Path) -> None:
    network = NETWORKS[name]().eval()
    without_biases = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), without_biases:
        network(torch.zeros(1, *IMAGE))
    for batch in (1, 2):
        export(network, torch.zeros(batch, *IMAGE), tmp_path / "network.onnx")
        assert OnnxFile(tmp_path / "network.onnx", batch).macs == without_biases.get_total_flops() / 2


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "mobilevit_xxs", "coatnet_nano_rw_224", "cait_xxs24_224"])
def test_networks_of_timm_have_the_multiply_adds_of_a_pass(name: str) -> None:
    pytest.importorskip("timm", exc_type=ImportError)
    from benchmarks.networks import biases, build

    module, images = build(f"timm:{name}")
    network = trace(module.eval(), images[:1])
    for arch in archs(network)[:2]:
        small = resize(network, arch).eval().requires_grad_(False)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            small(images[:1])
        macs = count_macs(small, tuple(images.shape[1:]))
        assert macs == network.macs(arch) == counter.get_total_flops() // 2 + biases(network, arch)
