"""Peak activation memory of an arch, from one look at how the tensors of its network are born and die.

Which tensors a pass holds at each moment depends on the code of the network, not on its widths. So one pass is
followed, tensor by tensor (htas/metrics/memory.py), and any other arch has the same tensors with other sizes, without
those of dropped blocks, and with the output of the last kept block in place of the last block's.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from htas.cost.model import CostModel, by_block, expectation, keeps
from htas.errors import UserError
from htas.graph import Arch, Network, resize, trace
from htas.graph.projected import TwoModes
from htas.metrics.memory import Life, Memory, lives
from htas.spaces.space import Space
from htas.timing.target import Target

PROBES = 3
"""Number of probe archs. Every site gets a distinct width, which identifies the node of each tensor."""


@dataclass(frozen=True)
class TensorFacts:
    """A tensor of the pass, for any arch."""

    life: Life
    node: str
    """The node whose output has as many channels; empty if the size never changes."""
    each: float
    """Bytes of a batch for each channel; of all channels if there is no node."""
    blocks: tuple[tuple[str, int], ...]
    """Depth sites around it, each with a block number."""
    projection: str
    """The projection that creates it, which exists only if widths differ."""


@dataclass(frozen=True)
class PeakCost(CostModel):
    """The most bytes alive at once in a pass over a batch in eager PyTorch, as the metric `memory` counts them."""

    network: Network
    tensors: tuple[TensorFacts, ...]
    plain: tuple[TensorFacts, ...] = ()
    """With projected adds, the tensors of archs without projections, which run as the user's class."""
    scale: float = 1.0
    """Ratio of device memory to predicted memory: 1 on a CPU."""
    unit: str = "bytes"
    counted: Mapping[Arch, float] = field(default_factory=dict)
    """Counted bytes of some archs: the base network."""

    def cost(self, arch: Arch) -> float:
        """Bytes."""
        if arch in self.counted:
            return self.counted[arch]
        steps = {step.node.name: step for step in self.network.steps(arch)}
        projects = {name: step.layer is not None for name, step in steps.items() if step.node.kind == "project"}
        story = self.tensors if any(projects.values()) or not self.plain else self.plain
        there = np.array([all(block < arch.depths[site] for site, block in tensor.blocks) for tensor in story])
        died = _extended(story, arch.depths, {name for name, there in projects.items() if not there})
        there &= np.array([projects.get(tensor.projection, True) for tensor in story])
        sizes = np.array([
            (tensor.each * (steps[tensor.node].channels if tensor.node else 1)) if exists else 0.0
            for tensor, exists in zip(story, there, strict=True)
        ])  # fmt: skip
        change = np.zeros(len(story) + 1)
        change[: len(sizes)] = sizes
        np.subtract.at(change, died, sizes)
        return self.scale * float(np.cumsum(change).max())

    def expected(self, space: Space, widths: Mapping[str, Tensor], depths: Mapping[str, Tensor]) -> Tensor:
        """The largest, over the moments of a pass, of the moment's probability times its mean bytes; a scalar.

        Exact if probabilities are 0 and 1 and no shortcut is projected; otherwise slightly below the mean peak
        (Jensen).
        """
        mean = {site: expectation(space.widths[site], widths[site]) for site in space.widths}
        stays = {name: by_block(space.depths[name], depths[name], s.base) for name, s in self.network.depths.items()}
        steps = {step.node.name: step for step in self.network.flow(mean.__getitem__, stays.__getitem__)}
        like = next(iter([*widths.values(), *depths.values()]), torch.zeros(()))
        one = like.new_ones(())
        sizes = torch.stack(
            [tensor.each * (steps[tensor.node].channels if tensor.node else one) * one for tensor in self.tensors]
        )
        keep = {name: keeps(space.depths[name], depths[name], s.base) for name, s in self.network.depths.items()}
        comes = [one * prod(keep[site][block] for site, block in tensor.blocks) for tensor in self.tensors]
        return self.scale * (torch.stack(comes) * (self._alive.to(sizes) @ sizes)).max()

    @cached_property
    def _alive(self) -> Tensor:
        """Which tensors (columns) live at the birth of each (rows)."""
        number = torch.arange(len(self.tensors))
        died = torch.tensor([min(tensor.life.died, len(self.tensors)) for tensor in self.tensors])
        return ((number <= number[:, None]) & (died > number[:, None])).double()


