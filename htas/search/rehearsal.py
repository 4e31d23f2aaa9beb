"""A step of a search before anything is measured: a supernet of two widths a site, checked, forward and backward."""

import functools
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from htas.console.blame import blame
from htas.errors import UserError
from htas.graph import Network, Node
from htas.graph.verify import fresh
from htas.search.draw import Draw
from htas.search.equality import IMAGES, check
from htas.search.supernet import Supernet
from htas.spaces.space import Space


def rehearse(
    network: Network,
    reset: Callable[[nn.Module], None],
    shortcut: Literal["project", "pad"],
    mix: Literal["interpolate", "pad"],
    norms: Literal["own", "shared"],
    *,
    inherits: bool,
) -> None:
    """Raise UserError, with the step that fails, where a supernet of the network cannot be trained or, if it `inherits`
    the base network's weights, computes something else than the network. `reset` draws its weights first."""
    widths = {name: tuple(sorted({site.near(site.base / 2), site.base})) for name, site in network.widths.items()}
    depths = {name: tuple(range(1, site.base + 1)) for name, site in network.depths.items()}
    steps: list[Node] = []
    with torch.random.fork_rng(()):
        try:
            supernet = Supernet(network, Space("rehearsal", widths, depths), reset, shortcut, mix, norms)
            supernet.inherit(network.module)
            _note(supernet, steps)
            if inherits:
                check(supernet, network.module)
            _train(supernet, steps)
        except UserError:
            raise
        except Exception as error:  # whatever a network of the user's makes of other widths
            raise UserError(_sentence(steps[-1] if steps else None, error)) from error


def _note(supernet: Supernet, steps: list[Node]) -> None:
    """Keep the steps that the supernet takes from now on."""
    step = supernet._step

    @functools.wraps(step)
    def noted(node: Node, *rest: Any) -> Any:
        steps.append(node)
        return step(node, *rest)

    supernet.__dict__["_step"] = noted


def _train(supernet: Supernet, steps: list[Node]) -> None:
    """One forward and backward pass in training of all blocks and the two widths of each site, mixed alike."""
    space, network = supernet.space, supernet.network
    widths = {name: (each, (1 / len(each),) * len(each)) for name, each in space.widths.items()}
    depths = {name: (1 / len(each),) * len(each) for name, each in space.depths.items()}
    supernet.evaluated = True
    outputs = supernet.train()(fresh(network.example(), IMAGES), Draw(widths, depths))
    leaves = [each for each in tree_leaves(outputs) if isinstance(each, Tensor) and each.requires_grad]
    steps.clear()  # what fails from now on is none of them
    if leaves:
        torch.stack([each.float().mean() for each in leaves]).sum().backward()  # type: ignore[no-untyped-call]


def _sentence(node: Node | None, error: Exception) -> str:
    what = f"this network cannot be searched by a supernet: {blame(error)}"
    if node is None:
        return f"{what}; search with strategy.name=uniform or morphnet"
    module = node.module or node.name.rpartition(":")[0]
    way = f"name {module} in design.ignored, so that it stays as it is" if module else "make that step a module"
    return f"{what}, at {node.name}; {way}, or search with strategy.name=uniform or morphnet"
