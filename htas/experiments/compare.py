"""Compare arms: spaces, strategies, costs and plain networks, trained alike over seeds, in one table.

An arm is a table of options that differ from the configuration, or a network by its name. Every arm and seed has a
run's folder and ends in a result.json; those that exist are used, so a comparison continues, and grows.
"""

import dataclasses
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from reprlib import repr as shortened

from torch import nn

from htas import files
from htas.console.progress import say
from htas.console.record import into
from htas.errors import UserError
from htas.experiments.arm_tables import about, settings_of
from htas.experiments.arms import Arm, Entry, Others
from htas.experiments.shared import LOCKS, SUPERNETS, in_first_space, once, prepared, share_files
from htas.experiments.table import FIGURES, dots, every, table
from htas.files import digest, read_record, to_json, write_json, write_record
from htas.graph import resize
from htas.plugins.values import Values
from htas.report.arms import page
from htas.report.result import Result
from htas.run import rows as run_rows
from htas.run.config import fitting
from htas.run.run import Run, Sources
from htas.run.stage import made_from
from htas.text import TextTable, listing, plural
from htas.timing.measurement import Measurement
from htas.timing.target import Target

GUESS = 1e-3
"""Seconds of a call, where no network's latency is predicted: how often to read them follows from it."""
Key = tuple[str, int]
"""An arm's name and a seed."""


@dataclass(frozen=True)
class LatenciesRecord:
    """latencies.json: the networks of a comparison, measured in one interleaved run."""

    machine: Mapping[str, str | int] = field(default_factory=dict)
    latencies: tuple[tuple[str, int, str, Measurement], ...] = ()
    """Arm, seed, a hash of the network, and its readings."""

    def __post_init__(self) -> None:
        if any(not reading.estimate > 0 for *_, reading in self.latencies):
            raise ValueError("must have latencies above 0 seconds")


@dataclass(frozen=True)
class Trials:
    """What a comparison is made from, for another process to make it again."""

    source: Path | None
    """The configuration's file."""
    overrides: tuple[str, ...]
    arms: tuple[Arm, ...]
    seeds: int
    folder: Path

    def pinned(self, target: Target) -> "Trials":
        """With the number of threads that networks are measured with, which other machines would count otherwise."""
        option = f"target.threads={target.threads}"
        return self if target.host or not target.threads else replace(self, overrides=(*self.overrides, f"--{option}"))


class Workers(ABC):
    """Processes that do the trials of a comparison."""

    @abstractmethod
    def finish(self, whole: "Comparison", keys: Sequence[Key]) -> dict[Key, str]:
        """Prepare and do trials; returns why those that are missing could not be done."""

    @abstractmethod
    def measure(self, whole: "Comparison", there: Mapping[Key, Entry], path: Path, on: Key | None = None) -> None:
        """Measure all networks in one interleaved run -> the file `path`, as `Comparison.measured` does."""


