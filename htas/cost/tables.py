"""The cost of an arch as the sum of its layers, each a function of its input and its output width.

Where eq. 8 has a line through the output width, this has the layer's figures at pairs of widths, measured (TableCost,
MetricSum) or counted (counts.py). The expectation is exact, under the distributions of the input width (after a cut
that of the last kept block) and of the output width, and with the probability of keeping the layer's block. A layer
whose input and output are one site is charged for equal widths only. Only the sum of several widths (a concatenation)
enters by its mean.
"""

from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import chain
from reprlib import repr as shortened
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from htas.cost.model import CostModel, by_block, expectation
from htas.errors import UserError
from htas.files import need_as_many, need_not_below, need_rising
from htas.graph import Arch, Network
from htas.graph.layer import Layer, Template
from htas.graph.network import Step, times, total_channels
from htas.metrics import Metric
from htas.spaces.space import Space
from htas.text import plural

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Source = tuple[str | int, int | Fraction]
"""A width site or a fixed number of channels, and how often each channel is repeated."""


@dataclass(frozen=True)
class Mixture:
    """A width as `Network.flow` carries it: probabilities of sites and fixed numbers, which sum to 1."""

    shares: Mapping[str | int, Any]

    def __rmul__(self, share: Any) -> "Mixture":
        """Weighted by a probability."""
        return Mixture({source: share * weight for source, weight in self.shares.items()})

    def __radd__(self, other: Any) -> "Mixture":
        """`sum` begins with 0."""
        assert other == 0, "a fixed width is in no mixture: the blocks of a depth site end alike"
        return self

    def __add__(self, other: "Mixture") -> "Mixture":
        """The mixture of two weighted ones."""
        shares = dict(self.shares)
        for source, share in other.shares.items():
            shares[source] = shares[source] + share if source in shares else share
        return Mixture(shares)


def mixture(width: Any) -> Mixture:
    """A width as a mixture; a number is one that is certain, a tensor too: a fixed width times shares that sum to 1."""
    if isinstance(width, Mixture):
        return width
    return Mixture({round(float(width.detach() if isinstance(width, Tensor) else width)): 1.0})


@dataclass(frozen=True)
class Term:
    """Layers of one template whose widths have the same two sources."""

    template: Template
    inputs: Source
    outputs: Source
    projects: bool
    """Whether the layer is a projection, which is absent if its widths are equal."""


