"""The nouns of a traced network, and the one pass that carries widths through it.

A Network is a list of Nodes in the order they run. It is filled from torch.fx (trace.py), and could
be from another graph. Every question about an arch (shapes, layers, MACs, costs, expected costs) is
answered by `Network.flow`, which carries widths, whole numbers or differentiable expectations alike, from node to node.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from operator import itemgetter
from typing import Any, Literal

import torch
from torch import Tensor, nn

from htas.data.split import Shape
from htas.errors import UserError
from htas.graph.arch import Arch
from htas.graph.layer import Layer

Kind = Literal[
    "input",
    "conv",  # a convolution or a linear layer: makes a site
    "grouped",  # a convolution within groups of channels that has as many outputs as inputs; depthwise: groups of one
    "norm",  # a batch norm: each channel by itself
    "layer_norm",  # of all channels of a pixel, or of groups of channels, together
    "scale",  # times, or plus, a parameter with one number for each channel
    "map",  # treats each channel alike: activations, pooling, dropout
    "join",  # adds or multiplies tensors of equal widths
    "project",  # makes a shortcut as wide as what it is added to; nothing where it already is
    "concat",
    "flatten",  # height and width become channels
    "depth",  # takes the output of the last kept block
    "fixed",  # anything else: its widths never change
    "value",  # no tensor: a size, a shape
]


OUTPUT = "it is the network's output"
"""The reason for a width that the number of classes fixes."""


@dataclass(frozen=True)
class Segment:
    """A run of channels that belong together: `base` channels of a site, each standing `repeat` times in a row."""

    base: int
    repeat: int = 1


@dataclass(frozen=True)
class Node:
    """One step of the network. `run(modules, values)` computes it as in the base network."""

    name: str
    kind: Kind
    inputs: tuple[str, ...]
    run: Callable[[Callable[[str], nn.Module], tuple[Any, ...]], Any] = field(repr=False, compare=False)
    module: str = ""
    """Qualified name of the leaf module called, if any."""
    site: str = ""
    """conv, grouped, depth: the site it makes, keeps or reads; empty where its width is frozen."""
    segments: tuple[Segment, ...] = ()
    """Channels of the output."""
    consumed: tuple[Segment, ...] = ()
    """Channels of the first input."""
    blocks: tuple[tuple[str, int], ...] = ()
    """Depth sites around it, each with the number of its block."""
    layer: Layer | None = None
    """The layer that a runtime computes here, at base widths, with the norm and activation it fuses; None where it
    takes no time, or is part of the layer before."""
    norm: str = ""
    """conv, grouped: the norm that directly follows."""
    normed: bool = True
    """project: whether a norm follows the 1x1 convolution."""
    params: int = 0
    """fixed: trainable parameters of its own, those that an earlier node has left out. scale: of each channel."""
    macs: int = 0
    """fixed: multiply-adds for one image, where it has no `layer`."""
    param: str = ""
    """scale: qualified name of the parameter."""
    param_axis: int = 0
    """scale: the parameter's own dimension of the channels."""
    axis: int = 1
    """Dimension of the output's channels."""
    again: bool = False
    """Whether an earlier node has called the same module."""

    @property
    def base(self) -> int:
        """Channels of the output in the base network."""
        return sum(segment.base * segment.repeat for segment in self.segments)


@dataclass(frozen=True)
class Site:
    """One free dimension of a network."""

    name: str
    kind: Literal["width", "depth"]
    base: int
    """Channels, or blocks, in the base network."""
    producers: tuple[str, ...]
    """width: modules whose outputs it is. depth: the blocks."""
    consumers: tuple[tuple[str, int, int], ...] = ()
    """width: (module, offset, repeat): input rows offset + repeat * c ... of the module belong to channel c."""
    multiple: int = 1
    """Widths must be multiples of this."""

    def near(self, width: float) -> int:
        """The nearest allowed width."""
        return max(1, round(width / self.multiple)) * self.multiple


