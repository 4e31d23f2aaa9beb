"""Compare arms: spaces, strategies, costs and plain networks, trained alike over seeds, in one table.

An arm is a table of options that differ from the configuration, or a network by its name. Every arm and seed has a
run's folder and ends in a result.json; those that exist are used, so a comparison continues, and grows.
"""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from torch import nn

from htas import files
from htas.console.progress import say
from htas.console.record import into
from htas.errors import UserError
from htas.experiments.arm_tables import about, settings_of
from htas.experiments.arms import Arm, Entry, Others
from htas.experiments.shared import SUPERNETS, in_first_space, prepared, share_files
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


def compare(
    source: Path | None, overrides: Sequence[str], arms: Sequence[Arm], seeds: int, folder: Path, against: str = "",
    only: bool = False,
) -> tuple[Path, TextTable]:  # fmt: skip
    """Every arm with every seed, then all networks in one interleaved run: the path of compare.html, and its table.

    `against` is the arm that others are compared with, the first by default. With `only`, nothing is run and the table
    shows the existing results. An arm that cannot be run is named, and its cells stay empty.
    """
    names = [arm.name for arm in arms]
    comparison = Comparison.arranged(source, overrides, arms, seeds, folder)
    there, reasons = comparison.finished(only)
    if not there:
        raise UserError(f"nothing is finished in {folder}; {reasons[0] if reasons else 'run it without --only'}")
    there, where = comparison.measured(there, folder / "latencies.json", only)
    against = against or names[0]
    doubts = [f"{name}, seed {seed}: {entry.doubt}" for (name, seed), entry in there.items() if entry.doubt]
    notes = [f"Left out: {reason}" for reason in reasons] + [f"Not converged: {doubt}" for doubt in doubts]
    notes += [
        f"{name}, seed {seed}: {each.result.outside}" for (name, seed), each in there.items() if each.result.outside
    ]
    job = comparison.jobs[names[0], 0]
    title = f"{job.config.family.title} on {job.config.data.name}, {plural(seeds, 'seed')}"
    facts = {name: str(value) for name, value in {**where, **dataclasses.asdict(job.target)}.items()}
    lines = TextTable(table(there, names, seeds, against), 1, after=notes, marked=[against])
    path = page(title, lines, dots(there), FIGURES, facts, every(there, job.network), folder)
    write_json(folder / "compare.json", {"arms": [
        {"arm": name, "seed": seed, "search_seconds": entry.search_seconds, "result": to_json(entry.result)}
        for (name, seed), entry in there.items()
    ]})  # fmt: skip
    return path, lines


@dataclass(frozen=True)
class Comparison:
    """Arms, and a run for each of them with each seed."""

    arms: Mapping[str, Arm]
    jobs: Mapping[Key, Run]

    @classmethod
    def arranged(
        cls, source: Path | None, overrides: Sequence[str], arms: Sequence[Arm], seeds: int, folder: Path
    ) -> "Comparison":
        """Nothing is run yet; raises UserError that names the arm whose options are wrong."""
        sources = Sources()
        keys = [(arm, seed) for seed in range(seeds) for arm in arms]
        jobs = {(arm.name, seed): _job(source, overrides, arm, seed, folder, sources) for arm, seed in keys}
        for arm in arms:
            if lost := [option for option in overrides if option not in fitting(overrides, arm.overrides)]:
                say(f"compare: not for the arm {arm.name}, by what it names itself: {listing(lost)}")
        return cls({arm.name: arm for arm in arms}, jobs)

    def finished(self, only: bool = False) -> tuple[dict[Key, Entry], list[str]]:
        """The entries after every unfinished run is done (with `only`, none is run); and why others are missing."""
        reasons: list[str] = []
        if not only:
            todo = {key: job for key, job in self.jobs.items() if self.entry(key) is None}
            count = f"{len(todo)} of {len(self.jobs)} networks to be found and trained"
            say(f"compare: {len(self.arms)} arms, {plural(len({seed for _, seed in self.jobs}), 'seed')}; {count}")
            # what cannot be trained is refused before it is measured; layers are timed while the machine may be quiet
            for work in (partial(_read, {}), lambda job, _: prepared(job), partial(_finish, self)):
                for (name, seed), job in list(todo.items()):
                    try:
                        work(job, name)
                    except UserError as error:
                        reasons.append(f"{name}, seed {seed}: {error}")
                        say(f"compare: {reasons[-1]}")
                        del todo[name, seed]
        return {key: entry for key in self.jobs if (entry := self.entry(key)) is not None}, reasons

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
        if difference := _difference(entry.options, job, arm):
            raise UserError(
                f"{job.folder} holds a result of another configuration ({difference}); name another folder with --out, "
                "or delete this one"
            )
        return entry if arm.current(entry.result, self.others(key[1])) else None

    def measured(
        self, there: Mapping[Key, Entry], path: Path, only: bool = False, on: Run | None = None
    ) -> tuple[dict[Key, Entry], Mapping[str, str | int]]:
        """Measure all networks in one interleaved run, on the target of the run `on`, or of the first -> the file
        `path`; with `only`, use the last readings. Returns entries with their readings, and the machine that took them.

        A result without its weights is measured with random ones. Readings belong to a network and not to an arm's
        name, which may have another network since.
        """
        rows = {key: entry.result for key, entry in there.items()}
        first = on or self.jobs[next(iter(there))]
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
            return f"{name} = {before!r} there, {value!r} here"
    return ""


def _network(job: Run, arm: Arm, row: Result) -> nn.Module:
    build = arm.builder(job)
    if job.model_file(row.name).exists():
        return run_rows.load_network(job, row, build=build)
    model = build() if build else resize(job.network, row.arch)
    job.reset(model)
    return model.eval()
