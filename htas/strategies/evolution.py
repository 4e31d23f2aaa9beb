"""Evolution over the sub-networks of a trained supernet (Guo et al. 2020; Cai et al. 2020), by Optuna's NSGA-II."""

import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from htas.errors import UserError, need_least, need_most
from htas.files import digest, to_json
from htas.graph.arch import Arch
from htas.search.moves import over
from htas.search.oneshot import Judge
from htas.search.problem import Problem
from htas.strategies._judges import judges
from htas.strategies._sampled import AROUND, TRIALS, Accuracies, ArchsStrategy, near_limits, trimmed


@dataclass(frozen=True)
class Evolution(ArchsStrategy):
    """Two objectives: accuracy, and cost over the limits. Archs further over the limits than predictions may err are
    not bred from."""

    population: int = 50
    """Number of archs of a generation."""
    mutation: float | None = None
    """Probability that a site's choice is redrawn; by default one site of an arch on average."""
    crossover: float = 0.9
    """Probability that an arch has two parents."""
    workers: int = field(default=1, metadata={"key": False})
    """Number of processes on this machine that judge the archs of a generation at the same time, each with its share of
    the threads and the supernet in its memory."""

    def __post_init__(self) -> None:
        super().__post_init__()
        need_least(2, self, "strategy", "population")
        need_least(1, self, "strategy", "workers")
        need_most(256, self, "strategy", "workers")
        for name in ("mutation", "crossover"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise UserError(f"strategy.{name} must lie in 0..1, got {value}")

    @property
    def processes(self) -> int:
        """The option `workers`."""
        return self.workers

    def pick(self, problem: Problem, judge: Judge) -> None:
        """Generations until `strategy.archs` archs are judged, the first generation near the limits.

        What was judged before an interruption is in a journal, and is bred again without being judged.
        """
        from htas.strategies._journal import Journal

        breeding = _Breeding(problem, self)
        journal = Journal(problem.journal, _study_name(problem), breeding.sizes)
        results = {breeding.arch(params): accuracy for params, accuracy in journal.trials()}
        judge.seconds += journal.seconds
        several = judges(problem, self, self.workers) if self.workers > 1 else nullcontext(_one_by_one(judge))
        with several as accuracies:
            while children := breeding.children(judge.accuracies):
                new = {child.arch: child for child in children if child.near and child.arch not in judge.accuracies}
                for arch, accuracy in accuracies([arch for arch in new if arch not in results]):
                    journal.add(new[arch].params, accuracy, new[arch].ratio)
                    if accuracy is not None:
                        results[arch] = accuracy
                judge.accuracies |= {arch: results[arch] for arch in new if arch in results}
                breeding.tell(children, judge.accuracies)


@dataclass(frozen=True)
class _Child:
    trial: Any
    params: Mapping[str, int]
    """The number of its choice at each site that has several."""
    arch: Arch
    ratio: float
    """Cost over the limits."""

    @property
    def near(self) -> bool:
        """Whether it is near enough to the limits to be judged."""
        return self.ratio <= 1 + AROUND


class _Breeding:
    """The study that NSGA-II breeds from: a generation follows from those before it alone, so the archs of one may be
    judged in any order."""

    def __init__(self, problem: Problem, options: Evolution) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.problem, self.archs = problem, options.archs
        choices = {site: each for site, each in problem.space.choices.items() if len(each) > 1}
        self.sizes = {site: len(each) for site, each in choices.items()}
        self.size = min(options.population, options.archs)
        sampler = optuna.samplers.NSGAIISampler(
            population_size=self.size, mutation_prob=options.mutation, crossover_prob=options.crossover,
            seed=problem.seed,
        )  # fmt: skip
        self.study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
        rng = random.Random(problem.seed)
        for _ in range(self.size):
            arch = near_limits(problem, rng, rng.uniform(1 - AROUND, 1.0))
            self.study.enqueue_trial({site: each.index(arch[site]) for site, each in choices.items()})
        self.lacking, self.count = self.size, 0
        """Trials that the generation lacks, and trials so far."""

    def arch(self, params: Mapping[str, int]) -> Arch:
        """The arch with these choices, by number."""
        choices = self.problem.space.choices
        return trimmed(
            self.problem, self.problem.space.arch({s: each[params.get(s, 0)] for s, each in choices.items()})
        )

    def children(self, judged: Collection[Arch]) -> list[_Child]:
        """The rest of a generation, or fewer where with them enough archs are judged; none at the end.

        A child over the limits or judged before costs nothing, so there may be TRIALS times as many as archs.
        """
        children: list[_Child] = []
        new: set[Arch] = set()
        while (
            len(children) < min(self.lacking, TRIALS * self.archs - self.count) and len(judged) + len(new) < self.archs
        ):
            children.append(child := self._next())
            if child.near and child.arch not in judged:
                new.add(child.arch)
        self.count += len(children)
        return children

    def tell(self, children: Sequence[_Child], accuracies: Mapping[Arch, float]) -> None:
        """End their trials; one that should have an accuracy and has none has failed, and another is bred for it."""
        from optuna.trial import TrialState

        for child in children:
            if child.near and child.arch not in accuracies:
                self.study.tell(child.trial, state=TrialState.FAIL)
                continue
            accuracy = accuracies[child.arch] if child.near else 0.0
            # staying further below the limits earns nothing
            self.study.tell(child.trial, [accuracy, max(child.ratio, 1 - AROUND)])
            self.lacking -= 1
        self.lacking = self.lacking or self.size

    def _next(self) -> _Child:
        trial = self.study.ask()
        params = {site: trial.suggest_int(site, 0, size - 1) for site, size in self.sizes.items()}
        arch = self.arch(params)
        ratio = over(self.problem.limits, arch)
        trial.set_constraint("limits", ratio - 1 - AROUND)
        return _Child(trial, params, arch, ratio)


def _one_by_one(judge: Judge) -> Accuracies:
    """The accuracies of archs, by this process."""

    def accuracies(archs: Sequence[Arch]) -> Iterator[tuple[Arch, float | None]]:
        return ((arch, judge.compute([arch])[0]) for arch in archs)

    return accuracies


def _study_name(problem: Problem) -> str:
    """The space, and a hash of what accuracies depend on: the weights of the supernet above all."""
    weights = [path for path in (problem.trained, problem.checkpoint) if path is not None and path.exists()]
    return f"{problem.space.name}-{digest(to_json(problem.space), problem.seed, problem.weight_bits, *weights[:1])}"