@dataclass(frozen=True)
class LayerCost(CostModel):
    """The sum over layers; subclasses give the cost of one."""

    network: Network

    @abstractmethod
    def values(self, template: Template, inputs: Sequence[int], outputs: Sequence[int]) -> Floats:
        """Costs of a template at every pair of these layer widths, [inputs, outputs]."""

    @property
    def constant(self) -> float:
        """Cost of every arch in addition to its layers."""
        return 0.0

    def template(self, step: Step) -> Template | None:
        """The template that a step is charged as; None if it is free."""
        return step.node.template

    def cost(self, arch: Arch) -> float:
        """The cost of one arch, in `unit`."""
        layers = self.layers(arch)
        return self.constant + sum(float(self.values(each, [i], [o])[0, 0]) for each, i, o in layers)

    def layers(self, arch: Arch) -> Iterator[tuple[Template, int, int]]:
        """Templates of the layers that are charged, each with its inputs and outputs, in the order they run."""
        for step in self.network.steps(arch):
            template = self.template(step)
            if template is not None and not (step.node.kind == "project" and step.channels_in == step.channels):
                inputs, outputs = (total_channels(*side) for side in step.charged)
                yield template, inputs, outputs

    def expected(self, space: Space, widths: Mapping[str, Tensor], depths: Mapping[str, Tensor]) -> Tensor:
        """The mean over archs drawn from these probabilities, a differentiable scalar."""
        total: Any = torch.as_tensor(self.constant)
        for term, count in self._terms(space, widths, depths).items():
            total = total + count * self._mean(term, space, widths)
        return torch.as_tensor(total)

    def _terms(self, space: Space, widths: Mapping[str, Tensor], depths: Mapping[str, Tensor]) -> dict[Term, Any]:
        """Every term with its expected number of layers."""
        terms: dict[Term, Any] = {}
        for step in self._flow(space, depths):
            template = self.template(step)
            if template is None:
                continue
            inputs, outputs = (self._sources(*side, space, widths) for side in step.charged)
            alone = template.keeps_width or not step.inputs
            pairs = [(each, each) for each in outputs] if alone else [(a, b) for a in inputs for b in outputs]
            for one, other in pairs:
                share = step.share * one[1] * (1.0 if alone else other[1])
                term = Term(template, one[0], other[0], step.node.kind == "project")
                terms[term] = terms[term] + share if term in terms else share
        return terms

    def _flow(self, space: Space, depths: Mapping[str, Tensor]) -> Iterator[Step]:
        """The steps of the network, with mixtures as widths, and the probability of each."""
        stays = {name: by_block(space.depths[name], depths[name], s.base) for name, s in self.network.depths.items()}
        return self.network.flow(lambda site: Mixture({site: 1.0}), stays.__getitem__)

    def _sources(
        self, segments: Sequence[Any], channels: Sequence[Any], space: Space, widths: Mapping[str, Tensor]
    ) -> list[tuple[Source, Any]]:
        """Possible sources of a number of channels, each with its probability.

        The sum of several sites is its mean, a tensor that gradients flow through, between two whole numbers.
        """
        mixtures = [mixture(width) for width in channels]
        if len(mixtures) == 1:
            repeat = segments[0].repeat
            return [((source, repeat), share) for source, share in mixtures[0].shares.items()]
        total: Any = 0
        for segment, each in zip(segments, mixtures, strict=True):
            for source, share in each.shares.items():
                mean = source if isinstance(source, int) else expectation(space.widths[source], widths[source])
                total = total + share * times(mean, segment.repeat)
        low = int(total)
        if not isinstance(total, Tensor):
            return [((low, 1), 1.0)]
        return [((low, 1), low + 1 - total), ((low + 1, 1), total - low)]

    def _mean(self, term: Term, space: Space, widths: Mapping[str, Tensor]) -> Any:
        ways, chances = _ways(term.inputs, space, widths)
        out, likely = _ways(term.outputs, space, widths)
        if term.inputs[0] == term.outputs[0] and isinstance(term.inputs[0], str):  # one draw decides both
            values = np.array([self.values(term.template, [a], [b])[0, 0] for a, b in zip(ways, out, strict=True)])
            if term.projects:
                values = np.where(np.equal(ways, out), 0.0, values)
            return torch.as_tensor(values, dtype=chances.dtype, device=chances.device) @ chances
        table = self.values(term.template, ways, out)
        if term.projects:
            table = np.where(np.equal.outer(ways, out), 0.0, table)
        return chances @ torch.as_tensor(table, dtype=chances.dtype, device=chances.device) @ likely


def _ways(source: Source, space: Space, widths: Mapping[str, Tensor]) -> tuple[list[int], Tensor]:
    """Possible layer widths of a source and their probabilities [widths]."""
    site, repeat = source
    if isinstance(site, str):
        return [int(times(width, repeat)) for width in space.widths[site]], widths[site]
    like = next(iter(widths.values())) if widths else torch.zeros(())
    return [int(times(site, repeat))], like.new_ones(1)


