"""What a run has to say: one Result per network, and a Report that gathers them with what led there."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from htas.arch import Arch
from htas.measurement import Measurement


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
    measured: Measurement | None = None
    """Seconds per batch of the whole network."""
    versions: Mapping[str, Any] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    """What a reader must know of this row, each a sentence."""

    def json(self) -> dict[str, Any]:
        """As plain JSON values; `Result.of` reads them back."""
        measured = self.measured.json() if self.measured else None
        plain = {name: value for name, value in vars(self).items() if name not in ("arch", "measured")}
        return {**plain, "arch": self.arch.json(), "measured": measured, "remarks": list(self.remarks)}

    @staticmethod
    def of(content: Mapping[str, Any]) -> "Result":
        """Read what `json` gave."""
        fields = {name: value for name, value in content.items() if name != "format"}
        measured = fields["measured"]
        return Result(
            **{
                **fields,
                "arch": Arch.of(fields["arch"]),
                "measured": Measurement.of(measured) if measured else None,
                "remarks": tuple(fields["remarks"]),
            }
        )


LATER = ("doubts", "errors", "certain", "dominated", "interpolated")
"""Fields of a CurveRecord that files of older versions may lack."""


@dataclass(frozen=True)
class CurveRecord:
    """One latency curve of the survey, with its fit and what was chosen on it (the paper's Fig. 2 and 3)."""

    sites: tuple[str, ...]
    """The sites that share it."""
    base: int
    widths: tuple[int, ...]
    latency: tuple[float, ...]
    """Seconds at each width: m(x)."""
    k: float
    alpha: float
    b: float
    """f(x) = k x^alpha + b, in seconds (eq. 1)."""
    groups: tuple[tuple[int, int], ...]
    """First and last width of each group."""
    choices: Mapping[str, tuple[int, ...]]
    """By space: `hardware`, `tas`, `grid`, ..."""
    doubts: tuple[str, ...] = ()
    errors: tuple[float, ...] = ()
    """Standard error of each latency, in seconds; nothing where they are not known."""
    certain: tuple[float, ...] = ()
    """How sure the choice of each group is, 0 to 1, of the space `hardware`."""
    dominated: tuple[int, ...] = ()
    """Choices of the space `hardware` that are no faster than a wider one."""
    interpolated: tuple[int, ...] = ()
    """Widths that were not measured: their latency lies on the line between the measured ones beside them."""

    def fit(self, width: float) -> float:
        """f(x) of eq. 1, in seconds."""
        return float(self.k * width**self.alpha + self.b)

    @property
    def scores(self) -> tuple[float, ...]:
        """s(x) = f(x) - m(x) at each width, in seconds (eq. 2): how much faster than the fit."""
        return tuple(self.fit(width) - latency for width, latency in zip(self.widths, self.latency, strict=True))

    def json(self) -> dict[str, Any]:
        """As plain JSON values; `CurveRecord.of` reads them back."""
        return asdict(self)

    @staticmethod
    def of(content: Mapping[str, Any]) -> "CurveRecord":
        """Read what `json` gave."""
        return CurveRecord(
            **{
                **content,
                "sites": tuple(content["sites"]),
                "widths": tuple(content["widths"]),
                "latency": tuple(content["latency"]),
                "groups": tuple((first, last) for first, last in content["groups"]),
                "choices": {space: tuple(widths) for space, widths in content["choices"].items()},
                **{name: tuple(content.get(name, ())) for name in LATER},
            }
        )


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

    @property
    def scalars(self) -> dict[str, float]:
        """Its figures by name, those that it has; the entropy of a site as `entropy/SITE`."""
        own = {name: value for name, value in vars(self).items() if name not in ("epoch", "entropy")}
        return {name: value for name, value in own.items() if value is not None} | {
            f"entropy/{site}": value for site, value in self.entropy.items()
        }


@dataclass(frozen=True)
class Kept:
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

    @property
    def ratio(self) -> float:
        """Measured over the limit: at most 1 where it is kept."""
        return self.measured / self.limit

    @property
    def share(self) -> float | None:
        """Of the base network's, where it was asked for so."""
        return float(self.asked.rstrip(" %")) / 100 if self.asked.endswith("%") else None


@dataclass(frozen=True)
class SearchRecord:
    """One search: its course, whether it converged, and how its arch stands beside random ones."""

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
    limits: tuple[Kept, ...] = ()
    """What the arch may cost, and does."""
    measured_archs: int = 0
    """Archs that were measured whole before one was taken."""
    uniform: float | None = None
    """Supernet validation accuracy of the widest arch within the limits that has all blocks and, at every site, the
    same of its choices; None without limits, or where none keeps them. It is the arch taken where it is better."""
    judge: str = "in the supernet"
    """How accuracies were found."""

    @property
    def beaten(self) -> int:
        """Rivals with a lower accuracy than the arch found."""
        return sum(rival < (self.accuracy or 0.0) for rival in self.rivals)

    def json(self) -> dict[str, Any]:
        """As plain JSON values; `SearchRecord.of` reads them back."""
        return {**asdict(self), "arch": self.arch.json()}

    @staticmethod
    def of(content: Mapping[str, Any]) -> "SearchRecord":
        """Read what `json` gave."""
        fields = {name: value for name, value in content.items() if name not in ("format", "inputs")}
        return SearchRecord(
            **{
                **fields,
                "arch": Arch.of(fields["arch"]),
                "epochs": tuple(EpochRecord(**epoch) for epoch in fields["epochs"]),
                "rivals": tuple(fields["rivals"]),
                "rival_costs": tuple(fields["rival_costs"]),
                "limits": tuple(Kept(**limit) for limit in fields.get("limits", ())),
            }
        )


@dataclass(frozen=True)
class Prediction:
    """A whole network of the calibration."""

    predicted: float
    """Seconds, by the fit on all others of them."""
    measured: float
    error: float
    """Standard error of `measured`."""


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
    """Images of the test split, which say how finely accuracy can be told; 0 where unknown."""
    predictions: tuple[Prediction, ...] = ()
    """Networks that the calibration predicted without having seen them."""
    blocks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By depth site its blocks, in order: a depth of 2 keeps the first two."""

    def json(self) -> dict[str, Any]:
        """As plain JSON values; `Report.of` reads them back."""
        return {
            **{name: value for name, value in vars(self).items() if name not in ("results", "curves", "searches")},
            "remarks": list(self.remarks),
            "predictions": [asdict(each) for each in self.predictions],
            "blocks": {site: list(blocks) for site, blocks in self.blocks.items()},
            "results": [result.json() for result in self.results],
            "curves": [curve.json() for curve in self.curves],
            "searches": [search.json() for search in self.searches],
        }

    @staticmethod
    def of(content: Mapping[str, Any]) -> "Report":
        """Read what `json` gave."""
        return Report(
            **{
                **{name: value for name, value in content.items() if name != "format"},
                "remarks": tuple(content["remarks"]),
                "predictions": tuple(Prediction(**each) for each in content.get("predictions", ())),
                "blocks": {site: tuple(blocks) for site, blocks in content.get("blocks", {}).items()},
                "results": tuple(Result.of(result) for result in content["results"]),
                "curves": tuple(CurveRecord.of(curve) for curve in content["curves"]),
                "searches": tuple(SearchRecord.of(search) for search in content["searches"]),
            }
        )
