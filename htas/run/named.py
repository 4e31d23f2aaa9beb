"""Networks by name, measured or inspected without a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from htas import metrics
from htas.console.progress import progress, shares
from htas.files import __version__
from htas.formats.onnx_file import OnnxFile
from htas.graph import Network, trace
from htas.metrics import Metric
from htas.metrics.latency import MAX_ROUNDS, Latency
from htas.plugins import find
from htas.run import networks
from htas.run.rows import counted
from htas.runtimes import open_runtime
from htas.spaces import inspection
from htas.spaces.survey import EACH
from htas.text import TextTable
from htas.timing.measurement import Measurement
from htas.timing.target import Target, machine


@dataclass(frozen=True)
class Figures:
    """The figures that `htas measure NETWORK` prints for one network."""

    network: str
    runtime: str
    latency: Measurement
    macs: int
    params: int
    others: Mapping[str, Measurement] = field(default_factory=dict)
    """By the name of a further metric: energy, memory, one of the user's own."""


def measure_networks(
    names: Sequence[str], target: Target, rounds: int, classes: int, others: Sequence[str] = ()
) -> list[Figures]:
    """Named networks on a target, in one interleaved run; then by other metrics, which are named."""
    meters = {name: find(metrics, Metric, name)(target) for name in others}  # type: ignore[type-abstract]
    modules = [
        OnnxFile(Path(name), target.batch) if name.endswith(".onnx") else networks.build(name, classes)
        for name in names
    ]
    measured = {}
    for name, meter in meters.items():  # first, as a machine without a meter is refused
        with progress(f"{name}, %", 100) as bar:
            measured[name] = meter.measure(modules, on_round=shares(bar))
    with progress("measure, %", 100) as bar:
        latencies = Latency(target, rounds=rounds).measure(modules, on_round=shares(bar))
    counts = [(each.macs, each.count) if isinstance(each, OnnxFile) else counted(each, target) for each in modules]
    return [
        Figures(name, target.runtime, latency, macs, params, dict(zip(measured, rest, strict=True)))
        for name, latency, (macs, params), *rest in zip(names, latencies, counts, *measured.values(), strict=True)
    ]


def inspect_named(name: str, target: Target, classes: int, folder: Path) -> tuple[Path, TextTable]:
    """`inspect` of a network by name, for images of the target's shape."""
    target.check()
    torch.manual_seed(0)
    network = trace(networks.build(name, classes), target.example())
    return inspect(network, target, name, folder)


def inspect(network: Network, target: Target, title: str, folder: Path) -> tuple[Path, TextTable]:
    """Measure where the base network's time goes and what each site could save; the path of inspect.html, a summary."""
    from htas.report.inspection import page

    runtime = open_runtime(target)
    with progress("inspect, %", 100) as bar:
        inspected = inspection.inspect(
            network,
            lambda seconds: Latency(target, rounds=MAX_ROUNDS, limit=seconds),
            EACH + runtime.build_seconds,
            shares(bar),
        )
    facts = {**machine(), **inspected.whole.context, "htas": __version__}
    texts = [(name, str(value)) for name, value in facts.items()]
    return page(f"{title}: {target.device}, {target.runtime}", inspected, texts, folder)
