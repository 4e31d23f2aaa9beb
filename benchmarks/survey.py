"""Can a survey be trusted? Repetitions, regret, whole networks measured twice, and other instruments.

    python benchmarks/survey.py OUT [--runtime eager] [--parts surveys,networks,instruments,layers] [--surveys 5]

Every step is a process of its own that leaves a JSON file in OUT; a step whose file is there is not done again, so the
command goes on where it was stopped. What has been measured is printed at the end, as Markdown. Run it with nothing
else: the busy steps start their own disturbance, a loop on one core.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from htas.timing.bench import Call
    from htas.timing.target import Target

SPACES = {"cifar": ((16, 32), (32, 16), (64, 8)), "mobile": ((24, 32), (40, 16), (72, 16), (112, 8))}
"""Base width and image size of each site: those of the CIFAR ResNets, and widths as mobile networks have them."""
EXPAND, GROUPS, TIES = 2, 8, 0.025
EACH = {"eager": 20 / 224, "onnxruntime": 30 / 224}
"""Seconds per width: 20 s (30 s) for the 224 of the CIFAR ResNets; 60 s in other runtimes."""
OTHER = 60 / 224
SURE = 0.9
"""A group is decided when its choice is right with this probability."""
ENDING = 0.5
"""Seconds that the last round and the figures may take."""
REFERENCE = 6
"""A reference survey takes so many times as long."""
NETWORKS = [f"{depth}x{share}" for depth in (8, 14, 20, 26, 32) for share in (0.5, 0.75, 1.0, 1.25)]
"""Depth of a CIFAR ResNet, and multiplier of its widths."""
BETWEEN = 120
"""Seconds between the two measurements of the same networks."""
ANCHOR = "20x1.0"
"""The network that the others are divided by."""
LENGTHS = {"surveys": 0.0, "networks": 240.0, "instruments": 120.0, "layers": 240.0}
"""Seconds of each part on two cores, about, networks for each load; surveys are counted from their widths."""


@dataclass(frozen=True)
class Aim:
    """A figure, and what it should be."""

    what: str
    target: str
    reached: str
    met: bool

    def row(self) -> str:
        """A line of Markdown."""
        return f"| {self.what} | {self.target} | {self.reached} | {'yes' if self.met else '**no**'} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--runtime", default="eager")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--parts", default="surveys,networks,instruments,layers")
    parser.add_argument("--spaces", default="cifar,mobile")
    parser.add_argument("--loads", default="quiet,busy")
    parser.add_argument("--surveys", type=int, default=5)
    parser.add_argument("--step", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        from htas.timing.target import Target

        kind, what, file = arguments.step
        target = Target(device=arguments.device, runtime=arguments.runtime)
        Path(file).write_text(json.dumps(STEPS[kind](what, target)))
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    parts, spaces, loads = (value.split(",") for value in (arguments.parts, arguments.spaces, arguments.loads))
    print(f"expected: {expected(arguments, parts, spaces, loads) / 60:.0f} minutes at most, less what is there already",
          file=sys.stderr)  # fmt: skip
    if "surveys" in parts:
        for space in spaces:
            do(arguments, "survey", f"{space}:{REFERENCE}", "quiet", "reference")
            for load, number in itertools.product(loads, range(arguments.surveys)):
                do(arguments, "survey", f"{space}:1", load, str(number))
    if "networks" in parts:
        for load in loads:
            do(arguments, "networks", "first", load, "first")
            do(arguments, "networks", f"{BETWEEN}", load, "second")
    if "instruments" in parts:
        do(arguments, "instruments", "all", "quiet", "all")
    if "layers" in parts:
        do(arguments, "layers", "18", "quiet", "all")
    show(arguments, parts, spaces, loads)


def expected(arguments: argparse.Namespace, parts: list[str], spaces: list[str], loads: list[str]) -> float:
    """Seconds."""
    widths = sum(EXPAND * base for space in spaces for base, _ in SPACES[space])
    surveys = (REFERENCE + len(loads) * arguments.surveys) * widths * EACH.get(arguments.runtime, OTHER)
    lengths = {**LENGTHS, "surveys": surveys, "networks": LENGTHS["networks"] * len(loads)}
    return sum(lengths[part] for part in parts)


def do(arguments: argparse.Namespace, kind: str, what: str, load: str, name: str) -> None:
    """One step in a process of its own, unless its file is there."""
    file = path(arguments, kind, what.split(":")[0] if kind == "survey" else "", load, name)
    if file.exists():
        return
    part = file.with_suffix(".part")
    print(f"{file.name} ...", file=sys.stderr, flush=True)
    command = [sys.executable, __file__, str(arguments.out), "--runtime", arguments.runtime]
    command += ["--device", arguments.device, "--step", kind, what, str(part)]
    with busy_loop() if load == "busy" else nothing():
        subprocess.run(command, check=True)
    part.rename(file)


def path(arguments: argparse.Namespace, kind: str, space: str, load: str, name: str) -> Path:
    """Where a step's figures are."""
    words = (kind, arguments.device, arguments.runtime, space, load, name)
    return arguments.out / ("-".join(word for word in words if word) + ".json")


