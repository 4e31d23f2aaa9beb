"""A metric beside a store: what is reused, rescaled, measured anew, and kept, with scripted figures."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pytest
from torch import nn

from htas.errors import UserError
from htas.graph.layer import Layer, Template
from htas.metrics import Case, Metric, OnRound, Pending
from htas.spaces.remember import ANCHOR, FACTOR, MOVED, CachedMetric
from htas.timing.measurement import Measurement
from htas.timing.store import Store
from htas.timing.target import Target

CONV = Template("conv", (8, 8), inputs=3)
OTHER = Template("conv", (8, 8), inputs=5)


@dataclass(frozen=True)
class Scripted(Metric):
    """A layer takes its width in milliseconds, a network half a second, at the machine's speed of this moment."""

    unit: ClassVar[str] = "s"
    target: Target = field(default_factory=lambda: Target(threads=1))
    speed: float = 1.0
    slower: Mapping[int, float] = field(default_factory=dict)
    """Layers of these widths take so many times as long."""
    survey: str = "s1"
    asked: list[Case] = field(default_factory=list)
    open: list[Case] = field(default_factory=list)

    def measure(
        self, cases: Sequence[Case], *, on_round: OnRound | None = None, pending: Pending | None = None
    ) -> list[Measurement]:
        self.asked.extend(cases)
        found = [Measurement((self.seconds(case),) * 4, "s", {"x": "y"}, self.survey, (1.0,) * 4) for case in cases]
        readings = dict(zip(cases, found, strict=True))
        self.open.extend(filter(set(pending(readings)).__contains__, cases) if pending is not None else ())
        return found

    def seconds(self, case: Case) -> float:
        if not isinstance(case, Layer):
            return 0.5 / self.speed
        return case.outputs / 1e3 / self.speed * self.slower.get(case.outputs, 1.0)


def wide(*widths: int, layer: Template = CONV) -> list[Layer]:
    return [layer.wide(width) for width in widths]


def beside(path: Path, metric: Metric, fresh: bool = False, place: str = "here") -> CachedMetric:
    """The metric with the store of that path."""
    return CachedMetric(Target(threads=1), metric, "latency", Store(path / "store.sqlite"), place, fresh)


def nothing(found: object) -> set[Case]:
    return set()


def estimates(found: Iterable[Measurement]) -> list[float]:
    return [each.estimate for each in found]


def test_a_curve_is_measured_once_and_the_anchor_every_time(tmp_path, capsys):
    first = Scripted()
    assert estimates(beside(tmp_path, first).measure(wide(1, 2), pending=nothing)) == [0.001, 0.002]
    assert first.asked == [*wide(1, 2), ANCHOR]
    again = Scripted(survey="s2")
    found = beside(tmp_path, again).measure([*wide(2, 1), *wide(7, layer=OTHER)], pending=nothing)
    assert again.asked == [ANCHOR, *wide(2, 1), *wide(7, layer=OTHER), ANCHOR]  # the anchor beside some, then the rest
    assert estimates(found) == pytest.approx([0.002, 0.001, 0.007])
    assert [each.survey for each in found] == ["s1", "s1", "s2"]
    assert "store: 2 of 3 layers were measured before and still hold" in capsys.readouterr().err


def test_a_curve_that_lacks_a_width_is_measured_whole(tmp_path):
    beside(tmp_path, Scripted()).measure(wide(1, 2), pending=nothing)
    again = Scripted(survey="s2")
    beside(tmp_path, again).measure(wide(1, 2, 3), pending=nothing)
    assert again.asked == [*wide(1, 2, 3), ANCHOR]


@pytest.mark.parametrize("speed", [0.99 * FACTOR, 1.01 / FACTOR])
def test_what_is_reused_is_rescaled_by_how_far_the_machine_moved(tmp_path, speed):
    beside(tmp_path, Scripted()).measure(wide(4), pending=nothing)
    (found,) = beside(tmp_path, Scripted(speed=speed, survey="s2")).measure(wide(4), pending=nothing)
    assert found.estimate == pytest.approx(0.004 / speed)
    assert f"rescaled by {1 / speed:.3f}, as the machine's speed moved" in found.remarks[-1]


def test_layers_that_moved_together_but_for_a_little_are_reused(tmp_path):
    beside(tmp_path, Scripted()).measure(wide(1, 2, 3, 4), pending=nothing)
    again = Scripted(speed=0.8, slower={3: 1 + MOVED}, survey="s2")
    found = beside(tmp_path, again).measure(wide(1, 2, 3, 4), pending=nothing)
    assert estimates(found) == pytest.approx([0.001 / 0.8, 0.002 / 0.8, 0.003 / 0.8, 0.004 / 0.8])


@pytest.mark.parametrize("change", [{"speed": 1.01 * FACTOR}, {"speed": 0.99 / FACTOR}, {"slower": {3: 1.1}}])
def test_on_another_machine_all_is_measured_anew(tmp_path, capsys, change):
    cases = wide(1, 2, 3, 4)
    beside(tmp_path, Scripted()).measure(cases, pending=nothing)
    again = Scripted(**change, survey="s2")
    found = beside(tmp_path, again).measure(cases, pending=nothing)
    assert again.asked == [ANCHOR, *cases, *cases, ANCHOR]
    assert {(each.survey, each.remarks) for each in found} == {("s2", ())}
    assert (
        "layers moved by more than 3% against each other since; all of them are measured again"
        in capsys.readouterr().err
    )
    (later, *_) = beside(tmp_path, Scripted(**change, survey="s3")).measure(cases, pending=nothing)
    assert later.survey == "s2"  # the newest is what counts then


