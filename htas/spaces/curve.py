"""Latency over width, and the fit f(x) = k x^a + b (eq. 1)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from reprlib import repr as shortened
from typing import Literal

import numpy as np

from htas.errors import UserError
from htas.files import need_as_many, need_not_below, need_over, need_rising, need_some
from htas.graph.layer import Layer, Template
from htas.graph.network import times
from htas.spaces.space import group_slices

SUMMARIES = ("estimate", "error", "minimum", "median", "mean", "mean_error", "spread")
"""Of a Measurement, in survey.json."""
STEEPEST = 20
"""Largest exponent of eq. 1."""
Estimate = Literal["estimate", "minimum", "median", "mean"]
"""What may stand for the readings of a width."""


@dataclass(frozen=True)
class Part:
    """A layer whose outputs are not one site's: `repeat` for each channel of the site, and `rest` others."""

    template: Template
    repeat: int | Fraction
    rest: int
    """Outputs that are not of the site."""

    @property
    def key(self) -> str:
        """That of its template."""
        return self.template.key

    def outputs(self, width: int) -> int:
        """Its outputs where the site has this width."""
        return int(times(width, self.repeat)) + self.rest

    def wide(self, width: int) -> Layer:
        """The layer where the site has this width."""
        return self.template.wide(self.outputs(width))


@dataclass(frozen=True)
class LayerTable:
    """Summaries of a layer's readings by its width, in seconds."""

    widths: tuple[int, ...]
    estimate: tuple[float, ...]
    error: tuple[float, ...]
    minimum: tuple[float, ...]
    median: tuple[float, ...]
    mean: tuple[float, ...]
    mean_error: tuple[float, ...]
    spread: tuple[float, ...]
    readings: tuple[int, ...]
    """Number of readings; 0 where the figures are interpolated."""

    def __post_init__(self) -> None:
        need_as_many(self, "widths", *SUMMARIES, "readings")
        need_over(0, self, "widths")
        need_not_below(0, self, "error", "mean_error", "spread", "readings")


@dataclass(frozen=True)
class SurveyRecord:
    """The measurements of a survey (survey.json)."""

    survey: str
    """The names of the surveys that the readings come from."""
    context: Mapping[str, str]
    layers: Mapping[str, LayerTable]
    """By the key of a template."""
    cases: int
    """Layers measured."""
    interpolated: int
    doubts: tuple[str, ...] = ()
    borrowed_from: str = ""
    """In words the device that was read, where it is another one than the run's: htas transfer."""


@dataclass(frozen=True)
class Fit:
    """f(x) = k x^alpha + b (eq. 1), in seconds."""

    k: float
    alpha: float
    b: float

    def __post_init__(self) -> None:
        if not 0 < self.alpha <= STEEPEST:
            raise ValueError(f"must have alpha above 0 and at most {STEEPEST}, got {self.alpha}")

    def __call__(self, width: float) -> float:
        return float(self.k * width**self.alpha + self.b)


@dataclass(frozen=True)
class Curve:
    """m(x): seconds of work at each width."""

    widths: tuple[int, ...]
    seconds: tuple[float, ...]
    errors: tuple[float, ...] = ()
    """Standard error of each, in seconds; nothing where they are not known."""
    interpolated: tuple[int, ...] = ()
    """Widths that were not measured: their seconds lie on the line between their measured neighbours."""

    def __post_init__(self) -> None:
        need_rising(self, "widths")
        need_as_many(self, "widths", "seconds", *(["errors"] if self.errors else []))
        need_not_below(0, self, "errors")

    def at(self, width: int) -> float:
        """m(width)."""
        return self.seconds[self.widths.index(width)]

    def scores(self, fit: Fit) -> tuple[float, ...]:
        """s(x) = f(x) - m(x) at each width, in seconds (eq. 2): how much faster than the fit."""
        return tuple(fit(width) - seconds for width, seconds in zip(self.widths, self.seconds, strict=True))

    def grouped(self, groups: int) -> list[tuple[int, ...]]:
        """The widths of each group (eq. 3), at most one group for each width."""
        return [self.widths[run] for run in group_slices(len(self.widths), groups)]

    def fit(self, alpha: float | Literal["fit"]) -> Fit:
        """The least-squares fit of eq. 1; `fit` finds the exponent too, between 0.1 and 3."""
        if alpha != "fit":
            return _line(self, float(alpha))[0]
        from scipy.optimize import minimize_scalar

        best = minimize_scalar(lambda exponent: _line(self, exponent)[1], bounds=(0.1, 3.0), method="bounded")
        return _line(self, float(best.x))[0]


