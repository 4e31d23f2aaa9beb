"""Do predictions hold? Random archs, predicted from measured layers and calibrated, beside what they take.

    python benchmarks/prediction.py OUT [--runtimes eager,onnxruntime,openvino] [--archs 17] [--depths 20,32,56]
    python benchmarks/prediction.py OUT --family mobile --depths 100 --adds join --archs 33
    python benchmarks/prediction.py OUT --family imagenet_resnet --depths 50 --adds join --runtimes onnxruntime \
        --batch 1 --archs 24 --lot 8

Networks of mobile widths have a width multiplier in percent where the others have a depth.
For every runtime: one survey, then for ResNet-20, -32 and -56 (or those asked for) with joined and projected adds a
calibration and random archs that it has not seen, each divided by the base network read in the same rounds: those in
which the calibration's networks are read, and those of a run of its own a minute later, when the machine may be in
another mood. With a lot (of networks that are too large to be held all at once) only the latter, so many at a time.
Every step is a process of its own that leaves a JSON file in OUT, and is not done again. Run it with nothing else.
"""

import argparse
import itertools
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from htas.metrics import Case, Metric, OnRound, Pending
from htas.timing.measurement import Measurement

if TYPE_CHECKING:
    from torch import nn

    from htas.graph import Network
    from htas.spaces.space import Space
    from htas.timing.target import Target

SECONDS = {"eager": 140.0, "onnxruntime": 115.0, "openvino": 120.0}
"""Of a step, about, on two cores; 300 in other runtimes."""
FAMILIES = {
    "cifar_resnet": (10, (3, 32, 32), 180),
    "imagenet_resnet": (1000, (3, 224, 224), 900),
    "mobile": (10, (3, 32, 32), 300),
}
"""Classes, image, and seconds that a survey and a calibration may take together."""
LOT = 60.0
"""Seconds for a lot at most."""
AIMS = (("mean absolute error", 0.02), ("within 5 %", 0.90), ("within 10 %", 0.99), ("Kendall tau, pooled", 0.95))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--runtimes", default="eager,onnxruntime,openvino")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--layers", default="auto", choices=["auto", "alone", "chain"], help="how a layer is timed")
    parser.add_argument("--archs", type=int, default=17, help="of each depth and kind of adds")
    parser.add_argument("--family", default="cifar_resnet", choices=list(FAMILIES))
    parser.add_argument("--depths", default="20,32,56")
    parser.add_argument("--adds", default="join,project")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "int8"])
    parser.add_argument("--batch", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0, help="0: every core")
    parser.add_argument("--lot", type=int, default=0, help="archs that are read at once; 0: all")
    parser.add_argument("--step", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        from htas.timing.target import Target

        what, file = arguments.step
        image = FAMILIES[arguments.family][1]
        target = Target(
            device=arguments.device, runtime=arguments.runtimes, batch=arguments.batch, threads=arguments.threads,
            shapes=(image,), precision=arguments.precision,
        )  # fmt: skip
        found = survey(target, arguments) if what == "survey" else archs(target, what, arguments)
        Path(file).write_text(json.dumps(found))
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    steps = [
        (runtime, what)
        for runtime in arguments.runtimes.split(",")
        for what in ("survey", *(f"{depth}-{adds}" for depth, adds in each(arguments)))
    ]
    missing = [step for step in steps if not path(arguments, *step).exists()]
    seconds = sum(SECONDS.get(runtime, 300.0) for runtime, _ in missing)
    print(f"expected: {seconds / 60:.0f} minutes for {len(missing)} steps", file=sys.stderr)
    for runtime, what in missing:
        file = path(arguments, runtime, what)
        part = file.with_suffix(".part")
        print(f"{file.name} ...", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, *sys.argv, "--runtimes", runtime, "--step", what, str(part)], check=True)
        part.rename(file)
    show(arguments)


def depths(arguments: argparse.Namespace) -> list[int]:
    """Of the ResNets."""
    return [int(depth) for depth in arguments.depths.split(",")]


