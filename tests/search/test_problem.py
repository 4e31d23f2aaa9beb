"""A problem whose space does not fit its network is refused when it is made."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from htas.cost.counts import CountCost
from htas.data.split import Data, Split
from htas.graph import trace
from htas.models.cifar_resnet import CifarResNet
from htas.search.problem import Problem
from htas.spaces.space import Space

NETWORK = trace(CifarResNet(14).build(2), torch.zeros(2, 3, 8, 8))
WIDTHS = {name: (site.base // 2, 2 * site.base) for name, site in NETWORK.widths.items()}
DEPTHS = {name: (1, 2) for name in NETWORK.depths}


def problem(widths: dict[str, Any], depths: dict[str, Any]) -> Problem:
    part = Split(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 1]), (0.5,) * 3, (0.5,) * 3, False, 0)
    data = Data(2, (3, 8, 8), part, part, part, part)
    space = Space("test", widths, depths)
    return Problem(NETWORK, nn.Module.eval, data, space, CountCost(NETWORK), "cpu", 0, Path("search"), nn.Module)


def test_a_space_with_a_choice_for_every_site_fits():
    assert problem(WIDTHS, DEPTHS).space.size == 2 ** (len(WIDTHS) + len(DEPTHS))


def test_a_space_that_lacks_a_site_is_refused_by_its_name():
    widths = {name: choices for name, choices in WIDTHS.items() if name != "stem.conv"}
    with pytest.raises(ValueError, match=r"lacks the width site 'stem\.conv'"):
        problem(widths, DEPTHS)


@pytest.mark.parametrize("choices, given", [((1, 3), 3), ((1, 2, 7), 7)])
def test_a_space_deeper_than_the_network_is_refused(choices, given):
    with pytest.raises(ValueError, match=rf"the depth of stages.0 must lie in 1\.\.2, got {given}"):
        problem(WIDTHS, {**DEPTHS, "stages.0": choices})