@dataclass(frozen=True)
class Table:
    """Figures of a layer at pairs of widths, linear between them.

    A narrower layer takes what the narrowest takes: most devices have a floor, and no layer is predicted to be faster
    than those that were measured. A wider one lies on the line through the narrowest and the widest, and takes no less
    than the widest.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    values: tuple[tuple[float, ...], ...]
    """[inputs, outputs]"""

    def __post_init__(self) -> None:
        need_rising(self, "inputs", "outputs")
        need_as_many(self, "inputs", "values")
        if any(len(row) != len(self.outputs) for row in self.values):
            raise ValueError(f"must have {len(self.outputs)} values in each row, as it has so many outputs")

    def at(self, inputs: Sequence[int], outputs: Sequence[int]) -> Floats:
        """Figures at every pair, [inputs, outputs]."""
        inside = self._linear(np.minimum(inputs, self.inputs[-1]), np.minimum(outputs, self.outputs[-1]))
        return np.maximum(np.maximum(self._linear(inputs, outputs), inside), 0.0)

    def outside(self, inputs: int, outputs: int) -> tuple[bool, bool]:
        """Whether a layer is narrower, and whether it is wider, than any of the table, in inputs or in outputs."""
        widths = ((inputs, self.inputs), (outputs, self.outputs))
        return any(width < places[0] for width, places in widths), any(width > places[-1] for width, places in widths)

    def _linear(self, inputs: Sequence[int] | Ints, outputs: Sequence[int] | Ints) -> Floats:
        values: Floats = _between(self.inputs, inputs) @ np.asarray(self.values) @ _between(self.outputs, outputs).T
        return values


def _between(places: Sequence[int], points: Sequence[int] | Ints) -> Floats:
    """Weights [points, places] from values at `places` to values at `points`: linear interpolation; below the first
    place its value, and above the last the line through these two."""
    weights = np.zeros((len(points), len(places)))
    for row, x in enumerate(points):
        if x <= places[0] or len(places) == 1:
            weights[row, 0] = 1.0
        elif x > places[-1]:
            share = (x - places[-1]) / (places[-1] - places[0])
            weights[row, 0], weights[row, -1] = -share, 1 + share
        else:
            above = int(np.searchsorted(places, x))
            share = (x - places[above - 1]) / (places[above] - places[above - 1])
            weights[row, above - 1 : above + 1] = 1 - share, share
    return weights


@dataclass(frozen=True)
class Calibration:
    """Turns the sum of layers into a network's figure."""

    scales: Mapping[str, float] = field(default_factory=dict)
    """By kind of operator (Layer.kind); 1 for other kinds."""
    each: float = 0.0
    """Added for every layer."""
    constant: float = 0.0
    """Added for every network."""
    beyond_cache: float = 0.0
    """Added for every parameter beyond `cache`: a layer that is timed alone finds its weights in the processor's
    cache, one of a large network reads them from memory."""
    cache: float = 0.0
    """Parameters of all layers of a network that stay in the cache."""

    def __post_init__(self) -> None:
        need_not_below(0, self, "each", "constant", "beyond_cache", "cache")
        if low := next((kind for kind, scale in self.scales.items() if not scale >= 0), ""):
            raise ValueError(f"must have scales of 0 or more, got {self.scales[low]} of {shortened(low)}")


@dataclass(frozen=True)
class ParameterSum(LayerCost):
    """The parameters of the layers that run, and of nothing else in the module."""

    unit: str = "parameters"

    def values(self, template: Template, inputs: Sequence[int], outputs: Sequence[int]) -> Floats:
        """Those of a template, [inputs, outputs]."""
        return np.array([[template.at(i, o).params for o in outputs] for i in inputs], float)


@dataclass(frozen=True)
class TableCost(LayerCost):
    """The measured figures of layers at pairs of widths, calibrated against whole networks."""

    tables: Mapping[Template, Table]
    calibration: Calibration = field(default_factory=Calibration)
    unit: str = "s"
    measured: Mapping[Arch, float] = field(default_factory=dict)
    """Measured figures that override the sum: the base network's, to which percentages refer."""
    linear: bool = False
    """Whether a network with fewer parameters than the cache holds is credited for those."""
    _values: dict[Any, Floats] = field(default_factory=dict, repr=False, compare=False)

    def cost(self, arch: Arch) -> float:
        """The measured figure if there is one, otherwise the calibrated sum."""
        if arch in self.measured:
            return self.measured[arch]
        return super().cost(arch) + float(self._beyond_cache(lambda count: count.cost(arch)))

    def expected(self, space: Space, widths: Mapping[str, Tensor], depths: Mapping[str, Tensor]) -> Tensor:
        """The mean over archs drawn from these probabilities, where what the cache lacks is that of the mean number of
        parameters: never more than its mean."""
        more = self._beyond_cache(lambda count: count.expected(space, widths, depths))
        return torch.as_tensor(super().expected(space, widths, depths) + more)

    def _beyond_cache(self, parameters: Callable[[ParameterSum], Any]) -> Any:
        """What parameters beyond the cache add."""
        fit = self.calibration
        if not fit.beyond_cache:
            return 0.0
        beyond = parameters(ParameterSum(self.network)) - fit.cache
        return fit.beyond_cache * (beyond if self.linear or beyond > 0 else 0.0 * beyond)

    def parts(self) -> tuple["TableCost", ...]:
        """Without the parameters that the cache lacks, and with all of them, fewer than it holds counting as a credit:
        both are sums over layers, and the larger one is this cost."""
        summed = replace(self, measured={}, _values={})
        if not self.calibration.beyond_cache:
            return (summed,)
        return replace(summed, calibration=replace(self.calibration, beyond_cache=0.0)), replace(summed, linear=True)

    def remark(self, arch: Arch) -> str:
        """How many layers lie outside the measured widths, and what they count as; empty where none does."""
        if arch in self.measured:
            return ""
        flags = [self._outside(*layer) for layer in self.layers(arch)]
        counts = {
            "narrower, and count as the narrowest": sum(narrower for narrower, _ in flags),
            "wider, and count by a straight line": sum(wider for _, wider in flags),
        }
        parts = [f"{count} of {plural(len(flags), 'layer')} are {words}" for words, count in counts.items() if count]
        return f"The prediction lies outside the measured widths: {'; '.join(parts)}." if parts else ""

    def _outside(self, template: Template, inputs: int, outputs: int) -> tuple[bool, bool]:
        """Whether a layer is narrower, and whether it is wider, than those measured."""
        table = self._table(template)
        return table.outside(table.inputs[0] if template.keeps_width else inputs, outputs)

    def values(self, template: Template, inputs: Sequence[int], outputs: Sequence[int]) -> Floats:
        """Calibrated figures, [inputs, outputs]; raises UserError if the layer was not measured."""
        place = (template, tuple(inputs), tuple(outputs))
        if place not in self._values:
            fit, raw = self.calibration, self._table(template).at(inputs, outputs)
            self._values[place] = fit.scales.get(template.kind, 1.0) * raw + fit.each
        return self._values[place]

    def _table(self, template: Template) -> Table:
        if template not in self.tables:
            raise UserError(f"cost.json lacks the layer {template.kind} of this network; calibrate it again")
        return self.tables[template]

    @property
    def constant(self) -> float:
        """The calibration's constant for every network."""
        return self.calibration.constant


