"""What int8 costs and gives on this machine: accuracy, widths and latency of networks in both precisions.

    python benchmarks/int8.py accuracy --data FOLDER --weights FOLDER [--runtimes onnxruntime,openvino] [--only PATTERN]
    python benchmarks/int8.py widths OUT [--runtimes onnxruntime,openvino] [--batch 4] [--threads 1] [--surveys 5]

`accuracy`: the trained networks of benchmarks/evidence (its --weights), quantized after training with 256 training
images, on all test images, through the runtime; it may run beside other work. `widths`: surveys of ResNet-20's layers
in fp32 and int8, in turns: how many groups are decided, how often choices are the same again, what the precisions
choose, and what it costs to run networks in int8 whose widths were chosen in fp32. Run it with nothing else.
Predictions of whole networks in int8 are benchmarks/prediction.py --precision int8.
"""

import argparse
import itertools
import json
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent / "evidence"))

DROP = 0.005
"""Accuracy that quantization may cost."""
CONFIG = '[family]\nname = "cifar_resnet"\ndepth = 20\n[design]\nspaces = ["hardware"]\n'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["accuracy", "widths"])
    parser.add_argument("out", type=Path, nargs="?", default=Path("runs/int8"))
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--weights", type=Path, default=Path("runs/evidence/weights"))
    parser.add_argument("--runtimes", default="onnxruntime,openvino")
    parser.add_argument("--only", default="cifar10-resnet20-*")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--surveys", type=int, default=5)
    arguments = parser.parse_args()
    {"accuracy": accuracy, "widths": widths}[arguments.part](arguments)


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