@dataclass(frozen=True)
class CurveRecord:
    """One latency curve of the survey, with its fit and its choices (the paper's Fig. 2 and 3)."""

    sites: tuple[str, ...]
    """The sites that share it."""
    base: int
    measured: Curve
    """m(x)."""
    fit: Fit
    """f(x)."""
    groups: tuple[tuple[int, int], ...]
    """First and last width of each group."""
    choices: Mapping[str, tuple[int, ...]]
    """By space: `hardware`, `tas`, `grid`, ..."""
    doubts: tuple[str, ...] = ()
    certain: tuple[float, ...] = ()
    """How sure the choice of each group is, 0 to 1, of the space `hardware`."""
    dominated: tuple[int, ...] = ()
    """Choices of the space `hardware` that are no faster than a wider one."""

    def __post_init__(self) -> None:
        need_some(self, "sites", "groups")
        need_over(0, self, "base")
        if self.certain:
            need_as_many(self, "groups", "certain")
        if not all(0 <= sure <= 1 for sure in self.certain):
            raise ValueError(f"must have certain from 0 to 1, got {shortened(self.certain)}")
        if not all(first <= last for first, last in self.groups):
            raise ValueError(f"must have groups that end where they begin or later, got {shortened(self.groups)}")


def _line(curve: Curve, alpha: float) -> tuple[Fit, float]:
    """The best k and b at this exponent, and the squared error that remains."""
    x, y = np.asarray(curve.widths, float) ** alpha, np.asarray(curve.seconds)
    if len(set(curve.widths)) == 1:
        return Fit(0.0, alpha, float(y.mean())), 0.0
    columns = np.stack([x, np.ones_like(x)], axis=1)
    (k, b), *_ = np.linalg.lstsq(columns, y, rcond=None)
    return Fit(float(k), alpha, float(b)), float(((columns @ (k, b) - y) ** 2).sum())


def add(curves: Sequence[tuple[int, Curve]]) -> Curve:
    """The sum of curves over the same widths, each times its count."""
    widths = curves[0][1].widths
    assert all(curve.widths == widths for _, curve in curves)
    sums = np.sum([count * np.asarray(curve.seconds) for count, curve in curves], axis=0)
    guessed = tuple(sorted({width for _, curve in curves for width in curve.interpolated}))
    if not all(curve.errors for _, curve in curves):
        return Curve(widths, tuple(sums.tolist()), (), guessed)
    errors = np.sqrt(np.sum([(count * np.asarray(curve.errors)) ** 2 for count, curve in curves], axis=0))
    return Curve(widths, tuple(sums.tolist()), tuple(errors.tolist()), guessed)


def curve(
    tables: Mapping[str, LayerTable], layer: Template | Part, widths: Sequence[int], estimate: Estimate = "estimate"
) -> Curve:
    """m(x) of a layer where its site has these widths, from the tables of a survey, which may have more.

    Raises UserError where the survey lacks one.
    """
    table = tables.get(layer.key)
    by_outputs = {outputs: row for row, outputs in enumerate(table.widths)} if table else {}
    rows = {width: by_outputs[outputs] for width in widths if (outputs := layer.outputs(width)) in by_outputs}
    if table is None or len(rows) < len(set(widths)):
        raise UserError("survey.json lacks a layer of this network; delete it and run the survey again")
    error = {"estimate": "error", "mean": "mean_error"}.get(estimate)
    seconds, errors = (
        tuple(getattr(table, column)[rows[width]] for width in widths) if column else () for column in (estimate, error)
    )
    interpolated = tuple(width for width in widths if not table.readings[rows[width]])
    return Curve(tuple(widths), seconds, errors, interpolated)
