"""The networks of tests/zoo are the published ones, and all of them can be traced, resized and exported.

docs/models.md is their table: `HTAS_DOCS=write pytest -m "slow or not slow" tests/test_zoo.py` writes it anew.
"""

import os
import random
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn
from zoo import ZOO, Entry

from htas.formats.onnx import network_graph
from htas.graph import Network, ordered, resize, trace
from htas.spaces.layers import widths_of
from htas.spaces.space import Space
from htas.text import significant

TABLE = Path(__file__).parents[2] / "docs" / "models.md"
QUICK = ("resnet18", "mobilenet_v3_small", "squeezenet1_1", "unet", "fpn", "siamese", "two_input")
"""What `make test` samples."""
LARGE = (
    "alexnet", "vgg11_bn", "vgg16_bn", "resnet34", "resnet50", "wide_resnet50_2", "resnext50_32x4d", "se_resnet50",
    "densenet121", "mobilenet_v3_large", "convnext_tiny", "inception_v3", "xception",
)  # fmt: skip
"""What `make test` does not compute at all; the others have their parts."""
ARCHS = 8
KINDS = ("vgg", "resnet", "densenet", "mobilenet_v2", "mobilenet_v3", "regnet", "convnext")
"""Of which at least 95 % can be searched."""

each = pytest.mark.parametrize("entry", [pytest.param(entry, id=entry.name) for entry in ZOO])
small = pytest.mark.parametrize(
    "entry", [pytest.param(e, id=e.name, marks=[pytest.mark.slow] if e.name in LARGE else []) for e in ZOO]
)


def without_memory(entry: Entry) -> nn.Module:
    """The network in eval mode, without weights."""
    with torch.device("meta"):
        return entry.build().eval()


def shapes(outputs: Tensor | tuple[Tensor, ...]) -> list[torch.Size]:
    """The shape of each output."""
    return [output.shape for output in (outputs if isinstance(outputs, tuple) else (outputs,))]


def test_names_are_unique() -> None:
    assert len({entry.name for entry in ZOO}) == len(ZOO)


@each
def test_a_kind_is_the_file_that_defines_the_network(entry: Entry) -> None:
    assert entry.build.__module__ == f"zoo.{entry.kind}"


@pytest.mark.parametrize("entry", [pytest.param(entry, id=entry.name) for entry in ZOO if entry.params is not None])
def test_a_network_has_as_many_parameters_as_published(entry: Entry) -> None:
    parameters = without_memory(entry).parameters()
    assert sum(parameter.numel() for parameter in parameters if parameter.requires_grad) == entry.params


@each
def test_torch_fx_follows_a_network(entry: Entry) -> None:
    network = without_memory(entry)
    graph = fx.symbolic_trace(network)
    inputs = [torch.empty(shape, device="meta") for shape in entry.shapes]
    with torch.no_grad():
        assert shapes(graph(*inputs)) == shapes(network(*inputs))


@small
def test_a_network_computes_finite_numbers(entry: Entry) -> None:
    network = entry.build().eval()
    with torch.no_grad():
        outputs = network(*(torch.randn(shape) for shape in entry.shapes))
    for output in outputs if isinstance(outputs, tuple) else (outputs,):
        assert output.isfinite().all()


# -- traced, resized, exported -----------------------------------------------------------------------------------------

some = pytest.mark.parametrize(
    "entry", [pytest.param(e, id=e.name, marks=[] if e.name in QUICK else [pytest.mark.slow]) for e in ZOO]
)


def traced(entry: Entry) -> tuple[Network, list[Tensor]]:
    """The network, and images for it, to be read only; one of QUICK is traced once for all tests."""
    return _traced_once(entry) if entry.name in QUICK else _traced(entry)


@cache
def _traced_once(entry: Entry) -> tuple[Network, list[Tensor]]:
    return _traced(entry)


def _traced(entry: Entry) -> tuple[Network, list[Tensor]]:
    torch.manual_seed(0)
    images = [torch.randn(shape) for shape in entry.shapes]
    return trace(entry.build().eval(), images), images


