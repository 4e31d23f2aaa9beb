"""Runs within budgets of latency: a front of networks from one survey, and the fastest network at a given accuracy.

Each budget is a run of its own in a folder of its own, begun with the survey, the design, the calibration and the
trained base network of whichever was there before; so everything that a run can do, continuing above all, they can.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from htas import files
from htas.console.progress import say
from htas.console.record import into
from htas.errors import UserError
from htas.experiments import intervals
from htas.experiments.at_once import Task, Tasks, turns_of
from htas.experiments.plans import FastestPlan, SweepPlan
from htas.experiments.shared import LOCKS, PREPARED, SUPERNETS, in_first_space, once, prepared, share_base, share_files
from htas.files import (
    JsonObject,
    digest,
    from_json,
    read_about,
    read_json,
    read_record,
    read_weights,
    state_of,
    to_json,
    write_json,
    write_tensors,
    wrong,
)
from htas.graph import Arch, ordered, resize
from htas.report import read, result, write
from htas.report.result import Report, Result
from htas.report.summary import breach, failed, guessing, missed_sentences
from htas.run import rows as run_rows
from htas.run import stages as pipeline
from htas.run.config import Config, load
from htas.run.limits import judged_rows
from htas.run.rows import NetworksRecord
from htas.run.run import Run, Sources
from htas.run.stage import StageHeader, ensure, finished, stored
from htas.run.stages import SEARCH, TRAIN
from htas.text import TextTable, columns, listing, milliseconds, percent, points
from htas.timing import turns
from htas.training.train import Training, evaluate

START = "start"
"""Folder of the run whose survey and calibration all budgets have."""
FRONT = "No other network of this sweep is both faster and more accurate."


BASES = ("*/networks/base.safetensors", f"{SUPERNETS}/*.safetensors")
"""Files that runs have in common: trained base networks, and supernets."""
RUNS = tuple(f"*/{name}" for name in PREPARED)
"""Files of runs before their searches."""


def _opened(workers: Tasks | None) -> AbstractContextManager[object]:
    """The workers, where there are some."""
    return workers.opened() if workers else nullcontext()


def _alone(workers: Tasks | None, title: str, task: Task, folder: Path) -> None:
    """Do what measures: on the device of the workers, or by this process."""
    if workers:
        workers.measure(title, task, folder)
    else:
        task.work(folder, *task.arguments)


def _configured(config: Config, text: str) -> Config:
    """The configuration within a budget of latency."""
    return in_first_space(replace(config, constraints=replace(config.constraints, latency=text)))


def _name(text: str) -> str:
    """Of the folder of a budget."""
    return f"latency-{files.slug(text)}"


@cache
def _sources() -> Sources:
    """Of a process: its tasks share images and networks."""
    return Sources()


def _run_of(folder: Path, name: str, config: Config | None = None) -> Run:
    """A run in a folder of its own; without a configuration one that is prepared."""
    return Run(config or load(folder / name / "config.toml"), folder / name, folder / SUPERNETS, _sources())


def _prepare(folder: Path, configs: Mapping[str, Config], command: str, begun: int) -> None:
    """Survey and calibrate runs, by name, unless that is done; so many of them begin with a command, whose searches do
    not wait for another one's."""
    jobs = [prepared(_run_of(folder, name, config)) for name, config in configs.items()]
    for job in jobs:
        pipeline.check_limits(job)
    for job in jobs[:begun]:
        pipeline.begin(job, command, shown=False)


# -- several budgets ---------------------------------------------------------------------------------------------------


