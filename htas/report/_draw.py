"""From a chart to a file or a page: Vega-Lite made by Altair, drawn by Vega without a browser, or in one.

Every picture is one specification. It is drawn here, so that a page shows it without a script, on paper and in a mail;
and it lies in the page, where Vega draws it again for the width of the window, with details under the pointer.
"""

import json
import re
from collections.abc import Iterable, Mapping
from functools import cache
from itertools import cycle
from typing import Any

import altair as alt

from htas.report._style import FAINT, INK, PAPER, RULE, SHAPES, TURNS, VARIABLES

Spec = dict[str, Any]
"""A chart as Vega-Lite has it."""

WIDTH, MARGIN = 860, 70
"""Of a picture, in pixels, where no window says how wide it is; and how much of that the axis of a panel takes."""
PLOT, PANEL = WIDTH - MARGIN, WIDTH // 3 - MARGIN
"""Width of a plot, and of one of three next to each other."""
FOUR, EIGHT = alt.Axis(tickCount=4), alt.Axis(tickCount=8)
TEXT = {"labelColor": INK, "titleColor": INK, "labelFontSize": 11, "titleFontSize": 11, "titleFontWeight": "normal"}
THEME: dict[str, Any] = {
    "background": PAPER,
    "font": "sans-serif",
    "view": {"stroke": None},
    "axis": {**TEXT, "gridColor": RULE, "domainColor": FAINT, "tickColor": FAINT, "gridWidth": 0.5},
    "legend": {
        **TEXT, "orient": "top", "title": None, "symbolSize": 70, "columns": 6, "labelLimit": 260, "columnPadding": 36,
    },
    "title": {"color": INK, "anchor": "start", "fontSize": 12},
    "text": {"color": INK, "fontSize": 11},
    "concat": {"spacing": 26},
}  # fmt: skip


def spec(chart: Any) -> Spec:
    """A chart in the report's style, as Vega-Lite; rows that several layers show are in it once."""
    content: Spec = chart.configure(**THEME).to_dict()
    return content


def filled(empty: Spec, rows: Mapping[str, Iterable[Mapping[str, Any]]]) -> Spec:
    """A chart of named rows, with the rows: for many that differ in these alone, as Altair takes a fifth of a second
    for each that it looks through."""
    return {**empty, "datasets": {name: list(map(_shortened, each)) for name, each in rows.items()}}


def plot(rows: Iterable[Mapping[str, Any]]) -> alt.Chart:
    """A chart of rows, numbers to six digits, without a mark yet; Altair does not look into a plain mapping."""
    return alt.Chart({"values": list(map(_shortened, rows))})


def _shortened(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in row.items()}


def tooltip(*fields: str | tuple[str, ...]) -> list[alt.Tooltip]:
    """What lies under the pointer: fields by themselves, or with their title, and their format after it."""
    each = []
    for field in fields:
        name, *words = (field,) if isinstance(field, str) else field
        options: dict[str, Any] = dict(zip(("title", "format"), words, strict=False))
        each.append(alt.Tooltip(name, **options))
    return each


def looks(field: str, each: Mapping[str, tuple[str, str]], **options: Any) -> tuple[alt.Color, alt.Shape]:
    """The colour and shape of the values of a field, in the order of the legend."""
    colours, shapes = ([look[part] for look in each.values()] for part in (0, 1))
    return (
        alt.Color(field, sort=None, scale=alt.Scale(domain=list(each), range=colours), **options),
        alt.Shape(field, sort=None, scale=alt.Scale(domain=list(each), range=shapes), **options),
    )


