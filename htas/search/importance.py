"""What a trained network loses without some of its channels or blocks, estimated from a few images.

A gate on a channel, 1 where it is read and 0 where it is not, has a derivative for every image: activation times
gradient, summed over pixels and over the layers that read the channel. Without the channel the loss grows by about
1/2 E[derivative^2], the second order of its expansion at a minimum with the Fisher information in the place of the
Hessian (Theis et al. 2018, "Faster gaze prediction with dense networks and Fisher pruning"; Molchanov et al. 2019,
"Importance estimation for neural network pruning"). What many channels together are worth once the network is trained
again no expansion says: losses by width follow a power law that is fitted to these sums.
"""

import math
from collections.abc import Iterable, Mapping
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

MEMORY = 2**30
"""Bytes for the values of the layers of a batch, and their gradients."""
FLOAT, COPIES = 4, 3
"""Bytes of a value, and how many a layer has: itself, behind its norm and activation, their gradients (measured: 2.0
to 2.4)."""


def derivatives(network: Network, model: nn.Module, batches: Iterable[Batch], task: Task) -> dict[str, Tensor]:
    """Derivatives of the loss of single images by gates on the atoms of width sites, [images, atoms] by site.

    `model` is the trained network, on its device; it is taken in eval mode. Raises UserError where they are not finite.
    """
    twin = copied(model).requires_grad_(False)
    parts: dict[str, list[Tensor]] = {}
    with evaluating(twin):
        for inputs, targets in batches:
            replay = _Replay(network, twin, inputs if isinstance(inputs, tuple) else (inputs,))
            outputs: Any = precise(network.result(tuple(replay.values[name] for name in network.outputs)))
            (task.loss(outputs, targets) * images_in(inputs)).backward()  # type: ignore[no-untyped-call]
            for site, values in replay.by_site().items():
                parts.setdefault(site, []).append(values)
            del replay, outputs  # before the next batch needs as much memory
    gates = {site: torch.cat(each) for site, each in parts.items()}
    for site, values in gates.items():
        if not bool(values.isfinite().all()):
            raise UserError(
                f"the importance of {site} is not finite: the trained network overflows on training images; train it "
                "at a lower rate, or take a strategy that does not start from its weights"
            )
    return gates


def images_at_once(network: Network, most: int) -> int:
    """How many images `derivatives` may look at together within MEMORY, from 1 to `most`."""
    layers = [use.layer for use in network.uses(network.base)]
    values = sum((each.outputs or 0) * math.prod(each.size) // math.prod(each.stride) for each in layers)
    return max(1, min(most, MEMORY // max(1, COPIES * FLOAT * values)))


class _Replay:
    """The recorded steps on a batch, with a gate before every layer that reads a site."""

    def __init__(self, network: Network, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.network, self.images = network, len(inputs[0])
        self.values: dict[str, Any] = {}
        self.reads: list[tuple[Node, Tensor]] = []
        """What layers read, with its gradient after the backward pass."""
        widths, images = network.base_widths, iter(inputs)
        for node in network.nodes:
            values = [self.values[name] for name in node.inputs]
            if node.kind == "input":
                self.values[node.name] = next(images)
            elif node.kind == "depth":
                self.values[node.name] = values[-1]
            else:
                if node.kind == "conv" and any(segment.site for segment in node.consumed):
                    values[0] = _gated(values[0])
                    self.reads.append((node, values[0]))
                self.values[node.name] = (
                    normed(module.get_submodule(node.module), values[0])
                    if node.kind == "norm" and not node.called
                    else node.run(module.get_submodule, tuple(values), widths)
                )

    def by_site(self) -> dict[str, Tensor]:
        """Derivatives by gates on the atoms of width sites, [images, atoms]."""
        sums: dict[str, Tensor] = {}
        nodes = {node.name: node for node in self.network.nodes}
        for node, value in self.reads:
            source = nodes[node.inputs[0]]
            products = (value.detach() * _gradient(value)).movedim(source.axis, -1)
            products = products.reshape(self.images, -1, products.shape[-1]).sum(1)
            for site, parts in source.layout.by_atom(products):
                gates = parts.sum(-1).cpu()
                sums[site] = sums[site] + gates if site in sums else gates
        return sums


def _gated(value: Tensor) -> Tensor:
    """The same values, whose gradient is kept."""
    if not value.requires_grad:
        return value.detach().clone().requires_grad_()
    gated = value.clone()
    gated.retain_grad()
    return gated


def _gradient(value: Tensor) -> Tensor:
    return torch.zeros_like(value) if value.grad is None else value.grad


POWER = 0.25
"""Of the power law, p: nearly a logarithm, so that no site is narrowed or widened out of proportion."""


def losses(network: Network, space: Space, gates: Mapping[str, Tensor]) -> Tables:
    """The loss that is added by every choice of a space, as tables: what fewer channels and fewer blocks cost.

    Of a site with b channels in the base network, A ((w / b)^-p - 1) for w channels: A is fitted to the sums of what
    the least important channels are worth, and below 0 is what more channels than b are expected to gain. A block that
    is cut costs what all channels inside it are worth; their widths then cost nothing more.
    """
    tables: dict[Group, Floats] = {(): np.zeros(())}
    homes = _homes(network)
    worth = {site: values.double().square().mean(0).sort().values.numpy() / 2 for site, values in gates.items()}
    for site, choices in space.widths.items():
        values = _scale(worth[site]) * _law(np.array(choices) / network.sites[site].base) if site in worth else None
        place = homes.get(site)
        if values is None:  # no layer reads it
            continue
        if place is None or place[0] not in space.depths:
            tables[(site,)] = values
        else:
            kept = np.array([choice > place[1] for choice in space.depths[place[0]]], float)
            tables[(site, place[0])] = values[:, None] * kept[None]
    for site, choices in space.depths.items():
        inside = [
            (home[1], float(worth[each].sum())) for each, home in homes.items() if home[0] == site and each in worth
        ]
        tables[(site,)] = np.array([sum(loss for block, loss in inside if block >= depth) for depth in choices], float)
    return Tables(space, tables)


def _law(shares: Floats) -> Floats:
    return np.asarray(shares**-POWER - 1, float)


def _scale(worth: Floats) -> float:
    """A: the least squares of the law on the sums of [atoms], the least important first."""
    atoms = len(worth)
    shape = _law(np.arange(atoms - 1, 0, -1) / atoms)
    return float(shape @ np.cumsum(worth)[:-1] / (shape @ shape)) if atoms > 1 else float(worth.sum())


def _homes(network: Network) -> dict[str, tuple[str, int]]:
    """Width sites whose channels are all made in one block: its depth site, and its number."""
    makers: dict[str, set[tuple[tuple[str, int], ...]]] = {}
    for node in network.nodes:
        if node.kind in ("conv", "grouped"):
            for segment in node.segments:
                makers.setdefault(segment.site, set()).add(node.blocks)
    return {site: next(iter(blocks))[0] for site, blocks in makers.items() if len(blocks) == 1 and next(iter(blocks))}
