"""Networks of other inputs than images, and of other outputs than classes: series, volumes, maps of detections."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from zoo.yolo import yolo11n, yolov8n

from htas.formats.onnx import network_graph
from htas.formats.onnx_network import static_graph, written_graph
from htas.graph import Arch, Network, ordered, resize, trace
from htas.search.draw import Draw
from htas.search.supernet import Supernet
from htas.spaces.layers import widths_of
from htas.spaces.space import Space
from htas.training.layout import placed


def series() -> nn.Module:
    """[N, 3, 64]: a stem, a separable block, a dense one, a transposed convolution, a gate and groups."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Conv1d(3, 16, 7, 2, 3, bias=False), nn.BatchNorm1d(16), nn.ReLU())
            self.pool = nn.MaxPool1d(3, 2, 1)
            self.separable = nn.Sequential(
                nn.Conv1d(16, 16, 5, padding=2, groups=16), nn.BatchNorm1d(16), nn.SiLU(), nn.Conv1d(16, 24, 1)
            )
            self.grow = nn.Conv1d(24, 8, 3, padding=2, dilation=2)
            self.up = nn.ConvTranspose1d(32, 12, 4, 2, 1)
            self.norm = nn.GroupNorm(2, 12)
            self.gate = nn.Sequential(nn.AdaptiveAvgPool1d(1), nn.Conv1d(12, 12, 1), nn.Sigmoid())
            self.average = nn.AvgPool1d(2)
            self.blocks = nn.Sequential(*(nn.Conv1d(12, 12, 3, padding=1) for _ in range(2)))
            self.head = nn.Linear(12, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.separable(self.pool(self.stem(x)))
            x = torch.cat([x, F.relu(self.grow(x))], 1)
            x = self.norm(self.up(x))
            x = self.average(x * self.gate(x))
            x = F.dropout1d(F.pad(self.blocks(x) + x, (1, 1)), 0.1, self.training)
            return self.head(x.mean(-1))

    return Net()


def volumes() -> nn.Module:
    """[N, 2, 8, 16, 16]: as a video network convolves over space, then over time."""

    def both(inputs: int, middle: int, outputs: int, stride: int = 1) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv3d(inputs, middle, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False), nn.BatchNorm3d(middle),
            nn.ReLU(inplace=True), nn.Conv3d(middle, outputs, (3, 1, 1), (stride, 1, 1), (1, 0, 0), bias=False),
            nn.BatchNorm3d(outputs),
        )  # fmt: skip

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(both(2, 6, 8), nn.ReLU(), nn.MaxPool3d((1, 2, 2)))
            self.one, self.two = both(8, 10, 8), both(8, 12, 16, 2)
            self.shortcut = nn.Sequential(nn.Conv3d(8, 16, 1, 2, bias=False), nn.BatchNorm3d(16))
            self.up = nn.ConvTranspose3d(16, 12, 2, 2)
            self.pool = nn.AdaptiveAvgPool3d(1)
            self.head = nn.Linear(12, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            x = F.relu(self.one(x) + x)
            x = F.relu(self.two(x) + self.shortcut(x))
            return self.head(self.pool(self.up(x)).flatten(1))

    return Net()


SLOW = ("yolov8n", "yolo11n")
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], float]] = {
    "series": (series, (3, 64), 1.0),
    "volumes": (volumes, (2, 8, 16, 16), 1.0),
    "yolov8n": (lambda: yolov8n(8), (3, 64, 64), 0.97),
    "yolo11n": (lambda: yolo11n(8), (3, 64, 64), 0.93),
}
"""With the shape of an input, and the share of the multiply-adds that must be free."""


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in NETWORKS],
)
def traced(request: pytest.FixtureRequest) -> tuple[Network, Tensor]:
    build, shape, free = NETWORKS[request.param]
    torch.manual_seed(0)
    module = build().eval()
    for norm in module.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm | nn.GroupNorm):
            for tensor in (*norm.parameters(), *norm.buffers()):
                if tensor.is_floating_point():
                    nn.init.uniform_(tensor, 0.5, 1.0)
    inputs = torch.randn(2, *shape)
    network = trace(module, inputs)
    assert network.searchable >= free
    return network, inputs


