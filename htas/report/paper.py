"""The paper's tables and figures next to those measured here, on one page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import altair as alt

from htas.report._blocks import Block, Heading, Picture, Points, Table, Text, cell_with_note
from htas.report._draw import EIGHT, PLOT, Spec, by_turns, looks, plot, spec, tooltip
from htas.report._page import publish
from htas.report._style import FAINT, RULE
from htas.report.survey import fitted_curve, scored_widths
from htas.spaces.curve import CurveRecord

__all__ = ["Picture", "Section", "fitted_curve", "gained", "page", "scored_widths", "stepped"]


@dataclass(frozen=True)
class Section:
    """A table or figure of the paper, made again."""

    title: str
    says: tuple[str, ...]
    """What came out, and by how much it is like the paper's; a paragraph each."""
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int
    """The number of columns, from the first on, that hold words and no numbers."""
    marked: tuple[str, ...] = ()
    """First cells of the rows to be set off."""
    figures: tuple[Picture, ...] = ()
    notes: tuple[str, ...] = ()
    """What must be known before a figure is believed."""
    facts: Mapping[str, str] | None = None
    """How it was made: length, target, machine, versions, the command."""


def page(title: str, intro: str, sections: Sequence[Section], folder: Path) -> Path:
    """Write reproduce.html, and reproduce.md with its pictures in figures/; the path of the page.

    Raises UserError where the folder cannot be written.
    """
    blocks: list[Block] = [Text(intro)]
    for section in sections:
        rows = [list(map(cell_with_note, row)) for row in section.rows]
        blocks += [
            Heading(section.title),
            *map(Text, section.says),
            Table(section.headings, rows, section.headings[: section.words], section.marked),
            *section.figures,
        ]
        if remarks := [*(("", note) for note in section.notes), *(section.facts or {}).items()]:
            blocks.append(Points(remarks))
    return publish(title, blocks, folder, "reproduce")[0]


def stepped(curves: Mapping[str, CurveRecord]) -> Spec:
    """Latency over width by precision, each over its own latency at the base width; the chosen widths are filled."""
    rows = [
        {"precision": name, "width": width, "share": seconds / curve.measured.at(curve.base),
         "chosen": width in curve.choices["hardware"], "microseconds": 1e6 * seconds}
        for name, curve in curves.items()
        for width, seconds in zip(curve.measured.widths, curve.measured.seconds, strict=True)
    ]  # fmt: skip
    colour, shape = looks("precision:N", by_turns(curves))
    x = alt.X("width:Q", title="width, channels", scale=alt.Scale(nice=False))
    y = alt.Y("share:Q", title="latency over that of the base width")
    details = tooltip(
        "precision:N", ("width:Q", "width"), ("microseconds:Q", "latency, µs", ".3g"), ("share:Q", "over base", ".3f")
    )
    line = plot(rows).mark_line(strokeWidth=1).encode(x, y, colour)
    marks = plot(row for row in rows if row["chosen"]).mark_point(filled=True, size=70, opacity=1.0)
    layers = alt.layer(line, marks.encode(x, y, colour, shape, tooltip=details))
    return spec(layers.properties(width=PLOT, height=240))


def gained(points: Sequence[Mapping[str, Any]]) -> Spec:
    """Speed gained over multiply-adds saved, a panel for each runtime: `network`, `kind`, `runtime`, `saved` (a
    share) and `speed` (times the base network's) of each point, and the line of what the multiply-adds promise.
    """
    rows = [{**point, "saved": 100 * point["saved"]} for point in points]
    most = max([row["saved"] for row in rows], default=0.0)
    promised = [{"saved": share, "speed": 100 / (100 - share)} for share in range(0, min(95, int(most) + 3))]
    x = alt.X("saved:Q", title="multiply-adds saved, %", scale=alt.Scale(padding=10, nice=False), axis=EIGHT)
    y = alt.Y("speed:Q", title="times as fast as the base network, measured", scale=alt.Scale(zero=False, padding=10))
    encoding = (x, y, *looks("kind:N", by_turns(row["kind"] for row in rows)))
    details = tooltip(
        "network:N", "runtime:N", ("saved:Q", "multiply-adds saved, %", ".1f"), ("speed:Q", "times as fast", ".3f"),
        ("macs:Q", "multiply-adds, M", ".2f"),
    )  # fmt: skip
    line = plot(promised).mark_line(color=FAINT, strokeDash=[5, 4]).encode(x, y)
    even = plot([{"speed": 1.0}]).mark_rule(color=RULE).encode(y)
    panels = []
    for runtime in dict.fromkeys(row["runtime"] for row in rows):
        marks = plot(row for row in rows if row["runtime"] == runtime).mark_point(filled=True, size=90, opacity=0.9)
        marks = marks.encode(*encoding, tooltip=details)
        panels.append(alt.layer(line, even, marks).properties(width=PLOT, height=240, title=runtime))
    return spec(alt.vconcat(*panels))
