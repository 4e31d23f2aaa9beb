"""What strategies share that train a supernet by its sub-networks first and pick one of them afterwards."""

import random
import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch

from htas.console.progress import progress, say
from htas.console.record import scalars
from htas.files import read_tensors, write_tensors
from htas.graph.arch import Arch
from htas.search.moves import USED, changed, over
from htas.search.oneshot import (
    CALIBRATION,
    JUDGED,
    Judge,
    accuracies,
    check_sane,
    kept,
    learner,
    opened,
    restored,
    sampled_step,
)
from htas.search.problem import Problem, SearchOutcome
from htas.search.record import EpochRecord
from htas.search.supernet import Draw, Supernet
from htas.strategies import SupernetStrategy, need_limits
from htas.text import percent, significant
from htas.training.train import batches, cosine, engine, epoch_seed, load_optimizer, optimizer_tensors, set_rate

STEP, PASS = 1.3, 0.5
"""A weight step of an arch at random at e = 2, and a forward pass, in plain training steps of the base network."""
LEANING = 3.0
"""Archs that the weights learn from lean this much to wide or to narrow, at most."""
TRIALS = 20
"""Draws for each arch that is to be judged, at most: of a small space many are known already."""
AROUND = 0.1
"""Archs are looked for up to this share above the limits, in case predictions are too high."""


@dataclass(frozen=True)
class OneShotStrategy(SupernetStrategy):
    """One-shot: the weights of the supernet learn from archs drawn at random; then archs are judged by them."""

    sampling: Literal["uniform", "sandwich"] = "sandwich"
    """Archs of a step: one at random (uniform), or the widest, two at random and the narrowest, of which the others
    learn from the widest (sandwich; Yu and Huang 2019)."""

    @property
    def supernet_key(self) -> dict[str, Any]:
        """Every option of this class; those of a subclass decide which archs are judged, and how many."""
        return {each.name: getattr(self, each.name) for each in fields(OneShotStrategy) if each.name != "keep"}

    @property
    def title(self) -> str:
        """Its file's name, and how the weights learn."""
        return f"{self.name}, {self.sampling} sampling"

    def training_images(self, weights: int) -> float:
        """Steps of archs at e = 2, and as many passes as archs are judged."""
        step = STEP * (4 if self.sampling == "sandwich" else 1)
        return self.epochs * weights * step + self.judged * (CALIBRATION + JUDGED) * PASS

    @property
    @abstractmethod
    def judged(self) -> int:
        """How many archs are judged, about."""

    @abstractmethod
    def pick(self, problem: Problem, judge: Judge) -> None:
        """Ask the judge for archs; the most accurate one within the limits of those that it knows then is taken."""

    def search(self, problem: Problem) -> SearchOutcome:
        """The supernet is trained, archs are judged, and the most accurate one within the limits is taken."""
        need_limits(problem, self)
        run = _Training(self, problem)
        run.restore()
        with progress(problem.title, self.epochs * run.steps, done=len(run.epochs) * run.steps) as bar:
            for epoch in range(len(run.epochs), self.epochs):
                record = run.epoch(epoch, bar.step)
                scalars(problem.title, record.epoch, record.scalars)
                run.keep(problem.checkpoint)
                bar.step(f"epoch {epoch + 1} of {self.epochs}: loss {significant(record.train_loss)}", by=0)
        if problem.trained is not None and not problem.trained.exists():
            run.keep(problem.trained)
        if self.keep:
            write_tensors(problem.supernet, run.supernet.state_dict(), {"space": problem.space.name})
        started = time.monotonic()
        judge = Judge(lambda archs: accuracies(problem, run.supernet, run.runner, archs))
        self.pick(problem, judge)
        arch = best(problem, judge)
        seconds = sum(record.seconds for record in run.epochs) + time.monotonic() - started
        accuracy = percent(judge([arch])[0])
        say(f"{problem.title}: {len(judge.known)} archs judged, the best within the limits at {accuracy}")
        why = f"{len(judge.known)} archs were judged by a supernet trained for {self.epochs} epochs"
        known = dict(judge.known)
        return SearchOutcome(
            arch, tuple(run.epochs), True, why, judge, seconds, worth=lambda one: known.get(one, -1.0),
            pool=tuple(sorted(known, key=known.__getitem__, reverse=True)),
        )  # fmt: skip


def best(problem: Problem, judge: Judge) -> Arch:
    """The most accurate arch within the limits of those judged; of the others the one least over where none is."""
    within = [arch for arch in judge.known if over(problem.limits, arch) <= 1]
    if within:
        return max(within, key=judge.known.__getitem__)
    return min(judge.known, key=lambda arch: over(problem.limits, arch))


