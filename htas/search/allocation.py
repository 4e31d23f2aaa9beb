"""The modules of a supernet: every tensor as wide as its widest candidate, and a norm for every width."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from htas.graph import Network, Node
from htas.graph.layer import CONVS, NORMS
from htas.graph.modes import copied
from htas.graph.network import times, total_channels
from htas.graph.resize import remade, widen
from htas.search.mixing import FirstOf
from htas.spaces.space import Space

ALL = "all"
"""Key of a norm that serves all widths."""
Widths = tuple[int, ...]
"""Several widths: of each segment of a node's output, or of one segment its choices."""
T = TypeVar("T")


class Walk:
    """The steps of a supernet in eval mode, or in training, and the widths that they meet."""

    def __init__(self, network: Network, space: Space, shortcut: Literal["project", "pad"]) -> None:
        self.network = network
        self.nodes = {node.name: node for node in network.nodes}
        self.choices = choices(network, space, pad=shortcut == "pad")
        self.capacity = {name: tuple(map(max, widths)) for name, widths in self.choices.items()}
        """The widest that each segment of each node's output can be."""
        self.plain = {node.name for node in network.nodes if node.kind in ("conv", "grouped") and plain(node)}
        """Layers that make all channels of one site: their widths are mixed by their norm."""
        self.producers = {node.norm: node for node in network.nodes if node.name in self.plain and node.norm}

    def channels(self, name: str) -> int:
        """Channels of a node at its widest."""
        return int(total_channels(self.nodes[name].segments, self.capacity[name]))


class Allocation:
    """Modules for all archs of a space, their weights not yet drawn."""

    def __init__(
        self, network: Network, space: Space, shortcut: Literal["project", "pad"], norms: Literal["own", "shared"]
    ) -> None:
        self.network, self.space, self.shortcut, self.norms = network, space, shortcut, norms
        walk = Walk(network, space, shortcut)
        trained = Walk(network.in_training, space, shortcut) if network.training is not None else walk
        main = _main(network)
        self.walks = walk, trained, trained if network.returns_alike else Walk(main, space, shortcut) if main else walk
        """In eval mode; in training; and in training with the outputs of eval mode."""
        self.widest = {site: max(widths) for site, widths in space.widths.items()}
        """By site, and by what a depth site passes on, its widest."""
        for node in network.nodes:
            for segment, width in zip(node.segments, walk.capacity.get(node.name, ()), strict=node.kind != "value"):
                if segment.site and segment.site not in space.widths:
                    self.widest[segment.site] = max(width, self.widest.get(segment.site, 0))
        self.body = copied(network.module)
        self.projections = nn.ModuleDict()
        with torch.random.fork_rng(()):  # the layers that follow draw what they would draw without it
            widen(self.body, network, self.widest)
        for node in network.nodes:
            self._allocate(node, walk)
        modules = {node.module for node in network.nodes}
        for node in network.in_training.nodes:
            if node.module not in modules:
                self._allocate(node, self.walks[True])

    def _allocate(self, node: Node, walk: Walk) -> None:
        if node.again:
            return
        if node.name in walk.plain:
            old = self.network.module.get_submodule(node.module)
            layer = remade(old, *_sizes(node, old, walk), grouped=node.kind == "grouped")
            _untrained_alike(old, layer)
            self.body.set_submodule(node.module, layer)
        elif node.kind == "norm" or node.kind == "layer_norm":
            norms = self._norms(node, walk)
            if node.called:
                self.body.set_submodule(node.module, norms)
            else:
                owner: Any = self.body.get_submodule(node.module)
                owner.weight = owner.bias = None
                owner.affine = False  # as its `reset_parameters` asks
                owner.add_module(NORMS_NAME, norms)
        elif node.kind == "project" and self.shortcut == "project":
            inputs, outputs = walk.channels(node.inputs[0]), walk.channels(node.name)
            assert node.layer is not None
            dims = len(node.layer.size)
            norms = self._by_width(NORMS[dims], walk.choices[node.inputs[1]][0] if node.normed else ())
            self.projections[key(node.name)] = nn.ModuleDict(
                {"conv": CONVS[dims](inputs, outputs, 1, bias=False), "norm": norms}
            )

    def _norms(self, node: Node, walk: Walk) -> nn.ModuleDict:
        """One norm for every possible width; after a concatenation one for all widths."""
        old: Any = self.network.module.get_submodule(node.module)
        build: Callable[[int], nn.Module]
        if isinstance(old, nn.GroupNorm):
            build = partial(nn.GroupNorm, old.num_groups, eps=old.eps)
        elif isinstance(old, nn.LayerNorm):
            build = partial(nn.LayerNorm, eps=old.eps, bias=old.bias is not None)
        elif isinstance(old, nn.RMSNorm):
            build = partial(nn.RMSNorm, eps=old.eps)
        elif node.called and isinstance(old, nn.BatchNorm1d):
            build = partial(nn.BatchNorm1d, eps=old.eps)
        else:
            build = partial(NORMS[_dims(old)], eps=old.eps)
        if len(node.segments) > 1 or not plain_runs(node):  # one for every combination of widths would be too many
            return nn.ModuleDict({ALL: _untrained_alike(old, build(walk.channels(node.name)))})
        repeat = node.segments[0].repeat
        return self._by_width(
            lambda width: _untrained_alike(old, build(width)),
            [times(width, repeat) for width in walk.choices[node.inputs[0]][0]],
        )

    def _by_width(self, build: Callable[[int], nn.Module], channels: Sequence[int]) -> nn.ModuleDict:
        if self.norms == "own" or not channels:
            return nn.ModuleDict({str(count): build(count) for count in channels})
        whole = build(max(channels))
        return nn.ModuleDict({str(n): whole if n == max(channels) else FirstOf(whole, n) for n in channels})

    @torch.no_grad()
    def keeps_zeros(self) -> bool:
        """Whether channels of zeros stay zeros in every map; False if one cannot be run alone."""
        one, other, _ = self.walks
        if not all(self._keeps_zeros(node, one) for node in one.network.nodes):
            return False
        with torch.random.fork_rng(()):
            return one is other or all(self._keeps_zeros(node, other) for node in other.network.nodes)

    def _keeps_zeros(self, node: Node, walk: Walk) -> bool:
        if node.kind != "map":
            return True
        channels = walk.channels(node.inputs[0])
        for shape in ((1, channels, 4, 4), (1, channels)):
            try:
                out = node.run(self.body.get_submodule, (torch.zeros(shape),))
            except Exception:  # a user's network may raise anything for an input of another shape
                continue
            return isinstance(out, Tensor) and not out.any()
        return False


