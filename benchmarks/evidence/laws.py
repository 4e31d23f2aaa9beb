"""How well other laws of losses by width and by depth would rank the archs that are trained: what to try next.

    python benchmarks/evidence/laws.py --data FOLDER [--seed 1] [--images 2048]

`knapsack` takes the loss of a narrower site for A ((w / b)^-p - 1), p = 0.25, gains of wider ones by the same, and adds
up what the channels of cut blocks are worth. Here p, the share of those gains that counts, and a law of that kind for
the depths of a site, with a power of its own, take other values. The archs of ResNet-20 that were trained from new
weights, by their accuracies on the test images: a law that is chosen by this table must be judged by networks that are
trained afterwards. Importance is that of a base network in `teachers`.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

HERE = Path(__file__).parent
LAWS: dict[str, Mapping[str, float]] = {
    "as `knapsack`": {},
    "no gain of wider sites": {"gain": 0.0},
    "half of the gain": {"gain": 0.5},
    "p = 0.5": {"power": 0.5},
    "p = 1": {"power": 1.0},
    "depths by a law, power 1": {"depth": 1.0},
    "depths by a law, power 2": {"depth": 2.0},
    "depths by a law, power 1, half of the gain": {"depth": 1.0, "gain": 0.5},
    "depths by a law, power 1, half of the gain, p = 0.5": {"depth": 1.0, "gain": 0.5, "power": 0.5},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--images", type=int, default=2048)
    options = parser.parse_args()
    from judges import Setting  # type: ignore[import-not-found]
    from scipy.stats import kendalltau

    from htas.search.importance import derivatives, images_at_once
    from htas.search.oneshot import some

    weights = HERE / "teachers" / f"cifar10-resnet20-base-s{options.seed}.safetensors"
    problem = Setting(HERE / "resnet20", options.data, weights).problem(50, Path("unused"), options.seed)
    torch.manual_seed(options.seed)
    images = some(problem.data.weights, options.images, images_at_once(problem.network, 32))
    gates = derivatives(problem.network, problem.base(), images, problem.data.task)
    worth = {site: values.double().square().mean(0).numpy() / 2 for site, values in gates.items()}
    print("| losses | tau, 30 epochs | correlation | tau, 15 epochs | correlation |\n| :-- | --: | --: | --: | --: |")
    for name, law in LAWS.items():
        cells = [name]
        for group in ("cifar10-resnet20", "ranking"):
            archs, reached = trained(group)
            judged = [-loss(problem.network, arch, worth, **law) for arch in archs]
            tau = kendalltau(judged, reached)[0]
            cells += [f"{tau:.2f}", f"{np.corrcoef(judged, reached)[0, 1]:.2f}"]
        print(f"| {' | '.join(cells)} |", flush=True)
    print(f"\n{len(trained('cifar10-resnet20')[0])} and {len(trained('ranking')[0])} archs, {options.images} images")


def trained(group: str) -> tuple[list[Any], list[float]]:
    """The archs of a group that were trained from new weights, and their accuracies, the mean over seeds."""
    from htas.files import from_json
    from htas.graph import Arch

    found: dict[str, list[float]] = defaultdict(list)
    for path in sorted((HERE / "results").glob("*.json")):
        result = json.loads(path.read_text())
        if result["group"] == group and result.get("arch") and result.get("start", "random") == "random":
            found[json.dumps(result["arch"])].append(result["accuracy"])
    archs = [from_json(json.loads(text), Arch, group) for text in found]
    return archs, [float(np.mean(each)) for each in found.values()]


def loss(
    network: Any, arch: Any, worth: Mapping[str, NDArray[np.float64]], *, power: float = 0.25, gain: float = 1.0,
    depth: float = 0.0,
) -> float:  # fmt: skip
    """The estimated loss of one arch; of depths the sum of what cut blocks are worth where they have no law."""
    homes = {
        site: next(node.blocks for node in network.nodes if node.kind == "conv" and node.site == site)[:1]
        for site, each in network.widths.items()
        if len(each.producers) == 1
    }
    total = 0.0
    for site, values in worth.items():
        if all(arch.depths[place] > block for place, block in homes.get(site, ())):
            sums = np.cumsum(np.sort(values))
            kept = np.arange(len(values) - 1, 0, -1) / len(values)
            grows = fitted(sums[:-1], kept, arch.widths[site] / network.sites[site].base, power)
            total += grows if grows > 0 else gain * grows
    for place, site in network.depths.items():
        blocks = [
            sum(float(worth[each].sum()) for each, home in homes.items() if home == ((place, block),))
            for block in range(site.base)
        ]
        sums = np.array([sum(blocks[kept:]) for kept in range(site.base - 1, 0, -1)])
        shares = np.arange(site.base - 1, 0, -1) / site.base
        left = arch.depths[place]
        total += fitted(sums, shares, left / site.base, depth) if depth else sum(blocks[left:])
    return total


def fitted(sums: NDArray[np.float64], shares: NDArray[np.float64], share: float, power: float) -> float:
    """At a share, the law share^-power - 1 that comes nearest to these sums at these shares."""
    law = shares**-power - 1
    return float(law @ sums / (law @ law)) * (share**-power - 1)


if __name__ == "__main__":
    main()
