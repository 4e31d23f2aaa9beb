"""Follow channels through the recorded steps of a network, and what each step binds."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
from torch import Tensor, nn

from htas.graph.blocks import ADDS, Blocks, Reads, droppable, runs_of
from htas.graph.channels import Ids
from htas.graph.kinds import Convolution, Norm, Pointwise, Spatial, conv, kind_of
from htas.graph.labels import Dims, Labels
from htas.graph.network import OUTPUT
from htas.graph.record import Call, Record, Value, values_in

IGNORED = "design.ignored names it"
"""Why a width is frozen that the user wants as it is."""


class Follower:
    """Labels the values of a record, and makes the nodes of a Network of its steps."""

    def __init__(
        self,
        module: nn.Module,
        record: Record,
        examples: tuple[Tensor, ...],
        adds: Literal["join", "project"],
        normed: bool,
        ignored: Collection[str],
    ) -> None:
        self.module, self.record, self.examples, self.adds, self.normed = module, record, examples, adds, normed
        self.ignored = ignored
        self.labels = Labels(module, len(examples[0]))
        self.labels.values = record.params
        self.reads = Reads(record)
        runs = [
            run
            for run in runs_of(record, self.labels.modules, self.reads)
            if not any(self._ignored(block) for block in run.names)
        ]
        self.runs = [run for run in runs if run.listed or droppable(module, run.names, examples)]
        self.passed: dict[str, tuple[Ids, list[Ids]]] = {}
        """By depth site the elements of what it passes on, and those of the ends of its blocks."""
        self.elements: dict[str, Ids] = {}
        """By width site its elements, in the nodes made last."""
        self.before: dict[Value, Dims] = {}
        """Labels of the last block's output before a depth site."""
        self.skips: dict[Call, tuple[int, int]] = {}
        """Additions with a shortcut to project: the places of the shortcut and of the branch."""
        self.made: list[Ids] = []
        """Elements that a layer makes."""

    # -- labels --------------------------------------------------------------------------------------------------------

    def label(self) -> None:
        """Label all values of the record, and freeze what leaves the network."""
        for place, call in enumerate(self.record.calls):
            if self.adds == "project" and self._skip(call) is not None:
                self._label_skip(call)
            else:
                kind_of(call, self.labels).label(call, self.labels)
                self._note_made(call)
            for run in reversed([each for each in self.runs if each.end == place + 1]):  # the inner before the outer
                self._pass_on(run)
        for value in values_in(self.record.outputs):
            self.labels.freeze(value, OUTPUT)
        self._settle()

    def label_again(self, record: Record) -> None:
        """Label the values of another run of the network, in training, whose parameters are the same."""
        self.labels.values = record.params
        for call in record.calls:
            kind_of(call, self.labels).label(call, self.labels)
        for value in values_in(record.outputs):
            self.labels.freeze(value, OUTPUT)
        self.labels.values = self.record.params

    def freeze_site(self, name: str, reason: str) -> None:
        """Freeze a site of the nodes made last: a width, or a site of depth."""
        self.runs = [run for run in self.runs if run.site != name]
        for site, ids in self.elements.items():
            if site == name:
                self.labels.channels.freeze(ids, reason)

    def _note_made(self, call: Call) -> None:
        if not isinstance(kind_of(call, self.labels), Convolution):
            return
        for ids in self.labels.of(call.outputs[0]).values():
            self.made.append(ids)
        weight = conv.parts(call, self.labels)[1]
        owner = call.module or weight.param.rpartition(".")[0] or call.owner
        if self._ignored(owner):
            self.labels.freeze(call.outputs[0], IGNORED)

    def _ignored(self, module: str) -> bool:
        return any(module == name or module.startswith(f"{name}.") for name in self.ignored)

    def _pass_on(self, run: Blocks) -> None:
        """After the last block of a run: what comes out has the width of the last block that is kept."""
        ends = [visit.outputs[0] for visit in run.visits]
        dims = [self.labels.of(end) for end in ends]
        if len({tuple((dim, len(ids)) for dim, ids in each.items()) for each in dims}) > 1 or set(dims[0]) - {1}:
            self.runs.remove(run)
            return
        if 1 not in dims[0]:
            return
        lines = [each[1] for each in dims]
        if self.adds == "join":
            for line in lines[1:]:
                self.labels.channels.tie(lines[0], line)
            return
        fresh = self.labels.channels.new(len(lines[0]))
        self.passed[run.site] = fresh, lines
        self.before.setdefault(ends[-1], dims[-1])
        self.labels.set(ends[-1], {1: fresh})

    def _settle(self) -> None:
        """Give the ends of a depth site the width of whatever else binds what it passes on."""
        waiting = dict(self.passed)
        while True:
            _, reasons = self.labels.channels.classes()
            bound = [site for site, (fresh, ends) in waiting.items() if self._bound(fresh, ends, reasons)]
            if not bound:
                return
            for site in bound:
                fresh, ends = waiting.pop(site)
                del self.passed[site]
                for end in ends:
                    self.labels.channels.tie(fresh, end)

    def _bound(self, fresh: Ids, ends: Sequence[Ids], reasons: Mapping[int, str]) -> bool:
        """Whether elements are frozen, or those that a layer makes or another run passes on; or whether the ends are
        not each one layer's outputs."""
        channels = self.labels.channels
        roots = channels.roots(fresh)
        if any(int(root) in reasons for root in roots):
            return True
        others = [channels.roots(ids) for ids in self.made]
        others += [channels.roots(ids) for ids, _ in self.passed.values() if ids is not fresh]
        made = {channels.roots(ids).tobytes() for ids in self.made}
        made |= {channels.roots(ids).tobytes() for ids, _ in self.passed.values()}
        return any(np.isin(roots, other).any() for other in others) or any(
            channels.roots(end).tobytes() not in made for end in ends
        )

    # -- shortcuts -----------------------------------------------------------------------------------------------------

    def _skip(self, call: Call) -> tuple[int, int] | None:
        """The places of an identity shortcut and of the branch it is added to: one of them goes elsewhere, too."""
        if call.name not in ADDS or len(call.values) != 2 or call.outputs[0].tensor.dim() not in (3, 4, 5):
            return None
        one, two = call.values
        if one.shape != two.shape or any(set(self.labels.of(value)) != {1} for value in (one, two)):
            return None
        private = self._private(one), self._private(two)
        if private[0] == private[1]:
            return None
        return (0, 1) if private[1] else (1, 0)

    def _private(self, value: Value) -> bool:
        """Whether this value comes from a convolution, by norms and activations, and goes nowhere else on the way."""
        while len(self.reads.users.get(value, ())) == 1 and value.call is not None and value.call.values:
            kind = kind_of(value.call, self.labels)
            if isinstance(kind, Convolution):
                return True
            if not value.call.module or not isinstance(kind, Norm | Pointwise | Spatial):
                return False
            value = value.call.values[0]
        return False

    def _label_skip(self, call: Call) -> None:
        places = self._skip(call)
        assert places is not None
        self.skips[call] = places
        branch = call.values[places[1]]
        self.labels.set(call.outputs[0], self.labels.of(branch))

    # -- lines ---------------------------------------------------------------------------------------------------------

    def lines(self) -> Iterator[Ids]:
        """The elements along every labelled dimension: of weights first, then of everything else."""
        for call in self.record.calls:
            if isinstance(kind_of(call, self.labels), Convolution):
                weight = conv.parts(call, self.labels)[1]
                yield from self.labels.of(weight).values()
        for dims in self.labels.params.values():
            yield from dims.values()
        for dims in self.labels.all_dims():
            yield from dims.values()
        yield from self.labels.counted.values()
        for fresh, ends in self.passed.values():
            yield fresh
            yield from ends
