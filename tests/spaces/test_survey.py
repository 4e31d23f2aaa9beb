"""Which layers are surveyed, how often they count, and the fit of eq. 1, with a scripted metric."""

import json
import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from one_in import one_in
from torch import Tensor, nn

from htas.files import from_json, to_json
from htas.graph import Arch, Network, trace
from htas.graph.layer import Layer, Template
from htas.metrics import Case, Metric, OnRound, Pending
from htas.metrics.latency import Latency
from htas.models.cifar_resnet import CifarResNet
from htas.runtimes import Program, Runtime
from htas.spaces.curve import Curve, CurveRecord, Fit, LayerTable, SurveyRecord, add, curve
from htas.spaces.design import Design, certainty, choose, records, site_curves, spaces, undecided
from htas.spaces.layers import FEW, MOST, SOME, SurveyPlan, widest, widths_at_most
from htas.spaces.survey import Survey, survey
from htas.timing.bench import HostTimer, Timer
from htas.timing.measurement import Measurement
from htas.timing.target import Target


@dataclass(frozen=True)
class Scripted(Metric):
    """A layer takes one second per input plus a hundredth per output, and three times that.

    `asked` notes what was measured, `open` what more was pending of.
    """

    unit: ClassVar[str] = "s"
    asked: list[Case] = field(default_factory=list)
    open: list[Case] = field(default_factory=list)

    def measure(
        self, cases: Sequence[Case], *, on_round: OnRound | None = None, pending: Pending | None = None
    ) -> list[Measurement]:
        self.asked.extend(cases)
        found = [Measurement((self.seconds(case), 3 * self.seconds(case)), "s", {"x": "y"}, "s1") for case in cases]
        self.open.extend(pending(dict(zip(cases, found, strict=True))) if pending is not None else ())
        return found

    def seconds(self, case: Case) -> float:
        assert isinstance(case, Layer)
        return case.inputs + case.outputs / 100


@cache
def resnet(
    depth: int = 20, block: Literal["basic", "bottleneck"] = "basic", image: int = 32, adds: Any = "join"
) -> Network:
    return trace(CifarResNet(depth, block).build(10), torch.zeros(1, 3, image, image), adds=adds)


def scripted() -> Scripted:
    return Scripted(Target(threads=1))


def conv(inputs: int, side: int, stride: int = 1, activation: str = "", kernel: int = 3, norm: bool = True) -> Template:
    pad = kernel // 2
    return Template(
        "conv",
        (side, side),
        (kernel, kernel),
        (stride, stride),
        (pad, pad),
        norm=norm,
        activation=activation,
        inputs=inputs,
    )


# -- eq. 1 -------------------------------------------------------------------------------------------------------------


def test_a_line_is_fitted_as_numpy_fits_it() -> None:
    rng = np.random.default_rng(0)
    widths = tuple(range(1, 41))
    seconds = tuple(0.01 * w + 0.3 + 0.02 * rng.standard_normal() for w in widths)
    fit = Curve(widths, seconds).fit(1.0)
    assert (fit.k, fit.b) == pytest.approx(tuple(np.polyfit(widths, seconds, 1)))
    bent = Curve(widths, seconds).fit(0.5)
    assert (bent.k, bent.b) == pytest.approx(tuple(np.polyfit(np.sqrt(widths), seconds, 1)))
    assert bent.alpha == 0.5


@pytest.mark.parametrize("alpha", [0.4, 0.91, 1.0, 2.2])
def test_an_exact_curve_gives_back_its_exponent(alpha: float) -> None:
    widths = tuple(range(1, 65))
    planted = Fit(3e-5, alpha, 2e-4)
    fit = Curve(widths, tuple(planted(w) for w in widths)).fit("fit")
    assert (fit.k, fit.alpha, fit.b) == pytest.approx((3e-5, alpha, 2e-4), rel=1e-3)
    assert Curve(widths, tuple(planted(w) for w in widths)).fit(alpha).k == pytest.approx(3e-5)


def test_one_width_fits_a_constant() -> None:
    assert Curve((4,), (0.5,)).fit(1.0) == Fit(0.0, 1.0, 0.5)
    assert Curve((4,), (0.5,)).fit("fit")(100) == 0.5


