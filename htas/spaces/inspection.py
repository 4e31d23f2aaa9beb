"""A network before a search: its layers' shares of the latency, and what a smaller site would save."""

from collections.abc import Callable
from dataclasses import dataclass

from htas.graph import Arch, Network, Site, resize
from htas.graph.layer import Layer
from htas.metrics import OnRound
from htas.metrics.latency import Latency
from htas.timing.measurement import Measurement

WHOLE = 3.0
"""Seconds for the whole network."""


@dataclass(frozen=True)
class LayerFacts:
    """One layer of the base network, where it stands."""

    name: str
    layer: Layer
    seconds: float
    """By itself, or within a chain, as the runtime does best; see `whole`."""
    sites: tuple[str, ...]
    """The width sites that its outputs are; none where they are frozen."""
    frozen: str
    """Why they are; empty where they are free."""

    @property
    def site(self) -> str:
        """The names of its sites."""
        return ", ".join(self.sites)


@dataclass(frozen=True)
class SiteFacts:
    """One free dimension."""

    site: Site
    seconds: float
    """Of the layers that produce it, or of its blocks."""
    saved: float
    """What half the width saves, or the last block: of the layers that it changes, those that read it included."""
    half: int
    """The width, or the depth, that saves so much; the base where it cannot be smaller."""


@dataclass(frozen=True)
class Inspection:
    """All of it; seconds are those of a batch."""

    layers: tuple[LayerFacts, ...]
    sites: tuple[SiteFacts, ...]
    """Those that save most come first."""
    network: Network
    whole: Measurement
    """The network as one program."""
    doubts: tuple[str, ...]

    @property
    def sum(self) -> float:
        """Of the layers, in seconds."""
        return sum(each.seconds for each in self.layers)


def inspect(network: Network, latency: Callable[[float], Latency], each: float, on_round: OnRound = None) -> Inspection:
    """Measure every distinct layer of the base network, and those that half a width or a block less would make of it.

    `latency` builds a metric that measures for a number of seconds, and `each` is the seconds for a layer.
    """
    base = network.base
    halves = {
        name: max(1, site.base - 1) if site.kind == "depth" else site.near(site.base / 2)
        for name, site in network.sites.items()
    }
    uses = {"": network.uses(base), **{name: network.uses(_with(base, name, half)) for name, half in halves.items()}}
    layers = list(dict.fromkeys(use.layer for group in uses.values() for use in group))
    readings = dict(zip(layers, latency(each * len(layers)).measure(layers, on_round=on_round), strict=True))
    (whole,) = latency(WHOLE).measure([resize(network, base)])
    sums = {name: sum(readings[use.layer].estimate for use in group) for name, group in uses.items()}
    modules = {node.name: node.module or node.name for node in network.nodes}
    frozen = {name: network.frozen.get(module, "") for name, module in modules.items()}
    facts = tuple(
        LayerFacts(use.node, use.layer, readings[use.layer].estimate, use.sites, frozen[use.node]) for use in uses[""]
    )
    sites = []
    for name, site in network.sites.items():
        seconds = sum(layer.seconds for layer in facts if _belongs(layer, site))
        sites.append(SiteFacts(site, seconds, sums[""] - sums[name], halves[name]))
    remarks = (remark for reading in (*readings.values(), whole) for remark in (*reading.remarks, reading.note))
    doubts = dict.fromkeys(filter(None, remarks))
    sites.sort(key=lambda one: one.saved, reverse=True)
    return Inspection(facts, tuple(sites), network, whole, tuple(doubts))


def _with(base: Arch, name: str, choice: int) -> Arch:
    """The base with another choice for one site."""
    both = (base.widths, base.depths)
    return Arch(*({site: choice if site == name else size for site, size in sizes.items()} for sizes in both))


def _belongs(facts: LayerFacts, site: Site) -> bool:
    if site.kind == "width":
        return site.name in facts.sites
    return any(facts.name == block or facts.name.startswith((f"{block}.", f"{block}:")) for block in site.producers)
