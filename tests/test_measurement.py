"""Summaries of readings by hand."""

import json

import pytest

from htas.measurement import Measurement


def test_summaries_are_those_of_the_readings() -> None:
    found = Measurement((4.0, 1.0, 3.0, 2.0, 5.0), "s")
    assert (found.median, found.minimum) == (3.0, 1.0)
    assert found.spread == 4.0 - 2.0
    assert found.standard_error == pytest.approx(1.2533 * 2 / 1.349 / 5**0.5)


def test_one_reading_has_no_spread() -> None:
    found = Measurement((7.0,), "MACs")
    assert (found.median, found.spread, found.standard_error, found.doubts) == (7.0, 0.0, 0.0, ())


def test_readings_spread_over_more_than_a_tenth_are_doubted() -> None:
    assert Measurement((10.0, 10.0, 10.9, 10.9), "s").doubts == ()
    (doubt,) = Measurement((10.0, 10.0, 12.0, 12.0), "s").doubts
    assert "spread over 18% of their median" in doubt


def test_no_reading_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one reading, got none"):
        Measurement((), "s")


def test_a_measurement_reads_back_from_json() -> None:
    found = Measurement((1.0, 2.5), "s", {"runtime": "eager"}, "s1")
    assert Measurement.of(json.loads(json.dumps(found.json()))) == found
