"""Outside the widths that were measured: a floor, a line that is said to be one, and calibrations that reach as far as
reports do."""

from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import pytest
import torch
from test_calibrate import Planted, network, space

from htas.cost.calibrate import Calibrate, calibrate, cells, cost_model, mended, spread, table
from htas.cost.fit import _weights
from htas.cost.tables import Table, TableCost
from htas.graph import Network, trace
from htas.graph.arch import Arch
from htas.graph.layer import Layer
from htas.models.mobilenet_v2 import MobileNetV2
from htas.timing.measurement import Measurement
from htas.timing.target import Target

FLAT = 8
"""Channels below which a layer gets no faster."""


def floored(layer: Layer) -> float:
    """Seconds of a layer on a device that computes eight channels or more."""
    wide = layer.template.at(max(FLAT, layer.inputs), max(FLAT, layer.outputs))
    return 1e-5 + 1e-9 * wide.macs if wide.macs else 2e-6


@dataclass(frozen=True)
class Floored(Planted):
    """Networks take what their layers take, and more for each layer."""

    def layer(self, layer: Layer) -> float:
        return floored(layer)

    def of(self, net: Network, arch: Arch) -> float:
        return self.constant + sum(0.8 * floored(use.layer) + self.each for use in net.uses(arch))


def uniform(net: Network, share: float) -> Arch:
    """All widths narrowed alike."""
    return Arch({name: site.near(site.base * share) for name, site in net.widths.items()}, net.base.depths)


def calibrated(*controls: Arch) -> TableCost:
    """A model of the planted device, whose floor is the narrowest width of every site."""
    net, metric = network(), Floored(Target(threads=1))
    widths = {name: tuple(sorted({FLAT, site.base, 2 * site.base})) for name, site in net.widths.items()}
    record = calibrate(
        net, [replace(space(), widths=widths)], (metric, metric), Calibrate(networks=20), seed=0, controls=controls
    )  # fmt: skip
    return cost_model(net, record)


