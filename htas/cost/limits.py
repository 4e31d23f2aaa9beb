"""Limits that a network must keep: as people write them, and as numbers.

A limit is a share of the base network's figure ("50%") or a figure with its unit ("8 ms", "1.0M").
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from htas import metrics
from htas.cost.model import CostModel
from htas.errors import UserError
from htas.graph.arch import Arch
from htas.metrics import Metric
from htas.text import listing

STANDARD = ("latency", "energy", "memory", "macs", "params")
"""Metrics whose limits have an option of their own."""
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
    metrics: dict[str, str] = field(default_factory=dict)
    """Limits by metrics of your own: {"package.module:Class" = "50%"}."""

    def __post_init__(self) -> None:
        for metric, text in self.by_metric.items():
            parse(metric, text, 1.0)

    @property
    def by_metric(self) -> dict[str, str]:
        """The limits as text, by metric; metrics without one are left out."""
        standard = {name: getattr(self, name) for name in STANDARD}
        return {metric: text for metric, text in (standard | self.metrics).items() if text}


def parse(metric: str, text: str, base: float) -> float:
    """The limit in the metric's unit; `base` is the base network's figure.

    Raises UserError if the text is no number over 0 with a unit of the metric.
    """
    match = NUMBER.fullmatch(text)
    kind = metrics.named(metric)
    number, unit = (float(match[1]), match[2]) if match else (0.0, "?")
    if number <= 0 or unit not in (*kind.units, "%"):
        option = metric if metric in STANDARD else f'metrics."{metric}"'
        allowed = listing([*(each for each in kind.units if each), "%"])
        raise UserError(
            f'constraints.{option} must be a share of the base network such as "50%", or a number over 0 with a unit '
            f'({allowed}) such as "{kind.example}", got {text!r}'
        )
    return number / 100 * base if unit == "%" else number * kind.units[unit]


@dataclass(frozen=True)
class Limit:
    """One constraint as a number."""

    metric: str
    text: str
    """As the user wrote it: "50%", "8 ms"."""
    cost: CostModel
    most: float
    """In the cost's unit."""

    @property
    def kind(self) -> type[Metric]:
        """The class of the metric, which says how the limit is checked."""
        return metrics.named(self.metric)

    def ratio(self, arch: Arch) -> float:
        """The cost of an arch over the limit: at most 1 if the limit is kept."""
        return self.cost.cost(arch) / self.most


def limits(constraints: Constraints, costs: Mapping[str, CostModel], base: Arch) -> tuple[Limit, ...]:
    """The constraints as numbers; `costs` has a cost model for every metric with a limit."""
    return tuple(
        Limit(metric, text, costs[metric], parse(metric, text, costs[metric].cost(base)))
        for metric, text in constraints.by_metric.items()
    )
