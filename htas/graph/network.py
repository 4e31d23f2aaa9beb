"""The nouns of a traced network, and the one pass that carries widths through it.

A Network is a list of Nodes in the order they run, made of the recorded steps of a run (trace.py). Every question about
an arch (shapes, layers, MACs, costs, expected costs) is answered by `Network.flow`, which carries widths, whole numbers
or differentiable expectations alike, from node to node.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from itertools import chain
from math import prod
from operator import itemgetter
from typing import Any, Literal

import torch
from torch import Tensor, nn

from htas.data.split import Shape
from htas.errors import UserError
from htas.graph.arch import Arch
from htas.graph.layer import WEIGHTED, Layer, Template
from htas.graph.layout import Layout, Layouts
from htas.graph.length import Leaf

Kind = Literal[
    "input",
    "conv",  # a convolution or a linear layer
    "grouped",  # a convolution within groups of channels, each of which stays whole: as many groups as the width says
    "norm",  # a batch norm: each channel by itself
    "layer_norm",  # of all channels of a pixel, or of groups of channels, together
    "scale",  # times, or plus, a parameter with one number for each channel
    "map",  # treats each channel alike: activations, pooling, dropout
    "join",  # adds or multiplies tensors of equal widths
    "project",  # makes a shortcut as wide as what it is added to; nothing where it already is
    "concat",
    "flatten",  # height and width become channels
    "move",  # anything else that runs at other widths, too: slices, shuffles, products of matrices
    "depth",  # takes the output of the last kept block
    "fixed",  # anything else: its widths never change
    "value",  # no activation: a parameter, and what is computed from parameters alone
]


EMPTY = Layout(())
OUTPUT = "it is the network's output"
"""The reason for a width that the number of classes fixes."""


@dataclass(frozen=True)
class Segment:
    """Channels of one site in a tensor: `repeat` for each channel of the site, which has `base` in the base network."""

    base: int
    repeat: int | Fraction = 1
    """A fraction where the tensor has a part of the site's channels: half of them after a `chunk`."""
    site: str = ""
    """Empty where the width is frozen."""


@dataclass(frozen=True)
class Node:
    """One step of the network. `run(modules, values, widths)` computes it: as in the base network, or at other widths,
    by site."""

    name: str
    kind: Kind
    inputs: tuple[str, ...]
    run: Callable[..., Any] = field(repr=False, compare=False)
    module: str = ""
    """Qualified name of the module of torch.nn called, or of the one that owns a function's weights."""
    site: str = ""
    """conv, grouped, depth: the site it makes, keeps or reads; empty where its width is frozen, or of several sites."""
    segments: tuple[Segment, ...] = ()
    """Channels of the output, counted."""
    consumed: tuple[Segment, ...] = ()
    """Channels of the first input."""
    layout: Layout = EMPTY
    """Where the channels of the output stand."""
    blocks: tuple[tuple[str, int], ...] = ()
    """Depth sites around it, each with the number of its block."""
    layer: Layer | None = None
    """The layer that a runtime computes here, at base widths, with the norm and activation it fuses; None where it
    takes no time, or is part of the layer before."""
    norm: str = ""
    """conv, grouped: the norm that directly follows."""
    normed: bool = True
    """project: whether a norm follows the 1x1 convolution."""
    called: bool = True
    """Whether the module itself is called; else a function on its tensors."""
    params: int = 0
    """project: parameters at base widths."""
    macs: int = 0
    """fixed, move: multiply-adds for one image, where it has no `layer`."""
    scaled: tuple[Layout, ...] = ()
    """move: the dimensions that its multiply-adds grow with."""
    param: str = ""
    """scale, value: qualified name of the parameter."""
    axis: int = 1
    """Dimension of the output's channels."""
    again: bool = False
    """Whether an earlier node has called the same module."""

    @property
    def curve(self) -> Template | None:
        """Its layer without its number of outputs."""
        if self.layer is None:
            return None
        whole = self.kind == "grouped" or (self.kind == "fixed" and self.layer.grouped)
        return self.layer.curve(whole_groups=whole)

    @property
    def template(self) -> Template | None:
        """Its layer without its widths."""
        curve = self.curve
        return replace(curve, inputs=None) if curve else None

    @property
    def base(self) -> int:
        """Channels of the output in the base network."""
        return int(total_channels(self.segments, [segment.base for segment in self.segments]))


