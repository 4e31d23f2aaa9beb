"""What a trained network loses without some of its channels or blocks, estimated from a few images.

A gate on a channel, 1 where it is read and 0 where it is not, has a derivative for every image: activation times
gradient, summed over pixels and over the steps that read the channel. Without the channel the loss grows by about
1/2 E[derivative^2], the second order of its expansion at a minimum with the Fisher information in the place of the
Hessian (Theis et al. 2018, "Faster gaze prediction with dense networks and Fisher pruning"; Molchanov et al. 2019,
"Importance estimation for neural network pruning"). What many channels together are worth once the network is trained
again no expansion says: losses by width follow a power law that is fitted to these sums.
"""

import itertools
import math
from collections.abc import Iterable, Mapping
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from htas.data.split import Batch
from htas.data.task import Task, images_in, precise
from htas.errors import UserError
from htas.graph.modes import copied, evaluating
from htas.graph.network import Network, Node
from htas.graph.verify import normed
from htas.search.program import Floats, Group, Tables
from htas.spaces.space import Space
from htas.training.loop import finite

MEMORY = 2**30
"""Bytes for the values of the layers of a batch, and their gradients."""
FLOAT, COPIES = 4, 3
"""Bytes of a value, and how many a layer has: itself, behind its norm and activation, their gradients (measured: 2.0
to 2.4)."""


def derivatives(network: Network, model: nn.Module, batches: Iterable[Batch], task: Task) -> dict[str, Tensor]:
    """Derivatives of the loss of single images by gates, [images, atoms] by width site, and [images, blocks, channels]
    by depth site: of a block in `_bare`, by gates on what it adds to the channels of its input.

    `model` is the trained network, on its device; it is taken in eval mode. Batches hold as many images as
    `images_at_once` allows. Raises UserError where derivatives are not finite, or all are 0.
    """
    twin = copied(model).requires_grad_(False)
    parts: dict[str, list[Tensor]] = {}
    sound = True
    with evaluating(twin):
        for inputs, targets in batches:
            sound = sound and finite(inputs)
            replay = _Replay(network, twin, inputs if isinstance(inputs, tuple) else (inputs,))
            outputs: Any = precise(network.result(tuple(replay.values[name] for name in network.outputs)))
            loss = task.loss(outputs, targets) * images_in(inputs)
            if replay.reads or replay.changes:
                loss.backward()  # type: ignore[no-untyped-call]
            for site, values in (replay.by_site() | replay.by_block()).items():
                parts.setdefault(site, []).append(values)
            del replay, outputs, loss  # before the next batch needs as much memory
    gates = {site: torch.cat(each) for site, each in parts.items()}
    for site, values in gates.items():
        if not bool(values.isfinite().all()):
            raise UserError(f"the importance of {site} is not finite: {not_finite(sound)}")
    if gates and not any(bool(values.any()) for values in gates.values()):
        raise UserError(
            "the importance of every channel is 0, as the loss of the trained network on training images does not "
            "change with any: it knows them by heart, or its output is constant; train it on more images, or take a "
            "strategy that does not start from its weights"
        )
    return gates


def not_finite(sound: bool) -> str:
    """Why a trained network gives no numbers, by whether its inputs are, and what to do."""
    if not sound:
        return "inputs of the training data are NaN or infinite; replace them, or leave those items out"
    return (
        "its inputs are finite, and the trained network overflows on them; train it at a lower rate, or take a "
        "strategy that does not start from its weights"
    )


