"""Pieces of work on the nodes of a Ray cluster, or on one that is started here: Ray core tasks, which decide where and
when.

One kind asks for processors and graphics cards, the other for the resource DEVICE, of which the node that is the device
has one. A folder that not all nodes share is sent, and what a task has made comes back.
"""

import hashlib
import json
import os
import platform
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import wait
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import uuid4

from torch import cuda, set_num_threads

from htas.console.progress import Bar, progress, say
from htas.console.record import recording, under_way
from htas.errors import UserError
from htas.files import __version__, digest, write_bytes, write_text
from htas.text import fault, first_line, listing
from htas.timing import turns

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
"""Seconds between two looks at what this process waits for."""
LOOK = 1.0
"""Seconds between two looks at how far tasks are."""
ANSWER = 5.0
"""Seconds in which a cluster must answer."""
IDLE = "RAY_idle_worker_killing_time_threshold_ms", "600000"
"""Where trials have all processors of a node, Ray otherwise ends the process of a reading after a second, and the next
reading waits until another one has imported PyTorch."""
ALL = "the device"
"""What does a task for all, whose name is empty, in words."""
TOKEN = Path("locks") / "token"
"""A file that says whether a node sees the folder of the driver."""
Contents = Mapping[str, bytes]
"""Files by their path in a folder."""


@dataclass(frozen=True)
class Job:
    """What a task needs, wherever it runs."""

    folder: Path
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
    value: Any = None
    """What its work returned."""


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
class Call:
    """A piece of work for a node."""

    function: Callable[..., Outcome]
    """Of this package; called with a job, the name of the call, the work and the board."""
    work: bytes
    """As of `packed`."""
    asks: Asks
    contents: Callable[[], Contents]
    """The files that it needs, once it can begin."""
    after: str = ""
    """The name of the call that must have ended before; empty for none."""
    without: str = ""
    """Why this one cannot be done where that one was not."""


def versions() -> dict[str, str]:
    """What must be the same on all nodes."""
    python = platform.python_version()
    return {"htas": __version__, "Python": python, "torch": version("torch"), "Ray": version("ray")}


def job_in(folder: Path, threads: int, gpus: float = 0.0) -> Job:
    """What all tasks in a folder need."""
    mark = folder / TOKEN
    if not mark.exists():
        mark.parent.mkdir(parents=True, exist_ok=True)
        write_text(mark, uuid4().hex)
    paths = tuple(dict.fromkeys(filter(None, (str(Path.cwd()), *sys.path))))
    return Job(folder.resolve(), mark.read_text(), versions(), str(Path.cwd()), paths, threads, gpus)


def packed(*work: object) -> bytes:
    """Work to be sent: a node opens it when it knows the folders of the user's modules."""
    content: bytes = ray.cloudpickle.dumps(work)
    return content


@contextmanager
def cluster(address: str) -> Iterator[None]:
    """Connected to the cluster at an address; without one it is started here, and ends. Raises UserError."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault(*IDLE)
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    if address:
        _answering(address)
    with _own_signals():
        try:
            if address:
                ray.init(address, **quiet)
            else:
                ray.init("local", resources={DEVICE: 1}, include_dashboard=False, **quiet)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            failed = (
                f"the Ray cluster at {address} cannot be joined" if address else "no Ray cluster can be started here"
            )
            raise UserError(f"{failed}: {first_line(error)}") from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _own_signals() -> Iterator[None]:
    """What ends the command stays the command's: Ray takes SIGTERM, and ends the process where it is."""
    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def done(
    job: Job,
    calls: Mapping[str, Call],
    title: str,
    log: Callable[[str], Path],
    before: Mapping[str, Outcome] | None = None,
) -> dict[str, Outcome]:
    """The outcome of each call, by its name, and those of calls before; what one has made is written here. `log` is the
    file that tells of a fault.

    Raises UserError where the cluster has no node for them, for PATIENCE seconds.
    """
    board = ray.remote(num_cpus=0, max_restarts=-1)(Board).remote()  # its node may die, too
    lines, answer = dict[str, str](), board.read.remote()
    waiting, running, ended = dict(calls), dict[Any, str](), dict(before or {})
    lacking = Lacking()
    try:
        with progress(f"{title} on Ray", len(calls)) as bar:
            while waiting or running:
                for name, call in list(waiting.items()):
                    if call.after and (call.after in waiting or call.after in running.values()):
                        continue
                    del waiting[name]
                    if call.after in ended and ended[call.after].reason:
                        ended[name] = Outcome(call.without)
                        bar.step(f"{name} ended")
                        continue
                    sent = replace(job, contents=call.contents())
                    running[call.asks.task(call.function).remote(sent, name, call.work, board)] = name
                for each in ray.wait(list(running), timeout=LOOK)[0] if running else ():
                    name = running.pop(each)
                    ended[name] = outcome = _outcome(each, log(name))
                    for path, content in (outcome.contents or {}).items():
                        write_bytes(job.folder / path, content)
                    if outcome.reason:
                        say(f"{title} on Ray: {name or ALL}: {outcome.reason}")
                    bar.step(f"{name or ALL} {'ended' if outcome.reason else 'is done'}")
                if ray.wait([answer], timeout=0)[0]:
                    with suppress(ray.exceptions.RayError):
                        lines = ray.get(answer)
                    answer = board.read.remote()
                bar.step("; ".join(f"{name or ALL}: {lines.get(name, 'waits')}" for name in running.values()), by=0)
                lacking.check([calls[name].asks for name in (*waiting, *running.values())])
    finally:
        for each in running:
            ray.cancel(each, force=True)
    return ended