@dataclass(frozen=True)
class Site:
    """One free dimension of a network."""

    name: str
    kind: Literal["width", "depth"]
    base: int
    """Channels, or blocks, in the base network."""
    producers: tuple[str, ...]
    """width: modules whose outputs it is, or the weights of functions. depth: the blocks."""
    consumers: tuple[tuple[str, int, int], ...] = ()
    """width: (module, offset, repeat): input rows offset + repeat * c ... of the module belong to channel c."""
    multiple: int = 1
    """Widths must be multiples of this."""
    least: int = 1
    """The smallest width, a multiple of `multiple`: one channel, or one group, unless a step needs more."""

    def near(self, width: float) -> int:
        """The nearest allowed width."""
        return max(self.least, max(1, round(width / self.multiple)) * self.multiple)


@dataclass(frozen=True)
class Use:
    """A layer at the place where a network uses it."""

    layer: Layer
    node: str
    site: str
    """The width site that its outputs are, all of them and nothing else; empty for none."""
    blocks: tuple[tuple[str, int], ...]
    curve: Template
    """The layer without its number of outputs."""
    outputs: tuple[Segment, ...] = ()
    """The channels that it makes, or that it keeps where they are of one site."""

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites among its outputs."""
        return tuple(segment.site for segment in self.outputs if segment.site)


Charged = tuple[tuple[Segment, ...], tuple[Any, ...]]
"""Channels that a layer is charged for: segments, and the width of each."""


@dataclass(frozen=True)
class Step:
    """One node of `flow`: the widths of each segment, and the fraction of archs in which it runs."""

    node: Node
    inputs: tuple[tuple[Any, ...], ...]
    outputs: tuple[Any, ...]
    share: Any

    @property
    def channels_in(self) -> Any:
        """Channels of the first input."""
        return total_channels(self.node.consumed, self.inputs[0])

    @property
    def channels(self) -> Any:
        """Channels of the output."""
        return total_channels(self.node.segments, self.outputs)

    @property
    def charged(self) -> tuple["Charged", "Charged"]:
        """The channels that its layer reads, and those that it makes.

        Where none is free, a layer with weights has its own numbers of them: which dimension of a tensor of tokens has
        its channels, nobody knows then.
        """
        node, target = self.node, (self.node.segments, self.outputs)
        source = (node.consumed, self.inputs[0]) if self.inputs else target
        if node.layer is None or node.layer.op not in WEIGHTED:
            return source, target
        sides = ((source, node.layer.inputs), (target, node.layer.outputs))
        one, two = (side if _free(side[0]) else ((Segment(count),), (count,)) for side, count in sides)
        return one, two

    @property
    def layer(self) -> Layer | None:
        """The layer at the step's whole widths; None where it has none, or does nothing."""
        node = self.node
        if node.layer is None or (node.kind == "project" and self.channels_in == self.channels):
            return None
        match node.kind:
            case "fixed":
                return node.layer
            case "conv" | "project":
                inputs, outputs = (total_channels(*side) for side in self.charged)
                return replace(node.layer, inputs=inputs, outputs=outputs)
            case "grouped":
                return node.curve.wide(self.channels) if node.curve else None
            case _:
                return replace(node.layer, inputs=self.channels, outputs=self.channels)


def _free(segments: Sequence[Segment]) -> bool:
    return any(segment.site for segment in segments)


