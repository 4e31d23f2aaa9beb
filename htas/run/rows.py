"""The networks of a run: the base, the searched ones, and the controls; trained, loaded, measured."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

import torch
from torch import nn

from htas.console.progress import progress, say, shares
from htas.cost.constraints import parse
from htas.data.split import Data
from htas.data.task import Task
from htas.errors import UserError
from htas.files import (
    BUFFERS,
    __version__,
    checking,
    digest,
    from_json,
    load_state,
    need_not_below,
    need_some,
    read_about,
    read_record,
    read_tensors,
    read_weights,
    state_of,
    to_json,
    write_tensors,
    wrong,
)
from htas.graph import Arch, ordered, resize
from htas.metrics import Metric
from htas.metrics.latency import Latency, rounds
from htas.metrics.macs import Macs
from htas.metrics.params import Params
from htas.report.result import LONGEST_NAME, Result
from htas.report.summary import failed
from htas.run import keys
from htas.run.controls import Control, candidates, of_one_stage
from htas.run.decline import block_scores, decline
from htas.run.limits import LATENCY, broken
from htas.run.run import Run
from htas.run.stage import stored
from htas.search.record import SearchRecord
from htas.text import milliseconds, percent
from htas.timing.measurement import Measurement
from htas.timing.target import Target, machine
from htas.training import ranks
from htas.training.train import Training, evaluate, users_score

SURE = 3.0
"""Standard errors above chance from which on a classifier does not guess."""
GUESSING = "accuracy cannot be told from guessing"
KINDS = {"uniform": "network with all widths narrowed alike", "plain": "shallower member of the family"}
"""Kinds of controls of which all are measured, in words."""


@dataclass(frozen=True)
class NetworksRecord:
    """networks.json: the networks of a run, trained; measure.json: the same networks with their readings."""

    results: tuple[Result, ...]
    test_images: int = 0
    """Images of whose right answers accuracies are shares; 0 where unknown, and where they are other scores."""

    def __post_init__(self) -> None:
        need_some(self, "results")
        need_not_below(0, self, "test_images")
        names = [row.name for row in self.results]
        if len(set(names)) < len(names):
            raise ValueError(f"must have each of its results once, got {shortened(names)}")


@dataclass(frozen=True)
class ControlsRecord:
    """controls.json: the controls that were picked, once."""

    controls: tuple[Control, ...]
    note: str
    """How they were picked, as a remark of their rows."""
    slower: tuple[str, ...] = ()
    """Kinds of which every network was slower, in words, as remarks of the searched network."""

    def __post_init__(self) -> None:
        for control in self.controls:
            if not control.name.startswith(f"{control.kind} ") or len(control.name) > LONGEST_NAME:
                raise ValueError(
                    f"must have controls that are called by their kind, got {shortened(control.name)} of "
                    f"{shortened(control.kind)}"
                )


def read_networks(run: Run, name: str) -> NetworksRecord:
    """networks.json or measure.json, by its name; raises UserError where a network is not one of this run, or its
    counts or its accuracy are others than those of its arch and of its weights."""
    path = run.folder / name
    record = read_record(path, NetworksRecord)
    lacking = {"base", *run.config.design.spaces} - {row.name for row in record.results}
    if lacking:
        raise wrong(path, f"results lacks the network {min(lacking)}")
    for row in record.results:
        check_row(run, row, path, judged=name == "networks.json")
    return record


def check_row(run: Run, row: Result, path: Path, *, judged: bool = True) -> None:
    """Raise UserError where a row of a file has an arch that is not of this run's network, or other counts than that;
    if it is `judged`, also where its accuracy is another than its weights have."""
    with checking(path):
        run.network.check(row.arch)
    for figure in ("macs", "params"):
        if (count := getattr(run.network, figure)(row.arch)) != getattr(row, figure):
            raise wrong(
                path, f"{figure} of {shortened(row.name)} must be {count} by its arch, got {getattr(row, figure)}"
            )
    weights = run.model_file(row.name)
    if judged and weights.exists() and (accuracy := read_header(weights).accuracy) != row.accuracy:
        raise wrong(path, f"accuracy of {shortened(row.name)} must be {accuracy} as in {weights}, got {row.accuracy}")


def weights_complete(run: Run) -> bool:
    """Whether every network of networks.json has its weights, which have its accuracy."""
    rows = read_record(run.folder / "networks.json", NetworksRecord).results
    files = [run.model_file(row.name) for row in rows]
    return all(
        path.exists() and read_header(path).accuracy == row.accuracy for path, row in zip(files, rows, strict=True)
    )


# -- rows --------------------------------------------------------------------------------------------------------------


def untrained_rows(run: Run) -> list[Result]:
    """The networks of a run, untrained: base, one per space, and the controls; the order of the report."""
    first, *others = [searched_row(run, run.search(name)) for name in run.config.design.spaces]
    controls = _controls(run, first)
    rows = [
        new_row(
            run, each.name, each.arch, space="-", strategy=each.kind, cost="-", remarks=(controls.note,),
            breaks=broken(run, each.arch),
        )
        for each in controls.controls
    ]  # fmt: skip
    return [base_row(run), replace(first, remarks=(*first.remarks, *controls.slower)), *others, *rows]


def base_row(run: Run) -> Result:
    return new_row(run, "base", run.network.base, space="-", strategy="given", cost="-")


def searched_row(run: Run, record: SearchRecord) -> Result:
    """The network of a search, untrained."""
    remarks = () if record.converged else (f"The search had not converged: {record.why}.",)
    return new_row(
        run, record.space, record.arch, space=record.space, strategy=record.strategy, cost=record.cost, remarks=remarks,
        breaks=tuple(filter(None, (each.breach for each in record.limits))),
    )  # fmt: skip


def new_row(run: Run, name: str, arch: Arch, **fields: Any) -> Result:
    """A network of the run, untrained."""
    config = run.config
    return Result(
        name=name,
        family=config.family.title,
        arch=arch,
        adds=config.design.adds,
        target={**dataclasses.asdict(run.target), "shapes": list(map(list, run.target.shapes))},
        macs=run.network.macs(arch),
        params=run.network.params(arch),
        recipe={"name": config.names["train"], **config.values("train")},
        seed=config.seed,
        versions={"htas": __version__, **machine()},
        **fields,
    )


def predicted(run: Run, row: Result) -> Result:
    """The row with its latency by cost.json, and a remark where that lies outside the measured widths."""
    return replace(row, predicted=run.calibrated.cost(row.arch), outside=run.calibrated.remark(row.arch))


def _controls(run: Run, searched: Result) -> ControlsRecord:
    """The widest uniform multiplier, the deepest plain member, and the richest network with one stage narrowed that are
    no slower than the searched network, and keep the limits and bounds of the run, where any of their kind does.

    They are picked once, by separate readings, and stored in controls.json; the report measures all rows again.
    """
    key = digest(keys.search(run), to_json(searched.arch))
    return stored(run.folder / "controls.json", key, ControlsRecord, lambda: _pick_controls(run, searched))


def _pick_controls(run: Run, searched: Result) -> ControlsRecord:
    controls, base = [*candidates(run), *of_one_stage(run, searched.arch)], run.network.base
    archs = [searched.arch, base, *(each.arch for each in controls)]
    metric = _latency(run, [run.calibrated.cost(arch) for arch in archs])
    modules = [resize(run.network, arch) for arch in archs]
    readings = measured(metric, modules, "looking for controls of equal latency, %")
    limit, base_latency, *latencies = [reading.estimate for reading in readings]
    budget = run.config.constraints.by_metric.get(LATENCY)
    most = min(limit, parse(LATENCY, budget, base_latency)) if budget else limit
    no_slower = [(each, latency) for each, latency in zip(controls, latencies, strict=True) if latency <= limit]
    within = [each for each, latency in no_slower if latency <= most and not broken(run, each.arch)]
    last = {each.kind: each for each, _ in no_slower} | {each.kind: each for each in within}
    slower = [kind for kind in dict.fromkeys(each.kind for each in controls) if kind in KINDS and kind not in last]
    for kind in slower:
        say(f"controls: every {kind} network is slower than {searched.name}")
    asks = run.config.constraints.by_metric or run.config.design.bounds
    chosen = ", of those within the limits and bounds where there are any" if asks else ""
    return ControlsRecord(
        controls=tuple(last.values()),
        note=f"The widest, deepest or richest of its kind whose latency was not above that of {searched.name} "
        f"({milliseconds(limit)}) in one interleaved run before training{chosen}.",
        slower=tuple(f"Every {KINDS[kind]} was slower, in one interleaved run before training." for kind in slower),
    )


def train_row(
    run: Run,
    row: Result,
    again: bool = False,
    build: Callable[[], nn.Module] | None = None,
    start: Path | None = None,
) -> tuple[Result, float]:
    """The row with its accuracy, and the seconds of its training; its weights are in networks/.

    Weights that exist already are used. `build` builds a network that is no arch of the base network; `start` is a
    file of the weights that the training begins with, of other ones than `train.start` says.
    """
    path, key = run.model_file(row.name), run.training(row.arch, taught=row.name != "base")
    key = digest(key, row.family) if build else key
    key = digest(key, start) if start else key
    key = ranks.of_first(lambda: key)  # a network in other processes may have begun with other weights
    weights = ranks.of_first(lambda: None if again else trained(path, key))
    checkpoint = run.checkpoint(f"train-{row.name}", key)
    if again or weights is not None:  # of a process that was killed once it had written the weights, too
        ranks.of_first(lambda: checkpoint.unlink(missing_ok=True))
    if weights is not None:
        return _judged(run, replace(row, lost=weights.lost), weights.accuracy, weights.teacher), weights.seconds
    config = run.config
    teacher = None if row.name == "base" or config.distill.alpha == 0 else base_network(run)
    model = _untrained(run, row, build, start)
    task, seconds = run.data.task, 0.0
    before = ranks.of_first(lambda: _scored(run, row, model, start))
    if row.name == "base" and config.family.inherits:
        say(f"train {row.name}: it is trained already")
    elif task.train is not None:
        say(f"train {row.name}: by your own function")
        started = time.monotonic()
        ranks.of_first(lambda: _by_user(task, model, teacher))
        seconds = time.monotonic() - started
    else:
        seconds = Training(
            model, run.data.train, config.train, seed=config.seed, device=run.device, checkpoint=checkpoint, task=task,
            title=f"train {row.name}", teacher=teacher, distill=config.distill,
        ).run()  # fmt: skip
    name = "" if teacher is None else "base"

    def judged() -> tuple[float, str]:
        whose = f"the network {row.name}"
        lost = decline(before, block_scores(model, run.data, run.device, whose), _advice(run)) if before else ""
        if task.judge is not None:
            plain = model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
            accuracy = users_score(task, plain, whose)
        else:
            accuracy = evaluate(model, run.data.test, device=run.device, task=task, whose=whose)
        write_tensors(path, state_of(model), to_json(WeightsRecord(accuracy, key, name, row.name, seconds, lost)))
        checkpoint.unlink(missing_ok=True)
        return accuracy, lost

    accuracy, lost = ranks.of_first(judged)
    judged_row = _judged(run, replace(row, lost=lost), accuracy, name)
    for remark in filter(None, (*judged_row.remarks[0 if row.name == "base" else len(row.remarks) :], lost)):
        say(f"train {row.name}: {remark}")
    return judged_row, seconds


def _scored(run: Run, row: Result, model: nn.Module, start: Path | None) -> list[float]:
    """Scores of a network before its first step, on blocks of training images; none where it has new weights, where it
    is not trained, or where a function of the user's judges it."""
    inherits, options = run.config.family.inherits, run.config.train
    if run.data.task.judge is not None or not (inherits or start or options.start != "random"):
        return []
    return (
        []
        if row.name == "base" and inherits
        else block_scores(model, run.data, run.device, f"the network {row.name} before its training")
    )


