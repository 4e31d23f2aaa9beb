"""The tables of README.md, from results/*.json: everything between its two marks is written anew.

python benchmarks/evidence/table.py [--results FOLDER] [--readme FILE]
"""

import argparse
import json
import math
import random
import re
import statistics
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from htas.experiments.intervals import Blocks
from htas.text import plural

HERE = Path(__file__).parent
BEGIN, END = "<!-- results: made by table.py -->", "<!-- end of results -->"
EMPTY = "-"
FEWEST = 6
"""Archs to rank, at least."""

Result = Mapping[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--readme", type=Path, default=HERE / "README.md")
    given = parser.parse_args()
    results = [json.loads(path.read_text()) for path in sorted(given.results.glob("*.json"))]
    queue = tomllib.loads((HERE / "queue.toml").read_text())
    before, _, rest = given.readme.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    given.readme.write_text(f"{before}{BEGIN}\n\n{tables(results, queue, HERE)}\n{END}{after}")


def tables(results: Sequence[Result], queue: Mapping[str, Any], folder: Path) -> str:
    """One for each group of the queue, of the arms that have results, in the order of its rounds, and one for its archs
    at random."""
    parts = []
    for group, options in queue["group"].items():
        own = [result for result in results if result["group"] == group]
        planned: dict[str, set[int]] = {}
        for entry in queue["round"]:
            for arm in entry["arms"] if entry["group"] == group else []:
                planned.setdefault(arm, set()).update(entry["seeds"])
        archs = {
            name: arch
            for file in options.get("archs", ())
            for name, arch in json.loads((folder / file).read_text())["archs"].items()
            if EAGER not in file  # what is predicted for it is not what is measured here
        }
        took = latencies(folder / group.partition("-")[2] / "latencies.json", group)
        lines: list[list[str]] = []
        ranked: list[list[str]] = []
        for arm, seeds in planned.items():
            if not any(each["arm"] == arm for each in own):
                continue
            arch = archs.get(arch_name(options, arm, min(seeds)), {})
            cells = line(arm, [each for each in own if each["arm"] == arm], len(seeds), arch, own, took)
            (lines if arm in options.get("arms", {}) else ranked).append(cells)
        done = sum(1 for each in own if each["accuracy"] is not None)
        heads = ("arm", "accuracy, %", "less base", "predicted, over the base", "measured", "multiply-adds",
                 "parameters", "training loss", "CPU minutes", "trainings")  # fmt: skip
        parts.append(f"### {group}: {done} of {sum(map(len, planned.values()))}\n\n{options['title']}\n")
        if lines:
            parts.append(table(heads, lines))
        if ranked:
            parts.append(f"Archs by their names in {' and '.join(options['archs'])}:\n\n{table(heads, ranked)}")
    if judged := ranking(results, folder):
        parts.append(judged)
    return "\n".join([*aims(results), *faster(results, queue, folder), *of_widths(results, folder), *parts])


def arch_name(options: Mapping[str, Any], arm: str, seed: int) -> str:
    """Of the arch of an arm of a group."""
    name: str = options.get("arms", {}).get(arm, {}).get("arch", arm)
    return name.format(seed=seed)


def aims(results: Sequence[Result]) -> Iterator[str]:
    """The usual search against others of the same latency, with what it should reach: its arms seed by seed, and archs
    at random one by one, each against the usual search's with its seed."""
    values = {
        (each["group"], each["arm"], each["seed"]): 100 * each["accuracy"]
        for each in results
        if each["accuracy"] is not None and each["group"] in (FULL, HALF)
    }
    lines = []
    for budget, rivals in RIVALS.items():
        for group, ours, title in (
            (FULL, f"knapsack, {budget} %", f"{budget} %"),
            (HALF, f"knapsack-{budget}-s0", f"{budget} %, half as long"),
        ):
            own = {seed: value for (of, arm, seed), value in values.items() if (of, arm) == (group, ours)}
            drawn = re.compile(rf"random-{budget}-\d+")
            less = [
                own[seed] - value
                for (of, arm, seed), value in values.items()
                if of == group and seed in own and drawn.fullmatch(arm)
            ]
            if less:
                lines.append(
                    aim(title, "archs at random", statistics.mean(less), spread(less), plural(len(less), "arch"))
                )
            for rival in rivals if group == FULL else ():
                shared = {seed for of, arm, seed in values if (of, arm) == (group, rival)} & set(own)
                pairs = {(arm, seed): values[group, arm, seed] for arm in (ours, rival) for seed in sorted(shared)}
                if pairs:
                    blocks = Blocks(pairs)
                    reach = blocks.reach(ours, rival)
                    lines.append(aim(title, rival, blocks.difference(ours, rival), reach, plural(len(shared), "seed")))
    if lines:
        heads = ("latency", "against", "aim", "reached", "95 % interval", "of", "met")
        yield (
            "### The usual search against others\n\nPoints by which the network of `knapsack` is more accurate, of the "
            "same seeds. An aim is met\nwhere the interval of a paired t-test excludes 0, which takes two seeds or "
            "more, or two archs at\nrandom. `half as long` is of the group `ranking`, 15 epochs.\n\n"
            + table(heads, lines)
        )


def faster(results: Sequence[Result], queue: Mapping[str, Any], folder: Path) -> Iterator[str]:
    """How much faster than its base network each of a group is, by ONNX Runtime and in eager PyTorch, and whether it is
    as accurate: the fastest first."""
    for group, title in EQUAL.items():
        own = [each for each in results if each["group"] == group and each["accuracy"] is not None]
        base = {each["seed"]: each["accuracy"] for each in own if each["arm"] == "base"}
        rows = []
        for arm in dict.fromkeys(each["arm"] for each in own if each["arm"] != "base"):
            mine = [each for each in own if each["arm"] == arm and each["seed"] in base]
            if not mine:
                continue
            less = [100 * (each["accuracy"] - base[each["seed"]]) for each in mine]
            places = [folder / f"{group.partition('-')[2]}{place}" for place in ("", EAGER)]
            ratios = [each for place in places for each in times(mine, queue["group"][group], group, place)]
            gain, reach = statistics.mean(less), spread(less)
            interval = f"{gain - reach:+.2f} to {gain + reach:+.2f}" if math.isfinite(reach) else EMPTY
            kept = "yes" if gain >= FLOOR else "no"
            cells = [f"{each:.2f}" if each else EMPTY for each in ratios]
            rows.append((ratios, [arm, *cells, f"{gain:+.2f}", interval, plural(len(less), "seed"), kept]))
        if rows:
            heads = ("arm", "times as fast, predicted", "measured", "eagerly, predicted", "measured",
                     "less base, points", "95 % interval", "of", f"within {-FLOOR} points")  # fmt: skip
            lines = [cells for _, cells in sorted(rows, key=lambda row: -(row[0][1] or row[0][0]))]
            yield (
                f"### As accurate, and faster: {title}\n\nThe aim is {TIMES} times as fast at {FLOOR} points, and "
                "faster than the fastest plain\nmember within them. By ONNX Runtime, and in eager PyTorch.\n\n"
                f"{table(heads, lines)}"
            )


def times(mine: Sequence[Result], options: Mapping[str, Any], group: str, place: Path) -> tuple[float, float]:
    """How many times as fast as the base network the networks of an arm are, as predicted and as measured by the target
    whose costs are in this folder; 0 where they are not."""
    took, picks = latencies(place / "latencies.json", group), place / "picks.json"
    archs = json.loads(picks.read_text())["archs"] if picks.exists() else {}
    names = [arch_name(options, each["arm"], each["seed"]) for each in mine]
    foretold = [archs[name]["predicted_over_base"] for name in names if name in archs]
    measured = [took[each["name"]] for each in mine if each["name"] in took]
    predicted, read = (1 / statistics.mean(each) if each else 0.0 for each in (foretold, measured))
    return predicted, read


def of_widths(results: Sequence[Result], folder: Path) -> Iterator[str]:
    """Networks of mobile widths found among measured widths, against those found in a grid or for another precision."""
    lines = []
    for arm, rival, place, share, loss in MOBILE_PAIRS:
        pairs = [
            (one, other)
            for one, other in product(results, results)
            if (one["group"], one["arm"], other["group"], other["arm"]) == (MOBILE, arm, MOBILE, rival)
            and one["seed"] == other["seed"]
            and None not in (one["accuracy"], other["accuracy"])
        ]
        if not pairs:
            continue
        gains = [100 * (one["accuracy"] - other["accuracy"]) for one, other in pairs]
        gain, reach = statistics.mean(gains), spread(gains)
        took = latencies(folder / place / "latencies.json", MOBILE)
        ratios = [took[other["name"]] / took[one["name"]] for one, other in pairs if one["name"] in took]
        speed = statistics.mean(ratios) if ratios else 0.0
        better = gain >= BETTER and gain - reach > 0 and speed > 1 - ALIKE
        interval = f"{gain - reach:+.2f} to {gain + reach:+.2f}" if math.isfinite(reach) else EMPTY
        lines.append([
            arm, rival, f"{share:.2f} times as fast at -{loss}, or +{BETTER}", f"{speed:.3f}" if speed else EMPTY,
            f"{gain:+.2f}", interval, plural(len(pairs), "seed"),
            "yes" if better or (speed >= share and gain >= -loss) else "no",
        ])  # fmt: skip
    if lines:
        heads = ("arm", "against", "aim", "times as fast, measured", "points", "95 % interval", "of", "met")
        yield f"### Measured widths, and others: mobile widths\n\n{table(heads, lines)}"


def aim(title: str, rival: str, gain: float, reach: float, of: str) -> list[str]:
    """A row: a gain in points, and half of its interval, infinite where one pair has none."""
    interval = f"{gain - reach:+.2f} to {gain + reach:+.2f}" if math.isfinite(reach) else EMPTY
    kept = "yes" if gain >= AIM and gain - reach > 0 else "not yet" if gain >= AIM else "no"
    return [title, rival, f"+{AIM:.1f}", f"{gain:+.2f}", interval, of, kept]


def spread(values: Sequence[float]) -> float:
    """Half of the 95 % interval of their mean, by Student's t; infinite for one."""
    from scipy.stats import t

    number = len(values)
    return float(t.ppf(0.975, number - 1)) * statistics.stdev(values) / math.sqrt(number) if number > 1 else math.inf


FULL, HALF = "cifar10-resnet20", "ranking"
"""Groups: networks trained by the recipe, and archs trained for half of its epochs."""
RIVALS = {
    50: ("most MACs, 50 %", "most parameters, 50 %", "pruned, local, 52 %",
         "pruned, global, 56 %", "uniform, 50 %", "kin of 2 blocks, 50 %"),
    35: ("most MACs, 35 %", "most parameters, 35 %", "plain ResNet-8",
         "uniform, 35 %", "kin of 2 blocks, 35 %"),
}  # fmt: skip
"""By percent of ResNet-20's latency: what needs no search, Torch-Pruning as its users run it, plain members."""
AIM = 1.0
"""Points."""
EQUAL = {"cifar10-resnet32": "ResNet-32 on CIFAR-10"}
"""Groups whose networks should be as accurate as the base network, and faster."""
MOBILE = "cifar10-mobile"
MOBILE_PAIRS = (
    ("knapsack, 50 %", "knapsack in grid, 50 %", "mobile", 1.05, 0.3),
    ("knapsack in int8, as fast", "knapsack, 50 %", "mobile-int8", 1.1, 0.5),
)
"""An arm, its rival, the folder of the latencies of both, and what is aimed at: so many times as fast for that many
points less, or BETTER."""
BETTER, ALIKE = 0.5, 0.01
"""Points at one latency, and the share by which latencies of networks that are equally fast may differ."""
EAGER = "-eager"
"""End of the folder of their costs in eager PyTorch."""
FLOOR, TIMES = -0.5, 1.6
"""Points that may be lost, and how many times as fast a network should be."""


def ranking(results: Sequence[Result], folder: Path) -> str:
    """How well the judges of judges.json rank the archs of the group `ranking` that are trained."""
    path = folder / "resnet20" / "judges.json"
    ranked = [each for each in results if each["group"] == "ranking" and each["accuracy"]]
    judges = json.loads(path.read_text())["judges"] if path.exists() else {}
    judged = set.intersection(*(set(judge["values"]) for judge in judges.values())) if judges else set()
    reached = {each["arm"]: each["accuracy"] for each in ranked if each["arm"] in judged}
    if len(reached) < FEWEST:
        return ""
    best = max(reached.values())
    lines = []
    for name, judge in judges.items():
        values = {arm: judge["values"][arm] for arm in reached}
        rich = [arm for arm in reached if arm.startswith("rich")]
        top = sorted(values, key=values.__getitem__, reverse=True)[:3]
        lines.append([
            name, *(tau(values, reached, arms) for arms in (list(reached), rich)),
            f"{100 * (reached[top[0]] - best):+.2f}",
            f"{100 * (statistics.mean(reached[arm] for arm in top) - statistics.mean(reached.values())):+.2f}",
            f"{(judge['cpu_seconds'] + judge['judging_cpu_seconds']) / 60:.1f}",
        ])  # fmt: skip
    heads = ("judged by", f"tau, all {len(reached)}", f"tau, the {len(rich)} rich ones", "its first, less the best",
             "its first three, less the mean", "CPU minutes")  # fmt: skip
    return (
        "### The judges' taus\n\n"
        f"Kendall's tau of what strategies judge by with what {len(reached)} archs within 5 % of one latency\n"
        "reach when trained alone (the group `ranking`), a 95 % interval by 1,000 resamplings, and how\n"
        "accurate its favourites are, in points. Half of the archs are drawn at random, half from those of\n"
        f"at least 0.7 of the most multiply-adds. From judges.json, seed 0.\n\n{table(heads, lines)}"
    )


def tau(values: Mapping[str, float], reached: Mapping[str, float], arms: Sequence[str]) -> str:
    """`0.52 (0.31 to 0.70)`: Kendall's tau, and the middle 95 % of resamplings of the archs."""
    from scipy.stats import kendalltau

    def of(names: Sequence[str]) -> float:
        return float(kendalltau([values[name] for name in names], [reached[name] for name in names]).statistic)

    if len(arms) < FEWEST:
        return EMPTY
    rng = random.Random(0)
    again = sorted(of(rng.choices(arms, k=len(arms))) for _ in range(1000))
    return f"{of(arms):.2f} ({again[25]:.2f} to {again[974]:.2f})"


def latencies(path: Path, group: str) -> dict[str, float]:
    """By unit, over the base network's, measured in one run; empty where they are not."""
    content = json.loads(path.read_text()) if path.exists() else {}
    if content.get("group") != group:
        return {}
    return {name: each["ratio"] for name, each in content["over_base"].items()}


def line(
    arm: str, own: Sequence[Result], planned: int, arch: Mapping[str, Any], group: Sequence[Result],
    took: Mapping[str, float],
) -> list[str]:  # fmt: skip
    """Of an arm; `less base` is the mean difference from the base network of the same seeds, which learns from none."""
    known = [each for each in own if each["accuracy"] is not None]
    base = {each["seed"]: each["accuracy"] for each in group if each["arm"] == "base"}
    less = [each["accuracy"] - base[each["seed"]] for each in known if each["seed"] in base and arm != "base"]
    failed = f", {len(own) - len(known)} diverged" if len(known) < len(own) else ""
    first = own[0] if own else {**arch}
    return [
        arm,
        mean([100 * each["accuracy"] for each in known]),
        mean([100 * each for each in less], "{:+.2f}"),
        f"{arch['predicted_over_base']:.3f}" if arch else EMPTY,
        mean([took[each["name"]] for each in own if each["name"] in took], "{:.3f}"),
        f"{first['macs'] / 1e6:.1f} M" if first else EMPTY,
        f"{first['params'] / 1e6:.3f} M" if first else EMPTY,
        mean([each["epochs"][-1][1] for each in known if each["epochs"]], "{:.3f}"),
        mean([each["cpu_seconds"] / 60 for each in known], "{:.1f}", spread=False),
        f"{len(known)} of {planned}{failed}",
    ]


def mean(values: Sequence[float], shown: str = "{:.2f}", spread: bool = True) -> str:
    """`91.20 ± 0.15`: the mean, and the standard deviation of more than one."""
    if not values:
        return EMPTY
    off = f" ± {statistics.stdev(values):.2f}" if spread and len(values) > 1 else ""
    return f"{shown.format(statistics.mean(values))}{off}"


def table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """In Markdown: the first column of words, the others of numbers."""
    rule = "| :-- |" + " --: |" * (len(heads) - 1)
    return "\n".join([f"| {' | '.join(heads)} |", rule, *(f"| {' | '.join(cells)} |" for cells in lines)]) + "\n"


if __name__ == "__main__":
    main()