def archs(network: Network, count: int) -> list[Arch]:
    rng = random.Random(0)
    space = everything(network)
    return [space.sample(rng, rng.uniform(-3, 1)) for _ in range(count)]


def everything(network: Network) -> Space:
    widths = {name: tuple(widths_of(site, 1.25)) for name, site in network.widths.items()}
    return Space("any", widths, {name: tuple(range(1, site.base + 1)) for name, site in network.depths.items()})


def close(outputs: Any, expected: Any, share: float) -> None:
    """Assert that nests of tensors are equal, but for a share of the largest number."""
    assert len(tree_leaves(outputs)) == len(tree_leaves(expected))
    for one, other in zip(tree_leaves(outputs), tree_leaves(expected), strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() <= share * max(1.0, other.abs().max().item())


@torch.no_grad()
def test_it_computes_the_same_at_base_widths_and_in_another_order(traced: tuple[Network, Tensor]) -> None:
    network, inputs = traced
    expected = network.module(inputs)
    close(resize(network, network.base)(inputs), expected, 1e-5)
    close(ordered(network.module, inputs)(inputs), expected, 1e-4)


def test_its_archs_run_in_both_modes_and_have_the_parameters_foretold(traced: tuple[Network, Tensor]) -> None:
    network, inputs = traced
    for arch in archs(network, 4):
        net = resize(network, arch)
        assert sum(each.numel() for each in net.parameters() if each.requires_grad) == network.params(arch)
        with torch.no_grad():
            expected = network.module(inputs)
            assert [each.shape for each in tree_leaves(net(inputs))] == [each.shape for each in tree_leaves(expected)]
        sum(each.square().mean() for each in tree_leaves(net.train()(inputs))).backward()
        assert all(each.grad is not None for each in net.parameters() if each.requires_grad)


def test_it_is_trained_in_the_layout_of_its_device(traced: tuple[Network, Tensor]) -> None:
    network, inputs = traced
    net = placed(resize(network, network.base), "cpu").train()
    sum(each.square().mean() for each in tree_leaves(net(inputs))).backward()


@torch.no_grad()
def test_its_supernet_equals_each_network_in_it(traced: tuple[Network, Tensor]) -> None:
    network, inputs = traced
    supernet = Supernet(network, everything(network), lambda _: None).eval()
    supernet.inherit(network.module)
    close(supernet(inputs, Draw.of(network.base, network)), network.module(inputs), 1e-4)


def test_a_mixture_of_its_widths_learns(traced: tuple[Network, Tensor]) -> None:
    network, inputs = traced
    space = everything(network)
    supernet = Supernet(network, space, lambda _: None).train()
    supernet.inherit(network.module)
    widths = {site: ((max(2, choices[-1] // 2 // network.widths[site].multiple) * network.widths[site].multiple,
        choices[-1]), (torch.tensor(0.4), torch.tensor(0.6))) for site, choices in space.widths.items()}  # fmt: skip
    depths = {name: torch.full((site.base,), 1 / site.base) for name, site in network.depths.items()}
    sum(each.square().mean() for each in tree_leaves(supernet(inputs, Draw(widths, depths)))).backward()
    assert any(each.grad is not None and bool(each.grad.any()) for each in supernet.parameters())


@torch.no_grad()
def test_half_of_it_is_exported_to_onnx_and_runs(traced: tuple[Network, Tensor]) -> None:
    from onnxruntime import InferenceSession

    network, inputs = traced
    half = {name: max(1, site.base // site.multiple // 2) * site.multiple for name, site in network.widths.items()}
    net = resize(network, Arch(half, network.base.depths)).eval()
    session = InferenceSession(network_graph(net, (inputs,), dynamic=False), providers=["CPUExecutionProvider"])
    outputs = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
    close([torch.from_numpy(each) for each in outputs], net(inputs), 1e-4)


def test_what_a_forward_pass_keeps_on_a_module_are_tensors() -> None:
    module = yolov8n(4).eval()
    trace(module, torch.randn(1, 3, 64, 64))
    assert type(module.model[-1].anchors) is Tensor


@pytest.mark.parametrize(("build", "count"), [(yolov8n, 3_157_200), (yolo11n, 2_624_080)])
def test_a_detector_has_as_many_parameters_as_published(build: Callable[[], nn.Module], count: int) -> None:
    assert sum(each.numel() for each in build().parameters()) == count


@pytest.mark.parametrize(("build", "attention"), [(yolov8n, ()), (yolo11n, ("model.10.",))])
def test_the_backbone_and_neck_of_a_detector_are_free(
    build: Callable[[], nn.Module], attention: tuple[str, ...]
) -> None:
    network = trace(build().eval(), torch.zeros(1, 3, 64, 64))
    head = f"model.{len(network.module.model) - 1}."
    convs = {name: part for name, part in network.module.named_modules() if isinstance(part, nn.Conv2d)}
    layers = [name for name, part in convs.items() if part.groups == 1]  # others are as wide as what they read
    free = {name for site in network.widths.values() for name in site.producers}
    stays = {name for name in layers if name not in free and not name.startswith((*attention, head))}
    assert not stays
    inside = {name for name in layers if name.startswith(head) and name not in free}
    last = {f"{head}{part}.{number}.2" for part in ("cv2", "cv3") for number in range(3)}
    assert inside == last | {f"{head}dfl.conv"}  # its outputs are boxes and classes


def test_blocks_that_share_an_activation_with_other_layers_can_be_dropped() -> None:
    network = trace(yolov8n(4).eval(), torch.zeros(1, 3, 64, 64))
    assert {f"model.22.{part}.{number}.0+" for part in ("cv2", "cv3") for number in range(3)} <= {*network.depths}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["yolov8n", "yolo11n"])
@torch.no_grad()
def test_the_detectors_of_ultralytics_are_searched(name: str) -> None:
    tasks = pytest.importorskip("ultralytics.nn.tasks")
    torch.manual_seed(0)
    module = tasks.DetectionModel(f"{name}.yaml", verbose=False).eval()
    images = torch.randn(1, 3, 64, 64)
    network = trace(module, images)
    assert network.searchable >= 0.9
    close(resize(network, network.base)(images), module(images), 1e-5)
    for arch in archs(network, 2):
        net = resize(network, arch)
        assert sum(each.numel() for each in net.parameters() if each.requires_grad) == network.params(arch)
        assert tree_leaves(net(images))[0].shape == module(images)[0].shape


def test_series_and_volumes_are_written_to_onnx_without_the_exporter() -> None:
    from onnxruntime import InferenceSession

    torch.manual_seed(0)
    line = nn.Sequential(
        nn.Conv1d(3, 8, 5, 2, 2, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.MaxPool1d(2), nn.AvgPool1d(2),
        nn.Conv1d(8, 8, 3, padding=1, groups=8), nn.Dropout1d(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip
    volume = nn.Sequential(
        nn.Conv3d(3, 8, (1, 3, 3), (1, 2, 2), (0, 1, 1)), nn.BatchNorm3d(8), nn.ReLU6(), nn.MaxPool3d((1, 2, 2)),
        nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip
    for net, shape in ((line, (2, 3, 32)), (volume, (2, 3, 4, 16, 16))):
        inputs = torch.randn(shape)
        content = written_graph(net.eval(), (inputs,))
        assert content is not None and static_graph(net, (inputs,)) == content
        (output,) = InferenceSession(content, providers=["CPUExecutionProvider"]).run(None, {"input0": inputs.numpy()})
        with torch.no_grad():
            close(torch.from_numpy(output), net(inputs), 1e-5)