@pytest.mark.slow
@pytest.mark.parametrize("share", [1 / 16, 1 / 8, 1 / 4])
def test_a_layer_narrower_than_any_measured_is_no_faster_than_the_narrowest(share: float) -> None:
    """`uniform x0.12` was predicted at 1.87 ms and took 3.18 ms."""
    net, cost = network(), calibrated()
    arch = uniform(net, share)
    assert cost.cost(arch) == pytest.approx(Floored(Target(threads=1)).of(net, arch), rel=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("share, words", [(1 / 8, "narrower"), (1 / 2, ""), (2.0, ""), (2.5, "wider")])
def test_a_prediction_says_that_it_lies_outside_the_measured_widths(share: float, words: str) -> None:
    net, cost = network(), calibrated()
    remark = cost.remark(uniform(net, share))
    assert words in remark if words else not remark
    if words:
        assert remark.startswith("The prediction lies outside the measured widths: ")
        assert f"of {len(net.uses(net.base))} layers" in remark


@pytest.mark.slow
def test_a_measured_network_is_no_prediction() -> None:
    net = network()
    narrow = uniform(net, 1 / 8)
    cost = TableCost(net, calibrated().tables, measured={narrow: 1.0})
    assert cost.remark(narrow) == "" != TableCost(net, cost.tables).remark(narrow)


def test_layers_that_keep_their_width_and_those_of_one_input_width_are_outside_by_their_outputs() -> None:
    net = trace(MobileNetV2(25).build(10), torch.zeros(1, 3, 32, 32))
    one = Measurement((1.0,), "s")
    tables = {
        template: table(layers, dict.fromkeys(layers, one))
        for template, layers in cells(net, [], 16, controls=[uniform(net, 1 / 16), uniform(net, 1.0)]).items()
    }
    cost = TableCost(net, tables)
    assert [cost.remark(uniform(net, step / 16)) for step in range(1, 17)] == [""] * 16
    assert "wider" in cost.remark(uniform(net, 2.0))


def test_figures_outside_a_table_are_a_floor_below_it_and_its_line_above() -> None:
    grid = Table((4, 8, 16), (4, 8, 16), tuple(tuple(1.0 + i * o for o in (4, 8, 16)) for i in (4, 8, 16)))
    assert grid.at([1, 2, 4], [1]).ravel().tolist() == [17.0] * 3
    assert grid.at([1], [1, 8, 12]).ravel().tolist() == [17.0, 33.0, 49.0]
    assert grid.at([32], [16, 32]).ravel() == pytest.approx([1 + 32 * 16, 1 + 32 * 32])
    assert grid.at([1], [32]).item() == pytest.approx(1 + 4 * 32)
    falls = Table((4,), (4, 8, 15, 16), ((1.0, 2.0, 4.0, 3.5),))
    assert falls.at([4], [24]).item() == pytest.approx(3.5 + 8 * 2.5 / 12)  # a dip at its end is not continued
    assert Table((4,), (4, 8), ((3.0, 2.0),)).at([4], [1, 8, 99]).ravel().tolist() == [3.0, 2.0, 2.0]
    assert grid.outside(4, 16) == (False, False)
    assert grid.outside(3, 4) == grid.outside(4, 3) == (True, False)
    assert grid.outside(17, 4) == (False, True)
    assert grid.outside(3, 17) == (True, True)


@pytest.mark.parametrize("widths", [(1, 4, 8, 12, 16, 20, 24, 28, 32), (2, 4, 8, 16, 24, 32, 40, 48, 56, 64)])
@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_a_floor_that_layers_have_in_common_is_no_slow_program(widths: tuple[int, ...], noise: float) -> None:
    """Narrow layers were replaced by what wide ones predict, a third of what they take."""
    rng = np.random.default_rng(0)
    for floor in (0, 64):
        plain = [[1e-5 + 1e-7 * max(floor, i * o) for o in widths] for i in widths]
        values = np.multiply(plain, np.exp(noise * rng.standard_normal(np.shape(plain))))
        grid = Table(widths, widths, tuple(map(tuple, values.tolist())))
        again, count = mended(grid)
        assert (again, count) == (grid, 0) or noise
        assert np.asarray(again.values) == pytest.approx(values, rel=0.25)
        slow = values.copy()
        slow[0, 1] *= 2
        slow[4, 5] *= 2
        again, count = mended(Table(widths, widths, tuple(map(tuple, slow.tolist()))))
        assert count == 2 or noise
        assert np.asarray(again.values) == pytest.approx(values, rel=0.25)


@pytest.mark.slow
def test_a_calibration_reaches_as_far_as_the_networks_of_a_report() -> None:
    net = network()
    controls = uniform(net, 1 / 16), uniform(net, 2.5), Arch(net.base.widths, dict.fromkeys(net.depths, 1))
    archs = spread(net, [space()], 24, 0, controls)
    assert archs[:4] == [net.base, *controls] and len(archs) <= 24
    assert spread(net, [space()], 8, 0, controls)[:2] == [net.base, controls[0]]  # others than controls decide the fit
    metric, cost = Floored(Target(threads=1)), calibrated(*controls)
    for share in (1 / 16, 1 / 8, 1 / 4, 1.5, 2.5):
        arch = uniform(net, share)
        assert not cost.remark(arch)
        assert cost.cost(arch) == pytest.approx(metric.of(net, arch), rel=0.03)
    measured = cells(net, [space()], 12, controls=controls)
    for arch, layers in product(controls, [dict.fromkeys(each for mine in measured.values() for each in mine)]):
        assert all(use.layer in layers for use in net.uses(arch))


def test_a_narrow_network_that_no_fit_explains_moves_no_other_prediction() -> None:
    """Relative to its measurement, its error outweighed those of all others, which were predicted at a hundredth."""
    sums = np.ones((23, 1))
    measured = np.exp(0.3 * np.random.default_rng(0).standard_normal(23))
    (plain,) = _weights(sums, measured, np.ones(23), 0)
    (weight,) = _weights(np.append(sums, [[1.0]], axis=0), np.append(measured, 0.01), np.ones(24), 0)
    assert weight == pytest.approx(plain, rel=0.15)
    assert _weights(sums, 3 * measured, np.ones(23), 0) == pytest.approx([3 * plain])
