"""Which layers are surveyed, how often they count, and the fit of eq. 1, with a scripted metric."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from htas.graph import Network, trace
from htas.layer import Layer
from htas.measurement import Measurement
from htas.metrics import Case, Metric, OnRound, Wanted
from htas.models.cifar_resnet import CifarResNet
from htas.survey import Curve, Fit, Survey, add, curve, survey, surveyed, templates, widest
from htas.target import Target


@dataclass(frozen=True)
class Scripted(Metric):
    """A layer takes one second per input plus a hundredth per output, and three times that.

    `asked` notes what was measured, `open` what more was wanted of.
    """

    unit: ClassVar[str] = "s"
    asked: list[Case] = field(default_factory=list)
    open: list[int] = field(default_factory=list)

    def measure(
        self, cases: Sequence[Case], *, on_round: OnRound | None = None, wanted: Wanted | None = None
    ) -> list[Measurement]:
        self.asked.extend(cases)
        found = [Measurement((self.seconds(case), 3 * self.seconds(case)), "s", {"x": "y"}, "s1") for case in cases]
        self.open.extend(wanted(found) if wanted is not None else ())
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


def conv(inputs: int, side: int, stride: int = 1, activation: str = "", kernel: int = 3, norm: bool = True) -> Layer:
    pad = kernel // 2
    return Layer(
        "conv",
        inputs,
        0,
        (side, side),
        (kernel, kernel),
        (stride, stride),
        (pad, pad),
        norm=norm,
        activation=activation,
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
    found = templates(resnet(), expand=2, inputs="base")
    assert found["stem.conv"] == Counter({conv(3, 32, activation="relu"): 1, conv(16, 32): 3})
    shortcut = Layer("conv", 16, 0, (16, 16))  # after 2x2 pooling
    assert found["stages.1.0.conv2.conv"] == Counter({conv(32, 16): 3, shortcut: 1})
    assert found["stages.1.0.conv1.conv"] == Counter({conv(16, 32, stride=2, activation="relu"): 1})
    for block in (1, 2):
        assert found[f"stages.1.{block}.conv1.conv"] == Counter({conv(32, 16, activation="relu"): 1})
    assert len(found) == 3 + 9


def test_expanded_inputs_are_e_times_as_wide() -> None:
    network = resnet()
    found = templates(network, expand=1.5, inputs="expanded")
    assert found["stem.conv"] == Counter({conv(3, 32, activation="relu"): 1, conv(24, 32): 3})
    assert surveyed(network, expand=1.5, inputs="expanded")["stages.2.0.conv1.conv"] == 96
    assert surveyed(network, expand=1.5, inputs="base") == network.base


@pytest.mark.parametrize(
    ("base", "expand", "last"), [(16, 2, 32), (16, 1, 16), (16, 1.3, 20), (100, 1.15, 115), (10, 1.1, 11), (3, 1.5, 4)]
)
def test_the_last_width_is_e_times_the_base_cut_to_a_whole_number(base: int, expand: float, last: int) -> None:
    assert widest(base, expand) == last


def test_every_distinct_layer_is_measured_once_at_every_width() -> None:
    metric = scripted()
    content = survey(resnet(), metric, expand=2, inputs="base")
    assert len(set(metric.asked)) == len(metric.asked) == content["cases"]
    assert content["cases"] == 3 * 32 + 4 * 64 + 4 * 128 + 1  # stage 1: 3 distinct, 2 and 3: 4 each, and the classifier
    deeper = scripted()
    survey(resnet(32), deeper, expand=2, inputs="base")
    assert set(deeper.asked) == set(metric.asked)
    assert content["survey"] == "s1"
    assert content["context"] == {"x": "y"}


def test_what_was_surveyed_reads_back_from_json() -> None:
    content = json.loads(json.dumps(survey(resnet(), scripted(), expand=2, inputs="base")))
    found = curve(content, conv(16, 32), range(1, 33))
    assert found.widths == tuple(range(1, 33))
    assert found.seconds == pytest.approx([1.5 * (16 + width / 100) for width in range(1, 33)])  # the 25th percentile
    for estimate, factor in (("minimum", 1), ("median", 2), ("mean", 2)):
        assert curve(content, conv(16, 32), [5], estimate).seconds == pytest.approx([factor * 16.05])
    assert found.errors == pytest.approx([value / 1.5 * 0.5562 for value in found.seconds], rel=1e-3)
    assert curve(content, Layer("linear", 64, 10, (1, 1), bias=True), [10]).seconds == pytest.approx([1.5 * 64.1])


def test_layers_that_differ_in_outputs_alone_keep_curves_of_their_own_length() -> None:
    network = resnet(20, "bottleneck")
    content = survey(network, scripted(), expand=2, inputs="base")
    reduce = conv(64, 32, activation="relu", kernel=1)  # to 16 in the first stage, to 32 in the second
    assert curve(content, reduce, range(1, 33)).widths == tuple(range(1, 33))
    assert curve(content, reduce, range(1, 65)).seconds[-1] == pytest.approx(1.5 * 64.64)


def test_a_survey_without_a_layer_says_what_to_do() -> None:
    content = survey(resnet(8), scripted(), expand=1, inputs="base")
    for missing in (conv(17, 32), conv(16, 32)):
        with pytest.raises(ValueError, match="lacks a layer of this network; delete it and run the survey again"):
            curve(content, missing, range(1, 33))


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
    content = survey(network, metric, expand=2, inputs="base")
    (wise,) = [layer for layer in templates(network, expand=2, inputs="base")["conv"] if layer.groups != 1]
    assert [case.groups for case in metric.asked if isinstance(case, Layer) and case.kernel == (3, 3)] == [*range(1, 9)]
    assert curve(content, wise, range(1, 9)).seconds == pytest.approx([1.5 * 1.01 * width for width in range(1, 9)])


def test_a_layer_that_more_is_wanted_of_is_found_by_its_number() -> None:
    metric = scripted()
    asked = [conv(16, 32).wide(7), conv(32, 16).wide(40)]

    def wanted(content: Mapping[str, Any]) -> list[Layer]:
        assert curve(content, conv(16, 32), [7]).seconds == pytest.approx([1.5 * 16.07])
        return asked

    survey(resnet(), metric, expand=2, inputs="base", wanted=wanted)
    assert [metric.asked[number] for number in sorted(metric.open)] == asked


def test_uncertain_figures_are_a_doubt() -> None:
    (doubt,) = survey(resnet(8), scripted(), expand=1, inputs="base")["doubts"]
    assert doubt.startswith("a layer's latency is known to 37.1% only (standard error, median over 337 layers)")


@pytest.mark.parametrize(
    ("field", "value"), [("rounds", 0), ("reading", -1.0), ("reading", float("nan")), ("seconds", -1.0)]
)
def test_a_survey_that_measures_nothing_is_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"survey\.{field} must be .*got {value}"):
        Survey(**{field: value})  # type: ignore[arg-type]


def test_the_time_of_a_survey_goes_by_its_layers_unless_it_is_given() -> None:
    assert Survey().limit(250) == pytest.approx(20.0)
    assert Survey(seconds=7).limit(250) == 7
