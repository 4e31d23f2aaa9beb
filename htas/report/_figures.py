"""The pictures of a report: accuracy over latency, archs, predictions."""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from htas.graph.arch import Arch
from htas.report._compare import base_of
from htas.report._course import course
from htas.report._curves import latency_curve
from htas.report._draw import BLUE, EIGHT, FAINT, GREEN, INK, ORANGE, PLOT, PURPLE, RED, RULE, SKY, Spec, data, spec
from htas.report._names import is_searched, network_names, row_name
from htas.report.result import Report, Result, front

PICTURED = "accuracy-latency"
"""The name of the picture of accuracy over latency."""
PREDICTED = "predictions"
"""The name of the picture of predicted against measured latency."""
BANDS = (0.05, 0.1)
"""Relative errors that lie between lines in the picture of predictions."""
NAMED = 24
"""The most sites whose names fit below the bars of an arch."""

LATENCY = alt.X("x:Q", title="measured latency, ms per batch", scale=alt.Scale(zero=False, padding=24), axis=EIGHT)
ACCURACY = alt.Y("y:Q", title="test accuracy, %", scale=alt.Scale(zero=False, padding=24))
FIGURES = [alt.Tooltip("x:Q", title="latency, ms", format=".3f"), alt.Tooltip("y:Q", title="accuracy, %", format=".2f")]
"""What lies under the pointer in pictures of accuracy over latency."""
CURVE, COURSE, ARCH = "curve-{}", "search-{}", "arch-{}"
"""Names of the pictures of a report's curves, searches and searched networks, by their numbers, counted from 1."""


def searched(report: Report) -> list[Result]:
    """The networks that a search produced, whose sites are the base network's."""
    base = base_of(report)
    return [
        result
        for result in report.results
        if is_searched(result) and base and result.arch.widths.keys() == base.arch.widths.keys()
    ]


def pictured(report: Report) -> list[Result]:
    """The networks that are both trained and measured."""
    return [result for result in report.results if result.accuracy is not None and result.measured is not None]


def drawings(report: Report) -> dict[str, Spec]:
    """Every picture of a report, by name."""
    specs: dict[str, Spec] = {}
    if pictured(report):
        specs[PICTURED] = accuracy_over_latency(report)
    base = base_of(report)
    for number, result in enumerate(searched(report) if base else (), 1):
        assert base is not None
        specs[ARCH.format(number)] = archs(result.arch, base.arch, report.blocks)
    if report.predictions:
        specs[PREDICTED] = predictions(report)
    for number, search in enumerate(report.searches, 1):
        if search.accuracy is not None:  # else nothing was searched
            specs[COURSE.format(number)] = course(search, base)
    for number, curve in enumerate(report.curves, 1):
        specs[CURVE.format(number)] = latency_curve(curve)
    return specs


def accuracy_over_latency(report: Report) -> Spec:
    """Accuracy in percent over the measured latency in milliseconds, and the front of those that none beats."""
    rows: list[dict[str, Any]] = []
    names = network_names(report)
    results = sorted(pictured(report), key=lambda result: result.accuracy or 0.0, reverse=True)
    for result in results:
        assert result.measured is not None and result.accuracy is not None
        x, reach = 1e3 * result.measured.estimate, 2e3 * result.measured.error
        rows.append({
            "network": row_name(names[result.name]), "x": x, "low": x - reach, "high": x + reach,
            "y": 100 * result.accuracy,
            "macs": result.macs / 1e6, "params": result.params / 1e6,
            "predicted": None if result.predicted is None else 1e3 * result.predicted,
        })  # fmt: skip
    labels = [row["network"] for row in rows]
    looks = [_look(result) for result in results]
    ahead = [rows[number] for number in front([(row["x"], row["y"]) for row in rows])]
    tooltip = [
        alt.Tooltip("network:N"),
        *FIGURES,
        alt.Tooltip("predicted:Q", title="predicted, ms", format=".3f"),
        alt.Tooltip("macs:Q", title="multiply-adds, M", format=".2f"),
        alt.Tooltip("params:Q", title="parameters, M", format=".3f"),
    ]
    line = alt.Chart(data(ahead)).mark_line(interpolate="step-after", color=FAINT, strokeDash=[4, 3])
    legend = alt.Legend(symbolSize=90)
    colour = alt.Color(
        "network:N", sort=None, scale=alt.Scale(domain=labels, range=[look[0] for look in looks]), legend=legend
    )
    shape = alt.Shape(
        "network:N", sort=None, scale=alt.Scale(domain=labels, range=[look[1] for look in looks]), legend=legend
    )
    reach = alt.Chart(data(rows)).mark_rule(strokeWidth=1.4, opacity=0.6).encode(
        alt.X("low:Q"), alt.X2("high:Q"), ACCURACY, colour
    )  # fmt: skip
    marks = alt.Chart(data(rows)).mark_point(filled=True, size=110, opacity=1)
    marks = marks.encode(LATENCY, ACCURACY, colour, shape, tooltip=tooltip)
    return spec(alt.layer(line.encode(LATENCY, ACCURACY), reach, marks).properties(width=PLOT, height=380))


