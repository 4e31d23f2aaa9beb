"""Networks by name, built, measured or inspected without a run: `cifar_resnet:164:bottleneck`, `imagenet_resnet:50`,
`custom:my_nets:make` (a function of your own), and TAS's published ones, `tas:C010-ResNet32`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from htas import metrics, models
from htas.console.progress import progress, shares
from htas.datasets import MOST_CLASSES
from htas.errors import UserError
from htas.files import __version__
from htas.formats.onnx_file import OnnxFile
from htas.graph import Arch, Network, resize, trace
from htas.graph.modes import evaluating
from htas.metrics import Metric
from htas.metrics.latency import MAX_ROUNDS, Latency
from htas.models import ModelFamily
from htas.models.cifar_resnet import CifarResNet
from htas.plugins import find
from htas.run.names import PublishedArch, read_name
from htas.run.rows import counted, measured
from htas.runtimes import open_runtime
from htas.spaces import inspection
from htas.spaces.survey import EACH
from htas.text import TextTable
from htas.timing.measurement import Measurement
from htas.timing.remote.several import check_all
from htas.timing.target import Target

CLASSES = {"cifar10": 10, "cifar100": 100}


def build(name: str, classes: int) -> nn.Module:
    """A named network, weights drawn at random: [N, 3, 32, 32] in, [N, classes] logits out.

    A network of TAS has the classes of its own data set. Raises UserError that names what there is.
    """
    if classes > MOST_CLASSES:
        raise UserError(f"--classes must be {MOST_CLASSES:,} or less, got {classes:,}")
    named = read_name(name)
    if isinstance(named, PublishedArch):
        return tas(named)
    kind: type[Any] = find(models, ModelFamily, named.family)
    network: nn.Module = kind(**named.values).build(classes)
    return network


def sized(network: nn.Module, target: Target) -> nn.Module:
    """The network; one with lazy layers has been run once, on the target's inputs, so that these have their sizes."""
    lazy = nn.modules.lazy.LazyModuleMixin
    if any(isinstance(part, lazy) and part.has_uninitialized_params() for part in network.modules()):
        with evaluating(network), torch.no_grad():
            network(*target.example())
    return network


def tas(facts: PublishedArch) -> nn.Module:
    """A network published with TAS, as its `project` arch of the base ResNet; weights drawn at random."""
    family = CifarResNet(facts.depth, facts.block)
    network = trace(
        family.build(CLASSES[facts.dataset]), torch.zeros(1, 3, 32, 32), adds="project",
        project_norm=family.project_norm,
    )  # fmt: skip
    module = resize(network, tas_arch(network, facts.channels, facts.blocks))
    if facts.block == "bottleneck":  # derived by TAS without the norm that the base network has here
        module.set_submodule("stages.0.0.shortcut.norm", nn.Identity())
    family.reset(module)
    return module


def tas_arch(network: Network, channels: list[int], blocks: list[int]) -> Arch:
    """TAS's lists as an arch: channels[0] is the image, then one entry per searched convolution, cut ones included."""
    sites = [node.site for node in network.nodes if node.kind == "conv" and node.site == node.name]
    assert len(sites) == len(channels) - 1
    return Arch(dict(zip(sites, channels[1:], strict=True)), dict(zip(network.depths, blocks, strict=True)))


@dataclass(frozen=True)
class Figures:
    """The figures that `htas measure NETWORK` prints for one network."""

    network: str
    runtime: str
    latency: Measurement
    macs: int
    params: int
    host: str = ""
    """The machine that it was measured on, target.host; empty for this one."""
    others: Mapping[str, Measurement] = field(default_factory=dict)
    """By the name of a further metric: energy, memory, one of the user's own."""


def measure_networks(
    names: Sequence[str], target: Target, rounds: int, classes: int, others: Sequence[str] = ()
) -> list[Figures]:
    """Named networks on a target, in one interleaved run; then by other metrics, which are named.

    On several hosts one after the other; raises UserError where one of them is missing, before any is measured.
    """
    if len(target.hosts) > 1:
        check_all(target.hosts)
        targets = [replace(target, host=host) for host in target.hosts]
        for one in targets:
            open_runtime(one)  # raises UserError where the device lacks it
        return [each for one in targets for each in measure_networks(names, one, rounds, classes, others)]
    meters = {name: find(metrics, Metric, name)(target) for name in others}  # type: ignore[type-abstract]
    modules = [
        OnnxFile(Path(name), target.batch) if name.endswith(".onnx") else sized(build(name, classes), target)
        for name in names
    ]
    # these first, as a machine without a meter is refused
    readings = {name: measured(meter, modules, f"{name}, %") for name, meter in meters.items()}
    latencies = measured(Latency(target, rounds=rounds), modules, "measure, %")
    counts = [(each.macs, each.count) if isinstance(each, OnnxFile) else counted(each, target) for each in modules]
    return [
        Figures(name, target.runtime, latency, macs, params, target.host, dict(zip(readings, rest, strict=True)))
        for name, latency, (macs, params), *rest in zip(names, latencies, counts, *readings.values(), strict=True)
    ]


def inspect_named(name: str, target: Target, classes: int, folder: Path) -> tuple[Path, TextTable]:
    """`inspect` of a network by name, for images of the target's shape."""
    target.check()
    torch.manual_seed(0)
    network = trace(sized(build(name, classes), target), target.example())
    return inspect(network, target, name, folder)


def inspect(network: Network, target: Target, title: str, folder: Path) -> tuple[Path, TextTable]:
    """Measure where the base network's time goes and what each site could save; the path of inspect.html, a summary."""
    from htas.report.inspection import page

    each = EACH + open_runtime(target).build_seconds
    with progress("inspect, %", 100) as bar:
        inspected = inspection.inspect(
            network, lambda seconds: Latency(target, rounds=MAX_ROUNDS, limit=seconds), each, shares(bar)
        )
    facts = {**target.machine(), **inspected.whole.context, "htas": __version__}
    return page(f"{title}: {target.title}", inspected, facts, folder)
