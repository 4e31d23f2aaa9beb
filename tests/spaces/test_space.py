"""Choices: TAS's, the groups of eq. 3, and archs drawn from them."""

import json
import random
from collections import Counter

import pytest

from htas.files import from_json, to_json
from htas.graph.arch import Arch
from htas.spaces.space import Space, depth_choices, group_bounds, tas_widths

SPACE = Space("s", {"a": (2, 4, 8), "b": (3,)}, {"d": (1, 3)})


@pytest.mark.parametrize(
    ("base", "choices"),
    [
        (16, (4, 6, 8, 9, 11, 12, 14, 16)),
        (32, (9, 12, 16, 19, 22, 25, 28, 32)),
        (64, (19, 25, 32, 38, 44, 51, 57, 64)),
        (128, (38, 51, 64, 76, 89, 102, 115, 128)),
        (256, (76, 102, 128, 153, 179, 204, 230, 256)),
        (3, (1, 2, 3)),
        (1, (1,)),
    ],
)
def test_the_widths_of_tas(base: int, choices: tuple[int, ...]) -> None:
    assert tas_widths(base) == choices


@pytest.mark.parametrize(
    ("blocks", "choices"),
    [
        (1, (1,)),
        (2, (1, 2)),
        (3, (1, 2, 3)),
        (4, (1, 3, 4)),
        (5, (1, 3, 5)),
        (9, (1, 3, 5, 7, 9)),
        (18, (1, 3, 5, 7, 9, 11, 13, 15, 17, 18)),
    ],
)
def test_the_depths_of_tas(blocks: int, choices: tuple[int, ...]) -> None:
    assert depth_choices(blocks) == choices


def test_groups_are_equal_runs_and_the_last_takes_what_is_left() -> None:
    assert group_bounds(32, 8) == tuple((4 * g + 1, 4 * g + 4) for g in range(8))
    assert group_bounds(11, 4) == ((1, 2), (3, 4), (5, 6), (7, 11))
    assert group_bounds(3, 3) == ((1, 1), (2, 2), (3, 3))
    assert group_bounds(5, 1) == ((1, 5),)
    for widest in range(1, 40):
        for groups in range(1, widest + 1):
            widths = [width for first, last in group_bounds(widest, groups) for width in range(first, last + 1)]
            assert widths == list(range(1, widest + 1))


def test_more_groups_than_widths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"design\.groups = 9 is more than the 8 widths"):
        group_bounds(8, 9)


def test_the_ends_and_the_size_of_a_space() -> None:
    assert SPACE.size == 6
    assert SPACE.narrowest == Arch({"a": 2, "b": 3}, {"d": 1})
    assert SPACE.widest == Arch({"a": 8, "b": 3}, {"d": 3})


def test_samples_are_members_and_every_arch_is_drawn_alike() -> None:
    rng = random.Random(0)
    counts = Counter(SPACE.sample(rng) for _ in range(3000))
    assert all(arch in SPACE for arch in counts)
    assert len(counts) == SPACE.size
    assert all(400 < count < 600 for count in counts.values())


def test_a_tilt_leans_to_wide_or_narrow() -> None:
    rng = random.Random(0)
    mean = {tilt: sum(SPACE.sample(rng, tilt)["a"] for _ in range(2000)) / 2000 for tilt in (-2.0, 0.0, 2.0)}
    e = 2.718281828459045
    assert mean[0.0] == pytest.approx(14 / 3, rel=0.05)
    assert mean[2.0] == pytest.approx((2 + 4 * e + 8 * e**2) / (1 + e + e**2), rel=0.05)
    assert mean[-2.0] == pytest.approx((2 * e**2 + 4 * e + 8) / (1 + e + e**2), rel=0.05)


def test_membership_asks_for_every_site_and_a_choice_of_it() -> None:
    assert Arch({"a": 4, "b": 3}, {"d": 3}) in SPACE
    assert Arch({"a": 3, "b": 3}, {"d": 3}) not in SPACE
    assert Arch({"a": 4, "b": 3}, {"d": 2}) not in SPACE
    assert Arch({"a": 4, "b": 3}) not in SPACE
    assert Arch({"a": 4, "b": 3, "c": 1}, {"d": 3}) not in SPACE


@pytest.mark.parametrize("choices", [(), (2, 1), (1, 1), (0, 1)])
def test_choices_that_are_none_are_refused(choices: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="the choices of a must be distinct, ascending and at least 1"):
        Space("s", {"a": choices}, {})


def test_a_space_reads_back_from_json() -> None:
    assert from_json(json.loads(json.dumps(to_json(SPACE))), Space, "it") == SPACE
