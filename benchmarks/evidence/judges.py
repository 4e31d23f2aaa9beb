"""What strategies judge archs by, for the archs of the ranking -> FOLDER/judges.json, and what they choose themselves
within each budget -> FOLDER/picks.json.

    python benchmarks/evidence/judges.py FOLDER --data FOLDER [--weights FOLDER] [--only NAME ...] [--seed 0]
        [--base 20] [--space hardware] [--label NAME] [--budgets 50 35] [--again]

FOLDER holds design.json and cost.json of a CIFAR ResNet of the depth --base, or of `mobile`, and, where archs are to be
judged, archs.json; what is chosen bears the label in its name, if there is one. --weights has the trained base networks
of evidence.py. All start from the base network of the seed, look at training images of CIFAR-10 alone, and see costs as
predicted. What is in the files already is not found again without --again.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from htas import datasets
from htas.cost.calibrate import cost_model
from htas.cost.fit import CalibrationRecord
from htas.cost.limits import Limit
from htas.data.split import Data
from htas.datasets.cifar10 import Cifar10
from htas.files import from_json, read_json, read_record, read_tensors, to_json, write_json
from htas.graph import Network
from htas.graph.arch import Arch
from htas.search.problem import Problem, SearchOutcome
from htas.spaces.design import DesignRecord
from htas.spaces.space import Space
from htas.strategies import Strategy
from htas.strategies.blockwise import Blockwise
from htas.strategies.differentiable import Differentiable
from htas.strategies.evolution import Evolution
from htas.strategies.knapsack import Knapsack
from htas.strategies.most import Most

sys.path.append(str(Path(__file__).parent))
from evidence import family_of, traced  # type: ignore[import-not-found]

Judgement = Callable[[SearchOutcome], Callable[[Sequence[Arch]], list[float]]]


def worths(outcome: SearchOutcome) -> Callable[[Sequence[Arch]], list[float]]:
    """By the estimate that the search minimises."""
    return lambda archs: [outcome.worth(arch) for arch in archs]


def accuracies(outcome: SearchOutcome) -> Callable[[Sequence[Arch]], list[float]]:
    """By accuracies on validation images, as the search finds them."""
    return outcome.validate


@dataclass(frozen=True)
class Judge:
    """A strategy, and what it judges by."""

    strategy: Strategy
    values: Judgement = worths
    once: bool = False
    """It is asked for the first budget only: it takes long, and judges alike at all of them."""


JUDGES = {
    "multiply-adds": Judge(Most()),
    "parameters": Judge(Most(count="params")),
    "importance": Judge(Knapsack()),
    "block errors": Judge(Blockwise()),
    "block noise": Judge(Blockwise(error="noise")),
    "supernet of TAS's kind": Judge(
        Differentiable(epochs=3, batch=128, lr=0.03, arch_lr=0.1, anneal="step", mix="pad", start="base"), accuracies
    ),
    "sandwich supernet": Judge(Evolution(epochs=4, archs=150), accuracies, once=True),
    "short training": Judge(Most(epochs=2), accuracies, once=True),
}
FILES = {
    "multiply-adds": "most-macs",
    "parameters": "most-params",
    "importance": "knapsack",
    "block errors": "blockwise",
    "block noise": "block-noise",
    "supernet of TAS's kind": "differentiable",
    "sandwich supernet": "evolution",
}
"""What the archs are called that they choose; the short training chooses none."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, default=Path("runs/evidence/weights"))
    parser.add_argument("--only", nargs="+", default=list(JUDGES), choices=list(JUDGES))
    parser.add_argument("--budgets", type=float, nargs="+", default=[50, 35])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--base", default="20")
    parser.add_argument("--space", default="hardware")
    parser.add_argument("--label", default="")
    parser.add_argument("--again", action="store_true")
    options = parser.parse_args()
    group = "cifar10-mobile" if options.base == "mobile" else f"cifar10-resnet{options.base}"
    weights = options.weights / f"{group}-base-s{options.seed}.safetensors"
    setting = Setting(options.folder, options.data, weights, options.base, options.space)
    label = f"-{options.label}" if options.label else ""
    listed = options.folder / "archs.json"
    archs = read_json(listed)["archs"] if listed.exists() else {}
    ranked = {name: from_json(arch, Arch, name) for name, arch in archs.items() if "-50-" in name}
    judges, picks = (written(options.folder / name) for name in ("judges.json", "picks.json"))
    for name in options.only:
        judge = JUDGES[name]
        for number, budget in enumerate(options.budgets[:1] if judge.once else options.budgets):
            pick = f"{FILES[name]}{label}-{budget:g}-s{options.seed}" if name in FILES else ""
            asks = number == 0 and options.seed == 0 and bool(ranked)
            judged = not asks or name in judges["judges"]
            if (pick in picks["archs"] or not pick) and judged and not options.again:
                continue
            print(name, budget, flush=True)
            with tempfile.TemporaryDirectory() as folder:
                problem = setting.problem(budget, Path(folder) / "search.safetensors", options.seed)
                busy = time.process_time()
                outcome = judge.strategy.search(problem)
                busy = time.process_time() - busy
                if asks:
                    asked = time.process_time()
                    values = judge.values(outcome)(list(ranked.values()))
                    asked = time.process_time() - asked
                    judges["judges"][name] = {
                        "strategy": repr(judge.strategy), "cpu_seconds": round(busy, 1),
                        "judging_cpu_seconds": round(asked, 1), "values": dict(zip(ranked, values, strict=True)),
                    }  # fmt: skip
                    write_json(options.folder / "judges.json", judges)
            if pick:
                picks["archs"][pick] = {
                    **setting.about(outcome.arch),
                    "cpu_seconds": round(busy, 1),
                    "why": outcome.why,
                }
                write_json(options.folder / "picks.json", picks)
                print(pick, picks["archs"][pick], flush=True)


