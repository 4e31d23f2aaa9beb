"""The machine's level and the calls' own figures, planted and found again."""

import numpy as np
import pytest

from htas.timing.level import levels, percentiles


def test_percentiles_of_every_call_are_numpys() -> None:
    rng = np.random.default_rng(0)
    calls = rng.integers(0, 7, 200)
    values = rng.random(200)
    for percentile in (0, 10, 25, 50, 100):
        expected = [np.percentile(values[calls == call], percentile) for call in range(7)]
        assert percentiles(values, calls, percentile) == pytest.approx(expected)


def test_a_planted_level_is_found() -> None:
    rng = np.random.default_rng(0)
    calls = np.concatenate([rng.permutation(40) for _ in range(60)])
    own = 1e-4 * (1 + rng.random(40))
    slow = np.where((np.arange(2400) // 300) % 2, 1.4, 1.0)
    noise = np.exp(np.abs(rng.normal(0, 0.02, 2400)))
    noise[rng.random(2400) < 0.05] = 2.0
    seconds = own[calls] * slow * noise
    found = levels(seconds, calls, 32)
    middle = (np.arange(2400) % 300 > 40) & (np.arange(2400) % 300 < 260)  # away from the jumps
    ratio = (found / slow)[middle]
    assert np.ptp(np.log(ratio)) < 0.06
    figures = percentiles(seconds / found, calls, 25)
    assert np.std(np.log(figures / own)) < 0.01
    plain = percentiles(seconds, calls, 50)
    assert np.std(np.log(plain / own)) > 2 * np.std(np.log(figures / own))


def test_a_call_that_was_left_out_for_a_while_is_not_judged_by_the_hour_it_was_read_in() -> None:
    rng = np.random.default_rng(1)
    first = np.concatenate([rng.permutation(8) for _ in range(50)])
    then = np.concatenate([rng.permutation(4) for _ in range(200)])  # only half of them go on, on a slower machine
    calls = np.concatenate([first, then])
    slow = np.concatenate([np.ones(len(first)), np.full(len(then), 1.3)])
    seconds = slow * np.exp(np.abs(rng.normal(0, 0.01, len(calls))))
    figures = percentiles(seconds / levels(seconds, calls, 48), calls, 25)
    assert np.ptp(np.log(figures)) < 0.01


def test_a_call_by_itself_has_no_level() -> None:
    assert levels(np.array([1.0, 2.0]), np.array([3, 3]), 4).tolist() == [1.0, 1.0]
    assert levels(np.array([]), np.array([], dtype=int), 4).tolist() == []
