"""Fewer widths are measured where more do not fit into memory."""

from dataclasses import replace

import pytest
import torch

from htas.cost.calibrate import Calibrate, cells, roomy_calibration
from htas.errors import UserError
from htas.graph import trace
from htas.graph.layer import Layer
from htas.models.cifar_resnet import CifarResNet
from htas.spaces.design import Design, grid_widths
from htas.spaces.room import LAYER_BYTES, SHARE, filled
from htas.spaces.space import Space

NETWORK = trace(CifarResNet(8).build(10), torch.zeros(1, 3, 32, 32))
DESIGN = Design()
GRID = [Space("grid", {name: grid_widths(site, DESIGN) for name, site in NETWORK.widths.items()}, {})]


def test_a_layer_fills_its_weights_and_what_its_programs_take():
    layer = Layer("conv", 8, 16, (4, 4), (3, 3), padding=(1, 1))
    assert filled([layer, layer]) == 2 * (LAYER_BYTES + 10 * 8 * 16 * 9)


@pytest.mark.parametrize("share", [1.01, 0.7, 0.4, 0.2])
def test_a_survey_has_as_many_widths_as_fit(share: float):
    whole = DESIGN.survey_plan(NETWORK, 128)
    plan, sentence = DESIGN.roomy_survey(NETWORK, 128, share * whole.filled / SHARE)
    assert plan.filled <= share * whole.filled and (plan.most == 128) == (share > 1) == (not sentence)
    if sentence:
        assert sentence.startswith(f"a survey measures {plan.most} widths of a site and not 128, which would not fit")


def test_a_calibration_has_as_many_widths_as_fit():
    whole = filled({each for every in cells(NETWORK, GRID, 16).values() for each in every})
    assert roomy_calibration(Calibrate(), NETWORK, GRID, 0.0, (), 1.01 * whole / SHARE) == (Calibrate(), "")
    less, sentence = roomy_calibration(Calibrate(), NETWORK, GRID, 0.0, (), 0.5 * whole / SHARE)
    assert less == replace(Calibrate(), widths=less.widths) and 4 <= less.widths < 16
    assert f"measures {less.widths} widths of a site and not 16" in sentence


def test_too_little_memory_is_refused_with_the_figures():
    with pytest.raises(UserError, match=r"a survey of 8 widths of each site fills \S+ GB .*, and 0.01 GB are free"):
        DESIGN.roomy_survey(NETWORK, 128, 1e7)
