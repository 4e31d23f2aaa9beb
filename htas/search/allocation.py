"""The modules of a supernet: every tensor as wide as its widest candidate, and a norm for every width."""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

from torch import nn

from htas.graph import Network, Node
from htas.graph.network import total_channels
from htas.graph.resize import WINDOW
from htas.search.mixing import FirstOf
from htas.spaces.space import Space

ALL = "all"
"""Key of a norm that serves all widths."""


class Allocation:
    """Modules for all archs of a space, their weights not yet drawn.

    Raises UserError where a norm or grouping is not understood.
    """

    def __init__(
        self, network: Network, space: Space, shortcut: Literal["project", "pad"], norms: Literal["own", "shared"]
    ) -> None:
        self.network, self.space, self.shortcut, self.norms = network, space, shortcut, norms
        self.nodes = {node.name: node for node in network.nodes}
        self.capacity = capacity(network, space, pad=shortcut == "pad")
        """The widest that each segment of each node's output can be."""
        self.body = copy.deepcopy(network.module)
        self.projections = nn.ModuleDict()
        for node in network.nodes:
            self._allocate(node)

    def _allocate(self, node: Node) -> None:
        if node.again:
            return
        if node.kind in ("conv", "grouped"):
            self.body.set_submodule(node.module, self._wide(node))
        elif node.kind in ("norm", "layer_norm"):
            self.body.set_submodule(node.module, self._norms(node))
        elif node.kind == "scale":
            self._set_scale(node)
        elif node.kind == "project" and self.shortcut == "project":
            inputs, outputs = self.channels(node.inputs[0]), self.channels(node.name)
            norms = self._by_width(nn.BatchNorm2d, self._widths_at(node.inputs[1]) if node.normed else ())
            self.projections[key(node.name)] = nn.ModuleDict(
                {"conv": nn.Conv2d(inputs, outputs, 1, bias=False), "norm": norms}
            )

    def _wide(self, node: Node) -> nn.Module:
        old = self.network.module.get_submodule(node.module)
        inputs, outputs = self.channels(node.inputs[0]), self.channels(node.name)
        shape: dict[str, Any]
        if isinstance(old, nn.Linear):
            return nn.Linear(inputs, outputs, old.bias is not None)
        if isinstance(old, nn.ConvTranspose2d):
            shape = {name: getattr(old, name) for name in (*WINDOW, "output_padding")}
            return nn.ConvTranspose2d(inputs, outputs, bias=old.bias is not None, **shape)
        assert isinstance(old, nn.Conv2d)
        groups = (
            outputs // (node.layer.inputs // node.layer.groups)
            if node.kind == "grouped" and node.layer is not None
            else 1
        )
        shape = {name: getattr(old, name) for name in WINDOW}
        return nn.Conv2d(inputs, outputs, groups=groups, bias=old.bias is not None, **shape)

    def _norms(self, node: Node) -> nn.ModuleDict:
        """One norm for every possible width; after a concatenation one for all widths."""
        old = self.network.module.get_submodule(node.module)
        build: Callable[[int], nn.Module]
        if isinstance(old, nn.GroupNorm):
            build = partial(nn.GroupNorm, old.num_groups, eps=old.eps)
        elif isinstance(old, nn.LayerNorm):
            build = partial(nn.LayerNorm, eps=old.eps, bias=old.bias is not None)
        else:
            assert isinstance(old, nn.BatchNorm1d | nn.BatchNorm2d)
            build = partial(type(old), eps=old.eps)
        if len(node.segments) > 1:  # one for every combination of widths would be too many
            return nn.ModuleDict({ALL: build(self.channels(node.name))})
        channels = [width * node.segments[0].repeat for width in self._widths_at(node.inputs[0])]
        return self._by_width(build, channels)

    def _set_scale(self, node: Node) -> None:
        """The parameter at its largest width, filled with its mean."""
        owner, _, name = node.param.rpartition(".")
        module = self.body.get_submodule(owner)
        old, axis = getattr(module, name), node.param_axis
        most = self.channels(node.name)
        wide = old.detach().mean().expand([most if dim == axis else 1 for dim in range(old.dim())]).clone()
        setattr(module, name, nn.Parameter(wide, old.requires_grad) if isinstance(old, nn.Parameter) else wide)

    def _by_width(self, build: Callable[[int], nn.Module], channels: Sequence[int]) -> nn.ModuleDict:
        if self.norms == "own" or not channels:
            return nn.ModuleDict({str(count): build(count) for count in channels})
        whole = build(max(channels))
        return nn.ModuleDict({str(n): whole if n == max(channels) else FirstOf(whole, n) for n in channels})

    def channels(self, name: str) -> int:
        return int(total_channels(self.nodes[name].segments, self.capacity[name]))

    def _widths_at(self, name: str) -> tuple[int, ...]:
        """Every possible width of a node's output, which has one segment."""
        node = self.nodes[name]
        match node.kind:
            case "conv":
                return self.space.widths[node.site] if node.site else (node.segments[0].base,)
            case "input" | "fixed":
                return (node.segments[0].base,)
            case "depth" | "join":
                return tuple(sorted({w for source in node.inputs for w in self._widths_at(source)}))
            case "project":
                return self._widths_at(node.inputs[1])
            case _:
                return self._widths_at(node.inputs[0])


def capacity(network: Network, space: Space, *, pad: bool) -> dict[str, tuple[int, ...]]:
    """The widest that each segment of each node's output can be."""
    widths_by_node: dict[str, tuple[int, ...]] = {}
    for node in network.nodes:
        inputs = [widths_by_node[name] for name in node.inputs if name in widths_by_node]
        match node.kind:
            case "conv":
                widths_by_node[node.name] = (max(space.widths[node.site]),) if node.site else (node.segments[0].base,)
            case "input" | "fixed":
                widths_by_node[node.name] = tuple(segment.base for segment in node.segments)
            case "depth" | "join":
                widths_by_node[node.name] = widest(inputs)
            case "project":
                widths_by_node[node.name] = inputs[0] if pad else inputs[1]
            case "concat":
                widths_by_node[node.name] = tuple(w for segment_widths in inputs for w in segment_widths)
            case "value":
                continue
            case _:
                widths_by_node[node.name] = inputs[0]
    return widths_by_node


def widest(inputs: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The most channels of each segment; of inputs that are not laid out alike, which are frozen, the first's."""
    if len({len(widths) for widths in inputs}) > 1:
        return inputs[0]
    return tuple(max(widths) for widths in zip(*inputs, strict=True))


def key(name: str) -> str:
    """A node's name as the key of a ModuleDict, in which no dot may stand."""
    return name.replace(".", "/")
