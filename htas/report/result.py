"""What a run has to say: one Result per network, and a Report that gathers them with what led there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from reprlib import repr as shortened
from typing import Any

from htas.files import need_not_below, need_over
from htas.graph.arch import Arch
from htas.search.record import SearchRecord
from htas.spaces.curve import CurveRecord
from htas.text import percent, signed
from htas.timing.measurement import Measurement

LONGEST_NAME = 200
"""Letters of the name of a network, after which a file is named."""


@dataclass(frozen=True)
class Deployed:
    """The accuracy of a network as its user runs it: by the runtime, in another precision than fp32."""

    precision: str
    accuracy: float
    """Share of the test images, 0 to 1."""
    difference: float
    """From fp32 in PyTorch, on the same images."""
    noise: float | None
    """Two standard errors of the difference; None where it is unknown."""
    images: int
    """How many of the test split were read; 0 where the user's own function judges."""
    remark: str = ""
    """What stays in fp32, and whether outputs are unlike those in fp32, as sentences."""

    @property
    def change(self) -> str:
        """`-0.25 ± 0.12 points`, from fp32."""
        return f"{signed(100 * self.difference)}{f' ± {100 * self.noise:.2f}' if self.noise is not None else ''} points"

    @property
    def sentence(self) -> str:
        """Both in a line."""
        return f"in {self.precision}, as deployed, accuracy {percent(self.accuracy)} ({self.change} from fp32)"


@dataclass(frozen=True)
class Result:
    """One network: its arch, what it was made by, and every figure counted or measured of it."""

    name: str
    """`base`, `hardware`, `tas`, `grid`, `uniform 0.56`, `plain cifar_resnet:14`."""
    family: str
    """`cifar_resnet:20`."""
    arch: Arch
    adds: str
    space: str
    """The space it was searched in; `-` where none was."""
    strategy: str
    """`differentiable`, or what else chose it (`given`, `uniform`, `plain`)."""
    cost: str
    """What the search was charged, `paper` or `macs`, with its weight; `-` where none was."""
    target: Mapping[str, Any]
    macs: int
    params: int
    accuracy: float | None = None
    """Share of the test split, last epoch, 0 to 1; None until trained."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    teacher: str = ""
    """The network it was distilled from; empty for none."""
    predicted: float | None = None
    """Seconds, by the calibrated sum of its layers (cost.json), made before it was measured."""
    outside: str = ""
    """Where `predicted` lies outside the measured widths, a sentence on that; otherwise empty."""
    measured: Measurement | None = None
    """Seconds per batch of the whole network."""
    deployed: Deployed | None = None
    """Its accuracy by the runtime; None where that computes in fp32."""
    versions: Mapping[str, Any] = field(default_factory=dict)
    lost: str = ""
    """Where its training ended clearly below the weights that it began with, a sentence on that; otherwise empty."""
    remarks: tuple[str, ...] = ()
    """What a reader must know of this row, each a sentence."""
    breaks: tuple[str, ...] = ()
    """Limits and bounds of the configuration that it breaks, each in words; it is then offered as no answer."""

    def __post_init__(self) -> None:
        if not 0 < len(self.name) <= LONGEST_NAME:
            raise ValueError(f"must have a name of 1 to {LONGEST_NAME} letters, got {shortened(self.name)}")
        need_not_below(0, self, "macs", "params", "seed")
        for name in ("predicted", "measured"):
            value = getattr(self, name)
            seconds = value.estimate if isinstance(value, Measurement) else value
            if seconds is not None and not seconds >= 0:
                raise ValueError(f"must have {name} of 0 seconds or more, got {seconds}")
        if type(self.target.get("batch", 1)) is not int:
            raise ValueError(f"must have a whole number as batch of target, got {shortened(self.target['batch'])}")
        if not isinstance(shapes := self.target.get("shapes", []), list | tuple):
            raise ValueError(f"must have a list as shapes of target, got {shortened(shapes)}")

    @property
    def predicted_note(self) -> str:
        """What stands by the predicted latency, in a few words; empty for nothing."""
        return "outside the measured widths" if self.outside else ""


@dataclass(frozen=True)
class Prediction:
    """A whole network of the calibration."""

    predicted: float
    """Seconds, by the fit on all others of them."""
    measured: float
    error: float
    """Standard error of `measured`."""

    def __post_init__(self) -> None:
        need_over(0, self, "measured")
        need_not_below(0, self, "predicted", "error")


@dataclass(frozen=True)
class Report:
    """Everything a report shows; what is not here is not printed."""

    title: str
    command: str
    """The command that repeats the run."""
    results: tuple[Result, ...]
    curves: tuple[CurveRecord, ...]
    searches: tuple[SearchRecord, ...]
    machine: Mapping[str, Any]
    config: str
    """The whole configuration, as TOML."""
    dataset: str
    stages: Mapping[str, float]
    """Seconds each stage took."""
    remarks: tuple[str, ...] = ()
    test_images: int = 0
    """Images of the test split, which say how finely accuracy can be told; 0 where unknown, and where it is another
    score than the share of right answers."""
    classes: int = 0
    """Of the data set, where an accuracy is a share of right answers; 0 where it is another score, or unknown."""
    predictions: tuple[Prediction, ...] = ()
    """Networks that the calibration predicted without having seen them."""
    blocks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By depth site its blocks, in order: a depth of 2 keeps the first two."""

    def __post_init__(self) -> None:
        need_not_below(0, self, "test_images", "classes")


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Of (cost, worth) pairs the numbers of those that no other beats in both, cheapest first."""
    order = sorted(range(len(points)), key=lambda number: (points[number][0], -points[number][1]))
    kept: list[int] = []
    for number in order:
        if not kept or points[number][1] > points[kept[-1]][1]:
            kept.append(number)
    return kept
