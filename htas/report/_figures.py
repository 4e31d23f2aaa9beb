"""The pictures of networks: accuracy over latency, archs, predictions, speed over multiply-adds."""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from htas.graph.arch import Arch
from htas.report._blocks import Block, Picture, Text
from htas.report._draw import EIGHT, PLOT, Spec, by_turns, looks, plot, spec, tooltip
from htas.report._names import row_names
from htas.report._style import BLUE, FAINT, GREEN, INK, ORANGE, PURPLE, RED, SKY
from htas.report.result import Report, Result, front
from htas.text import listing

BANDS = (0.05, 0.1)
"""Relative errors that lie between lines in the picture of predictions."""
NAMED = 24
"""The most sites whose names fit below the bars of an arch."""

LATENCY = alt.X("x:Q", title="measured latency, ms per batch", scale=alt.Scale(zero=False, padding=24), axis=EIGHT)
ACCURACY = alt.Y("y:Q", title="test accuracy, %", scale=alt.Scale(zero=False, padding=24))
FIGURES = (("x:Q", "latency, ms", ".3f"), ("y:Q", "accuracy, %", ".2f"))
"""What lies under the pointer in pictures of accuracy over latency."""
LOOKS = {
    **{"base": (INK, "square"), "hardware": (RED, "diamond")},
    **{"tas": (BLUE, "triangle-up"), "grid": (GREEN, "triangle-down")},
    **{"uniform": (PURPLE, "cross"), "plain": (ORANGE, "circle")},
}
OTHER = (SKY, "circle")
"""Colour and shape of a network, by its name or else its strategy: the searched ones each their own."""
KINDS = {
    "base": "base network", "hardware": "searched, measured widths", "tas": "searched, TAS's widths",
    "grid": "searched, evenly spaced widths", "uniform": "all layers narrowed alike", "plain": "plain member",
}  # fmt: skip
"""What the legend calls a network, by its name or else its strategy."""


def pictured(report: Report) -> list[Result]:
    """The networks that are both trained and measured."""
    return [result for result in report.results if result.accuracy is not None and result.measured is not None]


def _place(result: Result) -> dict[str, Any]:
    """Where a network lies: milliseconds across, percent up."""
    assert result.measured is not None and result.accuracy is not None
    return {"x": 1e3 * result.measured.estimate, "y": 100 * result.accuracy}


def accuracy_over_latency(report: Report) -> Block:
    """Accuracy in percent over the measured latency in milliseconds, and the front of those that none beats."""
    names = row_names(report)
    results = sorted(pictured(report), key=lambda result: result.accuracy or 0.0, reverse=True)
    if not results:
        return Text("No network is both trained and measured yet, so there is no picture of accuracy over latency.")
    rows: list[dict[str, Any]] = []
    for result in results:
        place, reach = _place(result), 2e3 * (result.measured.error if result.measured else 0.0)
        rows.append({
            "network": names[result.name], **place, "low": place["x"] - reach, "high": place["x"] + reach,
            "macs": result.macs / 1e6, "params": result.params / 1e6,
            "predicted": None if result.predicted is None else 1e3 * result.predicted,
        })  # fmt: skip
    each = {names[result.name]: LOOKS.get(result.name) or LOOKS.get(result.strategy, OTHER) for result in results}
    colour, shape = looks("network:N", each, legend=alt.Legend(symbolSize=90))
    counts = (("macs:Q", "multiply-adds, M", ".2f"), ("params:Q", "parameters, M", ".3f"))
    details = tooltip("network:N", *FIGURES, ("predicted:Q", "predicted, ms", ".3f"), *counts)
    ahead = [rows[number] for number in front([(row["x"], row["y"]) for row in rows])]
    line = plot(ahead).mark_line(interpolate="step-after", color=FAINT, strokeDash=[4, 3]).encode(LATENCY, ACCURACY)
    spans = plot(rows).mark_rule(strokeWidth=1.4, opacity=0.6)
    spans = spans.encode(alt.X("low:Q"), alt.X2("high:Q"), ACCURACY, colour)
    marks = plot(rows).mark_point(filled=True, size=110, opacity=1)
    marks = marks.encode(LATENCY, ACCURACY, colour, shape, tooltip=details)
    chart = spec(alt.layer(line, spans, marks).properties(width=PLOT, height=380))
    missing = [names[result.name] for result in report.results if result not in results]
    left_out = f" Not trained or not measured, so not shown: {listing(missing)}." if missing else ""
    shows = f"Accuracy over measured latency of {listing(names[each.name] for each in pictured(report))}"
    caption = f"Accuracy over measured latency. Lines span two standard errors to either side.{left_out}"
    return Picture("accuracy-latency", chart, shows, caption)