def compare(
    trials: Trials, against: str = "", only: bool = False, workers: Workers | None = None
) -> tuple[Path, TextTable]:
    """Every arm with every seed, then all networks in one interleaved run: the path of compare.html, and its table.

    `against` is the arm that others are compared with, the first by default. With `only`, nothing is run and the table
    shows the existing results. An arm that cannot be run is named, and its cells stay empty. `workers` find and train
    networks at the same time; without them this process does so, one after the other.
    """
    names, folder, seeds = [arm.name for arm in trials.arms], trials.folder, trials.seeds
    comparison = Comparison.arranged(trials)
    there, reasons = comparison.finished(only, workers)
    if not there:
        raise UserError(f"nothing is finished in {folder}; {reasons[0] if reasons else 'run it without --only'}")
    path = folder / "latencies.json"
    if workers and not only:
        workers.measure(comparison, there, path)
    there, where = comparison.measured(there, path, only or workers is not None)
    against = against or names[0]
    doubts = [f"{name}, seed {seed}: {entry.doubt}" for (name, seed), entry in there.items() if entry.doubt]
    broken = [f"{name}, seed {seed}: {entry.excess}" for (name, seed), entry in there.items() if entry.excess]
    notes = [f"Left out: {reason}" for reason in reasons] + [f"Not converged: {doubt}" for doubt in doubts]
    notes += [f"Above its limit: {excess}" for excess in broken]
    notes += [
        f"{name}, seed {seed}: {each.result.outside}" for (name, seed), each in there.items() if each.result.outside
    ]
    job = comparison.jobs[names[0], 0]
    notes += [f"{name}, seed {seed}: {words}" for (name, seed), each in there.items() for words in each.result.remarks]
    notes += precision_notes(job.target.precision)
    title = f"{job.config.family.title} on {job.config.data.name}, {plural(seeds, 'seed')}"
    facts = {name: str(value) for name, value in {**where, **dataclasses.asdict(job.target)}.items()}
    lines = TextTable(table(there, names, seeds, against), 1, after=notes, marked=[against])
    path = page(title, lines, dots(there), FIGURES, facts, every(there, job.network), folder)
    write_json(folder / "compare.json", {"arms": [
        {"arm": name, "seed": seed, "search_seconds": entry.search_seconds, "result": to_json(entry.result)}
        for (name, seed), entry in there.items()
    ]})  # fmt: skip
    return path, lines


