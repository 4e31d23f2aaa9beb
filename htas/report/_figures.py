"""The pictures of a report: accuracy over latency, archs, latency curves (Fig. 2 and 3), searches, predictions."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import altair as alt

from htas.graph.arch import Arch
from htas.report._compare import base_of, is_searched
from htas.report._draw import (
    BLUE,
    FAINT,
    GREEN,
    INK,
    MARGIN,
    ORANGE,
    PURPLE,
    RED,
    RULE,
    SKY,
    WIDTH,
    Spec,
    data,
    filled,
    shape,
    spec,
)
from htas.report.result import Report, Result, front
from htas.search.record import METRICS, SURE, EpochRecord, SearchRecord
from htas.spaces.curve import CurveRecord
from htas.text import percent

PICTURED = "accuracy-latency"
"""The name of the picture of accuracy over latency."""
PREDICTED = "predictions"
"""The name of the picture of predicted against measured latency."""
PANEL = WIDTH // 3 - MARGIN
PLOT = WIDTH - MARGIN
BANDS = (0.05, 0.1)
"""Relative errors that lie between lines in the picture of predictions."""
NAMED = 24
"""Sites whose names stand below the bars of an arch, at most."""

FOUR, EIGHT = alt.Axis(tickCount=4), alt.Axis(tickCount=8)

Rows = Sequence[Mapping[str, Any]]


def curve_name(number: int) -> str:
    """The name of the picture of the report's curve of that number, counted from 1."""
    return f"curve-{number}"


def course_name(number: int) -> str:
    """The name of the picture of the report's search of that number, counted from 1."""
    return f"search-{number}"


def arch_name(number: int) -> str:
    """The name of the picture of the report's searched network of that number, counted from 1."""
    return f"arch-{number}"


def searched(report: Report) -> list[Result]:
    """The networks that a search has found, whose sites are the base network's."""
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
    found: dict[str, Spec] = {}
    if pictured(report):
        found[PICTURED] = accuracy_over_latency(report)
    base = base_of(report)
    for number, result in enumerate(searched(report) if base else (), 1):
        assert base is not None
        found[arch_name(number)] = archs(result.arch, base.arch, report.blocks)
    if report.predictions:
        found[PREDICTED] = predictions(report)
    for number, search in enumerate(report.searches, 1):
        if search.accuracy is not None:  # else nothing was searched
            found[course_name(number)] = course(search, base)
    for number, curve in enumerate(report.curves, 1):
        found[curve_name(number)] = latency_curve(curve)
    return found


def accuracy_over_latency(report: Report) -> Spec:
    """Accuracy in percent over the measured latency in milliseconds, and the front of those that none beats."""
    rows = []
    shown = sorted(pictured(report), key=lambda result: result.accuracy or 0.0, reverse=True)
    for result in shown:
        assert result.measured is not None and result.accuracy is not None
        x, reach = 1e3 * result.measured.estimate, 2e3 * result.measured.error
        rows.append({
            "network": result.name, "x": x, "low": x - reach, "high": x + reach, "y": 100 * result.accuracy,
            "macs": result.macs / 1e6, "params": result.params / 1e6,
            "predicted": None if result.predicted is None else 1e3 * result.predicted,
        })  # fmt: skip
    looks = [_look(result) for result in shown]
    return _scatter(rows, [colour for colour, _ in looks], [shape for _, shape in looks])


def _scatter(rows: Rows, colours: Sequence[str], shapes: Sequence[str]) -> Spec:
    """Networks as marks, named in a legend in the order of their accuracies, over the front."""
    names = [row["network"] for row in rows]
    best = front([(row["x"], row["y"]) for row in rows])
    ahead = sorted((row for number, row in enumerate(rows) if number in best), key=lambda row: row["x"])
    x = alt.X("x:Q", title="measured latency, ms per batch", scale=alt.Scale(zero=False, padding=24), axis=EIGHT)
    y = alt.Y("y:Q", title="test accuracy, %", scale=alt.Scale(zero=False, padding=24))
    told = [
        alt.Tooltip("network:N"),
        alt.Tooltip("x:Q", title="latency, ms", format=".3f"),
        alt.Tooltip("y:Q", title="accuracy, %", format=".2f"),
        alt.Tooltip("predicted:Q", title="predicted, ms", format=".3f"),
        alt.Tooltip("macs:Q", title="multiply-adds, M", format=".2f"),
        alt.Tooltip("params:Q", title="parameters, M", format=".3f"),
    ]
    line = alt.Chart(data(ahead)).mark_line(interpolate="step-after", color=FAINT, strokeDash=[4, 3]).encode(x, y)
    legend = alt.Legend(symbolSize=90)
    colour = alt.Color("network:N", sort=None, scale=alt.Scale(domain=names, range=list(colours)), legend=legend)
    shape = alt.Shape("network:N", sort=None, scale=alt.Scale(domain=names, range=list(shapes)), legend=legend)
    reach = alt.Chart(data(rows)).mark_rule(strokeWidth=1.4, opacity=0.6).encode(
        alt.X("low:Q"), alt.X2("high:Q"), y, colour
    )  # fmt: skip
    marks = alt.Chart(data(rows)).mark_point(filled=True, size=110, opacity=1).encode(x, y, colour, shape, tooltip=told)
    return spec(alt.layer(line, reach, marks).properties(width=PLOT, height=380))


