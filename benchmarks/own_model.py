"""Is it half the latency when it is measured? examples/own_model.py, from three seeds.

    python benchmarks/own_model.py OUT [--seeds 0,1,2] [--undecided 0.2]

Every seed is a process of its own: the network is trained, searched, trained again and measured, as the example does.
Then the network found and the one given are measured again, three times, a quarter of a minute apart. What is done
is not done again. Run it with nothing else. On a noisy machine, where a survey is refused, `--undecided 1` goes on with
widths that noise has chosen: the budget is then still kept by measuring whole networks.
"""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

AIM = 0.5
"""Of the base network's latency."""
ACCURATE = 0.9
"""Of the digits."""
AGAIN, PAUSE, ROUNDS = 3, 15.0, 1000
"""Further measurements, seconds between them, and rounds of each."""
SECONDS = 400.0
"""Of a seed, about, on two cores."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--undecided", type=float, default=0.2, help="share of the groups that noise may choose (0.2)")
    parser.add_argument("--step", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step is not None:
        search(arguments.out, arguments.step, arguments.undecided)
        return
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    missing = [seed for seed in seeds if not path(arguments.out, seed).exists()]
    print(f"expected: {len(missing) * SECONDS / 60:.0f} minutes", file=sys.stderr)
    for seed in missing:
        step = ["--step", str(seed), "--undecided", str(arguments.undecided)]
        subprocess.run([sys.executable, __file__, str(arguments.out), *step], check=True, stdout=sys.stderr)
    show({seed: json.loads(path(arguments.out, seed).read_text()) for seed in seeds})


def path(out: Path, seed: int) -> Path:
    """Where a seed's figures are."""
    return out / f"own-{seed}.json"


def search(out: Path, seed: int, undecided: float) -> None:
    """The example from one seed, and both networks measured again."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from examples import own_model
    from htas.metrics.latency import Latency

    started = time.monotonic()
    optimized = own_model.main(out / f"seed-{seed}", seed=seed, options={"survey.undecided": undecided})
    took = time.monotonic() - started
    target, again = replace(optimized.config.target, shapes=((1, 16, 16),)), []
    for _ in range(AGAIN):
        time.sleep(PAUSE)
        base, own = Latency(target, ROUNDS).measure([optimized.base, optimized.model])
        again.append(own.estimate / base.estimate)
    measured = {row.name: row.measured for row in optimized.results if row.measured is not None}
    rows = {row.name: (row.accuracy, row.predicted, measured[row.name].estimate) for row in optimized.results}
    content = {
        "took": took,
        "base": optimized.results[0].name,
        "own": optimized.result.name,
        "rows": rows,
        "again": again,
    }
    path(out, seed).write_text(json.dumps({**content, "context": dict(measured[optimized.result.name].context)}))


def show(content: dict[int, Any]) -> None:
    """A row for each seed, and what was aimed at."""
    print("| seed | base, ms | found, predicted | found, measured | of the base | again | base | found | took |")
    print("| --: | --: | --: | --: | --: | :-- | --: | --: | --: |")
    ratios, accuracies = [], []
    for seed, each in content.items():
        (before, _, slow), (after, told, fast) = (each["rows"][each[name]] for name in ("base", "own"))
        ratios.append(float(np.median([fast / slow, *each["again"]])))
        accuracies.append(after)
        again = ", ".join(f"{ratio:.3f}" for ratio in each["again"])
        print(f"| {seed} | {1e3 * slow:.3f} | {1e3 * told:.3f} | {1e3 * fast:.3f} | {fast / slow:.3f} | {again} | "
              f"{100 * before:.1f} % | {100 * after:.1f} % | {each['took'] / 60:.1f} min |")  # fmt: skip
    print("\n| aim | target | reached | met |\n| :-- | --: | --: | :-- |")
    worst, least = max(ratios), min(accuracies)
    print(f"| of the base's latency, median of its measurements, the worst seed | {AIM:g} | {worst:.3f} | "
          f"{'yes' if worst <= AIM else '**no**'} |")  # fmt: skip
    print(f"| accuracy, the worst seed | {ACCURATE:g} | {least:.3f} | {'yes' if least >= ACCURATE else '**no**'} |")


if __name__ == "__main__":
    main()
