"""Fitting sums of layers to whole networks: linear, in log space, robust."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np

from htas.cost.tables import Calibration, Floats, Table
from htas.graph import Network
from htas.graph.arch import Arch
from htas.graph.layer import Template

FORMS = (("scale",), ("scale", "each"), ("kinds",), ("kinds", "each"), ("kinds", "each", "constant"))
"""Terms that a fit may have, simplest first."""
NOISE, SPREAD = 0.02, 0.2
"""Expected relative error of a network's prediction, and expected deviation of a kind's scale from the common one."""
BETTER = 0.95
"""A form with more terms must reduce the held-out error to this fraction of a simpler one's."""
ROUNDS = 5
"""Rounds of robust reweighting."""
OUTLIER_RATIO, OUTLIER_ERROR = 6.0, 0.05
"""A network whose relative error exceeds both this multiple of the median and this error counts less in the fit."""


@dataclass(frozen=True)
class FittedCalibration:
    """A calibration, and its predictions of the measured networks, each left out in turn."""

    calibration: Calibration
    held_out: tuple[float, ...]
    form: tuple[str, ...]


def fit(
    network: Network, tables: Mapping[Template, Table], archs: Sequence[Arch], measured: Sequence[float]
) -> FittedCalibration:
    """The form with the least held-out error, or a simpler one if it is hardly worse (BETTER)."""
    sums = [_sums(network, tables, arch) for arch in archs]
    kinds = sorted({kind for by_kind, _ in sums for kind in by_kind})
    best: tuple[float, FittedCalibration] = (inf, FittedCalibration(Calibration(), (), ()))
    target = np.asarray(measured)
    for form in FORMS:
        rows = np.array([_features(by_kind, count, form, kinds) for by_kind, count in sums])
        held_out = tuple(
            float(rows[row] @ _weights(np.delete(rows, row, axis=0), np.delete(target, row), form, kinds))
            for row in range(len(rows))
        )
        off = np.abs(np.asarray(held_out) / target - 1)
        error = float(np.mean(np.minimum(off, _far(off))))
        if error < BETTER * best[0]:
            calibration = _calibration(_weights(rows, target, form, kinds), form, kinds)
            best = error, FittedCalibration(calibration, held_out, form)
    return best[1]


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


def _features(sums: Mapping[str, float], count: int, form: Collection[str], kinds: Sequence[str]) -> list[float]:
    row = [sums.get(kind, 0.0) for kind in kinds] if "kinds" in form else [sum(sums.values())]
    return [*row, *([count] if "each" in form else []), *([1.0] if "constant" in form else [])]


def _weights(rows: Floats, measured: Floats, form: Collection[str], kinds: Sequence[str]) -> Floats:
    """Non-negative weights [features] with the least squared relative error, outliers counting less.

    NOISE over SPREAD holds the scales of kinds near a common one: otherwise a small part of every network, such as its
    one pooling layer, would absorb the errors of all others.
    """
    trust = np.ones(len(measured))
    for _ in range(ROUNDS):
        weights = _weighted(rows, measured, form, kinds, trust)
        off = np.abs(rows @ weights / measured - 1)
        trust = _far(off) / np.maximum(off, _far(off))  # Huber weights
    return weights


def _far(off: Floats) -> float:
    """Relative error above which a network counts less."""
    return max(OUTLIER_RATIO * float(np.median(off)), OUTLIER_ERROR)


def _weighted(rows: Floats, measured: Floats, form: Collection[str], kinds: Sequence[str], trust: Floats) -> Floats:
    """One round: each network's squared error is weighted by `trust` [networks]."""
    root = np.sqrt(trust)
    relative, target = rows * (root / measured)[:, None], root
    if "kinds" in form:
        count = len(kinds)
        (common,) = _solve(relative[:, :count].sum(axis=1, keepdims=True), target)
        prior = np.zeros((count, rows.shape[1]))
        prior[:, :count] = np.eye(count) * NOISE / SPREAD / max(common, 1e-12)
        relative, target = np.vstack([relative, prior]), np.concatenate([target, np.full(count, NOISE / SPREAD)])
    return _solve(relative, target)


def _solve(rows: Floats, target: Floats) -> Floats:
    """Non-negative least squares with normalised columns."""
    from scipy.optimize import nnls

    norms = np.maximum(np.linalg.norm(rows, axis=0), 1e-12)
    weights: Floats = nnls(rows / norms, target)[0] / norms
    return weights


def _calibration(weights: Floats, form: Collection[str], kinds: Sequence[str]) -> Calibration:
    rest = weights.tolist()
    count = len(kinds) if "kinds" in form else 1
    factors, rest = rest[:count], rest[count:]
    each = rest.pop(0) if "each" in form else 0.0
    constant = rest.pop(0) if "constant" in form else 0.0
    scales = dict(zip(kinds, factors, strict=True)) if "kinds" in form else dict.fromkeys(kinds, factors[0])
    return Calibration(scales, each, constant)
