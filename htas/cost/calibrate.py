"""From measured layers to whole networks: a table of every layer at pairs of widths, and the fit of networks on it.

Networks are read by themselves, as they are wherever they are compared: among hundreds of layers each finds the caches
filled by others, and of a network of many small layers that is a larger share (docs/decisions.md). Which terms the fit
has (one scale, a scale for every kind of operator, a constant for every layer) is decided by the error on networks
that the fit has not seen; that error is kept with the fit.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil

import numpy as np

from htas.cost.fit import FittedCalibration, Floats, fit
from htas.cost.record import CalibrationRecord, FitRecord, NetworkRecord
from htas.cost.tables import Table, TableCost, pairs, thinned
from htas.errors import UserError
from htas.formats.onnx_written import is_written
from htas.graph import Network, resize
from htas.graph.arch import Arch
from htas.graph.layer import Layer, Template
from htas.metrics import Metric, OnRound
from htas.metrics.latency import CHEAP, Latency
from htas.runtimes import Runtime
from htas.spaces.sampling import DEAR, SLOW
from htas.spaces.space import Space
from htas.timing.measurement import Measurement

EACH = 0.05
"""Seconds for each pair of widths of each distinct layer, unless calibrate.seconds says otherwise."""


TWICE = 2
"""... and for building them: a chain is two programs."""


WHOLE = 1.0
"""... and for each whole network."""


TURNS, TURNS_WHOLE = 1, 60
"""... or so many times what the base network takes, by the survey, where that is more."""


FEW = 4
"""Widths of a site, where building a layer takes seconds; and half as many networks."""


SOME = 16
"""Networks, where building is DEAR."""


EXPORTED = 1200
"""Layers of all networks together, where PyTorch exports these: a core of an EPYC exports thirty a second."""


ODD, MEND = 1.15, 1.25
"""A layer that takes so many times what others of its inputs and of its outputs would have it take is read on, as its
program may be a slow one; and what is still so far off is taken from these."""


POLISHING = 20


MENDED = 0.05
"""Share of the layers that may be mended without a doubt."""


UNSURE = 0.02
"""Relative standard error of a layer that is read on."""


THIN = 5
"""Input widths of a site, where building a layer is DEAR: what a layer takes grows evenly with these."""


DRAWN = 40
"""Random archs from which one that is to be measured is taken, so that their costs are spread evenly."""


FLOAT, COPIES, SHARE = 4, 5, 0.4
"""Bytes of a weight; how often it is in memory while its network is measured, in PyTorch's, the exported and the
runtime's copy, packed, and built anew; and the share of what is free that networks may fill at once."""


@dataclass(frozen=True)
class Calibrate:
    """How layers at pairs of widths, and whole networks, are measured."""

    networks: int = 24
    """Whole networks that the sums of layers are calibrated against, and their error is told from."""
    widths: int = 16
    """Widths of a site, as input and as output, at which layers are measured at most; others are interpolated."""
    seconds: float = 0.0
    """Seconds that measuring takes at most; 0 means 0.05 for each pair of widths of each distinct layer and 1 for each
    network, or 1 and 60 times what the base network takes, where that is more; what is given is shared alike."""

    def __post_init__(self) -> None:
        if self.networks < 4:
            raise UserError(f"calibrate.networks must be 4 or more, got {self.networks}")
        if self.widths < 2:
            raise UserError(f"calibrate.widths must be 2 or more, got {self.widths}")
        if not self.seconds >= 0:
            raise UserError(f"calibrate.seconds must be 0 (the default) or more, got {self.seconds}")

    def limits(self, layers: int, building: float = 0.0, base: float = 0.0) -> tuple[float, float]:
        """Seconds for so many layers, each of which takes so long to build, and for the networks, of which the base
        takes about so long."""
        building *= TWICE if building <= CHEAP else 1  # what takes longer is built once
        parts = (max(EACH, TURNS * base) + building) * layers, max(WHOLE, TURNS_WHOLE * base) * self.networks
        share = self.seconds / sum(parts) if self.seconds else 1.0
        return parts[0] * share, parts[1] * share


