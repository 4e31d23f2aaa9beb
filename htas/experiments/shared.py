"""Runs that share surveys, costs, supernets and trainings where these are the same."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout

from htas.console.progress import say
from htas.files import write_bytes
from htas.run.config import Config
from htas.run.rows import trained
from htas.run.run import Run, open_run
from htas.run.stage import ensure, made_from
from htas.run.stages import CALIBRATE, DESIGN, SEARCH, SURVEY
from htas.timing.turns import away

SUPERNETS = "supernets"
"""Folder of those that several searches share: of strategies that judge archs by a supernet which is trained before."""
LOCKS = "locks"
"""Folder of the locks of trials that run at the same time."""
PREPARED = ("config.toml", "environment.json", "command.json", "survey.json", "design.json", "cost.json", "result.json")
"""Files of runs that are made before a search, or are the end of a trial."""


def in_first_space(config: Config) -> Config:
    """The configuration of a run in its first space alone."""
    first, design = config.design.spaces[0], config.design
    widths = design.widths if first == "explicit" else {}
    return replace(config, design=replace(design, spaces=(first,), widths=widths))


def prepared(run: Run) -> Run:
    """A run up to its calibration, begun with the files of others next to it."""
    run = open_run(run.config, run.folder, supernets=run.supernets, sources=run.sources)
    share_files(run)
    for stage in (SURVEY, DESIGN, CALIBRATE):
        ensure(run, stage)
    return run


def share_files(job: Run) -> None:
    """Copy files of the runs next to this one that this run would make too."""
    others = _others(job)
    share_base(job)
    for stage in (SURVEY, DESIGN, CALIBRATE, SEARCH):
        for path in stage.files(job):
            _copied(path, [other / path.name for other in others], partial(made_from, key=stage.key(job)))
            if stage is not SEARCH and not path.exists():
                return


def share_base(job: Run) -> None:
    """Copy the trained base network of a run next to this one, which trains it too."""
    key, weights = job.training(job.network.base, taught=False), Path("networks") / "base.safetensors"
    others = [other / weights for other in _others(job)]
    _copied(job.folder / weights, others, lambda path: trained(path, key) is not None)


@contextmanager
def once(path: Path) -> Iterator[None]:
    """Do a piece of work that other processes may need, too, alone by a lock file: they wait, and find it done."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"waiting for another process, which does the same ({path})")
        with away():
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _others(job: Run) -> list[Path]:
    """The folders next to that of a run."""
    return sorted(path for path in job.folder.parent.glob("*/") if path != job.folder)


def _copied(path: Path, others: Sequence[Path], fits: Callable[[Path], bool]) -> None:
    """Copy the first of other files that fits to `path`, unless the file there fits."""
    source = next((path for path in others if fits(path)), None)
    if source is not None and not fits(path):
        write_bytes(path, source.read_bytes())
