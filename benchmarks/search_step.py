"""What a step of the search costs: supernet against the plain network, timed in turns; and the memory it takes.

    python benchmarks/search_step.py [--depths 20,32,110] [--expand 1,2] [--precisions fp32,bf16] [--rounds 12]

Noise instead of images, logits as they are drawn at the start, a budget of half of a made-up latency, which is charged
as the calibrated one is. In every round, in random order: a weight step and an architecture step of the supernet (each
with the draw of that round), a training step of the base network, and one of the network that has the larger of the two
widths drawn at every site, and all blocks. Each is made twice. The second time counts for the targets, as what a size
needs once is done in the first; `as drawn` is the first time of the two steps of a pair over the plain step, as in a
search, which draws other sizes in every step. At e = 1 a site's choices are TAS's, at e = 2 the eighths of twice the
base width. Run it with nothing else.
"""

import argparse
import contextlib
import itertools
import platform
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

PAIR = {1: 2.4, 2: 5.0}
"""A weight and an architecture step, at most, in training steps of the base network; by e."""
EACH, MEMORY = 1.4, 1.5
"""Of a step over one of the resized network, and of a step's memory over that of training the widest network."""
SECONDS = {20: 3.3, 32: 5.5, 110: 19.0}
"""A round in fp32 at e = 2, about, on two cores."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depths", default="20,32,110")
    parser.add_argument("--expand", default="1,2")
    parser.add_argument("--precisions", default="fp32,bf16")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--adds", default="join", choices=("join", "project"))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    arguments = parser.parse_args()
    depths, expands = ([int(text) for text in value.split(",")] for value in (arguments.depths, arguments.expand))
    precisions = arguments.precisions.split(",")
    cases = list(itertools.product(depths, expands, precisions))
    seconds = sum(SECONDS.get(depth, depth / 14) * arguments.rounds * (e / 2) ** 1.5 for depth, e, _ in cases)
    print(f"expected: {seconds / 60:.0f} minutes", file=sys.stderr)
    import torch

    from htas.timing.target import machine

    print(f"{machine()}, PyTorch {torch.__version__}, Python {platform.python_version()}; batch {arguments.batch}, "
          f"{arguments.rounds} rounds, {arguments.adds} adds\n")  # fmt: skip
    print("| network | e | arithmetic | plain step | weight step / plain | architecture step / plain | pair / plain "
          "| target | as drawn | weight step / resized | architecture step / resized | target "
          "| memory / widest | target |\n| :-- | --: | :-- |" + " --: |" * 11, flush=True)  # fmt: skip
    for depth, e, precision in cases:
        times, memory = one(depth, e, precision, arguments.batch, arguments.rounds, arguments.adds, arguments.device)
        plain, resized, weight, arch = (np.array(times[name]) for name in ("plain", "resized", "weight", "arch"))
        pair = (np.median(weight) + np.median(arch)) / np.median(plain)
        first = sum(np.median(times[f"{name}, as drawn"]) for name in ("weight", "arch")) / np.median(plain)
        each = [float(np.median(own / resized)) for own in (weight, arch)]
        good = (pair <= PAIR[e], max(each) <= EACH, memory <= MEMORY)
        marks = ["" if met else " **missed**" for met in good]
        if precision != "fp32":
            marks = [""] * 3
        print(f"| ResNet-{depth} | {e} | {precision} | {1e3 * np.median(plain):.0f} ms "
              f"| {np.median(weight) / np.median(plain):.2f} | {np.median(arch) / np.median(plain):.2f} | {pair:.2f} "
              f"| {PAIR[e]}{marks[0]} | {first:.2f} | {each[0]:.2f} | {each[1]:.2f} | {EACH}{marks[1]} | {memory:.2f} "
              f"| {MEMORY}{marks[2]} |", flush=True)  # fmt: skip


def one(
    depth: int, e: int, precision: Any, batch: int, rounds: int, adds: Any, device: str
) -> tuple[dict[str, list[float]], float]:
    """Seconds by kind of step, round for round; the largest memory of a search step over the widest network's."""
    import torch

    from htas.cost.limits import Limit
    from htas.cost.tables import Table, TableCost, pairs
    from htas.data.split import Data, Split
    from htas.graph import resize, trace
    from htas.graph.arch import Arch
    from htas.models.cifar_resnet import CifarResNet
    from htas.search.problem import Problem
    from htas.spaces.space import Space, depth_choices, tas_widths
    from htas.strategies.differentiable import Differentiable, _Search

    family = CifarResNet(depth)
    network = trace(family.build(10), torch.zeros(2, 3, 32, 32), adds=adds, project_norm=family.project_norm)
    widths = {
        name: tas_widths(site.base) if e == 1 else tuple(e * site.base * part // 8 for part in range(1, 9))
        for name, site in network.widths.items()
    }
    space = Space("", widths, {name: depth_choices(site.base) for name, site in network.depths.items()})
    noise = torch.randint(256, (batch, 3, 32, 32), dtype=torch.uint8)
    tables = {}
    for template, (inputs, outputs) in pairs(network, [space], 64).items():
        ways, out = sorted(inputs), sorted(outputs)
        tables[template] = Table(
            tuple(ways), tuple(out), tuple(tuple(1e-9 * template.at(i, o).macs for o in out) for i in ways)
        )
    cost = TableCost(network, tables)
    limit = Limit("latency", "50%", cost, 0.5 * cost.cost(network.base))
    split = Split(noise, torch.randint(10, (batch,)), (0.5,) * 3, (0.25,) * 3, True, 4)
    data = Data(10, ((3, 32, 32),), split, split, split, split)
    with tempfile.TemporaryDirectory() as name:
        problem = Problem(
            network,
            family.reset,
            data,
            space,
            cost,
            device,
            0,
            Path(name) / "search",
            base=lambda: network.module,
            limits=(limit,),
        )
        search = _Search(problem, Differentiable(epochs=10, batch=batch, precision=precision))
        search.model.train()
        ((images, labels),) = split.batches(batch, channels_last=True)
        assert isinstance(images, torch.Tensor)
        images, labels = images.to(device), labels.to(device)
        wait = torch.cuda.synchronize if device == "cuda" else lambda: None

        def generator(number: int) -> torch.Generator:
            return torch.Generator().manual_seed(number)

        def steps(number: int) -> dict[str, Callable[[], Any]]:
            draw = search.logits.draw(5.0, generator(number))
            wide = {site: max(chosen) for site, (chosen, _) in draw.widths.items()}
            larger = resize(network, Arch(wide, network.base.depths))
            return {
                "plain": plain_step(base, search.runner, images, labels),
                "resized": plain_step(larger, search.runner, images, labels),
                "weight": lambda: search._weight_step(images, labels, 5.0, generator(number)),
                "arch": lambda: search._arch_step(images, labels, 5.0, generator(number), learn=True),
            }

        base = resize(network, network.base)
        times: dict[str, list[float]] = {f"{name}{when}": [] for name in steps(0) for when in (", as drawn", "")}
        order = random.Random(0)
        for number in range(rounds):
            todo = list(steps(number).items())
            order.shuffle(todo)
            for kind, step in todo:
                for when in (", as drawn", ""):
                    wait()
                    started = time.perf_counter()
                    step()
                    wait()
                    times[f"{kind}{when}"].append(time.perf_counter() - started)
        widest = resize(network, space.widest)
        most = saved(plain_step(widest, search.runner, images, labels), widest)
        every = [steps(number) for number in range(5)]
        own = max(saved(each[kind], search.model) for each in every for kind in ("weight", "arch"))
    return times, own / most


def plain_step(model: Any, runner: Any, images: Any, labels: Any) -> Callable[[], None]:
    """A training step as train.py makes it."""
    import torch
    import torch.nn.functional as F

    from htas.training.layout import placed

    placed(model, runner.device).train()
    sgd = torch.optim.SGD(model.parameters(), 0.01, 0.9, weight_decay=5e-4, nesterov=True)

    def step() -> None:
        with runner.autocast():
            output = model(images)
        loss = F.cross_entropy(output.float(), labels)
        sgd.zero_grad()
        runner.backward(loss)
        sgd.step()

    return step


def saved(step: Callable[[], Any], model: Any) -> int:
    """Bytes kept for the backward pass of a step, each storage once, and those of the parameters."""
    storages: dict[int, int] = {}
    with watching(storages):
        step()
    parameters = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.parameters()}
    return sum({**storages, **parameters}.values())


@contextlib.contextmanager
def watching(storages: dict[int, int]) -> Iterator[None]:
    import torch

    alive = []  # else a later tensor might get the address of one that is gone

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        alive.append(storage)
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield


if __name__ == "__main__":
    main()
