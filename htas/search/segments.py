"""A traced network as blocks: the steps between two feature maps that nothing passes by.

A feature map is a border where every later step depends on the input through it alone. Borders are chosen so that each
block holds whole width sites; of the borders that do, one that leaves more modules behind is taken: the end of a
residual block, not that of its first convolution. The blocks of a depth site end at borders, where nothing passes by
them; elsewhere the whole depth site is within one block.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from htas.graph import Arch, Network, Node, resize
from htas.graph.modes import evaluating
from htas.graph.verify import replayed
from htas.spaces.space import Space


@dataclass(frozen=True)
class Block:
    """Neighbouring steps of a network."""

    nodes: tuple[Node, ...]
    """In the order they run, with the steps on parameters that they need."""
    entries: tuple[Node, ...]
    """What they read from outside: one feature map, or the network's inputs."""
    exits: tuple[Node, ...]
    """What they make: one feature map, or the network's outputs."""
    site: str = ""
    """The depth site that cuts the block; empty where it always runs."""
    number: int = 0
    """Its number among the blocks of that site: it runs in archs of more blocks."""
    end: Node | None = None
    """Where later blocks of the site may be cut, the depth node, whose feature map the block then makes."""
    inner: tuple[str, ...] = ()
    """Depth sites within the block."""

    @property
    def name(self) -> str:
        """The name of the step that ends it."""
        return self.exits[-1].name

    @property
    def widths(self) -> tuple[str, ...]:
        """The sites whose channels the block meets, and what depth sites pass on."""
        every = (site for node in (*self.entries, *self.nodes) for site in node.layout.sites)
        return tuple(dict.fromkeys(every))

    def runs(self, arch: Arch) -> bool:
        """Whether the block is one of those that an arch keeps."""
        return not self.site or arch.depths[self.site] > self.number

    def is_last(self, arch: Arch) -> bool:
        """Whether an arch cuts all blocks of its depth site that follow, and not this one."""
        return self.end is not None and arch.depths[self.site] == self.number + 1


def blocks_of(network: Network, space: Space) -> list[Block]:
    """The blocks of a network, in the order they run; those without a choice of the space are left out."""
    return list(_Cutter(network, space).blocks())


