"""Are budgets honoured? Short searches for shares of the base network's latency, measured beside it in one run.

    python benchmarks/budget.py OUT [--runtimes eager,onnxruntime] [--depths 20,56] [--seeds 3] [--budgets 80,60,40,25]

ResNets on the embedded digits, e = 2, hardware space, batches of 64 (of fewer such small images dispatching is most of
the latency, and no ResNet-20 takes a quarter of it). For every depth and runtime one survey, design and calibration;
for every seed a base network and a search for each budget, in folders of runs in OUT; a search whose file is there is
not done again. Run it with nothing else.
"""

import argparse
import itertools
import sys
import time
from pathlib import Path

import numpy as np

OPTIONS = {
    "data.name": "digits", "target.batch": "64", "design.spaces": "[hardware]",
    "survey.undecided": "1", "survey.seconds": "20",
    "strategy.epochs": "3", "strategy.batch": "64", "strategy.lr": "0.03", "strategy.arch_lr": "0.3",
    "strategy.anneal": "step", "strategy.mix": "pad", "strategy.start": "base", "strategy.precision": "fp32",
    "train.recipe": "digits", "train.epochs": "12", "train.warmup": "1", "train.rest": "0",
}  # fmt: skip
RIVALS = 3
"""Random archs of the found one's latency that are judged beside it."""
BEGIN, SEARCH = {20: 110.0, 56: 150.0}, {20: 45.0, 56: 75.0}
"""Seconds of a survey and calibration, and of a search with its finalists, about, on two cores."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--runtimes", default="eager,onnxruntime")
    parser.add_argument("--depths", default="20,56")
    parser.add_argument("--budgets", default="80,60,40,25")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    runtimes, depths = arguments.runtimes.split(","), [int(depth) for depth in arguments.depths.split(",")]
    budgets = [int(text) for text in arguments.budgets.split(",")]
    cases = [
        (seed, depth, runtime, budget)
        for seed, depth, runtime, budget in itertools.product(range(arguments.seeds), depths, runtimes, budgets)
    ]
    remaining = [case for case in cases if not (folder(arguments.out, *case) / "search-hardware.json").exists()]
    seconds = sum(SEARCH.get(depth, 60.0) for _, depth, _, _ in remaining)
    seconds += sum(BEGIN.get(depth, 150.0) for depth, _ in {(depth, runtime) for _, depth, runtime, _ in remaining})
    print(f"expected: {seconds / 60:.0f} minutes for {len(remaining)} of {len(cases)} searches", file=sys.stderr)
    for case in remaining:
        one(arguments.out, *case)
    done = [case for case in cases if (folder(arguments.out, *case) / "search-hardware.json").exists()]
    show(arguments.out, done, len(cases))


def folder(out: Path, seed: int, depth: int, runtime: str, budget: int) -> Path:
    return out / f"{depth}-{runtime}-{budget}-{seed}"


def one(out: Path, seed: int, depth: int, runtime: str, budget: int) -> None:
    """A search, begun with whatever another case has found out already, and the uniform network of that budget."""
    from htas.run import stages as pipeline
    from htas.run.config import load
    from htas.run.run import open_run
    from htas.run.stage import ensure

    pipeline.RIVALS = RIVALS
    place = folder(out, seed, depth, runtime, budget)
    options = {**OPTIONS, "family.depth": str(depth), "target.runtime": runtime, "seed": str(seed)}
    config = load(None, [f"{k}={v}" for k, v in {**options, "constraints.latency": f"{budget}%"}.items()])
    run = open_run(config, place)
    started = time.monotonic()
    for other in sorted(out.glob(f"{depth}-{runtime}-*")):
        begin(other, place, ("survey.json", "design.json", "cost.json"))
    for other in sorted(out.glob(f"{depth}-*-{seed}")):
        begin(other, place, ("networks/base.safetensors",))
    for stage in (pipeline.SURVEY, pipeline.DESIGN, pipeline.CALIBRATE, pipeline.SEARCH):
        ensure(run, stage)
    print(f"{place.name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)


def begin(other: Path, place: Path, names: tuple[str, ...]) -> None:
    import shutil

    for name in names:
        if (other / name).exists() and not (place / name).exists():
            (place / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(other / name, place / name)


def show(out: Path, cases: list[tuple[int, int, str, int]], total: int) -> None:
    """A line for each case, and at the end what was aimed at beside what was reached."""
    from htas.files import read_json, read_record
    from htas.search.record import SearchRecord

    print("| network | runtime | budget | seed | measured / budget | two standard errors | predicted / measured "
          "| validation accuracy | uniform | random, median | archs measured | seconds |")  # fmt: skip
    print("| :-- | :-- | --: |" + " --: |" * 9)
    ratios, errors, predictions, worse = [], [], [], []
    for case in cases:
        seed, depth, runtime, budget = case
        record = read_record(folder(out, *case) / "search-hardware.json", SearchRecord)
        (outcome,) = record.limits
        ratios.append(outcome.ratio)
        errors.append(2 * outcome.error)
        base = read_json(folder(out, *case) / "cost.json")["networks"][0]["measured"]
        share = outcome.limit / (budget / 100)  # the base network as measured then
        predictions.append((outcome.predicted / base) / (outcome.measured / share))
        accuracy = record.accuracy or 0.0
        worse.append(record.uniform is not None and accuracy < record.uniform)
        evenly = "-" if record.uniform is None else f"{100 * record.uniform:.1f} %"
        print(
            f"| ResNet-{depth} | {runtime} | {budget} % | {seed} | {outcome.ratio:.3f} | {2 * outcome.error:.3f} "
            f"| {predictions[-1]:.3f} | {100 * accuracy:.1f} % | {evenly} "
            f"| {100 * float(np.median(record.rivals)):.1f} % | {record.measured_archs} | {record.seconds:.0f} |"
        )
    if not cases:
        return
    above = sum(ratio > 1 + error for ratio, error in zip(ratios, errors, strict=True))
    used = float(np.mean([0.93 <= ratio <= 1.0 for ratio in ratios]))
    close = float(np.mean([abs(ratio - 1) <= 0.05 for ratio in predictions]))
    rows = [
        ("above the budget by more than two standard errors", "0", str(above), above == 0),
        ("0.93 to 1.00 of the budget", "90 %", f"{100 * used:.0f} %", used >= 0.9),
        ("less accurate than the uniform network", "0", str(sum(worse)), not any(worse)),
        ("predicted within 5 %, over the base", "85 %", f"{100 * close:.0f} %", close >= 0.85),
    ]
    print(f"\n{len(cases)} of {total} searches\n\n| aim | target | reached | met |\n| :-- | --: | --: | :-- |")
    for what, target, reached, met in rows:
        print(f"| {what} | {target} | {reached} | {'yes' if met else '**no**'} |")


if __name__ == "__main__":
    main()
