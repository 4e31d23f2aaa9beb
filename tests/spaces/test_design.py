"""Eq. 1 to 4 by hand, and choices that were planted in a scripted device."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import ceil
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from htas.cost.paper import paper_cost
from htas.graph import Network, trace
from htas.graph.arch import Arch
from htas.graph.layer import Layer
from htas.metrics import Case, Metric, OnRound, Pending
from htas.models.cifar_resnet import CifarResNet
from htas.spaces.curve import Curve, Fit, LayerTable
from htas.spaces.design import (
    Design,
    certainty,
    check,
    choose,
    dominated,
    records,
    site_curves,
    spaces,
    undecided,
)
from htas.spaces.layers import widest
from htas.spaces.space import Space
from htas.spaces.survey import survey
from htas.timing.measurement import Measurement
from htas.timing.target import Target

HAND = Curve((1, 2, 3, 4, 5, 6), (2.0, 2.0, 4.0, 4.0, 7.0, 6.0))
LINE = Fit(1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Device(Metric):
    """A layer takes what `clock` says of its outputs, a microsecond per unit."""

    unit: ClassVar[str] = "s"
    clock: Callable[[Layer], float] = lambda layer: layer.outputs

    def measure(
        self, cases: Sequence[Case], *, on_round: OnRound | None = None, pending: Pending | None = None
    ) -> list[Measurement]:
        return [Measurement((1e-6 * self.clock(case),), "s") for case in cases if isinstance(case, Layer)]


@cache
def resnet(adds: Any = "join", depth: int = 20) -> Network:
    return trace(CifarResNet(depth).build(10), torch.zeros(1, 3, 32, 32), adds=adds)


def planned(design: Design, clock: Callable[[Layer], float], network: Network | None = None) -> dict[str, Space]:
    """The spaces of a network on a device with this clock."""
    network = network or resnet(design.adds)
    check(network, design)
    return spaces(network, measured(network, design, clock), design)


def measured(network: Network, design: Design, clock: Callable[[Layer], float]) -> dict[str, LayerTable]:
    return dict(survey(design.survey_plan(network), Device(Target(threads=1), clock)).layers)


def stairs(layer: Layer) -> float:
    """As long as the next multiple of 8."""
    return 100 + 8 * ceil(layer.outputs / 8)


# -- eq. 2 to 4 --------------------------------------------------------------------------------------------------------


def test_the_score_is_how_much_faster_than_the_fit() -> None:
    assert HAND.scores(LINE) == (0.0, 1.0, 0.0, 1.0, -1.0, 1.0)


def test_each_group_gives_the_width_of_its_best_score_and_the_widest_of_equals() -> None:
    assert choose(HAND, LINE, 2) == (2, 6)
    assert choose(HAND, LINE, 3) == (2, 4, 6)
    assert choose(HAND, LINE, 1) == (6,)
    assert choose(HAND, LINE, 6) == (1, 2, 3, 4, 5, 6)


def test_scores_within_the_noise_are_ties() -> None:
    assert choose(HAND, LINE, 2, ties=0.49) == (2, 6)  # 0.0 is 1 below the best, more than 0.49 of 2 seconds
    assert choose(HAND, LINE, 2, ties=0.5) == (3, 6)
    nearly = Curve((1, 2, 3), (1.0, 1.9, 3.0))
    assert choose(nearly, Fit(1.0, 1.0, 0.0), 1) == (2,)
    assert choose(nearly, Fit(1.0, 1.0, 0.0), 1, ties=0.06) == (3,)  # 0.1 below, of 1.9 seconds
    assert choose(nearly, Fit(1.0, 1.0, 0.0), 1, ties=0.05) == (2,)


def test_the_last_group_is_longer_where_the_groups_do_not_divide() -> None:
    flat = Curve(tuple(range(1, 12)), tuple(float(w) for w in range(1, 12)))
    assert choose(flat, Fit(1.0, 1.0, 0.0), 4) == (2, 4, 6, 11)


def test_a_choice_is_as_certain_as_the_share_of_surveys_that_would_make_it() -> None:
    widths, rng = tuple(range(1, 17)), np.random.default_rng(1)
    seconds = tuple(1.0 + 0.1 * width - 0.08 * (width % 4 == 2) - 0.06 * (width % 4 == 1) for width in widths)
    measured = Curve(widths, seconds, (0.01,) * 16)
    stated = certainty(measured, 1.0, 4, ties=0.0)
    right = choose(measured, measured.fit(1.0), 4)
    repeated = []
    for _ in range(2000):
        again = Curve(widths, tuple(np.asarray(seconds) + 0.01 * rng.standard_normal(16)))
        repeated.append([one == other for one, other in zip(choose(again, again.fit(1.0), 4), right, strict=True)])
    assert stated == pytest.approx(np.mean(repeated, axis=0), abs=0.06)
    assert max(stated) < 0.99
    assert certainty(measured, 1.0, 4, ties=0.0, scale=3) < stated
    assert certainty(Curve(widths, seconds), 1.0, 4, ties=0.0) == (1.0,) * 4
    sharp = Curve(widths, seconds, (1e-6,) * 16)
    assert certainty(sharp, 1.0, 4, ties=0.0) == (1.0,) * 4


def test_certainty_takes_ties_and_uneven_groups_as_choosing_does() -> None:
    rng = np.random.default_rng(2)
    for _ in range(50):
        widths = tuple(range(1, 24))
        measured = Curve(widths, tuple(1 + 0.05 * np.asarray(widths) + 0.1 * rng.random(23)), (1e-9,) * 23)
        ties = float(rng.choice([0.0, 0.02, 0.1]))
        assert certainty(measured, 1.0, 5, ties) == (1.0,) * 5  # the undisturbed curve among them, else below 1


def test_a_width_that_is_no_faster_than_a_wider_choice_is_dominated() -> None:
    assert dominated(HAND, (2, 4, 5, 6)) == (5,)
    assert dominated(HAND, (1, 2, 3, 4)) == (1, 3)
    assert dominated(HAND, (2, 4, 6)) == ()


def test_more_readings_are_wanted_of_the_groups_that_are_open() -> None:
    network, design = resnet(), Design(groups=8, ties=0.0)
    content = measured(network, design, lambda layer: 100 + layer.outputs - 30 * (layer.outputs % 8 == 3))
    assert undecided(network, content, design) == set()  # single readings have no error
    key = next(iter(undecided_tables(network, design, "stages.1.1.conv1.conv")))
    table = content[key]
    content[key] = replace(table, error=tuple(value / 1000 for value in table.estimate))
    assert undecided(network, content, design) == set()
    unsure = [1.0 if 17 <= width <= 24 else 0.001 for width in table.widths]
    content[key] = replace(
        table, error=tuple(share * value for share, value in zip(unsure, table.estimate, strict=True))
    )
    asked = undecided(network, content, design)
    assert sorted({layer.outputs for layer in asked}) == list(range(17, 25))
    assert {layer.curve_template.key for layer in asked} == set(
        undecided_tables(network, design, "stages.1.1.conv1.conv")
    )


def undecided_tables(network: Network, design: Design, site: str) -> list[str]:
    """The survey's tables that a site's curve is made of."""
    return [layer.key for layer in design.survey_plan(network).templates[site]]


def test_the_papers_selection_takes_means_and_the_very_best() -> None:
    network = resnet()
    content = measured(network, Design(), stairs)
    for key, table in content.items():
        content[key] = replace(table, mean=tuple(2.0 * value for value in table.estimate))
    paper = Design(selection="paper", ties=0.5)
    ours = site_curves(network, content, Design())["stem.conv"]
    means = site_curves(network, content, paper)["stem.conv"]
    assert means.seconds == pytest.approx([2 * value for value in ours.seconds])
    found = spaces(network, content, paper)["hardware"].widths["stem.conv"]
    assert found == choose(means, means.fit(1.0), 8, ties=0.0)


def test_dominated_choices_are_recorded_and_left_out_when_asked() -> None:
    network = resnet()

    def clock(layer: Layer) -> float:
        return 100 + layer.outputs + 40 * (9 <= layer.outputs <= 16)

    design = Design(groups=4, spaces=("hardware",))
    content = measured(network, design, clock)
    kept = spaces(network, content, design)["hardware"].widths["stem.conv"]
    (record,) = [each for each in records(network, content, design, spaces(network, content, design))
                 if "stem.conv" in each.sites]  # fmt: skip
    assert record.dominated == (16,)
    left = spaces(network, content, replace(design, drop_dominated=True))["hardware"].widths["stem.conv"]
    assert left == tuple(width for width in kept if width != 16)


# -- planted choices ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adds", ["join", "project"])
@pytest.mark.parametrize("alpha", [1.0, "fit"])
def test_a_device_that_is_fast_at_multiples_of_8_gives_multiples_of_8(adds: Any, alpha: Any) -> None:
    design = Design(groups=4, alpha=alpha, ties=0.0, adds=adds)
    found = planned(design, stairs)["hardware"]
    assert found.widths["stem.conv"] == (8, 16, 24, 32)
    assert all(width % 8 == 0 for choices in found.widths.values() for width in choices)
    tied = planned(replace(design, ties=0.04), stairs)["hardware"]
    assert tied.widths["stages.1.1.conv1.conv"] == (16, 32, 48, 64)  # 8, 24, 40, 56 score about as well


def test_dips_in_the_middle_of_the_groups_are_found() -> None:
    dips = {3, 6, 9, 15, 18, 21, 27, 30}
    design = Design(spaces=("hardware", "grid"))

    def clock(layer: Layer) -> float:
        return 100 + 10 * layer.outputs - 50 * (layer.outputs in dips)

    found = planned(design, clock)
    assert found["hardware"].widths["stem.conv"] == (3, 6, 9, 15, 18, 21, 27, 30)
    assert found["grid"].widths["stem.conv"] == (4, 8, 12, 16, 20, 24, 28, 32)


def test_a_site_is_judged_by_all_of_its_producers() -> None:
    """The stem alone would choose odd widths, the three layers joined to it even ones: they outweigh it."""

    def clock(layer: Layer) -> float:
        odd = layer.outputs % 2
        return 100 + 10 * layer.outputs + (15 * (1 - odd) if layer.inputs == 3 else 10 * odd)

    found = planned(Design(groups=8, ties=0.0, spaces=("hardware",)), clock)["hardware"]
    assert all(width % 2 == 0 for width in found.widths["stem.conv"])
    alone = planned(Design(groups=8, ties=0.0, spaces=("hardware",), adds="project"), clock)["hardware"]
    assert all(width % 2 == 1 for width in alone.widths["stem.conv"])


def test_m_of_a_site_is_the_sum_over_its_producers() -> None:
    network, design = resnet(), Design()
    content = measured(network, design, lambda layer: layer.inputs + layer.outputs)
    curves = site_curves(network, content, design)
    assert curves["stem.conv"].at(10) == pytest.approx(1e-6 * ((3 + 10) + 3 * (16 + 10)))
    assert curves["stages.2.0.conv2.conv"].at(100) == pytest.approx(1e-6 * ((32 + 100) + 3 * (64 + 100)))


def test_expanded_inputs_are_surveyed_and_priced_at_e_times_the_base() -> None:
    network, design = resnet(depth=8), Design(inputs="expanded", expand=1.5)
    content = measured(network, design, lambda layer: layer.inputs + layer.outputs)
    assert site_curves(network, content, design)["stem.conv"].at(10) == pytest.approx(1e-6 * ((3 + 10) + (24 + 10)))
    base = paper_cost(network, content, design).cost(network.base)
    # stem, then per block conv1, conv2 and shortcut, then the classifier, inputs being 1.5 times the base
    inputs = [3, 24, 24, 24, 48, 24, 48, 96, 48, 96]
    outputs = [16, 16, 16, 32, 32, 32, 64, 64, 64, 10]
    assert base == pytest.approx(1e-6 * (sum(inputs) + sum(outputs)))


@pytest.mark.parametrize(("expand", "best", "last"), [(1.0, 16, 16), (1.3, 16, 20), (2.0, 32, 32)])
def test_any_expansion_gives_choices_up_to_e_times_the_base(expand: float, best: int, last: int) -> None:
    found = planned(Design(expand=expand, spaces=("hardware", "grid")), stairs)
    assert all(len(space.widths["stem.conv"]) == 8 for space in found.values())
    assert found["hardware"].widths["stem.conv"][-1] == best  # the end of a stair
    assert found["grid"].widths["stem.conv"][-1] == last == widest(16, expand)


def test_layers_that_share_a_survey_table_keep_their_own_groups() -> None:
    network = trace(CifarResNet(20, "bottleneck").build(10), torch.zeros(1, 3, 32, 32))
    found = planned(Design(spaces=("hardware",)), stairs, network)["hardware"]
    for name, site in network.widths.items():
        assert found.widths[name][-1] == 2 * site.base


# -- the other spaces --------------------------------------------------------------------------------------------------


def test_the_spaces_that_are_not_measured() -> None:
    widths = {"16": [4, 16, 8], "32": [32], "64": [64, 64], "stages.2.1.conv1.conv": [10, 20]}
    found = planned(Design(spaces=("explicit", "tas", "grid"), widths=widths), stairs)
    assert list(found) == ["explicit", "tas", "grid"]
    assert found["tas"].widths["stem.conv"] == (4, 6, 8, 9, 11, 12, 14, 16)
    assert found["grid"].widths["stages.2.0.conv1.conv"] == (16, 32, 48, 64, 80, 96, 112, 128)
    assert found["explicit"].widths["stem.conv"] == (4, 8, 16)
    assert found["explicit"].widths["stages.2.1.conv1.conv"] == (10, 20)
    assert found["explicit"].widths["stages.2.2.conv1.conv"] == (64,)
    assert all(space.depths == {f"stages.{stage}": (1, 2, 3) for stage in range(3)} for space in found.values())


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ({"16": [4], "32": [8], "63": [8]}, "design.widths: no site or base width called '63'; choose one of 16"),
        ({"16": [4], "32": [8]}, 'no choices for stages.2.0.conv1.conv; add them under its name or "64"'),
        ({"16": [0, 4], "32": [8], "64": [8]}, "choices of stem.conv in design.widths must be at least 1, got 0"),
    ],
)
def test_explicit_widths_that_do_not_fit_are_refused_before_anything_is_measured(
    widths: dict[str, list[int]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check(resnet(), Design(spaces=("explicit",), widths=widths))


def test_more_groups_than_widths_are_refused_before_anything_is_measured() -> None:
    check(resnet(), Design(expand=1, groups=16))
    with pytest.raises(ValueError, match=r"design\.groups = 17 is more than the 16 widths"):
        check(resnet(), Design(expand=1, groups=17))


def test_a_network_without_free_widths_is_refused_with_the_reason() -> None:
    network = trace(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), torch.zeros(1, 3, 2, 2))
    with pytest.raises(ValueError, match=r"no width that could change \(it is the network's output\)"):
        check(network, Design())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"expand": 0.9}, "design.expand must be 1 or more, got 0.9"),
        ({"expand": float("nan")}, "design.expand must be 1 or more"),
        ({"expand": 1e9}, "design.expand must be 64 or less, got 1000000000.0"),
        ({"groups": 0}, "design.groups must be 1 or more, got 0"),
        ({"alpha": 0.0}, "design.alpha must be above 0 or 'fit', got 0.0"),
        ({"ties": -0.1}, "design.ties must lie in 0..1, got -0.1"),
        ({"spaces": ()}, "design.spaces must name at least one"),
        ({"spaces": ("hardwear",)}, "design.spaces may name hardware, tas, grid, explicit; got 'hardwear'"),
        ({"spaces": ("tas", "tas")}, "names a space twice"),
        ({"spaces": ("explicit",)}, "'explicit' needs design.widths"),
        ({"widths": {"16": [1]}}, "design.widths needs that space"),
    ],
)
def test_a_design_out_of_range_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Design(**options)


# -- what is recorded --------------------------------------------------------------------------------------------------


def test_equal_curves_are_recorded_once_with_their_fit_groups_and_choices() -> None:
    network, design = resnet(), Design()
    content = measured(network, design, lambda layer: layer.inputs + 2 * layer.outputs)
    found = records(network, content, design, spaces(network, content, design))
    assert sorted(site for record in found for site in record.sites) == sorted(network.widths)
    (first,) = [record for record in found if "stages.0.0.conv1.conv" in record.sites]
    assert first.sites == tuple(f"stages.0.{block}.conv1.conv" for block in range(3))
    assert (first.base, first.measured.widths) == (16, tuple(range(1, 33)))
    assert (first.fit.k, first.fit.alpha, first.fit.b) == pytest.approx((2e-6, 1.0, 16e-6))
    assert first.groups[:2] == ((1, 4), (5, 8))
    assert first.choices["tas"] == (4, 6, 8, 9, 11, 12, 14, 16)
    assert first.doubts == ()


def test_sites_of_equal_curves_but_other_choices_are_recorded_apart() -> None:
    network = resnet()
    widths = {"16": [16], "32": [32], "64": [64], "stages.0.1.conv1.conv": [3]}
    design = Design(spaces=("explicit",), widths=widths)
    content = measured(network, design, stairs)
    for record in records(network, content, design, made := spaces(network, content, design)):
        assert all(record.choices["explicit"] == made["explicit"].widths[site] for site in record.sites)


@pytest.mark.parametrize("alpha", [1.0, "fit"])
def test_latency_that_does_not_grow_with_the_width_is_a_doubt_and_no_crash(alpha: Any) -> None:
    network, design = resnet(), Design(alpha=alpha)
    content = measured(network, design, lambda layer: 1000 - layer.outputs)
    made = spaces(network, content, design)
    for record in records(network, content, design, made):
        (doubt,) = record.doubts
        assert "latency does not grow with the width of" in doubt
    assert paper_cost(network, content, design).cost(network.base) > 0


def test_the_paper_cost_is_the_sum_of_fits_over_the_layers_that_stay() -> None:
    network, design = resnet(), Design()
    content = measured(network, design, lambda layer: 2 * layer.outputs + layer.inputs)
    model = paper_cost(network, content, design)
    assert sum(term.count for term in model.terms) == 19 + 2 + 1
    widths = {name: 10 for name in network.widths}
    per_stage = [(2 * 10 + 16) * 2, (2 * 10 + 32) * 2, (2 * 10 + 64) * 2]  # a later block: inputs stay the survey's
    changes = [(16 + 32 + 16), (32 + 64 + 32)]  # conv1, conv2 and shortcut of the first block
    full = (2 * 10 + 3) + 3 * per_stage[0] + 2 * per_stage[1] + 2 * per_stage[2]
    full += sum(6 * 10 + inputs for inputs in changes) + (2 * 10 + 64)
    assert model.cost(Arch(widths, network.base.depths)) == pytest.approx(1e-6 * full)
    cut = full - 2 * per_stage[0] - per_stage[2]
    depths = {"stages.0": 1, "stages.1": 3, "stages.2": 2}
    assert model.cost(Arch(widths, depths)) == pytest.approx(1e-6 * cut)


def test_bounds_leave_out_what_is_narrower_or_wider() -> None:
    network = resnet(depth=8)
    content = measured(network, Design(), stairs)
    name = next(iter(network.widths))
    made = spaces(network, content, Design(spaces=("grid", "tas"), bounds={"32": [10, 40], name: [16, 16]}))
    for space in made.values():
        assert space.widths[name] == (16,)
        for site, choices in space.widths.items():
            if network.sites[site].base == 32:
                assert choices and all(10 <= width <= 40 for width in choices)
    with pytest.raises(
        ValueError, match=rf"design\.bounds leaves {name} no choice in the space grid, which has 4, 8, "
    ):
        spaces(network, content, Design(spaces=("grid",), bounds={name: [5, 7]}))
    with pytest.raises(ValueError, match=r"design\.bounds of 16 must be the least and the most channels, got \[8, 4\]"):
        Design(bounds={"16": [8, 4]})
    with pytest.raises(ValueError, match=r"design\.bounds: .*'17'"):
        check(network, Design(bounds={"17": [1, 4]}))
