"""Runs of blocks that may be dropped: the depth sites of a network."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from htas.graph.length import leaves_of
from htas.graph.modes import copied
from htas.graph.record import Record, Value, Visit, values_in

ADDS = {"add", "add_", "__radd__"}
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class Blocks:
    """Neighbouring blocks of a Sequential: a depth site. All but the first have outputs shaped like their inputs."""

    site: str
    names: tuple[str, ...]
    visits: tuple[Visit, ...]
    listed: bool
    """Whether a Sequential calls them, which a cut one leaves out."""


class Reads:
    """Which steps read each value of a record."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.users: dict[Value, set[int]] = {}
        """By value the places of the steps that read it; -1 for what leaves the network."""
        for place, call in enumerate(record.calls):
            for value in call.values:
                self.users.setdefault(value, set()).add(place)
            for length in call.lengths:
                for leaf, _ in leaves_of(length):
                    if leaf[0] == "size":
                        self.users.setdefault(leaf[1], set()).add(place)
        for value in values_in(record.outputs):
            self.users.setdefault(value, set()).add(-1)

    def outside(self, visit: Visit) -> set[Value]:
        """Values that a module reads and that depend on the input, made elsewhere."""
        calls = self.record.calls[visit.start : visit.end]
        made = {value for call in calls for value in call.outputs}
        return {value for call in calls for value in call.values if value.derived and value not in made}

    def leaving(self, visit: Visit) -> bool:
        """Whether anything but its output is read outside a module."""
        inside = range(visit.start, visit.end)
        return any(
            value not in visit.outputs and any(user not in inside for user in self.users.get(value, ()))
            for call in self.record.calls[visit.start : visit.end]
            for value in call.outputs
        )


def runs_of(record: Record, modules: Mapping[str, nn.Module], reads: Reads) -> Iterator[Blocks]:
    """Runs of blocks in which all but the first keep the shape of their input: of a Sequential, or called one after the
    other by a user's own forward pass, where they must add to what comes in (residual blocks)."""
    visits: dict[str, list[Visit]] = {}
    for visit in record.visits:
        visits.setdefault(visit.path, []).append(visit)
    for path, module in modules.items():
        listed = type(module).forward is nn.Sequential.forward
        runs: list[list[Visit]] = []
        run: list[Visit] = []
        for child, block in module.named_children():
            name = f"{path}.{child}" if path else child
            once = visits.get(name, [])
            called = len(once) == 1 and (not path or not listed or once[0].caller == path)  # not by its index
            composite = called and not isinstance(block, CONTAINERS) and any(True for _ in block.children())
            keeps = run and composite and _keeps_shape(reads, run[-1], once[0])
            if keeps and (listed or _residual(record, once[0], modules)):
                run.append(once[0])
                continue
            run = [once[0]] if composite else []
            runs.append(run)
        for each in runs:
            if len(each) > 1:
                names = tuple(visit.path for visit in each)
                site = path if path and len(each) == len(list(module.children())) else f"{names[0]}+"
                yield Blocks(site, names, tuple(each), listed)


def _keeps_shape(reads: Reads, before: Visit, block: Visit) -> bool:
    """Whether `block` reads the output of `before` and nothing else, and its output has the same shape."""
    if len(before.outputs) != 1 or len(block.outputs) != 1 or block.start == block.end:
        return False
    (source,), (end,) = before.outputs, block.outputs
    inside = range(block.start, block.end)
    if reads.outside(block) != {source} or any(user not in inside for user in reads.users.get(source, ())):
        return False
    return not reads.leaving(before) and not reads.leaving(block) and end.shape == source.shape


@torch.no_grad()
def droppable(module: nn.Module, blocks: Sequence[str], examples: tuple[Tensor, ...]) -> bool:
    """Whether the network still runs on `examples`, [N, *shape] each, with an Identity for all blocks but the first:
    blocks may be called with further arguments, or their attributes read."""
    cut = copied(module).eval()
    for block in blocks[1:]:
        cut.set_submodule(block, nn.Identity())
    try:
        cut(*(example.clone() for example in examples))
    except Exception:  # whatever a forward pass of the user's makes of that
        return False
    return True


def _residual(record: Record, visit: Visit, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a block adds something to its input, which may pass through an Identity."""
    calls = record.calls[visit.start : visit.end]
    made: set[Value] = set()
    for call in calls:
        if not isinstance(modules.get(call.module), nn.Identity) or made.intersection(call.values):
            made.update(call.outputs)
    return any(call.name in ADDS and any(value not in made for value in call.values) for call in calls)