def sweep(
    config: Config, folder: Path, plan: SweepPlan, command: str, workers: Tasks | None = None
) -> tuple[Path, TextTable]:
    """A run for every budget of latency, then all their networks in one interleaved run: the path of report.html, and
    the front. The searches and trainings of all budgets are done by workers at once, where there are some.

    Raises UserError for a budget that cannot be kept, before anything is trained.
    """
    _sources.cache_clear()
    budgets = plan.budgets
    first = folder / _name(budgets[0])
    pair = config.strategy.sharing(first / f"supernet-{config.design.spaces[0]}.safetensors") if plan.share else None
    strategies = [pair[min(number, 1)] if pair else config.strategy for number in range(len(budgets))]
    if plan.share and not pair:
        name = config.names["strategy"]
        say(f"sweep: --share is for the strategy differentiable; what {name} can share between budgets, it does anyway")
    configs = {
        _name(text): _configured(replace(config, strategy=strategy), text)
        for text, strategy in zip(budgets, strategies, strict=True)
    }
    runs = {text: _run_of(folder, _name(text), configs[_name(text)]) for text in budgets}
    with _opened(workers):
        begun = 0 if workers is None else 1 if pair else len(configs)
        prepare = Task(_prepare, (configs, command, begun), files=RUNS)
        _alone(workers, "preparing", prepare, folder)
        if workers is not None:
            _at_once(workers, runs, folder, shared=pair is not None)
        whole = *(f"{name}/**/*" for name in configs), "sweep.json"
        _alone(
            workers, "measuring", Task(_finish, (configs, budgets, command, workers is not None), files=whole), folder
        )
    rows = _measured(runs, folder)
    first_run, name = runs[budgets[0]], config.design.spaces[0]
    swept = Report(
        title=f"{config.family.title} on {config.data.name}, {config.target.title}: {len(runs)} budgets",
        command=command,
        results=rows,
        curves=(),
        searches=tuple(replace(job.search(name), space=text) for text, job in runs.items()),
        machine=read_json(first_run.folder / "environment.json"),
        config=config.toml(),
        dataset=config.data.name,
        stages={"measure": read_record(folder / "sweep.json", StageHeader).took},
        test_images=read_record(first_run.folder / "networks.json", NetworksRecord).test_images,
    )
    write(swept, folder)
    return folder / "report.html", _table(rows)


def _at_once(workers: Tasks, runs: Mapping[str, Run], folder: Path, shared: bool) -> None:
    """The searches and trainings that are not finished; with `shared`, others follow the first search. Raises UserError
    that names those which cannot be done."""
    (first, first_run), *_ = runs.items()
    follows = (first_run.folder.name, f"the search for {first}, whose supernet it begins with, is not finished")
    tasks = {}
    for job in runs.values():
        if not (finished(job, SEARCH) and finished(job, TRAIN)):
            after = follows if shared and job is not first_run and not finished(first_run, SEARCH) else ("", "")
            tasks[job.folder.name] = Task(_search, (job.folder.name, True), *after, files=BASES)
    _done(workers, "sweep", tasks, folder)


def _done(workers: Tasks, verb: str, tasks: Mapping[str, Task], folder: Path) -> None:
    """Do tasks, whose files this process finds; raises UserError that names those which cannot be done."""
    reasons = workers.do(verb, tasks, folder, {}) if tasks else {}
    if reasons:
        raise UserError("; ".join(f"{name}: {reason}" for name, reason in reasons.items()))


def _search(folder: Path, name: str, trains: bool) -> None:
    """In a process: the search within a budget, and with `trains` all trainings; what several need, the first makes."""
    with turns.join(log=turns_of(folder, name)):
        job, locks = _run_of(folder, name), folder / LOCKS
        job.config.strategy.check()
        into(job.folder)
        with once(locks / job.training(job.network.base, taught=False)):
            share_base(job)
            run_rows.base_network(job)
        supernet = job.supernet_key(next(iter(job.design.spaces.values())))
        with once(locks / (supernet or SEARCH.key(job))):
            share_files(job)
            if not (supernet and (folder / SUPERNETS / f"{supernet}.safetensors").exists()):
                ensure(job, SEARCH)
        ensure(job, SEARCH)
        if trains:
            ensure(job, TRAIN)


def _finish(folder: Path, configs: Mapping[str, Config], budgets: Sequence[str], command: str, quiet: bool) -> None:
    """What is left of the runs of some budgets, then all their networks in one interleaved run -> sweep.json."""
    runs = {text: _run_of(folder, _name(text), configs[_name(text)]) for text in budgets}
    for job in runs.values():
        share_files(job)
        pipeline.run_all(job, command, quiet=quiet)
    first, picked = next(iter(runs.values())), _picked(runs)
    rows = [row for row, _ in picked]

    def measured_rows() -> NetworksRecord:
        models = [trained() for _, trained in picked]
        readings = run_rows.measure_rows(first, rows, models, "measuring the networks of all budgets, %")
        pairs = list(zip(rows, readings, strict=True))
        front = result.front([(reading.estimate, row.accuracy or 0.0) for row, reading in pairs])
        base, *others = [
            replace(row, measured=reading, remarks=(*row.remarks, FRONT) if number in front else row.remarks)
            for number, (row, reading) in enumerate(pairs)
        ]
        return NetworksRecord((base, *(each for row in others for each in judged_rows(runs[row.name], [row], base))))

    stored(folder / "sweep.json", digest(first.place, *map(_same, rows)), NetworksRecord, measured_rows)


