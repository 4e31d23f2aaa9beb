"""The layers that a survey measures, and at which widths (section 3.2)."""

from collections import Counter

from htas.graph import Network, Site
from htas.graph.arch import Arch
from htas.graph.layer import WEIGHTED, Layer, Template


def templates(network: Network, *, expand: float, inputs: str) -> dict[str, Counter[Template]]:
    """The templates of the layers that produce each width site, with their multiplicity; their outputs are free.

    Their input widths are the base network's, or e times those (`inputs="expanded"`).
    """
    found: dict[str, Counter[Template]] = {name: Counter() for name in network.widths}
    for use in network.uses(surveyed(network, expand=expand, inputs=inputs)):
        if use.site:
            found[use.site][use.layer.curve_template] += 1
    return found


def surveyed(network: Network, *, expand: float, inputs: str) -> Arch:
    """The arch whose widths are the input widths of a survey: the base, or e times it (`inputs="expanded"`)."""
    if inputs == "base":
        return network.base
    return Arch({name: widths_of(site, expand)[-1] for name, site in network.widths.items()}, network.base.depths)


def widest(base: int, expand: float) -> int:
    """The last width of the expanded global search space (section 3.1)."""
    return int(base * expand + 1e-9)


def widths_of(site: Site, expand: float) -> range:
    """1..e*base, the widths of that space; of a site whose widths must be multiples, only those."""
    return range(site.multiple, widest(site.base, expand) + 1, site.multiple)


def cases(network: Network, *, expand: float, inputs: str) -> dict[Layer, set[str]]:
    """The layers that a survey measures, each with the keys of the tables it goes into.

    There may be two: a depthwise layer of one channel is also a plain one from one channel to one.
    """
    found: dict[Layer, set[str]] = {}
    for site, layers in templates(network, expand=expand, inputs=inputs).items():
        for layer in layers:
            for x in widths_of(network.sites[site], expand):
                found.setdefault(layer.wide(x), set()).add(layer.key)
    for use in network.uses(surveyed(network, expand=expand, inputs=inputs)):
        if not use.site and use.layer.op in WEIGHTED:
            found.setdefault(use.layer, set()).add(use.layer.curve_template.key)
    return found
