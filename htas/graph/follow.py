"""Follow channels through the recorded steps of a network, and what each step binds."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
from torch import Tensor, nn

from htas.graph.blocks import ADDS, Blocks, Reads, droppable, runs_of
from htas.graph.channels import Ids
from htas.graph.compared import keep_equal
from htas.graph.kinds import Convolution, Norm, Pointwise, Spatial, conv, kind_of
from htas.graph.labels import Dims, Labels, title
from htas.graph.length import Comparison
from htas.graph.network import OUTPUT
from htas.graph.record import Call, Record, Value, Visit, values_in
from htas.graph.runs import same_steps

IGNORED = "design.ignored names it"
"""Why a width is frozen that the user wants as it is."""
SIGNALS = (3, 4, 5)
"""Dimensions of tensors whose shortcuts may be projected."""


@dataclass(eq=False)
class Mode:
    """A recorded run of the network, in eval mode or in training."""

    record: Record
    images: int
    """Number of images in the run."""
    skips: dict[Call, tuple[int, int]] = field(default_factory=dict)
    """Additions with a shortcut to project: the places of the shortcut and of the branch."""
    before: dict[Value, Dims] = field(default_factory=dict)
    """Labels of the last block's output before a depth site."""

    @cached_property
    def reads(self) -> Reads:
        """Which steps read each value."""
        return Reads(self.record)

    @cached_property
    def additions(self) -> dict[Call, tuple[str, int]]:
        """Additions of two tensors of one shape: the module that makes each, and its number there."""
        places: dict[Call, tuple[str, int]] = {}
        counts: dict[str, int] = {}
        for call in self.record.calls:
            pair = call.values
            if (
                call.name in ADDS
                and len(pair) == 2
                and pair[0].shape == pair[1].shape
                and len(pair[0].shape) in SIGNALS
            ):
                places[call] = call.owner, counts.get(call.owner, 0)
                counts[call.owner] = counts.get(call.owner, 0) + 1
        return places

    def ends(self, run: Blocks) -> list[Visit] | None:
        """The one call of each block of a run; None where a block is called otherwise."""
        paths = [visit.path for visit in self.record.visits]
        visits = {visit.path: visit for visit in self.record.visits}
        once = all(paths.count(name) == 1 and len(visits[name].outputs) == 1 for name in run.names)
        return [visits[name] for name in run.names] if once else None

    def calls_blocks(self, runs: Sequence[Blocks]) -> bool:
        """Whether every block of these runs is called once."""
        return all(self.ends(run) is not None for run in runs)


