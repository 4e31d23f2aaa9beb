"""The modules of a supernet: every tensor as wide as its widest candidate, and a norm for every width."""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from typing import Literal, TypeVar

from torch import nn

from htas.graph import Network, Node
from htas.graph.network import total_channels
from htas.graph.resize import remade
from htas.search.mixing import FirstOf
from htas.spaces.space import Space

ALL = "all"
"""Key of a norm that serves all widths."""
Widths = tuple[int, ...]
"""Several widths: of each segment of a node's output, or of one segment its choices."""
T = TypeVar("T")


class Allocation:
    """Modules for all archs of a space, their weights not yet drawn.

    Raises UserError where a norm or grouping is not understood.
    """

    def __init__(
        self, network: Network, space: Space, shortcut: Literal["project", "pad"], norms: Literal["own", "shared"]
    ) -> None:
        self.network, self.space, self.shortcut, self.norms = network, space, shortcut, norms
        self.nodes = {node.name: node for node in network.nodes}
        self.choices = choices(network, space, pad=shortcut == "pad")
        self.capacity = {name: tuple(map(max, widths)) for name, widths in self.choices.items()}
        """The widest that each segment of each node's output can be."""
        self.body = copy.deepcopy(network.module)
        self.projections = nn.ModuleDict()
        for node in network.nodes:
            self._allocate(node)

    def _allocate(self, node: Node) -> None:
        if node.again:
            return
        if node.kind in ("conv", "grouped"):
            old = self.network.module.get_submodule(node.module)
            inputs, outputs = self.channels(node.inputs[0]), self.channels(node.name)
            self.body.set_submodule(node.module, remade(old, inputs, outputs, grouped=node.kind == "grouped"))
        elif node.kind in ("norm", "layer_norm"):
            self.body.set_submodule(node.module, self._norms(node))
        elif node.kind == "scale":
            self._set_scale(node)
        elif node.kind == "project" and self.shortcut == "project":
            inputs, outputs = self.channels(node.inputs[0]), self.channels(node.name)
            norms = self._by_width(nn.BatchNorm2d, self.choices[node.inputs[1]][0] if node.normed else ())
            self.projections[key(node.name)] = nn.ModuleDict(
                {"conv": nn.Conv2d(inputs, outputs, 1, bias=False), "norm": norms}
            )

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
        channels = [width * node.segments[0].repeat for width in self.choices[node.inputs[0]][0]]
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


def choices(network: Network, space: Space, *, pad: bool) -> dict[str, tuple[Widths, ...]]:
    """By node, every width that each segment of its output can have, ascending."""
    by_node: dict[str, tuple[Widths, ...]] = {}
    for node in network.nodes:
        inputs = [by_node[name] for name in node.inputs if name in by_node]
        match node.kind:
            case "conv" if node.site:
                by_node[node.name] = (space.widths[node.site],)
            case "conv" | "input" | "fixed":
                by_node[node.name] = tuple((segment.base,) for segment in node.segments)
            case "depth" | "join":
                by_node[node.name] = joined(inputs, lambda widths: tuple(sorted(set(chain(*widths)))))
            case "project":
                by_node[node.name] = inputs[0] if pad else inputs[1]
            case "concat":
                by_node[node.name] = tuple(chain(*inputs))
            case "value":
                continue
            case _:
                by_node[node.name] = inputs[0]
    return by_node


def joined(inputs: Sequence[tuple[T, ...]], combine: Callable[[Sequence[T]], T]) -> tuple[T, ...]:
    """What is combined of each segment; of inputs that are not laid out alike, which are frozen, the first's."""
    if len({len(widths) for widths in inputs}) > 1:
        return inputs[0]
    return tuple(map(combine, zip(*inputs, strict=True)))


def key(name: str) -> str:
    """A node's name as the key of a ModuleDict, in which no dot may stand."""
    return name.replace(".", "/")
