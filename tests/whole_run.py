"""A whole run in little, on the scripted device, and what its tests do with one."""

from pathlib import Path
from typing import Any

import pytest
from scripted_device import scripted_device

from htas.errors import UserError
from htas.files import from_json, read_json
from htas.report.result import Result
from htas.run import run
from htas.run import stages as pipeline
from htas.run.config import Config, load
from htas.run.stage import ensure

OPTIONS = [
    "family.depth=14", "split.limit=60", "target.threads=1", "survey.rounds=1", "survey.store=none",
    "survey.undecided=1", "calibrate.networks=8",
    "design.groups=2",
    "strategy.epochs=2", "strategy.batch=30", "strategy.precision=fp32", "strategy.arch_lr=0.3",
    "strategy.mix=interpolate", "strategy.start=random", "strategy.anneal=epoch",
    "train.epochs=2", "train.warmup=0", "train.rest=0", "train.batch=30", "train.precision=fp32",
]  # fmt: skip
COMMAND = "htas run some.toml"
QUICK = {
    "survey.store": "none", "survey.rounds": 1, "survey.undecided": 1, "design.groups": 4, "calibrate.networks": 8,
    "train.precision": "fp32",
}  # fmt: skip
"""Options of a quick call of htas.optimize."""


def options(*more: str) -> Config:
    return load(None, [*OPTIONS, *more])


STAGES = {stage.name: stage for stage in pipeline.STAGES}


def do(name: str, config: Config, folder: Path, again: bool = False) -> None:
    """What the verb of a stage does in the folder of a run."""
    ensure(run.Run(config, folder), STAGES[name], again)


def run_all(folder: Path) -> None:
    """Do everything there is to do in the folder of a run."""
    with scripted_device():
        assert pipeline.run_all(run.open_run(options(), folder), COMMAND) == folder / "report.html"


def times(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def rows(folder: Path) -> dict[str, Result]:
    return {
        row.name: row
        for row in [from_json(row, Result, "results") for row in read_json(folder / "measure.json")["results"]]
    }


def sentence(error: pytest.ExceptionInfo[UserError]) -> str:
    text = str(error.value)
    assert "\n" not in text and text
    return text


def kill(patch: pytest.MonkeyPatch, owner: Any, name: str, call: int = 1) -> None:
    """Raise KeyboardInterrupt at that call."""
    original, calls = getattr(owner, name), iter(range(1, 1000))

    def killed(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == call:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    patch.setattr(owner, name, killed)
