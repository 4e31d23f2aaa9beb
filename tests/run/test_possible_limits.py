"""Limits that are counted are held against what is possible before anything is measured."""

from pathlib import Path

import pytest
from scripted_device import scripted_device
from whole_run import COMMAND, options, sentence

from htas.errors import UserError
from htas.run import plan, run
from htas.run import stages as pipeline
from htas.run.limits import need_possible
from htas.run.run import Run

IMPOSSIBLE = [
    ("macs=0.5", r"constraints\.macs = '0\.5' cannot be kept: .*; the least that a network of the space \w+ takes is "),
    ("params=1", r"constraints\.params = '1' cannot be kept: .* takes is 0\.\d+ M \(\d+ %\); ask for more"),
    ("memory=1B", r"constraints\.memory = '1B' cannot be kept"),
    ("macs=900%", r"constraints\.macs = '900%' asks for .*, and even the widest network of the space \w+ takes only"),
]


@pytest.mark.parametrize(("asked", "words"), IMPOSSIBLE)
@pytest.mark.parametrize("space", ["hardware", "tas", "grid"])
def test_a_counted_limit_that_nothing_keeps_is_refused_before_the_survey(
    asked: str, words: str, space: str, tmp_path: Path
) -> None:
    job = Run(options(f"constraints.{asked}", f"design.spaces={space}"), tmp_path / "run")
    with pytest.raises(UserError, match=words) as planned:
        plan.check(job)
    assert f"the space {space}" in sentence(planned)
    with scripted_device(), pytest.raises(UserError, match=words):
        pipeline.run_all(run.open_run(job.config, job.folder), COMMAND)
    assert not (job.folder / "survey.json").exists()


def test_the_least_possible_network_has_the_narrowest_widths_within_bounds(tmp_path: Path) -> None:
    bounds = 'design.bounds={"16"=[8,16],"64"=[64,64]}'
    free, bounded = (
        Run(options("design.spaces=hardware", "constraints.params=5%", *more), tmp_path) for more in ((), (bounds,))
    )
    need_possible(free)
    with pytest.raises(UserError, match=r"constraints\.params = '5%' cannot be kept"):
        need_possible(bounded)


@pytest.mark.parametrize("asked", ["latency=0.000001%", "macs=50%"])
def test_what_is_possible_or_measured_passes(asked: str, tmp_path: Path) -> None:
    need_possible(Run(options(f"constraints.{asked}"), tmp_path))
