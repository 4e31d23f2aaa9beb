"""The width sites of a network: groups of producers whose widths are free, and the modules that read them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import lcm

from torch import nn

from htas.graph.groups import Groups
from htas.graph.network import Node, Site


@dataclass(frozen=True)
class Flow:
    """Where channels come from and go to in a module."""

    nodes: Mapping[str, Node]
    sources: Mapping[str, tuple[str, ...]]
    """By node, the member of `groups` that each segment of its output is."""
    groups: Groups
    modules: Mapping[str, nn.Module]


def width_sites(flow: Flow) -> tuple[tuple[Node, ...], dict[str, Site], dict[str, str]]:
    """The nodes with their sites, the width sites by name, and the reasons of what is frozen by module or node."""
    producers: dict[str, list[str]] = {}
    frozen: dict[str, str] = {}
    for node in flow.nodes.values():
        if node.kind not in ("conv", "fixed"):
            continue
        root = flow.groups.root(node.name)
        reason = flow.groups.reasons.get(root)
        if reason is None:
            producers.setdefault(root, []).append(node.name)
        else:
            frozen[node.module or node.name] = reason
    multiples = _multiples(flow)
    titles = {root: members[0] for root, members in producers.items()}
    nodes = tuple(_with_site(node, flow, titles) for node in flow.nodes.values())
    sites = {
        title: Site(
            title,
            "width",
            flow.nodes[title].segments[0].base,
            tuple(dict.fromkeys(flow.nodes[name].module for name in producers[root])),
            tuple(dict.fromkeys(_consumers(root, flow))),
            multiples.get(root, 1),
        )
        for root, title in titles.items()
    }
    return nodes, sites, frozen


def _multiples(flow: Flow) -> dict[str, int]:
    """By group of producers, the number its width must be a multiple of, as groups of channels stay whole."""
    multiples: dict[str, int] = {}
    for node in flow.nodes.values():
        multiple = node.layer.inputs // node.layer.groups if node.kind == "grouped" and node.layer is not None else 1
        if node.kind == "layer_norm" and isinstance(norm := flow.modules[node.module], nn.GroupNorm):
            multiple = norm.num_groups
        if multiple > 1:
            for root in {root for member in flow.sources[node.name] for root in flow.groups.origins(member)}:
                multiples[root] = lcm(multiples.get(root, 1), multiple)
    return multiples


def _with_site(node: Node, flow: Flow, titles: Mapping[str, str]) -> Node:
    if node.kind not in ("conv", "grouped") or node.segments[0].repeat > 1 or len(node.segments) > 1:
        return node
    (member,) = flow.sources[node.name]
    return replace(node, site=titles.get(flow.groups.root(member), ""))


def _consumers(root: str, flow: Flow) -> Iterator[tuple[str, int, int]]:
    """Module, offset and repeat of everything that reads a group's channels."""
    for node in flow.nodes.values():
        if node.kind not in ("conv", "grouped", "norm", "layer_norm") or not node.module:
            continue
        offset = 0
        for member, segment in zip(flow.sources[node.inputs[0]], node.consumed, strict=True):
            if root in flow.groups.origins(member):
                yield node.module, offset, segment.repeat
            offset += segment.base * segment.repeat