def each(job: Job, begin: Callable[[Path], Callable[[Any], Any]], pieces: Sequence[Any], bar: Bar) -> Iterator[Any]:
    """Each piece as soon as a node has done it, with its result. `begin` is called once in a process of a node, with
    the folder there: it returns what does a piece.

    Raises what a process raises, and UserError where no node has what pieces ask for, and where one cannot be done.
    """
    asks, work, lacking = Asks(job.threads, job.gpus), packed(begin), Lacking()
    running = {asks.task(_piece).remote(job, packed(piece), work): piece for piece in pieces}
    try:
        while running:
            # a trial that waits for its pieces gives them its processor
            for task in ray.wait(list(running), timeout=LOOK)[0]:
                piece = running.pop(task)
                outcome = _outcome(task, job.folder)
                if outcome.reason:
                    raise UserError(outcome.reason)
                yield piece, outcome.value
            lacking.check([asks] if running else [])
            bar.step(by=0)
    finally:
        for task in running:
            ray.cancel(task, force=True)


class Lacking:
    """Whether the cluster has nodes for what is asked, looked at again and again."""

    def __init__(self) -> None:
        self.since: float | None = None

    def check(self, tasks: Sequence[Asks]) -> None:
        """Raise UserError where some task has had no node for PATIENCE seconds."""
        lack = _lack(tasks)
        self.since = (self.since or time.monotonic()) if lack else None
        if self.since is not None and time.monotonic() > self.since + PATIENCE:
            raise UserError(lack)


def _answering(address: str) -> None:
    """Raise UserError where nothing listens at an address."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=ANSWER).close()
    except (OSError, ValueError) as error:
        raise UserError(
            f"no Ray cluster answers at {address} ({error}); start one there with ray start --head, and name HOST:PORT"
        ) from error


def _lack(tasks: Sequence[Asks]) -> str:
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


_doing: dict[str, Callable[[Any], Any]] = {}
"""What does the pieces of a search, in a process of a node."""


def _piece(job: Job, piece: bytes, work: bytes) -> Outcome:
    """A piece of a search; the first one of a process begins."""
    try:
        need_share(job)
        with (
            node(job) as (folder, _), open(os.devnull, "w") as nothing, redirect_stderr(nothing),
            redirect_stdout(nothing), turns.join(), recording(between=turns.give_way),
        ):  # fmt: skip
            key = digest(job.token, str(folder), hashlib.sha256(work).hexdigest())
            if key not in _doing:
                _doing.clear()
                (begin,) = unpacked(work)
                _doing[key] = begin(folder)
            return Outcome(value=_doing[key](*unpacked(piece)))
    except UserError as error:
        return Outcome(str(error))


def need_share(job: Job) -> None:
    """Raise UserError on a node with a graphics card of which tasks ask for no part."""
    if cuda.is_available() and not job.gpus:
        raise UserError(
            f"the node {platform.node()} has a graphics card, which trials of others use, too, as none is asked for; "
            "give a share of it to each trial: --workers=...,gpus=0.5"
        )


@contextmanager
def node(job: Job) -> Iterator[tuple[Path, bool]]:
    """The folder that this node works in, and whether it is the driver's; raises UserError where the node is of other
    versions."""
    if other := {name: value for name, value in versions().items() if job.versions[name] != value}:
        there, here = (listing(f"{name} {values[name]}" for name in other) for values in (other, job.versions))
        raise UserError(f"the node {platform.node()} has {there}, and this command {here}; install the same there")
    sys.path += [path for path in job.paths if path not in sys.path]
    if Path(job.place).is_dir():
        os.chdir(job.place)
    set_num_threads(job.threads)
    mark = job.folder / TOKEN
    if mark.exists() and mark.read_text() == job.token:
        yield job.folder, True
        return
    number = ray.get_runtime_context().get_node_id()
    folder = Path(tempfile.gettempdir()) / f"htas-{os.getuid()}-{digest(str(job.folder), job.token, number)}"
    for path, content in job.contents.items():
        if "checkpoints" not in Path(path).parts or not (folder / path).exists():  # one goes on where it was cut off
            write_bytes(folder / path, content)
    yield folder, False


def unpacked(work: bytes) -> Any:
    """What `packed` made; only within `node`."""
    return ray.cloudpickle.loads(work)


def on_device(job: Job, function: Callable[[Job, bytes], Any], work: bytes) -> Any:
    """What a function of a job and of work returns on the node that is the device. Raises UserError where no node is,
    for PATIENCE seconds, and where the work was lost."""
    asks, lacking = Asks(device=True), Lacking()
    # ray.get, and ray.wait too, would give this task's processor to another one
    reading = asks.task(function).remote(job, work).future()
    with turns.away():
        while not wait([reading], timeout=POLL).done:
            lacking.check([asks])
    try:
        return reading.result()
    except ray.exceptions.RayError as error:
        raise UserError(f"what the device had to read was lost: {first_line(error)}") from error


def telling(board: Any, name: str) -> Callable[[], None]:
    """Gives way to who measures, and tells the board now and then what a task does."""
    last = 0.0

    def tell() -> None:
        nonlocal last
        turns.give_way()
        if time.monotonic() > last + LOOK:
            last = time.monotonic()
            board.tell.remote(name, under_way())

    return tell
