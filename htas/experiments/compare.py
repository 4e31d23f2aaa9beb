"""Arms beside each other: spaces, strategies, costs and plain networks, trained alike over seeds, in one table.

An arm is a table of options that differ from the configuration, or a network by its name. Every arm and seed has a
run's folder and ends in a result.json; what is there already is kept, so a comparison goes on, and grows.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from htas import datasets, files
from htas.console.progress import say
from htas.console.record import into
from htas.cost.limits import parse
from htas.errors import UserError
from htas.experiments import pruning
from htas.experiments.arms import Arm, Entry
from htas.experiments.shared import SUPERNETS, own_folder, prepared, share_files
from htas.experiments.table import _page, table
from htas.files import digest, from_json, read_json, read_record, to_json, write_json
from htas.graph import resize
from htas.graph.arch import Arch
from htas.report.result import Result
from htas.run import networks
from htas.run import rows as run_rows
from htas.run import stages as pipeline
from htas.run.config import fitting, load
from htas.run.records import StageHeader
from htas.run.run import Run
from htas.run.stage import ensure
from htas.run.stages import SEARCH
from htas.search.moves import over
from htas.text import TextTable, listing, no_such, percent, plural, shown
from htas.timing.measurement import Measurement
from htas.timing.target import machine

BASE = "base"
"""The network of the configuration's family, unchanged."""


AGAIN = 3
"""Pruned networks that are measured a second time: the least pruned of those that keep the limit."""


FREE = ("data.path", "survey.store", "survey.undecided")
"""Options that no result depends on."""


GUESS = 1e-3
"""Seconds of a call, where no network's latency is predicted: how often to read them follows from it."""


def compare(
    source: Path | None, overrides: Sequence[str], arms: Sequence[Arm], seeds: int, folder: Path, against: str = "",
    only: bool = False,
) -> tuple[Path, TextTable]:  # fmt: skip
    """Every arm with every seed, then all networks in one interleaved run: the path of compare.html, and its table.

    `against` is the arm that others are set beside, the first by default. With `only`, nothing is run: the table of
    what is there. An arm that cannot be run is said, and leaves its cells empty.
    """
    if seeds < 1:
        raise UserError(f"--seeds must be 1 or more, got {seeds}")
    if any(option.removeprefix("--").startswith("seed=") for option in overrides):
        raise UserError(
            f"htas compare has seeds from 0 on: leave --seed out, and give their number with --seeds={seeds}"
        )
    named = {arm.name: arm for arm in arms}
    if against and against not in named:
        raise UserError(no_such("arm", against, named))
    own_folder(folder)
    jobs = arranged(source, overrides, arms, seeds, folder)
    _refuse_targets(jobs)
    there, reasons = finished(jobs, arms, only)
    if not there:
        raise UserError(f"nothing is finished in {folder}; {reasons[0] if reasons else 'run it without --only'}")
    there, where = measured(jobs, there, named, folder / "latencies.json", only)
    against = against or arms[0].name
    lines = table(there, [arm.name for arm in arms], seeds, against)
    doubts = [f"{name}, seed {seed}: {entry.doubt}" for (name, seed), entry in there.items() if entry.doubt]
    notes = [f"Left out: {reason}" for reason in reasons] + [f"Not converged: {doubt}" for doubt in doubts]
    path = _page(there, lines, against, notes, next(iter(jobs.values())), seeds, folder, where)
    write_json(folder / "compare.json", {"arms": [
        {"arm": name, "seed": seed, "search_seconds": entry.seconds, "result": to_json(entry.result)}
        for (name, seed), entry in there.items()
    ]})  # fmt: skip
    return path, shown(lines, 1, after=notes, marked=[against])


def arranged(
    source: Path | None, overrides: Sequence[str], arms: Sequence[Arm], seeds: int, folder: Path
) -> dict[tuple[str, int], Run]:
    """The runs of arms, by arm and seed; raises ValueError that names the arm whose options are wrong."""
    shared: dict[str, Any] = {}
    jobs = {
        (arm.name, seed): _job(source, overrides, arm, seed, folder, shared) for seed in range(seeds) for arm in arms
    }
    for arm in arms:
        kept = fitting(overrides, arm.overrides)
        if lost := [option for option in overrides if option not in kept]:
            say(f"compare: not for the arm {arm.name}, by what it names itself: {listing(lost)}")
    return jobs