def arms_over_latency(arms: Sequence[tuple[str, bool, Sequence[tuple[float, float]]]], against: str) -> Spec:
    """Accuracy over measured latency of arms: name, whether it was searched, and (seconds, accuracy) of each seed."""
    rows: list[dict[str, Any]] = []
    every: list[dict[str, Any]] = []
    for name, searched, trainings in arms:
        own: list[dict[str, Any]] = [
            {"arm": name, "x": 1e3 * seconds, "y": 100 * share} for seconds, share in trainings
        ]
        kind = against if name == against else "searched" if searched else "given"
        every += [{**row, "what": kind} for row in own]
        rows.append({
            "arm": name, "what": kind, "seeds": len(own), **{k: sum(row[k] for row in own) / len(own) for k in "xy"}
        })  # fmt: skip
    domain = [against, "searched", "given"]
    x = alt.X("x:Q", title="measured latency, ms per batch", scale=alt.Scale(zero=False, padding=20), axis=EIGHT)
    y = alt.Y("y:Q", title="test accuracy, %", scale=alt.Scale(zero=False, padding=20))
    colour = alt.Color("what:N", scale=alt.Scale(domain=domain, range=[RED, BLUE, ORANGE]))
    shape = alt.Shape("what:N", scale=alt.Scale(domain=domain, range=["diamond", "diamond", "circle"]))
    told = [
        alt.Tooltip("arm:N"),
        alt.Tooltip("x:Q", title="latency, ms", format=".3f"),
        alt.Tooltip("y:Q", title="accuracy, %", format=".2f"),
    ]
    dots = (
        alt.Chart(data(every)).mark_point(filled=True, size=14, opacity=0.5).encode(x, y, colour, shape, tooltip=told)
    )
    means = alt.Chart(data(rows)).mark_point(filled=True, size=110, opacity=1).encode(
        x, y, colour, shape, tooltip=[*told, alt.Tooltip("seeds:Q")]
    )  # fmt: skip
    names = alt.Chart(data(rows)).mark_text(align="left", dx=9, fontSize=10).encode(x, y, alt.Text("arm:N"))
    return spec(alt.layer(dots, means, names).properties(width=PLOT, height=440))


SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left")
COLOURS = (BLUE, RED, GREEN, ORANGE, PURPLE, SKY, INK)


def runs_over_latency(runs: Mapping[str, Sequence[Result]]) -> Spec:
    """Accuracy over measured latency of the networks of several runs: a colour for each run, a shape for each kind."""
    rows: list[dict[str, Any]] = []
    for run, results in runs.items():
        for result in results:
            assert result.measured is not None and result.accuracy is not None
            kind = result.name if result.name in ("base", "hardware", "tas", "grid") else result.strategy
            rows.append({
                "run": run, "network": result.name, "kind": kind, "x": 1e3 * result.measured.estimate,
                "y": 100 * result.accuracy,
            })  # fmt: skip
    kinds: list[str] = list(dict.fromkeys(row["kind"] for row in rows))
    names = list(runs)
    colours = [COLOURS[number % len(COLOURS)] for number in range(len(names))]
    shapes = [SHAPES[number % len(SHAPES)] for number in range(len(kinds))]
    marks = alt.Chart(data(rows)).mark_point(filled=True, size=110, opacity=0.9).encode(
        alt.X("x:Q", title="measured latency, ms per batch", scale=alt.Scale(zero=False, padding=24), axis=EIGHT),
        alt.Y("y:Q", title="test accuracy, %", scale=alt.Scale(zero=False, padding=24)),
        alt.Color("run:N", sort=None, scale=alt.Scale(domain=names, range=colours)),
        alt.Shape("kind:N", sort=None, scale=alt.Scale(domain=kinds, range=shapes)),
        tooltip=[
            alt.Tooltip("network:N"),
            alt.Tooltip("run:N"),
            alt.Tooltip("x:Q", title="latency, ms", format=".3f"),
            alt.Tooltip("y:Q", title="accuracy, %", format=".2f"),
        ],
    )  # fmt: skip
    return spec(alt.layer(marks).properties(width=PLOT, height=380))