def test_curves_add_with_their_counts() -> None:
    total = add([(1, Curve((1, 2), (1.0, 2.0))), (3, Curve((1, 2), (10.0, 20.0)))])
    assert total == Curve((1, 2), (31.0, 62.0))
    assert total.at(2) == 62.0


# -- which layers ------------------------------------------------------------------------------------------------------


def test_a_joined_site_has_every_producer_with_its_multiplicity() -> None:
    found = SurveyPlan(resnet(), 2).templates
    assert found["stem.conv"] == Counter({conv(3, 32, activation="relu"): 1, conv(16, 32): 3})
    shortcut = Template("conv", (16, 16), inputs=16)  # after 2x2 pooling
    assert found["stages.1.0.conv2.conv"] == Counter({conv(32, 16): 3, shortcut: 1})
    assert found["stages.1.0.conv1.conv"] == Counter({conv(16, 32, stride=2, activation="relu"): 1})
    for block in (1, 2):
        assert found[f"stages.1.{block}.conv1.conv"] == Counter({conv(32, 16, activation="relu"): 1})
    assert len(found) == 3 + 9


def test_expanded_inputs_are_e_times_as_wide() -> None:
    network = resnet()
    found = SurveyPlan(network, 1.5, "expanded").templates
    assert found["stem.conv"] == Counter({conv(3, 32, activation="relu"): 1, conv(24, 32): 3})
    assert SurveyPlan(network, 1.5, "expanded").arch["stages.2.0.conv1.conv"] == 96
    assert SurveyPlan(network, 1.5, "base").arch == network.base


@pytest.mark.parametrize(
    ("base", "expand", "last"), [(16, 2, 32), (16, 1, 16), (16, 1.3, 20), (100, 1.15, 115), (10, 1.1, 11), (3, 1.5, 4)]
)
def test_the_last_width_is_e_times_the_base_cut_to_a_whole_number(base: int, expand: float, last: int) -> None:
    assert widest(base, expand) == last


def test_every_distinct_layer_is_measured_once_at_every_width() -> None:
    metric = scripted()
    content = survey(SurveyPlan(resnet(), 2), metric)
    assert len(set(metric.asked)) == len(metric.asked) == content.cases
    assert content.cases == 3 * 32 + 4 * 64 + 4 * 128 + 1  # stage 1: 3 distinct, 2 and 3: 4 each, and the classifier
    deeper = scripted()
    survey(SurveyPlan(resnet(32), 2), deeper)
    assert set(deeper.asked) == set(metric.asked)
    assert content.survey == "s1"
    assert content.context == {"x": "y"}


def test_what_was_surveyed_reads_back_from_json() -> None:
    content = from_json(
        json.loads(json.dumps(to_json(survey(SurveyPlan(resnet(), 2), scripted())))),
        SurveyRecord,
        "survey.json",
    )
    found = curve(content.layers, conv(16, 32), range(1, 33))
    assert found.widths == tuple(range(1, 33))
    assert found.seconds == pytest.approx([1.5 * (16 + width / 100) for width in range(1, 33)])  # the 25th percentile
    for estimate, factor in (("minimum", 1), ("median", 2), ("mean", 2)):
        assert curve(content.layers, conv(16, 32), [5], estimate).seconds == pytest.approx([factor * 16.05])
    assert found.errors == pytest.approx([value / 1.5 * 0.5562 for value in found.seconds], rel=1e-3)
    assert curve(content.layers, Template("linear", (1, 1), bias=True, inputs=64), [10]).seconds == pytest.approx(
        [1.5 * 64.1]
    )


@pytest.mark.slow
def test_layers_that_differ_in_outputs_alone_keep_curves_of_their_own_length() -> None:
    network = resnet(20, "bottleneck")
    content = survey(SurveyPlan(network, 2), scripted())
    reduce = conv(64, 32, activation="relu", kernel=1)  # to 16 in the first stage, to 32 in the second
    assert curve(content.layers, reduce, range(1, 33)).widths == tuple(range(1, 33))
    assert curve(content.layers, reduce, range(1, 65)).seconds[-1] == pytest.approx(1.5 * 64.64)


def test_a_survey_without_a_layer_says_what_to_do() -> None:
    content = survey(SurveyPlan(resnet(8), 1), scripted())
    for missing in (conv(17, 32), conv(16, 32)):
        with pytest.raises(ValueError, match="lacks a layer of this network; delete it and run the survey again"):
            curve(content.layers, missing, range(1, 33))


