"""Trials of a comparison in processes of their own: one of them, the commands of all, and several at once."""

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from htas.console.progress import say
from htas.console.record import recording
from htas.errors import UserError
from htas.experiments.arms import Entry, unfinished
from htas.experiments.at_once import Processes, Task, turns_of
from htas.experiments.compare import Comparison, Key, Trials, Workers
from htas.experiments.plans import Parallel
from htas.text import no_such
from htas.timing import turns


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
    with turns.join(log=turns_of(trials.folder, name)):
        comparison(trials).finish(keys[name], measures)


def run_alone(trials: Trials, name: str) -> None:
    """The trial of a command of its own."""
    with recording(between=turns.give_way):
        run_trial(trials, name, measures=True)
    say(f"compare: {name} is done; --only shows all that are")


def commands(trials: Trials, command: str) -> list[str]:
    """A command for each trial that is not finished, by the command that asks for them; the number of threads is that
    of this machine, where none is said. Raises UserError for an arm whose network cannot be built."""
    words = list(_lasting(shlex.split(command)))
    if not any(word.partition("=")[0] == "--out" for word in words):
        words.append(f"--out={trials.folder}")
    whole = comparison(trials)
    whole.check([key for key in whole.jobs if whole.entry(key) is None])
    target = next(iter(whole.jobs.values())).target
    if not any(word.partition("=")[0] == "--target.threads" for word in words):
        words += [each for each in trials.pinned(target).overrides if each not in trials.overrides]
    unfinished = [name for name, key in whole.names.items() if whole.entry(key) is None]
    return [shlex.join([*words, f"--trial={name}"]) for name in unfinished]


def _lasting(words: Iterable[str]) -> Iterator[str]:
    """The words of a command without those that say how its trials are done; with --list, --workers and --trial name
    nothing."""
    words = iter(words)
    for word in words:
        name, has_value, _ = word.partition("=")
        if name in ("--workers", "--trial"):
            if not has_value:
                next(words, None)
        elif name not in ("--list", "--json", "--only"):
            yield word


def workers_of(parallel: Parallel) -> Workers | None:
    """The processes that were asked for; None for this one alone. Raises UserError where Ray is wanted and missing."""
    if not parallel.workers:
        return None
    if parallel.processes:
        return LocalWorkers(Processes(parallel.processes, parallel.threads))
    from htas.experiments.on_ray import RayWorkers

    return RayWorkers(parallel.address, parallel.threads or 1, parallel.gpus)


@dataclass(frozen=True)
class LocalWorkers(Workers):
    """Processes on this machine."""

    processes: Processes

    def finish(self, whole: Comparison, keys: Sequence[Key]) -> dict[Key, str]:
        """Prepare trials here, then do them; returns why those that are missing could not be done."""
        with turns.join():
            reasons = whole.prepare(keys)
        todo = whole.ordered([key for key in keys if key not in reasons])
        if not todo:
            return reasons
        names = {key: name for name, key in whole.names.items()}
        trials = whole.trials.pinned(whole.jobs[todo[0]].target)
        tasks = {}
        for key in todo:
            first = whole.follows(key)
            after = (names[first], unfinished(first[0])) if first else ("", "")
            tasks[names[key]] = Task(run_trial, (trials, names[key]), *after)
        before = {names[key]: reason for key, reason in reasons.items()}
        ended = self.processes.do("compare", tasks, trials.folder, before)
        return {whole.names[name]: reason for name, reason in ended.items()}

    def measure(self, whole: Comparison, there: Mapping[Key, Entry], path: Path, on: Key | None = None) -> None:
        """Measure all networks here."""
        with turns.join():
            whole.measured(dict(there), path, on=on)
