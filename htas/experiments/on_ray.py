"""Trials on the nodes of a Ray cluster, or on one that is started here: Ray core tasks, which decide where and when.

Three kinds of tasks: a trial asks for processors and graphics cards; preparing and measuring ask for the resource
DEVICE, of which the node that is the device has one. A folder that not all nodes share is sent, and what a task has
made comes back.
"""

import json
import os
import platform
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from shutil import rmtree
from typing import Any
from uuid import uuid4

from torch import cuda, set_num_threads

from htas.console.progress import progress, say
from htas.console.record import into, recording
from htas.console.watch import state
from htas.errors import UserError
from htas.experiments.arms import Entry, unfinished
from htas.experiments.at_once import LOOK, fault, log_of, logged, turns_of
from htas.experiments.compare import Comparison, Key, Trials, Workers
from htas.experiments.shared import LOCKS
from htas.experiments.trials import comparison, run_trial
from htas.files import __version__, digest, write_bytes, write_text
from htas.metrics import Case, Metric, measuring_elsewhere
from htas.text import first_line, listing
from htas.timing import turns
from htas.timing.measurement import Measurement
from htas.timing.target import usable_cores

try:
    import ray
except ImportError as error:
    raise UserError(
        f"--workers=ray needs Ray, which is not installed ({error}): pip install 'htas[ray]', or use --workers=local:N"
    ) from error

DEVICE = "htas_device"
"""The resource of the node whose latencies count: ray start --resources='{"htas_device": 1}'."""
RETRIES = 3
"""Times that a task begins again after its node is gone."""
PATIENCE = 60.0
"""Seconds in which a node with what a task asks for may come."""
POLL = 0.5
"""Seconds between two looks at a reading."""
ANSWER = 5.0
"""Seconds in which a cluster must answer."""
IDLE = "RAY_idle_worker_killing_time_threshold_ms", "600000"
"""Where trials have all processors of a node, Ray otherwise ends the process of a reading after a second, and the next
reading waits until another one has imported PyTorch."""
ALL = "the device"
"""What does a task for all trials, whose name is empty, in words."""
SOURCE = "source.toml"
"""The configuration's file, in a folder that is not the driver's."""
RESULT = "result.json"
PREPARED = ("config.toml", "environment.json", "survey.json", "design.json", "cost.json", RESULT)
"""Files of trials that are made before they are, or are their end."""
Contents = Mapping[str, bytes]
"""Files by their path in the folder of a comparison."""


@dataclass(frozen=True)
class Job:
    """What a task needs, wherever it runs."""

    trials: Trials
    token: str
    """What a file in the folder says, where that is the folder of the driver."""
    versions: Mapping[str, str]
    """Those of the driver."""
    place: str
    """The folder in which the command runs, which its relative paths begin in."""
    paths: tuple[str, ...]
    """Folders of the user's modules."""
    threads: int = 1
    gpus: float = 0.0
    contents: Contents = field(default_factory=dict)
    """Files that it needs where the folder is not shared."""


@dataclass(frozen=True)
class Outcome:
    """What became of a task."""

    reason: str = ""
    """Why it could not be done, in a sentence; empty where it was."""
    contents: Contents | None = None
    """What it has made; None in a shared folder."""
    reasons: Mapping[str, str] = field(default_factory=dict)
    """Why trials cannot be done that it was to prepare, by name."""


@dataclass(frozen=True)
class Asks:
    """What a task asks for."""

    cpus: int = 0
    gpus: float = 0.0
    device: bool = False
    """Whether it measures."""

    @property
    def resources(self) -> dict[str, float]:
        """By Ray's names."""
        return {"CPU": self.cpus, "GPU": self.gpus, **({DEVICE: 1} if self.device else {})}

    def task(self, function: Callable[..., object]) -> Any:
        """The function as a task of Ray."""
        resources = {DEVICE: 1} if self.device else {}
        return ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, resources=resources, max_retries=RETRIES)(function)


@dataclass(frozen=True)
class Task:
    """A piece of work for a node."""

    function: Callable[..., Outcome]
    """Called with a job, the arguments and the board."""
    asks: Asks
    arguments: tuple[Any, ...]
    after: str = ""
    """The name of the task that must have ended before; empty for none."""


def versions() -> dict[str, str]:
    """What must be the same on all nodes."""
    python = platform.python_version()
    return {"htas": __version__, "Python": python, "torch": version("torch"), "Ray": version("ray")}


