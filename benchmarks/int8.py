"""What int8 costs and gives on this machine: accuracy, widths and latency of networks in both precisions.

    python benchmarks/int8.py accuracy --data FOLDER --weights FOLDER [--runtimes onnxruntime,openvino] [--only PATTERN]
    python benchmarks/int8.py widths OUT [--runtimes onnxruntime,openvino] [--batch 4] [--threads 1] [--surveys 5]
    python benchmarks/int8.py search OUT --data FOLDER [--runtimes onnxruntime] [--seeds 3] [--share 50] [OPTIONS]

`accuracy`: the trained networks of benchmarks/evidence (its --weights), quantized after training with 256 training
images, on all test images, through the runtime; it may run beside other work. `widths`: surveys of ResNet-20's layers
in fp32 and int8, in turns: how many groups are decided, how often choices are the same again, what the precisions
choose, and what it costs to run networks in int8 whose widths were chosen in fp32. `search`: the network of
mobile_widths.py searched in fp32 within a share of its latency, and searched in int8 within the latency that the former
has in int8, both trained alike, then measured in int8 together, beside one that is searched in int8 for
the estimated loss of the former; OPTIONS are those of a configuration, such as --train.recipe=short. Run the latter two
with nothing else.
Predictions of whole networks in int8 are benchmarks/prediction.py --precision int8.
"""

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from htas.errors import UserError

if TYPE_CHECKING:
    from htas.graph import Arch
    from htas.run.run import Run

sys.path.append(str(Path(__file__).parent / "evidence"))

STEPS = 9
"""Of the search for the limit at which networks are as good."""
DROP = 0.005
"""Accuracy that quantization may cost."""
CONFIG = '[family]\nname = "cifar_resnet"\ndepth = 20\n[design]\nspaces = ["hardware"]\n'


MOBILE = """[family]
name = "mobile_widths:Mobile"
[design]
spaces = ["hardware"]
[data]
name = "cifar10"
[survey]
store = "none"
undecided = 1.0
[train]
recipe = "medium"
[distill]
alpha = 0.5
temperature = 4.0
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["accuracy", "widths", "search"])
    parser.add_argument("out", type=Path, nargs="?", default=Path("runs/int8"))
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--weights", type=Path, default=Path("runs/evidence/weights"))
    parser.add_argument("--runtimes", default="onnxruntime,openvino")
    parser.add_argument("--only", default="cifar10-resnet20-*")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--surveys", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--share", type=float, default=50.0)
    parser.add_argument("--untrained", action="store_true", help="search: end before the networks found are trained")
    arguments, options = parser.parse_known_args()
    if options and arguments.part != "search":
        parser.error(f"unrecognized arguments: {' '.join(options)}")
    arguments.options = options
    {"accuracy": accuracy, "widths": widths, "search": search}[arguments.part](arguments)


def accuracy(arguments: argparse.Namespace) -> None:
    """Of every trained network in int8, beside fp32."""
    from evidence import drawn, units  # type: ignore[import-not-found]
    from latencies import HERE  # type: ignore[import-not-found]

    from htas import datasets
    from htas.datasets.cifar10 import Cifar10
    from htas.files import read_tensors
    from htas.run.deployed import as_deployed
    from htas.timing.target import Target

    known = {unit.name: unit for unit in units(HERE / "queue.toml")}
    data = datasets.load(Cifar10(arguments.data / "cifar10"))
    rows, worst = [], 0.0
    for path in sorted(arguments.weights.glob(f"{arguments.only}.safetensors")):
        unit = known.get(path.stem)
        if unit is None or unit.prune is not None or not fnmatch(path.stem, "cifar10-*"):
            continue
        network = drawn(unit, None).eval()
        network.load_state_dict(read_tensors(path)[0])
        row = [path.stem]
        for runtime in arguments.runtimes.split(","):
            target = Target(runtime=runtime, precision="int8", batch=arguments.batch, threads=arguments.threads)
            found = as_deployed(network, target, data)
            assert found is not None
            row = row if row[1:] else [*row, f"{100 * (found.accuracy - found.difference):.2f}"]
            row += [f"{100 * found.accuracy:.2f} ({found.change})"]
            worst = min(worst, found.difference)
        rows.append(row)
        print(f"| {' | '.join(row)} |", flush=True)
    print("\n| aim | target | reached | met |\n| :-- | --: | --: | :-- |")
    met = "yes" if -worst <= DROP else "**no**"
    print(f"| int8 costs at most | {100 * DROP} points | {-100 * worst:.2f} | {met} |")


def widths(arguments: argparse.Namespace) -> None:
    """Surveys in both precisions, and what their choices cost in the other one."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    config = arguments.out / "int8.toml"
    config.write_text(CONFIG)
    for number, runtime, precision in itertools.product(
        range(arguments.surveys), arguments.runtimes.split(","), ("fp32", "int8")
    ):
        folder = arguments.out / f"{runtime}-{precision}-{number}"
        if not (folder / "design.json").exists():
            command = [sys.executable, "-m", "htas", "survey", str(config), "--out", str(folder)]
            command += ["--survey.store=none", "--survey.undecided=1", f"--target.runtime={runtime}"]
            command += [f"--target.precision={precision}", f"--target.batch={arguments.batch}"]
            for words in ([*command, f"--target.threads={arguments.threads}"], [*command[:3], "design", str(folder)]):
                subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    for runtime in arguments.runtimes.split(","):
        found = {
            precision: [_design(arguments.out / f"{runtime}-{precision}-{n}") for n in range(arguments.surveys)]
            for precision in ("fp32", "int8")
        }
        print(f"\n## {runtime}\n\n| precision | groups decided | the same again, of those decided in both |")
        print("| :-- | --: | --: |")
        for precision, designs in found.items():
            decided, same = _repeats(designs)
            print(f"| {precision} | {100 * decided:.0f} % | {100 * same:.0f} % |")
        print("\n| sites | fp32 chooses | int8 chooses | time in int8 of fp32's choices, over that of int8's |\n"
              "| :-- | :-- | :-- | --: |")  # fmt: skip
        for one, other in zip(found["fp32"][0], found["int8"][0], strict=True):
            seconds = dict(zip(other["measured"]["widths"], other["measured"]["seconds"], strict=True))
            chosen = [each["choices"]["hardware"] for each in (one, other)]
            pairs = [seconds[a] / seconds[b] for a, b in zip(*chosen, strict=True)]
            print(f"| {other['sites'][0]} and {len(other['sites']) - 1} | {' '.join(map(str, chosen[0]))} | "
                  f"{' '.join(map(str, chosen[1]))} | {' '.join(f'{pair:.2f}' for pair in pairs)} |")  # fmt: skip