def tensors(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


@some
@torch.no_grad()
def test_a_network_is_resized_to_any_widths_and_depths(entry: Entry) -> None:
    network, images = traced(entry)
    wanted = tensors(network.module(*images))
    for found, right in zip(tensors(resize(network, network.base)(*images)), wanted, strict=True):
        assert (found - right).abs().max() <= 1e-5
    for found, right in zip(tensors(ordered(network.module, images)(*images)), wanted, strict=True):
        assert (found - right).abs().max() <= 1e-4 * max(1.0, right.abs().max().item())
    assert network.params(network.base) == sum(p.numel() for p in network.module.parameters() if p.requires_grad)
    widths = {name: tuple(widths_of(site, 1.25)) for name, site in network.widths.items()}
    space = Space("any", widths, {name: tuple(range(1, site.base + 1)) for name, site in network.depths.items()})
    rng = random.Random(0)
    for _ in range(ARCHS):
        arch = space.sample(rng, rng.uniform(-4, 1))
        net = resize(network, arch)
        assert shapes(net(*images)) == shapes(wanted)
        assert sum(p.numel() for p in net.parameters() if p.requires_grad) == network.params(arch)
    if entry.kind in KINDS:
        assert network.searchable >= 0.95


@some
@torch.no_grad()
def test_a_resized_network_is_exported_to_onnx_and_runs(entry: Entry) -> None:
    from onnxruntime import InferenceSession

    network, images = traced(entry)
    half = {name: max(1, site.base // site.multiple // 2) * site.multiple for name, site in network.widths.items()}
    net = resize(network, type(network.base)(half, network.base.depths)).eval()
    session = InferenceSession(network_graph(net, tuple(images), dynamic=False), providers=["CPUExecutionProvider"])
    found = session.run(None, {node.name: x.numpy() for node, x in zip(session.get_inputs(), images, strict=True)})
    for own, right in zip(found, tensors(net(*images)), strict=True):
        assert (torch.from_numpy(own) - right).abs().max() <= 1e-4 * max(1.0, right.abs().max().item())


BLOCKS_ALIKE = "blocks that may be dropped end alike, which Torch-Pruning does not ask for"
OTHERS = {
    "squeezenet1_1": BLOCKS_ALIKE,
    "inception_v3": BLOCKS_ALIKE,
    "regnet_y_400mf": "Torch-Pruning loses what a grouped convolution's output is multiplied by",
    "shufflenet_v2_x1_0": "Torch-Pruning divides by zero",
}


@pytest.mark.parametrize(
    "entry",
    [
        pytest.param(entry, id=entry.name, marks=[pytest.mark.slow] if entry.name in LARGE else [])
        for entry in ZOO
        if entry.name not in OTHERS
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_layers_of_one_width_are_those_that_torch_pruning_would_prune_together(entry: Entry) -> None:
    """A second method: its dependency graph is read off the gradients, not off torch.fx."""
    torch_pruning = pytest.importorskip("torch_pruning")
    network, images = traced(entry)
    graph = torch_pruning.DependencyGraph().build_dependency(network.module, example_inputs=tuple(images))
    names = {part: name for name, part in network.module.named_modules()}
    for site in network.widths.values():
        module = network.module.get_submodule(site.producers[0])
        group = graph.get_pruning_group(module, graph.get_pruner_of_module(module).prune_out_channels, idxs=[0])
        producers = {
            names[each.target.module]
            for each, _ in group
            if isinstance(each.target.module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)
            and graph.is_out_channel_pruning_fn(each.handler)
            and (getattr(each.target.module, "groups", 1) == 1 or names[each.target.module] in site.producers)
        }
        assert producers == set(site.producers)


def row(entry: Entry) -> str:
    """The line of docs/models.md."""
    network, _ = traced(entry)
    size = " and ".join("x".join(map(str, shape[1:])) for shape in entry.shapes)
    count = f"{network.params(network.base) / 1e6:.2f} M" + ("" if entry.params else " (reduced)")
    macs = f"{significant(network.macs(network.base) / 1e9)} G"
    free = f"{100 * network.searchable:.1f} %"
    return f"| {entry.name} | {size} | {count} | {macs} | {free} | {len(network.widths)} | {len(network.depths)} |"


@some
def test_the_table_of_models_says_what_is_found(entry: Entry) -> None:
    lines = TABLE.read_text().splitlines() if TABLE.exists() else []
    if os.environ.get("HTAS_DOCS") == "write":
        start = f"| {entry.name} |"
        assert any(line.startswith(start) for line in lines), f"docs/models.md has no line for {entry.name}; add one"
        TABLE.write_text("\n".join(row(entry) if line.startswith(start) else line for line in lines) + "\n")
    assert row(entry) in TABLE.read_text().splitlines()