@torch.no_grad()
def _untrained_alike(old: nn.Module, new: nn.Module) -> nn.Module:
    """The new module, whose parameters are trained where those of the old one are; others have its values."""
    for name, values in old.named_parameters(recurse=False):
        tensor = getattr(new, name, None)
        if not values.requires_grad and isinstance(tensor, nn.Parameter):
            tensor.requires_grad_(False)
            common = tuple(slice(min(sizes)) for sizes in zip(tensor.shape, values.shape, strict=True))
            tensor[common] = values[common]
    return new


def _main(network: Network) -> Network | None:
    """The steps of training to the outputs of eval mode, where modules make these in both; else None."""
    trained = network.in_training
    if not {node.name for node in trained.nodes if node.name == node.module} >= {*network.outputs}:
        return None
    needed = {*network.outputs}
    for node in reversed(trained.nodes):
        needed.update(node.inputs if node.name in needed else ())
    nodes = tuple(node for node in trained.nodes if node.name in needed or node.kind == "input")
    return replace(trained, nodes=nodes, outputs=network.outputs, result=network.result)


NORMS_NAME = "by_width"
"""The norms of a module whose forward calls a norm's function on its own tensors."""


def _sizes(node: Node, old: Any, walk: Walk) -> tuple[int, int]:
    """Inputs and outputs of a layer: its own where nothing that it reads, or makes, changes."""
    linear = isinstance(old, nn.Linear)
    inputs, outputs = (old.in_features, old.out_features) if linear else (old.in_channels, old.out_channels)
    if walk.nodes[node.inputs[0]].layout.free:
        inputs = walk.channels(node.inputs[0])
    return inputs, walk.channels(node.name) if node.layout.free else outputs


def _dims(norm: nn.Module) -> int:
    return {nn.BatchNorm1d: 1, nn.BatchNorm3d: 3}.get(
        next((kind for kind in type(norm).__mro__ if kind in (nn.BatchNorm1d, nn.BatchNorm3d)), nn.BatchNorm2d), 2
    )


def plain_runs(node: Node) -> bool:
    """Whether a node's channels are one run of one site, or never change."""
    return len(node.layout.runs) == 1


def plain(node: Node) -> bool:
    """Whether a layer is a module of torch.nn that makes all channels of one site, and of nothing else."""
    whole = bool(node.site) or not node.layout.free or node.kind == "grouped"
    call = getattr(node.run, "call", None)
    return (
        node.called
        and whole
        and (call is None or len(call.args) + len(call.kwargs) == 1)  # no output_size
        and plain_runs(node)
        and (node.kind == "grouped" or node.layer is None or node.layer.groups == 1)
    )


def choices(network: Network, space: Space, *, pad: bool) -> dict[str, tuple[Widths, ...]]:
    """By node, every width that each segment of its output can have, ascending."""
    by_node: dict[str, tuple[Widths, ...]] = {}
    by_site: dict[str, Widths] = dict(space.widths)
    for node in network.nodes:
        inputs = [by_node[name] for name in node.inputs if name in by_node]
        if node.kind == "value":
            continue
        if node.kind == "depth" or (node.kind == "join" and network.adds == "project"):
            by_node[node.name] = joined(inputs, lambda widths: tuple(sorted(set(chain(*widths)))))
            for segment, widths in zip(node.segments, by_node[node.name], strict=True):
                if segment.site and segment.site not in space.widths:
                    by_site[segment.site] = widths
        elif node.kind == "project":
            by_node[node.name] = inputs[0] if pad else inputs[1]
        elif inputs and node.kind != "conv" and node.segments == node.consumed:
            by_node[node.name] = inputs[0]
        elif node.kind == "concat":
            by_node[node.name] = (
                tuple(chain(*inputs)) if sum(map(len, inputs)) == len(node.segments) else _of(node, by_site)
            )
        else:
            by_node[node.name] = _of(node, by_site)
    return by_node


def _of(node: Node, by_site: Mapping[str, Widths]) -> tuple[Widths, ...]:
    return tuple(by_site[segment.site] if segment.site else (segment.base,) for segment in node.segments)


def joined(inputs: Sequence[tuple[T, ...]], combine: Callable[[Sequence[T]], T]) -> tuple[T, ...]:
    """What is combined of each segment; of inputs that are not laid out alike, which are frozen, the first's."""
    if len({len(widths) for widths in inputs}) > 1:
        return inputs[0]
    return tuple(map(combine, zip(*inputs, strict=True)))


def key(name: str) -> str:
    """A node's name as the key of a ModuleDict, in which no dot may stand."""
    return name.replace(".", "/")
