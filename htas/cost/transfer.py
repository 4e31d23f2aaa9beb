"""Layers measured on one device as the costs of another: fitted on a few whole networks, and judged by them.

If the other device runs the same code at another speed, the sums of layers predict its networks after the fit as
closely as those of the first one. If its latencies step at other widths, they do not: it needs a survey of its own.
"""

from collections.abc import Sequence

import numpy as np

from htas.cost.calibrate import _tables
from htas.cost.fit import CalibrationRecord, FitRecord, NetworkRecord, fit
from htas.cost.tables import Floats
from htas.graph import Network
from htas.timing.measurement import Measurement

LEAST, MOST = 6, 24
"""Networks that are measured on the other device."""
CLOSE, CLOSE_SHARE = 0.05, 0.9
"""At least 9 in 10 networks must have an error within this distance of that on the first device."""
FAR = 0.1
"""Distance of the two errors that no network may exceed."""


def probes(network: Network, record: CalibrationRecord, count: int) -> list[NetworkRecord]:
    """At most `count` networks of a calibration, evenly spread in multiply-adds, the base first.

    What is measured on both devices tells the error of the transfer from the calibration's own.
    """
    base, *others = record.networks
    others.sort(key=lambda each: network.macs(each.arch))
    places = np.unique(np.linspace(0, len(others) - 1, min(len(others), count - 1)).round().astype(int))
    return [base, *(others[place] for place in places.tolist())]


def fit_elsewhere(
    network: Network, record: CalibrationRecord, networks: Sequence[NetworkRecord], measured: Sequence[Measurement]
) -> FitRecord:
    """The layers of a calibration, fitted on these networks of it as measured on another device, the base first."""
    return fit(network, _tables(record), [each.arch for each in networks], measured)


def error_differences(fitted: FitRecord, networks: Sequence[NetworkRecord]) -> Floats:
    """Distance of the relative error of each network's prediction from that on the first device."""
    pairs = zip(fitted.networks, networks, strict=True)
    return np.array([abs(here.held_out / here.measured - there.held_out / there.measured) for here, there in pairs])


def holds(fitted: FitRecord, networks: Sequence[NetworkRecord]) -> bool:
    """Whether networks that a fit has not seen are predicted as closely as on the first device."""
    off = error_differences(fitted, networks)
    return bool(np.mean(off <= CLOSE) >= CLOSE_SHARE and off.max() <= FAR)