def arms_over_latency(arms: Sequence[tuple[str, bool, Sequence[tuple[float, float]]]], against: str) -> Picture:
    """Accuracy over measured latency of arms: name, whether it was searched, and (seconds, accuracy) of each seed."""
    means: list[dict[str, Any]] = []
    every: list[dict[str, Any]] = []
    for name, searched, trainings in arms:
        kind = against if name == against else "searched" if searched else "not searched"
        rows: list[dict[str, Any]] = [
            {"arm": name, "what": kind, "x": 1e3 * seconds, "y": 100 * share} for seconds, share in trainings
        ]
        every += rows
        place = {axis: sum(row[axis] for row in rows) / len(rows) for axis in "xy"}
        means.append({"arm": name, "what": kind, "seeds": len(rows), **place})
    kinds = {against: (RED, "diamond"), "searched": (BLUE, "diamond"), "not searched": (ORANGE, "circle")}
    encoding = (LATENCY, ACCURACY, *looks("what:N", kinds))
    details = tooltip("arm:N", *FIGURES, "seeds:Q")
    dots = plot(every).mark_point(filled=True, size=14, opacity=0.5).encode(*encoding, tooltip=details[:-1])
    marks = plot(means).mark_point(filled=True, size=110, opacity=1).encode(*encoding, tooltip=details)
    names = plot(means).mark_text(align="left", dx=9, fontSize=10).encode(LATENCY, ACCURACY, alt.Text("arm:N"))
    chart = spec(alt.layer(dots, marks, names).properties(width=PLOT, height=440))
    caption = (
        "The large mark of an arm is the mean of its trainings, the small ones. Searched networks are diamonds, "
        "others circles. Up and to the left is better."
    )
    return Picture("arms", chart, f"Accuracy over measured latency of {listing(arm[0] for arm in arms)}", caption)


def runs_over_latency(runs: Mapping[str, Report]) -> Block:
    """Accuracy over measured latency of the networks of several runs: a colour for each run, a shape for each kind."""
    rows = [
        {
            "run": run,
            "network": row_names(report)[result.name],
            "kind": KINDS.get(result.name, KINDS.get(result.strategy, result.strategy)),
            **_place(result),
        }
        for run, report in runs.items()
        for result in pictured(report)
    ]
    if not rows:
        return Text("No network of these runs is both trained and measured yet.")
    colour, _ = looks("run:N", by_turns(runs))
    _, shape = looks("kind:N", by_turns(row["kind"] for row in rows))
    marks = plot(rows).mark_point(filled=True, size=110, opacity=0.9)
    marks = marks.encode(LATENCY, ACCURACY, colour, shape, tooltip=tooltip("network:N", "run:N", *FIGURES))
    chart = spec(alt.layer(marks).properties(width=PLOT, height=380))
    caption = (
        "Accuracy over measured latency. Latencies of one run were read together; those of two runs in two hours, "
        "which may be some percent apart."
    )
    return Picture("runs", chart, f"Accuracy over measured latency of the networks of {listing(runs)}", caption)


SEARCHED, DROPPED, BASE = "searched network", "of a dropped block", "base network"


