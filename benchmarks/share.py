"""Does a search lose by beginning with another budget's supernet, as `htas sweep --share` does? Nothing is measured.

    python benchmarks/share.py RUN [--seeds 3] [--budgets 60,40,25] [--epochs 8]

RUN is the folder of a run of benchmarks/budget.py of seed 0, whose other seeds lie beside it: its space, its cost and
their trained base networks are used. The first budget's search keeps its supernet. For every other budget there are
three searches: from the base network in as many epochs, in half of them, and from that supernet in half of them. The
arch of each, fitted to the limit, is trained anew with distillation, and judged on the test images.
"""

import argparse
import itertools
import math
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

SECONDS = 5.0
"""Of an epoch of a search, and as much for a training, about, on two cores."""
ARMS = ("alone", "alone, half the epochs", "shared, half the epochs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--budgets", default="60,40,25")
    parser.add_argument("--epochs", type=int, default=8)
    given = parser.parse_args()
    first, *budgets = (int(text) for text in given.budgets.split(","))
    half = math.ceil(given.epochs / 2)
    epochs = given.seeds * (given.epochs + len(budgets) * (given.epochs + 2 * half + 2 * len(ARMS)))
    print(f"expected: {epochs * SECONDS / 60:.0f} minutes", file=sys.stderr)
    print("| seed | budget | " + " | ".join(f"{arm}: loss of the last epoch | test accuracy" for arm in ARMS) + " |")
    print("| --: | --: |" + " --: | --: |" * len(ARMS), flush=True)
    found: dict[str, list[float]] = {arm: [] for arm in ARMS}
    with tempfile.TemporaryDirectory() as name:
        for seed in range(given.seeds):
            kept = Path(name) / f"supernet-{seed}.safetensors"
            one(given.run, first, seed, {"epochs": given.epochs}, kept)
            for budget in budgets:
                ways: list[dict[str, Any]] = [
                    {"epochs": given.epochs},
                    {"epochs": half},
                    {"epochs": half, "start": str(kept)},
                ]
                figures = [one(given.run, budget, seed, way) for way in ways]
                cells = [f"{loss:.3f} | {100 * accuracy:.1f} %" for loss, accuracy in figures]
                print(f"| {seed} | {budget} % | {' | '.join(cells)} |", flush=True)
                for arm, (_, accuracy) in zip(ARMS, figures, strict=True):
                    found[arm].append(100 * accuracy)
    print("\n| less | points of test accuracy, mean | two standard errors |\n| :-- | --: | --: |")
    for other, own in itertools.combinations(ARMS, 2):
        off = np.subtract(found[own], found[other])
        print(f"| {own}, less {other} | {off.mean():+.2f} | {2 * off.std(ddof=1) / math.sqrt(len(off)):.2f} |")


def one(run: Path, budget: int, seed: int, options: dict[str, Any], kept: Path | None = None) -> tuple[float, float]:
    """Validation loss in the last epoch of a search, and test accuracy of what it finds."""
    import torch

    from htas.files import write_tensors
    from htas.graph import resize
    from htas.run import rows
    from htas.run import run as run_run
    from htas.run import stages as pipeline
    from htas.run.config import load
    from htas.search.moves import fitted
    from htas.strategies import differentiable
    from htas.training.train import evaluate, train

    config = load(run / "config.toml")
    own = run.with_name(run.name.rpartition("-")[0] + f"-{seed}")
    with tempfile.TemporaryDirectory() as name:
        constraints = replace(config.constraints, latency=f"{budget}%")
        config = replace(config, seed=seed, constraints=constraints, strategy=replace(config.strategy, **options))
        job, teachers = run_run.Run(config, run), run_run.Run(load(own / "config.toml"), own)
        teacher = rows.base_network(teachers)
        problem = pipeline._problem(job, job.spaces["hardware"])
        problem = replace(problem, checkpoint=Path(name) / "search", base=lambda: teacher)
        search = differentiable._Search(config.strategy, problem)
        found = config.strategy.search(problem)
        if kept is not None:
            search.restore()
            write_tensors(kept, search.supernet.state_dict(), {})
        arch = fitted(pipeline._limits(job), problem.space, found.arch, found.worth)
        torch.manual_seed(seed)
        model = resize(job.network, arch)
        config.family.reset(model)
        train(
            model, job.data.train, config.train, seed=seed, device=job.device, checkpoint=Path(name) / "train",
            title=f"train {budget} %", teacher=teacher, distill=config.distill,
        )  # fmt: skip
        accuracy = evaluate(model, job.data.test, device=job.device, precision=config.train.precision)
    return found.epochs[-1].validation_loss, accuracy


if __name__ == "__main__":
    main()