class _Cutter:
    def __init__(self, network: Network, space: Space) -> None:
        self.network = network
        self.free = {site for site, choices in space.choices.items() if len(choices) > 1}
        base = network.base.depths
        self.depths = {site for site, choices in space.depths.items() if choices != (base[site],)}
        self.nodes, self.place = network.nodes, {node.name: place for place, node in enumerate(network.nodes)}
        self.sites: dict[str, tuple[int, int]] = {}
        """By width site the places of the first and the last step whose output has its channels."""
        for place, node in enumerate(self.nodes):
            for site in node.layout.sites if node.kind != "value" else ():
                self.sites[site] = self.sites.get(site, (place, place))[0], place
        self.cuts = self._sound(list(self._cuts()), space)

    def blocks(self) -> Iterator[Block]:
        """All blocks with a choice."""
        ends, inner = self._depth_sites()
        borders = self._borders({place for places in ends.values() for place in places})
        start: Node | None = None
        for first, last in zip([-1, *borders], [*borders, len(self.nodes) - 1], strict=True):
            exits = (last,) if last in borders else tuple(self.place[name] for name in self.network.outputs)
            block = self._block(first, last, start, tuple(self.nodes[place] for place in exits), ends, inner)
            start = self.nodes[last]
            if self.free.intersection({*block.widths, block.site, *block.inner}) or any(
                site not in self.network.sites for site in block.widths
            ):
                yield block

    # -- borders -------------------------------------------------------------------------------------------------------

    def _cuts(self) -> Iterator[int]:
        """Places after which one feature map is all that later steps read, and whose steps share no parameter with
        later ones."""
        last: dict[str, int] = {}
        for place, node in enumerate(self.nodes):
            last |= dict.fromkeys(self._reads(node), place)
        last |= dict.fromkeys(self.network.outputs, len(self.nodes))
        shared = self._spans_of_parameters()
        live: set[str] = set()
        for place, node in enumerate(self.nodes[:-1]):
            if node.kind == "value":
                continue
            live = {name for name in {*live, node.name} if last.get(name, -1) > place}
            alone = live == {node.name} and node.kind != "input" and node.name not in self.network.outputs
            if alone and not any(first <= place < end for first, end in shared):
                yield place

    def _reads(self, node: Node) -> Sequence[str]:
        """The activations that a step reads; of a depth site, that of its last block."""
        names = node.inputs[-1:] if node.kind == "depth" else node.inputs
        return [name for name in names if self.nodes[self.place[name]].kind != "value"]

    def _spans_of_parameters(self) -> set[tuple[int, int]]:
        """The first and the last step that uses each parameter, where they are two."""
        spans: dict[int, tuple[int, int]] = {}
        read: dict[str, set[int]] = {}
        tensors = dict(self.network.module.named_parameters(remove_duplicate=False))
        owners = dict(self.network.module.named_modules(remove_duplicate=False))
        for place, node in enumerate(self.nodes):
            used = {id(tensors[node.param])} if node.param in tensors else set()
            if node.module and node.called and node.module in owners:
                used |= set(map(id, owners[node.module].parameters()))
            for name in node.inputs:
                used |= read.get(name, set())
            if node.kind == "value":
                read[node.name] = used
            else:
                for each in used:
                    spans[each] = spans.get(each, (place, place))[0], place
        return {(first, last) for first, last in spans.values() if first < last}

    @torch.no_grad()
    def _sound(self, cuts: Sequence[int], space: Space) -> list[int]:
        """Of these places those where nothing but the number of channels changes with the widths."""
        network = self.network
        narrow, images = Arch(space.narrowest.widths, network.base.depths), 2
        shapes: list[dict[str, tuple[int, ...]]] = []
        for arch in (network.base, narrow):
            with torch.random.fork_rng(()):
                module = network.module if arch == network.base else resize(network, arch)
            inputs = tuple(each.to(next(module.parameters()).device) for each in network.example(images))
            with evaluating(module):
                values = dict((node.name, value) for node, value in replayed(network, module, arch, inputs))
            shapes.append({
                name: tuple(value.shape) for name, value in values.items()
                if isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 1
            })  # fmt: skip
        widths = network.widths_at(narrow)

        def sound(node: Node) -> bool:
            one, other = (each.get(node.name, ()) for each in shapes)
            if not one or not other or one[0] != images or node.axis == 0 or node.axis >= len(one):
                return False
            size = node.layout.size(widths) if node.layout.free else one[node.axis]
            return other == (*one[: node.axis], size, *one[node.axis + 1 :])

        return [place for place in cuts if sound(self.nodes[place])]

    def _depth_sites(self) -> tuple[dict[str, list[int]], dict[str, tuple[int, int]]]:
        """By depth site whose blocks are apart, the places of their ends; and of every other the places of its first
        and last step."""
        ends: dict[str, list[int]] = {}
        inner: dict[str, tuple[int, int]] = {}
        for place, node in enumerate(self.nodes):
            if node.kind == "depth" and node.site in self.depths:
                places = [*(self.place[name] for name in node.inputs[:-1]), place]
                if not node.blocks and set(places) <= set(self.cuts):
                    ends[node.site] = places
                else:
                    first = min(at for at, each in enumerate(self.nodes) if node.site in dict(each.blocks))
                    inner[node.site] = first, place
        self.cuts = [place for place in self.cuts if not any(one <= place < two for one, two in inner.values())]
        whole = {site: places for site, places in ends.items() if set(places) <= set(self.cuts)}
        return whole, inner

    def _borders(self, forced: Collection[int]) -> list[int]:
        """Cuts between which whole sites lie, and those that are forced."""
        borders: list[int] = []
        start, waiting = -1, list[int]()
        for place in self.cuts:
            if waiting and self._holds_site(waiting[0], place):
                start = self._shallowest(waiting)
                borders.append(start)
                waiting = [each for each in waiting if each > start and self._holds_site(start, each)]
            if place in forced:
                borders.append(place)
                start, waiting = place, []
            elif self._holds_site(start, place):
                waiting.append(place)
        return [*borders, self._shallowest(waiting)] if waiting else borders

    def _holds_site(self, start: int, end: int) -> bool:
        """Whether all channels of a free site are between two cuts."""
        return any(start < first and last < end for site, (first, last) in self.sites.items() if site in self.free)

    def _shallowest(self, cuts: Sequence[int]) -> int:
        """The first of the cuts that leave the most modules, or the last of those that follow it with its channels."""
        levels = [self._level(place) for place in cuts]
        at = levels.index(min(levels))
        sites = self.nodes[cuts[at]].layout.sites
        while at + 1 < len(cuts) and levels[at + 1] == levels[at] and self.nodes[cuts[at + 1]].layout.sites == sites:
            at += 1
        return cuts[at]

    def _level(self, cut: int) -> int:
        """The number of modules around the steps before and after a cut."""
        after = next(node for node in self.nodes[cut + 1 :] if node.kind != "value")
        one, other = (_path(node) for node in (self.nodes[cut], after))
        same = [left == right for left, right in zip(one, other, strict=False)]
        return same.index(False) if False in same else len(same)

    # -- blocks --------------------------------------------------------------------------------------------------------

    def _block(
        self, first: int, last: int, start: Node | None, exits: tuple[Node, ...], ends: Mapping[str, list[int]],
        inner: Mapping[str, tuple[int, int]],
    ) -> Block:  # fmt: skip
        """The steps between two cuts."""
        needed, places = {node.name for node in exits}, list[int]()
        for place in range(last, -1, -1):
            node = self.nodes[place]
            if node.name in needed and (place > first or node.kind == "value") and node.kind != "input":
                places.append(place)
                native = node.kind == "depth" and node.site in inner
                needed.update(node.inputs if native or node.kind != "depth" else node.inputs[-1:])
        nodes = tuple(self.nodes[place] for place in reversed(places))
        entries = (start,) if start else tuple(node for node in self.nodes if node.kind == "input")
        block = Block(nodes, entries, exits, inner=tuple(s for s, (_, end) in inner.items() if first < end <= last))
        number, site = max(
            ((number, site) for node in nodes for site, number in node.blocks if site in ends), default=(0, "")
        )
        if not site:
            return block
        is_end = number < len(ends[site]) - 1 and ends[site][number] == last
        end = self.nodes[ends[site][-1]] if is_end else None
        return replace(block, site=site, number=number, end=end)


def _path(node: Node) -> list[str]:
    """The names of the modules around a step, and of its own."""
    path = node.module or node.name.rpartition(":")[0]
    return path.split(".") if path else []
