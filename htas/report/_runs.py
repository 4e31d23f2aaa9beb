"""Several runs on one page: what each found, their networks in one table and picture, and in what the runs differ."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from htas.files import write_bytes, write_text
from htas.report._blocks import Block, Cell, Heading, Picture, Points, Table, Text
from htas.report._compare import against_base, answer, base_of, found_of
from htas.report._content import EMPTY, doubts, target, value
from htas.report._draw import drawn
from htas.report._figures import pictured, runs_over_latency
from htas.report._html import html
from htas.report._markdown import markdown
from htas.report.result import Report, Result
from htas.text import listing, millions, percent, plus_minus, significant

PICTURE = "runs"
HEADINGS = (
    "network",
    "run",
    "accuracy",
    "measured, ms per batch",
    "predicted, ms",
    "times as fast as its base",
    "multiply-adds",
    "parameters",
)


def page(runs: Mapping[str, Report], folder: Path) -> Path:
    """Write report.html and report.md of several runs, by their names; the path of the page."""
    pictures = {}
    if any(pictured(report) for report in runs.values()):
        pictures = drawn({PICTURE: runs_over_latency({name: pictured(report) for name, report in runs.items()})})
    for name, own in pictures.items():
        write_bytes(folder / "figures" / f"{name}.svg", own.svg)
    title, blocks = f"{len(runs)} runs: {listing(runs)}", _blocks(runs, bool(pictures))
    write_text(folder / "report.md", markdown(title, blocks))
    path = folder / "report.html"
    write_text(path, html(title, blocks, pictures))
    return path


def _blocks(runs: Mapping[str, Report], shown: bool) -> list[Block]:
    picture: Block = Text("No network of these runs is both trained and measured yet.")
    if shown:
        caption = (
            "Accuracy over measured latency. Latencies of one run were read together; those of two runs in two hours, "
            "which may be some percent apart."
        )
        picture = Picture(PICTURE, f"Accuracy over measured latency of the networks of {listing(runs)}", caption)
    marked = frozenset(found.name for report in runs.values() if (found := found_of(report)))
    rows = tuple(_row(name, report, result) for name, report in runs.items() for result in report.results)
    said = [(name, sentence) for name, report in runs.items() for sentence in answer(report).sentences]
    doubtful = [
        (f"{name}, {subject}" if subject else name, doubt)
        for name, report in runs.items()
        for subject, doubt in doubts(report)
    ]
    return [
        Heading("What each run found"),
        Points(tuple(said)),
        Heading("Accuracy and latency"),
        picture,
        Heading("Networks"),
        Table(HEADINGS, rows, frozenset(HEADINGS[:2]), marked),
        Heading("In what the runs differ"),
        _differences(runs),
        Heading("Doubts and remarks"),
        Points((*_unlike(runs), *doubtful)) if doubtful or _unlike(runs) else Text("None."),
        Heading("How to repeat them"),
        Points(tuple((name, report.command) for name, report in runs.items())),
    ]


def _row(run: str, report: Report, result: Result) -> tuple[Cell, ...]:
    compared = against_base(result, base_of(report))
    measured = result.measured
    return (
        Cell(result.name, result.family),
        Cell(run),
        EMPTY if result.accuracy is None else Cell(percent(result.accuracy)),
        EMPTY if measured is None else Cell(plus_minus(1e3 * measured.estimate, 2e3 * measured.error)),
        EMPTY if result.predicted is None else Cell(significant(1e3 * result.predicted)),
        EMPTY if compared is None else Cell(significant(compared.ratio)),
        Cell(millions(result.macs)),
        Cell(millions(result.params)),
    )


def _facts(report: Report) -> dict[str, str]:
    """What two runs may differ in."""
    found = found_of(report) or base_of(report)
    facts: dict[str, Any] = {"data": report.dataset, "test images": report.test_images}
    if found is not None:
        facts |= {"base network": found.family, "target": target(found.target), "seed": found.seed}
        facts |= {"strategy": found.strategy, "cost": found.cost, "space": found.space, "recipe": value(found.recipe)}
    machine = {name: value(given) for name, given in report.machine.items() if name not in ("seed", "fingerprint")}
    return {name: str(fact) for name, fact in (facts | machine).items()}


def _differences(runs: Mapping[str, Report]) -> Block:
    facts = {name: _facts(report) for name, report in runs.items()}
    every = list(dict.fromkeys(what for own in facts.values() for what in own))
    rows = [(what, *(own.get(what, "") for own in facts.values())) for what in every]
    unlike = [row for row in rows if len(set(row[1:])) > 1]
    if not unlike:
        return Text("In nothing that is recorded.")
    headings = ("what", *runs)
    return Table(headings, tuple(tuple(map(Cell, row)) for row in unlike), frozenset(headings))


def _unlike(runs: Mapping[str, Report]) -> Sequence[tuple[str, str]]:
    """Why figures of two runs may not be set beside each other."""
    facts = [_facts(report) for report in runs.values()]
    said = []
    if len({own.get("target") for own in facts}) > 1:
        said.append(("", "The runs were measured for different targets, so their latencies say nothing of each other."))
    if len({own.get("processor") for own in facts}) > 1:
        said.append(("", "The runs were measured on different machines, so their latencies say nothing of each other."))
    if len({(own["data"], own["test images"]) for own in facts}) > 1:
        said.append(("", "The runs were tested on different images, so their accuracies say nothing of each other."))
    return said
