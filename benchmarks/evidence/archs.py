"""Chooses archs of a base network by its predicted latency alone, none by an accuracy -> FOLDER/archs.json.

    python benchmarks/evidence/archs.py FOLDER [--depth 20] [--budgets 50 35] [--random 12 9] [--rich 12 0]

FOLDER holds design.json and cost.json of `htas survey`, `design` and `calibrate`. Of its space `hardware`, for each
budget in percent of the base network's latency:

- `kin-B-BUDGET`: the widest of the networks with B blocks in each stage and one multiplier for all widths;
- `macs-BUDGET`: the most multiply-adds, found by climbing from many archs at random;
- `random-BUDGET-NN`: archs at random, from 0.95 of the budget to all of it;
- `rich-BUDGET-NN`: the same, with at least 0.7 of the most multiply-adds: those that are hard to tell apart.
"""

import argparse
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from htas.cost.calibrate import cost_model
from htas.cost.fit import CalibrationRecord
from htas.files import digest, read_record, to_json, write_json
from htas.graph import Network, trace
from htas.graph.arch import Arch
from htas.models.cifar_resnet import CifarResNet
from htas.spaces.design import DesignRecord
from htas.spaces.space import Space

USED = 0.95
"""A random arch uses this share of its budget or more."""
RICH = 0.7
"""A rich arch has this share of the most multiply-adds or more."""
LEANING = 3.0
"""Archs at random begin with a lean to wide or narrow of up to this."""
STEPS = 64
"""Multipliers to try, of up to the widest choice."""
STARTS = 20
"""Archs at random from which the most multiply-adds are climbed to."""

Cost = Callable[[Arch], float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--budgets", type=int, nargs="+", default=[50, 35])
    parser.add_argument("--random", type=int, nargs="+", default=[12, 9], help="how many for each budget")
    parser.add_argument("--rich", type=int, nargs="+", default=[12, 0], help="how many for each budget")
    given = parser.parse_args()
    family = CifarResNet(given.depth)
    network = trace(family.build(10), torch.zeros(2, 3, 32, 32), adds="join", project_norm=family.project_norm)
    space = read_record(given.folder / "design.json", DesignRecord).spaces["hardware"]
    seconds = cost_model(network, read_record(given.folder / "cost.json", CalibrationRecord))
    base = seconds.cost(network.base)

    def cost(arch: Arch) -> float:
        return seconds.cost(arch) / base

    found: dict[str, Arch] = {}
    for budget, *counts in zip(given.budgets, given.random, given.rich, strict=True):
        limit = budget / 100
        for blocks in range(1, max(choices[-1] for choices in space.depths.values()) + 1):
            within = [arch for arch in kin(network, space, blocks) if cost(arch) <= limit]
            if within:
                found[f"kin-{blocks}-{budget}"] = within[-1]
        rng = random.Random(0)
        found[f"macs-{budget}"] = most_macs(network, space, cost, limit, rng)
        enough = RICH * network.macs(found[f"macs-{budget}"])
        for kind, count, least in zip(("random", "rich"), counts, (0.0, enough), strict=True):
            drawn: dict[Arch, None] = {}
            while len(drawn) < count:
                arch = trimmed(network, space, near(space, cost, limit, rng))
                if USED * limit <= cost(arch) <= limit and network.macs(arch) >= least:
                    drawn[arch] = None
            found |= {f"{kind}-{budget}-{number:02}": arch for number, arch in enumerate(drawn)}
    archs = {
        name: {
            **to_json(arch),
            "predicted_over_base": round(cost(arch), 4),
            "predicted_ms": round(1e3 * seconds.cost(arch), 4),
            "macs": network.macs(arch),
            "params": network.params(arch),
        }
        for name, arch in found.items()
    }
    basis = digest(given.folder / "design.json", given.folder / "cost.json")
    about = {"base_ms": round(1e3 * base, 4), "base_macs": network.macs(network.base), "inputs": basis}
    write_json(given.folder / "archs.json", {"depth": given.depth, **about, "archs": archs})


def kin(network: Network, space: Space, blocks: int) -> Iterator[Arch]:
    """The networks of so many blocks a stage and one multiplier, narrowest first, every width the nearest choice."""
    depths = {site: min(choices, key=lambda own: abs(own - blocks)) for site, choices in space.depths.items()}
    most = max(choices[-1] / network.base.widths[site] for site, choices in space.widths.items())
    seen = set()
    for number in range(1, STEPS + 1):
        wanted = {site: number / STEPS * most * network.base.widths[site] for site in space.widths}
        widths = {
            site: min(reversed(choices), key=lambda own: max(own / wanted[site], wanted[site] / own))
            for site, choices in space.widths.items()
        }
        arch = trimmed(network, space, Arch(widths, depths))
        if arch not in seen:
            seen.add(arch)
            yield arch


def trimmed(network: Network, space: Space, arch: Arch) -> Arch:
    """The arch with the least widths in the blocks that it cuts: of those that are one network, always the same."""
    used = {use.site for use in network.uses(arch)}
    least = space.narrowest.widths
    return Arch({site: width if site in used else least[site] for site, width in arch.widths.items()}, arch.depths)


def neighbours(space: Space, arch: Arch) -> list[tuple[str, int, Arch]]:
    """Those that are one choice away at one site: the site, up or down, the arch."""
    found = []
    for site, choices in space.choices.items():
        for by in (-1, 1):
            index = choices.index(arch[site]) + by
            if 0 <= index < len(choices):
                found.append((site, by, changed(arch, site, choices[index])))
    return found


def changed(arch: Arch, site: str, choice: int) -> Arch:
    """With another choice of a site."""
    if site in arch.widths:
        return Arch({**arch.widths, site: choice}, arch.depths)
    return Arch(arch.widths, {**arch.depths, site: choice})


def near(space: Space, cost: Cost, limit: float, rng: random.Random) -> Arch:
    """An arch at random, narrowed or widened by single choices at random until it uses the budget."""
    arch = space.sample(rng, rng.uniform(-LEANING, LEANING))
    for _ in range(10 * sum(map(len, space.choices.values()))):
        share = cost(arch)
        if USED * limit <= share <= limit:
            break
        up = 1 if share < limit else -1
        arch = rng.choice([other for _, by, other in neighbours(space, arch) if by == up])
    return arch


def most_macs(network: Network, space: Space, cost: Cost, limit: float, rng: random.Random) -> Arch:
    """The most multiply-adds within the budget: one choice up or down, or one up and another one down, while it gains;
    the best of many starts."""

    def climbed(arch: Arch) -> Arch:
        while True:
            around = [other for _, _, other in neighbours(space, arch)]
            around += [third for other in around for _, _, third in neighbours(space, other)]
            macs = network.macs(arch)
            gains = sorted({other for other in around if network.macs(other) > macs}, key=network.macs, reverse=True)
            better = next((other for other in gains if cost(other) <= limit), None)
            if better is None:
                return arch
            arch = better

    starts: list[Arch] = []
    while len(starts) < STARTS:
        arch = trimmed(network, space, near(space, cost, limit, rng))
        if cost(arch) <= limit:
            starts.append(arch)
    return trimmed(network, space, max(map(climbed, starts), key=network.macs))


if __name__ == "__main__":
    main()