def _look(result: Result) -> tuple[str, str]:
    """Colour and shape: by what the network is, the searched ones each their own."""
    known = {
        "base": (INK, "square"),
        "hardware": (RED, "diamond"),
        "tas": (BLUE, "triangle-up"),
        "grid": (GREEN, "triangle-down"),
    }
    if result.name in known:
        return known[result.name]
    return {"uniform": (PURPLE, "cross"), "plain": (ORANGE, "circle")}.get(result.strategy, (SKY, "circle"))


KEPT, DROPPED, BASE = "found", "of a dropped block", "base network"


def archs(found: Arch, base: Arch, blocks: Mapping[str, Sequence[str]]) -> Spec:
    """The width of every site as a bar, in the network's order, beside the base's; dropped blocks are hollow."""
    gone = [block for site, own in blocks.items() for block in own[found.depths.get(site, len(own)) :]]
    rows: list[dict[str, Any]] = []
    for number, (site, width) in enumerate(found.widths.items()):
        dropped = any(site == block or site.startswith(f"{block}.") for block in gone)
        rows.append({
            "number": number, "site": site, "base": base.widths[site], "width": 0 if dropped else width,
            "what": DROPPED if dropped else KEPT, "says": "dropped" if dropped else str(width),
            "stage": next((own for own in blocks if site.startswith(f"{own}.")), ""),
        })  # fmt: skip
    axis = alt.Axis(labelAngle=-50, labelLimit=130) if len(rows) <= NAMED else alt.Axis(labels=False, ticks=False)
    x = alt.X("site:N", sort=None, title=None if len(rows) <= NAMED else "width sites, in order", axis=axis)
    told = [
        alt.Tooltip("site:N"),
        alt.Tooltip("says:N", title="width"),
        alt.Tooltip("base:Q", title="width of the base"),
        alt.Tooltip("stage:N"),
    ]
    scale = alt.Scale(domain=[KEPT, BASE, DROPPED], range=[RED, INK, FAINT])
    colour = alt.Color("what:N", scale=scale)
    bars = alt.Chart(data(rows)).mark_bar().encode(x, alt.Y("width:Q", title="width, channels"), colour, tooltip=told)
    left = alt.Chart(data(row for row in rows if row["what"] == DROPPED))
    hollow = left.mark_bar(filled=False, strokeDash=[2, 2]).encode(x, alt.Y("base:Q"), colour, tooltip=told)
    thin = 0.012 * max((row["base"] for row in rows), default=1)
    levels = alt.Chart(data({**row, "what": BASE, "under": row["base"] - thin} for row in rows))
    ticks = levels.mark_bar().encode(x, alt.Y("base:Q"), alt.Y2("under:Q"), colour, tooltip=told)
    return spec(
        alt.layer(bars, *([hollow] if any(row["what"] == DROPPED for row in rows) else []), ticks).properties(
            width=PLOT, height=210
        )
    )


def predictions(report: Report) -> Spec:
    """Predicted against measured latency of whole networks, with the bands of 5 and 10 %."""
    held, own = f"of the calibration, each left out ({len(report.predictions)})", "of this report"
    rows: list[dict[str, Any]] = [
        {"network": held, "what": held, "x": 1e3 * each.measured, "y": 1e3 * each.predicted}
        for each in report.predictions
    ]
    rows += [
        {"network": result.name, "what": own, "x": 1e3 * result.measured.estimate, "y": 1e3 * result.predicted}
        for result in report.results
        if result.measured is not None and result.predicted
    ]
    for row in rows:
        row["off"] = row["y"] / row["x"] - 1
    every = [row[axis] for row in rows for axis in "xy"]
    ends = [0.9 * min(every), 1.1 * max(every)]
    scale = alt.Scale(type="log", domain=ends, nice=False)
    x = alt.X("x:Q", title="measured, ms per batch", scale=scale)
    y = alt.Y("y:Q", title="predicted, ms per batch", scale=scale)
    colour = alt.Color("what:N", sort=None, scale=alt.Scale(domain=[held, own], range=[SKY, RED]))
    shape = alt.Shape("what:N", sort=None, scale=alt.Scale(domain=[held, own], range=["circle", "diamond"]))
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


