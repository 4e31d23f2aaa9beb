"""Several budgets from one survey: a front of networks, and the fastest network at a given accuracy.

Each budget is a run of its own in a folder of its own, begun with the survey, the design, the calibration and the
trained base network of whichever was there before; so everything that a run can do, continuing above all, a sweep can.
"""

import dataclasses
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from htas import budget, intervals, pipeline
from htas.arch import Arch
from htas.budget import Constraints
from htas.config import Config
from htas.files import Unusable, digest, read_json, read_tensors, write_json, write_tensors
from htas.graph import resize
from htas.pipeline import Run
from htas.progress import say
from htas.report import write
from htas.result import Report, Result, SearchRecord
from htas.strategies.differentiable import Differentiable
from htas.text import Shown, columns, milliseconds, percent, points, shown
from htas.train import evaluate
from htas.train import train as fit

FRONT = "No other network of this sweep is both faster and more accurate."


SUPERNETS = "supernets"
"""Folder of those that several searches share: of strategies that judge archs by a supernet which is trained before."""
SHARED = 0.5
"""Share of the epochs that a search needs which begins with the supernet of another budget's."""


def sweep(
    config: Config, folder: Path, budgets: Sequence[str], command: str, share: bool = False
) -> tuple[Path, Shown]:
    """A run for every budget of latency, then all their networks in one interleaved run: the path of report.html, and
    the front. With `share`, every search but the first begins with the first one's supernet, in half
    the epochs; on digits no harm was found (docs/decisions.md).

    Raises ValueError for a budget that is none or that cannot be kept, before anything is trained.
    """
    for text in budgets:
        budget.parse("latency", text, 1.0)
    if len(set(budgets)) < len(budgets) or not budgets:
        raise ValueError(f"--budgets must name different budgets with commas between, got {','.join(budgets)!r}")
    places = {text: folder / f"latency-{pipeline.slug(text)}" for text in budgets}
    configs = [_with(config, text) for text in budgets]
    if share and isinstance(config.strategy, Differentiable):
        configs = _shared(configs, places[budgets[0]])
    elif share:
        name = config.names["strategy"]
        say(f"sweep: --share is for the strategy differentiable; what {name} can share between budgets, it does anyway")
    own_folder(folder)
    runs = {text: prepared(own, places[text]) for text, own in zip(budgets, configs, strict=True)}
    for job in runs.values():
        pipeline.check_limits(job)
    for job in runs.values():
        share_files(job)
        pipeline.run(job.config, job.folder, command, folder / SUPERNETS)
    rows = _measured(runs, folder)
    _write(config, runs, rows, folder, command)
    return folder / "report.html", _table(rows, budgets)


def own_folder(folder: Path) -> None:
    """Raise Unusable where the folder is a run's own."""
    if (folder / "config.toml").exists():
        raise Unusable(f"{folder} holds a run; name another folder for several runs with --out")


def _with(config: Config, text: str) -> Config:
    """The configuration of a run within that budget, in the first space alone; what only `fastest` asks is left out."""
    usual = Constraints()
    asked = replace(config.constraints, latency=text, accuracy_floor="", seeds=usual.seeds, tries=usual.tries)
    name = config.design.spaces[0]
    widths = config.design.widths if name == "explicit" else {}
    return replace(config, constraints=asked, design=replace(config.design, spaces=(name,), widths=widths))


def _shared(configs: Sequence[Config], first: Path) -> list[Config]:
    """The first search keeps its supernet, and the others begin with it, and need fewer epochs."""
    found = []
    for number, config in enumerate(configs):
        own = config.strategy
        assert isinstance(own, Differentiable)
        kept = str(first / f"supernet-{config.design.spaces[0]}.safetensors")
        fewer = max(own.warmup + 1, math.ceil(SHARED * own.epochs))
        changed = replace(own, start=kept, epochs=fewer) if number else replace(own, keep=True)
        found.append(replace(config, strategy=changed))
    return found


def prepared(config: Config, place: Path) -> Run:
    """A run up to its calibration, begun with what others beside it have found out."""
    pipeline.open_run(config, place)
    share_files(Run(config, place))
    for stage in (pipeline.survey, pipeline.design, pipeline.calibrate):
        stage(config, place)
    return Run(config, place)


def share_files(job: Run) -> None:
    """Begin a run with what another one beside it has found out, and this one would find too."""
    place = job.folder
    others = sorted(path for path in place.parent.glob("*/") if path != place)
    key = job.training(job.network.base, taught=False)
    weights = Path("networks") / "base.safetensors"
    _copied(place / weights, [other / weights for other in others], partial(_trained, key))
    for stage in ("survey", "design", "calibrate"):
        (own,) = job.files(stage)
        _copied(own, [other / own.name for other in others], partial(_made, job.made_from(stage)))
        if not own.exists():
            return
    for own in job.files("search"):
        _copied(own, [other / own.name for other in others], partial(_made, job.made_from("search")))


