"""Pools have a layer, of the right sizes, whether a module computes them or a function."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from htas.cost.tables import ParameterSum
from htas.graph import Arch, resize, trace
from htas.graph.layer import CONVS, Layer

Pool = Callable[[Tensor], Tensor]
SIZES: dict[int, tuple[int, ...]] = {1: (12,), 2: (9, 12), 3: (4, 6, 9)}
"""Of the pixels, by their number of dimensions."""


class Pooled(nn.Module):
    """Two convolutions with a pool between them."""

    def __init__(self, dims: int, pool: Pool) -> None:
        super().__init__()
        self.stem, self.pool = CONVS[dims](3, 8, 3, padding=1), pool
        self.last = CONVS[dims](8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.pool(self.stem(x)))
        return out.flatten(1)


ALIKE: dict[str, tuple[int, nn.Module, Pool]] = {
    "1-d maximum": (1, nn.MaxPool1d(3, 2, 1), lambda x: F.max_pool1d(x, 3, 2, 1)),
    "1-d maximum of torch": (1, nn.MaxPool1d(2), lambda x: torch.max_pool1d(x, 2)),
    "1-d average": (1, nn.AvgPool1d(3, 2, 1), lambda x: F.avg_pool1d(x, 3, 2, 1)),
    "1-d average of torch": (1, nn.AvgPool1d(2), lambda x: torch.avg_pool1d(x, 2)),
    "1-d adaptive": (1, nn.AdaptiveAvgPool1d(4), lambda x: F.adaptive_avg_pool1d(x, 4)),
    "1-d of all pixels": (1, nn.AdaptiveAvgPool1d(1), lambda x: torch.adaptive_avg_pool1d(x, 1)),
    "1-d, up": (1, nn.MaxPool1d(5, 3, ceil_mode=True), lambda x: F.max_pool1d(x, 5, 3, ceil_mode=True)),
    "maximum": (2, nn.MaxPool2d(3, 2, 1), lambda x: F.max_pool2d(x, 3, 2, 1)),
    "maximum of torch": (2, nn.MaxPool2d((2, 3)), lambda x: torch.max_pool2d(x, (2, 3))),
    "dilated": (2, nn.MaxPool2d(2, 1, 0, 2), lambda x: F.max_pool2d(x, 2, stride=1, dilation=2)),
    "with places": (2, nn.MaxPool2d(2), lambda x: F.max_pool2d(x, 2, return_indices=True)[0]),
    "average": (2, nn.AvgPool2d(3, 2, 1), lambda x: F.avg_pool2d(x, kernel_size=3, stride=2, padding=1)),
    "average of all pixels": (2, nn.AvgPool2d((9, 12)), lambda x: F.avg_pool2d(x, x.shape[2:])),
    "adaptive": (2, nn.AdaptiveAvgPool2d((3, 5)), lambda x: F.adaptive_avg_pool2d(x, (3, 5))),
    "adaptive maximum": (2, nn.AdaptiveMaxPool2d(4), lambda x: F.adaptive_max_pool2d(x, 4)),
    "adaptive to more": (2, nn.AdaptiveAvgPool2d((10, 6)), lambda x: F.adaptive_avg_pool2d(x, (10, 6))),
    "of all pixels": (2, nn.AdaptiveAvgPool2d(1), lambda x: F.adaptive_avg_pool2d(x, 1)),
    "up": (2, nn.MaxPool2d(3, 2, ceil_mode=True), lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True)),
    "up, padded": (2, nn.MaxPool2d(2, 2, 1, ceil_mode=True), lambda x: F.max_pool2d(x, 2, 2, 1, ceil_mode=True)),
    "average, up": (2, nn.AvgPool2d(2, 3, ceil_mode=True), lambda x: F.avg_pool2d(x, 2, 3, 0, True)),
    "3-d maximum": (3, nn.MaxPool3d((1, 2, 2)), lambda x: F.max_pool3d(x, (1, 2, 2))),
    "3-d maximum of torch": (3, nn.MaxPool3d(2), lambda x: torch.max_pool3d(x, 2)),
    "3-d average": (3, nn.AvgPool3d(2), lambda x: F.avg_pool3d(x, 2)),
    "3-d adaptive": (3, nn.AdaptiveAvgPool3d((2, 2, 3)), lambda x: F.adaptive_avg_pool3d(x, (2, 2, 3))),
    "3-d of all pixels": (3, nn.AdaptiveAvgPool3d(1), lambda x: F.adaptive_avg_pool3d(x, 1)),
    "3-d, up": (3, nn.MaxPool3d(2, ceil_mode=True), lambda x: F.max_pool3d(x, 2, ceil_mode=True)),
}


def pools(module: nn.Module, *shape: int) -> list[Layer]:
    """The layers of a network's pools."""
    network = trace(module, torch.randn(1, *shape))
    return [use.layer for use in network.uses(network.base) if "pool" in use.layer.op]