def _advice(run: Run) -> str:
    """What to do where a training lost what it began with, or failed."""
    if run.data.task.train is not None:
        return "let train_fn take smaller steps"
    return f"lower train.lr (it is {run.config.train.lr:g})"


def _judged(run: Run, row: Result, accuracy: float, teacher: str) -> Result:
    """The row with its accuracy and its teacher, and a remark where one of them only guesses."""
    remarks = [_guessing(run, row, accuracy)] if _guesses(run, accuracy) else []
    if teacher and _guesses(run, read_header(run.model_file("base")).accuracy):
        remarks.append(f"Its teacher's {GUESSING}, so it learned from noise; train the base network longer.")
    return replace(row, accuracy=accuracy, teacher=teacher, remarks=(*row.remarks, *remarks))


def _guessing(run: Run, row: Result, accuracy: float) -> str:
    """That a network guesses; that its training failed where the base network is clearly better."""
    path = run.model_file("base")
    base = read_header(path).accuracy if row.name != "base" and path.exists() else accuracy
    if not failed(accuracy, base, run.data.classes, len(run.data.test)):
        return f"Its {GUESSING}."
    advice = f"{_advice(run)}, or train longer"
    return f"Its training failed: its {GUESSING}, and the base network's is {percent(base)}; {advice}."