@dataclass(frozen=True)
class RayWorkers(Workers):
    """The nodes of a cluster."""

    address: str = ""
    """Of a cluster; empty to start one on this machine."""
    cpus: int = 1
    """Processors of a trial, and its threads."""
    gpus: float = 0.0
    """Graphics cards of a trial, or a part of one."""

    def finish(self, whole: Comparison, keys: Sequence[Key]) -> dict[Key, str]:
        """Prepare trials on the node that is the device, then do them; returns why those that are missing could not be
        done."""
        names = [whole.jobs[key].folder.name for key in whole.ordered(keys)]
        with self._cluster():
            job = self._job(whole)
            prepared = _done(job, {"": Task(_prepare, Asks(device=True), (tuple(names),))}, "preparing")[""]
            reasons = dict.fromkeys(names, prepared.reason) if prepared.reason else dict(prepared.reasons)
            asks = Asks(self.cpus, self.gpus)
            tasks = {name: Task(_trial, asks, (name,), _after(whole, name)) for name in names if name not in reasons}
            into(whole.trials.folder)
            refused = {name: Outcome(reason) for name, reason in reasons.items()}
            reasons |= {name: each.reason for name, each in _done(job, tasks, "trials", refused).items() if each.reason}
        return {whole.names[name]: reason for name, reason in reasons.items()}

    def measure(self, whole: Comparison, there: Mapping[Key, Entry], path: Path, on: Key | None = None) -> None:
        """Measure all networks on the node that is the device; raises UserError where that cannot be done."""
        with self._cluster():
            task = Task(_measure_all, Asks(device=True), (dict(there), path.name, on))
            outcome = _done(self._job(whole), {"": task}, "measuring")[""]
        if outcome.reason:
            raise UserError(outcome.reason)

    def _job(self, whole: Comparison) -> Job:
        trials = whole.trials.pinned(next(iter(whole.jobs.values())).target)
        mark = trials.folder / LOCKS / "token"
        if not mark.exists():
            write_text(mark, uuid4().hex)
        source = trials.source.resolve() if trials.source else None
        paths = tuple(dict.fromkeys(filter(None, (str(Path.cwd()), *sys.path))))
        trials = replace(trials, folder=trials.folder.resolve(), source=source)
        return Job(trials, mark.read_text(), versions(), str(Path.cwd()), paths, self.cpus, self.gpus)

    @contextmanager
    def _cluster(self) -> Iterator[None]:
        """Connected to the cluster; one that was started here ends."""
        if ray.is_initialized():
            yield
            return
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault(*IDLE)
        quiet = {"log_to_driver": False, "logging_level": "ERROR"}
        if self.address:
            _answering(self.address)
            try:
                ray.init(self.address, **quiet)
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise UserError(f"the Ray cluster at {self.address} cannot be joined: {first_line(error)}") from error
        else:
            try:
                ray.init("local", resources={DEVICE: 1}, include_dashboard=False, **quiet)
            except (ConnectionError, RuntimeError, ValueError, OSError) as error:
                raise UserError(f"no Ray cluster can be started here: {first_line(error)}") from error
        try:
            yield
        finally:
            ray.shutdown()


def _after(whole: Comparison, name: str) -> str:
    """The trial that one follows; empty for none."""
    first = whole.follows(whole.names[name])
    return whole.jobs[first].folder.name if first else ""