def trimmed(problem: Problem, arch: Arch) -> Arch:
    """The arch with the least widths in the blocks that it cuts: of those that are one network, always the same."""
    used = {use.site for use in problem.network.uses(arch)}
    choices = problem.space.widths
    return Arch({site: width if site in used else choices[site][0] for site, width in arch.widths.items()}, arch.depths)


def near_limits(problem: Problem, rng: random.Random, most: float = 1.0) -> Arch:
    """An arch at random that uses `most` of the limits or a little less: drawn, then narrowed or widened by single
    choices of sites at random."""
    space, limits = problem.space, problem.limits
    arch = space.sample(rng, rng.uniform(-LEANING, LEANING))
    for _ in range(10 * sum(map(len, space.choices.values()))):
        ratio = over(limits, arch)
        if USED * most <= ratio <= most:
            break
        other = step(problem, rng, arch, 1 if ratio < most else -1)
        if other is None or (ratio < most < over(limits, other)):
            break
        arch = other
    return arch


def step(problem: Problem, rng: random.Random, arch: Arch, by: int) -> Arch | None:
    """The arch with the next choice up or down at a site at random; None where there is none."""
    sites = []
    for site, choices in problem.space.choices.items():
        index = choices.index(arch[site]) + by
        if 0 <= index < len(choices):
            sites.append((site, choices[index]))
    return changed(arch, *rng.choice(sites)) if sites else None


class _Training:
    """The supernet as it is trained: its weights, their optimizer, and the epochs so far."""

    def __init__(self, options: OneShotStrategy, problem: Problem) -> None:
        self.options, self.problem = options, problem
        self.runner = engine(problem.device, options.precision)
        self.supernet: Supernet = opened(problem, options, self.runner.device)
        self.sgd = learner(self.supernet, options)
        self.steps = max(1, len(problem.data.weights) // options.batch)
        self.base = problem.cost.cost(problem.network.base)
        self.epochs: list[EpochRecord] = []

    def epoch(self, epoch: int, on_step: Callable[[], None]) -> EpochRecord:
        """One pass over the weights' half."""
        started = time.monotonic()
        options = self.options
        seed = epoch_seed(self.problem.seed, epoch)
        torch.manual_seed(seed)
        rng = random.Random(seed)
        self.supernet.train()
        total = torch.zeros((), device=self.runner.device)
        count, cost = 0, 0.0
        for step, (images, labels) in enumerate(batches(self.problem.data.weights, options.batch, seed)):
            set_rate(self.sgd, cosine(options.lr, 0.0, (epoch + step / self.steps) / options.epochs))
            archs = self._drawn(rng)
            draws = [Draw.of(arch, self.problem.network) for arch in archs]
            total += sampled_step(self.supernet, self.sgd, self.runner, images, labels, draws, self.problem.data.task)
            cost += sum(self.problem.cost.cost(arch) for arch in archs) / len(archs) / self.base
            count += 1
            on_step()
        loss = float(total) / count
        check_sane(self.problem, options, loss, epoch, self.sgd.param_groups[0]["lr"])
        record = EpochRecord(epoch + 1, None, loss, None, None, cost / count, None, None, time.monotonic() - started)
        self.epochs.append(record)
        return record

    def _drawn(self, rng: random.Random) -> Sequence[Arch]:
        space = self.problem.space
        if self.options.sampling == "uniform":
            return [space.sample(rng, rng.uniform(-LEANING, LEANING))]
        others = [space.sample(rng, rng.uniform(-LEANING, LEANING)) for _ in range(2)]
        return [space.widest, *others, space.narrowest]

    def keep(self, path: Path) -> None:
        """Write everything that the next epoch needs."""
        tensors = {**kept(self.supernet), **optimizer_tensors(self.sgd, "sgd")}
        write_tensors(path, tensors, {"epochs": [vars(record) for record in self.epochs]})

    def restore(self) -> None:
        """Go on from the checkpoint, if there is one, or from what another search has trained."""
        known = (self.problem.checkpoint, self.problem.trained)
        path = next((path for path in known if path is not None and path.exists()), None)
        if path is None:
            return
        tensors, about = read_tensors(path)
        restored(self.supernet, tensors)
        load_optimizer(self.sgd, tensors, "sgd")
        self.epochs = [EpochRecord(**record) for record in about["epochs"]]
        if path != self.problem.checkpoint:
            say(f"{self.problem.title}: the supernet is that of another search, {path.name}")