@dataclass(frozen=True)
class Steps:
    """What a network does in one mode."""

    nodes: tuple[Node, ...]
    """In the order they run."""
    outputs: tuple[str, ...]
    """The nodes whose values leave the network."""
    result: Callable[[tuple[Any, ...]], Any]
    """Makes the value that the network returns from these outputs: one of them, a tuple, a dictionary."""
    form: Any
    """The same with the sizes of each tensor, images left out, in its place."""


@dataclass(frozen=True)
class Network:
    """A traced network: its steps, its free sites, and the frozen widths with the reasons."""

    module: nn.Module
    nodes: tuple[Node, ...]
    sites: Mapping[str, Site]
    frozen: Mapping[str, str]
    """Module, or node, to the reason why its width cannot change."""
    shapes: tuple[Shape, ...]
    """Of every input, without the batch: channels, height and width of an image."""
    adds: Literal["join", "project"] = "join"
    outputs: tuple[str, ...] = ()
    """The nodes whose values leave the network."""
    result: Callable[[tuple[Any, ...]], Any] = field(default=itemgetter(0), repr=False, compare=False)
    """Makes the value that the network returns from these outputs: one of them, a tuple, a dictionary."""
    layouts: Mapping[str, Layouts] = field(default_factory=dict)
    """By qualified name of a parameter or buffer that changes with widths, what stands along each dimension."""
    counted: Mapping[Leaf, Layout] = field(default_factory=dict)
    """Whole numbers that modules hold and that follow widths: ("attribute", module, name, index in a list)."""
    checked: str = ""
    """What `trace` checked at other widths, in words."""
    fixed_order: frozenset[str] = frozenset()
    """Sites whose channels may not change places."""
    form: Any = None
    """What it returns, with the sizes of each tensor, images left out, in its place."""
    training: Steps | None = None
    """What it does in training, where that is something else: dropout by a function, stochastic depth, more heads."""

    def example(self, images: int = 1) -> tuple[Tensor, ...]:
        """Zeros, [images, *shape] for each of `shapes`."""
        return tuple(torch.zeros(images, *shape) for shape in self.shapes)

    @property
    def widths(self) -> dict[str, Site]:
        """The width sites."""
        return {name: site for name, site in self.sites.items() if site.kind == "width"}

    @property
    def depths(self) -> dict[str, Site]:
        """The depth sites."""
        return {name: site for name, site in self.sites.items() if site.kind == "depth"}

    @property
    def base(self) -> Arch:
        """The arch of the network before any change."""
        return Arch(
            {name: site.base for name, site in self.widths.items()},
            {name: site.base for name, site in self.depths.items()},
        )

    def check(self, arch: Arch) -> None:
        """Raise UserError where the arch does not fit this network."""
        for kind, sizes, sites in (("width", arch.widths, self.widths), ("depth", arch.depths, self.depths)):
            odd = set(sizes) ^ set(sites)
            if odd:
                name = sorted(odd)[0]
                state = "names no" if name in sizes else "lacks the"
                raise UserError(f"the arch {state} {kind} site {name!r}; the network has {', '.join(sites) or 'none'}")
        for name, width in arch.widths.items():
            if width < 1 or width % self.sites[name].multiple:
                multiple = self.sites[name].multiple
                raise UserError(f"the width of {name} must be a positive multiple of {multiple}, got {width}")
            if width < (least := self.sites[name].least):
                raise UserError(
                    f"the width of {name} must be {least} or more, as steps of the network need, got {width}"
                )
        for name, depth in arch.depths.items():
            if not 1 <= depth <= self.sites[name].base:
                raise UserError(f"the depth of {name} must lie in 1..{self.sites[name].base}, got {depth}")

    def flow(
        self, width: Callable[[str], Any], depth: Callable[[str], Sequence[Any]], *, whole: bool = False
    ) -> Iterator[Step]:
        """Carry widths through the network.

        width(site) is its number of channels; depth(site)[k] the weight of keeping k + 1 blocks (they sum to 1).
        Whole numbers describe one arch (`whole` leaves cut blocks out); tensors give expectations, in which the
        widths of layers are taken as independent, as in TAS.
        """
        channels: dict[str, tuple[Any, ...]] = {}
        aliases: dict[str, Any] = {}
        shares: dict[tuple[tuple[str, int], ...], Any] = {}

        def value(segment: Segment) -> Any:
            if not segment.site:
                return segment.base
            return aliases[segment.site] if segment.site in aliases else width(segment.site)

        for node in self.nodes:
            if node.kind == "value":
                continue
            if node.blocks not in shares:
                shares[node.blocks] = prod(sum(depth(site)[block:]) for site, block in node.blocks)
            share = shares[node.blocks]
            if whole and not share:
                continue
            inputs = tuple(channels[name] for name in node.inputs if name in channels)
            if node.kind == "depth":
                chances = zip(depth(node.site), node.inputs, strict=True)
                ends = [(chance, channels[name]) for chance, name in chances if name in channels]
                for at, segment in enumerate(node.segments):
                    if segment.site not in self.sites:
                        aliases[segment.site] = sum(chance * widths[at] for chance, widths in ends)
            channels[node.name] = outputs = tuple(map(value, node.segments))
            yield Step(node, inputs, outputs, share)

    def widths_at(self, arch: Arch) -> dict[str, int]:
        """Widths by site, and of what the last kept blocks make where their ends have widths of their own."""
        widths = dict(arch.widths)
        for node in self.nodes:
            if node.kind == "depth" and node.segments[0].site not in {"", *self.sites}:
                end = self._by_name[node.inputs[arch.depths[node.site] - 1]].segments[0]
                widths[node.segments[0].site] = widths[end.site] if end.site else end.base
        return widths

    @cached_property
    def whole_groups(self) -> frozenset[str]:
        """Modules that convolve within groups of channels, whose number is the width."""
        return frozenset(node.module for node in (*self.nodes, *self.in_training.nodes) if node.kind == "grouped")

    @cached_property
    def in_training(self) -> "Network":
        """The network with the steps of training."""
        steps = self.training
        if steps is None:
            return self
        return replace(self, nodes=steps.nodes, outputs=steps.outputs, result=steps.result, training=None)

    @property
    def returns_alike(self) -> bool:
        """Whether it returns the same tensors in training as in eval mode, with other numbers in them at most."""
        return self.training is None or self.training.form == self.form

    @cached_property
    def _by_name(self) -> dict[str, Node]:
        return {node.name: node for node in self.nodes}

    def steps(self, arch: Arch) -> Iterator[Step]:
        """`flow` for one arch, cut blocks left out."""
        onehot = {
            name: tuple(int(index == arch.depths[name] - 1) for index in range(site.base))
            for name, site in self.depths.items()
        }
        return self.flow(arch.widths.__getitem__, onehot.__getitem__, whole=True)

    def uses(self, arch: Arch) -> list[Use]:
        """The layers of one arch, in the order they run; equal layers appear as often as they run."""
        layers = []
        for step in self.steps(arch):
            layer, node, curve = step.layer, step.node, step.node.curve
            if layer is not None and curve is not None:
                makes = node.kind == "conv" or (node.kind == "grouped" and len(node.segments) == 1)
                outputs = node.segments if makes and all(s.site in ("", *self.sites) for s in node.segments) else ()
                site = node.site if node.site in self.sites else ""
                curve = curve if curve.inputs is None else replace(curve, inputs=layer.inputs)
                layers.append(Use(layer, node.name, site, node.blocks, curve, outputs))
        return layers

    def macs(self, arch: Arch) -> int:
        """Multiply-adds for one image."""
        widths = self.widths_at(arch)
        steps = (step.layer.macs if step.layer else self._macs(step.node, widths) for step in self.steps(arch))
        beside = (node for node in self.nodes if node.kind == "value" and node.macs)
        kept = (node for node in beside if all(block < arch.depths[site] for site, block in node.blocks))
        return sum(steps) + sum(self._macs(node, widths) for node in kept)

    def _macs(self, node: Node, widths: Mapping[str, int]) -> int:
        """Multiply-adds of a node without a layer."""
        macs = node.macs
        for layout in node.scaled if macs else ():
            macs = macs * layout.size(widths) // layout.size(self.base_widths)
        return macs

    @cached_property
    def base_widths(self) -> dict[str, int]:
        """`widths_at` of the base network."""
        return self.widths_at(self.base)

    def params(self, arch: Arch) -> int:
        """Trainable parameters."""
        widths = self.widths_at(arch)
        cut = tuple(f"{block}." for site in self.depths.values() for block in site.producers[arch.depths[site.name] :])
        kept = (
            prod(self.shape(name, parameter.shape, widths))
            for name, parameter in self.module.named_parameters()
            if parameter.requires_grad and not name.startswith(cut)
        )
        projections = (step for step in self.steps(arch) if step.node.kind == "project" and step.layer)
        return sum(kept) + sum(step.layer.params for step in projections if step.layer)

    def shape(self, name: str, base: Sequence[int], widths: Mapping[str, int]) -> tuple[int, ...]:
        """Sizes of a parameter or buffer of `base` sizes where sites have these widths (`widths_at`)."""
        layouts = self.layouts.get(name, (None,) * len(base))
        return tuple(
            size if layout is None else layout.size(widths) for size, layout in zip(base, layouts, strict=True)
        )

    @property
    def searchable(self) -> float:
        """Share of the multiply-adds, at base widths, between channels that are both free, or fixed by nothing but the
        images that come in and the classes that go out; of products of activations, those with free channels.
        """
        free, total = 0.0, 0
        ends: dict[str, tuple[bool, ...]] = {}  # by node, whether each segment is free, or fixed by these alone
        for node in self.nodes:
            inputs = [ends[name] for name in node.inputs if name in ends]
            if node.kind == "input" or self._reason(node) == OUTPUT:
                outputs = (True,) * len(node.segments)
            elif node.kind == "concat" and sum(map(len, inputs)) == len(node.segments):
                outputs = tuple(chain(*inputs))
            elif inputs and node.kind != "conv" and node.segments == node.consumed:
                outputs = inputs[0]
            else:
                handed_on = node.layer is None and not node.macs and all(chain(*inputs))
                outputs = tuple(bool(segment.site) or handed_on for segment in node.segments)
            ends[node.name] = outputs
            total += node.macs + (node.layer.macs if node.layer is not None else 0)
            if node.layer is not None and node.layer.macs and node.kind != "fixed":
                read = 1.0 if node.kind == "grouped" else _share(node.consumed, inputs[0])
                free += node.layer.macs * read * _share(node.segments, outputs)
            free += node.macs * bool(node.scaled)
        return free / max(1, total)

    def _reason(self, node: Node) -> str:
        return self.frozen.get(node.module or node.name, "")


def _share(segments: Sequence[Segment], free: Sequence[bool]) -> float:
    """The share of channels in segments that are free."""
    counts = [float(segment.base * segment.repeat) for segment in segments]
    return sum(count for count, is_free in zip(counts, free, strict=True) if is_free) / max(1.0, sum(counts))


def times(width: Any, repeat: int | Fraction) -> Any:
    """A width, a whole number or an expectation, times the share of a segment."""
    if isinstance(repeat, int):
        return width * repeat
    return int(width * repeat) if isinstance(width, int) else width * float(repeat)


def total_channels(segments: Sequence[Segment], widths: Sequence[Any]) -> Any:
    """All channels of a tensor, whose segments have these widths."""
    return sum(times(width, segment.repeat) for width, segment in zip(widths, segments, strict=True))