MEASURED, INTERPOLATED, CHOSEN, OWN, FIT = "measured m(x)", "interpolated", "chosen, hardware", "base width", "fit f(x)"


def latency_curve(curve: CurveRecord) -> Spec:
    """m(x), its fit and the chosen widths (the paper's Fig. 2) over the score of every width (Fig. 3), in ms."""
    return filled(_curve_shape(), _curve_rows(curve))


def fitted_curve(curve: CurveRecord) -> Spec:
    """m(x) and its fit alone: the paper's Fig. 2."""
    return filled(shape(_fitted()), _curve_rows(curve))


def scored_widths(curve: CurveRecord) -> Spec:
    """The score of every width and the chosen ones alone: the paper's Fig. 3."""
    return filled(shape(_scored(height=190)), _curve_rows(curve))


@cache
def _curve_shape() -> Spec:
    return shape(alt.vconcat(_fitted(), _scored()).resolve_scale(color="independent", x="shared"))


def _curve_rows(curve: CurveRecord) -> dict[str, list[dict[str, Any]]]:
    """Every width; those of the fit, the base width and the choices, as the legend calls them; the ends of groups."""
    chosen = set(curve.choices.get("hardware", ()))
    errors = curve.errors or (0.0,) * len(curve.widths)
    certain = curve.certain or (None,) * len(curve.groups)
    rows: list[dict[str, Any]] = []
    for width, seconds, error, score in zip(curve.widths, curve.latency, errors, curve.scores, strict=True):
        group = next((n for n, (first, last) in enumerate(curve.groups) if first <= width <= last), 0)
        rows.append({
            "width": width, "latency": 1e3 * seconds, "fit": 1e3 * curve.fit(width), "score": 1e3 * score,
            "top": max(1e3 * score, 0.0), "none": 0, "left": width - 0.35, "right": width + 0.35,
            "low": 1e3 * (seconds - 2 * error), "high": 1e3 * (seconds + 2 * error), "group": group + 1,
            "sure": certain[group], "chosen": "chosen" if width in chosen else "not",
            "what": INTERPOLATED if width in curve.interpolated else MEASURED,
        })  # fmt: skip
    return {
        "widths": rows,
        "fit": [{"width": row["width"], "fit": row["fit"], "what": FIT} for row in rows],
        "own": [{**row, "what": OWN} for row in rows if row["width"] == curve.base],
        "best": [{**row, "what": CHOSEN} for row in rows if row["width"] in chosen],
        "edges": [{"edge": last + 0.5} for _, last in curve.groups[:-1]],
    }


def _width_axis() -> tuple[alt.X, list[alt.Tooltip], alt.Chart]:
    """The axis of widths, what is told of one, and the lines between groups."""
    x = alt.X(
        "width:Q", title="width, output channels", scale=alt.Scale(nice=False, padding=8), axis=alt.Axis(grid=False)
    )
    told = [
        alt.Tooltip("width:Q"),
        alt.Tooltip("latency:Q", title="measured, ms", format=".5f"),
        alt.Tooltip("fit:Q", title="fit, ms", format=".5f"),
        alt.Tooltip("score:Q", title="score, ms", format=".5f"),
        alt.Tooltip("group:Q"),
        alt.Tooltip("sure:Q", title="its choice is right with", format=".0%"),
    ]
    edges = alt.Chart(alt.NamedData("edges")).mark_rule(color=RULE, strokeDash=[3, 3]).encode(alt.X("edge:Q"))
    return x, told, edges


