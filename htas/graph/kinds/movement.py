"""Steps that only move numbers: reshapes, transpositions, slices, concatenations, shuffles, flips.

No list says what each of them does: it is run on labels in place of numbers, once at the base widths and once with some
channels left out, and what comes out says where every channel went, and which others must go with it.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from htas.data.nests import leaves_in, replaced, tensors_in
from htas.graph.channels import Ids
from htas.graph.kinds._kind import Kind
from htas.graph.labels import Dims, Labels, bound, title
from htas.graph.length import Leaf, Length, leaves_of, length_at
from htas.graph.record import Call, Value
from htas.text import listing

if TYPE_CHECKING:
    from htas.graph.emit import Emitter
    from htas.graph.network import Kind as NodeKind


FUNCTIONS = {
    "H", "T", "__getitem__", "adjoint", "atleast_3d", "block_diag", "broadcast_to", "cat", "channel_shuffle", "chunk",
    "column_stack", "concat", "concatenate", "dstack", "expand", "flatten", "flip", "fliplr", "flipud", "hsplit",
    "hstack", "index_select", "mT", "moveaxis", "movedim", "narrow", "native_channel_shuffle", "permute",
    "pixel_shuffle", "pixel_unshuffle", "ravel", "repeat", "repeat_interleave", "reshape", "roll", "rot90",
    "select", "split", "split_with_sizes", "squeeze", "squeeze_", "stack", "swapaxes", "swapdims", "t",
    "take_along_dim", "tensor_split", "tile", "transpose", "transpose_", "unbind", "unflatten", "unfold",
    "unsqueeze", "unsqueeze_", "view", "vsplit", "vstack",
}  # fmt: skip
ALONG_ONE = {"cat", "concat", "concatenate", "chunk", "split", "split_with_sizes", "tensor_split"}
"""Those that treat all other dimensions alike, of which one index is enough to see what they do."""
PARTS = {"chunk", "split", "split_with_sizes", "tensor_split"}
CONCATENATIONS = {"cat", "concat", "concatenate"}
STACKS = {"stack", "hstack", "vstack", "dstack", "column_stack"}
MODULES = (nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle)


class Movement(Kind):
    """Steps that only move numbers: reshapes, transpositions, slices, concatenations, shuffles, flips."""

    functions = frozenset(FUNCTIONS)
    modules = MODULES

    def label(self, call: Call, labels: Labels) -> None:
        """Find where each channel goes; what goes several ways at once is tied, what cannot be followed is frozen."""
        labelled = [value for value in dict.fromkeys(call.values) if labels.of(value)]
        leaves = [leaf for length in call.lengths for leaf, _ in leaves_of(length)]
        if not labelled:
            if any(leaf[0] == "size" and leaf[2] in labels.of(leaf[1]) for leaf in leaves):
                labels.stop(call, "makes a tensor of its size")
                return
            for out in call.outputs:
                labels.set(out, {}, next((labels.why(value) for value in call.values), ""))
            return
        if call.name in ALONG_ONE and _aside(call, labels):
            return
        if call.name in CONCATENATIONS and len(call.values) > 1:
            _named_all(call, labels, labelled)
            labelled = [value for value in dict.fromkeys(call.values) if labels.of(value)]
        results: list[Dims] = [{} for _ in call.outputs]
        several = len(labelled) > 1
        passes: list[dict[Value, int]]
        if several:
            if any(len(labels.of(value)) > 1 for value in labelled):
                labels.stop(call, "moves more than one dimension of channels")
                return
            passes = [{value: next(iter(labels.of(value))) for value in labelled}]
        else:
            passes = [{labelled[0]: dim} for dim in labels.of(labelled[0])]
        why = ""
        for chosen in passes:
            moved = _followed(call, labels, chosen)
            if moved is None or any(set(one) & set(other) for one, other in zip(results, moved, strict=True)):
                why = why or _why_not(call, chosen)
                if len(passes) == 1 or call.lengths:
                    labels.stop(call, why)
                    return
                for value, dim in chosen.items():  # it alone stays
                    labels.channels.freeze(
                        labels.of(value)[dim], f"{title(call, labels.modules)}, which reads it, {why}"
                    )
                continue
            for one, other in zip(results, moved, strict=True):
                one.update(other)
        for out, dims in zip(call.outputs, results, strict=True):
            reason = "" if dims else f"{title(call, labels.modules)} {why or 'leaves no channels in it'}"
            labels.set(out, dims, reason)

    def free_kind(self, call: Call, value: Value, order: list[Value], emitter: "Emitter") -> "NodeKind":
        """A map, a `concat`, a `flatten` of pixels into channels, or any other move."""
        kind = super().free_kind(call, value, order, emitter)
        if kind == "map" or (len(order) == 1 and emitter.alike(order[0], value)):
            return kind
        runs = emitter.layout(value, inside=True).runs
        whole = tuple(run for each in order for run in emitter.layout(each).runs)
        along = all(emitter.axis(each) == emitter.axis(value) for each in order)
        if call.name in CONCATENATIONS and call.values == order and runs == whole and along:
            return "concat"
        area = prod(order[0].shape[2:])
        flat = tuple(
            replace(run, repeat=run.repeat * area) if run.site else replace(run, atoms=run.atoms * area)
            for run in whole
        )
        images = len(order) == 1 and len(value.shape) == 2 and len(order[0].shape) > 2 and emitter.axis(order[0]) == 1
        return "flatten" if images and runs == flat else "move"


def _aside(call: Call, labels: Labels) -> bool:
    """Label what is split or concatenated along pixels: every other dimension stays."""
    first = call.values[0]
    names = ("tensors", "dim") if "cat" in call.name else ("input", "parts", "dim")
    options = bound(call, *names)
    along = options.get("dim", options.get("axis", 0))
    if not isinstance(along, int) or any(along % len(first.shape) in labels.of(value) for value in call.values):
        return False
    kept: Dims = {}
    for dim in {dim for value in call.values for dim in labels.of(value)}:
        met = [labels.of(value).get(dim) for value in call.values]
        fixed = next((value for value, ids in zip(call.values, met, strict=True) if ids is None), None)
        lines = [ids for ids in met if ids is not None]
        for ids in lines[1:]:
            labels.channels.tie(lines[0], ids)
        if fixed is None:
            kept[dim] = lines[0]
        else:
            labels.channels.freeze(lines[0], f"{title(call, labels.modules)} joins it: {labels.why(fixed)}")
    for out in call.outputs:
        labels.set(out, kept)
    return True


def _why_not(call: Call, chosen: dict[Value, int]) -> str:
    """Why channels cannot be followed through a step, in words."""
    ((_, dim), *_) = chosen.items()
    sizes = [out.shape[dim] for out in call.outputs if dim < len(out.shape)]
    if call.name in PARTS and len(set(sizes)) > 1:
        return f"makes unequal parts of them, of {listing(list(map(str, sizes)))} channels"
    return "is given the number of channels, or mixes them with other dimensions"


def _named_all(call: Call, labels: Labels, labelled: list[Value]) -> None:
    """Give what is concatenated with channels, and never changes, elements that are frozen for its own reason."""
    (axis, *more) = {dim for value in labelled for dim in labels.of(value)}
    for value in dict.fromkeys(call.values):
        if not more and value.derived and not labels.of(value) and value.shape[axis : axis + 1] not in ((), (1,)):
            fresh = labels.channels.new(value.shape[axis])
            labels.channels.freeze(fresh, labels.why(value))
            labels.set(value, {axis: fresh}, labels.why(value))


def _followed(call: Call, labels: Labels, chosen: dict[Value, int]) -> list[Dims] | None:
    """Labels of the outputs for one dimension of each labelled input."""
    sizes = {len(labels.of(value)[dim]) for value, dim in chosen.items()}
    if len(chosen) > 1 and len(sizes) == 1 and call.name in STACKS:
        first, *others = (labels.of(value)[dim] for value, dim in chosen.items())
        for other in others:
            labels.channels.tie(first, other)
    if call.name in PARTS:
        _tie_parts(call, labels, chosen)
    by_count = _by_count(call, labels, chosen)
    patterns = list(_patterns(call, sizes))
    for strict in (True, False):  # numbers that modules hold change only where nothing else does
        for outer, inner in patterns if by_count is None or not labels.by_count else patterns[:1]:
            moved = _bound(call, labels, chosen, outer, inner, np.zeros(0, np.int64), strict)
            if moved is not None:
                labels.recount |= outer * inner > 1 and by_count is not None
                return moved
        if by_count is not None and labels.by_count:
            labels.unordered += [line for dims in by_count[:1] for line in dims.values()]
            return by_count
    if by_count is not None:
        labels.recount = True
    for pins in _pinned(call, labels, chosen) if len(chosen) == 1 else ():
        for outer, inner in _patterns(call, {size - len(pins) for size in sizes}):
            moved = _bound(call, labels, chosen, outer, inner, pins, False)
            if moved is not None:
                ((value, dim),) = chosen.items()
                why = f"{title(call, labels.modules)}, which reads it, is given the number of these channels"
                labels.channels.freeze(labels.of(value)[dim][pins], why)
                return moved
    return None


def _tie_parts(call: Call, labels: Labels, chosen: dict[Value, int]) -> None:
    """Parts whose sizes are one number have as many channels at any width: these are tied."""
    ((value, dim),) = chosen.items()
    sizes = {place: length for length, place in _placed_lengths(call) if place is not None}
    edges = np.cumsum([0, *(out.shape[dim] for out in call.outputs)])
    if len(sizes) == len(call.outputs) and edges[-1] == value.shape[dim]:
        first: dict[Leaf, Ids] = {}
        for place, length in sizes.items():
            part = labels.of(value)[dim][edges[place] : edges[place + 1]]
            if isinstance(length.how[0], str):
                labels.channels.tie(first.setdefault(length.how, part), part)


def _bound(
    call: Call, labels: Labels, chosen: dict[Value, int], outer: int, inner: int, pins: Ids, strict: bool
) -> list[Dims] | None:  # fmt: skip
    """Labels of the outputs where channels are bound in this way, and tie them; None where that is not enough."""
    ids = {value: _tied(labels.roots(value, dim), outer, inner, pins) for value, dim in chosen.items()}
    moved = _placed(call, labels, chosen, ids, pins)
    if moved is None or not _follows(call, labels, chosen, ids, moved, pins, strict):
        return None
    if outer * inner > 1:
        for value, dim in chosen.items():
            labels.channels.tie(labels.of(value)[dim], ids[value])
    return moved


def _pinned(call: Call, labels: Labels, chosen: dict[Value, int]) -> Iterator[Ids]:
    """Positions that may have to stay so that the others can go: the surplus of the longer parts; what goes into
    parts of one size, or into the others; what is taken, or what is not."""
    ((value, dim),) = chosen.items()
    roots = labels.roots(value, dim)
    outputs = _run(call, labels, {value: _spread(_shape(call, value), dim, np.arange(len(roots)))}, {})
    parts = [np.unique(out.numpy()) for out in outputs or ()]
    sizes = sorted({len(part) for part in parts})
    candidates = [[part[sizes[0] :] for part in parts]] if len(sizes) > 1 else []
    for size in sizes:
        alike = [part for part in parts if len(part) == size]
        candidates += [alike[:-1], alike, [np.setdiff1d(np.arange(len(roots)), np.concatenate(alike))]]
    for pins in candidates:
        whole = np.flatnonzero(np.isin(roots, roots[np.concatenate([np.zeros(0, np.int64), *pins])]))
        if 0 < len(whole) < len(roots) - 1:
            yield whole


def _by_count(call: Call, labels: Labels, chosen: dict[Value, int]) -> list[Dims] | None:
    """Labels of equal parts of channels that a shuffle has bound in pairs (or more): each part has one of every pair.

    This holds for the number of channels at any width, not for which of them: they may not change places.
    """
    if call.name not in PARTS or len(chosen) > 1 or len(call.values) > 1:
        return None
    ((value, dim),) = chosen.items()
    roots, parts = labels.roots(value, dim), len(call.outputs)
    atoms, counts = np.unique(roots, return_counts=True)
    repeat = int(counts[0])
    if parts < 2 or repeat % parts or (counts != repeat).any() or int(atoms[0]) == 0:
        return None
    if any(out.shape[dim] * parts != len(roots) for out in call.outputs):
        return None
    line = np.repeat(np.array(list(dict.fromkeys(roots.tolist())), np.int64), repeat // parts)
    fewer = len(atoms) // 2 + 1
    shape = [fewer * repeat if at == dim else 1 for at in range(len(value.shape))]
    outputs = _run(call, labels, {value: torch.zeros(shape, dtype=torch.int64)}, {("size", value, dim): shape[dim]})
    if outputs is None or any(out.shape[dim] != fewer * repeat // parts for out in outputs):
        return None
    return [{dim: line} for _ in outputs]


def _patterns(call: Call, sizes: set[int]) -> Iterator[tuple[int, int]]:
    """Ways in which channels may be bound: `outer` equal parts go alike, `inner` neighbours go together."""
    numbers = {size for out in call.outputs for size in out.shape}
    numbers |= {len(call.outputs), *Counter(out.shape for out in call.outputs).values()}
    numbers |= {leaf for leaf in leaves_in((call.args, call.kwargs)) if type(leaf) is int}
    numbers |= {one * other for one in numbers for other in numbers if one > 1 and 1 < other <= 16}
    fits = sorted(n for n in numbers if n > 1 and all(size % n == 0 and n < size for size in sizes))
    yield 1, 1
    for number in fits:
        yield number, 1
    for number in fits:
        yield 1, number


def _tied(ids: Ids, outer: int, inner: int, pins: Ids) -> Ids:
    """For every position the element that stands for all that are bound to it; `pins` are bound to nothing."""
    if outer * inner == 1:
        return ids
    others = np.setdiff1d(np.arange(len(ids)), pins)
    parts = ids[others].reshape(outer, -1, inner)
    tied = ids.copy()
    tied[others] = np.broadcast_to(parts[:1, :, :1], parts.shape).reshape(-1)
    return tied


def _tied_like(roots: Ids, ids: dict[Value, Ids], chosen: dict[Value, int], labels: Labels) -> Ids:
    """Elements of another value, each as the one that it is bound to here."""
    change: dict[int, int] = {}
    for value, dim in chosen.items():
        change.update(zip(labels.roots(value, dim).tolist(), ids[value].tolist(), strict=True))
    return np.array([change.get(each, each) for each in roots.tolist()], np.int64)


def _placed(
    call: Call, labels: Labels, chosen: dict[Value, int], ids: dict[Value, Ids], pins: Ids
) -> list[Dims] | None:  # fmt: skip
    """Labels of the outputs, found by running the step on labels; None where one varies along two dimensions, or is one
    channel by its number, which may go."""
    outputs = _run(
        call, labels, {value: _spread(_shape(call, value), chosen[value], ids[value]) for value in chosen}, {}
    )
    return (
        None if outputs is None else _read(outputs, {0, *(int(each) for line in ids.values() for each in line[pins])})
    )


def _shape(call: Call, value: Value, axis: int | None = None) -> tuple[int, ...]:
    """The shape to run a step on: that of the value, or with sizes of 1 in all dimensions but its `axis`."""
    if call.name not in ALONG_ONE:
        return value.shape
    shape = value.shape
    along = call.uneven(len(shape))
    return tuple(size if dim == axis or dim in along else 1 for dim, size in enumerate(shape))


def _read(outputs: list[Tensor], staying: set[int]) -> list[Dims] | None:
    found: list[Dims] = []
    for out in outputs:
        varying = [dim for dim in range(out.dim()) if out.shape[dim] > 1 and bool((out != out.narrow(dim, 0, 1)).any())]
        if len(varying) > 1 or not out.numel():
            return None
        if varying:
            line = out.movedim(varying[0], 0).reshape(out.shape[varying[0]], -1)[:, 0]
            found.append({varying[0]: line.numpy()})
        elif int(out.flatten()[0]) not in staying:
            return None
        else:
            found.append({})
    return found


def _spread(shape: Any, dim: int, ids: Ids) -> Tensor:
    """A tensor of a shape that holds the elements along one dimension."""
    line = torch.from_numpy(np.ascontiguousarray(ids)).reshape([-1 if at == dim else 1 for at in range(len(shape))])
    return line.expand([len(ids) if at == dim else size for at, size in enumerate(shape)]).contiguous()


def _run(
    call: Call, labels: Labels, tensors: dict[Value, Tensor], numbers: dict[Leaf, int]
) -> list[Tensor] | None:  # fmt: skip
    """The step's outputs with other tensors and sizes in place of its own; None where it does not run."""
    axis = next((dim for tensor in tensors.values() for dim, size in enumerate(tensor.shape) if size > 1), None)

    def put(leaf: Any) -> Any:
        if isinstance(leaf, Value):
            if leaf in tensors:
                return tensors[leaf]
            plain = torch.zeros(_shape(call, leaf, axis), dtype=torch.int64)
            return plain if leaf.tensor.is_floating_point() else leaf.tensor
        return length_at(leaf, lambda how, recorded: numbers.get(how, recorded))

    function: Callable[..., Any] = labels.modules[call.module] if call.module else call.function  # type: ignore[assignment]
    try:
        result = function(*replaced(call.args, put), **replaced(dict(call.kwargs), put))
    except Exception:  # whatever a step makes of other sizes
        return None
    outputs = tensors_in(result)
    return outputs if len(outputs) == len(call.outputs) else None


