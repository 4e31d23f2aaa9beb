"""One multiplier for all widths, all blocks kept: the simplest way to a faster network, and every search's control."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from htas.arch import Arch
from htas.budget import over
from htas.problem import Problem
from htas.space import Space
from htas.strategies import Found, Strategy, need_limits
from htas.strategies._trials import Trials, check
from htas.train import Precision

STEPS = 32
"""Multipliers between two halvings of the width are so many to one base width."""


@dataclass(frozen=True)
class Uniform(Strategy):
    """The largest multiple of the base widths within the limits, every width the nearest choice of its site."""

    epochs: int = 5
    """Of a training from scratch on half of the training images, by which an arch is judged where one is asked for."""
    batch: int = 128
    """Images of its steps."""
    lr: float = 0.1
    """Its learning rate, falling to 0 along half a cosine."""
    cost: Literal["table", "paper", "macs", "params", "memory", "energy"] = "table"
    """Metric of the figures in the report. What archs may cost is said by the constraints."""
    precision: Precision = "auto"
    """Arithmetic of the training: auto is bf16 where the hardware has it."""

    def __post_init__(self) -> None:
        check(self)

    @property
    def title(self) -> str:
        """`uniform, one multiplier`."""
        return "uniform, one multiplier"

    def images(self, weights: int) -> float:
        """The training that judges what was found."""
        return float(self.epochs * weights)

    def search(self, problem: Problem) -> Found:
        """No weight is trained for it."""
        need_limits(problem, self)
        started = time.monotonic()
        deepest = {site: choices[-1] for site, choices in problem.space.depths.items()}
        pool = multiples(problem.network.base.widths, problem.space, deepest)
        arch = widest_within(problem, pool)
        order = {own: number for number, own in enumerate(pool)}
        why = f"the widest of {len(pool)} multiples of the base widths within the limits"
        trials = Trials(problem, self)
        return Found(
            arch, (), True, why, trials, time.monotonic() - started,
            worth=lambda own: float(order.get(own, -1)), pool=tuple(pool), cheap=False, judge=trials.judge,
        )  # fmt: skip


def multiples(base: Mapping[str, int], space: Space, depths: Mapping[str, int]) -> list[Arch]:
    """Multiples of the base widths, each width the nearest choice of its site, narrowest first."""
    most = max((choices[-1] / base[site] for site, choices in space.widths.items()), default=1.0)
    found = []
    for number in range(1, int(STEPS * most) + 1):
        wanted = {site: number / STEPS * base[site] for site in space.widths}
        found.append(Arch({site: nearest(space.widths[site], width) for site, width in wanted.items()}, depths))
    return list(dict.fromkeys(found))


def nearest(choices: Sequence[int], wanted: float) -> int:
    """The choice next to a width in proportion; of two alike the wider."""
    return min(reversed(choices), key=lambda choice: max(choice / wanted, wanted / choice))


def widest_within(problem: Problem, pool: Sequence[Arch]) -> Arch:
    """The last arch within the limits of those that grow in width; the cheapest where none is."""
    within = [arch for arch in pool if over(problem.limits, arch) <= 1]
    return within[-1] if within else min(pool, key=lambda arch: over(problem.limits, arch))
