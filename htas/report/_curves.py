"""Latency curves: the measured latency of every width, its fit and score, and the selected widths (Fig. 2 and 3)."""

from functools import cache
from typing import Any

import altair as alt

from htas.report._draw import BLUE, FAINT, INK, PLOT, RED, RULE, SKY, Spec, filled, shape
from htas.spaces.curve import CurveRecord

MEASURED, INTERPOLATED, SELECTED = "measured m(x)", "interpolated", "selected, measured widths"
BASE, FIT = "base width", "fit f(x)"


def latency_curve(curve: CurveRecord) -> Spec:
    """m(x), its fit and the selected widths (the paper's Fig. 2) over the score of every width (Fig. 3), in ms."""
    return filled(_curve_shape(), _curve_rows(curve))


def fitted_curve(curve: CurveRecord) -> Spec:
    """m(x) and its fit alone: the paper's Fig. 2."""
    return filled(shape(_fitted()), _curve_rows(curve))


def scored_widths(curve: CurveRecord) -> Spec:
    """The score of every width and the selected ones alone: the paper's Fig. 3."""
    return filled(shape(_scored(height=190)), _curve_rows(curve))


@cache
def _curve_shape() -> Spec:
    return shape(alt.vconcat(_fitted(), _scored()).resolve_scale(color="independent", x="shared"))


def _curve_rows(curve: CurveRecord) -> dict[str, list[dict[str, Any]]]:
    """Every width; those of the fit, the base width and the choices, as the legend calls them; the ends of groups."""
    selected = set(curve.choices.get("hardware", ()))
    errors = curve.errors or (0.0,) * len(curve.widths)
    certain = curve.certain or (None,) * len(curve.groups)
    rows: list[dict[str, Any]] = []
    for width, seconds, error, score in zip(curve.widths, curve.latency, errors, curve.scores, strict=True):
        group = next((n for n, (first, last) in enumerate(curve.groups) if first <= width <= last), 0)
        rows.append({
            "width": width, "latency": 1e3 * seconds, "fit": 1e3 * curve.fit(width), "score": 1e3 * score,
            "top": max(1e3 * score, 0.0), "none": 0, "left": width - 0.35, "right": width + 0.35,
            "low": 1e3 * (seconds - 2 * error), "high": 1e3 * (seconds + 2 * error), "group": group + 1,
            "sure": certain[group], "selected": "selected" if width in selected else "not",
            "what": INTERPOLATED if width in curve.interpolated else MEASURED,
        })  # fmt: skip
    return {
        "widths": rows,
        "fit": [{"width": row["width"], "fit": row["fit"], "what": FIT} for row in rows],
        "base": [{**row, "what": BASE} for row in rows if row["width"] == curve.base],
        "best": [{**row, "what": SELECTED} for row in rows if row["width"] in selected],
        "edges": [{"edge": last + 0.5} for _, last in curve.groups[:-1]],
    }


def _width_axis() -> tuple[alt.X, list[alt.Tooltip], alt.Chart]:
    """The axis of widths, the details of one, and the lines between groups."""
    x = alt.X(
        "width:Q", title="width, output channels", scale=alt.Scale(nice=False, padding=8), axis=alt.Axis(grid=False)
    )
    tooltip = [
        alt.Tooltip("width:Q"),
        alt.Tooltip("latency:Q", title="measured, ms", format=".5f"),
        alt.Tooltip("fit:Q", title="fit, ms", format=".5f"),
        alt.Tooltip("score:Q", title="score, ms", format=".5f"),
        alt.Tooltip("group:Q"),
        alt.Tooltip("sure:Q", title="probability that its choice is right", format=".0%"),
    ]
    edges = alt.Chart(alt.NamedData("edges")).mark_rule(color=RULE, strokeDash=[3, 3]).encode(alt.X("edge:Q"))
    return x, tooltip, edges


def _fitted() -> Any:
    x, tooltip, edges = _width_axis()
    scale = alt.Scale(domain=[MEASURED, INTERPOLATED, FIT, SELECTED, BASE], range=[BLUE, SKY, FAINT, RED, INK])
    what = alt.Color("what:N", scale=scale)
    height = alt.Y("latency:Q", title="latency, ms", scale=alt.Scale(zero=False, padding=14))
    whole = alt.Chart(alt.NamedData("widths"))
    band = whole.mark_area(color=SKY, opacity=0.25).encode(x, alt.Y("low:Q"), alt.Y2("high:Q"))
    fit = alt.Chart(alt.NamedData("fit")).mark_line(strokeDash=[5, 4], strokeWidth=1.3).encode(x, alt.Y("fit:Q"), what)
    line = whole.mark_line(color=BLUE, strokeWidth=1).encode(x, height)
    dots = whole.mark_point(filled=True, size=26, opacity=1).encode(x, height, what, tooltip=tooltip)
    base = alt.Chart(alt.NamedData("base"))
    ring = base.mark_point(size=150, strokeWidth=1.8).encode(x, height, what, tooltip=tooltip)
    best = alt.Chart(alt.NamedData("best"))
    marks = best.mark_point(filled=True, shape="diamond", size=80, opacity=1).encode(x, height, what, tooltip=tooltip)
    names = best.mark_text(color=RED, dy=-10).encode(x, height, alt.Text("width:Q"))
    return alt.layer(edges, band, fit, line, dots, ring, marks, names).properties(width=PLOT, height=230)


def _scored(height: int = 120) -> Any:
    x, tooltip, edges = _width_axis()
    whole, best = alt.Chart(alt.NamedData("widths")), alt.Chart(alt.NamedData("best"))
    tint = alt.Color("selected:N", scale=alt.Scale(domain=["selected", "not"], range=[RED, SKY]), legend=None)
    sides = (alt.X("left:Q"), alt.X2("right:Q"), alt.Y("score:Q", title="score s(x), ms"), alt.Y2("none:Q"))
    bars = whole.mark_rect().encode(*sides, tint, tooltip=tooltip)
    numbers = best.mark_text(color=RED, dy=-7).encode(x, alt.Y("top:Q"), alt.Text("width:Q"))
    return alt.layer(numbers, edges, bars).properties(width=PLOT, height=height)
