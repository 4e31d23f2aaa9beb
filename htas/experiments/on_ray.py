"""Pieces of work of an experiment, done by the nodes of a Ray cluster: what they measure, the device reads."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from shutil import rmtree
from typing import Any

from torch import set_num_threads

from htas.console.record import into
from htas.errors import UserError
from htas.experiments.at_once import Task, Tasks, log_of, logged, turns_of
from htas.metrics import Case, Metric, measuring_elsewhere
from htas.timing import on_ray, turns
from htas.timing.measurement import Measurement
from htas.timing.on_ray import Asks, Call, Contents, Job, Outcome
from htas.timing.target import usable_cores


@dataclass(frozen=True)
class RayTasks(Tasks):
    """The nodes of a cluster."""

    address: str = ""
    """Of a cluster; empty to start one on this machine."""
    cpus: int = 1
    """Processors of a task, and its threads."""
    gpus: float = 0.0
    """Graphics cards of a task, or a part of one."""

    def opened(self) -> AbstractContextManager[object]:
        """Connected to the cluster; one that was started here ends."""
        return on_ray.cluster(self.address)

    def do(self, verb: str, tasks: Mapping[str, Task], folder: Path, before: Mapping[str, str]) -> dict[str, str]:
        """Each by a node with the processors that it asks for."""
        job, asks = self.job(folder), Asks(self.cpus, self.gpus)
        calls = {
            name: Call(
                _do, on_ray.packed(task.work, task.arguments, task.files), asks,
                self._sent(folder, f"{name}/**/*", *task.files), task.after, task.without,
            )
            for name, task in tasks.items()
        }  # fmt: skip
        into(folder)
        ended = {name: Outcome(reason) for name, reason in before.items()}
        done = on_ray.done(job, calls, "trials", partial(log_of, folder), ended)
        return {name: outcome.reason for name, outcome in done.items() if outcome.reason}

    def measure(self, title: str, task: Task, folder: Path) -> Any:
        """On the node that is the device."""
        call = Call(
            _measure, on_ray.packed(title, task.work, task.arguments, task.files), Asks(device=True),
            self._sent(folder, *task.files),
        )  # fmt: skip
        job = self.job(folder)
        into(folder)
        outcome = on_ray.done(job, {"": call}, title, lambda _: log_of(folder, title))[""]
        if outcome.reason:
            raise UserError(outcome.reason)
        return outcome.value

    def _sent(self, folder: Path, *patterns: str) -> Callable[[], Contents]:
        """What tasks need of a folder; nothing where all are on this machine."""
        return partial(_files, folder, patterns if self.address else ())

    def job(self, folder: Path) -> Job:
        """What tasks in a folder need."""
        return on_ray.job_in(folder, self.cpus, self.gpus)


def _files(folder: Path, patterns: Iterable[str]) -> dict[str, bytes]:
    """The files of a folder by patterns of their paths."""
    paths = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(paths)}


def _changed(job: Job, folder: Path, patterns: Iterable[str]) -> Contents:
    """The files that are not as they were sent."""
    return {path: each for path, each in _files(folder, patterns).items() if job.contents.get(path) != each}


# -- on a node ---------------------------------------------------------------------------------------------------------


def _do(job: Job, name: str, work: bytes, board: Any) -> Outcome:
    """A task; what it measures, the node that is the device reads."""
    try:
        on_ray.need_share(job)
        with on_ray.node(job) as (folder, shared):
            function, arguments, files = on_ray.unpacked(work)
            read = partial(_on_device, replace(job, contents={}))
            with logged(folder, name, on_ray.telling(board, name)), measuring_elsewhere(read):
                function(folder, *arguments)
            if shared:
                return Outcome()
            contents = _changed(job, folder, (f"{name}/**/*", *files))
            rmtree(folder / name, ignore_errors=True)
            return Outcome(contents=contents)
    except UserError as error:
        return Outcome(str(error))


def _measure(job: Job, name: str, work: bytes, board: Any) -> Outcome:
    """A task that measures, on the node that is the device."""
    try:
        with on_ray.node(job) as (folder, shared):
            title, function, arguments, files = on_ray.unpacked(work)
            with turns.join(), logged(folder, title, on_ray.telling(board, name)):
                value = function(folder, *arguments)
            if shared:
                return Outcome(value=value)
            contents = _changed(job, folder, files)
            rmtree(folder)
            return Outcome(contents=contents, value=value)
    except UserError as error:
        return Outcome(str(error))


def _on_device(job: Job, metric: Metric, cases: Sequence[Case]) -> list[Measurement]:
    """Networks, read by a task of its own. Raises UserError where that cannot be done."""
    outcome: list[Measurement] | str = on_ray.on_device(job, _read, on_ray.packed(metric, list(cases)))
    if isinstance(outcome, str):
        raise UserError(outcome)
    return outcome


def _read(job: Job, work: bytes) -> list[Measurement] | str:
    """Networks by a metric; the reason in a sentence where they cannot be measured."""
    try:
        with on_ray.node(job) as (folder, shared):
            metric, cases = on_ray.unpacked(work)
            set_num_threads(usable_cores())
            with turns.join(log=turns_of(folder, "measurements") if shared else None):
                readings: list[Measurement] = metric.measure(cases)
                return readings
    except UserError as error:
        return str(error)