def test_depthwise_layers_are_surveyed_at_every_width() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)
            self.wise = nn.Conv2d(4, 4, 3, groups=4)
            self.last = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.wise(self.conv(x)).mean((2, 3)))  # type: ignore[no-any-return]

    network = trace(Net(), torch.zeros(1, 3, 8, 8))
    metric = scripted()
    content = survey(SurveyPlan(network, 2), metric)
    (wise,) = [layer for layer in SurveyPlan(network, 2).templates["conv"] if layer.group_channels == 1]
    assert [case.groups for case in metric.asked if isinstance(case, Layer) and case.kernel == (3, 3)] == [*range(1, 9)]
    assert curve(content.layers, wise, range(1, 9)).seconds == pytest.approx(
        [1.5 * 1.01 * width for width in range(1, 9)]
    )


def test_a_layer_that_more_is_wanted_of_is_found_by_its_number() -> None:
    metric = scripted()
    asked = [conv(16, 32).wide(7), conv(32, 16).wide(40)]

    def pending(tables: Mapping[str, LayerTable]) -> list[Layer]:
        assert curve(tables, conv(16, 32), [7]).seconds == pytest.approx([1.5 * 16.07])
        return asked

    survey(SurveyPlan(resnet(), 2), metric, pending=pending)
    assert sorted(metric.open, key=asked.index) == asked


def test_uncertain_figures_are_a_doubt() -> None:
    (doubt,) = survey(SurveyPlan(resnet(8), 1), scripted()).doubts
    assert doubt.startswith("a layer's latency is known to 37.1% only (standard error, median over 337 layers)")


@pytest.mark.parametrize(
    ("field", "value"),
    [("rounds", 0), ("reading", -1.0), ("reading", float("nan")), ("seconds", -1.0), ("undecided", 1.1)],
)
def test_a_survey_that_measures_nothing_is_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"survey\.{field} must be .*got {value}"):
        Survey(**{field: value})  # type: ignore[arg-type]


def test_the_time_of_a_survey_goes_by_its_layers_unless_it_is_given() -> None:
    assert Survey().limit(250) == pytest.approx(20.0)
    assert Survey(seconds=7).limit(250) == Survey(seconds=7).limit(250, 3.0) == 7
    assert Survey().limit(250, 0.001) == Survey().limit(250) and Survey().limit(250, 3.0) == pytest.approx(770.0)
    assert Survey().limit(250, 0.02) == pytest.approx(50.0)  # built six times


# -- big sites ---------------------------------------------------------------------------------------------------------

STEPS = (13, 37, 75, 101, 139, 171, 203, 229, 267, 309, 341, 357, 403, 427, 469, 499)
"""The last width before each step: none at a multiple of the first spacing, 8, and none at the end of a group."""
BIG = Design(groups=8, spaces=("hardware",))
clock, rng = 0.0, random.Random(0)


def stairs(layer: Layer) -> float:
    """A millisecond, and 12 % more from step to step."""
    return 1e-3 * float(1.12 ** sum(layer.outputs > step for step in STEPS))


@dataclass(frozen=True)
class Staircase(Scripted):
    """Exact readings."""

    def seconds(self, case: Case) -> float:
        assert isinstance(case, Layer)
        return stairs(case)

    def measure(
        self, cases: Sequence[Case], *, on_round: OnRound | None = None, pending: Pending | None = None
    ) -> list[Measurement]:
        self.asked.extend(cases)
        return [Measurement((self.seconds(case),) * 2, "s", {}, "s1") for case in cases]


@dataclass(frozen=True)
class Noisy(Runtime):
    """The staircase on a clock that is off by 3 %, and by twice the time in one call of twenty."""

    def compile(self, model: nn.Module, example: tuple[Tensor, ...]) -> Program:
        raise NotImplementedError

    def compile_layer(self, layer: Layer) -> Program:
        def run() -> None:
            global clock
            clock += stairs(layer) * rng.gauss(1.0, 0.03) * (2 if rng.random() < 0.05 else 1)

        return Program(run, layer.build)

    def describe(self) -> Mapping[str, str]:
        return {}

    def timer(self) -> Timer:
        return HostTimer(clock=lambda: clock)