def archs(arch: Arch, base: Arch, blocks: Mapping[str, Sequence[str]]) -> Spec:
    """The width of every site as a bar, in the network's order, and the base's; dropped blocks are hollow."""
    dropped_blocks = [name for site, names in blocks.items() for name in names[arch.depths.get(site, len(names)) :]]
    rows: list[dict[str, Any]] = []
    for site, width in arch.widths.items():
        dropped = any(site == block or site.startswith(f"{block}.") for block in dropped_blocks)
        rows.append({
            "site": site, "base": base.widths[site], "width": 0 if dropped else width,
            "what": DROPPED if dropped else SEARCHED, "says": "dropped" if dropped else str(width),
            "stage": next((block for block in blocks if site.startswith(f"{block}.")), ""),
        })  # fmt: skip
    axis = alt.Axis(labelAngle=-50, labelLimit=130) if len(rows) <= NAMED else alt.Axis(labels=False, ticks=False)
    x = alt.X("site:N", sort=None, title=None if len(rows) <= NAMED else "width sites, in order", axis=axis)
    details = tooltip("site:N", ("says:N", "width"), ("base:Q", "width of the base"), "stage:N")
    colour = alt.Color("what:N", scale=alt.Scale(domain=[SEARCHED, BASE, DROPPED], range=[RED, INK, FAINT]))
    height = alt.Y("width:Q", title="width, channels")
    layers = [plot(rows).mark_bar().encode(x, height, colour, tooltip=details)]
    if dropped_rows := [row for row in rows if row["what"] == DROPPED]:
        hollow = plot(dropped_rows).mark_bar(filled=False, strokeDash=[2, 2])
        layers.append(hollow.encode(x, alt.Y("base:Q"), colour, tooltip=details))
    thin = 0.012 * max((row["base"] for row in rows), default=1)
    levels = plot({**row, "what": BASE, "under": row["base"] - thin} for row in rows).mark_bar()
    layers.append(levels.encode(x, alt.Y("base:Q"), alt.Y2("under:Q"), colour, tooltip=details))
    return spec(alt.layer(*layers).properties(width=PLOT, height=210))


def predictions(report: Report) -> Spec:
    """Predicted against measured latency of whole networks, with the bands of 5 and 10 %."""
    calibration, rest = f"of the calibration, outside its fit ({len(report.predictions)})", "of this report"
    names = row_names(report)
    pairs = [(calibration, calibration, each.measured, each.predicted) for each in report.predictions]
    pairs += [
        (names[result.name], rest, result.measured.estimate, result.predicted)
        for result in report.results
        if result.measured is not None and result.predicted
    ]
    rows = [
        {"network": name, "what": what, "x": 1e3 * measured, "y": 1e3 * predicted, "off": predicted / measured - 1}
        for name, what, measured, predicted in pairs
    ]
    every = [1e3 * seconds for pair in pairs for seconds in pair[2:]]
    ends = [0.9 * min(every), 1.1 * max(every)]
    scale = alt.Scale(type="log", domain=ends, nice=False)
    x = alt.X("x:Q", title="measured, ms per batch", scale=scale)
    y = alt.Y("y:Q", title="predicted, ms per batch", scale=scale)
    bands = [
        plot({"x": end, "y": end * (1 + sign * band)} for end in ends)
        .mark_line(color=GREEN, strokeWidth=1, strokeDash=dash, clip=True)
        .encode(x, y)
        for band, dash in zip(BANDS, ([1, 0], [5, 4]), strict=True)
        for sign in (-1, 1)
    ]
    line = plot({"x": end, "y": end} for end in ends).mark_line(color=FAINT, strokeWidth=1).encode(x, y)
    colour, shape = looks("what:N", {calibration: (SKY, "circle"), rest: (RED, "diamond")})
    details = tooltip(
        "network:N", ("x:Q", "measured, ms", ".4f"), ("y:Q", "predicted, ms", ".4f"), ("off:Q", "off by", "+.1%")
    )
    marks = plot(rows).mark_point(filled=True, size=55, opacity=0.9).encode(x, y, colour, shape, tooltip=details)
    return spec(alt.layer(*bands, line, marks).properties(width=PLOT, height=360))
