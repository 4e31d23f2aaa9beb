"""A network before a search: its layers' shares of the latency, and what a smaller site would save."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from htas.graph import Network, Site, resize
from htas.graph.arch import Arch
from htas.graph.layer import Layer
from htas.metrics import Metric, OnRound
from htas.metrics.latency import Latency
from htas.timing.measurement import Measurement


@dataclass(frozen=True)
class LayerFacts:
    """One layer of the base network, where it stands."""

    name: str
    layer: Layer
    seconds: float
    """By itself, or within a chain, as the runtime does best; see `whole`."""
    site: str
    """The width site that its outputs are; empty where they are frozen."""
    frozen: str
    """Why they are; empty where they are free."""


@dataclass(frozen=True)
class SiteFacts:
    """One free dimension."""

    site: Site
    seconds: float
    """Of the layers that produce it, or of its blocks."""
    saved: float
    """What half the width saves, or the last block: of the layers that it changes, those that read it included."""

    @property
    def half(self) -> int:
        """The width, or the depth, that saves so much."""
        return smaller(self.site)


@dataclass(frozen=True)
class Inspection:
    """All of it; seconds are those of a batch."""

    layers: tuple[LayerFacts, ...]
    sites: tuple[SiteFacts, ...]
    """Those that save most come first."""
    frozen: Mapping[str, str]
    """By layer that has a width, why it cannot change."""
    macs: int
    params: int
    searchable: float
    """Share of the multiply-adds (Network.searchable)."""
    whole: Measurement
    """The network as one program."""
    doubts: tuple[str, ...]

    @property
    def sum(self) -> float:
        """Of the layers, in seconds."""
        return sum(each.seconds for each in self.layers)


def smaller(site: Site) -> int:
    """Half the width, or a block less; the base where it cannot be smaller."""
    return max(1, site.base - 1) if site.kind == "depth" else site.near(site.base / 2)


def inspect(
    network: Network, latency: Callable[[float], Latency], each: float, on_round: OnRound | None = None
) -> Inspection:  # fmt: skip
    """Measure every distinct layer of the base network, and those that half a width or a block less would make of it.

    `latency` builds a metric that measures for a number of seconds, and `each` is the seconds for a layer.
    """
    base = network.base
    archs = {name: _with(base, site) for name, site in network.sites.items()}
    uses = {name: network.uses(arch) for name, arch in {"": base, **archs}.items()}
    layers = list(dict.fromkeys(use.layer for group in uses.values() for use in group))
    metric: Metric = latency(each * len(layers))
    readings = dict(zip(layers, metric.measure(layers, on_round=on_round), strict=True))
    seconds = {layer: reading.estimate for layer, reading in readings.items()}
    (whole,) = latency(WHOLE).measure([resize(network, base)])
    sums = {name: sum(seconds[use.layer] for use in group) for name, group in uses.items()}
    nodes = {node.name: node for node in network.nodes}
    facts = tuple(
        LayerFacts(
            use.node,
            use.layer,
            seconds[use.layer],
            use.site,
            network.frozen.get(nodes[use.node].module or use.node, ""),
        )
        for use in uses[""]
    )
    sites = [
        SiteFacts(site, sum(layer.seconds for layer in facts if _belongs(network, layer, site)), sums[""] - sums[name])
        for name, site in network.sites.items()
    ]
    doubts = dict.fromkeys(remark for reading in (*readings.values(), whole) for remark in reading.remarks)
    return Inspection(
        facts, tuple(sorted(sites, key=lambda one: one.saved, reverse=True)), dict(network.frozen), network.macs(base),
        network.params(base), network.searchable, whole, tuple(doubts),
    )  # fmt: skip


WHOLE = 3.0
"""Seconds for the whole network."""


def _with(base: Arch, site: Site) -> Arch:
    """The base with this site smaller."""
    if site.kind == "depth":
        return replace(base, depths={**base.depths, site.name: smaller(site)})
    return replace(base, widths={**base.widths, site.name: smaller(site)})


def _belongs(network: Network, facts: LayerFacts, site: Site) -> bool:
    if site.kind == "width":
        return facts.site == site.name
    return any(facts.name == block or facts.name.startswith((f"{block}.", f"{block}:")) for block in site.producers)