@dataclass(frozen=True)
class Use:
    """A layer at the place where a network uses it."""

    layer: Layer
    node: str
    site: str
    """The width site that its outputs are; empty for none."""
    blocks: tuple[tuple[str, int], ...]


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
    def layer(self) -> Layer | None:
        """The layer at the step's whole widths; None where it has none, or does nothing."""
        node = self.node
        if node.layer is None or (node.kind == "project" and self.channels_in == self.channels):
            return None
        match node.kind:
            case "fixed":
                return node.layer
            case "conv" | "project":
                return replace(node.layer, inputs=self.channels_in, outputs=self.channels)
            case "grouped":
                return node.layer.wide(self.channels)
            case _:
                return replace(node.layer, inputs=self.channels, outputs=self.channels)


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
        shares: dict[tuple[tuple[str, int], ...], Any] = {}
        for node in self.nodes:
            if node.kind == "value":
                continue
            if node.blocks not in shares:
                shares[node.blocks] = prod(sum(depth(site)[block:]) for site, block in node.blocks)
            share = shares[node.blocks]
            if whole and not share:
                continue
            inputs = tuple(channels[name] for name in node.inputs if name in channels)
            outputs = _outputs(node, inputs, channels, width, depth)
            channels[node.name] = outputs
            yield Step(node, inputs, outputs, share)

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
            layer = step.layer
            if layer is not None:
                layers.append(Use(layer, step.node.name, step.node.site, step.node.blocks))
        return layers

    def macs(self, arch: Arch) -> int:
        """Multiply-adds for one image."""
        return sum(step.layer.macs if step.layer else step.node.macs for step in self.steps(arch))

    def params(self, arch: Arch) -> int:
        """Trainable parameters."""
        return sum(_params(step) for step in self.steps(arch))

    @property
    def searchable(self) -> float:
        """Share of the multiply-adds, at base widths, in layers whose inputs and outputs are both free, or fixed by
        nothing but the images that come in and the classes that go out."""
        open_ends: dict[str, tuple[bool, ...]] = {}  # by node, of each segment
        shares = [0, 0]
        for node in self.nodes:
            inputs = [open_ends[name] for name in node.inputs if name in open_ends]
            match node.kind:
                case "conv":
                    outputs: tuple[bool, ...] = (bool(node.site) or self.frozen.get(node.module) == OUTPUT,)
                case "fixed":
                    outputs = (self.frozen.get(node.module or node.name) == OUTPUT,) * len(node.segments)
                case "input":
                    outputs = (True,) * len(node.segments)
                case "value":
                    continue
                case "concat":
                    outputs = tuple(each for one in inputs for each in one)
                case _:
                    outputs = inputs[0]
            open_ends[node.name] = outputs
            if node.layer is not None and node.layer.macs:
                shares[all(outputs) and all(inputs[0]) and node.kind != "fixed"] += node.layer.macs
            shares[False] += node.macs
        return shares[True] / max(1, sum(shares))


def _params(step: Step) -> int:
    """Trainable parameters of a step; those of a norm are counted where it stands."""
    layer = step.layer
    if step.node.again:
        return 0
    match step.node.kind:
        case "fixed":
            return step.node.params
        case "norm":
            return int(2 * step.channels)
        case "layer_norm" | "scale":
            return step.node.params * int(step.channels)
        case "project":
            return layer.params if layer else 0
        case _:
            return replace(layer, norm=False).params if layer else 0


def total_channels(segments: Sequence[Segment], widths: Sequence[Any]) -> Any:
    """All channels of a tensor, whose segments have these widths."""
    return sum(width * segment.repeat for width, segment in zip(widths, segments, strict=True))


def _outputs(
    node: Node,
    inputs: tuple[tuple[Any, ...], ...],
    channels: Mapping[str, tuple[Any, ...]],
    width: Callable[[str], Any],
    depth: Callable[[str], Sequence[Any]],
) -> tuple[Any, ...]:
    match node.kind:
        case "conv":
            return (width(node.site),) if node.site else tuple(segment.base for segment in node.segments)
        case "input" | "fixed":
            return tuple(segment.base for segment in node.segments)
        case "project":
            return inputs[1]
        case "concat":
            return tuple(w for widths in inputs for w in widths)
        case "depth":
            shares = zip(depth(node.site), node.inputs, strict=True)
            weighed = [(share, channels[name]) for share, name in shares if name in channels]
            return tuple(sum(share * widths[i] for share, widths in weighed) for i in range(len(node.segments)))
        case _:
            return inputs[0]