def images_at_once(network: Network, most: int) -> int:
    """How many images `derivatives` may look at together: within MEMORY, from 1 to `most`; 1 where a layer reads them
    along another dimension than the first, or has several rows for each."""
    with evaluating(network.module):
        alone = _Replay(network, network.module, network.example(1))
    if any(len(value) != 1 for value in alone.gate_values) or any(axis == 0 for axis in alone.axes):
        return 1
    layers = [use.layer for use in network.uses(network.base)]
    values = sum((each.outputs or 0) * math.prod(each.size) // math.prod(each.stride) for each in layers)
    return max(1, min(most, MEMORY // max(1, COPIES * FLOAT * values)))


class _Replay:
    """The recorded steps on a batch, with a gate wherever a step reads channels of a site that its output has no more,
    and at the ends of blocks that change more than channels made inside them can."""

    def __init__(self, network: Network, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.network, self.images = network, len(inputs[0])
        self.nodes = {node.name: node for node in network.nodes}
        self._depths = {node.site: node for node in network.nodes if node.kind == "depth"}
        self.aliases = _aliases(network)
        self.values: dict[str, Any] = {}
        self.reads: list[tuple[Node, frozenset[str], Tensor]] = []
        """The node that made what is read, the sites of which it counts, and its values, with their gradient after the
        backward pass."""
        self.changes: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}
        """By depth site and number of a block, its input and its output, which has its gradient after that."""
        widths, images, bare = network.base_widths, iter(inputs), _bare(network)
        ends = {self._depths[site].inputs[block] for site, block in bare}
        for node in network.nodes:
            values = [self.values[name] for name in node.inputs]
            if node.kind == "input":
                value = next(images)
            elif node.kind == "depth":
                value = values[-1]
                self.changes |= {(site, at): (values[at - 1], values[at]) for site, at in bare if site == node.site}
            else:
                for place, sites in self._read_by(node):
                    if isinstance(values[place], Tensor):
                        values[place] = _gated(values[place])
                        self.reads.append((self.nodes[node.inputs[place]], sites, values[place]))
                value = (
                    normed(module.get_submodule(node.module), values[0])
                    if node.kind == "norm" and not node.called
                    else node.run(module.get_submodule, tuple(values), widths)
                )
            self.values[node.name] = _with_gradient(value) if node.name in ends else value

    @property
    def gate_values(self) -> list[Tensor]:
        """All values with a gate."""
        return [value for _, _, value in self.reads] + [value for _, value in self.changes.values()]

    @property
    def axes(self) -> list[int]:
        """The dimensions of channels of what layers read."""
        return [source.axis for source, _, _ in self.reads]

    def _read_by(self, node: Node) -> list[tuple[int, frozenset[str]]]:
        """The inputs at which a node reads sites that its output does not carry on, and these sites."""
        if node.kind == "value":
            return []
        carried = frozenset() if node.kind == "conv" else self._sites(node)
        inputs = node.inputs[:1] if node.kind == "conv" else node.inputs
        places = [
            (place, sites)
            for place, name in enumerate(inputs)
            if self.nodes[name].kind != "value" and (sites := self._sites(self.nodes[name]) - carried)
        ]
        return places[:1] if node.macs else places  # a product is gone with the channels of one of its factors

    def _sites(self, node: Node) -> frozenset[str]:
        """The sites along its channels."""
        return frozenset(self.aliases.get(site, site) for site in node.layout.sites) - {""}

    def by_site(self) -> dict[str, Tensor]:
        """Derivatives by gates on the atoms of width sites, [images, atoms]."""
        sums: dict[str, Tensor] = {}
        for source, sites, value in self.reads:
            products = self._products(value.detach(), value, source.axis)
            for label, parts in source.layout.by_atom(products):
                site, gates = self.aliases.get(label, label), parts.sum(-1).cpu()
                if site in sites:
                    sums[site] = sums[site] + gates if site in sums else gates
        return sums

    def by_block(self) -> dict[str, Tensor]:
        """Derivatives by gates on what blocks add to the channels of their input, [images, blocks, channels] by depth
        site; 0 for blocks without such gates."""
        by_depth: dict[str, Tensor] = {}
        for (site, block), (before, after) in self.changes.items():
            node = self._depths[site]
            gates = self._products((after - before).detach(), after, node.axis).cpu()
            blocks = by_depth.setdefault(site, gates.new_zeros(self.images, len(node.inputs), gates.shape[-1]))
            blocks[:, block] = gates
        return by_depth

    def _products(self, change: Tensor, value: Tensor, axis: int) -> Tensor:
        """A change of a value times its gradient, summed over all but images and channels: [images, channels]."""
        gradient = torch.zeros_like(value) if value.grad is None else value.grad
        products = (change * gradient).movedim(axis, -1)
        return products.reshape(self.images, -1, products.shape[-1]).sum(1)


def _aliases(network: Network) -> dict[str, str]:
    """By the name that the output of the last kept block has as a site, the site of the last one's end."""
    aliases: dict[str, str] = {}
    ends = {node.name: node.segments for node in network.nodes}
    for node in network.nodes:
        if node.kind == "depth" and node.segments[0].site not in {"", *network.sites}:
            end = ends[node.inputs[-1]][0].site
            aliases[node.segments[0].site] = aliases.get(end, end)
    return aliases


def _gated(value: Tensor) -> Tensor:
    """The same values, whose gradient is kept."""
    if not value.requires_grad:
        return value.detach().clone().requires_grad_()
    gated = value.clone()
    gated.retain_grad()
    return gated


def _with_gradient(value: Tensor) -> Tensor:
    """The values themselves, whose gradient is kept."""
    if value.requires_grad:
        value.retain_grad()
        return value
    return _gated(value)


Blocks = tuple[tuple[str, int], ...]
"""Depth sites, the outermost first, each with the number of a block."""
POWER = 0.25
"""Of the power law, p: nearly a logarithm, so that no site is narrowed or widened out of proportion."""


def losses(network: Network, space: Space, gates: Mapping[str, Tensor]) -> Tables:
    """The loss that is added by every choice of a space, as tables: what fewer channels and fewer blocks cost.

    Of a site with b channels in the base network, A ((w / b)^-p - 1) for w channels: A is fitted to the sums of what
    the least important channels are worth, and below 0 is what more channels than b are expected to gain. A block that
    is cut costs what all channels inside it are worth; their widths then cost nothing more.
    Raises UserError for a site that steps of the network have and no gate tells of.
    """
    present = {site for node in network.nodes for site in node.layout.sites} - gates.keys()
    if lost := next((site for site, choices in space.widths.items() if site in present and len(choices) > 1), None):
        raise UserError(
            f"what channels of {lost} are worth cannot be told, as no step of the network reads them; name it in "
            "design.ignored, or take a strategy that does not start from the trained weights"
        )
    tables: dict[Group, Floats] = {(): np.zeros(())}
    worth = {site: values.double().square().mean(0).numpy() / 2 for site, values in gates.items()}
    homes, around = _homes(network), {node.site: node.blocks for node in network.nodes if node.kind == "depth"}
    order = {site: place for place, site in enumerate(space.choices)}

    def add(site: str, values: Floats, blocks: Blocks) -> None:
        """The losses by the choices of a site, which count where none of these blocks is cut."""
        factors = {site: values} | {
            each: np.array([depth > block for depth in space.depths[each]], float)
            for each, block in blocks
            if each in space.depths
        }
        group = tuple(sorted(factors, key=order.__getitem__))
        tables[group] = reduce(np.multiply.outer, (factors[each] for each in group))

    for site, choices in space.widths.items():
        if site in worth:
            shares = np.array(choices) / network.sites[site].base
            add(site, _scale(np.sort(worth[site])) * _law(shares), homes.get(site, ()))
    inside = _block_losses(network, worth, homes, around)
    for site, choices in space.depths.items():
        blocks = [inside[site, block] for block in range(network.sites[site].base)]
        add(site, np.array([sum(blocks[depth:]) for depth in choices], float), around.get(site, ()))
    return Tables(space, tables)


def _block_losses(
    network: Network, worth: Mapping[str, Floats], homes: Mapping[str, Blocks], around: Mapping[str, Blocks]
) -> dict[tuple[str, int], float]:
    """What the loss grows by without each block: what all its channels are worth, those of the blocks inside it
    included, or all channels of what it adds to its input, whichever is more."""
    losses: dict[tuple[str, int], float] = {}
    for site in sorted(network.depths, key=lambda each: -len(around.get(each, ()))):  # the innermost first
        for block in range(network.sites[site].base):
            here = (*around.get(site, ()), (site, block))
            channels = sum(float(worth[each].sum()) for each, home in homes.items() if home == here and each in worth)
            deeper = sum(loss for (each, _), loss in losses.items() if around[each] == here)
            losses[site, block] = max(channels + deeper, float(worth[site][block].sum()) if site in worth else 0.0)
    return losses


def _law(shares: Floats) -> Floats:
    return np.asarray(shares**-POWER - 1, float)


def _scale(worth: Floats) -> float:
    """A: the least squares of the law on the sums of [atoms], the least important first."""
    atoms = len(worth)
    shape = _law(np.arange(atoms - 1, 0, -1) / atoms)
    return float(shape @ np.cumsum(worth)[:-1] / (shape @ shape)) if atoms > 1 else float(worth.sum())


def _homes(network: Network) -> dict[str, Blocks]:
    """By width site the blocks, the outermost first, that all its channels are made in."""
    homes: dict[str, Blocks] = {}
    for node in network.nodes:
        if node.kind in ("conv", "grouped"):
            for segment in node.segments:
                home = homes.get(segment.site, node.blocks)
                same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(home, node.blocks, strict=False))
                homes[segment.site] = tuple(one for one, _ in same)
    return homes


def _bare(network: Network) -> list[tuple[str, int]]:
    """Blocks that may be cut, by depth site and number, through which a path leads from input to output by layers none
    of which makes or reads channels that are made inside the block alone: without all of these, it still changes its
    input."""
    homes, depths = _homes(network), [node for node in network.nodes if node.kind == "depth"]
    return [
        (node.site, block)
        for node in depths
        for block in range(1, len(node.inputs))
        if _has_bypass(network, homes, node.inputs[block], (node.site, block))
    ]


def _has_bypass(network: Network, homes: Mapping[str, Blocks], end: str, block: tuple[str, int]) -> bool:
    """Whether a block, which ends at a node, has such a path."""
    paths: dict[str, frozenset[bool]] = {}  # of paths from outside to a node, whether a layer changed what they carry
    for node in network.nodes:
        if block not in node.blocks or node.kind == "value":
            continue
        inside = {segment.site for segment in (*node.segments, *node.consumed) if block in homes.get(segment.site, ())}
        come = frozenset().union(*(paths.get(name, frozenset({False})) for name in node.inputs))
        changes = node.kind in ("conv", "grouped", "fixed") or bool(node.macs)
        paths[node.name] = frozenset() if inside else frozenset(changes or each for each in come)
    return True in paths.get(end, ())
