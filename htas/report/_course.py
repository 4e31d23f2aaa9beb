"""The course of a search: losses, accuracy, cost, temperature and probabilities by epoch, and its random rivals."""

from collections.abc import Callable, Mapping
from typing import Any

import altair as alt

from htas.report._draw import BLUE, FAINT, FOUR, PANEL, RED, SKY, Spec, data, spec
from htas.report.result import Result
from htas.search.record import METRICS, SURE, EpochRecord, SearchRecord
from htas.text import percent

Read = Callable[[EpochRecord], float | None]

EPOCHS = alt.X(
    "epoch:Q", title="epoch", axis=alt.Axis(tickMinStep=1, format="d", tickCount=5), scale=alt.Scale(nice=False)
)


def asked_share(search: SearchRecord, base: Result | None) -> float | None:
    """The limit of what the search is charged, over the base network's; None for none, and where it is unknown."""
    metric = METRICS.get(search.cost, search.cost)
    for outcome in search.limits:
        if outcome.metric == metric and outcome.share is not None:
            return outcome.share
        if outcome.metric == metric == "latency" and base is not None and base.predicted:
            return outcome.limit / base.predicted
    return None


def course(search: SearchRecord, base: Result | None = None) -> Spec:
    """Losses, accuracy, cost and its budget, temperature, top probability and the entropy of every site by epoch,
    and the arch among its random rivals."""
    costs: dict[str, Read] = {"expected": lambda e: e.expected_cost, "most probable": lambda e: e.argmax_cost}
    panels = [
        _lines(search, "loss", {"training": lambda e: e.train_loss, "validation": lambda e: e.validation_loss}),
        _lines(search, "cost, share of the base's", costs, asked_share(search, base)),
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
    """By epoch; without the figures that the strategy does not have."""
    rows = [
        {"epoch": epoch.epoch, "value": value, "what": name}
        for name, read in figures.items()
        for epoch in search.epochs
        if (value := read(epoch)) is not None
    ]
    legend = alt.Legend() if len(figures) > 1 else None
    scale = alt.Scale(domain=list(figures), range=[BLUE, RED])
    chart = alt.Chart(data(rows)).mark_line(point={"size": 22}, strokeWidth=1.6).encode(
        EPOCHS,
        alt.Y("value:Q", title=None, scale=alt.Scale(zero=False, nice=True)),
        alt.Color("what:N", sort=None, scale=scale, legend=legend),
        tooltip=[alt.Tooltip("what:N", title="figure"), alt.Tooltip("epoch:Q"), alt.Tooltip("value:Q", format=".4g")],
    )  # fmt: skip
    parts = [chart]
    if mark is not None:
        rule = alt.Chart(data([{"value": mark}])).mark_rule(color=FAINT, strokeDash=[4, 3])
        parts.append(rule.encode(alt.Y("value:Q")))
    title = title if rows else f"{title}: not of this strategy"
    return alt.layer(*parts).properties(width=PANEL, height=150, title=title)


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
    """Rivals as dots, cost across and accuracy up; the searched arch is the diamond at cost 1."""
    accuracy = search.accuracy or 0.0
    rows = [
        {"cost": cost, "accuracy": 100 * rival, "what": "random arch"}
        for rival, cost in zip(search.rivals, search.rival_costs, strict=True)
    ]
    rows.append({"cost": 1.0, "accuracy": 100 * accuracy, "what": "searched"})
    beaten = f"better than {search.beaten} of {len(search.rivals)} random"
    domain = ["searched", "random arch"]
    return alt.Chart(data(rows)).mark_point(filled=True, size=60, opacity=0.9).encode(
        alt.X("cost:Q", title="latency, searched = 1", scale=alt.Scale(zero=False, padding=10), axis=FOUR),
        alt.Y("accuracy:Q", title="validation accuracy, %", scale=alt.Scale(zero=False, padding=10)),
        alt.Color("what:N", scale=alt.Scale(domain=domain, range=[RED, SKY]), legend=None),
        alt.Shape("what:N", scale=alt.Scale(domain=domain, range=["diamond", "circle"]), legend=None),
        tooltip=[
            alt.Tooltip("what:N", title="arch"),
            alt.Tooltip("accuracy:Q", title="accuracy, %", format=".2f"),
            alt.Tooltip("cost:Q", format=".3f"),
        ],
    ).properties(
        width=PANEL, height=150, title=beaten if search.rivals else f"{percent(accuracy, 1)}, no random arch"
    )  # fmt: skip