class Follower:
    """Labels the values of a record in eval mode, and of one in training, whose parameters are the same."""

    def __init__(
        self,
        module: nn.Module,
        record: Record,
        training: Record | None,
        examples: tuple[Tensor, ...],
        adds: Literal["join", "project"],
        normed: bool,
        ignored: Collection[str],
    ) -> None:
        self.module, self.examples, self.adds, self.normed = module, examples, adds, normed
        self.ignored = ignored
        self.labels = Labels(module)
        self.eval = Mode(record, len(examples[0]))
        self.training = None if training is None else Mode(training, len(training.inputs[0].tensor))
        self.repeats = training is not None and (bool(training.chance) or not same_steps(record, training))
        """Whether the steps of training are others, or may be, and are made nodes of, too."""
        runs = [
            run
            for run in runs_of(record, self.labels.modules, self.eval.reads)
            if not any(self._ignored(block) for block in run.names)
        ]
        self.runs = [run for run in runs if run.listed or droppable(module, run.names, examples)]
        self.passed: dict[str, tuple[Ids, list[Ids]]] = {}
        """By depth site the elements of what it passes on, and those of the ends of its blocks."""
        self.elements: dict[str, Ids] = {}
        """By width site its elements, in the nodes made last."""
        self.made: list[Ids] = []
        """Elements that a layer makes."""

    # -- labels --------------------------------------------------------------------------------------------------------

    def label(self) -> None:
        """Label all values of the records, and freeze what leaves the network."""
        for mode in (self.eval, self.training):
            if mode is not None:
                self.labels.enter(mode.record, mode.images)
                self._label(mode)
        keep_equal(self.compared, self.labels)
        self._settle()
        self.labels.enter(self.eval.record, self.eval.images)

    def _label(self, mode: Mode) -> None:
        last = {run.site: visits[-1].end for run in self.runs if (visits := mode.ends(run))}
        for place, call in enumerate(mode.record.calls):
            places = self._skip(call, mode) if self.adds == "project" else None
            if places is not None:
                mode.skips[call] = places
                self.labels.set(call.outputs[0], self.labels.of(call.values[places[1]]))
            else:
                kind_of(call, self.labels).label(call, self.labels)
                self._freeze_untrained(call, mode)
                if mode is self.eval:
                    self._note_made(call)
            for run in reversed([each for each in self.runs if last.get(each.site) == place + 1]):  # the inner first
                self._pass_on(run, mode)
        for value in values_in(mode.record.outputs):
            self.labels.freeze(value, OUTPUT)

    @property
    def compared(self) -> list[Comparison]:
        """What Python has asked about sizes in the records."""
        return [each for mode in (self.eval, self.training) if mode is not None for each in mode.record.compared]

    def freeze_undecided(self, reasons: Mapping[str, str]) -> None:
        """Freeze width sites of the nodes made last, each for its reason, and bind what depends on them."""
        for name, reason in reasons.items():
            self.freeze_site(name, reason)
        self._settle()

    def freeze_site(self, name: str, reason: str) -> None:
        """Freeze a site of the nodes made last: a width, or a site of depth."""
        self.runs = [run for run in self.runs if run.site != name]
        if name in self.passed:  # the last block is always there
            fresh, ends = self.passed.pop(name)
            self.labels.channels.tie(fresh, ends[-1])
        for site, ids in self.elements.items():
            if site == name:
                self.labels.channels.freeze(ids, reason)

    def _note_made(self, call: Call) -> None:
        if not isinstance(kind_of(call, self.labels), Convolution):
            return
        outputs = self.labels.of(call.outputs[0]).get(conv.axis_of(call, self.labels))
        self.made += [outputs] if outputs is not None else []
        if self._ignored(conv.owner_of(call, self.labels)):
            self.labels.freeze(call.outputs[0], IGNORED)

    def _freeze_untrained(self, call: Call, mode: Mode) -> None:
        """A layer that the network's forward keeps gradients out of never learns: it keeps its inputs and outputs."""
        if call.quiet and mode is (self.training or self.eval) and isinstance(kind_of(call, self.labels), Convolution):
            why = f"{title(call, self.labels.modules)} runs without gradients (torch.no_grad)"
            self.labels.freeze(conv.parts(call, self.labels)[1], why)

    def _ignored(self, module: str) -> bool:
        return any(module == name or module.startswith(f"{name}.") for name in self.ignored)

    def _pass_on(self, run: Blocks, mode: Mode) -> None:
        """After the last block of a run: what comes out has the width of the last block that is kept."""
        ends = [visit.outputs[0] for visit in mode.ends(run) or ()]
        dims = [self.labels.of(end) for end in ends]
        if len({tuple((dim, len(ids)) for dim, ids in each.items()) for each in dims}) > 1 or len(dims[0]) > 1:
            if mode is self.eval:
                self.runs.remove(run)
            return
        if not dims[0]:
            return
        (axis,) = dims[0]
        lines = [each[axis] for each in dims]
        if self.adds == "join":
            for line in lines[1:]:
                self.labels.channels.tie(lines[0], line)
            return
        fresh, others = self.passed.setdefault(run.site, (self.labels.channels.new(len(lines[0])), lines))
        for line, other in zip(lines, others, strict=True):
            self.labels.channels.tie(line, other)
        mode.before.setdefault(ends[-1], dims[-1])
        self.labels.set(ends[-1], {axis: fresh})

    def bind_mixed(self, mixed: Callable[[Ids], bool]) -> bool:
        """Give both sides of a shortcut, and the ends of a depth site, one width where any is `mixed`: a projection
        cannot tell its parts; whether there are any."""
        bound = self._bind([site for site, (_, ends) in self.passed.items() if any(map(mixed, ends))])
        for mode in [self.eval] + ([self.training] if self.training is not None else []):
            for call in list(mode.skips):
                sides = [self.labels.of(value)[1] for value in call.values]
                if any(map(mixed, sides)):
                    self.labels.channels.tie(*sides)
                    del mode.skips[call]
                    bound = True
        return bound

    def _bind(self, sites: Sequence[str]) -> bool:
        for fresh, ends in [self.passed.pop(site) for site in sites]:
            for end in ends:
                self.labels.channels.tie(fresh, end)
        return bool(sites)

    def _settle(self) -> None:
        """Bind the depth sites where anything else binds what they pass on."""
        while True:
            _, reasons = self.labels.channels.classes()
            if not self._bind([site for site, each in self.passed.items() if self._bound(*each, reasons)]):
                return

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
        lines = [channels.roots(end) for end in ends]
        whole = all(line.tobytes() in made and len(np.unique(line)) == len(line) for line in lines)
        return not whole or any(np.isin(roots, other).any() for other in others)

    # -- shortcuts -----------------------------------------------------------------------------------------------------

    def _skip(self, call: Call, mode: Mode) -> tuple[int, int] | None:
        """The places of an identity shortcut and of the branch it is added to: one of them goes elsewhere, too. Where
        training adds elsewhere, it is none."""
        place = mode.additions.get(call)
        if place is None or (self.training is not None and not self._in_both(place[0])):
            return None
        if mode is self.training:
            return next(
                (places for twin, places in self.eval.skips.items() if self.eval.additions[twin] == place), None
            )
        if any(set(self.labels.of(value)) != {1} for value in call.values):
            return None
        private = [self._private(value) for value in call.values]
        if private[0] == private[1]:
            return None
        return (0, 1) if private[1] else (1, 0)

    def _in_both(self, owner: str) -> bool:
        """Whether a module adds as often in training as in eval mode."""
        modes = (self.eval.additions, self.training.additions) if self.training is not None else ()
        return len({tuple(place for place in each.values() if place[0] == owner) for each in modes}) == 1

    def _private(self, value: Value) -> bool:
        """Whether this value comes from a convolution, by norms and activations, and goes nowhere else on the way."""
        while len(self.eval.reads.users.get(value, ())) == 1 and value.call is not None and value.call.values:
            kind = kind_of(value.call, self.labels)
            if isinstance(kind, Convolution):
                return True
            if not value.call.module or not isinstance(kind, Norm | Pointwise | Spatial):
                return False
            value = value.call.values[0]
        return False

    # -- lines ---------------------------------------------------------------------------------------------------------

    def lines(self) -> Iterator[Ids]:
        """The elements along every labelled dimension: of weights first, then of everything else."""
        for call in self.eval.record.calls:
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