def by_turns(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """The colours and shapes in turn, for names that have none of their own."""
    return dict(zip(dict.fromkeys(names), zip(cycle(TURNS), cycle(SHAPES), strict=False), strict=False))


def svg(chart: Spec) -> bytes:
    """A chart as an SVG file; the same chart gives the same bytes."""
    import vl_convert

    text: str = vl_convert.vegalite_to_svg(chart)
    numbers: dict[str, int] = {}  # Vega counts on through a process
    text = re.sub(r"\bclip(\d+)", lambda match: f"clip{numbers.setdefault(match[1], len(numbers) + 1)}", text)
    return text.encode()


def inline(picture: bytes, name: str) -> str:
    """An SVG file made part of a page: its names unique, its colours and letters the page's."""
    if not picture:
        return ""
    text = "<svg" + picture.decode().partition("<svg")[2]
    text = re.sub(r' (?:xmlns(:\w+)?|aria-[a-z]+|role)="[^"]*"', "", text)  # the figure around it says what it shows
    text = re.sub(r"<[^>]+>", lambda tag: re.sub(r"(\.\d\d)\d+", r"\1", tag[0]), text)  # coordinates, no labels
    text = re.sub(r'(<svg [^>]*?)width="([\d.]+)" height="[\d.]+"', r'\1style="max-width: \2px"', text, count=1)
    text = re.sub(r'(\bid="|url\(#|xlink:href="#)', rf"\g<1>{name}-", text)
    text = re.sub(r'font-family="[^"]*"', 'font-family="inherit"', text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    return text


def embedded(chart: Spec) -> str:
    """A chart as JSON that may stand in a page."""
    return json.dumps(chart, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


@cache
def script() -> str:
    """Vega, and what draws the page's charts with it: nothing else is needed, and nothing is fetched."""
    import vl_convert

    colours = json.dumps({colour: f"--{variable}" for colour, variable in VARIABLES.items()})
    live = LIVE.replace("COLOURS", colours).replace("MARGIN", str(MARGIN))
    bundle: str = vl_convert.javascript_bundle(None)  # type: ignore[arg-type]
    return f"{bundle};\n(() => {{{live}}})();".replace("</script", "<\\/script")


LIVE = """
const colours = COLOURS, margin = MARGIN;

function fitted(figure) {
  const style = getComputedStyle(document.documentElement), width = Math.floor(figure.clientWidth);
  let text = figure.querySelector("script").textContent;
  for (const [colour, name] of Object.entries(colours))
    text = text.replaceAll(colour, style.getPropertyValue(name).trim());
  const spec = JSON.parse(text);
  spec.config.legend.columns = Math.max(1, Math.floor(width / 150));
  if (spec.vconcat) for (const panel of spec.vconcat) panel.width = width - margin;
  else if (spec.concat) {
    spec.columns = Math.max(1, Math.min(spec.columns, Math.floor(width / 240)));
    const room = width / spec.columns - margin;
    for (const panel of spec.concat) { panel.width = room; panel.height = Math.min(panel.height, 0.8 * room); }
  } else { spec.width = width; spec.autosize = {type: "fit-x", contains: "padding"}; }
  return spec;
}

async function draw(figure) {
  if (!figure.clientWidth || figure.drawnWidth === figure.clientWidth) return;
  figure.drawnWidth = figure.clientWidth;
  try {
    await vegaEmbed(figure.querySelector(".chart"), fitted(figure), {actions: false, renderer: "svg"});
    figure.dataset.live = "yes";
  } catch (error) { console.error(error); }
}

const figures = [...document.querySelectorAll("figure.live")];
const visible = new Set();
const watcher = new IntersectionObserver(entries => {
  for (const entry of entries) if (entry.isIntersecting) { visible.add(entry.target); draw(entry.target); }
}, {rootMargin: "400px"});
for (const figure of figures) watcher.observe(figure);
let waiting;
addEventListener("beforeprint", () => figures.forEach(draw));
addEventListener("resize", () => {
  clearTimeout(waiting);
  waiting = setTimeout(() => visible.forEach(draw), 150);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const figure of visible) { figure.drawnWidth = 0; draw(figure); }
});
"""
"""Pictures are drawn again as they come near the window: there may be a hundred."""