def _extended(story: Sequence[TensorFacts], depths: Mapping[str, int], bare: set[str]) -> NDArray[np.int64]:
    """When each tensor dies; one that replaces a missing tensor lives as long as that."""
    died = np.array([min(tensor.life.died, len(story)) for tensor in story])
    for site, depth in depths.items():
        cut = [number for number, tensor in enumerate(story) if dict(tensor.blocks).get(site, -1) >= depth]
        if cut:
            last = [number for number in range(cut[0]) if (site, depth - 1) in story[number].blocks]
            died[[number for number in last if died[number] > cut[0]]] = max(died[number] for number in cut)
    for name in bare:
        births = [number for number, tensor in enumerate(story) if tensor.projection == name]
        if births:  # in its place the source of the shortcut stays until the add
            source = [number for number in range(births[0]) if births[0] < died[number] <= births[-1] + 1]
            died[source] = max(died[number] for number in births)
    return died


def peak_cost(network: Network, target: Target) -> PeakCost:
    """Follow the network at a few widths; raises UserError for a tensor whose size follows no node's channels."""
    tensors = _story(network, target)
    plain: tuple[TensorFacts, ...] = ()
    if network.adds == "project":
        plain = _story(trace(network.module, network.example(), adds="join"), target)
    model, probe = PeakCost(network, tensors, plain), _probe(network, 0)
    base, other = Memory(target).measure([resize(network, arch) for arch in (network.base, probe)])
    return replace(model, scale=other.estimate / model.cost(probe), counted={network.base: base.estimate})


def _story(network: Network, target: Target) -> tuple[TensorFacts, ...]:
    archs = [_probe(network, seed) for seed in range(PROBES)]
    modules = [resize(network, arch).eval().cpu() for arch in archs]
    followed = [lives(module, network.example()) for module in modules]
    channels = [{step.node.name: step.channels for step in network.steps(arch)} for arch in archs]
    tensors: list[TensorFacts] = []
    blocks: tuple[tuple[str, int], ...] = ()
    for lives_of in zip(*followed, strict=True):
        owner = lives_of[0].owner
        if owner or not isinstance(
            modules[0], fx.GraphModule | TwoModes
        ):  # else an operator belongs to the module before
            blocks = tuple(
                (name, number)
                for name, site in network.depths.items()
                for number, block in enumerate(site.producers)
                if _within(owner, block)
            )
        node, each = _channels(network, [life.size for life in lives_of], channels, blocks, owner)
        projection = next((n.name for n in network.nodes if n.kind == "project" and _within(owner, n.name)), "")
        tensors.append(TensorFacts(lives_of[0], node, each * target.batch, blocks, projection))
    return tuple(tensors)


def _probe(network: Network, seed: int) -> Arch:
    """An arch with all blocks, and another width at every site."""
    sites = network.widths
    rng = random.Random(seed)
    factors = rng.sample(range(2, 3 * len(sites) + 3), len(sites))
    widths = {name: site.multiple * factor for (name, site), factor in zip(sites.items(), factors, strict=True)}
    return Arch(widths, network.base.depths)


def _within(owner: str, path: str) -> bool:
    return owner == path or owner.startswith(f"{path}.")


def _channels(
    network: Network,
    sizes: Sequence[int],
    channels: Sequence[Mapping[str, int]],
    blocks: tuple[tuple[str, int], ...],
    owner: str,
) -> tuple[str, float]:
    """The node of the same blocks whose channels explain the sizes, and the bytes of a channel."""
    if len(set(sizes)) == 1:
        return "", float(sizes[0])
    for node in network.nodes:
        if set(node.blocks) <= set(blocks) and all(by_node.get(node.name) for by_node in channels):
            each = {size / by_node[node.name] for size, by_node in zip(sizes, channels, strict=True)}
            if len(each) == 1:
                return node.name, each.pop()
    raise UserError(
        f"the memory of this network cannot be predicted: {owner or 'the network'} makes a tensor whose size follows "
        "no layer's width; leave memory out of the constraints and of strategy.cost"
    )