def arms_over_latency(arms: Sequence[tuple[str, bool, Sequence[tuple[float, float]]]], against: str) -> Spec:
    """Accuracy over measured latency of arms: name, whether it was searched, and (seconds, accuracy) of each seed."""
    rows: list[dict[str, Any]] = []
    every: list[dict[str, Any]] = []
    for name, searched, trainings in arms:
        points: list[dict[str, Any]] = [
            {"arm": name, "x": 1e3 * seconds, "y": 100 * share} for seconds, share in trainings
        ]
        kind = against if name == against else "searched" if searched else "not searched"
        every += [{**row, "what": kind} for row in points]
        means = {axis: sum(row[axis] for row in points) / len(points) for axis in "xy"}
        rows.append({"arm": name, "what": kind, "seeds": len(points), **means})
    domain = [against, "searched", "not searched"]
    colour = alt.Color("what:N", scale=alt.Scale(domain=domain, range=[RED, BLUE, ORANGE]))
    shape = alt.Shape("what:N", scale=alt.Scale(domain=domain, range=["diamond", "diamond", "circle"]))
    place = (LATENCY, ACCURACY, colour, shape)
    tooltip = [alt.Tooltip("arm:N"), *FIGURES, alt.Tooltip("seeds:Q")]
    dots = alt.Chart(data(every)).mark_point(filled=True, size=14, opacity=0.5).encode(*place, tooltip=tooltip[:-1])
    whole = alt.Chart(data(rows))
    marks = whole.mark_point(filled=True, size=110, opacity=1).encode(*place, tooltip=tooltip)
    names = whole.mark_text(align="left", dx=9, fontSize=10).encode(LATENCY, ACCURACY, alt.Text("arm:N"))
    return spec(alt.layer(dots, marks, names).properties(width=PLOT, height=440))


SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left")
KINDS = {
    "base": "base network", "hardware": "searched, measured widths", "tas": "searched, TAS's widths",
    "grid": "searched, evenly spaced widths", "uniform": "all layers narrowed alike", "plain": "plain member",
}  # fmt: skip
"""What the legend calls a network, by its name or else its strategy."""
COLOURS = (BLUE, RED, GREEN, ORANGE, PURPLE, SKY, INK)


def runs_over_latency(runs: Mapping[str, Report]) -> Spec:
    """Accuracy over measured latency of the networks of several runs: a colour for each run, a shape for each kind."""
    rows: list[dict[str, Any]] = []
    for run, report in runs.items():
        network_name = network_names(report)
        for result in pictured(report):
            assert result.measured is not None and result.accuracy is not None
            kind = KINDS.get(result.name, KINDS.get(result.strategy, result.strategy))
            rows.append({
                "run": run, "network": row_name(network_name[result.name]), "kind": kind,
                "x": 1e3 * result.measured.estimate, "y": 100 * result.accuracy,
            })  # fmt: skip
    kinds: list[str] = list(dict.fromkeys(row["kind"] for row in rows))
    names = list(runs)
    colours = [COLOURS[number % len(COLOURS)] for number in range(len(names))]
    shapes = [SHAPES[number % len(SHAPES)] for number in range(len(kinds))]
    marks = alt.Chart(data(rows)).mark_point(filled=True, size=110, opacity=0.9).encode(
        LATENCY,
        ACCURACY,
        alt.Color("run:N", sort=None, scale=alt.Scale(domain=names, range=colours)),
        alt.Shape("kind:N", sort=None, scale=alt.Scale(domain=kinds, range=shapes)),
        tooltip=[alt.Tooltip("network:N"), alt.Tooltip("run:N"), *FIGURES],
    )  # fmt: skip
    return spec(alt.layer(marks).properties(width=PLOT, height=380))


