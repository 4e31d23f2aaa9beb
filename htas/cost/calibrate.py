"""From measured layers to whole networks: a table of every layer at pairs of widths, and the fit of networks on it.

Networks are read by themselves, as in every comparison: among hundreds of layers each finds the caches filled by
others, which slows networks of many small layers more (docs/decisions.md). The error on networks that the fit has not
seen decides which terms it has (one scale, a scale for every kind of operator, a constant for every layer) and is
recorded with it.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import ceil

import numpy as np

from htas.cost.fit import CalibrationRecord, FitRecord, fit
from htas.cost.tables import Floats, Table, TableCost, pairs, thinned
from htas.errors import UserError, need_least
from htas.formats.onnx_network import is_written
from htas.graph import Arch, Network, resize
from htas.graph.layer import Layer, Template
from htas.metrics import Case, Metric, OnRound
from htas.metrics.latency import CHEAP, Latency
from htas.runtimes import Runtime
from htas.spaces.layers import DEAR, SLOW
from htas.spaces.room import filled, roomy
from htas.spaces.space import Space
from htas.text import percent
from htas.timing.measurement import Measurement
from htas.timing.quota import free_memory

SECONDS_PER_LAYER = 0.05
"""Measuring time for each pair of widths of each distinct layer, unless calibrate.seconds is set."""
PROGRAMS_PER_LAYER = 2
"""Programs to build for a layer: a chain with it, and one without."""
SECONDS_PER_NETWORK = 1.0
"""Measuring time for each whole network, unless calibrate.seconds is set."""
READINGS_PER_LAYER, READINGS_PER_NETWORK = 1, 60
"""The same in multiples of the base network's latency, where that is more."""
FEW_WIDTHS = 4
"""Widths of a site if building a layer takes seconds; twice as many networks are measured then."""
SPARE = (12, 10, 8, 6, 5, 4)
"""Widths of a site where more would not fit into memory."""
FEW_NETWORKS = 16
"""Number of networks if building a layer is DEAR."""
EXPORTED_LAYERS = 1200
"""Layers of all networks together if PyTorch exports them: a core of an EPYC exports thirty a second."""
REREAD_RATIO, MEND_RATIO = 1.15, 1.25
"""A layer slower than its rows and columns predict by the first ratio is read again, as its program may be a slow one;
if it stays slower by the second, the prediction replaces its reading."""
POLISH_ROUNDS = 20
FLOOR_SHARE = 0.8
"""Fraction of the fastest layer that all layers of a table take, whatever their widths."""
UNSURE = 0.05
"""Mean error of networks left out above which there is a doubt in the record."""
UNSTEADY = 0.05
"""Relative standard error of a network's readings above which there is a doubt in the record."""
MENDED_SHARE = 0.05
"""Fraction of the layers that may be replaced without a doubt in the record."""
REREAD_ERROR = 0.02
"""Relative standard error above which a layer is read again."""
FEW_INPUTS = 5
"""Input widths of a site if building a layer is DEAR: latency grows evenly with them."""
DRAWS_PER_NETWORK = 40
"""Random archs for each measured one, so that costs are spread evenly."""
CONTROLS_SHARE = 0.125
"""Fraction of the networks that may be controls."""
WEIGHT_BYTES, WEIGHT_COPIES, MEMORY_SHARE = 4, 5, 0.4
"""Bytes of a weight; its copies while its network is measured (PyTorch, exported, the runtime's, packed, rebuilt); and
the fraction of free memory that networks may fill at once."""