@cache
def wide(base: int = 256, wise: bool = False) -> Network:
    """One site, of a convolution and, if `wise`, of a depthwise one after it."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.last = nn.Conv2d(3, base, 1), nn.Linear(base, 2)
            self.wise = nn.Conv2d(base, base, 3, groups=base) if wise else nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.wise(self.conv(x)).mean((2, 3)))  # type: ignore[no-any-return]

    return trace(Net(), torch.zeros(1, 3, 8, 8))


def sampled(network: Network, metric: Metric, most: int = MOST, design: Design = BIG) -> dict[str, Any]:
    return survey(
        SurveyPlan(network, groups=design.groups, most=most),
        metric,
        pending=lambda tables: undecided(network, tables, design),
    )


def read(content: SurveyRecord, network: Network) -> list[set[int]]:
    """The widths of each layer of the site that were measured."""
    tables = [content.layers[layer.key] for layer in SurveyPlan(network, 2).templates["conv"]]
    return [{width for width, number in zip(t.widths, t.readings, strict=True) if number} for t in tables]


def chosen(content: SurveyRecord, network: Network, design: Design = BIG) -> tuple[int, ...]:
    return spaces(network, content.layers, design)["hardware"].widths["conv"]


def test_the_steps_of_a_big_site_are_located_to_the_width() -> None:
    network, metric = wide(), Staircase(Target(threads=1))
    content = sampled(network, metric)
    (widths,) = read(content, network)
    assert widths >= {width for step in STEPS for width in (step, step + 1)}
    assert len(widths) <= MOST
    assert content.cases == len(metric.asked) == len(widths) + 1  # and the classifier
    assert content.interpolated == 512 - len(widths)
    whole = sampled(network, Staircase(Target(threads=1)), most=512)
    assert whole.interpolated == 0
    (layer,) = SurveyPlan(network, 2).templates["conv"]
    assert content.layers[layer.key].median == pytest.approx(whole.layers[layer.key].median)
    assert chosen(content, network) == chosen(whole, network)
    assert len(set(STEPS) & set(chosen(whole, network))) >= 4  # not the ends of groups


@pytest.mark.slow
def test_the_steps_of_a_big_site_are_found_in_noise() -> None:
    network = wide()
    for seed in range(2):
        rng.seed(seed)
        metric = Latency(Target(runtime=f"{__name__}:Noisy", threads=1), rounds=100, seed=seed)
        content = sampled(network, metric)
        (widths,) = read(content, network)
        assert widths >= {width for step in STEPS for width in (step, step + 1)}
        assert len(widths) <= MOST
        assert chosen(content, network) == chosen(sampled(network, Staircase(Target(threads=1)), most=512), network)
        assert len(content.survey) == 12  # one


def test_what_is_interpolated_is_marked_and_lies_between_its_neighbours() -> None:
    network = wide()
    content = from_json(
        json.loads(json.dumps(to_json(sampled(network, scripted(), most=FEW)))), SurveyRecord, "survey.json"
    )
    (measured,) = site_curves(network, content.layers, BIG).values()
    (record,) = records(network, content.layers, BIG, spaces(network, content.layers, BIG))
    (widths,) = read(content, network)
    assert record.measured == measured and measured.interpolated == tuple(sorted(set(range(1, 513)) - widths))
    assert from_json(json.loads(json.dumps(to_json(record))), CurveRecord, "design.json") == record
    assert measured.seconds == pytest.approx([1.5 * (3 + width / 100) for width in range(1, 513)])  # a line, as it is
    below, above = max(w for w in widths if w < 500), min(w for w in widths if w >= 500)
    assert above > 500
    own = 0.5562 * (3 + 500 / 100)
    half = 1.5 * (above - below) / 100 / 2
    assert measured.errors[499] == pytest.approx(np.hypot(own, half), rel=1e-3)


def test_layers_of_one_site_are_measured_at_the_same_widths() -> None:
    network = wide(160, wise=True)
    conv, wise = read(sampled(network, Staircase(Target(threads=1))), network)
    assert conv == wise
    assert conv >= {width for step in STEPS if step < 320 for width in (step, step + 1)}


@pytest.mark.parametrize(
    ("build", "most"), [(0.001, MOST), (0.019, MOST), (0.02, SOME), (0.9, SOME), (1.0, FEW), (5.0, FEW)]
)
def test_where_building_takes_seconds_few_widths_are_measured(build: float, most: int) -> None:
    assert widths_at_most(build) == most


@pytest.mark.parametrize(
    ("most", "groups", "which"),
    [pytest.param(128, 8, (0, 1), marks=pytest.mark.slow), (24, 8, (2, 3)), (24, 40, (0, 3))],
)
def test_a_survey_measures_no_more_layers_than_it_says(most: int, groups: int, which: tuple[int, ...]) -> None:
    networks = (resnet(), resnet(20, "bottleneck"), wide(), wide(160, wise=True))
    for network in (networks[each] for each in which):
        metric = scripted()
        design = Design(groups=min(groups, 32), spaces=("hardware",))
        sampled(network, metric, most, design)
        limit = design.survey_plan(network, most).at_most
        assert len(metric.asked) == len(set(metric.asked)) <= limit
    assert SurveyPlan(resnet()).at_most == 3 * 32 + 4 * 64 + 4 * 128 + 1


def test_every_group_has_a_measured_width_and_no_other_is_chosen() -> None:
    network = wide()
    for groups in (5, 8, 40):
        design = Design(groups=groups, spaces=("hardware",))
        content = sampled(network, Staircase(Target(threads=1)), most=FEW, design=design)
        assert set(chosen(content, network, design)) <= read(content, network)[0]


def test_a_group_that_may_hide_a_better_width_is_not_sure() -> None:
    widths = tuple(range(1, 9))
    seconds = (1.0, 1.0, 1.0, 1.0, 1.0, 1.25, 1.5, 1.5)
    hidden = Curve(widths, seconds, (0.0,) * 8, (6,))
    assert choose(hidden, hidden.fit(1.0), 1) == (5,)
    assert certainty(hidden, 1.0, 1, ties=0.04)[0] == pytest.approx(0.5, abs=0.1)  # the step is before 6 or after it
    plain = Curve(widths, seconds, (0.0,) * 8)
    assert certainty(plain, 1.0, 1, ties=0.04) == (1.0,)
    assert choose(Curve(widths, seconds, (), widths), hidden.fit(1.0), 1) == (5,)  # there is no other


def test_a_sum_is_interpolated_where_one_of_its_curves_is() -> None:
    total = add([(1, Curve((1, 2, 3), (1.0, 2.0, 3.0), (), (2,))), (2, Curve((1, 2, 3), (1.0, 1.0, 1.0)))])
    assert total.interpolated == (2,)


class Halves(nn.Module):
    """Half of a layer's channels go through a branch that has half the outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.last = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.stem(x).chunk(2, 1)
        return self.last(torch.cat([one, two + self.branch(two)], 1).mean((2, 3)))  # type: ignore[no-any-return]