def images_counted(data: Data) -> int:
    """Test images of whose right answers accuracies are shares; 0 where they are other scores."""
    return len(data.test) if data.task.counts else 0


def _guesses(run: Run, accuracy: float) -> bool:
    """Whether a classifier is right about so few images that it may be guessing."""
    if not run.data.task.classifies or not run.data.task.counts or run.data.classes < 2:
        return False
    chance = 1 / run.data.classes
    return bool(accuracy < chance + SURE * (chance * (1 - chance) / len(run.data.test)) ** 0.5)


def _by_user(task: Task, model: nn.Module, teacher: nn.Module | None) -> None:
    assert task.train is not None
    task.train(model.train(), teacher.eval() if teacher is not None else None)


def _untrained(run: Run, row: Result, build: Callable[[], nn.Module] | None, start: Path | None) -> nn.Module:
    """A network with the weights that its training begins with."""
    inherits = run.config.train.start == "base" and not build and not start and row.name != "base"
    source = replace(run.network, module=ordered(base_network(run), run.network.example())) if inherits else run.network
    torch.manual_seed(run.config.seed)
    model = build() if build else resize(source, row.arch)
    resumes = run.config.train.start.endswith(".safetensors") and not build and not start
    if resumes and _resumed(model, Path(run.config.train.start), f"train {row.name}"):
        return model
    if start is not None:
        read_weights(start, model)
    elif not inherits:
        run.reset(model)
    return model