def _done(
    job: Job, tasks: Mapping[str, Task], title: str, before: Mapping[str, Outcome] | None = None
) -> dict[str, Outcome]:
    """The outcome of each task, by its name, and those of tasks before; what one has made is written here. Raises
    UserError where the cluster has no node for them, for PATIENCE seconds."""
    board = ray.remote(num_cpus=0, max_restarts=-1)(Board).remote()  # its node may die, too
    lines, answer = dict[str, str](), board.read.remote()
    waiting, running, done = dict(tasks), dict[Any, str](), dict(before or {})
    missing: float | None = None
    try:
        with progress(f"{title} on Ray", len(tasks)) as bar:
            while waiting or running:
                for name, task in list(waiting.items()):
                    if task.after and (task.after in waiting or task.after in running.values()):
                        continue
                    del waiting[name]
                    if task.after in done and done[task.after].reason:
                        done[name] = Outcome(unfinished(comparison(job.trials).names[task.after][0]))
                        bar.step(f"{name} ended")
                        continue
                    sent = replace(job, contents=_contents(job.trials, name, task.after))
                    running[task.asks.task(task.function).remote(sent, *task.arguments, board)] = name
                for each in ray.wait(list(running), timeout=LOOK)[0] if running else ():
                    name = running.pop(each)
                    done[name] = outcome = _outcome(each, log_of(job.trials.folder, name or "prepare"))
                    for path, content in (outcome.contents or {}).items():
                        write_bytes(job.trials.folder / path, content)
                    if outcome.reason:
                        say(f"{title} on Ray: {name or ALL}: {outcome.reason}")
                    bar.step(f"{name or ALL} {'ended' if outcome.reason else 'is done'}")
                if ray.wait([answer], timeout=0)[0]:
                    with suppress(ray.exceptions.RayError):
                        lines = ray.get(answer)
                    answer = board.read.remote()
                bar.step("; ".join(f"{name or ALL}: {lines.get(name, 'waits')}" for name in running.values()), by=0)
                lack = _lacking([tasks[name].asks for name in (*waiting, *running.values())])
                missing = (missing or time.monotonic()) if lack else None
                if missing is not None and time.monotonic() > missing + PATIENCE:
                    raise UserError(lack)
    finally:
        for each in running:
            ray.cancel(each, force=True)
    return done


def _answering(address: str) -> None:
    """Raise UserError where nothing listens at an address."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=ANSWER).close()
    except (OSError, ValueError) as error:
        raise UserError(
            f"no Ray cluster answers at {address} ({error}); start one there with ray start --head, and name HOST:PORT"
        ) from error


def _lacking(tasks: Sequence[Asks]) -> str:
    """What no node of the cluster has, in a sentence; empty where all can be done."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for asks in tasks:
        resources = asks.resources
        if any(all(node.get(name, 0) >= value for name, value in resources.items()) for node in nodes):
            continue
        if asks.device:
            return (
                "no node of the Ray cluster is the device that is measured: start Ray there with ray start "
                f"--resources='{json.dumps({DEVICE: 1})}'"
            )
        words = listing(f"{value:g} {name}" for name, value in resources.items() if value)
        return f"no node of the Ray cluster has {words}, which each trial asks for; ask for less with --workers"
    return ""


def _outcome(task: Any, log: Path) -> Outcome:
    """Of a task that has ended, however."""
    try:
        outcome: Outcome = ray.get(task)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause or error
        if isinstance(cause, ModuleNotFoundError):
            return Outcome(f"a node of the Ray cluster lacks a module ({first_line(cause)}); install the same there")
        return Outcome(fault(cause, log))
    except ray.exceptions.RayError as error:
        return Outcome(f"its process or node was lost {RETRIES + 1} times: {first_line(error)}")
    return outcome


def _contents(trials: Trials, name: str, after: str) -> dict[str, bytes]:
    """The files that a task needs on a node that does not share the folder: those of its trial, or, to prepare all,
    what was prepared before; and the result that it follows."""
    paths = [path for path in (trials.folder / name).rglob("*") if path.is_file()] if name else [
        path for path in trials.folder.glob("*/*") if path.name in PREPARED
    ]  # fmt: skip
    if after:
        paths.append(trials.folder / after / RESULT)
    contents = {str(path.relative_to(trials.folder)): path.read_bytes() for path in paths if path.exists()}
    return contents | ({SOURCE: trials.source.read_bytes()} if trials.source else {})


# -- on a node ---------------------------------------------------------------------------------------------------------


class Board:
    """Where tasks say how far they are."""

    def __init__(self) -> None:
        self.lines: dict[str, str] = {}

    def tell(self, name: str, line: str) -> None:
        """What a task does."""
        self.lines[name] = line

    def read(self) -> dict[str, str]:
        """What each does."""
        return self.lines


@contextmanager
def _node(job: Job) -> Iterator[tuple[Trials, bool]]:
    """The trials in the folder that this node works in, and whether the driver shares it; raises UserError where the
    node is of other versions."""
    if other := {name: value for name, value in versions().items() if job.versions[name] != value}:
        there, here = (listing(f"{name} {values[name]}" for name in other) for values in (other, job.versions))
        raise UserError(f"the node {platform.node()} has {there}, and this command {here}; install the same there")
    sys.path += [path for path in job.paths if path not in sys.path]
    if Path(job.place).is_dir():
        os.chdir(job.place)
    set_num_threads(job.threads)
    trials, token = job.trials, job.trials.folder / LOCKS / "token"
    shared = token.exists() and token.read_text() == job.token
    if shared:
        yield trials, True
        return
    node = ray.get_runtime_context().get_node_id()
    folder = Path(tempfile.gettempdir()) / f"htas-{os.getuid()}-{digest(str(trials.folder), job.token, node)}"
    for path, content in job.contents.items():
        # a trial that was cut off here goes on from what it had
        if not (folder / path).exists() or Path(path).name in (SOURCE, RESULT):
            write_bytes(folder / path, content)
    yield replace(trials, folder=folder, source=folder / SOURCE if trials.source else None), False


