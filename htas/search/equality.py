"""Whether a supernet with the weights of a trained network computes what that network does."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from htas.errors import UserError
from htas.graph import Arch, Network, Node, resize
from htas.graph.modes import evaluating
from htas.graph.verify import alike, fresh, replayed
from htas.search.draw import Draw
from htas.search.supernet import Supernet
from htas.spaces.space import Space

IMAGES = 3


@torch.no_grad()
def check(supernet: Supernet, trained: nn.Module) -> None:
    """Raise UserError where the supernet, which has inherited from `trained`, computes something else: at its widest
    arch that has no weights but those, on fresh inputs. No check where every arch has others."""
    network = supernet.network
    arch = _within_base(network, supernet.space)
    if arch is None:
        return
    device = next(supernet.parameters()).device
    inputs = tuple(each.to(device) for each in fresh(network.example(), IMAGES))
    with torch.random.fork_rng(()):
        narrow = resize(replace(network, module=trained), arch).to(device)
    with evaluating(supernet), evaluating(narrow):
        if not alike(supernet(inputs, Draw.of(arch, network)), narrow(*(each.clone() for each in inputs))):
            node = next(_different(supernet, narrow, arch, inputs), None)
            raise UserError(_sentence(node))


def _within_base(network: Network, space: Space) -> Arch | None:
    """The widest arch that is nowhere wider than the base network, and has no projection; None if there is none."""
    widths = {
        site: max((width for width in choices if width <= network.base.widths[site]), default=0)
        for site, choices in space.widths.items()
    }
    if not all(widths.values()):
        return None
    arch = Arch(widths, {site: choices[-1] for site, choices in space.depths.items()})
    projects = any(step.node.kind == "project" and step.layer is not None for step in network.steps(arch))
    return None if projects else arch


def _different(supernet: Supernet, narrow: nn.Module, arch: Arch, inputs: tuple[Tensor, ...]) -> Iterator[Node]:
    """The steps that compute something else, in their order."""
    names = [node.name for node in supernet.network.nodes]
    values = supernet.values(inputs, Draw.of(arch, supernet.network), names)
    for node, value in replayed(supernet.network, narrow, arch, inputs):
        if node.kind not in ("input", "value") and not alike(values[node.name], value):
            yield node


def _sentence(node: Node | None) -> str:
    what = "the supernet computes something else than the trained network whose weights it has"
    if node is None:
        return f"{what}; search with another strategy, such as strategy.name=evolution"
    module = node.module or node.name.rpartition(":")[0]
    way = f"name {module} in design.ignored" if module else "make that step a module, and name it in design.ignored"
    return f"{what}, from {node.name} on; {way}, so that it stays as it is"