@dataclass(frozen=True)
class Calibrate:
    """How many layers and whole networks are measured, and for how long."""

    networks: int = 24
    """Number of whole networks that calibrate the sums of layers and show their error."""
    widths: int = 16
    """Largest number of widths of a site, as input and as output, at which layers are measured; others are
    interpolated."""
    seconds: float = 0.0
    """Time limit of measuring in seconds, divided in the default's proportions. 0 means 0.05 for each pair of widths
    of each distinct layer and 1 for each network, or 1 and 60 times the base network's latency if that is more."""

    def __post_init__(self) -> None:
        need_least(4, self, "calibrate", "networks")
        need_least(2, self, "calibrate", "widths")
        if not self.seconds >= 0:
            raise UserError(f"calibrate.seconds must be 0 (the default) or more, got {self.seconds}")

    def limits(self, layers: int, building: float = 0.0, base: float = 0.0) -> tuple[float, float]:
        """Seconds for measuring this number of layers, and for the networks. `building` is the seconds to build a
        layer, `base` the latency of the base network in seconds."""
        building *= PROGRAMS_PER_LAYER if building <= CHEAP else 1  # what takes longer is built once
        parts = (
            (max(SECONDS_PER_LAYER, READINGS_PER_LAYER * base) + building) * layers,
            max(SECONDS_PER_NETWORK, READINGS_PER_NETWORK * base) * self.networks,
        )
        share = self.seconds / sum(parts) if self.seconds else 1.0
        return parts[0] * share, parts[1] * share