def sparing(options: Calibrate, network: Network, runtime: Runtime) -> Calibrate:
    """The options with fewer widths where a layer takes seconds to build, and fewer networks where these take long to
    export, so that a survey and a calibration of a CIFAR ResNet take three minutes at most, however deep it is."""
    widths, networks = options.widths, options.networks
    if runtime.build_seconds >= SLOW:
        widths, networks = min(widths, FEW), min(networks, 2 * FEW)
    if runtime.build_seconds >= DEAR:
        networks = min(networks, SOME)
    few = max(2 * FEW, EXPORTED // len(network.uses(network.base)))
    if runtime.exports and few < networks and not is_written(network.module, runtime.target.example()):
        networks = few
    return replace(options, widths=widths, networks=networks)


def cells(network: Network, spaces: Sequence[Space], most: int, building: float = 0.0) -> dict[Template, list[Layer]]:
    """Every layer to measure, by template; an operator that treats each channel alike has one for each width.

    `building` is the seconds that it takes to build one.
    """
    layers = {}
    for template, (all_inputs, outputs) in pairs(network, spaces, most).items():
        inputs = thinned(all_inputs, THIN) if building >= DEAR else all_inputs
        sizes = (
            [(o, o) for o in sorted(outputs)]
            if template.keeps_width
            else [(i, o) for i in sorted(inputs) for o in sorted(outputs)]
        )
        layers[template] = [template.at(i, o) for i, o in sizes]
    return layers


def spread(network: Network, spaces: Sequence[Space], count: int, seed: int) -> list[Arch]:
    """The base, and random archs of the spaces whose multiply-adds are spread evenly; always the same for a seed."""
    rng = random.Random(seed)
    archs = [space.sample(rng, rng.uniform(-5, 5)) for space in spaces for _ in range(DRAWN * count // len(spaces))]
    ordered = sorted(dict.fromkeys(archs), key=network.macs)
    costs = np.asarray([network.macs(arch) for arch in ordered])
    aims = np.linspace(costs[0], costs[-1], count - 1)
    nearest = [ordered[int(np.abs(costs - aim).argmin())] for aim in aims]
    return list(dict.fromkeys([network.base, *nearest]))


def calibrate(
    network: Network,
    spaces: Sequence[Space],
    metrics: tuple[Metric, Metric],
    options: Calibrate,
    *,
    seed: int,
    building: float = 0.0,
    base: float = 0.0,
    on_round: OnRound | None = None,
) -> CalibrationRecord:
    """Measure layers by the first metric, then networks by the second, and fit; `cost_model` makes a cost of it."""
    by_template = cells(network, spaces, options.widths, building)
    layers = list(dict.fromkeys(layer for mine in by_template.values() for layer in mine))
    archs = spread(network, spaces, options.networks, seed)
    parts = _parts(on_round, options.limits(len(layers), building, base))
    measurements = metrics[0].measure(
        layers, on_round=parts[0], pending=lambda so_far: _pending(by_template, layers, so_far)
    )
    readings = dict(zip(layers, measurements, strict=True))
    mends = {template: mended(table(mine, readings)) for template, mine in by_template.items()}
    tables = {template: mended_table for template, (mended_table, _) in mends.items()}
    slow = sum(number for _, number in mends.values())
    measured = whole(network, archs, metrics[1], parts[1])
    fitted = fit(network, tables, archs, [each.estimate for each in measured])
    return CalibrationRecord(
        **vars(_fitted(fitted, archs, measured, metrics[1].unit)),
        tables={template.key: table for template, table in tables.items()},
        layers=len(layers),
        mended=slow,
        doubts=tuple(dict.fromkeys([*_said([*readings.values()]), *_said(measured), *_mends(slow, len(layers))])),
    )


def _pending(
    by_template: Mapping[Template, Sequence[Layer]], layers: Sequence[Layer], readings: Sequence[Measurement]
) -> set[int]:
    """The numbers of layers to read on: those that are unsure, and those that are odd beside their neighbours."""
    by_layer = dict(zip(layers, readings, strict=True))
    odd = {layer for mine in by_template.values() for layer in _odd(mine, by_layer)}
    return {
        number
        for number, layer in enumerate(layers)
        if layer in odd or by_layer[layer].error > UNSURE * abs(by_layer[layer].estimate)
    }


def _odd(layers: Sequence[Layer], readings: Mapping[Layer, Measurement]) -> Iterator[Layer]:
    """Layers of one template that take more than their rows and columns in common would have them."""
    grid = table(layers, readings)
    for i, o in np.argwhere(np.asarray(grid.values) > ODD * polished(grid)).tolist():
        yield layers[0].template.at(grid.inputs[i], grid.outputs[o]) if len(grid.inputs) > 1 else layers[o]


def polished(grid: Table) -> Floats:
    """What each cell would be if every row were in proportion to the others: a median polish of logarithms (Tukey).

    A few cells that are far too high do not touch it. Tables of one or two rows stay as they are.
    """
    values = np.asarray(grid.values, float)
    if min(values.shape) < 3:
        return values
    logs = np.log(np.maximum(values, 1e-3 * np.median(values)))
    rows, columns = np.zeros((len(values), 1)), np.zeros(values.shape[1])
    for _ in range(POLISHING):
        rows = np.median(logs - columns, axis=1, keepdims=True)
        columns = np.median(logs - rows, axis=0)
    product: Floats = np.exp(rows + columns)
    return product


def mended(grid: Table) -> tuple[Table, int]:
    """The table with cells that are far too high as the others would have them, and how many these are."""
    values, fair = np.asarray(grid.values, float), polished(grid)
    slow = values > MEND * fair
    return replace(grid, values=tuple(map(tuple, np.where(slow, fair, values).tolist()))), int(slow.sum())


def _mends(slow: int, layers: int) -> list[str]:
    if slow <= MENDED * layers:
        return []
    return [
        f"{slow} of {layers} layers took far more than others of their inputs and outputs, which stand in for them; "
        "calibrate.seconds gives them more time"
    ]


def _said(readings: Sequence[Measurement]) -> list[str]:
    """What is remarked of every one of them."""
    first, *others = readings
    return [remark for remark in first.remarks if all(remark in other.remarks for other in others)]


def fit_metric(
    network: Network, record: CalibrationRecord, metric: Metric, on_round: OnRound | None = None
) -> FitRecord:
    """Another metric's figures of a calibration's networks, fitted on the same layers' latencies.

    Energy is power times time, and the power differs between kinds of operators.
    """
    archs = [each.arch for each in record.networks]
    measured = whole(network, archs, metric, on_round)
    result = fit(network, _tables(record), archs, [each.estimate for each in measured])
    return _fitted(result, archs, measured, metric.unit)


def whole(
    network: Network, archs: Sequence[Arch], metric: Metric, on_round: OnRound | None = None, free: float = 0.0
) -> list[Measurement]:
    """Of networks, the base first: all in one run, or, where they do not fit into the `free` bytes (0: what this
    machine has free), in several, each with the base, by whose readings they are brought to one level."""
    import psutil

    by_arch: dict[Arch, Measurement] = {}
    together = lots(network, archs, free or psutil.virtual_memory().available)
    for number, lot in enumerate(together):
        part = replace(metric, limit=metric.limit * len(lot) / len(archs)) if isinstance(metric, Latency) else metric
        base, *others = part.measure(
            [resize(network, arch) for arch in lot], on_round=_part(on_round, number, len(together))
        )
        level = by_arch.setdefault(archs[0], base).estimate / base.estimate
        by_arch |= {arch: reading.scaled(level) for arch, reading in zip(lot[1:], others, strict=True)}
    return [by_arch[arch] for arch in archs]


def lots(network: Network, archs: Sequence[Arch], free: float) -> list[list[Arch]]:
    """The archs in as few parts as fit into so many bytes, large and small ones in each, the first of all in each."""
    base, *others = archs
    size = sum(FLOAT * COPIES * network.params(arch) for arch in archs)
    parts = min(max(1, ceil(size / (SHARE * free))), max(1, len(others)))
    return [[base, *others[number::parts]] for number in range(parts)]


def _part(on_round: OnRound | None, number: int, count: int) -> OnRound | None:
    """One of several runs that are heard as one."""
    if on_round is None:
        return None
    tell = on_round
    return lambda share, figures: tell((number + share) / count, figures)


def _fitted(result: FittedCalibration, archs: Sequence[Arch], measured: Sequence[Measurement], unit: str) -> FitRecord:
    networks = tuple(
        NetworkRecord(arch, reading.estimate, reading.standard_error, held_out)
        for arch, reading, held_out in zip(archs, measured, result.held_out, strict=True)
    )
    return FitRecord(unit, dict(measured[0].context), result.calibration, result.form, networks)


def _tables(record: CalibrationRecord) -> dict[Template, Table]:
    return {Template.of(key): table for key, table in record.tables.items()}


def _parts(on_round: OnRound | None, seconds: tuple[float, float]) -> tuple[OnRound | None, OnRound | None]:
    """Two runs that are heard as one."""
    if on_round is None:
        return None, None
    tell, first = on_round, seconds[0] / sum(seconds)
    return (
        lambda share, figures: tell(share * first, figures),
        lambda share, figures: tell(first + share * (1 - first), figures),
    )


def table(layers: Sequence[Layer], readings: Mapping[Layer, Measurement]) -> Table:
    """Of the layers of one template, at every pair of widths, or every width where inputs follow outputs."""
    outputs = sorted({layer.outputs for layer in layers})
    inputs = sorted({layer.inputs for layer in layers}) if len(layers) > len(outputs) else [layers[0].inputs]
    figures = {(layer.inputs, layer.outputs): readings[layer].estimate for layer in layers}
    if len(inputs) == 1:
        row = {layer.outputs: readings[layer].estimate for layer in layers}
        return Table((inputs[0],), tuple(outputs), (tuple(row[o] for o in outputs),))
    return Table(tuple(inputs), tuple(outputs), tuple(tuple(figures[i, o] for o in outputs) for i in inputs))


def cost_model(network: Network, record: CalibrationRecord, metric: str = "") -> TableCost:
    """The cost of archs of a network by its calibration, in seconds, or in the unit of another metric that was fitted.

    The base network costs what it took in the calibration.
    """
    fitted = record.fits[metric] if metric else record
    base = fitted.networks[0]
    return TableCost(network, _tables(record), fitted.calibration, fitted.unit, {base.arch: base.measured})
