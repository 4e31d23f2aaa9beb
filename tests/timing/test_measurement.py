"""Summaries of readings by hand."""

import itertools
import json
import statistics
from dataclasses import replace

import numpy as np
import pytest

from htas.files import from_json, to_json
from htas.timing.level import levels
from htas.timing.measurement import CONTENDED, FEW, MOMENTS, STUDENT, Measurement, _of_sorted, noise


def test_summaries_are_those_of_the_readings() -> None:
    found = Measurement((4.0, 1.0, 3.0, 2.0, 5.0), "s")
    assert (found.median, found.minimum) == (3.0, 1.0)
    assert (found.mean, found.spread) == (3.0, 4.0 - 2.0)
    assert found.estimate == 2.0  # the 25th percentile


def test_the_error_of_a_few_readings_is_that_of_the_ranks_beside() -> None:
    found = Measurement((4.0, 1.0, 3.0, 2.0, 5.0), "s")
    reach = (0.25 * 0.75 / 5) ** 0.5  # a standard deviation of the binomial: ranks 0.0563 to 0.4436
    assert found.error == found.standard_error == pytest.approx(4 * 2 * reach / 2)


def test_a_few_readings_that_agree_are_not_taken_for_sure() -> None:
    assert Measurement((1.0, 1.0, 1.0), "s").error == pytest.approx(0.02 / 3**0.5)
    assert Measurement((1.0,) * 12, "s").error == 0.0


def test_the_error_of_many_readings_is_what_leaving_out_a_stretch_moves() -> None:
    values = [1.0] * 4 + [1.1] * 4 + [1.2] * 4 + [1.3] * 4 + [1.4] * 4 + [1.5] * 4
    found = Measurement(tuple(values), "s")
    left = [np.percentile(values[:start] + values[start + 4 :], 25) for start in range(0, 24, 4)]
    assert found.error == pytest.approx(((5 / 6) * sum((each - np.mean(left)) ** 2 for each in left)) ** 0.5)


@pytest.mark.parametrize("count", [1, 2, 7, 100])
def test_percentiles_of_sorted_values_are_those_of_numpy(count: int) -> None:
    values = np.sort(np.random.default_rng(count).normal(size=count))
    for percentile in (0, 25, 37.5, 100):
        assert _of_sorted(values, percentile) == pytest.approx(np.percentile(values, percentile))


def test_a_percentile_that_is_one_value_whatever_is_left_out_is_not_taken_for_sure() -> None:
    rng = np.random.default_rng(0)
    usual = rng.random(600) < 0.5  # the level is that of this network's own reading
    values = np.where(usual, 2.0, 2.0 * np.exp(rng.normal(0.02, 0.02, 600)))
    given = Measurement(tuple(values), "s")
    assert given.estimate == 2.0
    assert given.error == pytest.approx(FEW * 2.0 / 600**0.5)
    assert Measurement((2.0,) * 600, "s").error == 0.0  # of a clock that is exact


def test_a_stretch_that_was_disturbed_throughout_moves_neither_the_estimate_nor_its_error() -> None:
    rng = np.random.default_rng(0)
    quiet = rng.normal(1, 0.01, 240)
    disturbed = np.concatenate([quiet[:200], 3 * quiet[200:]])
    calm, other = (Measurement(tuple(values), "s") for values in (quiet, disturbed))
    assert other.estimate == pytest.approx(calm.estimate, rel=0.01)
    assert other.error < 3 * calm.error


def test_errors_are_what_repetitions_show() -> None:
    rng = np.random.default_rng(0)
    repeated = [Measurement(tuple(rng.normal(1, 0.1, 200)), "s") for _ in range(400)]
    shown = statistics.stdev(each.estimate for each in repeated)
    assert statistics.mean(each.error for each in repeated) == pytest.approx(shown, rel=0.12)
    moods = rng.normal(1, MOMENTS, 400)
    moody = [
        Measurement(tuple(np.multiply(each.values, mood)), "s") for each, mood in zip(repeated, moods, strict=True)
    ]
    covered = [one.interval[0] <= two.estimate <= one.interval[1] for one, two in itertools.pairwise(moody)]
    assert statistics.mean(covered) == pytest.approx(0.95, abs=0.03)