def precision_notes(precision: str) -> list[str]:
    """A note where latencies are of another precision than accuracies."""
    return [] if precision == "fp32" else [
        f"Latencies are in {precision}, and accuracies in fp32; those of the deployed networks are in htas run's report"
    ]  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """Arms, and a run for each of them with each seed."""

    trials: "Trials"
    arms: Mapping[str, Arm]
    jobs: Mapping[Key, Run]

    @classmethod
    def arranged(cls, trials: Trials) -> "Comparison":
        """Nothing is run yet; raises UserError that names the arm whose options are wrong."""
        sources, overrides, place = Sources(), trials.overrides, trials.folder
        keys = [(arm, seed) for seed in range(trials.seeds) for arm in trials.arms]
        jobs = {(arm.name, seed): _job(trials.source, overrides, arm, seed, place, sources) for arm, seed in keys}
        for arm in trials.arms:
            if lost := [option for option in overrides if option not in fitting(overrides, arm.overrides)]:
                say(f"compare: not for the arm {arm.name}, by what it names itself: {listing(lost)}")
        return cls(trials, {arm.name: arm for arm in trials.arms}, jobs)

    def finished(self, only: bool = False, workers: Workers | None = None) -> tuple[dict[Key, Entry], list[str]]:
        """The entries after every unfinished run is done (with `only`, none is run), by the workers where there are
        some; and why others are missing."""
        reasons: dict[Key, str] = {}
        if not only:
            todo = [key for key in self.jobs if self.entry(key) is None]
            count = f"{len(todo)} of {len(self.jobs)} networks to be found and trained"
            say(f"compare: {len(self.arms)} arms, {plural(self.trials.seeds, 'seed')}; {count}")
            reasons = workers.finish(self, todo) if workers else self.prepare(todo)
            for key in [] if workers else [key for key in todo if key not in reasons]:
                self._try(self._finish_alone, key, reasons)
        there = {key: entry for key in self.jobs if (entry := self.entry(key)) is not None}
        hit: dict[str, list[str]] = {}
        for (name, seed), reason in reasons.items():
            hit.setdefault(reason, []).append(f"{name}, seed {seed}")
        return there, [f"{'; '.join(trials)}: {reason}" for reason, trials in hit.items()]

    def check(self, keys: Sequence[Key]) -> None:
        """Raise UserError that names the arm of a trial whose network cannot be built, or does not fit its options, as
        far as that can be told without its images; where these are not here, that is said, and nothing is checked."""
        for name in dict.fromkeys(name for name, _ in keys):
            job, arm = self.jobs[name, 0], self.arms[name]
            with about(arm):
                try:
                    job.config.data.classes, job.config.data.shapes  # noqa: B018, which look for them
                except UserError as error:
                    say(f"compare: the networks of {name} are not checked, as its images are not here: {error}")
                    continue
                arm.check(job)

    def follows(self, key: Key) -> Key | None:
        """The trial that must be finished before this one."""
        after = self.arms[key[0]].after
        return (after, key[1]) if after else None

    def prepare(self, keys: Sequence[Key]) -> dict[Key, str]:
        """Read the images, survey and calibrate; returns why trials cannot be done.

        What cannot be trained is refused before it is measured; layers are timed while the machine may be quiet.
        """
        reasons: dict[Key, str] = {}
        with once(self.trials.folder / LOCKS / "prepare"):
            for work in (partial(_read, {}), lambda job, _: prepared(job)):
                for key in [key for key in keys if key not in reasons]:
                    self._try(work, key, reasons)
        return reasons

    def _finish_alone(self, job: Run, name: str) -> None:
        """A trial, where no other process does it."""
        with once(job.folder.parent / LOCKS / job.folder.name):
            _finish(self, job, name)

    def _try(self, work: Callable[[Run, str], object], key: Key, reasons: dict[Key, str]) -> None:
        """Do a piece of work; why it cannot be done goes to the reasons."""
        try:
            work(self.jobs[key], key[0])
        except UserError as error:
            words = "for the same reason" if str(error) in reasons.values() else str(error)
            reasons[key] = str(error)
            say(f"compare: {key[0]}, seed {key[1]}: {words}")

    @property
    def names(self) -> dict[str, Key]:
        """The arm and seed of each trial, by the trial's name."""
        return {job.folder.name: key for key, job in self.jobs.items()}

    def finish(self, key: Key, measures: bool) -> None:
        """Find and train one network, up to result.json, whatever other processes do at the same time: what trials
        need in common, the first of them makes.

        With `measures`, this machine is the device, and surveys and calibrates what is not done; otherwise that is
        done, perhaps elsewhere. Raises UserError where a trial cannot be done.
        """
        job, arm = self.jobs[key], self.arms[key[0]]
        locks = job.folder.parent / LOCKS
        if (before := self.follows(key)) and measures:
            self.finish(before, measures)
        with once(locks / job.folder.name):
            if self.entry(key) is not None:
                return
            _read({}, job, arm.name)
            if measures:
                with once(locks / "prepare"):
                    prepared(job)
            into(job.folder)
            for what, work in arm.shared(job):
                with once(locks / what):
                    share_files(job)
                    work()
            _finish(self, job, arm.name)

    def ordered(self, keys: Sequence[Key]) -> list[Key]:
        """By arm, then by seed: trials of different seeds have the least in common, and can go on at once."""
        order = list(self.arms)
        return sorted(keys, key=lambda key: (order.index(key[0]), key[1]))

    def others(self, seed: int) -> Others:
        """The entry of an arm with this seed, by the arm's name."""
        return lambda name: self.entry((name, seed))

    def entry(self, key: Key) -> Entry | None:
        """The entry of result.json, which must be of this configuration; None where it is missing, or follows another
        arm that is unfinished or has another network by now."""
        job, arm = self.jobs[key], self.arms[key[0]]
        path = job.folder / "result.json"
        if not path.exists():
            return None
        entry = read_record(path, Entry)
        if entry.result.arch.widths:
            run_rows.check_row(job, entry.result, path)
        if difference := _difference(entry.options, job, arm):
            raise UserError(
                f"{path} is a result of another configuration ({difference}); name another folder with --out, or "
                "delete this one"
            )
        return entry if arm.current(entry.result, self.others(key[1])) else None

    def measured(
        self, there: Mapping[Key, Entry], path: Path, only: bool = False, on: Key | None = None
    ) -> tuple[dict[Key, Entry], Mapping[str, str | int]]:
        """Measure all networks in one interleaved run, on the target of the trial `on`, or of the first -> the file
        `path`; with `only`, use the last readings. Returns entries with their readings, and the machine that took them.

        A result without its weights is measured with random ones. Readings belong to a network and not to an arm's
        name, which may have another network since.
        """
        rows = {key: entry.result for key, entry in there.items()}
        first = self.jobs[on or next(iter(there))]
        marks = {name: digest(*name, to_json(row.arch), row.accuracy) for name, row in rows.items()}
        key = digest(first.place, list(marks.values()))
        if not only and not made_from(path, key):
            started = time.monotonic()
            modules = [_network(self.jobs[name], self.arms[name[0]], row) for name, row in rows.items()]
            most = max((row.predicted for row in rows.values() if row.predicted), default=GUESS)
            guessed = [replace(row, predicted=row.predicted or most) for row in rows.values()]
            readings = run_rows.measure_rows(first, guessed, modules, f"measuring {plural(len(rows), 'network')}, %")
            latencies = tuple((*name, marks[name], reading) for name, reading in zip(rows, readings, strict=True))
            record = LatenciesRecord(first.target.machine(), latencies)
            write_record(path, record, inputs=key, took=time.monotonic() - started)
        record = read_record(path, LatenciesRecord) if path.exists() else LatenciesRecord()
        by_mark = {mark: reading for _, _, mark, reading in record.latencies}
        entries = {
            name: replace(entry, result=replace(entry.result, measured=by_mark.get(marks[name])))
            for name, entry in there.items()
        }
        return entries, record.machine


