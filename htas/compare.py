"""Arms beside each other: spaces, strategies, costs and plain networks, trained alike over seeds, in one table.

An arm is a table of options that differ from the configuration, or a network by its name. Every arm and seed has a
run's folder and ends in a result.json; what is there already is kept, so a comparison goes on, and grows.
"""

import dataclasses
import math
import statistics
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from htas import datasets, networks, pipeline, pruning
from htas.arch import Arch
from htas.budget import over, parse
from htas.config import as_text, fitting, load
from htas.files import Unusable, digest, read_json, write_json
from htas.graph import Network, resize
from htas.intervals import Blocks, reach
from htas.measurement import Measurement
from htas.pipeline import Run
from htas.progress import say
from htas.record import into
from htas.report.arms import page
from htas.result import Result, SearchRecord
from htas.sweep import SUPERNETS, own_folder, prepared, share_files
from htas.target import machine
from htas.text import Shown, duration, listing, millions, no_such, percent, plural, shown

EMPTY = "-"
"""A cell that is not known, or not yet."""
FEW = "too few trainings"
"""No interval can be given."""
BASE = "base"
"""The network of the configuration's family, unchanged."""
AGAIN = 3
"""Pruned networks that are measured a second time: the least pruned of those that keep the limit."""
FREE = ("data.path", "survey.store", "survey.undecided")
"""Options that no result depends on."""
GUESS = 1e-3
"""Seconds of a call, where no network's latency is predicted: how often to read them follows from it."""


@dataclass(frozen=True)
class Arm:
    """What is compared."""

    name: str
    overrides: tuple[str, ...] = ()
    """Options that differ from the configuration's."""
    network: str = ""
    """A network by its name, trained as it is, instead of a search: base, cifar_resnet:14, tas:C010-ResNet20."""
    prune: str = ""
    """A criterion of Torch-Pruning, instead of a search: the base network pruned to the limit of latency, measured."""
    like: str = ""
    """Another arm, instead of a search: what it found, trained with this arm's options."""


@dataclass(frozen=True)
class Entry:
    """An arm with one seed, when it is finished."""

    result: Result
    seconds: float | None
    """Of the search, its finalists included; None where nothing was searched."""
    doubt: str = ""
    """Why its search has not converged; empty where it has, or where there was none."""
    images: str = ""
    """How the images came that it was trained on, where its data set has copies that differ; empty where not known."""


def read_arms(*paths: Path) -> list[Arm]:
    """The arms of TOML files, a table each; several files may hold the same one.

    Raises Unusable where a file is none, an arm says nothing that is understood, or is another one in another file.
    """
    content: dict[str, tuple[Path, dict[str, Any]]] = {}
    for path in paths:
        for name, options in _tables(path).items():
            if not isinstance(options, dict):
                raise Unusable(f"{path}: {name} must be a table, [{name}] with the options of an arm, got {options!r}")
            if content.setdefault(name, (path, options))[1] != options:
                raise Unusable(f"{path}: the arm {name} has other options in {content[name][0]}; give it another name")
    arms: list[Arm] = []
    for name, (path, options) in content.items():
        rest = dict(options)
        network, prune, like = (rest.pop(key, "") for key in ("network", "prune", "like"))
        if not isinstance(network, str):
            raise Unusable(f"{path}: network of the arm {name} must be the name of one, got {network!r}")
        if prune and (str(prune) not in pruning.CRITERIA or network):
            raise Unusable(
                f"{path}: prune of the arm {name} must be one of {listing(pruning.CRITERIA)}, without a network beside "
                f"it, got {prune!r}"
            )
        first = {arm.name: arm for arm in arms if not (arm.network or arm.prune or arm.like)}
        if like and (str(like) not in first or network or prune):
            raise Unusable(
                f"{path}: like of the arm {name} must be an arm above it that searches, of which there are "
                f"{listing(first) or 'none'}, without a network or prune beside it, got {like!r}"
            )
        its = first[like].overrides if like else ()
        arms.append(Arm(name, (*its, *_overrides(path, name, rest)), network, prune, like))
    slugs = [pipeline.slug(arm.name) for arm in arms]
    if len(arms) < 2 or len(set(slugs)) < len(slugs):
        raise Unusable(
            f"{listing(map(str, paths))} must hold two arms or more, each a table of another name, got "
            f"{listing(slugs) or 'none'}"
        )
    return arms