@contextmanager
def busy_loop() -> Iterator[None]:
    """A loop that keeps the last core busy meanwhile."""
    core = max(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, {{{core}}})\nwhile True: pass"
    loop = subprocess.Popen([sys.executable, "-c", code])
    try:
        yield
    finally:
        loop.kill()
        loop.wait()


@contextmanager
def nothing() -> Iterator[None]:
    yield


def get(call: "Call", _: int) -> "Call":
    """What a bench builds: the call, whatever its number."""
    return call


# -- steps -------------------------------------------------------------------------------------------------------------


def survey(what: str, target: "Target") -> dict[str, Any]:
    """Measure every width of the sites of a space, reading on where a choice is open, and choose."""
    from htas.graph.layer import Layer
    from htas.metrics.latency import Latency
    from htas.spaces.curve import Curve
    from htas.spaces.design import SETTLED, certainty, choose

    space, times = what.split(":")
    sites = {
        base: [
            Layer("conv", base, width, (size, size), (3, 3), padding=(1, 1), norm=True, activation="relu")
            for width in range(1, EXPAND * base + 1)
        ]
        for base, size in SPACES[space]
    }
    layers = [layer for widths in sites.values() for layer in widths]
    numbers = {layer: number for number, layer in enumerate(layers)}

    def curves(found: Any, estimate: str = "estimate") -> Iterator[tuple[int, Curve]]:
        for base, widths in sites.items():
            mine = [found[numbers[layer]] for layer in widths]
            yield (
                base,
                Curve(
                    tuple(range(1, len(mine) + 1)),
                    tuple(getattr(each, estimate) for each in mine),
                    tuple(each.error for each in mine),
                ),
            )

    def pending(so_far: Any) -> set[Any]:
        open_ones = set()
        for base, curve in curves([so_far[layer] for layer in layers]):
            for group, sure in enumerate(certainty(curve, 1.0, GROUPS, TIES, SETTLED)):
                length = len(curve.widths) // GROUPS
                if sure < 1:
                    open_ones.update(sites[base][group * length : (group + 1) * length])
        return open_ones

    limit = EACH.get(target.runtime, OTHER) * int(times) * len(layers) - ENDING
    metric = Latency(target, rounds=100_000, limit=limit, seed=time.time_ns() % 2**31)
    started = time.monotonic()
    found = metric.measure(layers, pending=pending)
    took = time.monotonic() - started
    others = {name: dict(curves(found, name)) for name in ("mean", "median", "minimum")}
    return {
        "took": took,
        "remarks": found[0].remarks,
        "context": dict(found[0].context),
        "readings": [len(each.values) for each in found],
        "sites": {
            str(base): {
                "seconds": curve.seconds,
                "errors": curve.errors,
                "chosen": choose(curve, curve.fit(1.0), GROUPS, TIES),
                "certain": certainty(curve, 1.0, GROUPS, TIES),
                "mean": choose(others["mean"][base], others["mean"][base].fit(1.0), GROUPS),
                "others": {
                    name: choose(each[base], each[base].fit(1.0), GROUPS, TIES) for name, each in others.items()
                },
            }
            for base, curve in curves(found)
        },
    }


