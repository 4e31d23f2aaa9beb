"""What a calibration writes: tables of layers, and fits of whole networks on them (cost.json)."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from htas.cost.tables import Calibration, Table
from htas.graph.arch import Arch


@dataclass(frozen=True)
class NetworkRecord:
    """A whole network that the fit was made from."""

    arch: Arch
    measured: float
    error: float
    """Standard error of `measured`."""
    held_out: float
    """Its prediction by a fit that left it out."""


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