def _fitted() -> Any:
    x, told, edges = _width_axis()
    scale = alt.Scale(domain=[MEASURED, INTERPOLATED, FIT, CHOSEN, OWN], range=[BLUE, SKY, FAINT, RED, INK])
    what = alt.Color("what:N", scale=scale)
    height = alt.Y("latency:Q", title="latency, ms", scale=alt.Scale(zero=False, padding=14))
    whole = alt.Chart(alt.NamedData("widths"))
    band = whole.mark_area(color=SKY, opacity=0.25).encode(x, alt.Y("low:Q"), alt.Y2("high:Q"))
    fit = alt.Chart(alt.NamedData("fit")).mark_line(strokeDash=[5, 4], strokeWidth=1.3).encode(
        x, alt.Y("fit:Q"), what
    )  # fmt: skip
    line = whole.mark_line(color=BLUE, strokeWidth=1).encode(x, height)
    dots = whole.mark_point(filled=True, size=26, opacity=1).encode(x, height, what, tooltip=told)
    own = alt.Chart(alt.NamedData("own"))
    ring = own.mark_point(size=150, strokeWidth=1.8).encode(x, height, what, tooltip=told)
    best = alt.Chart(alt.NamedData("best"))
    marks = best.mark_point(filled=True, shape="diamond", size=80, opacity=1).encode(x, height, what, tooltip=told)
    names = best.mark_text(color=RED, dy=-10).encode(x, height, alt.Text("width:Q"))
    return alt.layer(edges, band, fit, line, dots, ring, marks, names).properties(width=PLOT, height=230)


def _scored(height: int = 120) -> Any:
    x, told, edges = _width_axis()
    whole, best = alt.Chart(alt.NamedData("widths")), alt.Chart(alt.NamedData("best"))
    tint = alt.Color(
        "chosen:N", scale=alt.Scale(domain=["chosen", "not"], range=[RED, SKY]), legend=None
    )  # fmt: skip
    bars = whole.mark_rect().encode(
        alt.X("left:Q"),
        alt.X2("right:Q"),
        alt.Y("score:Q", title="score s(x), ms"),
        alt.Y2("none:Q"),
        tint,
        tooltip=told,
    )
    numbers = best.mark_text(color=RED, dy=-7).encode(x, alt.Y("top:Q"), alt.Text("width:Q"))
    return alt.layer(numbers, edges, bars).properties(width=PLOT, height=height)


Read = Callable[[EpochRecord], float | None]


EPOCHS = alt.X(
    "epoch:Q",
    title="epoch",
    axis=alt.Axis(tickMinStep=1, format="d", tickCount=5),
    scale=alt.Scale(nice=False),
)


def asked_share(search: SearchRecord, base: Result | None) -> float | None:
    """The limit of what the search is charged, over the base network's; None for none, and where it is not known."""
    metric = METRICS.get(search.cost, search.cost)
    for own in search.limits:
        if own.metric == metric and own.share is not None:
            return own.share
        if own.metric == metric == "latency" and base is not None and base.predicted:
            return own.limit / base.predicted
    return None


def course(search: SearchRecord, base: Result | None = None) -> Spec:
    """Losses, accuracy, costs beside the budget, temperature, top probability and the entropy of every site by epoch,
    and the arch found among its rivals."""
    asked = asked_share(search, base)
    panels = [
        _lines(search, "loss", {"training": lambda e: e.train_loss, "validation": lambda e: e.validation_loss}),
        _lines(
            search,
            "cost, share of the base's",
            {"expected": lambda e: e.expected_cost, "most probable": lambda e: e.argmax_cost},
            asked,
        ),
        _lines(search, "accuracy of mixtures, %", {"validation": lambda e: _hundredfold(e.validation_accuracy)}),
        _lines(search, "temperature", {"temperature": lambda e: e.temperature}),
        _lines(search, "top probability, median of sites", {"top": lambda e: e.top_probability}, SURE),
        *([_entropies(search)] if any(epoch.entropy for epoch in search.epochs) else []),
        _rivals(search),
    ]
    return spec(alt.concat(*panels, columns=3).resolve_scale(color="independent", x="independent", y="independent"))