def _tables(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise Unusable(f"{path} does not exist; name a TOML file with a table for every arm") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise Unusable(f"{path} cannot be read as TOML: {error}") from error


def _overrides(path: Path, arm: str, options: Mapping[str, Any]) -> list[str]:
    """`--table.option=value` of each option."""
    found = []
    for table, values in options.items():
        if not isinstance(values, dict):
            raise Unusable(
                f"{path}: the arm {arm} has {table} = {values!r}, which is no table of options; write {table}.OPTION"
            )
        found += [f"--{table}.{name}={as_text(value)}" for name, value in values.items()]
    return found


def compare(
    source: Path | None, overrides: Sequence[str], arms: Sequence[Arm], seeds: int, folder: Path, against: str = "",
    only: bool = False,
) -> tuple[Path, Shown]:  # fmt: skip
    """Every arm with every seed, then all networks in one interleaved run: the path of compare.html, and its table.

    `against` is the arm that others are set beside, the first by default. With `only`, nothing is run: the table of
    what is there. An arm that cannot be run is said, and leaves its cells empty.
    """
    if seeds < 1:
        raise ValueError(f"--seeds must be 1 or more, got {seeds}")
    if any(option.removeprefix("--").startswith("seed=") for option in overrides):
        raise ValueError(
            f"htas compare has seeds from 0 on: leave --seed out, and give their number with --seeds={seeds}"
        )
    named = {arm.name: arm for arm in arms}
    if against and against not in named:
        raise ValueError(no_such("arm", against, named))
    own_folder(folder)
    jobs = arranged(source, overrides, arms, seeds, folder)
    _refuse_targets(jobs)
    there, reasons = finished(jobs, arms, only)
    if not there:
        raise Unusable(f"nothing is finished in {folder}; {reasons[0] if reasons else 'run it without --only'}")
    there, where = measured(jobs, there, named, folder / "latencies.json", only)
    against = against or arms[0].name
    lines = table(there, [arm.name for arm in arms], seeds, against)
    doubts = [f"{name}, seed {seed}: {entry.doubt}" for (name, seed), entry in there.items() if entry.doubt]
    notes = [f"Left out: {reason}" for reason in reasons] + [f"Not converged: {doubt}" for doubt in doubts]
    path = _page(there, lines, against, notes, next(iter(jobs.values())), seeds, folder, where)
    write_json(folder / "compare.json", {"arms": [
        {"arm": name, "seed": seed, "search_seconds": entry.seconds, "result": entry.result.json()}
        for (name, seed), entry in there.items()
    ]})  # fmt: skip
    return path, shown(lines, 1, after=notes, marked=[against])


def arranged(
    source: Path | None, overrides: Sequence[str], arms: Sequence[Arm], seeds: int, folder: Path
) -> dict[tuple[str, int], Run]:
    """The runs of arms, by arm and seed; raises ValueError that names the arm whose options are wrong."""
    jobs = {(arm.name, seed): _job(source, overrides, arm, seed, folder) for seed in range(seeds) for arm in arms}
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
                except ValueError as error:
                    reasons.append(f"{name}, seed {seed}: {error}")
                    say(f"compare: {reasons[-1]}")
                    del todo[name, seed]
    return {key: entry for key in jobs if (entry := _entry(jobs, named, key)) is not None}, reasons


def _job(source: Path | None, overrides: Sequence[str], arm: Arm, seed: int, folder: Path) -> Run:
    """The run of an arm with a seed; raises ValueError that names the arm where its options are wrong."""
    try:
        config = load(source, [*fitting(overrides, arm.overrides), *arm.overrides, f"--seed={seed}"])
    except ValueError as error:
        raise ValueError(f"arm {arm.name}: {error}") from error
    first = config.design.spaces[0]
    design = replace(config.design, spaces=(first,), widths=config.design.widths if first == "explicit" else {})
    return Run(replace(config, design=design), folder / f"{pipeline.slug(arm.name)}-{seed}")


def _refuse_targets(jobs: Mapping[tuple[str, int], Run]) -> None:
    """Raise ValueError where arms are to be fast on different targets: all are measured in one run."""
    (first, _), job = next(iter(jobs.items()))
    for (name, _), other in jobs.items():
        if other.target != job.target:
            raise ValueError(
                f"the arms {first} and {name} have different targets, and all networks are measured in one run: give "
                "target options on the command line or in the configuration, and compare each target by itself"
            )


def _read(seen: dict[str, str], job: Run, name: str) -> None:
    """Raise ValueError where the images of an arm cannot be read; `seen` has what came of those of others."""
    key = digest(job.config.names["data"], dataclasses.asdict(job.config.data))  # type: ignore[call-overload]
    if key not in seen:
        try:
            Run(job.config, job.folder).data  # noqa: B018, which reads them, and they are not kept
            seen[key] = ""
        except ValueError as error:
            seen[key] = str(error)
    if seen[key]:
        raise ValueError(seen[key])


def _prepare(job: Run, name: str) -> None:
    """Survey, space and cost of an arm, unless another arm or seed has had them made."""
    prepared(job.config, job.folder)


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
            raise ValueError(f"the arm {arm.like}, whose network it trains, is not finished")
        its = other.result
        job.network.check(its.arch)
        row = pipeline.new_row(job, name, its.arch, space=its.space, strategy=its.strategy, cost=its.cost)
        build, seconds = None, other.seconds
    else:
        pipeline.search(config, place, supernets=place.parent / SUPERNETS)
        record = SearchRecord.of(pipeline.plain(read_json(job.search_file(config.design.spaces[0]))))
        row = pipeline.new_row(
            job, _row_name(arm), record.arch, space=record.space, strategy=record.strategy, cost=record.cost
        )
        build, seconds = None, float(read_json(job.search_file(record.space))["took"])
        doubt = "" if record.converged else record.why
    row, _ = pipeline.train_row(job, row, build=build)
    if row.arch.widths:
        row = replace(row, predicted=job.calibrated.cost(row.arch))
    images = datasets.encoding(config.data) if hasattr(config.data, "path") else ""
    about = {"options": _basis(job, arm), "search_seconds": seconds, "doubt": doubt, "images": images}
    write_json(place / "result.json", {**about, "result": row.json()})


def _given(job: Run, arm: Arm) -> tuple[Result, Callable[[], nn.Module] | None]:
    """The row of a network that is not searched, and how it is built where it is no arch of the base network."""
    untaught = arm.network == BASE and job.config.distill.alpha == 0  # which is how the teacher of others is trained
    name = BASE if untaught else _row_name(arm)
    row = pipeline.new_row(job, name, job.network.base, space="-", strategy="given", cost="-")
    if arm.network == BASE:
        return row, None
    build = partial(networks.build, arm.network, job.config.data.classes)
    macs, params = pipeline.counted(build(), job.target)
    return replace(row, arch=Arch({}), macs=macs, params=params, family=arm.network), build


def _pruned(job: Run, arm: Arm) -> Result:
    """The row of the least pruned network within the limits: of latency, by two readings beside the base network."""
    text = job.config.constraints.latency
    if not text:
        raise ValueError("a pruned network needs a latency to be pruned to; give one: --constraints.latency=50%")
    path, key = job.folder / "pruned.json", digest(_basis(job, arm))
    if path.exists() and (content := read_json(path))["inputs"] == key:
        return _pruned_row(job, arm, Arch.of(content["arch"]))
    example = torch.zeros(2, *job.config.data.shape)
    exact = [limit for limit in pipeline.limits(job) if limit.metric != "latency"]
    archs = pruning.candidates(job.network, pipeline.base_network(job), example, arm.prune)
    archs = [arch for arch in archs if not exact or over(exact, arch) <= 1]
    if not archs:
        asked = listing(f"{limit.metric} {limit.text}" for limit in exact)
        raise ValueError(f"no network pruned by {arm.prune} keeps what is asked for, {asked}")
    ratios = _over(job, arm, archs, text, "looking for")
    within = [arch for arch in archs if ratios[arch] <= 1]
    if not within:
        raise ValueError(
            f"no network pruned by {arm.prune} keeps the latency asked for, {text}; the fastest takes "
            f"{percent(min(ratios.values()))} of that"
        )
    again = _over(job, arm, within[:AGAIN], text, "measuring anew")  # a reading that picks is believed by another one
    arch = next((arch for arch in within if again.get(arch, 1.0) <= 1), within[-1])
    write_json(path, {"inputs": key, "arch": arch.json()})
    return _pruned_row(job, arm, arch)


def _over(job: Run, arm: Arm, archs: Sequence[Arch], text: str, what: str) -> dict[Arch, float]:
    """Latency of each over the limit, in one run beside the base network."""
    rows = [_pruned_row(job, arm, arch) for arch in (job.network.base, *archs)]
    modules = [resize(job.network, row.arch) for row in rows]
    base, *readings = pipeline.measure_rows(job, rows, modules, f"{what} networks pruned to {text}, %")
    most = parse("latency", text, base.estimate)
    return {arch: reading.estimate / most for arch, reading in zip(archs, readings, strict=True)}


def _pruned_row(job: Run, arm: Arm, arch: Arch) -> Result:
    row = pipeline.new_row(job, _row_name(arm), arch, space="-", strategy=f"torch-pruning, {arm.prune}", cost="-")
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
        raise Unusable(
            f"{path} was written by an earlier version and does not say of what; delete it, or name another --out"
        )
    if difference := _difference(content["options"], job, arm):
        raise Unusable(
            f"{job.folder} holds a result of another configuration ({difference}); name another folder with --out, or "
            "delete this one"
        )
    result, (doubt, images) = Result.of(content["result"]), (content.get(name, "") for name in ("doubt", "images"))
    found = Entry(result, content["search_seconds"], doubt, images)
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
    marks = {name: digest(*name, row.arch.json(), row.accuracy) for name, row in rows.items()}
    key = digest(first.place, list(marks.values()))
    if not (path.exists() and read_json(path)["inputs"] == key) and not only:
        started = time.monotonic()
        modules = [_network(jobs[name], named[name[0]], row) for name, row in rows.items()]
        most = max((row.predicted for row in rows.values() if row.predicted), default=GUESS)
        guessed = [replace(row, predicted=row.predicted or most) for row in rows.values()]
        readings = pipeline.measure_rows(first, guessed, modules, f"measuring {plural(len(rows), 'network')}, %")
        taken = [[*name, marks[name], reading.json()] for name, reading in zip(rows, readings, strict=True)]
        about = {"inputs": key, "machine": machine(), "took": time.monotonic() - started}
        write_json(path, {**about, "latencies": taken})
    content = read_json(path) if path.exists() else {"machine": {}, "latencies": []}
    known = {mark: reading for _, _, mark, reading in content["latencies"]}
    found = {}
    for name, entry in there.items():
        reading = Measurement.of(known[marks[name]]) if marks[name] in known else None
        found[name] = replace(entry, result=replace(entry.result, measured=reading))
    return found, content["machine"]


def _network(job: Run, arm: Arm, row: Result) -> nn.Module:
    build = _given(job, arm)[1] if arm.network else None
    if job.model_file(row.name).exists():
        return pipeline.load_network(job, row, build=build)
    model = build() if build else resize(job.network, row.arch)
    job.reset(model)
    return model.eval()


# -- the table ---------------------------------------------------------------------------------------------------------


def table(
    there: Mapping[tuple[str, int], Entry], arms: Sequence[str], seeds: int, against: str
) -> list[tuple[str, ...]]:
    """A line for each arm: means over its seeds, deviations behind them, and what it is beside `against`.

    The difference of accuracies is that of the same seeds, which share a teacher, with its 95 % interval; where that
    holds 0 it is no difference. `at least` is the one-sided bound: the arm is not worse than that, at 95 %. The speed
    has Welch's interval, of the archs that the seeds led to, whatever the noise of reading them.
    """
    lines: list[tuple[str, ...]] = [(
        "arm", "accuracy, %", f"less {against}", "at least", "so", "measured, ms", f"speed over {against}", "so",
        "predicted, ms", "MACs", "parameters", "search", "trainings",
    )]  # fmt: skip
    other = [entry for (name, _), entry in there.items() if name == against]
    accuracies = {key: 100 * entry.result.accuracy for key, entry in there.items() if entry.result.accuracy is not None}
    blocks = Blocks(accuracies)
    for arm in arms:
        own = [entry for (name, _), entry in there.items() if name == arm]
        accuracy, measured, *rest = _figures(own)
        difference = _more(blocks, own, other, arm, against)
        speed = _speed(own, other) if arm != against else (EMPTY, EMPTY)
        lines.append((arm, accuracy, *difference, measured, *speed, *rest, f"{len(own)} of {seeds}"))
    return lines


def _figures(own: Sequence[Entry]) -> tuple[str, ...]:
    rows = [entry.result for entry in own]
    searched = [entry.seconds for entry in own if entry.seconds is not None]
    return (
        _mean([100 * row.accuracy for row in rows if row.accuracy is not None], "{:.2f}"),
        _mean([1e3 * row.measured.estimate for row in rows if row.measured], "{:.3g}"),
        _mean([1e3 * row.predicted for row in rows if row.predicted], "{:.3g}"),
        millions(statistics.mean(row.macs for row in rows)) if rows else EMPTY,
        millions(statistics.mean(row.params for row in rows)) if rows else EMPTY,
        duration(statistics.mean(searched)) if searched else EMPTY,
    )


def _mean(values: Sequence[float], shown: str) -> str:
    """`91.20 ± 0.15`: the mean, and the deviation of more than one, to two digits."""
    if not values:
        return EMPTY
    off = f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else ""
    return f"{shown.format(statistics.mean(values))}{off}"


def _more(blocks: Blocks, own: Sequence[Entry], other: Sequence[Entry], arm: str, against: str) -> tuple[str, ...]:
    """How much more accurate, in points, with the 95 % interval; the one-sided bound; and that in words."""
    if arm == against or not own or not other:
        return (EMPTY,) * 3
    off, wide = blocks.difference(arm, against), blocks.reach(arm, against)
    if wide == math.inf:
        return EMPTY, EMPTY, FEW
    verdict = "no difference" if abs(off) <= wide else "more accurate" if off > 0 else "less accurate"
    return f"{off:+.2f} ± {wide:.2f}", f"{off - blocks.reach(arm, against, 0.9):+.2f}", verdict


def _speed(own: Sequence[Entry], other: Sequence[Entry]) -> tuple[str, str]:
    """How many times as fast, by geometric means, with Welch's 95 % interval of the logarithms; and that in words."""
    logs = [[math.log(each.result.measured.estimate) for each in entries if each.result.measured]
            for entries in (own, other)]  # fmt: skip
    if not all(logs):
        return EMPTY, EMPTY
    off, wide = statistics.mean(logs[1]) - statistics.mean(logs[0]), reach(logs)
    if wide == math.inf:
        return f"{math.exp(off):.2f}", FEW
    verdict = "no difference" if abs(off) <= wide else "faster" if off > 0 else "slower"
    return f"{math.exp(off):.2f} ({math.exp(off - wide):.2f} to {math.exp(off + wide):.2f})", verdict


def every(there: Mapping[tuple[str, int], Entry], network: Network) -> list[tuple[str, ...]]:
    """A line for each training: what was found, and what came of it. Widths are those of blocks that are kept."""
    lines: list[tuple[str, ...]] = [
        ("arm", "seed", "accuracy, %", "measured, ms", "of the base", "MACs", "search", "blocks", "widths")
    ]
    rows = {name: entry.result for name, entry in there.items()}
    known = {name: row.measured.estimate for name, row in rows.items() if row.measured}
    plain = [seconds for name, seconds in known.items() if rows[name].arch == network.base]
    for (arm, seed), entry in there.items():
        row, seconds = entry.result, known.get((arm, seed))
        fits = bool(row.arch.widths) and set(row.arch.widths) == set(network.widths)
        used = {use.site for use in network.uses(row.arch)} if fits else set(row.arch.widths)
        widths = ", ".join(str(width) for site, width in row.arch.widths.items() if site in used)
        lines.append((
            arm, str(seed), f"{100 * row.accuracy:.2f}" if row.accuracy is not None else EMPTY,
            f"{1e3 * seconds:.3g}" if seconds else EMPTY,
            f"{seconds / statistics.mean(plain):.3f}" if seconds and plain else EMPTY,
            millions(row.macs), duration(entry.seconds) if entry.seconds is not None else EMPTY,
            ", ".join(map(str, row.arch.depths.values())) or EMPTY, widths or EMPTY,
        ))  # fmt: skip
    return lines


SAID = (
    "Accuracy is that of the last epoch on the test images, mean and standard deviation over the seeds; latencies are "
    "of one interleaved run. Differences of accuracy, in points, are those of the same seeds, which share a teacher, "
    "with the 95 % interval of a block design; 'at least' is the one-sided 95 % bound. Speed has Welch's interval; "
    "an empty cell is not known, or not yet."
)


def _page(
    there: Mapping[tuple[str, int], Entry],
    lines: Sequence[Sequence[str]],
    against: str,
    notes: Sequence[str],
    job: Run,
    seeds: int,
    folder: Path,
    where: Mapping[str, Any],
) -> Path:
    """compare.html and compare.md; `where` is the machine that took the readings."""
    points: dict[str, list[tuple[float, float]]] = {}
    for (name, _), entry in there.items():
        row = entry.result
        if row.measured and row.accuracy is not None:
            points.setdefault(name, []).append((row.measured.estimate, row.accuracy))
    searched = {name for (name, _), entry in there.items() if entry.seconds is not None}
    arms = [(name, name in searched, found) for name, found in points.items()]
    title = f"{job.config.family.title} on {job.config.names['data']}, {plural(seeds, 'seed')}"
    facts = {name: str(value) for name, value in {**where, **dataclasses.asdict(job.target)}.items()}
    return page(title, lines, arms, against, SAID, notes, facts, every(there, job.network), folder)
