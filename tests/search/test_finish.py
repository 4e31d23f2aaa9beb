"""What a search ends in on a device whose latencies are planted: that of no arch here depends on a clock."""

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import nn

from htas.cost.constraints import Constraints
from htas.cost.counts import CountCost
from htas.cost.limits import limits
from htas.data.split import Data, Split
from htas.graph import trace
from htas.graph.arch import Arch
from htas.models.cifar_resnet import CifarResNet
from htas.search import finish
from htas.search.moves import filled, over, uniforms
from htas.search.problem import Problem, SearchOutcome
from htas.spaces.space import Space
from htas.timing.measurement import Measurement
from htas.timing.target import Target

NETWORK = trace(CifarResNet(14).build(2), torch.zeros(2, 3, 8, 8))
SPACE = Space(
    "test",
    {name: tuple(site.base * step // 4 for step in (1, 2, 3, 4, 5)) for name, site in NETWORK.widths.items()},
    {name: (1, 2) for name in NETWORK.depths},
)
COST = CountCost(NETWORK)
"""What is predicted, called seconds."""
ASKED = limits(Constraints(latency="60%"), {"latency": COST}, NETWORK.base)
WIDE, NARROW = uniforms(ASKED, SPACE)[:2]


class Device:
    """Networks take what is predicted times `off`, as does the base network, whose `off` is 1."""

    def __init__(self, off: Callable[[Arch], float]) -> None:
        self.off = off
        self.measured: list[tuple[Arch, ...]] = []

    def against_base(self, archs: list[Arch], metric: str, what: str) -> dict[Arch, finish.PairedReading]:
        self.measured.append(tuple(archs))
        base = seconds(COST.cost(NETWORK.base))
        return {arch: finish.PairedReading(seconds(COST.cost(arch) * self.off(arch)), base) for arch in archs}


def seconds(value: float) -> Measurement:
    return Measurement((value,) * 3, "s", {}, "one")


def end(
    monkeypatch, device: Device, accuracy: Callable[[Arch], float], pool: tuple[Arch, ...] = (), estimates: bool = False
) -> finish.FinishedSearch:  # fmt: skip
    """Of a search that prefers wide networks; `accuracy` is what the supernet finds, or is known of a pool."""
    monkeypatch.setattr(finish._Finish, "against_base", lambda self, *args: device.against_base(*args))
    part = Split(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 1]), (0.5,) * 3, (0.5,) * 3, False, 0)
    data = Data(2, (3, 8, 8), part, part, part, part)
    problem = Problem(
        NETWORK, nn.Module.eval, data, SPACE, COST, "cpu", 0, Path("search"), nn.Module, limits=ASKED
    )  # fmt: skip
    found = SearchOutcome(
        SPACE.widest, (), True, "", lambda archs: [accuracy(arch) for arch in archs], 0.0,
        accuracy if pool else lambda arch: float(sum(arch.widths.values())), pool, cheap=not pool,
        estimates=estimates,
    )  # fmt: skip
    return finish.finish(problem, found, Target())


def ratio(taken: finish.FinishedSearch) -> float:
    (kept,) = taken.limits
    return kept.ratio


def test_an_arch_that_uses_the_limit_is_taken_before_a_less_accurate_uniform_one(monkeypatch):
    device = Device(lambda arch: 1.0)
    taken = end(monkeypatch, device, lambda arch: 0.5 if arch == WIDE else 0.9)
    assert taken.arch not in uniforms(ASKED, SPACE) and finish.LEAST_USED <= ratio(taken) <= 1
    assert taken.uniform == WIDE
    assert not any(WIDE in archs for archs in device.measured), "and it is not measured"


def test_a_more_accurate_uniform_network_is_taken_on_a_second_reading(monkeypatch):
    device = Device(lambda arch: 1.0)
    taken = end(monkeypatch, device, lambda arch: 0.9 if arch == WIDE else 0.5)
    assert taken.arch == taken.uniform == WIDE
    assert ratio(taken) == pytest.approx(over(ASKED, WIDE))
    assert device.measured[-2:] == [(WIDE,), (WIDE,)]


def test_an_estimate_that_tells_more_than_untrained_networks_decides_against_the_uniform_one(monkeypatch):
    taken = end(monkeypatch, Device(lambda arch: 1.0), lambda arch: 0.9 if arch == WIDE else 0.5, estimates=True)
    assert sum(taken.arch.widths.values()) > sum(WIDE.widths.values()) and taken.arch != WIDE
    assert taken.uniform == WIDE and finish.LEAST_USED <= ratio(taken) <= 1


def test_a_uniform_network_some_widths_of_which_are_wider_is_taken_where_it_is_no_worse(monkeypatch):
    wider = filled(ASKED, SPACE, WIDE)
    assert over(ASKED, WIDE) < over(ASKED, wider) <= 1
    taken = end(monkeypatch, Device(lambda arch: 1.0), lambda arch: 0.9 if arch in (WIDE, wider) else 0.5)
    assert taken.arch == wider and taken.uniform == WIDE
    assert ratio(taken) == pytest.approx(over(ASKED, wider))