def read(seed: int, rounds: int, networks: int, build: float, walk: float) -> tuple[Measurement, Measurement]:
    """Two of several equal networks, read in rounds on a machine whose level walks; each has a program in a stretch."""
    rng = np.random.default_rng(seed)
    order = np.argsort(rng.random((rounds, networks)), axis=1)
    stretches = np.arange(rounds) * 16 // rounds
    programs = np.take_along_axis(build * rng.normal(size=(16, networks))[stretches], order, 1).ravel()
    weights = 0.95 ** np.arange(100)
    level = np.convolve(walk * rng.normal(size=order.size), weights)[: order.size]
    turns = level + programs + rng.exponential(0.01, order.size)
    seconds = 1e-3 * np.exp(turns[:, None] + rng.exponential(0.005, (order.size, 3))).ravel()
    calls = np.repeat(order.ravel(), 3)
    slow = levels(seconds, calls, 48)
    one, other = (
        Measurement(tuple(seconds[calls == each]), "s", {}, "one", tuple(slow[calls == each])) for each in (0, 1)
    )
    return one, other


@pytest.mark.parametrize(
    ("rounds", "networks", "build", "walk"),
    [(20, 2, 0.0, 0.01), (40, 6, 0.01, 0.0), (40, 12, 0.0, 0.01), (200, 2, 0.0, 0.0), (200, 2, 0.01, 0.01)],
)
def test_equal_networks_are_seldom_told_apart(rounds: int, networks: int, build: float, walk: float) -> None:
    runs = [read(seed, rounds, networks, build, walk) for seed in range(100)]
    apart = [one.estimate - other.estimate for one, other in runs]
    limits = [noise(one, other) for one, other in runs]
    assert np.mean(np.abs(apart) > limits) <= 0.1
    assert np.median(limits) < 5 * np.std(apart)  # nor are all differences called noise: 2 would be exact


def test_a_difference_beyond_the_noise_is_told_and_separate_runs_have_both_errors() -> None:
    one, other = read(0, 200, 2, 0.0, 0.01)
    assert one.scaled(1.02).estimate - other.estimate > noise(one.scaled(1.02), other)
    elsewhere = replace(other, survey="another")
    assert noise(one, elsewhere) == pytest.approx(STUDENT * np.hypot(one.error, other.error))


def test_the_machines_level_is_taken_out_and_comes_back_in_the_standard_error() -> None:
    levels = (1.0,) * 12 + (1.3,) * 12
    found = Measurement(tuple(2.0 * level for level in levels), "s", levels=levels)
    assert found.estimate == pytest.approx(2.0)
    assert found.error == pytest.approx(0.0)
    # without one of the three quick stretches the median level is 1.3, without one of the slow ones 1.0
    assert found.standard_error == pytest.approx(2.0 * 0.15 * 5**0.5)
    low, high = found.interval
    assert (low + high) / 2 == pytest.approx(2.0)


def test_a_remark_widens_where_a_repetition_is_expected() -> None:
    quiet, busy = (Measurement((1.0,) * 12, "s", remarks=remarks) for remarks in ((), ("busy",)))
    assert quiet.interval[1] - 1 == pytest.approx(1.96 * 2**0.5 * MOMENTS)
    assert busy.interval[1] - 1 == pytest.approx(1.96 * 2**0.5 * CONTENDED)


def test_every_reading_needs_its_level() -> None:
    with pytest.raises(ValueError, match="2 readings need as many levels, got 1"):
        Measurement((1.0, 2.0), "s", levels=(1.0,))


def test_remarks_come_first_among_the_doubts() -> None:
    assert Measurement((1.0, 1.0), "s", remarks=("busy",)).doubts == ("busy",)


def test_one_reading_has_no_spread() -> None:
    found = Measurement((7.0,), "MACs")
    assert (found.median, found.spread, found.standard_error, found.doubts) == (7.0, 0.0, 0.0, ())


def test_readings_spread_over_more_than_a_tenth_are_doubted() -> None:
    assert Measurement((10.0, 10.0, 10.9, 10.9), "s").doubts == ()
    (doubt,) = Measurement((10.0, 10.0, 12.0, 12.0), "s").doubts
    assert "spread over 18% of their median" in doubt


def test_a_drift_is_doubted_and_too_few_readings_do_not_show_one() -> None:
    drifted = Measurement((10.0,) * 6 + (11.2,) * 6, "s")
    assert drifted.drift == pytest.approx(0.12)
    assert any("the second half of the readings is 12% slower than the first" in doubt for doubt in drifted.doubts)
    assert not any("drifted" in doubt for doubt in Measurement((10.0,) * 6 + (10.9,) * 6, "s").doubts)
    assert Measurement((10.0,) * 5 + (20.0,) * 5, "s").drift == 0.0


def test_no_reading_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one reading, got none"):
        Measurement((), "s")


def test_a_measurement_reads_back_from_json() -> None:
    found = Measurement((1.0, 2.5), "s", {"runtime": "eager"}, "s1", (1.0, 1.1), ("busy",))
    assert from_json(json.loads(json.dumps(to_json(found))), Measurement, "it") == found
