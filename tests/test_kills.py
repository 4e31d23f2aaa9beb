"""A sample of benchmarks/faults/kills.py: runs that are killed at random moments end as undisturbed ones."""

from pathlib import Path

import pytest

from benchmarks.faults import kills, small_runs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # whole runs, in processes that import PyTorch


def test_killed_runs_end_as_undisturbed_ones(tmp_path: Path) -> None:
    warm = kills.Warm()
    try:
        courses = [kills.course(number, 0, tmp_path, warm, 300.0) for number in (0, 2)]
    finally:
        warm.end()
    assert [kills.said(course) for course in courses] == [[], []]
    assert len([kill for course in courses for kill in course.kills]) > 3
    assert not list(small_runs.marked(tmp_path / "0"))
