"""The file of a search: every epoch, the limits of its arch, and the archs it was compared with."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from reprlib import repr as shortened

from htas.files import need_as_many, need_not_below, need_over, need_some
from htas.graph.arch import Arch
from htas.text import percent, quantity


@dataclass(frozen=True)
class EpochRecord:
    """One epoch of a search."""

    epoch: int
    temperature: float | None
    """Of the Gumbel softmax, at the epoch's last step; None, as others below, of a strategy that has no such thing."""
    train_loss: float
    validation_loss: float | None
    """Cross-entropy of the architecture steps, of sampled mixtures."""
    validation_accuracy: float | None
    expected_cost: float
    """E[cost] / cost of the base; of a strategy that draws archs, their mean."""
    argmax_cost: float | None
    """Cost of the most probable arch / cost of the base."""
    top_probability: float | None
    """Median over sites of the largest probability."""
    seconds: float
    entropy: Mapping[str, float] = field(default_factory=dict)
    """Of the probabilities of each site that has a choice, over that of equal ones: 1 undecided, 0 decided."""

    def __post_init__(self) -> None:
        need_not_below(0, self, "epoch", "seconds")

    @property
    def scalars(self) -> dict[str, float]:
        """Its figures by name, those that it has; the entropy of a site as `entropy/SITE`."""
        figures = {name: value for name, value in vars(self).items() if name not in ("epoch", "entropy")}
        entropies = {f"entropy/{site}": value for site, value in self.entropy.items()}
        return {name: value for name, value in figures.items() if value is not None} | entropies


@dataclass(frozen=True)
class LimitOutcome:
    """A limit, and what the arch that was taken makes of it."""

    metric: str
    asked: str
    """As it was given: "50%", "8 ms"."""
    limit: float
    """In the metric's unit, of the base network as it was measured then."""
    predicted: float
    measured: float
    """On fresh readings, by which the arch was accepted and not proposed; counted, where the metric is counted."""
    error: float
    """Standard error of measured / limit."""
    unit: str

    def __post_init__(self) -> None:
        need_over(0, self, "limit")
        need_not_below(0, self, "predicted", "measured", "error")
        if self.asked.endswith("%") and not NUMBER.fullmatch(self.asked.rstrip(" %")):
            raise ValueError(f"must have asked as a number with %, got {shortened(self.asked)}")

    @property
    def ratio(self) -> float:
        """Measured over the limit: at most 1 where the arch keeps it."""
        return self.measured / self.limit

    @property
    def excess(self) -> str:
        """That the arch breaks the limit, and by how much, in words; empty where it keeps it."""
        words = f"{self.metric} is {percent(self.ratio, 1)} of what {self.asked!r} allows"
        return words if self.ratio > 1 else ""

    @property
    def breach(self) -> str:
        """By what figure the arch breaks the limit, in words; empty where two standard errors may explain it."""
        if self.ratio <= 1 + 2 * self.error:
            return ""
        share = f", {percent(self.ratio * self.share, 1)} of the base network's" if self.share else ""
        return f"{self.metric} is {quantity(self.measured, self.unit)}{share}, where {self.asked} was asked for"

    @property
    def share(self) -> float | None:
        """Of the base network's, where it was asked for so."""
        return float(self.asked.rstrip(" %")) / 100 if self.asked.endswith("%") else None


@dataclass(frozen=True)
class SearchRecord:
    """One search: its course, whether it converged, and how its arch compares with random ones."""

    space: str
    strategy: str
    cost: str
    arch: Arch
    epochs: tuple[EpochRecord, ...]
    converged: bool
    why: str
    """The figures behind `converged`, in words."""
    accuracy: float | None
    """Validation accuracy of the arch found, as `judge` says; None where nothing was searched."""
    rivals: tuple[float, ...]
    """Supernet validation accuracies of random archs of about its cost."""
    rival_costs: tuple[float, ...]
    """Their costs divided by the found arch's."""
    seconds: float
    seed: int
    limits: tuple[LimitOutcome, ...] = ()
    """What the arch may cost, and does."""
    measured_archs: int = 0
    """Archs that were measured whole before one was taken."""
    uniform: float | None = None
    """Supernet validation accuracy of the widest arch within the limits that has all blocks and, at every site, the
    same of its choices; None without limits, or where none keeps them. It becomes the arch where it is better."""
    judge: str = "in the supernet"
    """How accuracies were found."""

    def __post_init__(self) -> None:
        need_as_many(self, "rivals", "rival_costs")
        need_not_below(0, self, "seconds", "measured_archs")
        need_some(self, "judge")
        if any(later.epoch != epoch.epoch + 1 for epoch, later in pairwise(self.epochs)):
            raise ValueError("must have epochs that are counted one by one")

    @property
    def beaten(self) -> int:
        """Rivals with a lower accuracy than the arch found."""
        return sum(rival < (self.accuracy or 0.0) for rival in self.rivals)


NUMBER = re.compile(r"\s*(\d+(\.\d*)?|\.\d+)")
SURE = 0.6
"""Median top probability from which a search counts as converged."""
METRICS = {"table": "latency", "paper": "latency"}
"""What a cost is a cost of, where it has another name."""
