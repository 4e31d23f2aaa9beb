"""AMC (He et al., "AMC: AutoML for model compression and acceleration on mobile devices", ECCV 2018)."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from htas.console.progress import progress, say
from htas.errors import UserError, need_above_zero, need_least
from htas.files import digest, from_json, read_json, to_json, write_json
from htas.graph.arch import Arch
from htas.plugins import needed
from htas.search.inherited import Inherited
from htas.search.oneshot import CALIBRATION, JUDGED, Judge
from htas.search.problem import Problem, SearchOutcome
from htas.strategies import Strategy, need_limits
from htas.strategies._sampled import PASS, best
from htas.strategies._walk import Walk
from htas.text import percent


@dataclass(frozen=True)
class Amc(Strategy):
    """An actor-critic agent (DDPG) walks through the base network and keeps a share of the channels of every site;
    actions are bounded so that the limits can still be kept (the paper's Algorithm 1), and what it earns is the
    accuracy without any training.

    Unlike the paper, an action is a width site and not a layer, and a number of blocks is one, too; the share becomes
    the nearest of the space's choices; the bound is on the calibrated cost, and not on multiply-adds; channels are the
    most important ones by magnitude over all that share them, and norms are estimated again in place of fitting
    weights; the reward, minus the error, comes with the last site alone and without a moving baseline; actor and critic
    learn at the same rate, and the noise is cut off at the bounds.
    """

    seeks_within_limits = True
    episodes: int = 400
    """Number of archs that the agent walks to."""
    explore: int = 100
    """Number of episodes, at the start, that take actions at random and learn nothing."""
    noise: float = 0.5
    """Standard deviation of the noise on actions, which lie in 0..1, at first; it falls to a twentieth."""
    lr: float = 1e-3
    """Learning rate of the actor and the critic (Adam)."""

    def __post_init__(self) -> None:
        need_least(1, self, "strategy", "episodes")
        need_least(0, self, "strategy", "noise")
        need_above_zero(self, "strategy", "lr")
        if not 0 <= self.explore < self.episodes:
            raise UserError(f"strategy.explore must lie below strategy.episodes, {self.episodes}, got {self.explore}")

    @property
    def title(self) -> str:
        """`amc` and the number of its episodes."""
        return f"amc, {self.episodes} episodes"

    def check(self) -> None:
        """Raise UserError where Stable-Baselines3 is not installed."""
        needed("stable_baselines3", "amc", "strategy amc")

    def training_images(self, weights: int) -> float:
        """The passes that judge the archs, each with statistics of its own."""
        return self.episodes * (CALIBRATION + JUDGED) * PASS

    def search(self, problem: Problem) -> SearchOutcome:
        """The most accurate arch of all episodes."""
        need_limits(bool(problem.limits), self)
        self.check()
        from htas.strategies._agent import learn

        torch.manual_seed(problem.seed)
        base, walk = problem.base(), Walk(problem)
        memory = _Memory(problem.checkpoint.with_suffix(".json"), Inherited(problem, base))
        judge = Judge(memory)
        with progress(f"{problem.title}: episodes", self.episodes) as bar:

            def accuracy(arch: Arch) -> float:
                value = judge([arch])[0]
                bar.step(percent(value, 1))
                return value

            if walk.sites:
                learn(
                    walk, accuracy, episodes=self.episodes, explore=self.explore, noise=self.noise, lr=self.lr,
                    seed=problem.seed,
                )  # fmt: skip
            else:
                judge([walk.arch])
        arch = best(problem, judge)
        archs = tuple(sorted(judge.accuracies, key=judge.accuracies.__getitem__, reverse=True))
        why = f"{len(archs)} archs were judged in {self.episodes} episodes"
        say(f"{problem.title}: {why}, the best within the limits at {percent(judge([arch])[0])}")
        accuracies = dict(judge.accuracies)
        return SearchOutcome(
            arch, (), True, why, judge, memory.seconds, worth=lambda one: accuracies.get(one, -1.0), pool=archs,
            judge=Inherited.title,
        )  # fmt: skip


@dataclass(frozen=True)
class _Content:
    """The file of a memory."""

    accuracies: dict[str, float]
    seconds: float


class _Memory:
    """Accuracies of archs, kept in a file: an interrupted search takes its steps again and judges no arch twice."""

    def __init__(self, path: Path, accuracies: Inherited) -> None:
        self.path, self.find = path, accuracies
        content = from_json(read_json(path), _Content, path) if path.exists() else _Content({}, 0.0)
        self.accuracies, self.before, self.started = dict(content.accuracies), content.seconds, time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds of the search, those before an interruption included."""
        return self.before + time.monotonic() - self.started

    def __call__(self, archs: Sequence[Arch]) -> list[float]:
        """Accuracy of each arch, 0 to 1. The agent draws as if nothing else did."""
        for arch in archs:
            if digest(to_json(arch)) not in self.accuracies:
                with torch.random.fork_rng(devices=[]):
                    self.accuracies[digest(to_json(arch))] = self.find([arch])[0]
                write_json(self.path, to_json(_Content(self.accuracies, self.seconds)))
        return [self.accuracies[digest(to_json(arch))] for arch in archs]