def _job(source: Path | None, overrides: Sequence[str], arm: Arm, seed: int, folder: Path, sources: Sources) -> Run:
    """The run of an arm with a seed; raises UserError that names the arm where its options are wrong."""
    with about(arm):
        config = settings_of(source, overrides, arm, seed).config()
    return Run(in_first_space(config), folder / f"{files.slug(arm.name)}-{seed}", folder / SUPERNETS, sources)


def _read(errors: dict[str, UserError | None], job: Run, name: str) -> None:
    """Raise UserError where the images of an arm cannot be read; `errors` has the result of data sets read before."""
    key = digest({option: value for option, value in job.config.options().items() if option.startswith("data.")})
    if key not in errors:
        try:
            job.data  # noqa: B018, which reads them
            errors[key] = None
        except UserError as error:
            errors[key] = error
    if refusal := errors[key]:
        raise refusal


def _finish(comparison: Comparison, job: Run, name: str) -> None:
    """The search and the training, up to result.json."""
    config, place, arm = job.config, job.folder, comparison.arms[name]
    into(place)
    if comparison.entry((name, config.seed)) is not None:  # it follows another arm that has finished again
        return
    share_files(job)  # searches and networks of others since then
    entry = arm.untrained(job, comparison.others(config.seed))
    row, _ = run_rows.train_row(job, entry.result, build=arm.builder(job), start=arm.weights(job))
    if row.arch.widths:
        row = run_rows.predicted(job, row)
    entry = replace(entry, result=row, images=config.data.encoding, options=arm.basis(job))
    write_record(place / "result.json", entry)


def _difference(then: Values, job: Run, arm: Arm) -> str:
    """`train.lr = 0.1 there, 0.2 here`: the first option in which a result differs from this run; empty for none.

    A result that lacks an option counts as made with its default.
    """
    usual = job.config.usual()
    for name, value in arm.basis(job).items():
        before = then.get(name, usual.get(name))
        if before != value:
            return f"{name} = {shortened(before)} there, {shortened(value)} here"
    return ""


def _network(job: Run, arm: Arm, row: Result) -> nn.Module:
    build = arm.builder(job)
    if job.model_file(row.name).exists():
        return run_rows.load_network(job, row, build=build)
    model = build() if build else resize(job.network, row.arch)
    job.reset(model)
    return model.eval()