def _measured(runs: Mapping[str, Run], folder: Path) -> tuple[Result, ...]:
    """The base network and what was found for each budget, as sweep.json has them."""
    path = folder / "sweep.json"
    rows, picked = read_record(path, NetworksRecord).results, [row for row, _ in _picked(runs)]
    if [_same(row) for row in rows] != [_same(row) for row in picked] or not all(row.measured for row in rows):
        raise wrong(path, "results must be the networks of the budgets, each with its readings")
    return rows


def _picked(runs: Mapping[str, Run]) -> list[tuple[Result, Callable[[], nn.Module]]]:
    """The base network and what was found for each budget, and what loads it."""
    picked: list[tuple[Result, Callable[[], nn.Module]]] = []
    for text, job in runs.items():
        named = {row.name: row for row in run_rows.read_networks(job, "measure.json").results}
        name = job.config.design.spaces[0]
        for row_name in ["base", name] if not picked else [name]:
            row = replace(named[row_name], name=row_name if row_name == "base" else text)
            picked.append((row, partial(run_rows.load_network, job, named[row_name])))
    return picked


def _same(row: Result) -> list[str | float | JsonObject | None]:
    """What a row of the sweep and that of its run have in common."""
    return [row.name, to_json(row.arch), row.accuracy]


def _table(rows: Sequence[Result]) -> TextTable:
    """One line for each network: whether it keeps its budget, and the front marked; before them, who misses it."""
    base = rows[0].measured
    lines: list[tuple[str, ...]] = [
        ("budget", "accuracy", "latency", "of the base", "predicted", "its budget", "front")
    ]
    for row in rows:
        assert row.measured is not None and base is not None
        seconds, marked = row.measured.estimate, "*" if FRONT in row.remarks else ""
        figures = (milliseconds(seconds), percent(seconds / base.estimate, 1), milliseconds(row.predicted or 0.0))
        budget = "" if row is rows[0] else "missed" if row.breaks else "kept"
        lines.append((row.name, percent(row.accuracy or 0.0), *figures, budget, marked))
    return TextTable(
        lines, 1, before=[f"{row.name}: the searched network {breach(row)}." for row in rows if row.breaks]
    )


# -- the fastest network ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BudgetTrial:
    """One budget: the share of the base's latency, and the accuracies of its trainings on data held out of training."""

    share: float
    accuracies: tuple[float, ...]
    floor: float
    base: tuple[float, ...] = ()
    """Of the base network, trained and judged alike; empty where the floor does not depend on it."""

    @property
    def mean(self) -> float:
        """Over the trainings."""
        return float(np.mean(self.accuracies))

    @property
    def met(self) -> bool:
        """Whether the mean keeps the floor."""
        return self.mean >= self.floor

    @property
    def reach(self) -> float:
        """Half of the 95 % interval of the mean, over the floor; endless for a single training."""
        return intervals.reach([values for values in (self.accuracies, self.base) if values])

    @property
    def verdict(self) -> str:
        """`clearly met`, `met`, `not met`."""
        if not self.met:
            return "not met"
        return "clearly met" if self.mean - self.reach >= self.floor else "met"


@dataclass(frozen=True)
class HeldOutRecord:
    """The header of the weights of a network that is trained on one half."""

    accuracy: float
    seconds: float


