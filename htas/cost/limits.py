"""Limits that a network must keep: as people write them, as numbers, and archs that keep them and use them.

A limit is a share of the base network's figure ("50%") or a figure with its unit ("8 ms", "1.0M"). A search is led to
AIM of it; what is chosen lies between USED and the whole.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields

from htas.cost.model import CostModel
from htas.errors import UserError
from htas.graph.arch import Arch
from htas.text import listing

UNITS: Mapping[str, Mapping[str, float]] = {
    "latency": {"s": 1.0, "ms": 1e-3, "us": 1e-6},
    "energy": {"J": 1.0, "mJ": 1e-3, "uJ": 1e-6},
    "memory": {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30},
    "macs": {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9},
    "params": {"": 1.0, "k": 1e3, "M": 1e6},
}
"""Units of a figure, by metric, and how much of the metric's own unit they are."""


EXAMPLES = {"latency": "8 ms", "energy": "20 mJ", "memory": "4 MB", "macs": "20M", "params": "0.3M"}


NUMBER = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(\S*)\s*")


@dataclass(frozen=True)
class Constraints:
    """What the found network may cost at most: "50%" of the base network's, or a figure with its unit."""

    latency: str = ""
    """A batch on the target, measured: "60%", "8 ms"."""
    energy: str = ""
    """A batch on the target, by the meter of its processor or GPU: "60%", "20 mJ"."""
    memory: str = ""
    """Activations alive at once of a batch in eager PyTorch, weights left out: "50%", "4 MB"."""
    macs: str = ""
    """Multiply-adds of an image: "50%", "20M"."""
    params: str = ""
    """Trainable parameters: "50%", "0.3M"."""
    accuracy_floor: str = ""
    """For `htas fastest`: the accuracy to keep, in points below the base network's ("-0.3"), or absolute ("93.5%") of
    networks that are trained on one part of the training images and judged on the other (split.validation)."""
    seeds: int = 3
    """For `htas fastest`: trainings of each network, whose mean accuracy counts."""
    tries: int = 4
    """For `htas fastest`: budgets tried at most, each half as far from the last."""

    def __post_init__(self) -> None:
        for metric, text in self.given.items():
            parse(metric, text, 1.0)
        if self.accuracy_floor:
            floor(self.accuracy_floor, 1.0)
        for name in ("seeds", "tries"):
            if getattr(self, name) < 1:
                raise UserError(f"constraints.{name} must be 1 or more, got {getattr(self, name)}")

    @property
    def given(self) -> dict[str, str]:
        """The limits that are given, by metric."""
        return {field.name: getattr(self, field.name) for field in fields(self)
                if field.name in UNITS and getattr(self, field.name)}  # fmt: skip


def parse(metric: str, text: str, base: float) -> float:
    """The limit in the metric's own unit, given the base network's figure.

    Raises UserError that says how limits are written where the text is no number over 0 with a unit of the metric.
    """
    found = NUMBER.fullmatch(text)
    units = UNITS[metric]
    number, unit = (float(found[1]), found[2]) if found else (0.0, "?")
    if number <= 0 or unit not in (*units, "%"):
        named = listing([*(each for each in units if each), "%"])
        raise UserError(
            f'constraints.{metric} must be a share of the base network such as "50%", or a number over 0 with a unit '
            f'({named}) such as "{EXAMPLES[metric]}", got {text!r}'
        )
    return number / 100 * base if unit == "%" else number * units[unit]


def floor(text: str, base: float) -> float:
    """The accuracy to keep, 0 to 1, given the base network's: "-0.3" is in points below it, "93.5%" absolute.

    Raises UserError that says how it is written.
    """
    below, absolute = (re.fullmatch(pattern, text) for pattern in (r"\s*-\s*(\d+\.?\d*)\s*", r"\s*(\d+\.?\d*)\s*%\s*"))
    if below:
        return base - float(below[1]) / 100
    if absolute and 0 < float(absolute[1]) <= 100:
        return float(absolute[1]) / 100
    raise UserError(
        'constraints.accuracy_floor must be in points below the base network\'s accuracy such as "-0.3", or a share '
        f'such as "93.5%", got {text!r}'
    )


@dataclass(frozen=True)
class Limit:
    """One constraint as a number."""

    metric: str
    text: str
    """As it was given."""
    cost: CostModel
    most: float
    """In the cost's unit."""

    def ratio(self, arch: Arch) -> float:
        """The cost of an arch over the limit: at most 1 where it is kept."""
        return self.cost.cost(arch) / self.most


def limits(constraints: Constraints, costs: Mapping[str, CostModel], base: Arch) -> tuple[Limit, ...]:
    """The constraints as numbers; `costs` has a model of every metric that is constrained."""
    return tuple(
        Limit(metric, text, costs[metric], parse(metric, text, costs[metric].cost(base)))
        for metric, text in constraints.given.items()
    )
