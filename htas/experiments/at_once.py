"""Pieces of work of an experiment, done at once: who does them, and those that are processes of this machine."""

import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from htas.console.progress import Bar, progress, say
from htas.console.record import into, recording
from htas.console.watch import state
from htas.errors import UserError
from htas.text import fault, plural
from htas.timing import turns
from htas.timing.crew import Crew
from htas.timing.processes import died, ending, new_process
from htas.timing.target import usable_cores

LOGS = "logs"
"""Folder of what pieces of work print, and of their turns."""
LOOK = 1.0
"""Seconds between two looks at how far they are."""


@dataclass(frozen=True)
class Task:
    """A piece of work, which raises UserError where it cannot be done."""

    work: Callable[..., Any]
    """A function by its name in a module, called with the folder and the arguments."""
    arguments: tuple[Any, ...]
    after: str = ""
    """The name of the task that must be done before; empty for none."""
    without: str = ""
    """Why this one cannot be done where that one was not."""
    files: tuple[str, ...] = ()
    """Patterns of files in the folder that it needs or makes, besides those in the folder of its name, for a node that
    does not share the folder."""


class Tasks(ABC):
    """Who does pieces of work of an experiment."""

    @abstractmethod
    def opened(self) -> AbstractContextManager[object]:
        """What they need as a whole, for as long as there may be tasks. Raises UserError where it is not there."""

    @abstractmethod
    def do(self, verb: str, tasks: Mapping[str, Task], folder: Path, before: Mapping[str, str]) -> dict[str, str]:
        """Do tasks of a verb, by name, whose folders and logs are in this folder; returns why those that are missing
        could not be done, with the reasons of others before."""

    @abstractmethod
    def measure(self, title: str, task: Task, folder: Path) -> Any:
        """What the work of a task returns that measures, where the device is. Raises UserError."""


@dataclass(frozen=True)
class Processes(Tasks):
    """Processes on this machine."""

    count: int
    """How many tasks are done at once."""
    threads: int = field(default=0)
    """Of each; 0 shares the cores among them."""

    def opened(self) -> AbstractContextManager[object]:
        """Nothing: processes begin with the tasks."""
        return nullcontext()

    def measure(self, title: str, task: Task, folder: Path) -> Any:
        """By this process, in turns with those of other commands."""
        with turns.join():
            return task.work(folder, *task.arguments)

    def do(self, verb: str, tasks: Mapping[str, Task], folder: Path, before: Mapping[str, str]) -> dict[str, str]:
        """Each in one of the processes."""
        threads = self.threads or max(1, usable_cores() // self.count)
        waiting, reasons = dict(tasks), dict(before)
        busy: dict[Future[tuple[str, bool]], tuple[str, ProcessPoolExecutor]] = {}
        into(folder)
        with ending(), progress(f"{verb}: {plural(len(tasks), 'trial')}", len(tasks)) as bar:
            idle = [new_process(threads) for _ in range(min(self.count, len(tasks)))]
            while waiting or busy:
                for name, task in list(waiting.items()):
                    if task.after in reasons:
                        del waiting[name]
                        reasons[name] = task.without
                        bar.step(f"{name} ended")
                    elif idle and task.after not in (*waiting, *(running for running, _ in busy.values())):
                        del waiting[name]
                        process = idle.pop()
                        busy[process.submit(_in_process, folder, name, task)] = name, process
                for future in wait(busy, LOOK, FIRST_COMPLETED).done:
                    name, process = busy.pop(future)
                    reason, usable = _reason(future)
                    if reason:
                        reasons[name] = reason
                        say(f"{verb}: {name}: {reason}")
                    idle.append(process if usable else new_process(threads))
                    bar.step(f"{name} {'ended' if reason else 'is done'}")
                _show(bar, folder, [name for name, _ in busy.values()])
        return reasons


def tasks_of(crew: Crew) -> Tasks | None:
    """Who was asked for; None for this process alone. Raises UserError where Ray is wanted and missing."""
    if not crew.text:
        return None
    if crew.processes:
        return Processes(crew.processes, crew.threads)
    from htas.experiments.on_ray import RayTasks

    return RayTasks(crew.address, crew.threads or 1, crew.gpus)


def _in_process(folder: Path, name: str, task: Task) -> tuple[str, bool]:
    """Do a task; why it could not be done, empty where it was, and whether this process may do others."""
    try:
        with logged(folder, name):
            task.work(folder, *task.arguments)
    except UserError as error:
        return str(error), True
    except Exception as error:  # what a user's code raises may not be fit to be sent
        return fault(error, log_of(folder, name)), False
    return "", True


def log_of(folder: Path, name: str) -> Path:
    """What a task prints."""
    return folder / LOGS / f"{name}.log"


def turns_of(folder: Path, name: str) -> Path:
    """When a task computed and measured."""
    return folder / LOGS / f"{name}.jsonl"


@contextmanager
def logged(folder: Path, name: str, between: Callable[[], None] = turns.give_way) -> Iterator[None]:
    """What a task prints goes to its log; `between` is called after every step of its work."""
    path = log_of(folder, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", buffering=1) as log, redirect_stderr(log), redirect_stdout(log), recording(between=between):
        try:
            yield
        except UserError:
            raise
        except Exception:
            traceback.print_exc()
            raise


def _reason(future: Future[tuple[str, bool]]) -> tuple[str, bool]:
    """Why a task could not be done, empty where it was, and whether its process may do others."""
    if died(future):
        return "its process was killed, as the system does where memory ends; the same command does the rest", False
    return future.result()


def _show(bar: Bar, folder: Path, names: Sequence[str]) -> None:
    """What the tasks under way do."""
    parts = []
    for name in names:
        with suppress(UserError):  # it has not begun yet
            parts.append(f"{name}: {state(folder / name).work or 'begins'}")
    bar.step("; ".join(parts), by=0)
