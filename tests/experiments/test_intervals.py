"""Intervals of differences are those of scipy and of the textbook, whatever cells are missing."""

import math

import numpy as np
import pytest

from htas.experiments.intervals import Blocks, reach


def interval(low_high) -> float:
    return (low_high.high - low_high.low) / 2


def test_welchs_interval_is_scipys():
    from scipy.stats import ttest_ind

    one, other = [1.0, 2.0, 4.0, 4.5], [2.0, 2.5, 2.2]
    welch = ttest_ind(one, other, equal_var=False).confidence_interval(0.95)
    assert reach([one, other]) == pytest.approx(interval(welch))
    assert reach([[1.0], other]) == math.inf and reach([[1.0, 1.0]]) == 0.0


def cells(**arms: list[float | None]) -> dict[tuple[str, int], float]:
    return {(arm, seed): value for arm, row in arms.items() for seed, value in enumerate(row) if value is not None}


def test_two_whole_arms_in_blocks_are_the_paired_test():
    from scipy.stats import ttest_rel

    a, b = [71.0, 72.5, 76.0, 74.0], [70.5, 72.7, 75.0, 72.5]
    blocks, paired = Blocks(cells(a=a, b=b)), ttest_rel(a, b).confidence_interval(0.9)
    assert blocks.difference("a", "b") == pytest.approx(np.mean(a) - np.mean(b))
    assert blocks.reach("a", "b", 0.9) == pytest.approx(interval(paired))
    assert blocks.freedom == 3


def test_three_arms_by_hand():
    """Rows 1 2 6, 2 4 6, 3 6 9: arms' means 3, 4, 6, blocks' means 2, 4, 7. Errors 0 -1 1, 0 0 0, -1 ... by hand.

    value - arm - block + 13/3: (1-3-2, 2-3-4, 6-3-7), (2-4-2, 4-4-4, 6-4-7), (3-6-2, 6-6-4, 9-6-7) + 13/3
    = (1, -2, 1) / 3, (1, 1, -2) / 3, (-2, 1, 1) / 3: a sum of squares of 18 / 9 = 2, with 4 degrees of freedom.
    """
    blocks = Blocks(cells(a=[1, 2, 6], b=[2, 4, 6], c=[3, 6, 9]))
    assert blocks.freedom == 4 and blocks.variance == pytest.approx(0.5)
    assert blocks.difference("c", "a") == pytest.approx(3)
    assert blocks.reach("c", "a") == pytest.approx(2.776445 * math.sqrt(0.5 * 2 / 3), rel=1e-6)


def test_a_value_without_a_partner_says_nothing_of_the_difference():
    whole = Blocks(cells(a=[71.0, 72.5, 76.0], b=[70.5, 72.7, 75.0]))
    more = Blocks(cells(a=[71.0, 72.5, 76.0, 99.0], b=[70.5, 72.7, 75.0, None]))
    assert more.difference("a", "b") == pytest.approx(whole.difference("a", "b"))
    assert more.reach("a", "b") == pytest.approx(whole.reach("a", "b")) and more.freedom == whole.freedom


def test_one_block_or_none_shared_tells_nothing():
    assert Blocks(cells(a=[71.0], b=[72.0], c=[73.0])).reach("a", "b") == math.inf
    apart = Blocks(cells(a=[1.0, 2.0, None, None], b=[None, None, 2.0, 4.0], c=[2.0, 2.5, None, None]))
    assert apart.reach("a", "b") == math.inf and apart.reach("a", "c") < math.inf


def test_the_interval_holds_the_difference_as_often_as_it_says():
    """4000 tables of 4 arms and 3 blocks with known differences, two cells missing."""
    draw = np.random.default_rng(0)
    held = 0
    for _ in range(4000):
        values = draw.normal(0, 0.5, (4, 3)) + np.array([[0.0], [1], [2], [3]]) + draw.normal(0, 5, 3)
        table = {(str(arm), block): values[arm, block] for arm in range(4) for block in range(3)}
        del table["1", 0], table["2", 2]
        blocks = Blocks(table)
        held += abs(blocks.difference("1", "0") - 1) <= blocks.reach("1", "0")
    assert 0.94 < held / 4000 < 0.96
