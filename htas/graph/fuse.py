"""The norm and the activation that a runtime fuses into the layer before them."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from htas.graph.network import Node


def fused(nodes: Mapping[str, Node], activation: Callable[[Node], str]) -> dict[str, Node]:
    """The nodes, by name, each layer with the norm and the activation that follow it and that nothing else reads.

    `activation` gives the key in ACTIVATIONS of a map, or nothing.
    """
    readers: dict[str, list[Node]] = {}
    for node in nodes.values():
        for source in node.inputs:
            readers.setdefault(source, []).append(node)
    return {name: _fused(node, readers, activation) for name, node in nodes.items()}


def _fused(node: Node, readers: Mapping[str, list[Node]], activation: Callable[[Node], str]) -> Node:
    if node.kind not in ("conv", "grouped", "join", "fixed") or node.layer is None:
        return node
    norm, after = "", _only_reader(readers, node.name)
    if after is not None and after.kind == "norm" and node.kind != "join":
        norm, after = after.name, _only_reader(readers, after.name)
    name = activation(after) if after is not None and after.kind == "map" else ""
    return replace(node, layer=replace(node.layer, norm=bool(norm), activation=name), norm=norm)


def _only_reader(readers: Mapping[str, list[Node]], name: str) -> Node | None:
    nodes = readers.get(name, [])
    return nodes[0] if len(nodes) == 1 else None