def _hundredfold(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _lines(search: SearchRecord, title: str, figures: Mapping[str, Read], mark: float | None = None) -> Any:
    """By epoch; what the strategy has not is left out."""
    rows = [
        {"epoch": epoch.epoch, "value": value, "what": name}
        for name, read in figures.items()
        for epoch in search.epochs
        if (value := read(epoch)) is not None
    ]
    colour = alt.Color(
        "what:N",
        sort=None,
        scale=alt.Scale(domain=list(figures), range=[BLUE, RED]),
        legend=alt.Legend() if len(figures) > 1 else None,
    )
    chart = alt.Chart(data(rows)).mark_line(point={"size": 22}, strokeWidth=1.6).encode(
        EPOCHS,
        alt.Y("value:Q", title=None, scale=alt.Scale(zero=False, nice=True)),
        colour,
        tooltip=[alt.Tooltip("what:N", title="figure"), alt.Tooltip("epoch:Q"), alt.Tooltip("value:Q", format=".4g")],
    )  # fmt: skip
    parts = [chart]
    if mark is not None:
        rule = alt.Chart(data([{"value": mark}])).mark_rule(color=FAINT, strokeDash=[4, 3])
        parts.append(rule.encode(alt.Y("value:Q")))
    return alt.layer(*parts).properties(
        width=PANEL, height=150, title=title if rows else f"{title}: not of this strategy"
    )


def _entropies(search: SearchRecord) -> Any:
    """A line for every site that has a choice."""
    rows = [
        {"epoch": epoch.epoch, "value": value, "site": site}
        for epoch in search.epochs
        for site, value in epoch.entropy.items()
    ]
    chart = alt.Chart(data(rows)).mark_line(color=BLUE, strokeWidth=1.4, opacity=0.45)
    return chart.encode(
        EPOCHS,
        alt.Y("value:Q", title=None, scale=alt.Scale(domain=[0, 1])),
        alt.Detail("site:N"),
        tooltip=[alt.Tooltip("site:N")],
    ).properties(width=PANEL, height=150, title="entropy of each site, equal choices = 1")


def _rivals(search: SearchRecord) -> Any:
    """Rivals as dots, cost across and accuracy up; the arch found is the diamond at cost 1."""
    accuracy = search.accuracy or 0.0
    rows = [
        {"cost": cost, "accuracy": 100 * rival, "what": "random arch"}
        for rival, cost in zip(search.rivals, search.rival_costs, strict=True)
    ]
    rows.append({"cost": 1.0, "accuracy": 100 * accuracy, "what": "found"})
    beaten = f"better than {search.beaten} of {len(search.rivals)} random"
    domain = ["found", "random arch"]
    return alt.Chart(data(rows)).mark_point(filled=True, size=60, opacity=0.9).encode(
        alt.X("cost:Q", title="latency, found = 1", scale=alt.Scale(zero=False, padding=10), axis=FOUR),
        alt.Y("accuracy:Q", title="validation accuracy, %", scale=alt.Scale(zero=False, padding=10)),
        alt.Color("what:N", scale=alt.Scale(domain=domain, range=[RED, SKY]), legend=None),
        alt.Shape("what:N", scale=alt.Scale(domain=domain, range=["diamond", "circle"]), legend=None),
        tooltip=[
            alt.Tooltip("what:N", title="arch"),
            alt.Tooltip("accuracy:Q", title="accuracy, %", format=".2f"),
            alt.Tooltip("cost:Q", format=".3f"),
        ],
    ).properties(
        width=PANEL, height=150, title=beaten if search.rivals else f"found {percent(accuracy, 1)}, no random arch"
    )  # fmt: skip


def gained(points: Sequence[Mapping[str, Any]]) -> Spec:
    """Speed really gained over multiply-adds saved, a panel for each runtime: `network`, `kind`, `runtime`, `saved` (a
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
    told = [
        alt.Tooltip("network:N"),
        alt.Tooltip("runtime:N"),
        alt.Tooltip("saved:Q", title="multiply-adds saved, %", format=".1f"),
        alt.Tooltip("speed:Q", title="times as fast", format=".3f"),
        alt.Tooltip("macs:Q", title="multiply-adds, M", format=".2f"),
    ]
    panels = []
    for runtime in runtimes:
        own = alt.Chart(data(row for row in rows if row["runtime"] == runtime))
        line = alt.Chart(data(promised)).mark_line(color=FAINT, strokeDash=[5, 4]).encode(x, y)
        even = alt.Chart(data([{"speed": 1.0}])).mark_rule(color=RULE).encode(y)
        marks = own.mark_point(filled=True, size=90, opacity=0.9).encode(
            x, y,
            alt.Color("kind:N", sort=None, scale=alt.Scale(domain=kinds, range=colours)),
            alt.Shape("kind:N", sort=None, scale=alt.Scale(domain=kinds, range=shapes)),
            tooltip=told,
        )  # fmt: skip
        panels.append(alt.layer(line, even, marks).properties(width=PLOT, height=240, title=runtime))
    return spec(alt.vconcat(*panels))