def written(path: Path) -> dict[str, Any]:
    """The content of judges.json or picks.json, empty where there is none."""
    if path.exists():
        content: dict[str, Any] = read_json(path)
        return content
    return {path.stem.replace("picks", "archs"): {}}


@dataclass(frozen=True)
class Setting:
    """A base network, its space and its costs."""

    folder: Path
    data: Path
    weights: Path
    base: str
    """As in queue.toml."""
    name: str
    """Of the space."""

    def problem(self, budget: float, checkpoint: Path, seed: int) -> Problem:
        """Half of the training images for weights, half for judging; the latency is at most this percentage."""
        network, space, cost = parts(self.folder, self.base, self.name)
        limit = Limit("latency", f"{budget:g}%", cost, budget / 100 * cost.cost(network.base))
        family = family_of(self.base)

        def base() -> torch.nn.Module:
            model = family.build(10)
            model.load_state_dict(read_tensors(self.weights)[0])
            return model.eval()

        return Problem(
            network, family.reset, images(self.data), space, cost, "cpu", seed, checkpoint, base, limits=(limit,)
        )

    def about(self, arch: Arch) -> dict[str, Any]:
        """As in archs.json."""
        network, _, cost = parts(self.folder, self.base, self.name)
        return {
            **to_json(arch),
            "predicted_over_base": round(cost.cost(arch) / cost.cost(network.base), 4),
            "predicted_ms": round(1e3 * cost.cost(arch), 4),
            "macs": network.macs(arch),
            "params": network.params(arch),
        }


@cache
def parts(folder: Path, base: str, name: str) -> tuple[Network, Space, Any]:
    """The base network, a space, and the predicted latency."""
    network = traced(base, "cifar10")
    space = read_record(folder / "design.json", DesignRecord).spaces[name]
    return network, space, cost_model(network, read_record(folder / "cost.json", CalibrationRecord))


@cache
def images(folder: Path) -> Data:
    """CIFAR-10."""
    return datasets.load(Cifar10(path=str(folder / "cifar10")), device="cpu", validation=0.5, seed=0)


if __name__ == "__main__":
    main()
