"""How long is it from a trained network to an arch, and how much memory does that take? The strategy `knapsack`.

    python benchmarks/knapsack.py [--networks resnet20,mobilenetv2,resnet50] [--images 512] [--budget 50]

ResNet-20 (32x32 images), MobileNetV2 and ResNet-50 (224x224), with new weights and random images, as neither changes
how long the search takes; layers cost what a staircase of eight channels costs, in place of a survey. Each network is
a process of its own; the seconds are of the search alone: importance of channels, program, solution, without trials of
other numbers of blocks. Run it with nothing else.
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from htas.cost.limits import Limit
from htas.cost.tables import Floats, LayerCost
from htas.data.split import Data, Split
from htas.graph import trace
from htas.graph.layer import Template
from htas.models import ModelFamily
from htas.models.cifar_resnet import CifarResNet
from htas.models.imagenet_resnet import ImageNetResNet
from htas.models.mobilenet_v2 import MobileNetV2
from htas.search.problem import Problem
from htas.spaces.design import Design, grid_widths
from htas.spaces.space import Space
from htas.strategies.knapsack import Knapsack

NETWORKS: dict[str, tuple[Callable[[], ModelFamily], int, int, float]] = {
    "resnet20": (lambda: CifarResNet(20), 10, 32, 2.0),
    "mobilenetv2": (MobileNetV2, 1000, 224, 2.0),
    "resnet50": (lambda: ImageNetResNet(50), 1000, 224, 10.0),
}
"""Family, classes, image, and the minutes aimed at."""
MEMORY = 4.0
"""GiB aimed at."""


@dataclass(frozen=True)
class Staircase(LayerCost):
    """Layers whose channels cost by blocks of eight, and 5 us for each layer; seconds."""

    unit: str = "s"

    def values(self, template: Template, inputs: Sequence[int], outputs: Sequence[int]) -> Floats:
        """[inputs, outputs]"""
        blocks = [8.0 * np.ceil(np.asarray(widths) / 8) for widths in (inputs, outputs)]
        positions = math.prod(template.size) * math.prod(template.kernel) / math.prod(template.stride)
        pairs = np.broadcast_to(blocks[1], (len(inputs), len(outputs))) if template.keeps_width else np.outer(*blocks)
        return 5e-6 + pairs * positions / 5e10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--images", type=int, default=Knapsack().images)
    parser.add_argument("--budget", type=int, default=50)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options.one, options.images, options.budget)))
        return
    print("| network | choices | minutes | aim | peak memory, GiB | aim | solution |")
    print("| :-- | --: | --: | --: | --: | --: | :-- |")
    for name in options.networks.split(","):
        command = [sys.executable, __file__, "--one", name, "--images", options.images, "--budget", options.budget]
        done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True, check=True)
        row = json.loads(done.stdout.splitlines()[-1])
        print(
            f"| {name} | {row['choices']} | {row['seconds'] / 60:.2f} | {NETWORKS[name][3]:g} | {row['memory']:.2f} "
            f"| {MEMORY:g} | {row['sentence']} |"
        )


def one(name: str, count: int, budget: int) -> dict[str, object]:
    """The search of one network."""
    build, classes, size, _ = NETWORKS[name]
    family = build()
    torch.manual_seed(0)
    model = family.build(classes).eval()
    network = trace(model, torch.zeros(2, 3, size, size), adds="join", project_norm=family.project_norm)
    widths = {site: grid_widths(each, Design()) for site, each in network.widths.items()}
    space = Space("grid", widths, {site: tuple(range(1, each.base + 1)) for site, each in network.depths.items()})
    cost = Staircase(network)
    limit = Limit("latency", f"{budget}%", cost, budget / 100 * cost.cost(network.base))
    with tempfile.TemporaryDirectory() as folder:
        problem = Problem(
            network, family.reset, images(count, classes, size), space, cost, "cpu", 0,
            Path(folder) / "search.safetensors", lambda: model, limits=(limit,),
        )  # fmt: skip
        started = time.monotonic()
        outcome = Knapsack(images=count, trials=1).search(problem)
        seconds = time.monotonic() - started
    assert limit.ratio(outcome.arch) <= 1
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    choices = sum(map(len, space.choices.values()))
    return {"seconds": seconds, "memory": memory, "choices": choices, "sentence": outcome.why}


def images(count: int, classes: int, size: int) -> Data:
    """Random images for weights; the search looks at no others."""
    labels = torch.arange(count) % classes
    pixels = torch.randint(256, (count, 3, size, size), dtype=torch.uint8)
    part = Split(pixels, labels, (0.5,) * 3, (0.25,) * 3, False, 0)
    return Data(classes, ((3, size, size),), part, part, part, part)


if __name__ == "__main__":
    main()