def search(arguments: argparse.Namespace) -> None:
    """Networks searched in fp32 and in int8, of one latency in int8."""
    for runtime in arguments.runtimes.split(","):
        print(f"\n## {runtime}\n")
        print("| seed | searched in | ms in int8 | predicted | MACs, M | estimated loss | in int8, % | in fp32, % |")
        print("| --: | :-- | --: | --: | --: | --: | --: | --: |")
        for seed in range(arguments.seeds):
            _crossed(arguments, runtime, seed)


def _crossed(arguments: argparse.Namespace, runtime: str, seed: int) -> None:
    from htas.files import from_json, read_json, to_json, write_json
    from htas.graph import resize
    from htas.metrics.latency import Latency
    from htas.report.result import Result
    from htas.run import rows
    from htas.run.config import load
    from htas.run.deployed import as_deployed
    from htas.run.run import Run

    folders = {each: arguments.out / f"{runtime}-search-{each}-{seed}" for each in ("fp32", "int8")}
    share = f"{arguments.share:g}%"
    for precision, folder in folders.items():
        if (folder / "config.toml").exists():
            share = load(folder / "config.toml").constraints.latency
        elif precision == "int8":  # at the latency in int8 of the network that was searched in fp32
            other = Run(load(folders["fp32"] / "config.toml"), folders["fp32"])
            target = replace(other.target, precision="int8")
            networks = [resize(other.network, arch) for arch in (other.network.base, other.search("hardware").arch)]
            base, found = Latency(target, rounds=200).measure(networks)
            share = f"{100 * found.estimate / base.estimate:.1f}%"
            print(
                f"seed {seed}: in int8 the network searched in fp32 has {share} of the base's latency", file=sys.stderr
            )
        config = arguments.out / "mobile.toml"
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text(MOBILE)
        options = [
            f"--target.runtime={runtime}", f"--target.precision={precision}", f"--target.threads={arguments.threads}",
            f"--target.batch={arguments.batch}", f"--seed={seed}", f"--constraints.latency={share}",
            f"--data.path={arguments.data / 'cifar10'}", *arguments.options,
        ]  # fmt: skip
        base_file = folders["fp32"] / "networks" / "base.safetensors"
        verbs = ["survey", "design", "calibrate", "search", *([] if arguments.untrained else ["train", "measure"])]
        for number, verb in enumerate(verbs):
            words = [str(config), *options, "--out", str(folder)] if not number else [str(folder)]
            _htas(verb, *words)
            if not number and precision == "int8":
                (folder / "networks").mkdir(exist_ok=True)
                shutil.copy(base_file, folder / "networks")
    runs = {precision: Run(load(folder / "config.toml"), folder) for precision, folder in folders.items()}
    last = runs["int8"]
    archs = {precision: run.search("hardware").arch for precision, run in runs.items()}
    archs["int8, as good as that of fp32"], worst = _as_good(runs["fp32"], last)
    networks = [resize(last.network, arch) for arch in archs.values()]
    readings = Latency(last.target, rounds=400).measure(networks)
    for (name, arch), reading in zip(archs.items(), readings, strict=True):
        accuracies = ["-", "-"]
        measured = folders.get(name, Path()) / "measure.json"
        if measured.exists():
            named = [from_json(row, Result, "results") for row in read_json(measured)["results"]]
            row = next(each for each in named if each.name == "hardware")
            accuracies[1] = f"{100 * (row.accuracy or 0):.2f}"
            network = rows.load_network(runs[name], row)
            deployed = as_deployed(network, last.target, last.data)
            accuracies[0] = f"{100 * deployed.accuracy:.2f} ({deployed.change})" if deployed else "-"
        took = f"{1e3 * reading.estimate:.4f} ± {2e3 * reading.error:.2g}"
        predicted, macs = 1e3 * last.calibrated.cost(arch), last.network.macs(arch) / 1e6
        cells = [str(seed), name, took, f"{predicted:.4f}", f"{macs:.2f}", f"{worst[name]:.4f}", *accuracies]
        print(f"| {' | '.join(cells)} |", flush=True)
    named_archs = {
        f"{name.split(',')[0]}{'-alike' if ',' in name else ''}-s{seed}": to_json(a) for name, a in archs.items()
    }
    write_json(arguments.out / f"{runtime}-archs-{seed}.json", {"archs": named_archs})


