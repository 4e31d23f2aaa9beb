"""What a kind of step is: the functions and modules that are of it, and what it does to channels."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from torch import nn

from htas.graph.kinds._pool import pool_of
from htas.graph.labels import Labels
from htas.graph.record import Call, Value
from htas.graph.steps import Step, macs_of

if TYPE_CHECKING:
    from htas.graph.emit import Emitter
    from htas.graph.layout import Layout
    from htas.graph.network import Kind as NodeKind
    from htas.graph.network import Node


class Kind(ABC):
    """A kind of step. A file of this folder with a class of it is all that a new kind needs."""

    functions: ClassVar[frozenset[str]] = frozenset()
    """Names of the tensor functions of the kind."""
    modules: ClassVar[tuple[type[nn.Module], ...]] = ()
    """Classes of torch.nn whose modules are of the kind."""

    @abstractmethod
    def label(self, call: Call, labels: Labels) -> None:
        """Give the step's outputs their labels, and tie or freeze what the step binds."""

    def order(self, call: Call, order: list[Value], emitter: "Emitter") -> list[Value]:
        """The inputs of the node, `order` being those of the step: activations first, then parameters."""
        return order

    def node_kind(self, call: Call, value: Value, order: list[Value], emitter: "Emitter") -> "NodeKind":
        """How the node of an output is computed at other widths."""
        if emitter.is_plain(value, order):
            return self.plain_kind(call, value, order, emitter)
        if emitter.is_bare(value, order):
            return "move"
        return self.free_kind(call, value, order, emitter)

    def plain_kind(self, call: Call, value: Value, order: list[Value], emitter: "Emitter") -> "NodeKind":
        """`node_kind` where no channels are free."""
        return "fixed"

    def free_kind(self, call: Call, value: Value, order: list[Value], emitter: "Emitter") -> "NodeKind":
        """`node_kind` where channels are free."""
        return emitter.kind_by_layout(value, order)

    def complete(self, node: "Node", call: Call, value: Value, emitter: "Emitter") -> "Node":
        """The node with what its kind needs: a site, a layer, multiply-adds."""
        return replace(node, layer=pool_of(node, call, value, emitter)) if node.kind == "map" else node


def counted_macs(node: "Node", call: Call, layouts: Iterable["Layout"], emitter: "Emitter") -> "Node":
    """A node without a layer, with its multiply-adds and the dimensions that they grow with."""
    assert isinstance(node.run, Step)
    if emitter.again:
        return node
    images = 1 if node.kind == "value" else emitter.labels.images
    macs = macs_of(node.run, emitter.labels.modules.__getitem__, images)
    return replace(node, macs=macs, scaled=tuple(layout for layout in layouts if layout.free))