def _copied(own: Path, others: Sequence[Path], fits: Callable[[Path], bool]) -> None:
    """The file of the first other run that fits, unless this one's own does."""
    source = next((path for path in others if fits(path)), None)
    if source is not None and not fits(own):
        own.parent.mkdir(parents=True, exist_ok=True)
        part = own.with_name(f".{own.name}.part")
        shutil.copyfile(source, part)
        part.replace(own)


def _made(key: str, path: Path) -> bool:
    return path.exists() and read_json(path).get("inputs") == key


def _trained(key: str, path: Path) -> bool:
    return path.exists() and read_tensors(path)[1].get("inputs") == key


def _measured(runs: Mapping[str, Run], folder: Path) -> list[Result]:
    """The base network and what was found for each budget, measured together -> sweep.json."""
    first = next(iter(runs.values()))
    name = first.config.design.spaces[0]
    found: list[Result] = []
    models = []
    for text, job in runs.items():
        named = {row.name: row for row in map(Result.of, read_json(job.folder / "measure.json")["results"])}
        for wanted in ["base", name] if not found else [name]:
            found.append(replace(named[wanted], name=wanted if wanted == "base" else text))
            models.append(pipeline.load_network(job, named[wanted]))
    path = folder / "sweep.json"
    key = digest(first.place, *[_basis(row) for row in found])
    if not (path.exists() and read_json(path).get("inputs") == key):
        started = time.monotonic()
        readings = pipeline.measure_rows(first, found, models, "measuring the networks of all budgets, %")
        rows = [replace(row, measured=reading) for row, reading in zip(found, readings, strict=True)]
        content = {"results": [row.json() for row in _fronted(rows)], "inputs": key, "took": time.monotonic() - started}
        write_json(path, content)
    return [Result.of(content) for content in read_json(path)["results"]]


def _basis(row: Result) -> list[Any]:
    """What a sweep's own measurement of a network depends on."""
    return [row.name, row.arch.json(), row.accuracy]


def _fronted(rows: Sequence[Result]) -> list[Result]:
    """Those that no other beats say so."""
    kept = budget.front([(row.measured.estimate if row.measured else math.inf, row.accuracy or 0.0) for row in rows])
    return [replace(row, remarks=(*row.remarks, FRONT)) if number in kept else row for number, row in enumerate(rows)]


def _write(config: Config, runs: Mapping[str, Run], rows: Sequence[Result], folder: Path, command: str) -> None:
    name = config.design.spaces[0]
    searches = [SearchRecord.of(pipeline.plain(read_json(job.search_file(name)))) for job in runs.values()]
    place = next(iter(runs.values())).folder
    made = Report(
        title=f"{config.family.title} on {config.names['data']}, {config.target.device}, {config.target.runtime}: "
        f"{len(runs)} budgets",
        command=command,
        results=tuple(rows),
        curves=(),
        searches=tuple(replace(search, space=text) for search, text in zip(searches, runs, strict=True)),
        machine=read_json(place / "environment.json"),
        config=config.toml(),
        dataset=config.names["data"],
        stages={"measure": read_json(folder / "sweep.json")["took"]},
        test_images=read_json(place / "networks.json")["test_images"],
    )
    write(made, folder)


def _table(rows: Sequence[Result], budgets: Sequence[str]) -> Shown:
    """One line for each network, the front marked."""
    base = rows[0].measured
    lines: list[tuple[str, ...]] = [("budget", "accuracy", "latency", "of the base", "predicted", "front")]
    for row in rows:
        assert row.measured is not None and base is not None
        lines.append(
            (
                row.name,
                percent(row.accuracy or 0.0),
                milliseconds(row.measured.estimate),
                percent(row.measured.estimate / base.estimate, 1),
                milliseconds(row.predicted or 0.0),
                "*" if FRONT in row.remarks else "",
            )
        )
    return shown(lines, 1)


# -- the fastest at an accuracy ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tried:
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
        samples = [values for values in (self.accuracies, self.base) if values]
        return intervals.reach(samples)

    @property
    def verdict(self) -> str:
        """`clearly met`, `met`, `not met`."""
        if not self.met:
            return "not met"
        return "clearly met" if self.mean - self.reach >= self.floor else "met"