def test_a_uniform_network_that_is_over_the_limit_when_measured_makes_room_for_a_narrower_one(monkeypatch):
    device = Device(lambda arch: 1.05 / over(ASKED, WIDE) if arch == WIDE else 1.0)
    taken = end(monkeypatch, device, lambda arch: 0.9 if arch == WIDE else 0.5)
    assert taken.uniform == NARROW and taken.arch != NARROW, "which is no better than what was found"
    taken = end(monkeypatch, device, lambda arch: 0.9 if arch in (WIDE, NARROW) else 0.5)
    assert taken.arch == taken.uniform == NARROW and ratio(taken) <= 1


def test_uniform_networks_that_would_be_over_too_are_not_measured(monkeypatch):
    """The narrower one is as far off as the wider: by that it is over, and left out."""
    far = 1.01 / over(ASKED, NARROW)
    device = Device(lambda arch: far if arch in uniforms(ASKED, SPACE) else 1.0)
    taken = end(monkeypatch, device, lambda arch: 0.9 if arch in uniforms(ASKED, SPACE) else 0.5)
    assert any(WIDE in archs for archs in device.measured)
    assert not any(NARROW in archs for archs in device.measured)
    assert taken.uniform not in (WIDE, NARROW) and ratio(taken) <= 1


def test_where_nothing_that_was_found_keeps_the_limit_the_uniform_network_is_taken(monkeypatch, capsys):
    device = Device(lambda arch: 1.0 if arch in uniforms(ASKED, SPACE) else 50.0)
    taken = end(monkeypatch, device, lambda arch: 0.5 if arch == WIDE else 0.9)
    assert taken.arch == WIDE and ratio(taken) <= 1
    assert "as nothing found kept them when measured again" in capsys.readouterr().err


def test_a_network_over_the_limit_is_reported_as_such_where_nothing_keeps_it(monkeypatch):
    taken = end(monkeypatch, Device(lambda arch: 50.0), lambda arch: 0.5)
    assert ratio(taken) > 1 and taken.uniform is None


def test_of_a_pool_that_is_all_over_the_limit_the_nearest_is_taken(monkeypatch):
    """All are seen in the first turn, and none keeps it."""
    wide, narrow = uniforms(ASKED, SPACE)[:2]
    device = Device(lambda arch: 2 / over(ASKED, wide) if arch == wide else 3 / over(ASKED, narrow))
    taken = end(monkeypatch, device, {wide: 0.5, narrow: 0.6}.__getitem__, (narrow, wide))
    assert taken.arch == wide and ratio(taken) == pytest.approx(2)


def test_of_a_pool_the_best_is_taken_before_one_that_uses_the_limit(monkeypatch):
    """As on a device on which a wider network is faster than a narrower one, that nobody has judged."""
    wide, narrow = uniforms(ASKED, SPACE)[:2]
    device = Device(lambda arch: 0.65 / over(ASKED, wide) if arch == wide else 0.96 / over(ASKED, narrow))
    taken = end(monkeypatch, device, {wide: 0.5, narrow: -0.1}.__getitem__, (narrow, wide))
    assert taken.arch == wide and ratio(taken) == pytest.approx(0.65)
    assert not any(archs == (narrow,) for archs in device.measured)


def test_of_a_pool_that_leaves_room_the_most_accurate_that_keeps_the_limit_is_taken(monkeypatch):
    """The one that is best is over when measured; the next best is further from the limit than the worst."""
    narrow = [arch for arch in uniforms(ASKED, SPACE) if over(ASKED, arch) < 0.9][:2]
    near, far = sorted(narrow, key=lambda arch: over(ASKED, arch), reverse=True)
    known = {WIDE: 0.9, far: 0.8, near: 0.5}
    device = Device(lambda arch: 1.1 / over(ASKED, WIDE) if arch == WIDE else 1.0)
    taken = end(monkeypatch, device, known.__getitem__, tuple(known))
    assert taken.arch == far and ratio(taken) == pytest.approx(over(ASKED, far))


class Drifting:
    """A meter whose every reading is 1 % above the one before, in a space of a single speed."""

    noisy = whole = True
    units: ClassVar = {"s": 1.0}

    def __init__(self, target: Target) -> None:
        pass

    def reread(self, seed: int, expected: list[float]) -> "Drifting":
        return self

    def measure(self, modules: list[nn.Module], on_round: object = None) -> list[Measurement]:
        return [seconds(1.0 + 0.01 * number) for number in range(len(modules))]


def test_the_base_network_keeps_a_limit_of_all_that_it_takes_whatever_noise_says(monkeypatch):
    """It is read once, as it is compared with itself."""
    monkeypatch.setattr(finish.metrics, "named", lambda metric: Drifting)
    whole = limits(Constraints(latency="100%"), {"latency": COST}, NETWORK.base)
    part = Split(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 1]), (0.5,) * 3, (0.5,) * 3, False, 0)
    problem = Problem(
        NETWORK, nn.Module.eval, Data(2, (3, 8, 8), part, part, part, part), SPACE, COST, "cpu", 0, Path("search"),
        nn.Module, limits=whole,
    )  # fmt: skip
    found = SearchOutcome(
        NETWORK.base, (), True, "", lambda archs: [0.5] * len(archs), 0.0, lambda arch: float(arch == NETWORK.base),
        cheap=False,
    )  # fmt: skip
    taken = finish.finish(problem, found, Target())
    assert taken.arch == NETWORK.base and ratio(taken) == 1 and taken.limits[0].error == 0
