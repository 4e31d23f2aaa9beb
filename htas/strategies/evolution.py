"""Evolution over the sub-networks of a trained supernet (Guo et al. 2020; Cai et al. 2020), by Optuna's NSGA-II."""

import random
from dataclasses import dataclass
from typing import Any

from htas.errors import UserError, need_least
from htas.graph.arch import Arch
from htas.search.moves import over
from htas.search.oneshot import Judge
from htas.search.problem import Problem
from htas.strategies._sampled import AROUND, TRIALS, ArchsStrategy, near_limits, trimmed


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

    def __post_init__(self) -> None:
        super().__post_init__()
        need_least(2, self, "strategy", "population")
        for name in ("mutation", "crossover"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise UserError(f"strategy.{name} must lie in 0..1, got {value}")

    def pick(self, problem: Problem, judge: Judge) -> None:
        """Generations until `strategy.archs` archs are judged, the first generation near the limits.

        A child over the limits or judged before costs nothing, so there may be TRIALS times as many.
        """
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        choices = {site: options for site, options in problem.space.choices.items() if len(options) > 1}

        def arch_of(trial: Any) -> Arch:
            picked = {site: options[0] for site, options in problem.space.choices.items()}
            for site, options in choices.items():
                picked[site] = options[trial.suggest_int(site, 0, len(options) - 1)]
            return trimmed(problem, problem.space.arch(picked))

        sampler = optuna.samplers.NSGAIISampler(
            population_size=min(self.population, self.archs), mutation_prob=self.mutation,
            crossover_prob=self.crossover, seed=problem.seed,
        )  # fmt: skip
        study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
        rng = random.Random(problem.seed)
        for _ in range(min(self.population, self.archs)):
            arch = near_limits(problem, rng, rng.uniform(1 - AROUND, 1.0))
            study.enqueue_trial({site: options.index(arch[site]) for site, options in choices.items()})
        for _ in range(TRIALS * self.archs):
            if len(judge.accuracies) >= self.archs:
                break
            trial = study.ask()
            arch = arch_of(trial)
            ratio = over(problem.limits, arch)
            trial.set_constraint("limits", ratio - 1 - AROUND)
            accuracy = judge([arch])[0] if ratio <= 1 + AROUND else 0.0
            # staying further below the limits earns nothing
            study.tell(trial, [accuracy, max(ratio, 1 - AROUND)])