def fastest(
    config: Config, folder: Path, plan: FastestPlan, command: str, workers: Tasks | None = None
) -> tuple[Path, TextTable]:
    """The smallest budget whose networks keep the accuracy floor, by bisection over `tries` budgets, then a whole run
    at that budget: the path of its report.html, and the budgets tried as lines of text.

    The floor is judged on images held out of training: every network is trained `seeds` times on one part of the
    training images and judged on the other, its teacher likewise. The search has seen these images too, to choose
    widths by; the test images nobody has. A budget follows from the one before; the trainings of one network are done
    by workers at once, where there are some. Raises UserError where no budget keeps the floor.
    """
    if config.train.start.endswith(".safetensors"):
        raise UserError(
            "train.start: a checkpoint has seen the images that judge budgets; htas fastest takes random or base"
        )
    _sources.cache_clear()
    with _opened(workers):
        trials, best = _bisected(config, folder, plan, workers)
        table = _tried_rows(trials)
        if best is None:
            raise UserError(
                f"no budget tried keeps {percent(trials[0].floor)}: {'; '.join(columns(table, words=0)[1:])}; lower "
                "--accuracy-floor, raise --tries, or train longer"
            )
        text = _percent(best.share)
        job = _searched(config, text, folder, workers, trains=True)
        finish = Task(_report, (job.folder.name, command, workers is not None), files=(f"{job.folder.name}/**/*",))
        _alone(workers, "measuring", finish, folder)
    page = job.folder / "report.html"
    missed = missed_sentences(read(job.folder))
    return page, TextTable(table, 0, after=[f"taken: {text} of the base's latency, {best.verdict}", *missed])


def _bisected(
    config: Config, folder: Path, plan: FastestPlan, workers: Tasks | None
) -> tuple[list[BudgetTrial], BudgetTrial | None]:
    """The budgets that were tried, and the smallest that keeps the floor; None where none does."""
    job = _prepared(config, "100%", folder, workers, START)
    base = job.network.base
    say(f"fastest: {plan.seeds * (1 + plan.tries)} trainings on half of the training images at most, and {plan.tries} "
        "searches")  # fmt: skip
    least, most = pipeline.shares_possible(job)
    accuracies = _accuracies(job, base, plan.seeds, folder, None, workers)
    base_accuracy = float(np.mean(accuracies))
    floor = plan.least(base_accuracy)
    say(f"fastest: base network {percent(base_accuracy)} on held-out images, to keep {percent(floor)}")
    classes = job.classes if job.data.task.counts else 0
    images = len(job.data.validation)
    if doubt := guessing("the base network", base_accuracy, classes, images):
        say(f"fastest: doubt: {doubt}")
    if failures := _failures(accuracies, max(accuracies), classes, images):
        raise UserError(
            f"the base network's training failed with {failures}, so there is no accuracy to keep; lower train.lr (it "
            f"is {config.train.lr:g}), or change seed"
        )
    trials: list[BudgetTrial] = []
    low, high = least, min(most, 1.0)
    for _ in range(plan.tries):
        share = (low + high) / 2
        arch = _searched(config, _percent(share), folder, workers).search(config.design.spaces[0]).arch
        trial_accuracies = _accuracies(job, arch, plan.seeds, folder, base, workers)
        trials.append(BudgetTrial(share, trial_accuracies, floor, accuracies if plan.relative else ()))
        say(f"fastest: {percent(share, 1)} of the base's latency: {percent(trials[-1].mean)}, {trials[-1].verdict}")
        if failures := _failures(trial_accuracies, base_accuracy, classes, images):
            say(f"fastest: doubt: a training failed, and counts all the same: {failures}; lower train.lr")
        low, high = (low, share) if trials[-1].met else (share, high)
    write_json(folder / "fastest.json", {"tried": [dataclasses.asdict(each) for each in trials]})
    return trials, min((each for each in trials if each.met), key=lambda each: each.share, default=None)


def _failures(accuracies: Sequence[float], base: float, classes: int, images: int) -> str:
    """The seeds whose trainings failed: `seed 2 (10.00 %)`."""
    numbered = enumerate(accuracies)
    return listing(f"seed {seed} ({percent(each)})" for seed, each in numbered if failed(each, base, classes, images))


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"


def _prepared(config: Config, text: str, folder: Path, workers: Tasks | None, start: str = "") -> Run:
    """The run within a budget of latency, prepared; `start` is another name of its folder."""
    name, config = start or _name(text), _configured(config, text)
    _alone(workers, "preparing", Task(_begun, (name, config), files=RUNS), folder)
    return _run_of(folder, name, config)


