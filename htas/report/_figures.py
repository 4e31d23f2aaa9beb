"""The pictures of a report, drawn by matplotlib: latency curves (Fig. 2 and 3), searches, accuracy over latency.

Colours are those of Okabe and Ito, which the colour-blind can tell apart, and no colour is alone in saying something.
"""

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import TYPE_CHECKING, Any

from htas.result import CurveRecord, EpochRecord, Report, Result, SearchRecord
from htas.text import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, RULE, PAPER = "#1f2328", "#6b7280", "#d5d9e0", "#fefefe"
BLUE, RED, GREEN, PURPLE, ORANGE, SKY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"
VARIABLES = {INK: "ink", FAINT: "faint", RULE: "rule", PAPER: "paper", BLUE: "blue", RED: "red", GREEN: "green"}
"""Colours that the page changes with its theme, by the name of its CSS variable."""

STYLE = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9.0,
    "text.parse_math": False,
    "text.color": INK,
    "axes.facecolor": PAPER,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.titlesize": 9.0,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.5,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "htas",
}

PICTURED = "accuracy-latency"
"""The name of the picture of accuracy over latency."""


def curve_name(number: int) -> str:
    """The name of the picture of the report's curve of that number, counted from 1."""
    return f"curve-{number}"


def course_name(number: int) -> str:
    """The name of the picture of the report's search of that number, counted from 1."""
    return f"search-{number}"


def pictured(report: Report) -> list[Result]:
    """The networks that are both trained and measured."""
    return [result for result in report.results if result.accuracy is not None and result.measured is not None]


def drawings(report: Report) -> dict[str, bytes]:
    """Every picture of a report as SVG, by name."""
    wanted: dict[str, Callable[[], Figure]] = {}
    if pictured(report):
        wanted[PICTURED] = lambda: accuracy_over_latency(report)
    for number, search in enumerate(report.searches, 1):
        if search.accuracy is None:  # nothing was searched
            continue
        wanted[course_name(number)] = lambda search=search: course(search)  # type: ignore[misc]
    for number, curve in enumerate(report.curves, 1):
        wanted[curve_name(number)] = lambda curve=curve: latency_curve(curve)  # type: ignore[misc]
    with style():
        return {name: saved(draw(), "svg") for name, draw in wanted.items()}


@contextmanager
def style() -> Iterator[None]:
    """Within it matplotlib draws in the report's style; a letter that its font lacks is no reason to complain."""
    from matplotlib import rc_context

    with rc_context(STYLE), warnings.catch_warnings():  # type: ignore[arg-type]
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        warnings.filterwarnings("ignore", message="constrained_layout not applied")
        yield


def saved(figure: "Figure", kind: str) -> bytes:
    """A figure as the bytes of an SVG or PNG file; the same figure gives the same bytes."""
    out = BytesIO()
    metadata: dict[str, Any] = {"Date": None} if kind == "svg" else {}
    figure.savefig(out, format=kind, dpi=160, facecolor=PAPER, metadata=metadata)
    return out.getvalue()


