"""What verbs print: tables for readers, JSON for programs."""

import json as json_format
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from htas import text
from htas.console.terminal import show
from htas.errors import UserError
from htas.files import JsonObject

if TYPE_CHECKING:
    from htas.run.networks import Figures
    from htas.timing.store import Store


def networks_json(figures: "Figures") -> JsonObject:
    """One network as JSON values: milliseconds and millions."""
    latency = figures.latency
    return {
        "network": figures.network,
        "runtime": figures.runtime,
        "latency_ms": {
            "estimate": latency.estimate * 1e3,
            "error": latency.error * 1e3,
            "interval": [end * 1e3 for end in latency.interval],
            "median": latency.median * 1e3,
            "min": latency.minimum * 1e3,
            "spread": latency.spread * 1e3,
        },
        "mmacs": figures.macs / 1e6,
        "mparams": figures.params / 1e6,
        **{
            name: {"estimate": each.estimate, "error": each.error, "unit": each.unit}
            for name, each in figures.others.items()
        },
    }


def networks_table(figures: Sequence["Figures"]) -> text.TextTable:
    """One line per network, in columns, and below what casts doubt on a reading."""
    others = list(figures[0].others)
    rows: list[tuple[str, ...]] = [
        ("network", "runtime", "latency", "error", "interval", "median", "min", "spread", "MACs", "parameters", *others)
    ]
    for each in figures:
        latency = each.latency
        first, last = (text.significant(end * 1e3) for end in latency.interval)
        seconds = (latency.estimate, latency.error, latency.median, latency.minimum, latency.spread)
        times = [text.milliseconds(each) for each in seconds]
        times.insert(2, f"{first}-{last} ms")
        more = [text.quantity(measured.estimate, measured.unit) for measured in each.others.values()]
        rows.append((each.network, each.runtime, *times, text.millions(each.macs), text.millions(each.params), *more))
    doubts = [
        f"{each.network}: {name}{doubt}"
        for each in figures
        for name, measured in {"": each.latency, **{f"{name}: ": other for name, other in each.others.items()}}.items()
        for doubt in measured.doubts
    ]
    return text.TextTable(rows, 2, after=doubts)


def surveys_table(opened: "Store", json: bool) -> str:
    """One line per survey, metric and place."""
    surveys = opened.surveys()
    if json:
        return as_json([asdict(each) for each in surveys])
    if not surveys:
        return f"no measurements in {opened.path}"
    settings = ("device", "runtime", "precision", "batch", "threads")
    rows: list[tuple[str, ...]] = [("survey", "metric", "date (UTC)", "place", *settings, "layers", "doubtful")]
    for each in surveys:
        date = each.date[:16].replace("T", " ")
        where = (each.context.get(name, text.NONE) for name in settings)
        counts = (str(each.layers), str(each.doubtful))
        rows.append((each.survey, each.metric, date, each.place, *where, *counts))
    return text.TextTable(rows, 7)


def survey_table(opened: "Store", name: str, json: bool) -> str:
    """One line per layer, and below what casts doubt on its readings; raises UserError for an unknown survey."""
    entries = opened.entries(name)
    if not entries:
        raise UserError(no_survey(opened, name))
    if json:
        return as_json([each.row() for each in entries])
    rows: list[tuple[str, ...]] = [("layer", "metric", "readings", "median", "min", "spread", "anchor")]
    for each in entries:
        readings = each.measurement
        figures = (
            text.quantity(value, readings.unit) for value in (readings.median, readings.minimum, readings.spread)
        )
        anchor = text.quantity(median(each.anchor), readings.unit) if each.anchor else text.NONE
        rows.append((_layer(each.layer), each.metric, str(len(readings.values)), *figures, anchor))
    doubts = Counter(doubt for each in entries for doubt in dict.fromkeys((*each.measurement.remarks, *each.doubts)))
    lines = [f"{text.plural(count, 'layer')}: {doubt}" for doubt, count in doubts.items()]
    return text.TextTable(rows, 2, after=lines)


def no_survey(opened: "Store", name: str) -> str:
    surveys = dict.fromkeys(each.survey for each in opened.surveys())
    return text.no_such("survey", name, surveys) if surveys else f"no survey called {name!r}: {opened.path} has none"


def _layer(key: str) -> str:
    """`conv 16 -> 32, size 32x32, kernel 3x3, norm, activation relu`: what differs from a layer's defaults."""
    from htas.graph.layer import Layer

    try:
        layer = Layer.of(key)
    except (KeyError, TypeError):
        return key  # not a layer, or one of another version
    parts = [f"{layer.op} {layer.inputs} {text.ARROW} {layer.outputs}"]
    for field in fields(layer)[3:]:
        value = getattr(layer, field.name)
        if value != field.default:
            words = "x".join(map(str, value)) if isinstance(value, tuple) else "" if value is True else str(value)
            parts.append(f"{field.name} {words}".rstrip())
    return ", ".join(parts)


def print_table(table: str) -> None:
    """Print a table in the way of this terminal, or a text as it is."""
    if isinstance(table, text.TextTable):
        show([table], {}, False)
    else:
        print(table)


def print_summary(page: Path, json: bool) -> None:
    """Print the answer and the networks of a report, and where it is."""
    from htas.report import read
    from htas.report.summary import summary

    show([summary(read(page.parent))], {"page": str(page)}, json)


def as_json(content: Any) -> str:
    """JSON for programs."""
    return json_format.dumps(content, indent=1)