def test_every_layer_is_measured_at_the_outputs_that_the_network_has_then() -> None:
    network, metric = trace(Halves(), torch.zeros(1, 3, 8, 8)), scripted()
    plan = SurveyPlan(network, 1)
    survey(plan, metric)
    curves = {use.node: use.curve for use in network.uses(network.base)}
    found = set()
    for name in network.widths:
        for width in plan.widths(name):
            for use in network.uses(Arch({**network.base.widths, name: width})):
                if name in use.sites:
                    assert curves[use.node].wide(use.layer.outputs) in metric.asked, (name, width, use.node)
                    found.add((use.node, use.layer.outputs / width))
    assert len({share for _, share in found}) > 1, "some layer has another number of outputs than its site is wide"


class Mixed(nn.Module):
    """As in a RegNet: two layers alike, one of them with channels in groups of eight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 160, 1), nn.Conv2d(16, 160, 1)
        self.grouped, self.last = nn.Conv2d(160, 160, 3, padding=1, groups=20), nn.Linear(320, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.last(torch.cat([self.one(x), self.grouped(self.two(x))], 1).mean((2, 3)))


@pytest.mark.parametrize("most", one_in(3, [24, 12, 48]))
def test_a_survey_begins_with_the_ends_of_every_layer_of_sites_with_other_multiples(most: int) -> None:
    network = trace(Mixed(), torch.zeros(2, 3, 8, 8))
    assert len({site.multiple for site in network.widths.values()}) > 1
    plan, ends = Design().survey_plan(network, most), defaultdict(list)
    for layer, keys in plan.layers.items():
        for key in keys:
            ends[key].append((layer.outputs, layer in plan.first))
    for widths in ends.values():
        assert min(widths)[1] and max(widths)[1], "what lies beyond the first readings cannot be interpolated"