@pytest.mark.parametrize("name", ALIKE)
def test_a_pool_has_the_layer_of_its_module_and_makes_as_many_pixels(name: str) -> None:
    dims, module, function = ALIKE[name]
    real = module(torch.randn(1, 8, *SIZES[dims])).shape[2:]
    (layer,) = pools(Pooled(dims, function), 3, *SIZES[dims])
    assert pools(Pooled(dims, module), 3, *SIZES[dims]) == [layer]
    assert (layer.inputs, layer.outputs, layer.output_size) == (8, 8, tuple(real))
    assert layer.build()(*layer.example(2)).shape == (2, 8, *real)


@pytest.mark.parametrize("name", ["1-d adaptive", "adaptive", "adaptive maximum", "3-d adaptive", "3-d of all pixels"])
def test_an_adaptive_pool_reads_all_pixels(name: str) -> None:
    dims, _, function = ALIKE[name]
    (layer,) = pools(Pooled(dims, function), 3, *SIZES[dims])
    assert layer.size == SIZES[dims]


def test_a_pool_is_charged_at_the_width_of_an_arch_as_the_resized_network_runs_it() -> None:
    network = trace(Pooled(2, lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True)), torch.randn(1, 3, 9, 12))
    arch = Arch({"stem": 6}, {})
    (charged,) = (each.at(read, made) for each, read, made in ParameterSum(network).layers(arch) if "pool" in each.op)
    shapes: list[tuple[int, ...]] = []
    small = resize(network, arch)
    small.last.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape)))
    small(torch.randn(1, 3, 9, 12))
    assert shapes == [(1, charged.outputs, *charged.output_size)]


class Beside(nn.Module):
    """A pool to the size of another tensor, joined with it."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, 2, 1)
        self.last = nn.Conv2d(16, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        y = self.two(x)
        return self.last(torch.cat([F.adaptive_avg_pool2d(x, y.shape[2:]), y], 1)).flatten(1)


class Windows(nn.Module):
    """A pool of windows [N x windows, C, 4, 4], whose rows do not meet."""

    def __init__(self, pool: Pool) -> None:
        super().__init__()
        self.stem, self.pool = nn.Conv2d(3, 8, 3, padding=1), pool

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        n, c, h, w = x.shape
        x = x.view(n, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 1, 3, 5)
        return self.pool(x.reshape(-1, c, 4, 4)).reshape(n, -1)


def test_a_pool_may_read_another_tensor_for_its_sizes() -> None:
    assert pools(Beside(), 3, 8, 12) == [Layer("avg_pool", 8, 8, (8, 12), (2, 2), (2, 2))]


@pytest.mark.parametrize("pool", [nn.MaxPool2d(3), lambda x: F.max_pool2d(x, 3), nn.AdaptiveMaxPool2d((1, 2))])
def test_windows_that_count_as_images_stand_one_below_the_other(pool: Any) -> None:
    real = pool(torch.randn(6, 8, 4, 4)).shape
    (layer,) = pools(Windows(pool), 3, 8, 12)
    assert layer.output_size == (6 * real[2], real[3])


def test_a_pool_of_pixels_that_stay_as_many_takes_no_time() -> None:
    assert pools(Pooled(2, nn.AdaptiveAvgPool2d((9, 12))), 3, 9, 12) == []


def test_only_the_maxima_have_a_layer_and_not_their_places() -> None:
    def places(x: Tensor) -> Tensor:
        maxima, indices = F.max_pool2d(x, 2, return_indices=True)
        return maxima + 0 * indices

    assert pools(Pooled(2, places), 3, 9, 12) == [Layer("max_pool", 8, 8, (9, 12), (2, 2), (2, 2))]
    assert pools(Pooled(2, lambda x: F.adaptive_max_pool2d(x, 3, return_indices=True)[0]), 3, 9, 12) == [
        Layer("max_pool", 8, 8, (9, 12), (3, 4), (3, 4))
    ]