def inline(svg: bytes, name: str) -> str:
    """An SVG file made part of a page: its names made its own, its colours and letters the page's."""
    text = svg.decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r'(<svg [^>]*?)width="([\d.]+)pt"', r'\1style="max-width: \2pt"', text, count=1)
    text = re.sub(r'(<svg [^>]*?)height="[\d.]+pt" ', r"\1", text, count=1)
    text = re.sub(r'(\bid="|url\(#|xlink:href="#)', rf"\g<1>{name}-", text)
    text = re.sub(r"font-family: [^;\"]*", "font-family: var(--sans)", text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    return text


def accuracy_over_latency(report: Report) -> "Figure":
    """Accuracy in percent over the measured latency in milliseconds, one named mark for each network."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.6, 4.8), layout="constrained")
    axes = figure.add_subplot()
    marks = []
    for result in pictured(report):
        assert result.measured is not None and result.accuracy is not None
        x, y = result.measured.estimate * 1e3, result.accuracy * 100
        reach = 2e3 * result.measured.error
        colour, marker = _look(result)
        axes.plot([x - reach, x + reach], [y, y], color=colour, linewidth=1.2, alpha=0.6)
        axes.plot(
            [x], [y], marker, color=colour, markersize=9 if result.name == "hardware" else 7, markeredgecolor=PAPER
        )
        marks.append((x, y, result.name, colour))
    axes.set_xlabel("measured latency, ms per batch")
    axes.set_ylabel("test accuracy, %")
    axes.margins(0.12, 0.14)
    _label(figure, axes, marks)
    return figure


def _look(result: Result) -> tuple[str, str]:
    """Colour and marker: by what the network is, the searched ones each their own."""
    known = {"base": (INK, "s"), "hardware": (RED, "D"), "tas": (BLUE, "^"), "grid": (GREEN, "v")}
    if result.name in known:
        return known[result.name]
    return {"uniform": (PURPLE, "P"), "plain": (ORANGE, "o")}.get(result.strategy, (SKY, "o"))


def arms_over_latency(arms: Sequence[tuple[str, bool, Sequence[tuple[float, float]]]], against: str) -> "Figure":
    """Accuracy over measured latency of arms: name, whether it was searched, and (seconds, accuracy) of each seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.6, 5.4), layout="constrained")
    axes = figure.add_subplot()
    marks = []
    for name, searched, trainings in arms:
        colour = RED if name == against else BLUE if searched else ORANGE
        marker = "D" if searched else "o"
        latencies, accuracies = zip(*((1e3 * seconds, 100 * share) for seconds, share in trainings), strict=True)
        x, y = sum(latencies) / len(latencies), sum(accuracies) / len(accuracies)
        axes.plot(latencies, accuracies, marker, color=colour, markersize=3, alpha=0.45, linewidth=0)
        axes.plot([x], [y], marker, color=colour, markersize=8, markeredgecolor=PAPER)
        marks.append((x, y, name, colour))
    axes.set_xlabel("measured latency, ms per batch")
    axes.set_ylabel("test accuracy, %")
    axes.margins(0.08, 0.1)
    _beside(axes, marks, against)
    return figure


def _beside(axes: "Axes", marks: list[tuple[float, float, str, str]], first: str) -> None:
    """Name the marks in a column at the right, in the order of their heights, each with a line to it; `first` bold."""
    ordered = sorted(marks, key=lambda mark: mark[1], reverse=True)
    for number, (x, y, name, colour) in enumerate(ordered):
        place = (1.03, 1 - (number + 0.5) / max(len(ordered), 8))
        strength = "bold" if name == first else "normal"
        line = {"arrowstyle": "-", "color": colour, "linewidth": 0.5, "alpha": 0.6, "shrinkB": 4}
        axes.annotate(
            name, (x, y), place, textcoords="axes fraction", va="center", weight=strength, arrowprops=line,
            color=colour if name == first else INK,
        )  # fmt: skip


def _label(figure: "Figure", axes: "Axes", marks: list[tuple[float, float, str, str]]) -> None:
    """Name the marks, each at the first place around it that covers no mark and no other name."""
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()
    spots = [axes.transData.transform((x, y)) for x, y, _, _ in marks]
    taken = [Bbox.from_bounds(x - 7, y - 7, 14, 14) for x, y in spots]
    taken += [line.get_window_extent().padded(2) for line in axes.lines]
    frame = axes.get_window_extent()
    for x, y, name, colour in marks:
        note = None
        for dx, dy, across, up in _PLACES:
            if note is not None:
                note.remove()
            strength = "bold" if name == "hardware" else "normal"
            note = axes.annotate(name, (x, y), (dx, dy), textcoords="offset points", ha=across, va=up, weight=strength)
            note.set_color(colour if colour in (RED, INK) else INK)
            note.set_in_layout(False)
            box = note.get_window_extent()
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            if inside and not any(box.overlaps(other) for other in taken):
                break
        assert note is not None
        taken.append(note.get_window_extent())