def _follows(
    call: Call, labels: Labels, chosen: dict[Value, int], ids: dict[Value, Ids], moved: list[Dims], pins: Ids,
    strict: bool,
) -> bool:  # fmt: skip
    """Whether the step with some channels left out, but no `pins`, gives the same as leaving them out of what it
    gives."""
    for guess in (0, 1, 2):
        bindings: list[Callable[[], None]] = []
        for stay in _some(ids, pins, both=call.name in PARTS):
            left = {value: ids[value][np.isin(ids[value], stay)] for value in chosen}
            tensors = {value: _spread(_shape(call, value), chosen[value], left[value]) for value in chosen}
            numbers: dict[Leaf, int] = {}
            _renumber(call, labels, chosen, ids, moved, stay, guess, numbers, bindings)
            if strict and any(leaf[0] == "attribute" and leaf not in labels.counted for leaf in numbers):
                return False
            outputs = _run(call, labels, tensors, numbers)
            if outputs is None or not _as_expected(call, outputs, moved, stay):
                break
        else:
            for bind in bindings:
                bind()
            return True
    return False


def _some(ids: dict[Value, Ids], pins: Ids, *, both: bool = False) -> Iterator[Ids]:
    """Some channels of each input, as uneven as they can be, that no parts or pairs be alike: most of them at the
    front, and with `both` then at the back; with all at `pins`, and element 0."""
    pinned = {0, *(int(each) for line in ids.values() for each in line[pins])}
    for step in (1, -1) if both else (1,):
        stay, met = set(pinned), set(pinned)
        for line in ids.values():
            fresh = [each for each in dict.fromkeys(line.tolist()) if each not in met][::step]
            met |= set(fresh)
            most = max(len(fresh) // 2 - 1, 2 * (len(fresh) > 3))
            stay |= {*fresh[:most], *fresh[-1:]}
        yield np.array(sorted(stay), np.int64)


def _renumber(
    call: Call, labels: Labels, chosen: dict[Value, int], ids: dict[Value, Ids], moved: list[Dims], stay: Ids,
    guess: int, numbers: dict[Leaf, int], bindings: list[Callable[[], None]],
) -> None:  # fmt: skip
    """What each leaf of the step's sizes is with some channels left out, and what that binds.

    Sizes of the tensors themselves follow; so may those of others with as many channels (`guess`), and numbers that a
    module holds, which count the channels of an output, or of the input.
    """
    first, at = next(iter(chosen.items()))
    moving = np.concatenate([labels.roots(value, dim) for value, dim in chosen.items()])
    for length, place in _placed_lengths(call):
        for leaf, recorded in leaves_of(length):
            if leaf[0] == "size":
                roots = labels.roots(leaf[1], leaf[2]) if leaf[2] in labels.of(leaf[1]) else None
                if roots is None:
                    continue
                if np.isin(roots, moving).all():
                    numbers[leaf] = int(np.isin(_tied_like(roots, ids, chosen, labels), stay).sum())
                elif guess:
                    moved_lines = [line for dims in moved for line in dims.values()]
                    heads = [np.tile(line, len(roots) // len(line)) for line in moved_lines]  # all heads of one
                    lines = [*((line, line) for line in moved_lines), (ids[first], labels.of(first)[at])]
                    lines += [(line, line) for line in heads]
                    line, like = next(((a, b) for a, b in lines if len(a) == len(roots)), (None, None))
                    if line is not None:
                        numbers[leaf] = int(np.isin(line, stay).sum())
                        own = labels.of(leaf[1])[leaf[2]]
                        bindings.append(lambda own=own, like=like: labels.channels.tie(own, like))  # type: ignore[misc]
                continue
            counted_lines = [
                line
                for dims in (moved[place : place + 1] if place is not None else moved[:1])
                for line in dims.values()
            ]
            line = next((each for each in (*counted_lines, ids[first]) if len(each) == recorded), None)
            if leaf in labels.counted and guess != 1:
                counted = labels.channels.roots(labels.counted[leaf])
                if np.isin(counted, moving).all():
                    numbers[leaf] = int(np.isin(_tied_like(counted, ids, chosen, labels), stay).sum())
            elif line is not None and guess != 2:
                numbers[leaf] = int(np.isin(line, stay).sum())
                bindings.append(lambda leaf=leaf, line=line: labels.count(leaf, line))  # type: ignore[misc]


def _placed_lengths(call: Call) -> list[tuple[Length, int | None]]:
    """The sizes among the arguments; those in a list each with its place."""
    placed: list[tuple[Length, int | None]] = []

    def visit(tree: Any, place: int | None) -> None:
        if isinstance(tree, Length):
            placed.append((tree, place))
        elif isinstance(tree, list | tuple):
            for number, each in enumerate(tree):
                visit(each, number)
        elif isinstance(tree, slice):
            for each in (tree.start, tree.stop, tree.step):
                visit(each, None)

    for argument in (*call.args, *call.kwargs.values()):
        visit(argument, None)
    return placed


def _as_expected(call: Call, outputs: list[Tensor], moved: list[Dims], stay: Ids) -> bool:
    for out, dims, recorded in zip(outputs, moved, call.outputs, strict=True):
        shape = list(_shape(call, recorded))
        wanted: Tensor | None = None
        for dim, line in dims.items():
            left = line[np.isin(line, stay)]
            shape[dim] = len(left)
            wanted = _spread(shape, dim, left)
        if list(out.shape) != shape or (wanted is not None and not torch.equal(out, wanted)):
            return False
        if wanted is None and not np.isin(out.numpy(), stay).all():
            return False
    return True
