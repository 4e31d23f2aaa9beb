"""What a survey says by itself: the paper's Table 2 for this device, and every curve with fit, scores and choices."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from htas.files import write_bytes, write_text
from htas.report._blocks import Heading, Text, facts_table, plain_table, points
from htas.report._curves import ABOUT, curve_doubts, curve_picture
from htas.report._draw import png
from htas.report._page import html
from htas.spaces.curve import CurveRecord
from htas.spaces.design import DECIDED
from htas.text import TextTable, milliseconds, plural, significant

HEADINGS = ("site", "base width", "widths chosen", "latency of the base", "known to", "no faster than a wider one")


def page(
    title: str, curves: Sequence[CurveRecord], doubts: Sequence[str], decided: str, facts: Mapping[str, object],
    folder: Path,
) -> tuple[Path, TextTable]:  # fmt: skip
    """Write survey.html and a PNG of each curve; the path of the page, and its table.

    `decided` says how many choices are. A choice that is less than DECIDED to be right is marked. Raises UserError
    where the folder cannot be written.
    """
    pictures = [curve_picture(number, curve) for number, curve in enumerate(curves, 1)]
    for picture in pictures:
        write_bytes(folder / "survey" / f"{picture.name}.png", png(picture.chart))
    rows = list(map(_row, curves))
    blocks = [
        Heading("The hardware-aware space"),
        plain_table(HEADINGS, rows),
        Text(
            f"{plural(len(rows), 'distinct curve')}; one width a group, as in the paper's Table 2. A question mark "
            "marks a width whose group is not decided: more readings could choose another."
        ),
        Heading("Latency curves"),
        ABOUT,
        *pictures,
        Heading("Doubts"),
        points([*(("", doubt) for doubt in (*doubts, decided)), *curve_doubts(curves)]),
        Heading("How it was measured"),
        facts_table(facts),
    ]
    path = folder / "survey.html"
    write_text(path, html(title, blocks))
    return path, TextTable([HEADINGS, *rows], len(HEADINGS), after=[decided])


def _row(curve: CurveRecord) -> tuple[str, ...]:
    """Table 2: the width chosen in each group, with a question mark where the choice is less than DECIDED."""
    unsure = [run for run, certain in zip(curve.groups, curve.certain, strict=True) if certain < DECIDED]
    widths = [
        f"{width}?" if any(first <= width <= last for first, last in unsure) else str(width)
        for width in curve.choices["hardware"]
    ]
    measured = curve.measured
    errors = sorted(error / seconds for error, seconds in zip(measured.errors, measured.seconds, strict=False))
    return (
        curve.sites[0] + (f" and {len(curve.sites) - 1} alike" if len(curve.sites) > 1 else ""),
        str(curve.base),
        " ".join(widths),
        milliseconds(measured.at(curve.base)),
        f"{significant(100 * errors[len(errors) // 2], 2)} %" if errors else "",
        " ".join(map(str, curve.dominated)),
    )