def finished(
    jobs: Mapping[tuple[str, int], Run], arms: Sequence[Arm], only: bool = False
) -> tuple[dict[tuple[str, int], Entry], list[str]]:
    """What is there when every run is done that is not yet, or with `only` none; and why others could not be."""
    named = {arm.name: arm for arm in arms}
    reasons: list[str] = []
    if not only:
        todo = {key: job for key, job in jobs.items() if _entry(jobs, named, key) is None}
        count = f"{len(todo)} of {len(jobs)} networks to be found and trained"
        say(f"compare: {len(arms)} arms, {plural(len({seed for _, seed in jobs}), 'seed')}; {count}")
        # what cannot be trained is refused before it is measured, and layers are timed while the machine may be quiet
        for work in (partial(_read, {}), _prepare, partial(_finish, jobs, named)):
            for (name, seed), job in list(todo.items()):
                try:
                    work(job, name)
                except UserError as error:
                    reasons.append(f"{name}, seed {seed}: {error}")
                    say(f"compare: {reasons[-1]}")
                    del todo[name, seed]
    return {key: entry for key in jobs if (entry := _entry(jobs, named, key)) is not None}, reasons


def _job(
    source: Path | None, overrides: Sequence[str], arm: Arm, seed: int, folder: Path, shared: dict[str, Any]
) -> Run:
    """The run of an arm with a seed; raises ValueError that names the arm where its options are wrong."""
    try:
        config = load(source, [*fitting(overrides, arm.overrides), *arm.overrides, f"--seed={seed}"])
    except UserError as error:
        raise UserError(f"arm {arm.name}: {error}") from error
    first = config.design.spaces[0]
    design = replace(config.design, spaces=(first,), widths=config.design.widths if first == "explicit" else {})
    place = folder / f"{files.slug(arm.name)}-{seed}"
    return Run(replace(config, design=design), place, folder / SUPERNETS, shared)


def _refuse_targets(jobs: Mapping[tuple[str, int], Run]) -> None:
    """Raise UserError where arms are to be fast on different targets: all are measured in one run."""
    (first, _), job = next(iter(jobs.items()))
    for (name, _), other in jobs.items():
        if other.target != job.target:
            raise UserError(
                f"the arms {first} and {name} have different targets, and all networks are measured in one run: give "
                "target options on the command line or in the configuration, and compare each target by itself"
            )


def _read(seen: dict[str, str], job: Run, name: str) -> None:
    """Raise UserError where the images of an arm cannot be read; `seen` has what came of those of others."""
    key = digest(job.config.names["data"], dataclasses.asdict(job.config.data))  # type: ignore[call-overload]
    if key not in seen:
        try:
            job.data  # noqa: B018, which reads them
            seen[key] = ""
        except UserError as error:
            seen[key] = str(error)
    if seen[key]:
        raise UserError(seen[key])


def _prepare(job: Run, name: str) -> None:
    """Survey, space and cost of an arm, unless another arm or seed has had them made."""
    prepared(job)


def _finish(jobs: Mapping[tuple[str, int], Run], named: Mapping[str, Arm], job: Run, name: str) -> None:
    """The search and the training, up to result.json."""
    config, place, arm = job.config, job.folder, named[name]
    into(place)
    if _entry(jobs, named, (name, config.seed)) is not None:  # it trains what another arm has found again
        return
    share_files(job)  # searches and networks that others have made since
    seconds: float | None = None
    doubt = ""
    if arm.network:
        row, build = _given(job, arm)
    elif arm.prune:
        row, build = _pruned(job, arm), None
    elif arm.like:
        other = _entry(jobs, named, (arm.like, config.seed))
        if other is None:
            raise UserError(f"the arm {arm.like}, whose network it trains, is not finished")
        its = other.result
        job.network.check(its.arch)
        row = run_rows.new_row(job, name, its.arch, space=its.space, strategy=its.strategy, cost=its.cost)
        build, seconds = None, other.seconds
    else:
        ensure(job, SEARCH)
        record = job.search(config.design.spaces[0])
        row = run_rows.new_row(
            job, _row_name(arm), record.arch, space=record.space, strategy=record.strategy, cost=record.cost
        )
        build, seconds = None, read_record(job.search_file(record.space), StageHeader).took
        doubt = "" if record.converged else record.why
    row, _ = run_rows.train_row(job, row, build=build)
    if row.arch.widths:
        row = replace(row, predicted=job.calibrated.cost(row.arch))
    images = datasets.encoding(config.data) if hasattr(config.data, "path") else ""
    about = {"options": _basis(job, arm), "search_seconds": seconds, "doubt": doubt, "images": images}
    write_json(place / "result.json", {**about, "result": to_json(row)})


