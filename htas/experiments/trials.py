"""Trials of a comparison in processes of their own: one of them, the commands of all, and several at once."""

import shlex
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from htas.console.progress import Bar, progress, say
from htas.console.record import into, recording
from htas.console.watch import state
from htas.errors import UserError
from htas.experiments.arms import Entry, unfinished
from htas.experiments.compare import Comparison, Key, Trials, Workers
from htas.experiments.plans import Parallel
from htas.text import first_line, no_such, plural
from htas.timing import turns
from htas.timing.processes import died, ending, new_process
from htas.timing.target import usable_cores

LOGS = "logs"
"""Folder of what trials print, and of their turns."""
LOOK = 1.0
"""Seconds between two looks at how far trials are."""


@cache
def comparison(trials: Trials) -> Comparison:
    """Made once in a process, so that its trials share images and networks."""
    return Comparison.arranged(trials)


def run_trial(trials: Trials, name: str, measures: bool = False) -> None:
    """Do one trial, beside others on this machine; `measures` as of `Comparison.finish`. Raises UserError where it
    cannot be done."""
    keys = comparison(trials).names
    if name not in keys:
        raise UserError(no_such("trial", name, keys))
    with turns.join(log=trials.folder / LOGS / f"{name}.jsonl"):
        comparison(trials).finish(keys[name], measures)


def run_alone(trials: Trials, name: str) -> None:
    """The trial of a command of its own."""
    with recording(between=turns.give_way):
        run_trial(trials, name, measures=True)
    say(f"compare: {name} is done; --only shows all that are")


def commands(trials: Trials, command: str) -> list[str]:
    """A command for each trial that is not finished, by the command that asks for them; the number of threads is that
    of this machine, where none is said."""
    words = [word for word in shlex.split(command) if word.partition("=")[0] not in ("--list", "--json")]
    if not any(word.partition("=")[0] == "--out" for word in words):
        words.append(f"--out={trials.folder}")
    whole = comparison(trials)
    target = next(iter(whole.jobs.values())).target
    if not any(word.partition("=")[0] == "--target.threads" for word in words):
        words += [each for each in trials.pinned(target).overrides if each not in trials.overrides]
    unfinished = [name for name, key in whole.names.items() if whole.entry(key) is None]
    return [shlex.join([*words, f"--trial={name}"]) for name in unfinished]


def workers_of(parallel: Parallel) -> Workers | None:
    """The processes that were asked for; None for this one alone. Raises UserError where Ray is wanted and missing."""
    if not parallel.workers:
        return None
    if parallel.processes:
        return LocalWorkers(parallel.processes, parallel.threads)
    from htas.experiments.on_ray import RayWorkers

    return RayWorkers(parallel.address, parallel.threads or 1, parallel.gpus)


@dataclass(frozen=True)
class LocalWorkers(Workers):
    """Processes on this machine."""

    count: int
    """How many trials are done at once."""
    threads: int = field(default=0)
    """Of each; 0 shares the cores among them."""

    def finish(self, whole: Comparison, keys: Sequence[Key]) -> dict[Key, str]:
        """Prepare trials here, then do them; returns why those that are missing could not be done."""
        with turns.join():
            reasons = whole.prepare(keys)
        into(whole.trials.folder)
        todo = whole.ordered([key for key in keys if key not in reasons])
        return self._done(whole, todo, reasons) if todo else reasons

    def measure(self, whole: Comparison, there: Mapping[Key, Entry], path: Path) -> None:
        """Measure all networks here."""
        with turns.join():
            whole.measured(dict(there), path)

    def _done(self, whole: Comparison, keys: Sequence[Key], reasons: dict[Key, str]) -> dict[Key, str]:
        """Do trials; returns the reasons, with those of trials that failed now."""
        threads = self.threads or max(1, usable_cores() // self.count)
        trials, waiting = whole.trials.pinned(whole.jobs[keys[0]].target), list(keys)
        busy: dict[Future[tuple[str, bool]], tuple[Key, ProcessPoolExecutor]] = {}
        with ending(), progress(f"compare: {plural(len(keys), 'trial')}", len(keys)) as bar:
            idle = [new_process(threads) for _ in range(min(self.count, len(keys)))]
            while waiting or busy:
                for key in list(waiting):
                    first, running = whole.follows(key), [key for key, _ in busy.values()]
                    if first in reasons:
                        waiting.remove(key)
                        reasons[key] = unfinished(first[0])
                        bar.step(f"{_name(whole, key)} ended")
                    elif idle and first not in (*waiting, *running):
                        waiting.remove(key)
                        worker = idle.pop()
                        busy[worker.submit(_in_process, trials, _name(whole, key))] = key, worker
                for future in wait(busy, LOOK, FIRST_COMPLETED).done:
                    key, worker = busy.pop(future)
                    reason, usable = _reason(future)
                    if reason:
                        reasons[key] = reason
                        say(f"compare: {_name(whole, key)}: {reason}")
                    idle.append(worker if usable else new_process(threads))
                    bar.step(f"{_name(whole, key)} {'ended' if reason else 'is done'}")
                _show(bar, trials.folder, [_name(whole, key) for key, _ in busy.values()])
        return reasons


def _name(whole: Comparison, key: Key) -> str:
    return whole.jobs[key].folder.name


def _in_process(trials: Trials, name: str) -> tuple[str, bool]:
    """Do a trial; why it could not be done, empty where it was, and whether this process may do others."""
    try:
        with logged(trials, name):
            run_trial(trials, name)
    except UserError as error:
        return str(error), True
    except Exception as error:  # what a user's code raises may not be fit to be sent
        return fault(error, log_of(trials, name)), False
    return "", True


def fault(error: BaseException, log: Path) -> str:
    """What is said of an exception that nobody expects."""
    words = f"{type(error).__name__}: {first_line(error)}"
    return f"a fault of htas, unless it comes from code of your own: {words}; see {log}"


def log_of(trials: Trials, name: str) -> Path:
    """What a trial prints."""
    return trials.folder / LOGS / f"{name}.log"


@contextmanager
def logged(trials: Trials, name: str, between: Callable[[], None] = turns.give_way) -> Iterator[None]:
    """What a trial prints goes to its log; `between` is called after every step of its work."""
    path = log_of(trials, name)
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
    """Why a trial could not be done, empty where it was, and whether its process may do others."""
    if died(future):
        return "its process was killed, as the system does where memory ends; the same command does the rest", False
    return future.result()


def _show(bar: Bar, folder: Path, names: Sequence[str]) -> None:
    """What the trials under way do."""
    parts = []
    for name in names:
        with suppress(UserError):  # it has not begun yet
            parts.append(f"{name}: {state(folder / name).work or 'begins'}")
    bar.step("; ".join(parts), by=0)