def test_fresh_measures_anew_and_keeps_it(tmp_path):
    beside(tmp_path, Scripted()).measure(wide(4), pending=nothing)
    again = Scripted(survey="s2")
    beside(tmp_path, again, fresh=True).measure(wide(4), pending=nothing)
    assert again.asked == [*wide(4), ANCHOR]
    (found,) = beside(tmp_path, Scripted(survey="s3")).measure(wide(4), pending=nothing)
    assert found.survey == "s2"


def test_another_place_has_a_memory_of_its_own(tmp_path):
    beside(tmp_path, Scripted()).measure(wide(4), pending=nothing)
    again = Scripted(survey="s2")
    beside(tmp_path, again, place="there").measure(wide(4), pending=nothing)
    assert again.asked == [*wide(4), ANCHOR]


def test_networks_are_always_measured_and_the_anchor_may_be_asked_for(tmp_path):
    network = nn.Identity()
    for survey in ("s1", "s2"):
        metric = Scripted(survey=survey)
        found = beside(tmp_path, metric).measure([network, ANCHOR, network], pending=nothing)
        assert estimates(found) == [0.5, 0.016, 0.5]
        assert metric.asked == [*([ANCHOR] if survey == "s2" else []), network, ANCHOR]


def test_a_store_that_fails_is_said_and_done_without(tmp_path, monkeypatch, capsys):
    def fails(*_: object) -> None:
        raise UserError("the disk is full")

    metric = Scripted()
    monkeypatch.setattr(Store, "curve", fails)
    monkeypatch.setattr(Store, "add", fails)
    assert estimates(beside(tmp_path, metric).measure(wide(1, 2), pending=nothing)) == [0.001, 0.002]
    assert metric.asked == [*wide(1, 2), ANCHOR]
    said = capsys.readouterr().err
    assert "store: the disk is full; all layers are measured again" in said
    assert "store: the disk is full; this survey is not in it" in said


def test_a_layer_that_takes_next_to_nothing_is_left_out_of_the_store_and_no_other(tmp_path, capsys):
    """On a noisy machine its readings, less those around it, may be below 0."""
    metric = Scripted(slower={1: -0.5})
    assert estimates(beside(tmp_path, metric).measure(wide(1, 2), pending=nothing)) == [-0.0005, 0.002]
    assert "not in it" not in capsys.readouterr().err
    assert estimates(beside(tmp_path, metric).measure(wide(2), pending=nothing)) == [0.002]
    assert "1 of 1 layers were measured before" in capsys.readouterr().err
    assert metric.asked == [*wide(1, 2), ANCHOR, ANCHOR, *wide(2)]
    beside(tmp_path, metric).measure(wide(1, 2), pending=nothing)
    assert metric.asked[-3:] == [*wide(1, 2), ANCHOR]


def test_wanted_hears_of_all_and_is_asked_of_what_is_measured_now(tmp_path):
    beside(tmp_path, Scripted()).measure(wide(1, 2), pending=nothing)
    cases = [*wide(1), *wide(7, 8, layer=OTHER), *wide(2)]

    def pending(found: Mapping[Case, Measurement]) -> list[Case]:
        assert estimates(map(found.__getitem__, cases)) == [0.001, 0.007, 0.008, 0.002]
        return asked

    asked = [cases[0], cases[2]]
    metric = Scripted(survey="s2")
    beside(tmp_path, metric).measure(cases, pending=pending)
    assert metric.open == [*wide(8, layer=OTHER), ANCHOR]
    asked = [cases[0], cases[3]]
    metric = Scripted(survey="s3")
    beside(tmp_path, metric, fresh=False).measure(cases, pending=pending)
    assert metric.open == []  # all that is pending is from the store


def test_a_sampled_curve_is_reused_as_far_as_its_survey_went(tmp_path):
    cases = wide(*range(1, 10))
    first = beside(tmp_path, Scripted()).sample(cases, wide(1, 5, 9), pending=lambda found: wide(3))
    assert list(first) == wide(1, 3, 5, 9)
    again = Scripted(survey="s2")
    found = beside(tmp_path, again).sample(cases, wide(1, 5, 9), pending=lambda found: wide(3, 4))
    assert again.asked == [ANCHOR, *wide(1, 3, 5, 9)]
    assert {layer.outputs: each.estimate for layer, each in found.items()} == {1: 0.001, 3: 0.003, 5: 0.005, 9: 0.009}
    assert {each.survey for each in found.values()} == {"s1"}
    other = Scripted(survey="s3")
    found = beside(tmp_path, other).sample(cases, wide(1, 6, 9), pending=lambda found: wide(2))
    assert other.asked == [*wide(1, 6, 9), ANCHOR, *wide(2)]
    assert {each.survey for each in found.values()} == {"s3"}


def test_sampled_curves_are_reused_together_or_not_at_all(tmp_path):
    beside(tmp_path, Scripted()).sample(wide(1, 2, 3), wide(1, 3), pending=lambda found: [])
    metric = Scripted(survey="s2")
    cases = [*wide(1, 2, 3), *wide(1, 2, 3, layer=OTHER)]
    found = beside(tmp_path, metric).sample(cases, [*wide(1, 3), *wide(1, 3, layer=OTHER)], pending=lambda found: [])
    assert {each.survey for each in found.values()} == {"s2"}
    assert ANCHOR not in found