def networks(what: str, target: "Target") -> dict[str, Any]:
    """Whole networks, in one interleaved run, after a wait."""
    import torch

    from htas.graph import resize, trace
    from htas.graph.arch import Arch
    from htas.metrics.latency import Latency
    from htas.models.cifar_resnet import CifarResNet

    if what.isdigit():
        time.sleep(int(what))
    modules = []
    for name in NETWORKS:
        depth, share = name.split("x")
        network = trace(CifarResNet(int(depth)).build(10), torch.zeros(1, 3, 32, 32))
        widths = {site: round(width * float(share)) for site, width in network.base.widths.items()}
        modules.append(resize(network, Arch(widths, network.base.depths)))
    started = time.monotonic()
    found = Latency(target, rounds=60, seed=time.time_ns() % 2**31).measure(modules)
    return {
        "took": time.monotonic() - started,
        "remarks": found[0].remarks,
        "networks": {
            name: {
                "estimate": each.estimate,
                "error": each.error,
                "interval": each.interval,
                "median": each.median,
                "doubts": each.doubts,
            }
            for name, each in zip(NETWORKS, found, strict=True)
        },
    }


def instruments(what: str, target: "Target") -> dict[str, Any]:
    """The median of the same calls by bench, by torch.utils.benchmark and by a plain loop, in turns."""
    import torch
    from torch.utils.benchmark import Timer as TorchTimer

    from htas.graph.layer import Layer
    from htas.runtimes import open_runtime
    from htas.timing.bench import Bench

    layers = [
        Layer("conv", base, base, (size, size), (3, 3), padding=(1, 1), norm=True, activation="relu")
        for base, size in (*SPACES["cifar"], *SPACES["mobile"])
    ]
    backend = open_runtime(target)
    torch.manual_seed(0)
    found: dict[str, list[list[float]]] = {"bench": [], "torch.utils.benchmark": [], "plain loop": []}
    with backend.session():
        for layer in layers:
            call = backend.compile_layer(layer).run
            turns: dict[str, list[float]] = {name: [] for name in found}
            for turn in range(20):
                (readings,) = Bench(backend.timer(), rounds=50, seed=turn).run(partial(get, call), 1)
                turns["bench"].append(float(np.median(readings.seconds)))
                timer = TorchTimer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
                turns["torch.utils.benchmark"].append(timer.blocked_autorange(min_run_time=0.05).median)
                loop = []
                for _ in range(150):
                    start = time.perf_counter()
                    call()
                    loop.append(time.perf_counter() - start)
                turns["plain loop"].append(float(np.median(loop)))
            for name, values in turns.items():
                found[name].append(values)
    return {"layers": [str(layer.inputs) for layer in layers], "medians": found}


