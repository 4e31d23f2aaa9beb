"""All networks of tests/zoo can be traced, resized and exported.

docs/models.md is their table: `HTAS_DOCS=write pytest -m "slow or not slow" tests/graph/test_zoo.py` writes it.
"""

import os
import random
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from one_in import one_in
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from zoo import BY_HAND, Entry

from benchmarks.networks import stir
from htas.formats.onnx import network_graph
from htas.graph import Network, ordered, resize, trace
from htas.spaces.layers import widths_of
from htas.spaces.space import Space

pytest.importorskip("torchvision", exc_type=ImportError)
pytest.importorskip("timm", exc_type=ImportError)

from zoo.libraries import FROM_LIBRARIES

ZOO = (*FROM_LIBRARIES, *BY_HAND)
TABLE = Path(__file__).parents[2] / "docs" / "models.md"
LARGE = ("alexnet", "inception_v3")
"""What `make test` does not compute at all: their classes have no narrow form."""
DEEP = (
    "googlenet", "mnasnet", "mobilenet_v3_large", "unet", "fpn", "regnet_x", "regnet_y", "efficientnet", "xception",
    "shufflenet_v2", "resnet34", "resnet50", "densenet",
)  # fmt: skip
"""What `make test` does not resize: of many layers, or of classes without a shallow form."""
EXPORTED = ("siamese", "two_input")
"""What `make test` writes to ONNX: PyTorch's exporter takes longer than all else."""
ARCHS = 8


def entries(slow: Collection[str], without: Collection[str] = ()) -> pytest.MarkDecorator:
    """A test of each network but some, marked `slow` for those of these names and for every other of the rest."""
    marked = [
        pytest.param(e, id=e.name, marks=[pytest.mark.slow] if e.name in slow else [])
        for e in sorted(ZOO, key=lambda e: e.name in slow)
        if e.name not in without
    ]
    return pytest.mark.parametrize("entry", one_in(2, marked))


def tensors(outputs: Any) -> list[Tensor]:
    """All outputs in a row."""
    return tree_leaves(outputs)


def shapes(outputs: Any) -> list[torch.Size]:
    """The shape of each output."""
    return [output.shape for output in tensors(outputs)]


def test_names_are_unique() -> None:
    assert len({entry.name for entry in ZOO}) == len(ZOO)


def traced(entry: Entry) -> tuple[Network, list[Tensor]]:
    """The network, and images for it, to be read only; a large one is not held in memory."""
    return _traced(entry) if entry.name in LARGE else _traced_once(entry)


def _traced(entry: Entry) -> tuple[Network, list[Tensor]]:
    torch.manual_seed(0)
    images = [torch.randn(shape) for shape in entry.shapes]
    module = entry.build().eval()
    stir(module)
    return trace(module, images), images


_traced_once = cache(_traced)


@entries((*LARGE, *DEEP))
@torch.no_grad()
def test_a_network_is_resized_to_any_widths_and_depths(entry: Entry) -> None:
    network, images = traced(entry)
    wanted = tensors(network.module(*images))
    assert all(output.isfinite().all() for output in wanted)
    for found, right in zip(tensors(resize(network, network.base)(*images)), wanted, strict=True):
        assert (found - right).abs().max() <= 1e-5 * max(1.0, right.abs().max().item())
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
    assert network.searchable >= 0.99


@entries([entry.name for entry in ZOO if entry.name not in EXPORTED])
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


OTHERS = {
    "squeezenet1_1": "blocks that may be dropped end alike, which Torch-Pruning does not ask for",
    "regnet_y": "Torch-Pruning loses what a grouped convolution's output is multiplied by",
    "shufflenet_v2": "Torch-Pruning divides by zero",
}


@entries((*LARGE, *DEEP), without=OTHERS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_layers_of_one_width_are_those_that_torch_pruning_would_prune_together(entry: Entry) -> None:
    """A second method: its dependency graph is read off the gradients, not off a record of a run."""
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
    counts = f"{network.params(network.base):,} | {network.macs(network.base):,}"
    free = f"{100 * network.searchable:.1f} %"
    return f"| {entry.name} | {size} | {counts} | {free} | {len(network.widths)} | {len(network.depths)} |"


@entries(LARGE)
def test_the_table_of_models_says_what_is_found(entry: Entry) -> None:
    lines = TABLE.read_text().splitlines() if TABLE.exists() else []
    if os.environ.get("HTAS_DOCS") == "write":
        start = f"| {entry.name} |"
        assert any(line.startswith(start) for line in lines), f"docs/models.md has no line for {entry.name}; add one"
        TABLE.write_text("\n".join(row(entry) if line.startswith(start) else line for line in lines) + "\n")
    assert row(entry) in TABLE.read_text().splitlines()
