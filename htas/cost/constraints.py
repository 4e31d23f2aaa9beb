"""What the searched network may cost, as people write it: "50%" of the base network, "8 ms", "1.0M"."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from htas import plugins
from htas.errors import UserError
from htas.plugins.options import source_file
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
    units, example = _units(metric)
    number, unit = (float(match[1]), match[2]) if match else (0.0, "?")
    if number <= 0 or unit not in (*units, "%"):
        option = metric if metric in STANDARD else f'metrics."{metric}"'
        allowed = listing([*(each for each in units if each), "%"])
        raise UserError(
            f'constraints.{option} must be a share of the base network such as "50%", or a number over 0 with a unit '
            f'({allowed}) such as "{example}", got {text!r}'
        )
    return number / 100 * base if unit == "%" else number * units[unit]


def _units(metric: str) -> tuple[Mapping[str, float], str]:
    """The units in which limits on a metric are written, and an example; raises UserError where it does not exist.

    The package's own are read from the source of their files, so that PyTorch is not imported for them.
    """
    plugins.check_name("htas.metrics", metric)
    kind: Any
    if ":" in metric:
        from htas import metrics

        kind = metrics.named(metric)
    else:
        kind = source_file(f"htas.metrics.{metric}").implementation("htas.metrics:Metric").as_object({})
    return kind.units, kind.example
