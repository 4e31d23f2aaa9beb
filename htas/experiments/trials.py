"""Trials of a comparison in processes of their own: one of them, the commands of all, and several at once."""

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from htas.console.progress import say
from htas.console.record import recording
from htas.errors import UserError
from htas.experiments.arms import Entry, unfinished
from htas.experiments.at_once import Processes, Task, Tasks, tasks_of, turns_of
from htas.experiments.compare import Comparison, Key, Trials, Workers
from htas.experiments.shared import LOCKS, PREPARED
from htas.files import write_bytes
from htas.text import no_such
from htas.timing import turns
from htas.timing.crew import Crew

SOURCE = f"{LOCKS}/source.toml"
"""The configuration's file, for nodes that do not see it."""


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


def workers_of(crew: Crew) -> Workers | None:
    """The processes that were asked for; None for this one alone. Raises UserError where Ray is wanted and missing."""
    tasks = tasks_of(crew)
    if isinstance(tasks, Processes):
        return LocalWorkers(tasks)
    return ClusterWorkers(tasks) if tasks else None


def _tasks(whole: Comparison, trials: Trials, keys: Sequence[Key]) -> dict[str, Task]:
    """The trials, by name."""
    names, tasks = {key: name for name, key in whole.names.items()}, {}
    for key in whole.ordered(keys):
        first = whole.follows(key)
        after, files = (names[first], (f"{names[first]}/result.json",)) if first else ("", ())
        without = unfinished(first[0]) if first else ""
        tasks[names[key]] = Task(_trial, (trials, names[key]), after, without, (*files, SOURCE))
    return tasks


def _trial(folder: Path, trials: Trials, name: str) -> None:
    """By another process, perhaps in another folder."""
    run_trial(_there(trials, folder), name)


def _there(trials: Trials, folder: Path) -> Trials:
    """Trials in the folder of this node."""
    if folder == trials.folder:
        return trials
    return replace(trials, folder=folder, source=folder / SOURCE if trials.source else None)


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
        trials = whole.trials.pinned(whole.jobs[todo[0]].target)
        names = {key: name for name, key in whole.names.items()}
        before = {names[key]: reason for key, reason in reasons.items()}
        ended = self.processes.do("compare", _tasks(whole, trials, todo), trials.folder, before)
        return {whole.names[name]: reason for name, reason in ended.items()}

    def measure(self, whole: Comparison, there: Mapping[Key, Entry], path: Path, on: Key | None = None) -> None:
        """Measure all networks here."""
        with turns.join():
            whole.measured(dict(there), path, on=on)


@dataclass(frozen=True)
class ClusterWorkers(Workers):
    """The nodes of a cluster, one of which is the device."""

    nodes: Tasks

    def finish(self, whole: Comparison, keys: Sequence[Key]) -> dict[Key, str]:
        """Prepare trials on the node that is the device, then do them; returns why those that are missing could not be
        done."""
        names = {key: name for name, key in whole.names.items()}
        todo = [names[key] for key in whole.ordered(keys)]
        if not todo:
            return {}
        trials = self._sent(whole)
        with self.nodes.opened():
            prepare = Task(_prepare, (trials, todo), files=(*(f"*/{name}" for name in PREPARED), SOURCE))
            try:
                reasons: dict[str, str] = self.nodes.measure("preparing", prepare, trials.folder)
            except UserError as error:
                reasons = dict.fromkeys(todo, str(error))
            undone = [whole.names[name] for name in todo if name not in reasons]
            ended = (
                self.nodes.do("compare", _tasks(whole, trials, undone), trials.folder, reasons) if undone else reasons
            )
        return {whole.names[name]: reason for name, reason in ended.items()}

    def measure(self, whole: Comparison, there: Mapping[Key, Entry], path: Path, on: Key | None = None) -> None:
        """Measure all networks on the node that is the device; raises UserError where that cannot be done."""
        files = *(f"*/{name}" for name in PREPARED), path.name, SOURCE
        trials = self._sent(whole)
        with self.nodes.opened():
            task = Task(_measure_all, (trials, dict(there), path.name, on), files=files)
            self.nodes.measure("measuring", task, trials.folder)

    def _sent(self, whole: Comparison) -> Trials:
        """What nodes are told, some of which may not see the file of the configuration."""
        trials = whole.trials.pinned(next(iter(whole.jobs.values())).target)
        folder, source = trials.folder.resolve(), trials.source.resolve() if trials.source else None
        if source is not None:
            write_bytes(folder / SOURCE, source.read_bytes())
        return replace(trials, folder=folder, source=source)


def _prepare(folder: Path, trials: Trials, names: Sequence[str]) -> dict[str, str]:
    """Surveys and calibrations, on the node that is the device; returns why trials cannot be done, by name."""
    whole = comparison(_there(trials, folder))
    refused = whole.prepare([whole.names[name] for name in names])
    return {name: refused[whole.names[name]] for name in names if whole.names[name] in refused}


def _measure_all(folder: Path, trials: Trials, there: Mapping[Key, Entry], file: str, on: Key | None) -> None:
    """All networks of a comparison in one interleaved run."""
    comparison(_there(trials, folder)).measured(dict(there), folder / file, on=on)
