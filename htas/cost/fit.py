"""Fits of whole networks on sums of their layers: linear, in log space, robust; and what cost.json keeps of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import inf
from pathlib import Path
from reprlib import repr as shortened

import numpy as np

from htas.cost.tables import Calibration, Floats, ParameterSum, Table
from htas.errors import UserError
from htas.files import checking, need_not_below, need_over, need_some, read_record
from htas.graph import Arch, Network
from htas.graph.layer import Template
from htas.timing.measurement import Measurement

FORMS = (
    ("scale",), ("scale", "each"), ("kinds",), ("kinds", "each"), ("kinds", "each", "constant"),
    ("scale", "each", "beyond_cache"), ("kinds", "each", "beyond_cache"),
)  # fmt: skip
"""Terms that a fit may have, simplest first."""
CACHED_SHARES = (0.0, 0.2, 0.4, 0.6, 0.8)
"""Of the networks, how many may fit into the cache: the parameters of the next one are tried as its size."""
NOISE, SPREAD = 0.02, 0.2
"""Expected relative error of a network's prediction, and expected deviation of a kind's scale from the common one."""
BETTER = 0.95
"""A form with more terms must reduce the held-out error to this fraction of a simpler one's."""
ROUNDS = 5
"""Rounds of robust reweighting."""
OVER = 5.0
"""Largest ratio of layers to network, over the median one, of a network in the fit."""
OUTLIER_RATIO, OUTLIER_ERROR = 6.0, 0.05
"""A network whose relative error exceeds both this multiple of the median and this error counts less in the fit."""


@dataclass(frozen=True)
class NetworkRecord:
    """A whole network that the fit was made from."""

    arch: Arch
    measured: float
    error: float
    """Standard error of `measured`."""
    held_out: float
    """Its prediction by a fit that left it out."""

    def __post_init__(self) -> None:
        need_over(0, self, "measured")
        need_not_below(0, self, "error", "held_out")


@dataclass(frozen=True)
class FitRecord:
    """A fit of whole networks, by one metric, on sums of layers; figures are in `unit`."""

    unit: str
    context: Mapping[str, str]
    calibration: Calibration
    form: tuple[str, ...]
    """The terms of the fit."""
    networks: tuple[NetworkRecord, ...]
    """The base network first."""

    def __post_init__(self) -> None:
        need_some(self, "networks")

    def check(self, network: Network) -> None:
        """Raise UserError where its networks are not archs of this one, the base first."""
        for each in self.networks:
            network.check(each.arch)
        if self.networks[0].arch != network.base:
            raise UserError("the first of networks must be the base network")

    @property
    def errors(self) -> tuple[float, ...]:
        """Relative error of each network's prediction by a fit that left it out."""
        return tuple(abs(each.held_out / each.measured - 1) for each in self.networks)

    @property
    def mean_error(self) -> float:
        """Mean of `errors`."""
        return float(np.mean(self.errors))

    @property
    def worst_error(self) -> float:
        """Largest of `errors`."""
        return max(self.errors)


@dataclass(frozen=True)
class CalibrationRecord(FitRecord):
    """The latencies of layers at pairs of widths, the fit of latencies on them, and fits of other metrics."""

    tables: Mapping[str, Table]
    """By the key of a layer's template; seconds."""
    layers: int
    """Layers measured."""
    mended: int
    """Layers that took far more than others of their inputs and outputs, which stand in for them."""
    doubts: tuple[str, ...] = ()
    fits: Mapping[str, FitRecord] = field(default_factory=dict)
    """By metric: energy, or one of the user's."""
    design: str = ""
    """The hash of the design.json whose spaces were measured."""
    borrowed_from: str = ""
    """In words the device whose layers these are, where it is another one than that of the networks: htas transfer."""

    def check(self, network: Network) -> None:
        """Raise UserError where its networks or tables are not of this one, or its fits are of other networks."""
        super().check(network)
        for fitted in self.fits.values():
            fitted.check(network)
        templates = {node.template.key for node in network.nodes if node.template is not None}
        if odd := sorted(self.tables.keys() - templates):
            raise UserError(f"tables has a layer that is not of this network, {shortened(odd[0])}")


def read_calibration(path: Path, network: Network) -> CalibrationRecord:
    """A cost.json of this network; raises UserError for one of another."""
    record = read_record(path, CalibrationRecord)
    with checking(path):
        record.check(network)
    return record