def _as_good(first: "Run", last: "Run") -> tuple["Arch", dict[str, float]]:
    """The fastest arch by the cost of the second run whose estimated loss is that of the first one's at most; and the
    estimated losses of all."""
    import torch

    from htas.cost.limits import Limit
    from htas.run import rows
    from htas.search.importance import derivatives, images_at_once, losses
    from htas.search.oneshot import some
    from htas.search.program import best_within

    loss = []
    for run in (first, last):
        torch.manual_seed(run.config.seed)
        images = some(run.data.weights, 512, images_at_once(run.network, 32))
        importance = derivatives(run.network, rows.base_network(run), images, run.data.task)
        loss.append(losses(run.network, run.design.spaces["hardware"], importance))
    known = {"fp32": loss[0](first.search("hardware").arch), "int8": loss[1](last.search("hardware").arch)}
    cost, space = last.calibrated, last.design.spaces["hardware"]
    base, arch = cost.cost(last.network.base), last.search("hardware").arch
    low, high = 0.0, cost.cost(arch) / base
    for _ in range(STEPS):
        share = (low + high) / 2
        limit = Limit("latency", f"{share:.3f}", cost, share * base)
        try:
            found = best_within(last.network, space, (limit,), loss[1], seconds=30).arch
        except UserError:  # no arch is so fast
            low = share
            continue
        if loss[1](found) <= known["fp32"]:
            high, arch = share, found
        else:
            low = share
    return arch, {**known, "int8, as good as that of fp32": loss[1](arch)}


def _htas(*words: str) -> None:
    """Run a command of htas that finds mobile_widths.py."""
    paths = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": paths}
    subprocess.run([sys.executable, "-m", "htas", *words], check=True, stdout=subprocess.DEVNULL, env=environment)


def _design(folder: Path) -> list[dict[str, Any]]:
    """The curves of a run."""
    curves: list[dict[str, Any]] = json.loads((folder / "design.json").read_text())["curves"]
    return curves


def _repeats(designs: list[list[dict[str, Any]]]) -> tuple[float, float]:
    """The share of groups that are decided, and of those decided in two surveys the share with the same choice."""
    sure = [[certain >= 0.9 for curve in curves for certain in curve["certain"]] for curves in designs]
    chosen = [[width for curve in curves for width in curve["choices"]["hardware"]] for curves in designs]
    both = [
        chosen[a][group] == chosen[b][group]
        for a, b in itertools.combinations(range(len(designs)), 2)
        for group in range(len(sure[a]))
        if sure[a][group] and sure[b][group]
    ]
    every = list(itertools.chain.from_iterable(sure))
    return sum(every) / len(every), sum(both) / max(1, len(both))


if __name__ == "__main__":
    main()