LOOKS = {
    **{"base": (INK, "square"), "hardware": (RED, "diamond")},
    **{"tas": (BLUE, "triangle-up"), "grid": (GREEN, "triangle-down")},
}
STRATEGY_LOOKS = {"uniform": (PURPLE, "cross"), "plain": (ORANGE, "circle")}


def _look(result: Result) -> tuple[str, str]:
    """Colour and shape: by what the network is, the searched ones each their own."""
    return LOOKS.get(result.name) or STRATEGY_LOOKS.get(result.strategy, (SKY, "circle"))


SEARCHED, DROPPED, BASE = "searched network", "of a dropped block", "base network"


def archs(arch: Arch, base: Arch, blocks: Mapping[str, Sequence[str]]) -> Spec:
    """The width of every site as a bar, in the network's order, and the base's; dropped blocks are hollow."""
    dropped_blocks = [name for site, names in blocks.items() for name in names[arch.depths.get(site, len(names)) :]]
    rows: list[dict[str, Any]] = []
    for number, (site, width) in enumerate(arch.widths.items()):
        dropped = any(site == block or site.startswith(f"{block}.") for block in dropped_blocks)
        rows.append({
            "number": number, "site": site, "base": base.widths[site], "width": 0 if dropped else width,
            "what": DROPPED if dropped else SEARCHED, "says": "dropped" if dropped else str(width),
            "stage": next((block for block in blocks if site.startswith(f"{block}.")), ""),
        })  # fmt: skip
    axis = alt.Axis(labelAngle=-50, labelLimit=130) if len(rows) <= NAMED else alt.Axis(labels=False, ticks=False)
    x = alt.X("site:N", sort=None, title=None if len(rows) <= NAMED else "width sites, in order", axis=axis)
    tooltip = [
        alt.Tooltip("site:N"),
        alt.Tooltip("says:N", title="width"),
        alt.Tooltip("base:Q", title="width of the base"),
        alt.Tooltip("stage:N"),
    ]
    scale = alt.Scale(domain=[SEARCHED, BASE, DROPPED], range=[RED, INK, FAINT])
    colour = alt.Color("what:N", scale=scale)
    bars = alt.Chart(data(rows)).mark_bar()
    bars = bars.encode(x, alt.Y("width:Q", title="width, channels"), colour, tooltip=tooltip)
    dropped_rows = [row for row in rows if row["what"] == DROPPED]
    hollow = alt.Chart(data(dropped_rows)).mark_bar(filled=False, strokeDash=[2, 2])
    hollow = hollow.encode(x, alt.Y("base:Q"), colour, tooltip=tooltip)
    thin = 0.012 * max((row["base"] for row in rows), default=1)
    levels = alt.Chart(data({**row, "what": BASE, "under": row["base"] - thin} for row in rows))
    ticks = levels.mark_bar().encode(x, alt.Y("base:Q"), alt.Y2("under:Q"), colour, tooltip=tooltip)
    layers = [bars, *([hollow] if dropped_rows else []), ticks]
    return spec(alt.layer(*layers).properties(width=PLOT, height=210))