def fastest(config: Config, folder: Path, command: str) -> tuple[Path, Shown]:
    """The smallest budget whose networks keep the accuracy floor, by bisection, then a whole run at that budget: the
    path of its report.html, and what was tried as lines of text.

    The floor is judged on images held out of training: every network is trained `seeds` times on one part of the
    training images and judged on the other, its teacher likewise. The search has seen these images too, to choose
    widths by; the test images nobody has.
    """
    asked = config.constraints
    if not asked.accuracy_floor:
        raise ValueError('htas fastest needs an accuracy to keep: --constraints.accuracy_floor="-0.3", in points below '
                         'the base network, or "93.5%"')  # fmt: skip
    if asked.latency:
        raise ValueError("htas fastest finds the budget itself, so leave constraints.latency out")
    own_folder(folder)
    job = prepared(_with(config, "100%"), folder / "start")
    base = job.network.base
    trainings = asked.seeds * (1 + asked.tries)
    say(f"fastest: {trainings} trainings on half of the training images at most, and {asked.tries} searches")
    least, most = pipeline.shares_possible(job)
    accuracies = tuple(_judged(job, base, seed, folder, None) for seed in range(asked.seeds))
    floor, below = budget.floor(asked.accuracy_floor, float(np.mean(accuracies))), "-" in asked.accuracy_floor
    say(f"fastest: base network {percent(float(np.mean(accuracies)))} on held-out images, to keep {percent(floor)}")
    tried: list[Tried] = []
    low, high = least, min(most, 1.0)
    for _ in range(asked.tries):
        share = (low + high) / 2
        arch = _searched(config, folder, share)
        found = tuple(_judged(job, arch, seed, folder, base) for seed in range(asked.seeds))
        tried.append(Tried(share, found, floor, accuracies if below else ()))
        say(f"fastest: {percent(share, 1)} of the base's latency: {percent(tried[-1].mean)}, {tried[-1].verdict}")
        low, high = (low, share) if tried[-1].met else (share, high)
    write_json(folder / "fastest.json", {"tried": [dataclasses.asdict(each) for each in tried]})
    kept = [each for each in tried if each.met]
    table = _tried_rows(tried)
    if not kept:
        raise Unusable(
            f"no budget tried keeps {percent(floor)}: {'; '.join(columns(table, words=0)[1:])}; lower "
            "constraints.accuracy_floor, raise constraints.tries, or train longer"
        )
    best = min(kept, key=lambda each: each.share)
    text = _percent(best.share)
    place = folder / f"latency-{pipeline.slug(text)}"
    pipeline.run(_with(config, text), place, command, folder / SUPERNETS)
    return place / "report.html", shown(table, 0, after=[f"taken: {text} of the base's latency, {best.verdict}"])


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"


def _searched(config: Config, folder: Path, share: float) -> Arch:
    """The arch found for a budget, in a folder of its own."""
    job = prepared(_with(config, _percent(share)), folder / f"latency-{pipeline.slug(_percent(share))}")
    pipeline.search(job.config, job.folder, supernets=folder / SUPERNETS)
    return SearchRecord.of(pipeline.plain(read_json(job.search_file(config.design.spaces[0])))).arch


def _judged(job: Run, arch: Arch, seed: int, folder: Path, teacher: Arch | None) -> float:
    """Accuracy on the validation half after a training on the other half; kept in a file."""
    config = job.config
    key = digest(job.training(arch, taught=teacher is not None), seed, config.parts.validation, "held out")
    path = folder / "held-out" / f"{key}.safetensors"
    if path.exists():
        return float(read_tensors(path)[1]["accuracy"])
    torch.manual_seed(seed)
    model = resize(job.network, arch)
    job.reset(model)
    learned_from = None
    if teacher is not None and config.distill.alpha > 0:
        _judged(job, teacher, seed, folder, None)
        basis = digest(job.training(teacher, taught=False), seed, config.parts.validation, "held out")
        learned_from = resize(job.network, teacher)
        learned_from.load_state_dict(read_tensors(folder / "held-out" / f"{basis}.safetensors")[0])
    seconds = fit(
        model, job.data.weights, config.train, seed=seed, device=job.device,
        checkpoint=folder / "checkpoints" / f"{key}.safetensors", title=f"train on half of the images, seed {seed}",
        teacher=learned_from, distill=config.distill if learned_from is not None else None, task=job.data.task,
    )  # fmt: skip
    accuracy = evaluate(
        model, job.data.validation, device=job.device, precision=config.train.precision, task=job.data.task
    )
    write_tensors(path, model.state_dict(), {"accuracy": accuracy, "seconds": seconds})
    (folder / "checkpoints" / f"{key}.safetensors").unlink(missing_ok=True)
    return accuracy


def _tried_rows(tried: Sequence[Tried]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("latency, of the base", "held-out accuracy, mean", "to keep", "interval", "floor")]
    for each in tried:
        reach = points(each.reach) if math.isfinite(each.reach) else "one training"
        rows.append((percent(each.share, 1), percent(each.mean), percent(each.floor), reach, each.verdict))
    return rows
