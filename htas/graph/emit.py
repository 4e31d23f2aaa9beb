"""The nodes of a network, made of labelled steps."""

import inspect
from collections.abc import Collection, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from torch import nn

from htas.graph.blocks import Blocks
from htas.graph.channels import Ids
from htas.graph.follow import Follower, Mode
from htas.graph.kinds import Convolution, conv, kind_of
from htas.graph.kinds.product import Product
from htas.graph.labels import Dims, title
from htas.graph.layer import ACTIVATIONS
from htas.graph.layout import Layout, Run
from htas.graph.network import Kind as NodeKind
from htas.graph.network import Node, Segment, Site
from htas.graph.record import Call, Value
from htas.graph.sites import Atoms, atoms_of
from htas.graph.steps import Step, first_value, last_value, order_of, parameter


class Emitter:
    """Makes the nodes of a Network from the labelled steps of a mode; `atoms` are those of a mode before."""

    def __init__(self, follower: Follower, mode: Mode, atoms: Atoms | None = None) -> None:
        self.follower, self.labels, self.mode, self.record = follower, follower.labels, mode, mode.record
        self.labels.enter(mode.record, mode.images)
        self.nodes: dict[str, Node] = {}
        self.place: dict[Value, str] = {}
        """The node of each value."""
        self.counts: dict[str, int] = {}
        self.first: dict[str, str] = {}
        self.producers: dict[int, list[str]] = {}
        self.atoms: Atoms
        if atoms is None:
            for ids in follower.labels.single():
                self.labels.channels.freeze(ids, "its tensor has channels along two dimensions")
            self._freeze_parentless()
            self._name_sites()
            while follower.bind_mixed(self._is_mixed):  # what is bound has other sites
                self._name_sites()
            names = self.atoms.names.items()
            follower.elements = {name: np.flatnonzero(self.atoms.group == site) for site, name in names}
        else:
            self.atoms = atoms
        self.counted = {leaf: self.atoms.layout(ids) for leaf, ids in self.labels.counted.items()}
        self.counted = {leaf: layout for leaf, layout in self.counted.items() if layout.free}
        self.again = atoms is not None
        """Whether another mode has its nodes already."""

    def _freeze_parentless(self) -> None:
        """Freeze channels that no layer makes, and no depth site passes on."""
        channels = self.labels.channels
        made = [channels.roots(ids) for ids in self.follower.made]
        made += [channels.roots(fresh) for fresh, _ in self.follower.passed.values()]
        known = np.zeros(channels.count, bool)
        for roots in (*made, np.zeros(1, np.int64)):
            known[roots] = True
        for ids in list(self.follower.lines()):
            lost = ids[~known[channels.roots(ids)]]
            if len(lost):
                channels.freeze(lost, "no layer makes it")

    def _is_mixed(self, ids: Ids) -> bool:
        """Whether channels are not those of one site, each once."""
        return [segment.repeat for segment in self.segments(self.atoms.layout(ids))] != [1]

    def _name_sites(self) -> None:
        self.atoms, self.producers = atoms_of(self.labels.channels, list(self.follower.lines())), {}
        atoms = self.atoms
        layers = [call for call in self.record.calls if isinstance(kind_of(call, self.labels), Convolution)]
        for call, name in conv.layer_names(layers, self.labels).items():
            made = conv.made_by(call, self)
            if made is None:
                continue
            totals: dict[int, int] = {}
            for site, _, repeat in atoms.pieces(made):
                totals[site] = totals.get(site, 0) + repeat
            totals.pop(-1, None)
            for number, (site, repeat) in enumerate(totals.items()):
                if site not in atoms.names:
                    atoms.names[site] = _unlike(name if number == 0 else f"{name}[{number}]", atoms.names.values())
                    atoms.multiples[site] = repeat
                self.producers.setdefault(site, []).append(name)
        for depth, (fresh, _) in self.follower.passed.items():
            for site, _, repeat in atoms.pieces(fresh):
                atoms.names[site], atoms.multiples[site] = f"{depth}:depth", repeat

    # -- segments ------------------------------------------------------------------------------------------------------

    def axis(self, value: Value) -> int:
        """The dimension of a value's channels."""
        dims = self.labels.of(value)
        if dims:
            return next((dim for dim, ids in dims.items() if not self.is_frozen(ids)), next(iter(dims)))
        return 1 if len(value.shape) > 1 else 0

    def is_frozen(self, ids: Ids) -> bool:
        return bool((self.atoms.group[self.atoms.roots[ids]] < 0).all())

    def inside(self, value: Value) -> Dims:
        """The labels of the output of a step, before a depth site passes it on."""
        return self.mode.before.get(value) or self.labels.of(value)

    def layout(self, value: Value, *, inside: bool = False) -> Layout:
        """What stands along a value's channels; for the last block's output `inside` it, not after the depth site."""
        axis = self.axis(value)
        if axis == 0 and value.derived and 0 in self.labels.of(value):
            return Layout(())  # as many images as the batch has, too
        ids = (self.inside(value) if inside else self.labels.of(value)).get(axis)
        if ids is not None:
            return self.atoms.layout(ids)
        return Layout((Run("", value.shape[axis] if axis < len(value.shape) else 1),))

    def segments(self, layout: Layout) -> tuple[Segment, ...]:
        """How many channels of each site stand in a layout."""
        found: dict[str, tuple[int, Fraction]] = {}
        rest: list[Segment] = []
        order: list[str | int] = []
        for run in layout.runs:
            if not run.site:
                order.append(len(rest))
                rest.append(Segment(run.atoms * run.repeat))
                continue
            if run.site not in found:
                order.append(run.site)
            base, repeat = found.get(run.site, (run.atoms * run.multiple, Fraction(0)))
            found[run.site] = base, repeat + Fraction(run.repeat, run.multiple)
        return tuple(
            rest[key] if isinstance(key, int) else Segment(found[key][0], _whole(found[key][1]), key) for key in order
        )

    # -- nodes ---------------------------------------------------------------------------------------------------------

    def emit(self) -> None:
        """Make the nodes, in the order they run."""
        for number, value in enumerate(self.record.inputs):
            name = self._fresh_name_of(_input_names(self.follower.module)[number : number + 1], number)
            self._add(Node(name, "input", (), first_value, **self._sides(value, None)), value)
        ends = {run.site: self.mode.ends(run) or run.visits for run in self.follower.runs}
        for place, call in enumerate(self.record.calls):
            used = [value for value in call.outputs if value in self.mode.reads.users] or call.outputs[:1]
            for value in used:
                self._node(call, value)
            for run in reversed([each for each in self.follower.runs if ends[each.site][-1].end == place + 1]):
                self._depth(run, [visit.outputs[0] for visit in ends[run.site]])

    def _add(self, node: Node, value: Value) -> None:
        self.nodes[node.name] = node
        self.place[value] = node.name

    def _sides(self, value: Value, source: Value | None) -> dict[str, Any]:
        layout = self.layout(value, inside=True)
        consumed = self.nodes[self.input(source)].segments if source is not None else ()
        return {"segments": self.segments(layout), "layout": layout, "axis": self.axis(value), "consumed": consumed}

    def input(self, value: Value) -> str:
        """The node of an input; that of a parameter is made when it is first read."""
        if value not in self.place:
            assert value.param, "a value that no step made"
            name = self._unique(value.param)
            layout = self.layout(value)
            node = Node(
                name, "value", (), parameter(value.param), param=value.param, layout=layout,
                segments=self.segments(layout), axis=self.axis(value),
                blocks=self._blocks_at(value.param.rpartition(".")[0]),
            )  # fmt: skip
            self._add(node, value)
        return self.place[value]

    def _unique(self, name: str) -> str:
        self.counts[name] = self.counts.get(name, 0) + 1
        return name if self.counts[name] == 1 else f"{name}#{self.counts[name]}"

    def _fresh_name_of(self, names: Sequence[str], number: int) -> str:
        return self._unique(f":{names[0]}" if names else f":input{number}")

    def _node(self, call: Call, value: Value) -> None:
        what = call.name.strip("_") if not call.module else ""
        name = self._unique(call.module or f"{call.owner}:{what}")
        reads = order_of(call)
        derived = sorted(reads, key=lambda each: not each.derived)  # stable: activations before parameters
        blocks = self._blocks(call)
        step = Step(call, value.number, tuple(derived), self.counted)
        module, step_kind = call.module, kind_of(call, self.labels)
        if not value.derived:
            inputs = tuple(self.input(each) for each in derived)
            layout = self.layout(value)
            node = Node(
                name, "value", inputs, step, module=module, segments=self.segments(layout), layout=layout,
                axis=self.axis(value), blocks=blocks,
            )  # fmt: skip
            if isinstance(step_kind, Convolution):
                node = conv.counted_in(node, call, self)
            self._add(step_kind.complete(node, call, value, self) if isinstance(step_kind, Product) else node, value)
            return
        order = step_kind.order(call, derived, self)
        kind = step_kind.node_kind(call, value, order, self)
        step = Step(call, value.number, tuple(order), self.counted)
        inputs = tuple(self.input(each) for each in (order[:1] if kind == "norm" else order))
        first = next((each for each in order if each.derived), None)
        node = Node(name, kind, inputs, step, module=module, blocks=blocks, **self._sides(value, first))
        self._add(step_kind.complete(node, call, value, self), value)

    # -- what the kinds ask --------------------------------------------------------------------------------------------

    def is_plain(self, value: Value, order: Sequence[Value]) -> bool:
        """Whether neither a value nor what it is made of has free channels."""
        dims = [self.inside(value), *(self.labels.of(each) for each in order)]
        return all(self.is_frozen(ids) for each in dims for ids in each.values())

    def is_bare(self, value: Value, order: Sequence[Value]) -> bool:
        """Whether a value, or an activation that it is made of, has as many images as the batch along its channels."""
        return not all(self.layout(each).runs for each in (value, *order) if each is value or each.derived)

    def kind_by_layout(self, value: Value, order: Sequence[Value]) -> NodeKind:
        """`map` where one input has the channels of the value in the same place, else `move`."""
        if len(order) != 1 or not self.alike(order[0], value):
            return "move"
        same = len(order[0].shape) == len(value.shape) or self.axis(order[0]) == self.axis(value) == 1
        return "map" if same else "move"

    def read_layouts(self, call: Call) -> tuple[Layout, ...]:
        """The free dimensions of what a step reads, each once."""
        roots, of = self.labels.channels.roots, self.labels.of
        lines = {roots(ids).tobytes(): ids for each in call.values for ids in of(each).values()}
        return tuple(layout for ids in lines.values() if (layout := self.atoms.layout(ids)).free)

    def unit(self, call: Call, value: Value) -> tuple[int, ...]:
        """Height and width, or as many sizes as there are, of what a step reads first."""
        return size_of(call.values[0], self.axis(value), self.labels.images)

    def same(self, source: Value, value: Value) -> bool:
        """Whether a value has the same channels, along the same dimension of as many."""
        return (
            len(source.shape) == len(value.shape)
            and self.alike(source, value)
            and self.axis(source) == self.axis(value)
        )

    def alike(self, source: Value, value: Value) -> bool:
        return self.layout(source) == self.layout(value, inside=True)

    def _depth(self, run: Blocks, ends: Sequence[Value]) -> None:
        """After the last block of a run, whose blocks have these outputs, a node that takes that of the last kept."""
        inputs = tuple(self.place[end] for end in ends)
        name = f"{run.site}:depth"
        around = self._blocks_at(run.names[-1])
        outer = around[: [site for site, _ in around].index(run.site)]
        last = self.nodes[inputs[-1]]
        if run.site in self.follower.passed:
            layout = self.atoms.layout(self.follower.passed[run.site][0])
        else:
            layout = last.layout
        segments = self.segments(layout)
        self.nodes[name] = Node(
            name, "depth", inputs, last_value, site=run.site, segments=segments, layout=layout,
            consumed=self.nodes[inputs[0]].segments, blocks=outer, axis=last.axis,
        )  # fmt: skip
        self.place[ends[-1]] = name

    def _blocks(self, call: Call) -> tuple[tuple[str, int], ...]:
        inside = call.module and (not call.owner or call.module.startswith(f"{call.owner}."))
        return self._blocks_at(call.module if inside else call.owner)  # a module may be shared, under its first name

    def _blocks_at(self, owner: str) -> tuple[tuple[str, int], ...]:
        return tuple(
            (run.site, index)
            for run in self.follower.runs
            for index, block in enumerate(run.names)
            if owner == block or owner.startswith(f"{block}.")
        )

    # -- layers --------------------------------------------------------------------------------------------------------

    def activation(self, node: Node) -> str:
        """The key in ACTIVATIONS of a map; empty for any other."""
        call = getattr(node.run, "call", None)
        if call is None:
            return ""
        module = self.labels.module(call)
        if module is not None:
            return next((name for name, kind in ACTIVATIONS.items() if kind is type(module)), "")
        name = str(call.name).strip("_")
        return name if name in ("relu", "relu6", "silu", "hardswish", "gelu") else ""

    # -- the network ---------------------------------------------------------------------------------------------------

    def layouts(self) -> dict[str, tuple[Layout | None, ...]]:
        """By parameter or buffer that changes, what stands along each dimension."""
        found = {}
        for path, value in self.record.params.items():  # several of one value where modules share it
            dims, sizes = self.labels.params.get(value.param, {}), value.shape
            layouts = tuple(self.atoms.layout(dims[dim]) if dim in dims else None for dim in range(len(sizes)))
            layouts = tuple(layout if layout is not None and layout.free else None for layout in layouts)
            if any(layouts):
                found[path] = layouts
        return found

    def unordered(self) -> frozenset[str]:
        """Width sites whose channels may not change places."""
        groups = {
            int(site) for ids in self.labels.unordered for site in np.unique(self.atoms.group[self.atoms.roots[ids]])
        }
        return frozenset(self.atoms.names[site] for site in groups if site in self.atoms.names)

    def sites(self) -> dict[str, Site]:
        """The width sites."""
        readers: dict[str, list[tuple[str, int, int]]] = {}
        for node in self.nodes.values():
            if node.kind in ("conv", "grouped", "norm", "layer_norm") and node.module and node.inputs:
                offset = 0
                for run in self.nodes[node.inputs[0]].layout.runs:
                    if run.site:
                        repeat = run.repeat // run.multiple or 1
                        readers.setdefault(run.site, []).append((node.module, offset, repeat))
                    offset += run.atoms * run.repeat
        found = {}
        for site, names in self.producers.items():
            name = self.atoms.names[site]
            multiple = self.atoms.multiples[site]
            found[name] = Site(
                name, "width", self.atoms.counts[site] * multiple, tuple(dict.fromkeys(names)),
                tuple(dict.fromkeys(readers.get(name, ()))), multiple, multiple,
            )  # fmt: skip
        return found

    def frozen(self) -> dict[str, str]:
        """The reason of every layer whose width cannot change, by module, and of every step that stops channels."""
        reasons: dict[str, str] = {}
        for node in self.nodes.values():
            call = getattr(node.run, "call", None)
            if call is None or any(segment.site for segment in node.segments):
                continue
            value = call.outputs[getattr(node.run, "output", 0)]
            if isinstance(kind_of(call, self.labels), Convolution):
                ids = self.inside(value).get(self.axis(value))
                why = self.atoms.why(ids) if ids is not None else self.labels.why(value)
                reasons.setdefault(node.module or node.name, why)
            elif node.kind == "fixed" and value.derived:
                why = self.labels.reasons.get(value, "")
                if why.startswith(title(call, self.labels.modules)):  # not one that it has from a step before
                    reasons.setdefault(node.module or node.name, why)
        return reasons


def _unlike(name: str, others: Collection[str]) -> str:
    """A name that none of the others is: with a number behind it, where it is one."""
    fresh = (name, *(f"{name}#{number}" for number in range(2, len(others) + 2)))
    return next(each for each in fresh if each not in others)


def _whole(repeat: Fraction) -> int | Fraction:
    return int(repeat) if repeat.denominator == 1 else repeat


def size_of(value: Value, axis: int, images: int) -> tuple[int, ...]:
    """Height and width, or as many sizes as there are, of a tensor whose channels are along `axis`; windows that count
    as images stand one below the other."""
    first, *rest = tuple(size for dim, size in enumerate(value.shape) if dim not in (0, axis)) or (1, 1)
    return (max(1, max(value.shape[:1], default=1) // images) * first, *rest)


def _input_names(module: nn.Module) -> list[str]:
    return list(inspect.signature(module.forward).parameters)