def _begun(folder: Path, name: str, config: Config) -> None:
    """Survey and calibrate a run, unless that is done."""
    prepared(_run_of(folder, name, config))


def _report(folder: Path, name: str, command: str, quiet: bool) -> None:
    """What is left of a run."""
    pipeline.run_all(_run_of(folder, name), command, quiet=quiet)


def _searched(config: Config, text: str, folder: Path, workers: Tasks | None, trains: bool = False) -> Run:
    """The run within a budget of latency, its search finished; with `trains` workers train its networks, too."""
    job = _prepared(config, text, folder, workers)
    if workers is None:
        ensure(job, SEARCH)
    elif not (finished(job, SEARCH) and (not trains or finished(job, TRAIN))):
        task = Task(_search, (job.folder.name, trains), files=BASES)
        _done(workers, "fastest", {job.folder.name: task}, folder)
    return job


def _accuracies(
    job: Run, arch: Arch, seeds: int, folder: Path, teacher: Arch | None, workers: Tasks | None
) -> tuple[float, ...]:
    """The accuracy of each seed's training, as of `_judged`."""
    if workers is not None:
        paths = {seed: _held_out(job, arch, seed, folder, taught=teacher is not None) for seed in range(seeds)}
        files = f"{job.folder.name}/*", "held-out/*"
        _done(workers, "fastest", {
            f"{path.stem}-seed-{seed}": Task(_judge, (job.folder.name, arch, seed, teacher), files=files)
            for seed, path in paths.items() if not path.exists()
        }, folder)  # fmt: skip
    return tuple(_judged(job, arch, seed, folder, teacher) for seed in range(seeds))


def _judge(folder: Path, name: str, arch: Arch, seed: int, teacher: Arch | None) -> None:
    """In a process: what `_judged` keeps in a file."""
    with turns.join():
        _judged(_run_of(folder, name), arch, seed, folder, teacher)


def _judged(job: Run, arch: Arch, seed: int, folder: Path, teacher: Arch | None) -> float:
    """Accuracy on the validation half after a training on the other half; kept in a file. Where networks of the run
    start from the base network, this one starts from that of the same seed, which has seen the other half alone too."""
    config, path = job.config, _held_out(job, arch, seed, folder, taught=teacher is not None)
    if path.exists():
        return from_json(read_about(path), HeldOutRecord, path).accuracy
    network, data = job.network, job.data  # made before the seed is set, as they set their own
    inherits, base = teacher is not None and config.train.start == "base", None
    if teacher is not None and (inherits or config.distill.alpha > 0):
        _judged(job, teacher, seed, folder, None)
        base = resize(network, teacher)
        read_weights(_held_out(job, teacher, seed, folder, taught=False), base)
    source = replace(network, module=ordered(base, network.example())) if base is not None and inherits else network
    torch.manual_seed(seed)
    model = resize(source, arch)
    if not inherits:
        job.reset(model)
    learned_from = base if config.distill.alpha > 0 else None
    task, checkpoint = data.task, folder / "checkpoints" / path.name
    seconds = Training(
        model, data.weights, config.train, seed=seed, device=job.device, checkpoint=checkpoint, task=task,
        title=f"train on half of the images, seed {seed}", teacher=learned_from, distill=config.distill,
    ).run()  # fmt: skip
    accuracy = evaluate(model, data.validation, device=job.device, task=task)
    write_tensors(path, state_of(model), to_json(HeldOutRecord(accuracy, seconds)))
    checkpoint.unlink(missing_ok=True)
    return accuracy


def _held_out(job: Run, arch: Arch, seed: int, folder: Path, taught: bool) -> Path:
    """The file of a network that is trained on one half."""
    start = ["base"] if taught and job.config.train.start == "base" else []
    key = digest(job.training(arch, taught=taught), seed, job.config.split.validation, "held out", *start)
    return folder / "held-out" / f"{key}.safetensors"


def _tried_rows(trials: Sequence[BudgetTrial]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("latency, of the base", "held-out accuracy, mean", "to keep", "interval", "floor")]
    for each in trials:
        reach = points(each.reach) if math.isfinite(each.reach) else "one training"
        rows.append((percent(each.share, 1), percent(each.mean), percent(each.floor), reach, each.verdict))
    return rows