def predictions(report: Report) -> Spec:
    """Predicted against measured latency of whole networks, with the bands of 5 and 10 %."""
    calibration, rest = f"of the calibration, outside its fit ({len(report.predictions)})", "of this report"
    names = network_names(report)
    rows: list[dict[str, Any]] = [
        {"network": calibration, "what": calibration, "x": 1e3 * each.measured, "y": 1e3 * each.predicted}
        for each in report.predictions
    ]
    rows += [
        {"network": row_name(names[result.name]), "what": rest, "x": 1e3 * result.measured.estimate,
         "y": 1e3 * result.predicted}
        for result in report.results if result.measured is not None and result.predicted
    ]  # fmt: skip
    for row in rows:
        row["off"] = row["y"] / row["x"] - 1
    every = [row[axis] for row in rows for axis in "xy"]
    ends = [0.9 * min(every), 1.1 * max(every)]
    scale = alt.Scale(type="log", domain=ends, nice=False)
    x = alt.X("x:Q", title="measured, ms per batch", scale=scale)
    y = alt.Y("y:Q", title="predicted, ms per batch", scale=scale)
    colour = alt.Color("what:N", sort=None, scale=alt.Scale(domain=[calibration, rest], range=[SKY, RED]))
    shape = alt.Shape("what:N", sort=None, scale=alt.Scale(domain=[calibration, rest], range=["circle", "diamond"]))
    bands = [
        alt.Chart(data({"x": end, "y": end * (1 + sign * band)} for end in ends))
        .mark_line(color=GREEN, strokeWidth=1, strokeDash=dash, clip=True)
        .encode(x, y)
        for band, dash in zip(BANDS, ([1, 0], [5, 4]), strict=True)
        for sign in (-1, 1)
    ]
    line = alt.Chart(data({"x": end, "y": end} for end in ends)).mark_line(color=FAINT, strokeWidth=1).encode(x, y)
    marks = alt.Chart(data(rows)).mark_point(filled=True, size=55, opacity=0.9).encode(
        x, y, colour, shape,
        tooltip=[
            alt.Tooltip("network:N"),
            alt.Tooltip("x:Q", title="measured, ms", format=".4f"),
            alt.Tooltip("y:Q", title="predicted, ms", format=".4f"),
            alt.Tooltip("off:Q", title="off by", format="+.1%"),
        ],
    )  # fmt: skip
    return spec(alt.layer(*bands, line, marks).properties(width=PLOT, height=360))


def gained(points: Sequence[Mapping[str, Any]]) -> Spec:
    """Speed gained over multiply-adds saved, a panel for each runtime: `network`, `kind`, `runtime`, `saved` (a
    share) and `speed` (times the base network's) of each point, and the line of what the multiply-adds promise.
    """
    rows = [{**point, "saved": 100 * point["saved"]} for point in points]
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    runtimes = list(dict.fromkeys(row["runtime"] for row in rows))
    most = max([row["saved"] for row in rows], default=0.0)
    promised = [{"saved": share, "speed": 100 / (100 - share)} for share in range(0, min(95, int(most) + 3))]
    x = alt.X("saved:Q", title="multiply-adds saved, %", scale=alt.Scale(padding=10, nice=False), axis=EIGHT)
    y = alt.Y("speed:Q", title="times as fast as the base network, measured", scale=alt.Scale(zero=False, padding=10))
    colours = [COLOURS[number % len(COLOURS)] for number in range(len(kinds))]
    shapes = [SHAPES[number % len(SHAPES)] for number in range(len(kinds))]
    tooltip = [
        alt.Tooltip("network:N"),
        alt.Tooltip("runtime:N"),
        alt.Tooltip("saved:Q", title="multiply-adds saved, %", format=".1f"),
        alt.Tooltip("speed:Q", title="times as fast", format=".3f"),
        alt.Tooltip("macs:Q", title="multiply-adds, M", format=".2f"),
    ]
    panels = []
    for runtime in runtimes:
        points_here = alt.Chart(data(row for row in rows if row["runtime"] == runtime))
        line = alt.Chart(data(promised)).mark_line(color=FAINT, strokeDash=[5, 4]).encode(x, y)
        even = alt.Chart(data([{"speed": 1.0}])).mark_rule(color=RULE).encode(y)
        marks = points_here.mark_point(filled=True, size=90, opacity=0.9).encode(
            x, y,
            alt.Color("kind:N", sort=None, scale=alt.Scale(domain=kinds, range=colours)),
            alt.Shape("kind:N", sort=None, scale=alt.Scale(domain=kinds, range=shapes)),
            tooltip=tooltip,
        )  # fmt: skip
        panels.append(alt.layer(line, even, marks).properties(width=PLOT, height=240, title=runtime))
    return spec(alt.vconcat(*panels))
