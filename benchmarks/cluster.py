"""Do several processes or nodes save time, and come to the same?

    python benchmarks/cluster.py OUT [--trials 12] [--epochs 24] [--parts sequential,local,ray] [--no-searches]

A comparison of trainings on digits, a quarter of them after a search whose finalists are measured (with --no-searches
none, so that nothing is measured before the last one has ended), one thread a trial:
one after the other, in two processes (--workers=local:2), and on a Ray cluster of two nodes of one processor
(ray.cluster_utils.Cluster on this machine; one node is the device), all by the survey and the calibration of the first.
For each: the time of the whole command, and of the trials alone; whether results and weights are those of the
sequential run to the last bit, where nothing is measured (a search takes of its finalists what a clock says, and may
take another one the next time); whether a measurement ever overlapped another one, or a training on its machine, by
their logs; and what the engine takes of a trial of a minute. Run it with nothing else.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from htas.files import read_json, read_tensors

ROOT = Path(__file__).parents[1]
SHARE = 0.6
"""Of the sequential time, that two workers may take."""
OVERHEAD = 0.03
"""Of a trial of MINUTE seconds, that the engine may take."""
MINUTE = 60.0
CONFIG = """
[family]
name = "cifar_resnet"
depth = 14
[data]
name = "digits"
[target]
runtime = "onnxruntime"
threads = 1
[design]
spaces = ["grid"]
groups = 4
[constraints]
latency = "60%"
[survey]
store = "none"
undecided = 1.0
[strategy]
name = "most"
[calibrate]
networks = 8
[distill]
alpha = 0.0
"""
SEARCHED = "[searched]\n"
TRAINED = """
["plain 8, slowest"]
network = "cifar_resnet:8"
train.lr = 0.02
"""
"""In the place of searches."""
ARMS = """
["plain 8"]
network = "cifar_resnet:8"
["plain 8, slower"]
network = "cifar_resnet:8"
train.lr = 0.05
["plain 8, faster"]
network = "cifar_resnet:8"
train.lr = 0.2
"""
IDLE = "RAY_idle_worker_killing_time_threshold_ms"
"""As docs/parallel.md says to start Ray: processes of readings live on between them."""
PREPARED = ("config.toml", "environment.json", "survey.json", "design.json", "cost.json")
TIMES = ("search_seconds", "seconds", "date", "took")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=24, help="of each training")
    parser.add_argument("--parts", default="sequential,local,ray")
    parser.add_argument("--no-searches", action="store_true", help="trainings alone")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for part in arguments.parts.split(","):
        if not (arguments.out / f"{part}.json").exists():
            run(part, arguments)
    show(arguments)


def run(part: str, arguments: argparse.Namespace) -> None:
    """One comparison, timed -> PART.json."""
    folder = arguments.out / part
    folder.mkdir(exist_ok=True)
    (folder / "some.toml").write_text(CONFIG)
    (folder / "arms.toml").write_text((TRAINED if arguments.no_searches else SEARCHED) + ARMS)
    for name in PREPARED:  # of one survey and calibration: readings differ from one time to the next
        for path in (arguments.out / "sequential" / "out").glob(f"*/{name}") if part != "sequential" else ():
            place = folder / "out" / path.parent.name
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, place)
    words = [
        sys.executable, "-m", "htas", "compare", str(folder / "some.toml"), str(folder / "arms.toml"),
        f"--seeds={arguments.trials // 4}", f"--train.epochs={arguments.epochs}", "--train.rest=0",
        f"--out={folder / 'out'}",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with cluster(environment) if part == "ray" else alone() as address:
        workers = {"local": "local:2,threads=1", "ray": address}.get(part, "")
        started, begun, lines = time.monotonic(), 0.0, list[str]()
        process = subprocess.Popen(
            [*words, *([f"--workers={workers}"] if workers else [])], env=environment, stderr=subprocess.PIPE, text=True
        )
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line)
            if line.startswith("cost:") or "trials" in line:
                begun = begun or time.monotonic()
            if line.startswith("measuring") and begun:
                ended = time.monotonic()
                break
        lines += process.stderr.readlines()
        if process.wait():
            sys.exit("".join(lines))
    figures = {"seconds": time.monotonic() - started, "trials": ended - begun, "ends": outcome(folder / "out")}
    (arguments.out / f"{part}.json").write_text(json.dumps({**figures, **overlaps(folder / "out" / "logs")}))


@contextmanager
def alone() -> Iterator[str]:
    yield ""


@contextmanager
def cluster(environment: Mapping[str, str]) -> Iterator[str]:
    """The address of a head without processors and two nodes of one."""
    os.environ.update({**environment, "RAY_USAGE_STATS_ENABLED": "0", IDLE: "600000"})
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    made.add_node(num_cpus=1, resources={"htas_device": 1})
    made.add_node(num_cpus=1)
    yield made.address
    made.shutdown()


def outcome(folder: Path) -> dict[str, Any]:
    """Results without times, and sums of weights in hexadecimal."""
    results = {path.parent.name: without_times(read_json(path)) for path in sorted(folder.glob("*/result.json"))}
    weights = {
        f"{path.parent.parent.name}/{path.name}": [float(tensor.double().sum()).hex() for tensor in tensors.values()]
        for path in sorted(folder.glob("*/networks/*.safetensors")) for tensors in [read_tensors(path)[0]]
    }  # fmt: skip
    return {"results": results, "weights": weights}


def without_times(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: without_times(value) for key, value in content.items() if key not in TIMES}
    return [without_times(each) for each in content] if isinstance(content, list) else content


def unmeasured(ends: dict[str, Any]) -> dict[str, Any]:
    """Of the trials that measure nothing."""
    parts = ends.items()
    return {part: {name: each for name, each in of.items() if not name.startswith("searched")} for part, of in parts}


def overlaps(logs: Path) -> dict[str, Any]:
    """How many measurements there were, how many of them were beside something else, and seconds that trials took."""
    turns = [json.loads(line) for path in logs.glob("*.jsonl") for line in path.read_text().splitlines()]
    measured = [turn for turn in turns if turn["does"] == "measures"]
    beside = sum(
        any(
            other["process"] != one["process"] and other["from"] < one["to"] and one["from"] < other["to"]
            for other in turns
        )
        for one in measured
    )
    lasted: dict[str, tuple[float, float]] = {}
    for path in logs.glob("*.jsonl"):
        own = [json.loads(line) for line in path.read_text().splitlines()]
        if path.stem != "measurements" and own:
            lasted[path.stem] = (min(turn["from"] for turn in own), max(turn["to"] for turn in own))
    seconds = [to - start for start, to in lasted.values()]
    span = max(to for _, to in lasted.values()) - min(start for start, _ in lasted.values()) if lasted else 0.0
    return {"measurements": len(measured), "beside": beside, "each": seconds, "span": span}


def show(arguments: argparse.Namespace) -> None:
    """Print what came of it, and the aims."""
    read = {part: json.loads((arguments.out / f"{part}.json").read_text()) for part in arguments.parts.split(",")}
    first = read["sequential"]
    heads = ("workers", "whole command, s", "of sequential", "trials, s", "of sequential", "same results",
             "measurements in trials", "beside others")  # fmt: skip
    print(f"| {' | '.join(heads)} |\n|{' --: |' * len(heads)}")
    aims = []
    for part, found in read.items():
        same = unmeasured(found["ends"]) == unmeasured(first["ends"])
        whole, trials = found["seconds"] / first["seconds"], found["trials"] / first["trials"]
        print(f"| {part} | {found['seconds']:.0f} | {whole:.2f} | {found['trials']:.0f} | {trials:.2f} | "
              f"{'yes' if same else '**no**'} | {found['measurements']} | {found['beside']} |")  # fmt: skip
        if part != "sequential":
            lost = 2 * found["span"] - sum(found["each"])
            share = lost / len(found["each"]) / MINUTE
            aims += [
                (f"{part}: time of the trials over sequential", SHARE, trials, trials <= SHARE),
                (f"{part}: different results", 0, int(not same), same),
                (f"{part}: measurements beside others", 0, found["beside"], not found["beside"]),
                (f"{part}: of a minute's trial, between trials and at the end", OVERHEAD, share, share <= OVERHEAD),
            ]
    print("\n| aim | at most | reached | met |\n| :-- | --: | --: | :-- |")
    for name, aim, reached, met in aims:
        print(f"| {name} | {aim:g} | {reached:.3g} | {'yes' if met else '**no**'} |")


if __name__ == "__main__":
    main()
