"""Several runs on one page: the answer of each, their networks in one table and picture, and how the runs differ."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from htas.report._blocks import Block, Cell, Heading, Table, Text, plain_table, points
from htas.report._content import doubts, target, value
from htas.report._figures import runs_over_latency
from htas.report._names import family_name, row_names
from htas.report._page import publish
from htas.report.result import Report
from htas.report.summary import answer, base_of, figures, found_of, marked
from htas.text import listing

HEADINGS = (
    *("network", "run", "accuracy", "measured, ms per batch", "predicted, ms", "times as fast as its base"),
    *("multiply-adds", "parameters"),
)
UNLIKE = {
    ("target",): "The runs were measured for different targets, so their latencies say nothing of each other.",
    ("processor",): "The runs were measured on different machines, so their latencies say nothing of each other.",
    ("data", "test images"): "The runs were tested on different images, so their accuracies say nothing of each other.",
}
"""Why figures of two runs may not be compared, by the facts in which the runs differ."""


def page(runs: Mapping[str, Report], folder: Path) -> Path:
    """Write report.html and report.md of several runs, by their names, on one page; the path of the page.

    Raises UserError where the folder cannot be written.
    """
    rows = [
        (Cell(row_names(report)[result.name], result.name), Cell(name), *figures(result, base_of(report)))
        for name, report in runs.items()
        for result in report.results
    ]
    facts = {name: _facts(report) for name, report in runs.items()}
    unlike = [
        ("", why) for names, why in UNLIKE.items() if len({tuple(map(each.get, names)) for each in facts.values()}) > 1
    ]
    doubtful = [
        (f"{name}, {subject}" if subject else name, doubt)
        for name, report in runs.items()
        for subject, doubt in doubts(report)
    ]
    blocks = [
        Heading("The answer of each run"),
        points((name, sentence) for name, report in runs.items() for sentence in answer(report).sentences),
        Heading("Accuracy and latency"),
        runs_over_latency(runs),
        Heading("Networks"),
        Table(HEADINGS, rows, HEADINGS[:2], [name for report in runs.values() for name in marked(report)]),
        Heading("How the runs differ"),
        _differences(facts),
        Heading("Doubts and remarks"),
        points([*unlike, *doubtful]),
        Heading("How to repeat them"),
        points((name, report.command) for name, report in runs.items()),
    ]
    return publish(f"{len(runs)} runs: {listing(runs)}", blocks, folder, "report")[0]


def _facts(report: Report) -> dict[str, str]:
    """What two runs may differ in."""
    network = found_of(report) or base_of(report)
    facts: dict[str, Any] = {"data": report.dataset, "test images": report.test_images}
    if network is not None:
        facts |= {"base network": family_name(network.family), "target": target(network.target), "seed": network.seed}
        facts |= {"strategy": network.strategy, "cost": network.cost, "space": network.space}
        facts["recipe"] = value(network.recipe)
    machine = {name: value(content) for name, content in report.machine.items() if name not in ("seed", "fingerprint")}
    return {name: str(fact) for name, fact in (facts | machine).items()}


def _differences(facts: Mapping[str, Mapping[str, str]]) -> Block:
    """A line for each fact in which the runs, by their names, differ."""
    every = dict.fromkeys(what for fields in facts.values() for what in fields)
    rows = [(what, *(fields.get(what, "") for fields in facts.values())) for what in every]
    unlike = [row for row in rows if len(set(row[1:])) > 1]
    return plain_table(("what", *facts), unlike) if unlike else Text("They differ in nothing that is recorded.")