def each(arguments: argparse.Namespace) -> list[tuple[int, str]]:
    """Depths, with joined and projected adds."""
    return list(itertools.product(depths(arguments), arguments.adds.split(",")))


def path(arguments: argparse.Namespace, runtime: str, what: str) -> Path:
    """Where a step's figures are."""
    precision = "" if arguments.precision == "fp32" else f"-{arguments.precision}"
    return arguments.out / f"prediction-{arguments.device}-{runtime}{precision}-{what}.json"


# -- steps -------------------------------------------------------------------------------------------------------------


def traced(arguments: argparse.Namespace, depth: int, adds: str) -> "Network":
    import torch
    from mobile_widths import Mobile  # type: ignore[import-not-found]

    from htas.graph import trace
    from htas.models.cifar_resnet import CifarResNet
    from htas.models.imagenet_resnet import ImageNetResNet

    kinds = {"cifar_resnet": CifarResNet, "imagenet_resnet": ImageNetResNet, "mobile": Mobile}
    classes, image, _ = FAMILIES[arguments.family]
    model = kinds[arguments.family](depth).build(classes)
    started = time.monotonic()
    network = trace(model, torch.zeros(1, *image), adds=adds)  # type: ignore[arg-type]
    print(f"traced in {time.monotonic() - started:.2f} s", file=sys.stderr)
    return network


def survey(target: "Target", arguments: argparse.Namespace) -> dict[str, Any]:
    """Every layer of the first network at every width, as `htas survey` has it: what the paper's cost is fitted to."""
    from htas.files import to_json
    from htas.metrics.latency import Latency
    from htas.runtimes import open_runtime
    from htas.spaces.design import Design, undecided
    from htas.spaces.layers import widths_at_most
    from htas.spaces.survey import EACH
    from htas.spaces.survey import survey as take

    network, design = traced(arguments, depths(arguments)[0], "join"), Design(spaces=("hardware",))
    most = widths_at_most(open_runtime(target).build_seconds)
    started = time.monotonic()
    plan = design.survey_plan(network, most)
    number = plan.at_most
    metric = Latency(target, rounds=1000, limit=EACH * number, layers=arguments.layers)
    record = take(plan, metric, pending=lambda tables: undecided(network, tables, design))  # fmt: skip
    return {"content": to_json(record), "took": time.monotonic() - started}