_PLACES = [
    (10, 0, "left", "center"),
    (-10, 0, "right", "center"),
    (0, 8, "center", "bottom"),
    (0, -8, "center", "top"),
    (7, 9, "left", "bottom"),
    (7, -9, "left", "top"),
    (-7, 9, "right", "bottom"),
    (-7, -9, "right", "top"),
    (0, 20, "center", "bottom"),
    (0, -20, "center", "top"),
]


def latency_curve(curve: CurveRecord) -> "Figure":
    """m(x), its fit and the chosen widths (the paper's Fig. 2) over the score of every width (Fig. 3), in ms."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.6, 4.8), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    chosen = curve.choices.get("hardware", ())
    latency = dict(zip(curve.widths, (1e3 * second for second in curve.latency), strict=True))
    scores = dict(zip(curve.widths, (1e3 * second for second in curve.scores), strict=True))
    for axes in (above, below):
        axes.grid(axis="x", visible=False)
        for _, last in curve.groups[:-1]:
            axes.axvline(last + 0.5, color=RULE, linewidth=0.8, linestyle=(0, (3, 3)), zorder=0)
    _curve_above(above, curve, latency, chosen)
    _scores_below(below, scores, chosen)
    below.set_xlabel("width, output channels")
    below.set_xlim(min(curve.widths) - 1, max(curve.widths) + 1)
    return figure


def _curve_above(axes: "Axes", curve: CurveRecord, latency: dict[int, float], chosen: tuple[int, ...]) -> None:
    fit = [1e3 * curve.fit(width) for width in curve.widths]
    axes.plot(curve.widths, fit, color=FAINT, linewidth=1.1, linestyle="--", label="fit f(x)")
    axes.plot(list(latency), list(latency.values()), "-", color=BLUE, linewidth=1)
    for label, marker, filled in (("measured m(x)", ".", "full"), ("interpolated", "o", "none")):
        shown = [width for width in latency if (width in curve.interpolated) == (filled == "none")]
        if shown:
            size = 5.0 if filled == "full" else 2.2
            heights = [latency[width] for width in shown]
            axes.plot(shown, heights, marker, color=BLUE, markersize=size, fillstyle=filled, linewidth=0, label=label)
    if curve.errors:
        low, high = (
            [second + sign * 2e3 * error for second, error in zip(latency.values(), curve.errors, strict=True)]
            for sign in (-1, 1)
        )
        axes.fill_between(list(latency), low, high, color=SKY, alpha=0.3, linewidth=0, label="2 standard errors")
    known = [width for width in chosen if width in latency]
    if known:
        heights = [latency[width] for width in known]
        axes.plot(known, heights, "D", color=RED, markersize=5, markeredgecolor=PAPER, label="chosen, hardware")
        _numbers(axes, dict(zip(known, heights, strict=True)))
    if curve.base in latency:
        axes.plot(
            [curve.base], [latency[curve.base]], "o", color=INK, markersize=9, fillstyle="none", label="base width"
        )
    axes.set_ylabel("latency, ms")
    axes.margins(y=0.14)
    axes.legend(
        loc="upper left", ncols=6, bbox_to_anchor=(0, 1.13), borderaxespad=0, handlelength=1.6, columnspacing=1.4
    )


def _scores_below(axes: "Axes", scores: dict[int, float], chosen: tuple[int, ...]) -> None:
    colours = [RED if width in chosen else SKY for width in scores]
    axes.bar(list(scores), list(scores.values()), width=0.8, color=colours)
    axes.axhline(0, color=FAINT, linewidth=0.8)
    _numbers(axes, {width: max(scores[width], 0.0) for width in chosen if width in scores})
    axes.set_ylabel("score s(x), ms")
    axes.margins(y=0.2)


def _numbers(axes: "Axes", heights: dict[int, float]) -> None:
    for width, height in heights.items():
        number = axes.annotate(
            str(width), (width, height), (0, 5), textcoords="offset points", ha="center", va="bottom"
        )
        number.set(fontsize=8, color=RED, bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 0.6})


def course(search: SearchRecord) -> "Figure":
    """Losses, accuracy, costs, temperature and top probability by epoch, and the arch found among its rivals."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(8.6, 5.0), layout=ConstrainedLayoutEngine(h_pad=0.12, w_pad=0.08))
    panels = figure.subplots(2, 3).flatten()
    lines: list[tuple[str, dict[str, Callable[[EpochRecord], float | None]]]] = [
        ("loss", {"training": lambda e: e.train_loss, "validation": lambda e: e.validation_loss}),
        (
            "cost, share of the base's",
            {"expected": lambda e: e.expected_cost, "most probable": lambda e: e.argmax_cost},
        ),
        ("accuracy of mixtures, %", {"validation": lambda e: _hundredfold(e.validation_accuracy)}),
        ("temperature", {"temperature": lambda e: e.temperature}),
        ("top probability, median of sites", {"top": lambda e: e.top_probability}),
    ]
    for axes, (title, figures) in zip(panels, lines, strict=False):
        _lines(axes, search.epochs, title, figures)
    panels[4].axhline(0.6, color=FAINT, linewidth=0.9, linestyle="--")
    panels[4].annotate(
        "0.6", (0, 0.6), (3, 2), textcoords="offset points", xycoords=("axes fraction", "data"), color=FAINT
    )
    panels[4].set_ylim(0, 1.03)
    for axes in panels[3:5]:
        axes.set_xlabel("epoch")
    _rivals(panels[5], search)
    return figure