def sparing(options: Calibrate, network: Network, runtime: Runtime) -> Calibrate:
    """The options with fewer widths if a layer takes seconds to build, and fewer networks if their export is slow, so
    that survey and calibration of a CIFAR ResNet of any depth take three minutes at most."""
    widths, networks = options.widths, options.networks
    if runtime.build_seconds >= SLOW:
        widths, networks = min(widths, FEW_WIDTHS), min(networks, 2 * FEW_WIDTHS)
    if runtime.build_seconds >= DEAR:
        networks = min(networks, FEW_NETWORKS)
    few = max(2 * FEW_WIDTHS, EXPORTED_LAYERS // len(network.uses(network.base)))
    if runtime.exports and few < networks and not is_written(network.module, runtime.target.example()):
        networks = few
    return replace(options, widths=widths, networks=networks)


def cells(
    network: Network, spaces: Sequence[Space], most: int, building: float = 0.0, controls: Sequence[Arch] = ()
) -> dict[Template, list[Layer]]:
    """Every layer to measure, by template; an operator on single channels has one layer for each width.

    `building` is the seconds to build a layer; `controls` are archs beyond the spaces whose widths are measured, too.
    """
    layers = {}
    for template, (all_inputs, outputs) in pairs(network, spaces, most, controls).items():
        inputs = thinned(all_inputs, FEW_INPUTS) if building >= DEAR else all_inputs
        every = sorted(outputs)
        sizes = zip(every, every, strict=True) if template.keeps_width else product(sorted(inputs), every)
        layers[template] = [template.at(i, o) for i, o in sizes]
    return layers


def roomy_calibration(
    options: Calibrate,
    network: Network,
    spaces: Sequence[Space],
    building: float,
    controls: Sequence[Arch],
    free: float,
) -> tuple[Calibrate, str]:
    """The options with fewer widths where the layers do not fit into so many bytes, and a sentence that says so."""

    def size(less: Calibrate) -> float:
        layers = cells(network, spaces, less.widths, building, controls)
        return filled({layer for every in layers.values() for layer in every})

    plans = [replace(options, widths=widths) for widths in (options.widths, *SPARE) if widths <= options.widths]
    return roomy(((plan.widths, plan) for plan in plans), size, free, "a calibration")


def spread(
    network: Network, spaces: Sequence[Space], count: int, seed: int, controls: Sequence[Arch] = ()
) -> list[Arch]:
    """The base, the first of the controls, and random archs of the spaces with evenly spread multiply-adds; the same
    for the same seed."""
    rng, ends = random.Random(seed), list(dict.fromkeys(controls))[: int(CONTROLS_SHARE * count)]
    archs = [
        space.sample(rng, rng.uniform(-5, 5))
        for space in spaces
        for _ in range(DRAWS_PER_NETWORK * count // len(spaces))
    ]
    ordered = sorted(dict.fromkeys(archs), key=network.macs)
    costs = np.asarray([network.macs(arch) for arch in ordered])
    aims = np.linspace(costs[0], costs[-1], count - 1 - len(ends))
    nearest = [ordered[int(np.abs(costs - aim).argmin())] for aim in aims]
    return list(dict.fromkeys([network.base, *ends, *nearest]))


def calibrate(
    network: Network,
    spaces: Sequence[Space],
    metrics: tuple[Metric, Metric],
    options: Calibrate,
    *,
    seed: int,
    building: float = 0.0,
    base: float = 0.0,
    controls: Sequence[Arch] = (),
    on_round: OnRound = None,
) -> CalibrationRecord:
    """Measure layers by the first metric, then networks by the second, and fit; `cost_model` reads the record.

    `controls` are archs beyond the spaces that will be predicted: the narrowest, the widest, the shallowest. Their
    widths are measured, too, and the first of them are among the networks.
    """
    by_template = cells(network, spaces, options.widths, building, controls)
    layers = list(dict.fromkeys(layer for mine in by_template.values() for layer in mine))
    archs = spread(network, spaces, options.networks, seed, controls)
    seconds = options.limits(len(layers), building, base)
    first = seconds[0] / sum(seconds)
    measurements = metrics[0].measure(
        layers, on_round=_part(on_round, 0, first), pending=lambda so_far: _pending(by_template, so_far)
    )
    readings: dict[Case, Measurement] = dict(zip(layers, measurements, strict=True))
    mends = {template: mended(table(mine, readings)) for template, mine in by_template.items()}
    tables = {template: mended_table for template, (mended_table, _) in mends.items()}
    slow = sum(number for _, number in mends.values())
    measured = whole(network, archs, metrics[1], _part(on_round, first, 1))
    fitted = fit(network, tables, archs, measured)
    doubts = [*_common_remarks(measurements), *_common_remarks(measured)]
    if fitted.mean_error > UNSURE:
        doubts.append(
            f"networks that the calibration had not seen are foretold {percent(fitted.mean_error, 1)} off on average, "
            f"{percent(fitted.worst_error, 1)} at worst; stop other work, or give calibrate.seconds more"
        )
    errors = [each.error / each.estimate for each in measured]
    if unsteady := [error for error in errors if error > UNSTEADY]:
        doubts.append(
            f"the readings of {len(unsteady)} of {len(archs)} networks differ so much that they are known to "
            f"{percent(max(unsteady), 1)} at worst, and count less; stop other work, or give calibrate.seconds more"
        )
    if slow > MENDED_SHARE * len(layers):
        doubts.append(
            f"{slow} of {len(layers)} layers took far more than others of their inputs and outputs, which stand in for "
            "them; calibrate.seconds gives them more time"
        )
    return CalibrationRecord(
        **vars(fitted),
        tables={template.key: table for template, table in tables.items()},
        layers=len(layers),
        mended=slow,
        doubts=tuple(dict.fromkeys(doubts)),
    )


def _pending(by_template: Mapping[Template, Sequence[Layer]], readings: Mapping[Case, Measurement]) -> set[Case]:
    """Layers to read again: with a large error, or slower than their rows and columns predict."""
    odd = {layer for layers in by_template.values() for layer in _odd(layers, readings)}
    return odd | {case for case, each in readings.items() if each.error > REREAD_ERROR * abs(each.estimate)}


def _odd(layers: Sequence[Layer], readings: Mapping[Case, Measurement]) -> Iterator[Case]:
    """Layers of one template that are slower than their rows and columns predict."""
    grid = table(layers, readings)
    for i, o in np.argwhere(np.asarray(grid.values) > REREAD_RATIO * polished(grid)).tolist():
        yield layers[0].template.at(grid.inputs[i], grid.outputs[o]) if len(grid.inputs) > 1 else layers[o]


def polished(grid: Table) -> Floats:
    """The larger of two tables without outliers, [inputs, outputs]: with proportional rows, and with rows proportional
    above a floor, FLOOR_SHARE of the fastest layer. Layers that are narrow take little less than others as narrow.

    Tables of one or two rows are returned unchanged.
    """
    values = np.asarray(grid.values, float)
    if min(values.shape) < 3:
        return values
    floor = FLOOR_SHARE * max(float(values.min()), 0.0)
    return np.maximum(_proportional(values), floor + _proportional(values - floor))


def _proportional(values: Floats) -> Floats:
    """A median polish of logarithms (Tukey), [inputs, outputs]: the rows are proportional; a few outliers do not affect
    it."""
    logs = np.log(np.maximum(values, 1e-3 * np.median(values)))
    rows, columns = np.zeros((len(values), 1)), np.zeros(values.shape[1])
    for _ in range(POLISH_ROUNDS):
        rows = np.median(logs - columns, axis=1, keepdims=True)
        columns = np.median(logs - rows, axis=0)
    product: Floats = np.exp(rows + columns)
    return product


def mended(grid: Table) -> tuple[Table, int]:
    """The table with outliers replaced by what the other cells predict, and the number of outliers."""
    values, fair = np.asarray(grid.values, float), polished(grid)
    slow = values > MEND_RATIO * fair
    return replace(grid, values=tuple(map(tuple, np.where(slow, fair, values).tolist()))), int(slow.sum())


def _common_remarks(readings: Sequence[Measurement]) -> list[str]:
    first, *others = readings
    return [remark for remark in first.remarks if all(remark in other.remarks for other in others)]


def fit_metric(network: Network, record: CalibrationRecord, metric: Metric, on_round: OnRound = None) -> FitRecord:
    """Another metric's figures of a calibration's networks, fitted on the same layers' latencies.

    Energy is power times time, and the power differs between kinds of operators.
    """
    archs = [each.arch for each in record.networks]
    return fit(network, _tables(record), archs, whole(network, archs, metric, on_round))


def whole(
    network: Network, archs: Sequence[Arch], metric: Metric, on_round: OnRound = None, free: float = 0.0
) -> list[Measurement]:
    """Measurements of networks, the base first: in one run, or in several if they do not fit into `free` bytes (0: the
    machine's free memory). Each run includes the base, whose readings bring the runs to one level."""
    by_arch: dict[Arch, Measurement] = {}
    together = lots(network, archs, free or free_memory())
    for number, lot in enumerate(together):
        part = replace(metric, limit=metric.limit * len(lot) / len(archs)) if isinstance(metric, Latency) else metric
        report = _part(on_round, number / len(together), (number + 1) / len(together))
        base, *others = part.measure([resize(network, arch) for arch in lot], on_round=report)
        level = by_arch.setdefault(archs[0], base).estimate / base.estimate
        by_arch |= {arch: reading.scaled(level) for arch, reading in zip(lot[1:], others, strict=True)}
    return [by_arch[arch] for arch in archs]


def lots(network: Network, archs: Sequence[Arch], free: float) -> list[list[Arch]]:
    """The archs in as few parts as fit into `free` bytes, each with large and small ones and the first arch."""
    base, *others = archs
    size = sum(WEIGHT_BYTES * WEIGHT_COPIES * network.params(arch) for arch in archs)
    parts = min(max(1, ceil(size / (MEMORY_SHARE * free))), max(1, len(others)))
    return [[base, *others[number::parts]] for number in range(parts)]


def _part(tell: OnRound, start: float, end: float) -> OnRound:
    """The callback of one of several runs that report as one: this one from `start` to `end`."""
    return None if tell is None else lambda share, figures: tell(start + share * (end - start), figures)


def _tables(record: CalibrationRecord) -> dict[Template, Table]:
    return {Template.of(key): table for key, table in record.tables.items()}


def table(layers: Sequence[Layer], readings: Mapping[Case, Measurement]) -> Table:
    """Readings of the layers of one template, at every pair of widths, or every width if inputs follow outputs."""
    outputs = sorted({layer.outputs for layer in layers})
    inputs = sorted({layer.inputs for layer in layers}) if len(layers) > len(outputs) else [layers[0].inputs]
    alone = len(inputs) == 1
    figures = {(inputs[0] if alone else each.inputs, each.outputs): readings[each].estimate for each in layers}
    return Table(tuple(inputs), tuple(outputs), tuple(tuple(figures[i, o] for o in outputs) for i in inputs))


def cost_model(network: Network, record: CalibrationRecord, metric: str = "") -> TableCost:
    """The cost of archs of a network by its calibration, in seconds, or in the unit of another metric that was fitted.

    The base network costs its measured figure.
    """
    if metric and metric not in record.fits:
        raise UserError(f"cost.json lacks the fit of {metric}; delete it and calibrate again")
    fitted = record.fits[metric] if metric else record
    base = fitted.networks[0]
    return TableCost(network, _tables(record), fitted.calibration, fitted.unit, {base.arch: base.measured})