def layers(what: str, target: "Target") -> dict[str, Any]:
    """Random ResNets whole, and the sums of their layers timed alone and as the increment of a chain."""
    import random

    import torch

    from htas.graph import resize, trace
    from htas.graph.arch import Arch
    from htas.metrics.latency import Latency
    from htas.models.cifar_resnet import CifarResNet

    rng = random.Random(0)
    chosen = []
    for number in range(int(what)):
        network = trace(CifarResNet((8, 14, 20)[number % 3]).build(10), torch.zeros(1, 3, 32, 32))
        widths = {site: rng.randint(width // 4, 2 * width) for site, width in network.base.widths.items()}
        chosen.append((network, Arch(widths, network.base.depths)))
    uses = [[use.layer for use in network.uses(arch)] for network, arch in chosen]
    distinct = list(dict.fromkeys(layer for each in uses for layer in each))
    whole = Latency(target, rounds=60).measure([resize(network, arch) for network, arch in chosen])
    sums = {}
    for method in ("alone", "chain"):
        metric = Latency(target, rounds=100_000, limit=0.12 * len(distinct), layers=method)
        each = dict(zip(distinct, metric.measure(distinct), strict=True))
        sums[method] = [sum(each[layer].estimate for layer in layers) for layers in uses]
    return {"whole": [each.estimate for each in whole], "sums": sums, "distinct": len(distinct)}


STEPS: dict[str, Any] = {"survey": survey, "networks": networks, "instruments": instruments, "layers": layers}


# -- what came of it ---------------------------------------------------------------------------------------------------


def show(arguments: argparse.Namespace, parts: list[str], spaces: list[str], loads: list[str]) -> None:
    """Print every table, and at the end what was aimed at beside what was reached."""
    aims: list[Aim] = []
    if "surveys" in parts:
        print("| space | load | surveys | seconds | groups decided | decided, equal pairwise | all, equal pairwise "
              "| regret, median | worst | mean of N: equal | regret, worst | widest: regret, median | worst "
              "| random: median | worst |")  # fmt: skip
        print("| :-- | :-- |" + " --: |" * 13)
        for space, load in itertools.product(spaces, loads):
            figures = Figures.of(arguments, space, load)
            print(figures.row(space, load))
            aims += figures.aims(space, load, EACH.get(arguments.runtime, OTHER))
        print("\n| space | load | figure of a width | equal pairwise | regret, median | worst |")
        print("| :-- | :-- | :-- | --: | --: | --: |")
        for space, load in itertools.product(spaces, loads):
            print("\n".join(estimators(arguments, space, load)))
        for space, load in itertools.product(spaces, loads):
            print(
                f"\nStated standard error over what repetitions show, {space}, {load}: {errors(arguments, space, load)}"
            )
    if "networks" in parts:
        for load in loads:
            words, reached = twice(arguments, load)
            print(words)
            aims += reached
    if "instruments" in parts:
        words, reached = agreement(json.loads(path(arguments, "instruments", "", "quiet", "all").read_text()))
        print(words)
        aims += reached
    if "layers" in parts:
        print(added_up(json.loads(path(arguments, "layers", "", "quiet", "all").read_text())))
    if aims:
        print("\n| aim | target | reached | met |\n| :-- | :-- | --: | :-- |")
        print("\n".join(aim.row() for aim in aims))


@dataclass(frozen=True)
class Figures:
    """What repeated surveys of one space under one load come to."""

    surveys: int
    seconds: float
    """The longest."""
    decided: list[bool]
    sure: list[bool]
    """Of pairs that both decided a group, whether they chose alike."""
    every: list[bool]
    mean: list[bool]
    lost: dict[str, list[float]]
    """Regret of every choice, by who made it."""
    said: str
    """What a survey says of others on the machine."""

    @staticmethod
    def of(arguments: argparse.Namespace, space: str, load: str) -> "Figures":
        """From the files."""
        surveys = [
            json.loads(path(arguments, "survey", space, load, str(n)).read_text()) for n in range(arguments.surveys)
        ]
        reference = json.loads(path(arguments, "survey", space, "quiet", "reference").read_text())
        decided, sure, every, mean = [], [], [], []
        lost: dict[str, list[float]] = {"chosen": [], "mean": [], "widest": [], "random": []}
        rng = np.random.default_rng(0)
        for site, true in reference["sites"].items():
            mine = [each["sites"][site] for each in surveys]
            regrets = regret(np.asarray(true["seconds"]))
            length = len(true["seconds"]) // GROUPS
            for one in mine:
                decided += [certain >= SURE for certain in one["certain"]]
                for name in ("chosen", "mean"):
                    lost[name] += [regrets[width - 1] for width in one[name]]
            lost["widest"] += [regrets[(group + 1) * length - 1] for group in range(GROUPS)]
            lost["random"] += [
                regrets[group * length + rng.integers(length)] for group in range(GROUPS) for _ in range(20)
            ]
            for one, other in itertools.combinations(mine, 2):
                same = [a == b for a, b in zip(one["chosen"], other["chosen"], strict=True)]
                every += same
                mean += [a == b for a, b in zip(one["mean"], other["mean"], strict=True)]
                both = [a >= SURE and b >= SURE for a, b in zip(one["certain"], other["certain"], strict=True)]
                sure += [equal for equal, is_sure in zip(same, both, strict=True) if is_sure]
        said = "; ".join(sorted({remark for each in surveys for remark in each["remarks"]})) or "nothing"
        longest = max(each["took"] for each in surveys)
        return Figures(len(surveys), longest, decided, sure, every, mean, lost, said)

    def row(self, space: str, load: str) -> str:
        """A line of Markdown."""
        figures = [share(self.decided), share(self.sure), share(self.every)]
        figures += [percent(f(self.lost["chosen"])) for f in (np.median, max)]
        figures += [share(self.mean), percent(max(self.lost["mean"]))]
        figures += [percent(f(self.lost[name])) for name in ("widest", "random") for f in (np.median, max)]
        return f"| {space} | {load} | {self.surveys} | {self.seconds:.1f} | " + " | ".join(figures) + " |"

    def aims(self, space: str, load: str, each: float) -> list[Aim]:
        """What such surveys should reach."""
        where, middle, worst = f"{space}, {load}: ", float(np.median(self.lost["chosen"])), max(self.lost["chosen"])
        widths = sum(EXPAND * base for base, _ in SPACES[space])
        found = [
            Aim(f"{where}groups decided", "90 %", share(self.decided), bool(np.mean(self.decided) >= 0.9)),
            Aim(f"{where}decided groups, equal pairwise", "97 %", share(self.sure),
                bool(self.sure and np.mean(self.sure) >= 0.97)),
            Aim(f"{where}regret, median", "1 %", percent(middle), middle <= 0.01),
            Aim(f"{where}regret, worst", "5 %", percent(worst), worst <= 0.05),
            Aim(f"{where}longest survey", f"{each * widths:.0f} s", f"{self.seconds:.1f} s",
                self.seconds <= each * widths),
        ]  # fmt: skip
        if load == "busy":
            found.append(Aim(f"{where}the contention is named", "yes", self.said, "other processes" in self.said))
        return found


def estimators(arguments: argparse.Namespace, space: str, load: str) -> Iterator[str]:
    """The same readings and the same rule for ties, with other figures for a width."""
    surveys = [json.loads(path(arguments, "survey", space, load, str(n)).read_text()) for n in range(arguments.surveys)]
    reference = json.loads(path(arguments, "survey", space, "quiet", "reference").read_text())
    for name in ("chosen", "minimum", "median", "mean"):
        same, lost = [], []
        for site, true in reference["sites"].items():
            regrets = regret(np.asarray(true["seconds"]))
            picks = [each["sites"][site] for each in surveys]
            picks = [pick["chosen"] if name == "chosen" else pick["others"][name] for pick in picks]
            lost += [regrets[width - 1] for pick in picks for width in pick]
            same += [a == b for one, other in itertools.combinations(picks, 2) for a, b in zip(one, other, strict=True)]
        title = "level, 25th percentile (ours)" if name == "chosen" else name
        yield f"| {space} | {load} | {title} | {share(same)} | {percent(np.median(lost))} | {percent(max(lost))} |"


def regret(seconds: Any) -> Any:
    """By width: how much score it loses to the best of its group, over its latency, on the reference curve."""
    widths = np.arange(1, len(seconds) + 1)
    scores = np.polyval(np.polyfit(widths, seconds, 1), widths) - seconds
    length = len(seconds) // GROUPS
    best = [scores[group * length : (group + 1) * length].max() for group in range(GROUPS)]
    return (np.repeat(best, length) - scores) / seconds


def errors(arguments: argparse.Namespace, space: str, load: str) -> str:
    """Root mean square of the stated errors, and the deviation of repeated surveys from each other.

    Of neighbouring widths, on which choices rest, and of whole curves, which the machine's state bends a little: there
    all narrow widths together stand a percent or two higher or lower against all wide ones.
    """
    surveys = [json.loads(path(arguments, "survey", space, load, str(n)).read_text()) for n in range(arguments.surveys)]
    said = []
    for site in surveys[0]["sites"]:
        logs = np.log([each["sites"][site]["seconds"] for each in surveys])
        logs -= np.median(logs, axis=1, keepdims=True)
        whole = float(np.sqrt(logs.var(axis=0, ddof=1).mean()))
        beside = float(np.sqrt(np.diff(logs, axis=1).var(axis=0, ddof=1).mean() / 2))
        mine = [np.divide(each["sites"][site]["errors"], each["sites"][site]["seconds"]) for each in surveys]
        stated = float(np.sqrt(np.mean(np.square(mine))))
        said.append(
            f"{site}: {100 * stated:.2f} % stated, {100 * beside:.2f} % shown by neighbours, {100 * whole:.2f} % by "
            "the whole curve"
        )
    return "; ".join(said)


def twice(arguments: argparse.Namespace, load: str) -> tuple[str, list[Aim]]:
    """The same networks, minutes apart: by themselves, and over an anchor read in the same rounds."""
    first, second = (
        json.loads(path(arguments, "networks", "", load, name).read_text()) for name in ("first", "second")
    )
    raw, anchored, covered = [], [], []
    for name in NETWORKS:
        one, other = first["networks"][name], second["networks"][name]
        raw.append(abs(other["estimate"] / one["estimate"] - 1))
        low, high = one["interval"]
        covered.append(low <= other["estimate"] <= high)
        if name != ANCHOR:
            ratios = [
                each["networks"][name]["estimate"] / each["networks"][ANCHOR]["estimate"] for each in (first, second)
            ]
            anchored.append(abs(ratios[1] / ratios[0] - 1))
    remarks = "; ".join({*first["remarks"], *second["remarks"]}) or "none"
    middle = float(np.median(anchored))
    where = f"{len(NETWORKS)} networks twice, {load}: "
    aims = [Aim(f"{where}the interval covers", "90 %", share(covered), bool(np.mean(covered) >= 0.9))]
    if load == "busy":
        aims.append(Aim(f"{where}the contention is named", "yes", remarks, "other processes" in remarks))
    else:
        aims.insert(0, Aim(f"{where}median difference over the anchor", "2 %", percent(middle), middle <= 0.02))
    words = (
        f"\n{len(NETWORKS)} networks twice, {BETWEEN} s apart, {load}: over the anchor, median difference "
        f"{percent(middle)} (worst {percent(max(anchored))}); raw {percent(np.median(raw))} (worst "
        f"{percent(max(raw))}); the interval covers {share(covered)}; remarks: {remarks}"
    )
    return words, aims


def agreement(found: dict[str, Any]) -> tuple[str, list[Aim]]:
    """bench against the other instruments, by layer: the median of the turns' ratios."""
    lines, aims = [], []
    for name in ("torch.utils.benchmark", "plain loop"):
        ratios = [
            float(np.median(np.divide(ours, theirs)))
            for ours, theirs in zip(found["medians"]["bench"], found["medians"][name], strict=True)
        ]
        middle = float(np.median(ratios))
        lines.append(
            f"\nbench over {name}, median of 20 turns, by layer: {', '.join(f'{ratio:.3f}' for ratio in ratios)}; "
            f"median {middle:.3f}"
        )
        aims.append(Aim(f"bench over {name}, median over layers", "0.98 to 1.02", f"{middle:.3f}",
                        abs(middle - 1) <= 0.02))  # fmt: skip
    return "\n".join(lines), aims


def added_up(found: dict[str, Any]) -> str:
    """How well sums of layers tell whole networks, raw and after one common factor."""
    from scipy.stats import kendalltau

    whole = np.asarray(found["whole"])
    lines = [f"\n{len(whole)} random ResNets as sums of their {found['distinct']} distinct layers:"]
    for method, sums in found["sums"].items():
        ratio = np.asarray(sums) / whole
        left = np.abs(ratio / np.median(ratio) - 1)
        lines.append(
            f"- {method}: sum over whole {np.median(ratio):.2f} ({ratio.min():.2f} to {ratio.max():.2f}); after one "
            f"factor mean error {percent(left.mean())}, worst {percent(left.max())}; Kendall tau "
            f"{kendalltau(sums, whole).statistic:.3f}"
        )
    return "\n".join(lines)


def share(values: list[bool]) -> str:
    return f"{100 * np.mean(values):.0f} % of {len(values)}" if values else "-"


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


if __name__ == "__main__":
    main()