@dataclass(frozen=True)
class MetricSum(LayerCost):
    """The sum of a metric's figures of single layers."""

    metric: Metric
    unit: str = ""
    _figures: dict[Layer, float] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "unit", self.metric.unit)

    def values(self, template: Template, inputs: Sequence[int], outputs: Sequence[int]) -> Floats:
        """The metric's figures, [inputs, outputs]; each layer is measured once."""
        layers = [[template.at(i, o) for o in outputs] for i in inputs]
        new = [layer for layer in dict.fromkeys(chain.from_iterable(layers)) if layer not in self._figures]
        if new:
            self._figures.update(
                (layer, reading.estimate) for layer, reading in zip(new, self.metric.measure(new), strict=True)
            )
        return np.array([[self._figures[layer] for layer in row] for row in layers], float)


def pairs(
    network: Network, spaces: Iterable[Space], most: int, controls: Sequence[Arch] = ()
) -> dict[Template, tuple[set[int], set[int]]]:
    """Every template that an arch of these spaces may use, with its input and output widths: the base's, the choices
    and the widths of the controls at each site, at most `most` of them, evenly spread."""
    archs, all_spaces = [network.base, *controls], list(spaces)
    widths_by_template: dict[Template, tuple[set[int], set[int]]] = {}
    choices = {
        name: thinned(
            {width for space in all_spaces for width in space.widths[name]} | {arch.widths[name] for arch in archs},
            most, {site.base},
        )
        for name, site in network.widths.items()
    }  # fmt: skip
    stays = {name: [1.0 / site.base] * site.base for name, site in network.depths.items()}
    for step in network.flow(lambda site: Mixture({site: 1.0}), stays.__getitem__):
        if step.node.template is None:
            continue
        inputs, outputs = widths_by_template.setdefault(step.node.template, (set(), set()))
        source, target = step.charged
        outputs |= _reached(*target, choices, most)
        if step.inputs:
            inputs |= _reached(*source, choices, most)
    return widths_by_template


def _reached(
    segments: Sequence[Any], channels: Sequence[Any], choices: Mapping[str, Sequence[int]], most: int
) -> set[int]:
    """Possible sums of these widths."""
    totals = {0}
    for segment, width in zip(segments, channels, strict=True):
        sources = mixture(width).shares
        widths = {w for source in sources for w in (choices[source] if isinstance(source, str) else [source])}
        totals = set(thinned({total + int(times(w, segment.repeat)) for total in totals for w in widths}, most))
    return totals


def thinned(widths: set[int], most: int, always: Collection[int] = ()) -> list[int]:
    """At most `most` of the widths, evenly spread, including those in `always`."""
    ordered, rest = sorted(widths), most - len(always)
    if len(ordered) <= most:
        return ordered
    ordered = [width for width in ordered if width not in always]
    spread = [ordered[round(index * (len(ordered) - 1) / max(rest - 1, 1))] for index in range(rest)]
    return sorted({*spread, *always})