def _lines(
    axes: "Axes", epochs: tuple[EpochRecord, ...], title: str, figures: dict[str, Callable[[EpochRecord], float | None]]
) -> None:
    """What the strategy has not is left out; a panel without any of its figures is left empty, and says so."""
    from matplotlib.ticker import MaxNLocator

    looks = ((BLUE, "-"), (RED, "--"))
    shown = 0
    for (name, read), (colour, line) in zip(figures.items(), looks, strict=False):
        there = [(e.epoch, value) for e in epochs if (value := read(e)) is not None]
        points = "." if len(epochs) < 40 else ""
        if there:
            axes.plot(*zip(*there, strict=True), line, marker=points, color=colour, label=name)
            shown += 1
    axes.set_title(title)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if epochs and not shown:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "not of this strategy", transform=axes.transAxes, ha="center", color=FAINT)
    if shown > 1:
        axes.legend(fontsize=8, handlelength=1.8)


def _hundredfold(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _rivals(axes: "Axes", search: SearchRecord) -> None:
    """Rivals as dots, accuracy across and cost up; the arch found is the diamond at cost 1."""
    accuracy = search.accuracy or 0.0
    axes.plot([100 * rival for rival in search.rivals], search.rival_costs, "o", color=SKY, markersize=5, alpha=0.8)
    axes.axvline(100 * accuracy, color=RED, linewidth=0.8, linestyle=":")
    axes.plot([100 * accuracy], [1.0], "D", color=RED, markersize=7, markeredgecolor=PAPER)
    beaten = f"better than {search.beaten} of {len(search.rivals)} random"
    axes.set_title(beaten if search.rivals else "no random arch beside it")
    axes.set_xlabel("validation accuracy, %")
    axes.set_ylabel("cost, found = 1")
    axes.margins(0.1, 0.3)
    axes.annotate(
        f"found {percent(accuracy, 1)}",
        (100 * accuracy, 1),
        (-4, -3),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        ha="right",
        va="top",
        color=RED,
        fontsize=8,
    )
