"""The fastest network that keeps an accuracy."""

import dataclasses
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from htas import files
from htas.console.progress import say
from htas.errors import UserError
from htas.experiments import intervals
from htas.experiments.shared import SUPERNETS, _with, own_folder, prepared
from htas.files import digest, read_tensors, write_json, write_tensors
from htas.graph import resize
from htas.graph.arch import Arch
from htas.run import stages as pipeline
from htas.run.config import Config
from htas.run.run import Run, Sources, open_run
from htas.run.stage import ensure
from htas.run.stages import SEARCH
from htas.text import TextTable, columns, percent, points, text_table
from htas.training.train import evaluate
from htas.training.train import train as fit


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
        samples = [values for values in (self.accuracies, self.base) if values]
        return intervals.reach(samples)

    @property
    def verdict(self) -> str:
        """`clearly met`, `met`, `not met`."""
        if not self.met:
            return "not met"
        return "clearly met" if self.mean - self.reach >= self.floor else "met"


def floor(text: str, base: float) -> float:
    """The accuracy to keep, 0 to 1, given the base network's: "-0.3" is in points below it, "93.5%" absolute.

    Raises UserError that says how it is written.
    """
    below, absolute = (re.fullmatch(pattern, text) for pattern in (r"\s*-\s*(\d+\.?\d*)\s*", r"\s*(\d+\.?\d*)\s*%\s*"))
    if below:
        return base - float(below[1]) / 100
    if absolute and 0 < float(absolute[1]) <= 100:
        return float(absolute[1]) / 100
    raise UserError(
        '--accuracy-floor must be in points below the base network\'s accuracy such as "-0.3", or a share '
        f'such as "93.5%", got {text!r}'
    )


def fastest(
    config: Config, folder: Path, command: str, accuracy_floor: str, seeds: int = 3, tries: int = 4
) -> tuple[Path, TextTable]:
    """The smallest budget whose networks keep the accuracy floor, by bisection over `tries` budgets, then a whole run
    at that budget: the path of its report.html, and the budgets tried as lines of text.

    The floor is judged on images held out of training: every network is trained `seeds` times on one part of the
    training images and judged on the other, its teacher likewise. The search has seen these images too, to choose
    widths by; the test images nobody has. Raises UserError where an option is out of range, or no budget keeps the
    floor.
    """
    if not accuracy_floor:
        raise UserError('htas fastest needs an accuracy to keep: --accuracy-floor="-0.3", in points below '
                         'the base network, or "93.5%"')  # fmt: skip
    floor(accuracy_floor, 1.0)
    for name, value in (("seeds", seeds), ("tries", tries)):
        if value < 1:
            raise UserError(f"--{name} must be 1 or more, got {value}")
    if config.constraints.latency:
        raise UserError("htas fastest finds the budget itself, so leave constraints.latency out")
    own_folder(folder)
    sources = Sources()
    job = prepared(Run(_with(config, "100%"), folder / "start", sources=sources))
    base = job.network.base
    trainings = seeds * (1 + tries)
    say(f"fastest: {trainings} trainings on half of the training images at most, and {tries} searches")
    least, most = pipeline.shares_possible(job)
    accuracies = tuple(_judged(job, base, seed, folder, None) for seed in range(seeds))
    least_accuracy, below = floor(accuracy_floor, float(np.mean(accuracies))), "-" in accuracy_floor
    base_accuracy = percent(float(np.mean(accuracies)))
    say(f"fastest: base network {base_accuracy} on held-out images, to keep {percent(least_accuracy)}")
    trials: list[BudgetTrial] = []
    low, high = least, min(most, 1.0)
    for _ in range(tries):
        share = (low + high) / 2
        arch = _searched(config, folder, share, sources)
        trial_accuracies = tuple(_judged(job, arch, seed, folder, base) for seed in range(seeds))
        trials.append(BudgetTrial(share, trial_accuracies, least_accuracy, accuracies if below else ()))
        say(f"fastest: {percent(share, 1)} of the base's latency: {percent(trials[-1].mean)}, {trials[-1].verdict}")
        low, high = (low, share) if trials[-1].met else (share, high)
    write_json(folder / "fastest.json", {"tried": [dataclasses.asdict(each) for each in trials]})
    met = [each for each in trials if each.met]
    table = _tried_rows(trials)
    if not met:
        raise UserError(
            f"no budget tried keeps {percent(least_accuracy)}: {'; '.join(columns(table, words=0)[1:])}; lower "
            "--accuracy-floor, raise --tries, or train longer"
        )
    best = min(met, key=lambda each: each.share)
    text = _percent(best.share)
    place = folder / f"latency-{files.slug(text)}"
    pipeline.run(open_run(_with(config, text), place, supernets=folder / SUPERNETS, sources=sources), command)
    return place / "report.html", text_table(table, 0, after=[f"taken: {text} of the base's latency, {best.verdict}"])


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"


def _searched(config: Config, folder: Path, share: float, sources: Sources) -> Arch:
    """The arch found for a budget, in a folder of its own."""
    place = folder / f"latency-{files.slug(_percent(share))}"
    job = prepared(Run(_with(config, _percent(share)), place, folder / SUPERNETS, sources))
    ensure(job, SEARCH)
    return job.search(config.design.spaces[0]).arch


def _judged(job: Run, arch: Arch, seed: int, folder: Path, teacher: Arch | None) -> float:
    """Accuracy on the validation half after a training on the other half; kept in a file."""
    config = job.config
    key = digest(job.training(arch, taught=teacher is not None), seed, config.split.validation, "held out")
    path = folder / "held-out" / f"{key}.safetensors"
    if path.exists():
        return float(read_tensors(path)[1]["accuracy"])
    torch.manual_seed(seed)
    model = resize(job.network, arch)
    job.reset(model)
    learned_from = None
    if teacher is not None and config.distill.alpha > 0:
        _judged(job, teacher, seed, folder, None)
        basis = digest(job.training(teacher, taught=False), seed, config.split.validation, "held out")
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


def _tried_rows(trials: Sequence[BudgetTrial]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("latency, of the base", "held-out accuracy, mean", "to keep", "interval", "floor")]
    for each in trials:
        reach = points(each.reach) if math.isfinite(each.reach) else "one training"
        rows.append((percent(each.share, 1), percent(each.mean), percent(each.floor), reach, each.verdict))
    return rows
