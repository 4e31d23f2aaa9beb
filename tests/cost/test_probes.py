"""Layers of one planted device for another: a slower one of the same kind is accepted, another staircase refused."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from htas.cost.calibrate import UNSTEADY, cells, cost_model, spread, table
from htas.cost.fit import CalibrationRecord, fit
from htas.cost.transfer import CLOSE, CLOSE_SHARE, FAR, fit_elsewhere, holds, probes
from htas.graph import Arch, Network, trace
from htas.graph.layer import Layer, Template
from htas.models.cifar_resnet import CifarResNet
from htas.spaces.space import Space, tas_widths
from htas.timing.measurement import Measurement

Seconds = Callable[[Layer], float]
NOISE = 0.01


@cache
def network() -> Network:
    return trace(CifarResNet(14).build(10), torch.zeros(1, 3, 32, 32))


@cache
def all_spaces() -> tuple[Space, ...]:
    """The best widths of the first device, and those of TAS."""
    sites = network().widths
    depths = {name: (1, 2) for name in network().depths}
    steps = {name: tuple(range(8, 2 * site.base + 1, max(8, site.base // 4))) for name, site in sites.items()}
    published = {name: tas_widths(site.base, site.multiple) for name, site in sites.items()}
    return Space("hardware", steps, depths), Space("tas", published, depths)


def stepped(step: int, each: float = 2e-6, strided: float = 1.0) -> Seconds:
    """A device that computes `step` channels at a time."""

    def seconds(layer: Layer) -> float:
        if not layer.macs:
            return 1e-6
        pair = layer.macs / (layer.inputs * layer.outputs)
        scale = strided if max(layer.stride) > 1 else 1.0
        return each + scale * 1e-9 * pair * layer.inputs * math.ceil(layer.outputs / step) * step

    return seconds


def readings(archs: list[Arch], seconds: Seconds) -> list[Measurement]:
    rng = np.random.default_rng(0)
    whole = [sum(seconds(use.layer) for use in network().uses(arch)) for arch in archs]
    return [Measurement((each * (1 + NOISE * rng.normal()),), "s") for each in whole]


@cache
def first_device() -> CalibrationRecord:
    """It computes 8 channels at a time."""
    seconds = stepped(8)
    tables = {
        template: table(layers, {layer: Measurement((seconds(layer),), "s") for layer in layers})
        for template, layers in cells(network(), all_spaces(), 16).items()
    }
    archs = spread(network(), all_spaces(), 24, seed=0)
    fitted = fit(network(), tables, archs, readings(archs, seconds))
    return CalibrationRecord(
        **vars(fitted), tables={template.key: grid for template, grid in tables.items()}, layers=0, mended=0
    )


def test_networks_of_the_calibration_are_measured_again_and_no_more_than_asked_for() -> None:
    record = first_device()
    for count in (6, 12, 24):
        chosen = probes(network(), record, count)
        assert chosen[0] == record.networks[0] and len(chosen) == min(count, len(record.networks))
        assert len({each.arch for each in chosen}) == len(chosen)
        macs = [network().macs(each.arch) for each in record.networks]
        mine = [network().macs(each.arch) for each in chosen]
        assert min(mine) == min(macs) and max(mine) == max(macs)


def test_an_error_that_the_first_device_has_too_is_not_the_transfers() -> None:
    """A network of both devices is faster than its layers; it counts where it is so on one of them only."""
    record, seconds = first_device(), stepped(8, each=9e-6)
    odd = 0.75
    chosen = probes(network(), record, 12)
    there = [replace(chosen[0], measured=odd * chosen[0].measured), *chosen[1:]]
    measured = readings([each.arch for each in chosen], seconds)
    measured[0] = measured[0].scaled(odd)
    fitted = fit_elsewhere(network(), record, chosen, measured)
    assert holds(fitted, there) and not holds(fitted, chosen)
    assert fitted.worst_error > 0.25


DEVICES: dict[str, tuple[Seconds, bool]] = {
    "slower layers": (stepped(8, each=9e-6), True),
    "steps of 12": (stepped(12), False),
    "slower": (lambda layer: 4.2 * stepped(8)(layer), True),
    "slower strides": (stepped(8, strided=1.5), True),
    "steps of 4": (stepped(4), False),
    "steps of 16": (stepped(16), False),
    "steps of 32": (stepped(32), False),
    "no steps": (stepped(1), False),
}
CASES = [(name, count) for name in DEVICES for count in (12, 24)]


@pytest.mark.parametrize(
    ("name", "count"),
    [pytest.param(*case, marks=[pytest.mark.slow] if case not in CASES[:4:2] else []) for case in CASES],
)
def test_a_device_of_the_same_staircase_is_accepted_and_no_other(name: str, count: int) -> None:
    seconds, will_do = DEVICES[name]
    chosen = probes(network(), first_device(), count)
    measured = readings([each.arch for each in chosen], seconds)
    fitted = fit_elsewhere(network(), first_device(), chosen, measured)
    assert holds(fitted, chosen) == will_do
    assert (fitted.mean_error < 0.02) == will_do
    if will_do:
        cost = cost_model(network(), replace(first_device(), **vars(fitted)))
        others = spread(network(), all_spaces(), 20, seed=5)
        truth = [sum(seconds(use.layer) for use in network().uses(arch)) for arch in others]
        errors = np.asarray([abs(cost.cost(arch) / true - 1) for arch, true in zip(others, truth, strict=True)])
        assert np.mean(errors <= CLOSE) >= CLOSE_SHARE and errors.max() <= FAR


def test_networks_whose_readings_differ_much_hardly_move_the_fit() -> None:
    """Those of the fewest multiply-adds were read while something else ran: slower, and unsteadily."""
    record, seconds = first_device(), stepped(8)
    tables = {Template.of(key): grid for key, grid in record.tables.items()}
    archs = sorted((each.arch for each in record.networks), key=network().macs)
    archs.insert(0, archs.pop(archs.index(network().base)))
    steady = readings(archs, seconds)
    rng = np.random.default_rng(1)
    for number in (1, 2, 3):
        disturbed = steady[number].estimate * rng.uniform(1, 4, size=24)
        steady[number] = Measurement(tuple(disturbed.tolist()), "s")
    assert [each.error > UNSTEADY * each.estimate for each in steady[:5]] == [False, True, True, True, False]
    known = fit(network(), tables, archs, steady)
    sure = [Measurement((each.estimate,), "s") for each in steady]
    as_good_as_others = fit(network(), tables, archs, sure)
    others = spread(network(), all_spaces(), 40, seed=5)
    off = []
    for fitted in (known, as_good_as_others):
        cost = cost_model(network(), replace(record, **vars(fitted)))
        truth = [sum(seconds(use.layer) for use in network().uses(arch)) for arch in others]
        off.append(np.mean([abs(cost.cost(arch) / each - 1) for arch, each in zip(others, truth, strict=True)]))
    assert off[0] < 0.02 and off[0] < off[1] / 2