def _resumed(model: nn.Module, path: Path, title: str) -> bool:
    """Whether a checkpoint is of the training of this title, whose weights are then the network's; raises UserError
    where there is no such file, or where its network has other widths."""
    if not path.exists():
        raise UserError(f"train.start: there is no file {path}; name the checkpoint of a training, or random or base")
    tensors, header = read_tensors(path)
    if header.get("title") != title:
        return False
    prefix = Training.prefix
    weights = {name.removeprefix(prefix): each for name, each in tensors.items() if name.startswith(prefix)}
    shapes = {name: each.shape for name, each in weights.items() if not name.startswith(BUFFERS)}
    if shapes != {name: each.shape for name, each in model.state_dict().items()}:
        raise UserError(
            f"train.start: {path} holds a network of other widths than {title.removeprefix('train ')} has here; train "
            "it from random or base"
        )
    load_state(model, weights)
    say(f"{title}: it goes on from {path}")
    return True


@dataclass(frozen=True)
class WeightsRecord:
    """The header of a file of trained weights."""

    accuracy: float
    inputs: str
    """A hash of everything that the training depends on."""
    teacher: str
    """The network it was distilled from; empty for none."""
    name: str
    seconds: float
    lost: str = ""
    """As of a Result."""

    def __post_init__(self) -> None:
        need_not_below(0, self, "seconds")


def trained(path: Path, key: str) -> WeightsRecord | None:
    """The header of trained weights; None where there are none of this key."""
    if not path.exists():
        return None
    record = read_header(path)
    return record if record.inputs == key else None


def read_header(path: Path) -> WeightsRecord:
    """The header of trained weights; raises UserError."""
    return from_json(read_about(path), WeightsRecord, path)


def base_trained(run: Run) -> bool:
    """Whether the base network needs no training: its weights are the user's, or lie in the folder."""
    key = run.training(run.network.base, taught=False)
    return run.config.family.inherits or trained(run.model_file("base"), key) is not None


def base_network(run: Run) -> nn.Module:
    """The trained base network, as `load_network` gives it; trained now if it is not yet."""
    row, _ = train_row(run, base_row(run))
    return load_network(run, row)


def load_network(run: Run, row: Result, build: Callable[[], nn.Module] | None = None) -> nn.Module:
    """A trained network of the run, in eval mode, on the CPU; `build` as of `train_row`."""
    model = build() if build else resize(run.network, row.arch)
    read_weights(run.model_file(row.name), model)
    return model.eval()


def counted(module: nn.Module, target: Target) -> tuple[int, int]:
    """Multiply-adds of one image, and parameters of a network."""
    (macs,), (params,) = Macs(target).measure([module]), Params(target).measure([module])
    return round(macs.median), round(params.median)


def measured(metric: Metric, modules: Sequence[nn.Module], title: str) -> list[Measurement]:
    """Whole networks by a metric, with a bar of this title."""
    with progress(title, 100) as bar:
        return metric.measure(modules, on_round=shares(bar))


def measure_rows(run: Run, rows: Sequence[Result], modules: Sequence[nn.Module], title: str) -> list[Measurement]:
    """Whole networks, whose latency is predicted, on the run's target, in one interleaved run."""
    return measured(_latency(run, [row.predicted or 0.0 for row in rows]), modules, title)


def _latency(run: Run, predicted: Sequence[float]) -> Latency:
    return Latency(run.target, rounds=rounds(predicted), seed=run.config.seed)
