"""What a survey says: the paper's Table 2 for this device, and every curve with fit, scores and choices (Fig. 2, 3)."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import altair as alt

from htas.files import write_bytes, write_text
from htas.report._blocks import Heading, Picture, Text, facts_table, plain_table, points
from htas.report._draw import PLOT, Spec, filled, spec, tooltip
from htas.report._names import space_name
from htas.report._page import html
from htas.report._style import BLUE, FAINT, INK, RED, RULE, SKY
from htas.spaces.curve import CurveRecord
from htas.spaces.design import DECIDED
from htas.text import TextTable, fitted, listing, milliseconds, plural, significant

HEADINGS = ("site", "base width", "widths chosen", "latency of the base", "known to", "no faster than a wider one")
MEASURED, INTERPOLATED, SELECTED = "measured m(x)", "interpolated", "selected, measured widths"
BASE, FIT = "base width", "fit f(x)"
ABOUT = Text(
    "Above, the measured latency m(x) of a site at every width x, the fit f(x) of eq. 1, and in red the widths "
    "selected for the measured space. Below, the score s(x) = f(x) \N{MINUS SIGN} m(x) of eq. 2, one choice a "
    "group. Dashed lines part the groups. Sites with equal layers share one curve."
)


def page(
    title: str, curves: Sequence[CurveRecord], doubts: Sequence[str], decided: str, facts: Mapping[str, object],
    folder: Path,
) -> tuple[Path, TextTable]:  # fmt: skip
    """Write survey.html and a PNG of each curve; the path of the page, and its table.

    `decided` says how many choices are. A choice that is less than DECIDED to be right is marked. Raises UserError
    where the folder cannot be written.
    """
    import vl_convert

    pictures = [curve_picture(number, curve) for number, curve in enumerate(curves, 1)]
    for picture in pictures:
        write_bytes(folder / "survey" / f"{picture.name}.png", vl_convert.vegalite_to_png(picture.chart, scale=2))
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


def chosen_widths(curve: CurveRecord) -> str:
    """The width chosen in each group, with a question mark where the choice is less than DECIDED."""
    unsure = [run for run, certain in zip(curve.groups, curve.certain, strict=True) if certain < DECIDED]
    return " ".join(
        f"{width}?" if any(first <= width <= last for first, last in unsure) else str(width)
        for width in curve.choices["hardware"]
    )


def _row(curve: CurveRecord) -> tuple[str, ...]:
    """Table 2."""
    measured = curve.measured
    both = zip(measured.errors, measured.seconds, strict=False)
    errors = sorted(error / seconds for error, seconds in both if seconds > 0)  # an increment may be nothing
    return (
        curve.sites[0] + (f" and {len(curve.sites) - 1} alike" if len(curve.sites) > 1 else ""),
        str(curve.base),
        chosen_widths(curve),
        milliseconds(measured.at(curve.base)),
        f"{significant(100 * errors[len(errors) // 2], 2)} %" if errors else "",
        " ".join(map(str, curve.dominated)),
    )


def curve_picture(number: int, curve: CurveRecord, later: bool = False) -> Picture:
    """A latency curve with its sites, fit, groups, choices and doubts.

    Its chart has m(x), the fit and the selected widths (the paper's Fig. 2) over the scores (Fig. 3), in ms.
    """
    choices = "; ".join(f"{space_name(space)}: {' '.join(map(str, picks))}" for space, picks in curve.choices.items())
    sites = f"{plural(len(curve.sites), 'site')} of base width {curve.base}: {listing(curve.sites)}"
    widths, fit = curve.measured.widths, curve.fit
    groups = f"{plural(len(curve.groups), 'group')} of widths {widths[0]} to {widths[-1]}"
    doubts = "".join(f" Doubt: {doubt}." for doubt in curve.doubts)
    caption = f"{sites}. {fitted(fit.k, fit.alpha, fit.b)}; {groups}. Choices, {choices or 'none'}.{doubts}"
    chart = filled(_both(), curve_rows(curve))
    return Picture(f"curve-{number}", chart, f"Latency and score by width, base width {curve.base}", caption, later)


def curve_doubts(curves: Sequence[CurveRecord]) -> list[tuple[str, str]]:
    """The doubts of curves, each with its subject."""
    return [(f"curve of {listing(curve.sites)}", doubt) for curve in curves for doubt in curve.doubts]


def fitted_curve(curve: CurveRecord) -> Spec:
    """m(x) and its fit alone: the paper's Fig. 2."""
    return filled(spec(fitted_chart()), curve_rows(curve))


def scored_widths(curve: CurveRecord) -> Spec:
    """The score of every width and the selected ones alone: the paper's Fig. 3."""
    return filled(spec(_scored(height=190)), curve_rows(curve))


@cache
def _both() -> Spec:
    return spec(alt.vconcat(fitted_chart(), _scored()).resolve_scale(color="independent", x="shared"))


def curve_rows(curve: CurveRecord) -> dict[str, list[dict[str, Any]]]:
    """Every width; those of the fit, the base width and the choices, as the legend calls them; the ends of groups."""
    selected = set(curve.choices.get("hardware", ()))
    measured = curve.measured
    errors = measured.errors or (0.0,) * len(measured.widths)
    certain = curve.certain or (None,) * len(curve.groups)
    rows: list[dict[str, Any]] = []
    scores = measured.scores(curve.fit)
    for width, seconds, error, score in zip(measured.widths, measured.seconds, errors, scores, strict=True):
        group = next((n for n, (first, last) in enumerate(curve.groups) if first <= width <= last), 0)
        rows.append({
            "width": width, "latency": 1e3 * seconds, "fit": 1e3 * curve.fit(width), "score": 1e3 * score,
            "top": max(1e3 * score, 0.0), "none": 0, "left": width - 0.35, "right": width + 0.35,
            "low": 1e3 * (seconds - 2 * error), "high": 1e3 * (seconds + 2 * error), "group": group + 1,
            "sure": certain[group], "selected": "selected" if width in selected else "not",
            "what": INTERPOLATED if width in measured.interpolated else MEASURED,
        })  # fmt: skip
    return {
        "widths": rows,
        "fit": [{"width": row["width"], "fit": row["fit"], "what": FIT} for row in rows],
        "base": [{**row, "what": BASE} for row in rows if row["width"] == curve.base],
        "best": [{**row, "what": SELECTED} for row in rows if row["width"] in selected],
        "edges": [{"edge": last + 0.5} for _, last in curve.groups[:-1]],
    }


X = alt.X("width:Q", title="width, output channels", scale=alt.Scale(nice=False, padding=8), axis=alt.Axis(grid=False))
DETAILS = tooltip(
    "width:Q", ("latency:Q", "measured, ms", ".5f"), ("fit:Q", "fit, ms", ".5f"), ("score:Q", "score, ms", ".5f"),
    "group:Q", ("sure:Q", "probability that its choice is right", ".0%"),
)  # fmt: skip


def _rows_of(kind: str, curve: str = "") -> alt.Chart:
    """A chart of rows of `curve_rows` that `filled` adds; `curve` is behind their name where there are several."""
    return alt.Chart(alt.NamedData(kind + curve))


def _between(curve: str = "") -> Any:
    """The lines between groups."""
    return _rows_of("edges", curve).mark_rule(color=RULE, strokeDash=[3, 3]).encode(alt.X("edge:Q"))


def fitted_chart(curve: str = "", width: int = PLOT, title: str = "") -> Any:
    """m(x), the fit, and the selected widths."""
    widths, fits, bases, best = (_rows_of(kind, curve) for kind in ("widths", "fit", "base", "best"))
    scale = alt.Scale(domain=[MEASURED, INTERPOLATED, FIT, SELECTED, BASE], range=[BLUE, SKY, FAINT, RED, INK])
    what = alt.Color("what:N", scale=scale)
    height = alt.Y("latency:Q", title="latency, ms", scale=alt.Scale(zero=False, padding=14))
    band = widths.mark_area(color=SKY, opacity=0.25).encode(X, alt.Y("low:Q"), alt.Y2("high:Q"))
    fit = fits.mark_line(strokeDash=[5, 4], strokeWidth=1.3).encode(X, alt.Y("fit:Q"), what)
    line = widths.mark_line(color=BLUE, strokeWidth=1).encode(X, height)
    dots = widths.mark_point(filled=True, size=26, opacity=1).encode(X, height, what, tooltip=DETAILS)
    ring = bases.mark_point(size=150, strokeWidth=1.8).encode(X, height, what, tooltip=DETAILS)
    marks = best.mark_point(filled=True, shape="diamond", size=80, opacity=1).encode(X, height, what, tooltip=DETAILS)
    names = best.mark_text(color=RED, dy=-10).encode(X, height, alt.Text("width:Q"))
    chart = alt.layer(_between(curve), band, fit, line, dots, ring, marks, names).properties(width=width, height=230)
    return chart.properties(title=title) if title else chart


def _scored(height: int = 120) -> Any:
    tint = alt.Color("selected:N", scale=alt.Scale(domain=["selected", "not"], range=[RED, SKY]), legend=None)
    sides = (alt.X("left:Q"), alt.X2("right:Q"), alt.Y("score:Q", title="score s(x), ms"), alt.Y2("none:Q"))
    bars = _rows_of("widths").mark_rect().encode(*sides, tint, tooltip=DETAILS)
    numbers = _rows_of("best").mark_text(color=RED, dy=-7).encode(X, alt.Y("top:Q"), alt.Text("width:Q"))
    return alt.layer(numbers, _between(), bars).properties(width=PLOT, height=height)