def fit(
    network: Network, tables: Mapping[Template, Table], archs: Sequence[Arch], measured: Sequence[Measurement]
) -> FitRecord:
    """The form with the least held-out error, or a simpler one if it is hardly worse (BETTER).

    A network counts less the more its own readings differ: NOISE over the root of NOISE² and their relative error².
    """
    sums = [_sums(network, tables, arch) for arch in archs]
    kinds = sorted({kind for by_kind, _ in sums for kind in by_kind})
    columns = {
        "scale": np.array([[sum(by_kind.values())] for by_kind, _ in sums]),
        "kinds": np.array([[by_kind.get(kind, 0.0) for kind in kinds] for by_kind, _ in sums]),
        "each": np.array([[float(count)] for _, count in sums]),
        "constant": np.ones((len(sums), 1)),
        "beyond_cache": np.array([[ParameterSum(network).cost(arch)] for arch in archs]),
    }
    target = np.array([each.estimate for each in measured])
    sure = NOISE / np.hypot(NOISE, np.array([each.error for each in measured]) / target)
    form: tuple[str, ...] = ()
    least, calibration, predictions = inf, Calibration(), np.empty(0)
    for terms in FORMS:
        rows, near = np.hstack([columns[term] for term in terms]), len(kinds) if terms[0] == "kinds" else 0
        solve = partial(_with_cache if terms[-1] == "beyond_cache" else _all_counted, near=near)
        held_out = _held_out(rows, target, sure, solve)
        off = sure * np.abs(held_out / target - 1)
        error = float(np.mean(np.minimum(off, _far(off))))
        if error < BETTER * least:
            least, form, predictions = error, terms, held_out
            solution = solve(rows, target, sure)
            weights = solution.weights.tolist()
            scales = weights[:near] or weights[:1] * len(kinds)
            rest = dict(zip(terms[1:], weights[near or 1 :], strict=True))
            calibration = Calibration(dict(zip(kinds, scales, strict=True)), cache=solution.cache, **rest)
    networks = tuple(
        NetworkRecord(arch, reading.estimate, reading.standard_error, prediction)
        for arch, reading, prediction in zip(archs, measured, predictions.tolist(), strict=True)
    )
    return FitRecord(measured[0].unit, dict(measured[0].context), calibration, form, networks)


def _sums(network: Network, tables: Mapping[Template, Table], arch: Arch) -> tuple[dict[str, float], int]:
    """Sum of an arch's layers by kind of operator, and the number of layers."""
    by_kind: dict[str, float] = {}
    count = 0
    for step in network.steps(arch):
        if step.layer is None or step.node.layer is None:
            continue
        # the node's own template: a depthwise layer of one channel looks like a plain one
        template = step.node.layer.template
        value = float(tables[template].at([step.layer.inputs], [step.layer.outputs])[0, 0])
        by_kind[template.kind] = by_kind.get(template.kind, 0.0) + value
        count += 1
    return by_kind, count


@dataclass(frozen=True)
class _Solution:
    """A fit of networks: the weights of its columns, and the parameters in the last one that count as none."""

    weights: Floats
    cache: float = 0.0

    def __call__(self, rows: Floats) -> Floats:
        """Predictions [networks]."""
        predictions: Floats = _beyond(rows, self.cache) @ self.weights
        return predictions


def _beyond(rows: Floats, cache: float) -> Floats:
    """The rows with what the last column has beyond this."""
    return np.hstack([rows[:, :-1], np.maximum(rows[:, -1:] - cache, 0.0)]) if cache else rows


def _all_counted(rows: Floats, measured: Floats, sure: Floats, near: int) -> _Solution:
    """The columns as they are."""
    return _Solution(_weights(rows, measured, sure, near))


def _with_cache(rows: Floats, measured: Floats, sure: Floats, near: int) -> _Solution:
    """With the number of parameters in the cache that fits these networks best."""

    def error(solution: _Solution) -> float:
        off = sure * np.abs(solution(rows) / measured - 1)
        return float(np.mean(np.minimum(off, _far(off))))

    sizes = np.quantile(rows[:, -1], CACHED_SHARES).tolist()
    solutions = (_Solution(_weights(_beyond(rows, size), measured, sure, near), size) for size in sizes)
    return min(solutions, key=error)


def _held_out(
    rows: Floats, measured: Floats, sure: Floats, solve: Callable[[Floats, Floats, Floats], _Solution]
) -> Floats:
    """Predictions of the networks, each by a fit that leaves it out."""
    predictions = []
    for i in range(len(rows)):
        others = (np.delete(part, i, axis=0) for part in (rows, measured, sure))
        predictions.append(solve(*others)(rows[i : i + 1])[0])
    return np.array(predictions)


def _weights(rows: Floats, measured: Floats, sure: Floats, near: int) -> Floats:
    """Non-negative weights [features] with the least squared relative error; outliers and those less `sure` count less.

    A network that takes less than an OVER-th of what its layers foretell is left out: its relative error would outweigh
    those of all others.

    NOISE over SPREAD holds the first `near` of them, the scales of kinds, near a common one: otherwise a small part of
    every network, such as its one pooling layer, would absorb the errors of all others.
    """
    ratios = rows[:, : near or 1].sum(axis=1) / measured
    within = ratios <= OVER * np.median(ratios)
    rows, measured, sure = rows[within], measured[within], sure[within]
    trust = np.ones(len(measured))
    for _ in range(ROUNDS):
        root = sure * np.sqrt(trust)
        relative, target = rows * (root / measured)[:, None], root
        if near:
            (common,) = _solve(relative[:, :near].sum(axis=1, keepdims=True), target)
            prior = np.eye(near, rows.shape[1]) * NOISE / SPREAD / max(common, 1e-12)
            relative, target = np.vstack([relative, prior]), np.concatenate([target, np.full(near, NOISE / SPREAD)])
        weights = _solve(relative, target)
        off = sure * np.abs(rows @ weights / measured - 1)
        trust = _far(off) / np.maximum(off, _far(off))  # Huber weights
    return weights


def _far(off: Floats) -> float:
    """Relative error above which a network counts less."""
    return max(OUTLIER_RATIO * float(np.median(off)), OUTLIER_ERROR)


def _solve(rows: Floats, target: Floats) -> Floats:
    """Non-negative least squares with normalised columns."""
    from scipy.optimize import nnls

    norms = np.maximum(np.linalg.norm(rows, axis=0), 1e-12)
    weights: Floats = nnls(rows / norms, target)[0] / norms
    return weights