def _prepare(job: Job, names: Sequence[str], board: Any) -> Outcome:
    """Surveys and calibrations, on the node that is the device."""
    try:
        with (
            _node(job) as (trials, shared),
            turns.join(),
            logged(trials.folder, "prepare", _telling(board, "", trials.folder)),
        ):
            keys = comparison(trials).names
            refused = comparison(trials).prepare([keys[name] for name in names])
            reasons = {name: refused[keys[name]] for name in names if keys[name] in refused}
            return Outcome("", None if shared else _files_of(trials, names), reasons)
    except UserError as error:
        return Outcome(str(error), None, dict.fromkeys(names, str(error)))


def _trial(job: Job, name: str, board: Any) -> Outcome:
    """A search and a training; what they measure, the node that is the device reads."""
    try:
        if cuda.is_available() and not job.gpus:
            raise UserError(
                f"the node {platform.node()} has a graphics card, which trials of others use, too, as none is asked "
                "for; give a share of it to each trial: --workers=...,gpus=0.5"
            )
        with _node(job) as (trials, shared):
            telling = _telling(board, name, trials.folder)
            with (
                logged(trials.folder, name, telling),
                measuring_elsewhere(partial(_on_device, replace(job, contents={}))),
            ):
                run_trial(trials, name)
            contents = None if shared else _files_of(trials, [name])
        if contents is not None:
            rmtree(trials.folder / name)
        return Outcome("", contents)
    except UserError as error:
        return Outcome(str(error))


def _on_device(job: Job, metric: Metric, cases: Sequence[Case]) -> list[Measurement]:
    """Networks, read by a task of its own. Raises UserError where no node is the device, for PATIENCE seconds."""
    asks, since = Asks(device=True), time.monotonic()
    # ray.get, and ray.wait too, would give this trial's processor to another one
    reading = asks.task(_measure).remote(job, metric, list(cases)).future()
    with turns.away():
        while not wait([reading], timeout=POLL).done:
            if not (lack := _lacking([asks])):
                since = time.monotonic()
            elif time.monotonic() > since + PATIENCE:
                raise UserError(lack)
    try:
        outcome: list[Measurement] | str = reading.result()
    except ray.exceptions.RayError as error:
        raise UserError(f"what the device had to read was lost: {first_line(error)}") from error
    if isinstance(outcome, str):
        raise UserError(outcome)
    return outcome


def _measure(job: Job, metric: Metric, cases: Sequence[Case]) -> list[Measurement] | str:
    """Networks by a metric; the reason in a sentence where they cannot be measured."""
    try:
        with _node(job) as (trials, shared):
            set_num_threads(usable_cores())
            with turns.join(log=turns_of(trials.folder, "measurements") if shared else None):
                return metric.measure(cases)
    except UserError as error:
        return str(error)


def _measure_all(job: Job, there: Mapping[Key, Entry], file: str, on: Key | None, board: Any) -> Outcome:
    """All networks of a comparison in one interleaved run."""
    try:
        with _node(job) as (trials, shared), turns.join(), recording(between=_telling(board, "", trials.folder)):
            comparison(trials).measured(dict(there), trials.folder / file, on=on)
            return Outcome("", None if shared else {file: (trials.folder / file).read_bytes()})
    except UserError as error:
        return Outcome(str(error))


def _files_of(trials: Trials, names: Sequence[str]) -> dict[str, bytes]:
    """The files of trials."""
    paths = [path for name in names for path in (trials.folder / name).rglob("*") if path.is_file()]
    return {str(path.relative_to(trials.folder)): path.read_bytes() for path in paths}


def _telling(board: Any, name: str, folder: Path) -> Callable[[], None]:
    """Gives way to who measures, and tells the board now and then what a task does."""
    last = 0.0

    def tell() -> None:
        nonlocal last
        turns.give_way()
        if time.monotonic() > last + LOOK:
            last = time.monotonic()
            with suppress(UserError):
                board.tell.remote(name, state(folder / name).work)

    return tell
