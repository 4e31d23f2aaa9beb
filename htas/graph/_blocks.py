"""Runs of blocks that may be dropped: the depth sites of a network."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from htas.graph._steps import ADDS, CONTAINERS
from htas.graph.capture import owner_of, stack_of


@dataclass(frozen=True)
class Run:
    """Neighbouring blocks of a Sequential: a depth site. All but the first have outputs shaped like their inputs."""

    site: str
    blocks: tuple[str, ...]
    ends: tuple[fx.Node, ...]
    listed: bool
    """Whether a Sequential calls them, which a cut one leaves out."""


def runs_of(graph: fx.Graph, modules: dict[str, nn.Module]) -> Iterator[Run]:
    """Runs of blocks in which all but the first keep the shape of their input: of a Sequential, or called one after the
    other by a user's own forward pass, where they must add to what comes in (residual blocks)."""
    inside = _inside(graph)
    for path, module in modules.items():
        listed = type(module).forward is nn.Sequential.forward
        run: list[str] = []
        runs: list[list[str]] = []
        for child, block in module.named_children():
            name = f"{path}.{child}" if path else child
            called = name in inside and (
                not path or not listed or path in stack_of(inside[name][0])
            )  # not by its index
            composite = called and not isinstance(block, CONTAINERS) and any(True for _ in block.children())
            keeps = run and composite and _keeps_shape(inside, run[-1], name)
            if keeps and (listed or _residual(inside[name])):
                run.append(name)
                continue
            run = [name] if composite else []
            runs.append(run)
        for blocks in runs:
            if len(blocks) > 1:
                site = path if path and len(blocks) == len(list(module.children())) else f"{blocks[0]}+"
                yield Run(site, tuple(blocks), tuple(inside[block][-1] for block in blocks), listed)


def _inside(graph: fx.Graph) -> dict[str, list[fx.Node]]:
    """The nodes of every submodule, in order."""
    by_module: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        owner = str(node.target) if node.op == "call_module" else owner_of(node)
        parts = owner.split(".") if owner else []
        for length in range(1, len(parts) + 1):
            by_module.setdefault(".".join(parts[:length]), []).append(node)
    return by_module


def _keeps_shape(inside: dict[str, list[fx.Node]], before: str, block: str) -> bool:
    """Whether `block` reads the output of `before` and nothing else, and its output has the same shape."""
    nodes, end, source = set(inside[block]), inside[block][-1], inside[before][-1]
    outside = {other for node in nodes for other in node.all_input_nodes if other not in nodes}
    if outside != {source} or any(user not in nodes for user in source.users):
        return False
    if _leaving(inside[before]) or _leaving(inside[block]):
        return False
    return end.meta["shape"] is not None and end.meta["shape"] == source.meta["shape"]


@torch.no_grad()
def droppable(module: nn.Module, blocks: Sequence[str], examples: tuple[Tensor, ...]) -> bool:
    """Whether the network still runs on `examples`, [N, *shape] each, with an Identity for all blocks but the first:
    blocks may be called with further arguments, or their attributes read."""
    cut = copy.deepcopy(module).eval()
    for block in blocks[1:]:
        cut.set_submodule(block, nn.Identity())
    try:
        cut(*(example.clone() for example in examples))
    except Exception:  # whatever a forward pass of the user's makes of that
        return False
    return True


def _residual(nodes: list[fx.Node]) -> bool:
    """Whether a block adds something to its input."""
    inner = set(nodes)
    return any(node.target in ADDS and any(operand not in inner for operand in node.all_input_nodes) for node in nodes)


def _leaving(nodes: list[fx.Node]) -> bool:
    """Whether anything but the last of a block's values is read outside it."""
    return any(user not in nodes for node in nodes[:-1] for user in node.users)
