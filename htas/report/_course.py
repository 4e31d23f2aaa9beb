"""The course of a search: losses, accuracy, cost, temperature and probabilities by epoch, and its random rivals."""

from collections.abc import Mapping
from typing import Any

import altair as alt

from htas.report._draw import FOUR, PANEL, Spec, looks, plot, spec, tooltip
from htas.report._style import BLUE, FAINT, RED, SKY
from htas.report.result import Result
from htas.search.record import METRICS, SURE, SearchRecord
from htas.text import percent

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
    losses = {"train_loss": "training", "validation_loss": "validation"}
    costs = {"expected_cost": "expected", "argmax_cost": "most probable"}
    panels = [
        _lines(search, "loss", losses),
        _lines(search, "cost, share of the base's", costs, mark=asked_share(search, base)),
        _lines(search, "accuracy of mixtures, %", {"validation_accuracy": "validation"}, times=100),
        _lines(search, "temperature", {"temperature": "temperature"}),
        _lines(search, "top probability, median of sites", {"top_probability": "top"}, mark=SURE),
        *([_entropies(search)] if any(epoch.entropy for epoch in search.epochs) else []),
        _rivals(search),
    ]
    return spec(alt.concat(*panels, columns=3).resolve_scale(color="independent", x="independent", y="independent"))


def _lines(
    search: SearchRecord, title: str, figures: Mapping[str, str], *, times: float = 1, mark: float | None = None
) -> Any:
    """By epoch, each figure with its name in the legend; without those that the strategy does not have."""
    rows = [
        {"epoch": epoch.epoch, "value": times * epoch.scalars[figure], "what": name}
        for figure, name in figures.items()
        for epoch in search.epochs
        if figure in epoch.scalars
    ]
    legend = alt.Legend() if len(figures) > 1 else None
    scale = alt.Scale(domain=list(figures.values()), range=[BLUE, RED])
    parts = [plot(rows).mark_line(point={"size": 22}, strokeWidth=1.6).encode(
        EPOCHS,
        alt.Y("value:Q", title=None, scale=alt.Scale(zero=False, nice=True)),
        alt.Color("what:N", sort=None, scale=scale, legend=legend),
        tooltip=tooltip(("what:N", "figure"), "epoch:Q", ("value:Q", "value", ".4g")),
    )]  # fmt: skip
    if mark is not None:
        parts.append(plot([{"value": mark}]).mark_rule(color=FAINT, strokeDash=[4, 3]).encode(alt.Y("value:Q")))
    title = title if rows else f"{title}: not of this strategy"
    return alt.layer(*parts).properties(width=PANEL, height=150, title=title)


def _entropies(search: SearchRecord) -> Any:
    """A line for every site that has a choice."""
    rows = (
        {"epoch": epoch.epoch, "value": value, "site": site}
        for epoch in search.epochs
        for site, value in epoch.entropy.items()
    )
    height = alt.Y("value:Q", title=None, scale=alt.Scale(domain=[0, 1]))
    lines = plot(rows).mark_line(color=BLUE, strokeWidth=1.4, opacity=0.45)
    lines = lines.encode(EPOCHS, height, alt.Detail("site:N"), tooltip=tooltip("site:N"))
    return lines.properties(width=PANEL, height=150, title="entropy of each site, equal choices = 1")


def _rivals(search: SearchRecord) -> Any:
    """Rivals as dots, cost across and accuracy up; the searched arch is the diamond at cost 1."""
    accuracy = search.accuracy or 0.0
    rows = [
        {"cost": cost, "accuracy": 100 * rival, "what": "random arch"}
        for rival, cost in zip(search.rivals, search.rival_costs, strict=True)
    ]
    rows.append({"cost": 1.0, "accuracy": 100 * accuracy, "what": "searched"})
    marks = plot(rows).mark_point(filled=True, size=60, opacity=0.9).encode(
        alt.X("cost:Q", title="latency, searched = 1", scale=alt.Scale(zero=False, padding=10), axis=FOUR),
        alt.Y("accuracy:Q", title="validation accuracy, %", scale=alt.Scale(zero=False, padding=10)),
        *looks("what:N", {"searched": (RED, "diamond"), "random arch": (SKY, "circle")}, legend=None),
        tooltip=tooltip(("what:N", "arch"), ("accuracy:Q", "accuracy, %", ".2f"), ("cost:Q", "cost", ".3f")),
    )  # fmt: skip
    beaten = f"better than {search.beaten} of {len(search.rivals)} random"
    title = beaten if search.rivals else f"{percent(accuracy, 1)}, no random arch"
    return marks.properties(width=PANEL, height=150, title=title)
