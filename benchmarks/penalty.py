"""Does a search end at its budget? Ways of weighing the penalty, compared on short searches; nothing is measured.

    python benchmarks/penalty.py RUN [--seeds 2]

RUN is the folder of a run whose calibration is finished (of benchmarks/budget.py, say): its space, its cost and its
trained base network are used. Every line is the mean over budgets and seeds.
"""

import argparse
import itertools
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

BUDGETS = (80, 60, 40, 25)
STARTS = (0.0, 3.0, -3.0)
"""Leanings of the logits at the start: none, to wide choices, to narrow ones."""
WAYS = {
    "lambda 1": (0.0, 0.0),
    "quadratic 10": (10.0, 0.0),
    "quadratic 30": (30.0, 0.0),
    "Lagrangian 10, 0.02": (10.0, 0.02),
    "Lagrangian 30, 0.02": (30.0, 0.02),
    "Lagrangian 10, 0.1": (10.0, 0.1),
    "Lagrangian 30, 0.1": (30.0, 0.1),
}
"""Stiffness and learning."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--seeds", type=int, default=1)
    given = parser.parse_args()
    cases = list(itertools.product(BUDGETS, range(given.seeds)))
    print(f"expected: {len(WAYS) * len(cases) * 14 / 60:.0f} minutes", file=sys.stderr)
    print("| penalty | E[cost] over the aim, mean distance | worst | cost of the most probable arch over the aim, mean "
          "distance | validation accuracy of the fitted arch |\n| :-- | --: | --: | --: | --: |")  # fmt: skip
    for way, numbers in WAYS.items():
        found = [one(given.run, budget, seed, STARTS[index % 3], numbers) for index, (budget, seed) in enumerate(cases)]
        expected, likely, accuracy = (np.array(column) for column in zip(*found, strict=True))
        print(f"| {way} | {100 * np.abs(expected - 1).mean():.1f} % | {100 * np.abs(expected - 1).max():.1f} % "
              f"| {100 * np.abs(likely - 1).mean():.1f} % | {100 * accuracy.mean():.1f} % |", flush=True)  # fmt: skip


def one(run: Path, budget: int, seed: int, leaning: float, numbers: tuple[float, float]) -> tuple[float, ...]:
    """Expected cost and the most probable arch's over the aim, and the accuracy of the arch fitted to the limit."""
    import torch

    from htas.run import run as run_run
    from htas.run import stages as pipeline
    from htas.run.config import load
    from htas.search.moves import AIM, fitted
    from htas.strategies import differentiable

    differentiable.STIFFNESS, differentiable.LEARNING = numbers
    config = load(run / "config.toml")
    config = replace(config, constraints=replace(config.constraints, latency=f"{budget}%"), seed=seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "run"
        shutil.copytree(run, folder)
        job = run_run.Run(config, folder)
        problem = pipeline._problem(job, job.spaces["hardware"])
        if not numbers[0]:
            problem = replace(problem, limits=())
        init = differentiable.Logits.__init__

        def leant(self: differentiable.Logits, *rest: object) -> None:
            init(self, *rest)  # type: ignore[arg-type]
            with torch.no_grad():
                self.table += torch.linspace(-leaning / 2, leaning / 2, self.table.shape[1])

        differentiable.Logits.__init__ = leant  # type: ignore[method-assign]
        try:
            found = config.strategy.search(problem)
        finally:
            differentiable.Logits.__init__ = init  # type: ignore[method-assign]
        limits = pipeline._limits(job)
        arch = fitted(limits, problem.space, found.arch, found.worth)
        aim = AIM * budget / 100
        return found.epochs[-1].expected_cost / aim, found.epochs[-1].argmax_cost / aim, found.validate([arch])[0]


if __name__ == "__main__":
    main()