def _given(job: Run, arm: Arm) -> tuple[Result, Callable[[], nn.Module] | None]:
    """The row of a network that is not searched, and how it is built where it is no arch of the base network."""
    untaught = arm.network == BASE and job.config.distill.alpha == 0  # which is how the teacher of others is trained
    name = BASE if untaught else _row_name(arm)
    row = run_rows.new_row(job, name, job.network.base, space="-", strategy="given", cost="-")
    if arm.network == BASE:
        return row, None
    build = partial(networks.build, arm.network, job.config.data.classes)
    macs, params = run_rows.counted(build(), job.target)
    return replace(row, arch=Arch({}), macs=macs, params=params, family=arm.network), build


def _pruned(job: Run, arm: Arm) -> Result:
    """The row of the least pruned network within the limits: of latency, by two readings beside the base network."""
    text = job.config.constraints.latency
    if not text:
        raise UserError("a pruned network needs a latency to be pruned to; give one: --constraints.latency=50%")
    path, key = job.folder / "pruned.json", digest(_basis(job, arm))
    if path.exists() and (content := read_json(path))["inputs"] == key:
        return _pruned_row(job, arm, from_json(content["arch"], Arch, path))
    example = torch.zeros(2, *job.config.data.shapes[0])
    exact = [limit for limit in pipeline.limits(job) if limit.metric != "latency"]
    archs = pruning.candidates(job.network, run_rows.base_network(job), example, arm.prune)
    archs = [arch for arch in archs if not exact or over(exact, arch) <= 1]
    if not archs:
        asked = listing(f"{limit.metric} {limit.text}" for limit in exact)
        raise UserError(f"no network pruned by {arm.prune} keeps what is asked for, {asked}")
    ratios = _over(job, arm, archs, text, "looking for")
    within = [arch for arch in archs if ratios[arch] <= 1]
    if not within:
        raise UserError(
            f"no network pruned by {arm.prune} keeps the latency asked for, {text}; the fastest takes "
            f"{percent(min(ratios.values()))} of that"
        )
    again = _over(job, arm, within[:AGAIN], text, "measuring anew")  # a reading that picks is believed by another one
    arch = next((arch for arch in within if again.get(arch, 1.0) <= 1), within[-1])
    write_json(path, {"inputs": key, "arch": to_json(arch)})
    return _pruned_row(job, arm, arch)


def _over(job: Run, arm: Arm, archs: Sequence[Arch], text: str, what: str) -> dict[Arch, float]:
    """Latency of each over the limit, in one run beside the base network."""
    rows = [_pruned_row(job, arm, arch) for arch in (job.network.base, *archs)]
    modules = [resize(job.network, row.arch) for row in rows]
    base, *readings = run_rows.measure_rows(job, rows, modules, f"{what} networks pruned to {text}, %")
    most = parse("latency", text, base.estimate)
    return {arch: reading.estimate / most for arch, reading in zip(archs, readings, strict=True)}


def _pruned_row(job: Run, arm: Arm, arch: Arch) -> Result:
    row = run_rows.new_row(job, _row_name(arm), arch, space="-", strategy=f"torch-pruning, {arm.prune}", cost="-")
    return replace(row, predicted=job.calibrated.cost(arch))


def _row_name(arm: Arm) -> str:
    """Of the network trained; `base` alone is that of the teacher, which learns from nobody."""
    return f"{BASE} network" if arm.name == BASE else arm.name


