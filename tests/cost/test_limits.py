"""Limits as people write them, and the archs that keep and use them."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from htas.cost.constraints import Constraints, parse
from htas.cost.limits import Limit, limits
from htas.cost.model import CostModel
from htas.cost.source import NetworkCosts
from htas.graph import trace
from htas.graph.arch import Arch
from htas.graph.layer import Layer
from htas.metrics import Case, Metric
from htas.report.result import front
from htas.search.moves import AIM, USED, check, filled, finalists, fitted, leanest, next_aim, over, uniforms
from htas.spaces.space import Space
from htas.timing.measurement import Measurement
from htas.timing.target import Target

SPACE = Space("some", {name: (4, 8, 12, 16) for name in "abc"}, {"d": (1, 2, 3)})
BASE = Arch({name: 8 for name in "abc"}, {"d": 3})


@dataclass(frozen=True)
class Product(CostModel):
    """A stand-in: widths added, times the depth; `stairs` makes 12 dearer than 16."""

    stairs: bool = False
    unit: str = "s"

    def cost(self, arch: Arch) -> float:
        widths = [20 if self.stairs and width == 12 else width for width in arch.widths.values()]
        return 1e-3 * sum(widths) * arch.depths["d"]

    def expected(self, space: Space, widths: dict[str, Tensor], depths: dict[str, Tensor]) -> Tensor:
        raise NotImplementedError


def limit(text: str, stairs: bool = False) -> tuple[Limit, ...]:
    return limits(Constraints(latency=text), {"latency": Product(stairs)}, BASE)


@pytest.mark.parametrize(
    "metric, text, value",
    [
        ("latency", "50%", 0.5 * 7),
        ("latency", " 62.5 % ", 0.625 * 7),
        ("latency", "8 ms", 0.008),
        ("latency", "800us", 0.0008),
        ("latency", "0.5s", 0.5),
        ("macs", "20M", 20e6),
        ("macs", "1.5 G", 1.5e9),
        ("params", "300k", 300e3),
        ("params", "270000", 270e3),
        ("latency", ".5ms", 5e-4),
    ],
)
def test_a_limit_is_a_share_or_a_figure_with_its_unit(metric: str, text: str, value: float) -> None:
    assert parse(metric, text, 7.0) == pytest.approx(value)


@pytest.mark.parametrize("text", ["8", "fast", "-3 ms", "0%", "8 MB", "ms", "8 ms or so"])
def test_a_limit_that_is_none_is_refused_with_the_units(text: str) -> None:
    with pytest.raises(ValueError) as error:
        Constraints(latency=text)
    assert str(error.value) == (
        'constraints.latency must be a share of the base network such as "50%", or a number over 0 with a unit '
        f'(s, ms, us, %) such as "8 ms", got {text!r}'
    )


def test_what_is_asked_stands_beside_what_there_is() -> None:
    (title, row) = check(limit("50%"), SPACE, BASE)
    assert title.split() == ["limit", "least", "possible", "base", "widest", "asked"]
    assert " ".join(row.split()) == "latency 12.0 ms (17 %) 72.0 ms (100 %) 144 ms (200 %) 36.0 ms (50 %)"
    assert check((), SPACE, BASE) == []


def test_the_impossible_is_refused_with_the_figures() -> None:
    with pytest.raises(ValueError, match=r"asks for 7.20 ms \(10 %\) of the base; the least .* is 12.0 ms \(17 %\)"):
        check(limit("10%"), SPACE, BASE)
    with pytest.raises(ValueError, match=r"asks for 180 ms \(250 %\) of the base, and even the widest .* 144 ms"):
        check(limit("250%"), SPACE, BASE)


def test_the_leanest_arch_may_be_a_wider_one() -> None:
    space = Space("odd", {name: (12, 16) for name in "abc"}, {"d": (1,)})
    assert leanest(limit("50%", stairs=True), space).widths == {"a": 16, "b": 16, "c": 16}


@pytest.mark.parametrize("share", [25, 40, 60, 80, 150])
@pytest.mark.parametrize("seed", range(5))
def test_a_fitted_arch_keeps_its_limit_and_uses_it(share: int, seed: int) -> None:
    rng = random.Random(seed)
    taste = {(site, choice): rng.gauss(0, 1) for site, choices in SPACE.choices.items() for choice in choices}

    def worth(arch: Arch) -> float:
        return sum(taste[site, arch[site]] for site in SPACE.choices)

    asked = limit(f"{share}%")
    best = max((SPACE.sample(rng) for _ in range(200)), key=worth)
    for start in (SPACE.widest, SPACE.narrowest, BASE, best):
        found = fitted(asked, SPACE, start, worth)
        assert found in SPACE and over(asked, found) <= 1
        # nothing that would be dearer by one change, and still fit, is left
        assert over(asked, found) >= 0.7


def test_the_best_arch_is_found_where_worth_is_plain() -> None:
    """Wider is better, "a" most of all: the budget goes there."""

    def worth(arch: Arch) -> float:
        return 10.0 * arch.widths["a"] + arch.widths["b"] + arch.widths["c"] + arch.depths["d"]

    found = fitted(limit("100%"), SPACE, SPACE.narrowest, worth)
    assert found.widths["a"] == 16


def test_finalists_are_near_the_first_and_within_the_limits() -> None:
    wide = Space("wide", {name: tuple(range(1, 17)) for name in "abc"}, {"d": (1, 2, 3)})
    asked = limit("60%")
    first, *others = finalists(asked, wide, wide.widest, lambda arch: float(sum(arch.widths.values())), 5)
    assert len(others) == 4 and len(set(others)) == 4
    for other in others:
        assert USED <= over(asked, other) <= 1
        assert sum(other[site] != first[site] for site in wide.choices) <= 2


def test_the_uniform_networks_have_equal_choices_and_fit_the_widest_first() -> None:
    every = [Arch({name: width for name in "abc"}, {"d": 3}) for width in (16, 12, 8, 4)]
    assert uniforms(limit("200%"), SPACE) == every
    assert uniforms(limit("100%"), SPACE) == every[2:]
    assert uniforms(limit("55%"), SPACE) == every[3:]
    assert uniforms(limit("40%"), SPACE) == []
    assert uniforms((), SPACE) == []


def test_room_within_the_limits_is_filled_site_by_site() -> None:
    even = Arch({name: 8 for name in "abc"}, {"d": 3})  # the base: widths of 24 together; 120 % is 28.8
    assert filled(limit("120%"), SPACE, even) == Arch({"a": 12, "b": 8, "c": 8}, {"d": 3})
    assert filled(limit("140%"), SPACE, even) == Arch({"a": 12, "b": 12, "c": 8}, {"d": 3})
    assert filled(limit("100%"), SPACE, even) == even
    assert filled(limit("900%"), SPACE, SPACE.widest) == SPACE.widest


def test_several_limits_are_kept_together() -> None:
    costs = {"latency": Product(), "params": Product(unit="parameters")}
    both = limits(Constraints(latency="80%", params="36 k"), costs, BASE)
    assert [own.metric for own in both] == ["latency", "params"]
    both = (both[0], Limit("params", "0.036", costs["params"], 0.036))
    found = fitted(both, SPACE, SPACE.widest, lambda arch: 0.0)
    assert all(own.ratio(found) <= 1 for own in both)


def test_the_front_is_what_no_other_beats() -> None:
    assert front([(2.0, 0.5), (1.0, 0.4), (3.0, 0.45), (4.0, 0.9), (1.0, 0.3)]) == [1, 0, 3]
    assert front([]) == []


def test_a_penalty_leads_expected_costs_to_the_limit_from_either_side() -> None:
    from htas.cost.paper import PaperCost, Term
    from htas.strategies.differentiable import Multiplier

    space = Space("one", {"a": (4, 8, 12, 16)}, {})
    cost = PaperCost((Term("a", (), 1.0, 1.0, 0.0),), {})
    for start in (-3.0, 3.0):
        logits = torch.tensor([0.0, start, -start, 0.0], requires_grad=True)
        multiplier = Multiplier((Limit("latency", "9 s", cost, 9.0),), space)
        adam = torch.optim.Adam([logits], 0.1)
        for _ in range(200):
            loss = multiplier.penalty({"a": torch.softmax(logits, 0)}, {}) + 0.3 * logits[3]  # something else to want
            adam.zero_grad()
            loss.backward()
            adam.step()
        assert float(cost.expected(space, {"a": torch.softmax(logits.detach(), 0)}, {})) == pytest.approx(
            0.975 * 9, rel=0.05
        )


def test_the_next_aim_is_where_what_was_measured_points_to() -> None:
    assert next_aim([]) == 1.0
    assert next_aim([(1.0, 1.3)]) == pytest.approx(AIM / 1.3)
    # measured = aim^2 x 1.3: from two turns the next comes out right
    first = next_aim([(1.0, 1.3)])
    aim = next_aim([(1.0, 1.3), (first, 1.3 * first**2)])
    assert 1.3 * aim**2 == pytest.approx(AIM)


def test_finalists_of_a_pool_are_its_own_the_best_that_keep_the_limits_first() -> None:
    asked = limit("50%")
    pool = [Arch({name: width for name in "abc"}, {"d": depth}) for width in (4, 8, 12, 16) for depth in (1, 2, 3)]
    worth = {arch: float(arch.depths["d"]) for arch in pool}
    found = finalists(asked, SPACE, BASE, worth.__getitem__, 3, pool)
    assert found == [Arch(dict.fromkeys("abc", 4), {"d": depth}) for depth in (3, 2, 1)]
    assert [over(asked, arch) for arch in found] == pytest.approx([1.0, 2 / 3, 1 / 3])


@dataclass(frozen=True)
class WeightBytes(Metric):
    """A stranger's metric: four bytes a parameter, summed over layers."""

    unit: ClassVar[str] = "bytes"
    units: ClassVar[dict[str, float]] = {"kB": 1e3}
    example: ClassVar[str] = "7 kB"
    noisy: ClassVar[bool] = False
    whole: ClassVar[bool] = False
    fitted: ClassVar[bool] = False

    @classmethod
    def cost(cls, costs: NetworkCosts) -> CostModel:
        return costs.summed(cls)

    def measure(self, cases: Sequence[Case], **_: Any) -> list[Measurement]:
        return [Measurement((4.0 * (case.params if isinstance(case, Layer) else 0.0),), self.unit) for case in cases]


def test_a_strangers_metric_is_limited_and_charged_with_nothing_else_changed() -> None:
    name = f"{__name__}:WeightBytes"
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 1), nn.Flatten(), nn.Linear(216, 2))
    network = trace(model, torch.zeros(1, 3, 8, 8))
    costs = NetworkCosts(network, Target(shapes=((3, 8, 8),)), dict)
    asked = Constraints(metrics={name: "50%"}, macs="60%")
    (macs, own) = limits(asked, {metric: costs.by(metric) for metric in asked.by_metric}, network.base)
    assert (macs.metric, own.metric, own.kind, own.cost.unit) == ("macs", name, WeightBytes, "bytes")
    assert own.most == 0.5 * 4 * network.params(network.base)
    assert parse(name, "2 kB", 1.0) == 2000
    with pytest.raises(ValueError, match=r'constraints.metrics.".*:WeightBytes" must be .* such as "7 kB", got .8 ms.'):
        Constraints(metrics={name: "8 ms"})
    with pytest.raises(ValueError, match="no metric called"):
        Constraints(metrics={"none": "50%"})
