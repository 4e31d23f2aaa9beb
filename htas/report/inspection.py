"""What `htas inspect` shows: where a network's time goes, and what each free width or depth could save."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import altair as alt

from htas.files import write_text
from htas.graph.network import OUTPUT
from htas.report._blocks import Block, Heading, Picture, Text, facts_table, plain_table, points
from htas.report._draw import WIDTH, Spec, plot, spec, tooltip
from htas.report._page import html
from htas.report._style import BLUE, FAINT, GREEN
from htas.spaces.inspection import Inspection, SiteFacts
from htas.text import TextTable, millions, milliseconds, percent, plural

SITES = ("site", "kind", "base", "smaller", "saves", "its layers take")
LAYERS = ("layer", "kind", "width site, or why frozen", "channels", "MACs", "parameters", "share of the latency")
DROPPED = "From the end of each stage, in this order; each stage keeps its first block."
SHOWN = 20
"""Sites, and layers, that a picture or the terminal shows at most."""


def page(title: str, inspection: Inspection, about: Mapping[str, object], folder: Path) -> tuple[Path, TextTable]:
    """Write inspect.html; its path, and the summary with the sites that could save most."""
    sites = [_site(site, inspection) for site in inspection.sites]
    layers = [
        (facts.name, facts.layer.kind, facts.site or facts.frozen, f"{facts.layer.inputs} to {facts.layer.outputs}",
         millions(facts.layer.macs), millions(facts.layer.params), percent(facts.seconds / inspection.sum, 1))
        for facts in inspection.layers
    ]  # fmt: skip
    network = inspection.network
    frozen = [(name, why) for name, why in network.frozen.items() if why != OUTPUT]
    dropped = [
        (site.name, f"{', then '.join(reversed(site.producers[1:]))}; {site.producers[0]} stays")
        for site in (facts.site for facts in inspection.sites if facts.site.kind == "depth")
    ]
    lines = [
        f"{millions(network.macs(network.base))} multiply-adds, {millions(network.params(network.base))} parameters, "
        f"{milliseconds(inspection.whole.estimate)} a batch ({milliseconds(inspection.sum)} as the sum of "
        f"{plural(len(inspection.layers), 'layer')})",
        f"{plural(len(network.widths), 'width site')} and {plural(len(network.depths), 'depth site')}; "
        f"{percent(network.searchable, 1)} of the multiply-adds can be searched",
        f"frozen, but for the classes: {len(frozen) or 'nothing'}",
        f"checked: {network.checked}",
    ]
    saving, most = "Bars of the latency that each site could save", "The sites that could save most."
    taking, slowest = "Bars of latency and multiply-adds by layer", "The layers that take most, in their order."
    order: list[Block] = [Heading("Blocks that can be dropped"), Text(DROPPED), points(dropped)]
    blocks: list[Block] = [
        *(Text(f"{line[0].upper()}{line[1:]}.") for line in lines),
        Heading("What could be saved"),
        Text(
            "By half the width of a site, or by a block less of a stage, all else as it is: the sum of the layers that "
            "this changes, over that of all. A search changes many at once, and a wider site may be as fast."
        ),
        Picture("sites", _sites_chart(inspection), saving, most),
        plain_table(SITES, sites, SITES[:2]),
        *(order if dropped else []),
        Heading("Where the time goes"),
        Picture("layers", _layers_chart(inspection), taking, slowest),
        plain_table(LAYERS, layers, LAYERS[:3]),
        Heading("What stays as it is, and why"),
        points(frozen, "Nothing but the outputs, which are the classes."),
        Heading("Doubts"),
        points(("", doubt) for doubt in inspection.doubts),
        Heading("How it was measured"),
        facts_table(about),
    ]
    path = folder / "inspect.html"
    write_text(path, html(title, blocks))
    stays = [f"  {name}: {why}" for name, why in frozen]
    after = [*_rest(len(sites), "site"), *(f"doubt: {doubt}" for doubt in inspection.doubts)]
    before = [*lines, *stays[:SHOWN], *_rest(len(stays), "frozen part")]
    return path, TextTable([SITES, *sites[:SHOWN]] if sites else [], 2, before=before, after=after)


def _rest(count: int, noun: str) -> list[str]:
    """A line for those that the terminal does not show."""
    return [f"and {plural(count - SHOWN, f'more {noun}')}, in the page"] if count > SHOWN else []


def _site(facts: SiteFacts, inspection: Inspection) -> tuple[str, ...]:
    site = facts.site
    more = f" and {len(site.producers) - 1} with it" if site.kind == "width" and len(site.producers) > 1 else ""
    groups = f", in groups of {site.multiple}" if site.multiple > 1 else ""
    return (
        f"{site.name}{more}", site.kind + groups, str(site.base), str(facts.half),
        percent(facts.saved / inspection.sum, 1), percent(facts.seconds / inspection.sum, 1),
    )  # fmt: skip


def _layers_chart(inspection: Inspection) -> Spec:
    """Share of the latency of the layers that take most, and their share of the multiply-adds."""
    most = sorted(inspection.layers, key=lambda layer: layer.seconds, reverse=True)[:SHOWN]
    listed = [layer for layer in inspection.layers if layer in most][:SHOWN]
    names = [f"{layer.name}  ({layer.layer.kind})" for layer in listed]
    time = [100 * layer.seconds / inspection.sum for layer in listed]
    macs = max(1, inspection.network.macs(inspection.network.base))
    work = [100 * layer.layer.macs / macs for layer in listed]
    return _bars(names, {"latency": (time, BLUE), "multiply-adds": (work, FAINT)}, "share of the network, %")


def _sites_chart(inspection: Inspection) -> Spec:
    """What the first sites could save."""
    sites = inspection.sites[:SHOWN]
    names = [f"{facts.site.name}  ({facts.site.base} to {facts.half})" for facts in sites]
    saving = [100 * facts.saved / inspection.sum for facts in sites]
    return _bars(names, {"saves": (saving, GREEN)}, "of the sum of all layers, %")


def _bars(names: Sequence[str], groups: dict[str, tuple[Sequence[float], str]], label: str) -> Spec:
    rows = [
        {"name": name, "what": what, "share": share}
        for what, (shares, _) in groups.items()
        for name, share in zip(names, shares, strict=True)
    ]
    scale = alt.Scale(domain=list(groups), range=[colour for _, colour in groups.values()])
    bars = plot(rows).mark_bar().encode(
        alt.X("share:Q", title=label),
        alt.Y("name:N", title=None, sort=None, axis=alt.Axis(labelLimit=220)),
        alt.Color("what:N", scale=scale, legend=alt.Legend() if len(groups) > 1 else None),
        alt.YOffset("what:N", sort=None),
        tooltip=tooltip("name:N", "what:N", ("share:Q", "%", ".2f")),
    )  # fmt: skip
    return spec(bars.properties(width=WIDTH - 220, height=alt.Step(11 if len(groups) > 1 else 17)))