def _basis(job: Run, arm: Arm) -> dict[str, Any]:
    """All that a result depends on, by name; where the data lie is not part of it."""
    options = {name: value for name, value in job.config.options().items() if name not in FREE}
    return {**options, "network": arm.network, "prune": arm.prune, "like": arm.like}


def _difference(then: Mapping[str, Any], job: Run, arm: Arm) -> str:
    """`train.lr = 0.1 there, 0.2 here`: the first in which a result differs from what is asked for; empty for none.

    An option that there was not yet, when the result was made, is taken to have been what it is by default now.
    """
    usual = job.config.usual()
    for name, value in _basis(job, arm).items():
        before = then.get(name, usual.get(name))
        if before != value:
            return f"{name} = {before!r} there, {value!r} here"
    return ""


def _entry(jobs: Mapping[tuple[str, int], Run], named: Mapping[str, Arm], key: tuple[str, int]) -> Entry | None:
    """What result.json says, if it was made by this configuration; where the arm trains what another one has found,
    None as long as that is not there, or is another network by now."""
    job, arm = jobs[key], named[key[0]]
    path = job.folder / "result.json"
    if not path.exists():
        return None
    content = read_json(path)
    if "options" not in content:
        raise UserError(
            f"{path} was written by an earlier version and does not say of what; delete it, or name another --out"
        )
    if difference := _difference(content["options"], job, arm):
        raise UserError(
            f"{job.folder} holds a result of another configuration ({difference}); name another folder with --out, or "
            "delete this one"
        )
    result = from_json(content["result"], Result, path)
    found = Entry(result, content["search_seconds"], content.get("doubt", ""), content.get("images", ""))
    if arm.like:
        other = _entry(jobs, named, (arm.like, key[1]))
        if other is None or other.result.arch != found.result.arch:
            return None
    return found


def measured(
    jobs: Mapping[tuple[str, int], Run],
    there: Mapping[tuple[str, int], Entry],
    named: Mapping[str, Arm],
    path: Path,
    only: bool = False,
    on: Run | None = None,
) -> tuple[dict[tuple[str, int], Entry], dict[str, Any]]:
    """All networks in one interleaved run, on the target of the run `on`, or of the first -> the file of that path;
    as they were read last where nothing is to be run. Entries with their readings, and the machine that took them.

    A result whose weights are gone, or were never copied here, is measured with weights as they are drawn. A reading
    is that of a network and not of an arm's name, which may have another network since.
    """
    rows = {key: entry.result for key, entry in there.items()}
    first = on or jobs[next(iter(there))]
    marks = {name: digest(*name, to_json(row.arch), row.accuracy) for name, row in rows.items()}
    key = digest(first.place, list(marks.values()))
    if not (path.exists() and read_json(path)["inputs"] == key) and not only:
        started = time.monotonic()
        modules = [_network(jobs[name], named[name[0]], row) for name, row in rows.items()]
        most = max((row.predicted for row in rows.values() if row.predicted), default=GUESS)
        guessed = [replace(row, predicted=row.predicted or most) for row in rows.values()]
        readings = run_rows.measure_rows(first, guessed, modules, f"measuring {plural(len(rows), 'network')}, %")
        taken = [[*name, marks[name], to_json(reading)] for name, reading in zip(rows, readings, strict=True)]
        about = {"inputs": key, "machine": machine(), "took": time.monotonic() - started}
        write_json(path, {**about, "latencies": taken})
    content = read_json(path) if path.exists() else {"machine": {}, "latencies": []}
    known = {mark: reading for _, _, mark, reading in content["latencies"]}
    found = {}
    for name, entry in there.items():
        reading = from_json(known[marks[name]], Measurement, path) if marks[name] in known else None
        found[name] = replace(entry, result=replace(entry.result, measured=reading))
    return found, content["machine"]


def _network(job: Run, arm: Arm, row: Result) -> nn.Module:
    build = _given(job, arm)[1] if arm.network else None
    if job.model_file(row.name).exists():
        return run_rows.load_network(job, row, build=build)
    model = build() if build else resize(job.network, row.arch)
    job.reset(model)
    return model.eval()