def archs(target: "Target", what: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """A calibration, then random archs: by every cost, and measured over the base in the same rounds."""
    from htas.cost.calibrate import Calibrate, calibrate, cells, cost_model, sparing, spread
    from htas.cost.paper import paper_cost
    from htas.files import from_json, to_json
    from htas.graph import resize
    from htas.metrics.latency import MAX_ROUNDS, Latency, rounds
    from htas.runtimes import open_runtime
    from htas.spaces.curve import SurveyRecord
    from htas.spaces.design import Design, spaces

    depth, adds = what.split("-")
    network, design = traced(arguments, int(depth), adds), Design(spaces=("hardware",), adds=adds)  # type: ignore[arg-type]
    place = path(arguments, target.runtime, "survey")
    surveyed = from_json(json.loads(place.read_text())["content"], SurveyRecord, place).layers
    space = spaces(network, surveyed, design)["hardware"]
    options = sparing(Calibrate(), network, open_runtime(target))
    building = open_runtime(target).build_seconds
    number = sum(map(len, cells(network, [space], options.widths, building).values()))
    started = time.monotonic()
    base = paper_cost(network, surveyed, design).cost(network.base)
    limits = options.limits(number, building, base)
    random_archs = evenly(network, space, arguments.archs, spread(network, [space], options.networks, seed=0))
    beside = [] if arguments.lot else [resize(network, arch) for arch in random_archs]
    more = 1 + len(beside) / options.networks
    networks = Beside(target, Latency(target, MAX_ROUNDS, limits[1] * more), beside)
    metrics = Latency(target, 1000, limits[0], layers=arguments.layers), networks
    content = calibrate(network, [space], metrics, options, seed=0, building=building, base=base)
    took = time.monotonic() - started - limits[1] * (more - 1) - exporting(target, beside)
    cost, paper = cost_model(network, content), paper_cost(network, surveyed, design)
    seen = [each.arch for each in content.networks]
    number = rounds([cost.cost(arch) for arch in random_archs])
    size = arguments.lot or len(random_archs)
    lots = [[network.base, *random_archs[at : at + size]] for at in range(0, len(random_archs), size)]
    long = Latency(target, number, LOT if arguments.lot else inf, seed=1)
    read = [long.measure([resize(network, arch) for arch in lot]) for lot in lots]
    first = read[0][0]
    later = [each.estimate / own.estimate * first.estimate for own, *readings in read for each in readings]
    whole = [each.measured for each in content.networks]
    return {
        "took": took,
        "calibration": to_json(content),
        "archs": [to_json(arch) for arch in random_archs],
        "layers": content.layers,
        "form": list(content.form),
        "held out": {"mean": content.mean_error, "worst": content.worst_error},
        "remarks": list(first.remarks),
        "context": dict(first.context),
        "seconds": [whole[0], *(each.estimate for each in networks.found)] if beside else [],
        "later": [first.estimate, *later],
        "table": [cost.cost(arch) for arch in [network.base, *random_archs]],
        "paper": _linear(seen, whole, [network.base, *random_archs], paper.cost),
        "macs": _linear(seen, whole, [network.base, *random_archs], network.macs),
    }


def exporting(target: "Target", modules: "Sequence[nn.Module]") -> float:
    """Seconds that building these networks takes, by one of them: a user's calibration does not build them."""
    if not modules:
        return 0.0
    import torch

    from htas.runtimes import open_runtime

    started = time.monotonic()
    open_runtime(target).compile(modules[len(modules) // 2], (torch.zeros(target.batch, *target.shapes[0]),))
    return len(modules) * (time.monotonic() - started)


@dataclass(frozen=True)
class Beside(Metric):
    """Measures further networks in the same rounds, and keeps their readings to itself."""

    unit: ClassVar[str] = "s"
    metric: Metric
    more: Sequence[Case]
    found: list[Measurement] = field(default_factory=list)

    def measure(
        self, cases: Sequence[Case], *, on_round: OnRound | None = None, pending: Pending | None = None
    ) -> list[Measurement]:
        """Of the cases asked for."""
        readings = self.metric.measure([*cases, *self.more], on_round=on_round, pending=pending)
        self.found[:] = readings[len(cases) :]
        return list(readings[: len(cases)])


def evenly(network: "Network", space: "Space", count: int, known: Sequence[Any]) -> list[Any]:
    """Different random archs whose multiply-adds are spread evenly over the space; none that is known."""
    rng = random.Random(2026)
    candidates = {space.sample(rng, rng.uniform(-5, 5)) for _ in range(30 * count)} - set(known)
    macs = {arch: network.macs(arch) for arch in candidates}
    remaining = sorted(candidates, key=lambda arch: (macs[arch], sorted(arch.widths.items())))
    aims = np.linspace(macs[remaining[0]], macs[remaining[-1]], count)
    return [remaining.pop(int(np.abs(np.asarray([macs[arch] for arch in remaining]) - aim).argmin())) for aim in aims]


def _linear(
    known: Sequence[Any], measured: Sequence[float], asked: Sequence[Any], cost: Callable[[Any], float]
) -> list[float]:
    """Seconds by a line through the calibration's networks, weighed for relative error."""
    line = np.polynomial.Polynomial.fit([cost(arch) for arch in known], measured, 1, w=1 / np.asarray(measured))
    return [float(line(cost(arch))) for arch in asked]


# -- what came of it ---------------------------------------------------------------------------------------------------


def show(arguments: argparse.Namespace) -> None:
    """Print every table, and at the end what was aimed at beside what was reached."""
    rng = np.random.default_rng(0)
    aims = []
    for runtime in arguments.runtimes.split(","):
        steps = {
            (depth, adds): json.loads(path(arguments, runtime, f"{depth}-{adds}").read_text())
            for depth, adds in each(arguments)
        }
        took = json.loads(path(arguments, runtime, "survey").read_text())["took"]
        slowest = took + max(each["took"] for each in steps.values())
        print(f"\n## {arguments.device}, {runtime}\n")
        print("| cost | archs | mean absolute error | worst | within 5 % | within 10 % | Kendall tau, pooled | "
              + " | ".join(f"{arguments.family}-{depth}" for depth in depths(arguments)) + " |")  # fmt: skip
        print("| :-- |" + " --: |" * (6 + len(depths(arguments))))
        for title, cost, read in (("table", "table", "seconds"), ("table, a minute later", "table", "later"),
                                  ("paper", "paper", "seconds"), ("macs", "macs", "seconds")):  # fmt: skip
            if arguments.lot and read == "seconds" and cost == "table":
                continue
            found = summary(steps, cost, "later" if arguments.lot else read, rng)
            print(f"| {title} | " + " | ".join(found["cells"]) + " |")
            if cost == "table" and (arguments.lot or read == "seconds"):
                aims += [
                    (f"{runtime}: {name}", aim, found[name],
                     found[name] <= aim if name.startswith("mean") else found[name] >= aim)
                    for name, aim in AIMS
                ]  # fmt: skip
        print(f"\nSurvey {took:.0f} s; calibration " + ", ".join(
            f"{arguments.family}-{depth} {adds} {each['took']:.0f} s for {each['layers']} layers (held out: mean "
            f"{100 * each['held out']['mean']:.1f} %, worst {100 * each['held out']['worst']:.1f} %; "
            f"{'+'.join(each['form'])})" for (depth, adds), each in steps.items()) + ".")  # fmt: skip
        most = FAMILIES[arguments.family][2]
        aims.append((f"{runtime}: survey and calibration, seconds", most, slowest, slowest <= most))
    print("\n| aim | target | reached | met |\n| :-- | --: | --: | :-- |")
    for name, aim, reached, met in aims:
        print(f"| {name} | {aim:g} | {reached:.3g} | {'yes' if met else '**no**'} |")


def summary(steps: dict[Any, Any], cost: str, read: str, rng: np.random.Generator) -> dict[str, Any]:
    """Figures of one cost against readings of one run, with 95 % intervals from resampled archs."""
    from scipy.stats import kendalltau

    # the first of a step is its base network: ratios to it are compared, seconds only ordered
    predicted = np.concatenate([np.divide(each[cost][1:], each[cost][0]) for each in steps.values()])
    measured = np.concatenate([np.divide(each[read][1:], each[read][0]) for each in steps.values()])
    off = np.abs(predicted / measured - 1)
    again = off[rng.integers(len(off), size=(2000, len(off)))]

    def between(values: Any) -> str:
        low, high = np.percentile(values, [2.5, 97.5])
        return f"({100 * low:.1f} to {100 * high:.1f})"

    seconds, told = (
        np.concatenate(values)
        for values in ([each[read][1:] for each in steps.values()], [each[cost][1:] for each in steps.values()])
    )
    pooled = float(kendalltau(told, seconds).statistic)
    by_depth = [
        float(kendalltau(
            np.concatenate([own[cost][1:] for (at, _), own in steps.items() if at == depth]),
            np.concatenate([own[read][1:] for (at, _), own in steps.items() if at == depth]),
        ).statistic)
        for depth in dict.fromkeys(depth for depth, _ in steps)
    ]  # fmt: skip
    shares = {limit: float((off <= limit).mean()) for limit in (0.05, 0.10)}
    return {
        "mean absolute error": float(off.mean()),
        "within 5 %": shares[0.05],
        "within 10 %": shares[0.10],
        "Kendall tau, pooled": pooled,
        "cells": [
            str(len(off)),
            f"{100 * off.mean():.1f} % {between(again.mean(axis=1))}",
            f"{100 * off.max():.1f} %",
            f"{100 * shares[0.05]:.0f} % {between((again <= 0.05).mean(axis=1))}",
            f"{100 * shares[0.10]:.0f} % {between((again <= 0.10).mean(axis=1))}",
            f"{pooled:.3f}",
            *(f"{tau:.3f}" for tau in by_depth),
        ],
    }


if __name__ == "__main__":
    main()
