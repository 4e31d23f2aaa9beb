"""Products of matrices, and attention's own function."""

from typing import TYPE_CHECKING

from htas.graph.kinds._kind import Kind, counted_macs
from htas.graph.labels import Dims, Labels, title
from htas.graph.layout import Layout, Run
from htas.graph.record import Call, Value

if TYPE_CHECKING:
    from htas.graph.emit import Emitter
    from htas.graph.network import Node


FUNCTIONS = {
    "matmul", "bmm", "mm", "mv", "dot", "vdot", "inner", "__matmul__", "__rmatmul__", "einsum",
    "scaled_dot_product_attention",
}  # fmt: skip


class Product(Kind):
    """Products of matrices, and attention's own function."""

    functions = frozenset(FUNCTIONS)

    def label(self, call: Call, labels: Labels) -> None:
        """What is summed over is one channel in both; every other dimension of the result is that of an operand."""
        letters = _letters(call)
        if letters is None:
            labels.stop(call, "is not understood")
            return
        operands, result = letters
        by_letter: dict[str, tuple[Value, int]] = {}
        dims: Dims = {}
        for value, names in operands:
            for dim, letter in enumerate(names):
                if value.shape[dim] == 1:
                    if dim in labels.of(value):
                        labels.channels.freeze(
                            labels.of(value)[dim], f"{title(call, labels.modules)} uses it for all others"
                        )
                    continue
                if letter not in by_letter:
                    by_letter[letter] = (value, dim)
                    continue
                other, at = by_letter[letter]
                ids, before = labels.of(value).get(dim), labels.of(other).get(at)
                if ids is not None:
                    labels.tie(other, at, ids)
                elif before is not None:
                    labels.channels.freeze(before, labels.why(value))
                    by_letter[letter] = (value, dim)  # without labels, as the result
        for dim, letter in enumerate(result):
            if letter in by_letter:
                value, at = by_letter[letter]
                if at in labels.of(value):
                    dims[dim] = labels.of(value)[at]
        labels.set(call.outputs[0], dims, next((labels.why(value) for value, _ in operands), ""))

    def complete(self, node: "Node", call: Call, value: Value, emitter: "Emitter") -> "Node":
        """With its multiply-adds, which grow with the dimensions of its result and of its sum; those of attention, two
        products, with the sum of its queries' and its values' channels."""
        letters = _letters(call)
        if letters is None:
            return counted_macs(node, call, emitter.read_layouts(call), emitter)
        lines: dict[str, Layout] = {}
        for operand, names in letters[0]:
            for dim, letter in enumerate(names):
                ids = emitter.labels.of(operand).get(dim)
                if letter not in lines or ids is not None:
                    plain = Layout((Run("", operand.shape[dim]),))
                    lines[letter] = plain if ids is None else emitter.atoms.layout(ids)
        if call.name == "scaled_dot_product_attention":
            lines["e"] = Layout((*lines["e"].runs, *lines.pop("v").runs))
        return counted_macs(node, call, lines.values(), emitter)


def _letters(call: Call) -> tuple[list[tuple[Value, str]], str] | None:
    """The operands, and the result, each with a letter for every dimension; None where there is no such view."""
    if call.name == "einsum":
        equation, *rest = call.args
        values = list(rest[0]) if len(rest) == 1 and isinstance(rest[0], tuple | list) else rest
        if not isinstance(equation, str) or "." in equation or "->" not in equation:
            return None
        left, right = equation.replace(" ", "").split("->")
        return list(zip(values, left.split(","), strict=True)), right
    if call.name == "scaled_dot_product_attention":
        if len(call.values) not in (3, 4) or call.outputs[0].tensor.dim() > 6:
            return None
        batch = "abcd"[: call.outputs[0].tensor.dim() - 2]
        names = (f"{batch}qe", f"{batch}ke", f"{batch}kv", f"{batch}qk")  # the last of a mask, which may have fewer
        return [(each, name[-len(each.shape) :]) for each, name in zip(call.values, names, strict=False)], f"{batch}qv"
    one, two = call.values[:2] if len(call.values) == 2 else (None, None)
    if one is None or two is None:
        return None
    if call.name == "__rmatmul__":
        one, two = two, one
    first, second, count = len(one.shape), len(two.shape), len(call.outputs[0].shape)
    batch = "abcdefgh"[: max(first, second, 2) - 2]
    left = batch[len(batch) - max(0, first - 2) :] + ("xk" if first > 1 else "k")
    right = batch[len(batch) - max(0, second - 2) :] + ("ky" if second > 1 else "k")
    result = batch + ("x" if first > 1 else "") + ("y" if second > 1 else "")
    return ([(one, left), (two, right)], result) if len(result) == count else None
