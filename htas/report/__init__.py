"""A report: one page with the outcome of a run, for people (HTML, Markdown) and programs (JSON)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from htas.errors import UserError
from htas.files import (
    RecordError,
    __version__,
    from_json,
    read_json,
    write_bytes,
    write_record,
    write_text,
)
from htas.report.result import Report
from htas.spaces.curve import CurveRecord
from htas.text import TextTable

if TYPE_CHECKING:
    from htas.spaces.inspection import Inspection

__all__ = ["read", "summary", "write", "write_inspection", "write_runs", "write_survey"]


def write(report: Report, folder: Path) -> list[Path]:
    """Write report.json, report.md with its figures/, and report.html, which needs no other file; returns the paths.

    Raises UserError where the folder cannot be written.
    """
    from htas.report._blocks import Picture
    from htas.report._content import content
    from htas.report._draw import render
    from htas.report._figures import drawings
    from htas.report._html import html
    from htas.report._markdown import markdown
    from htas.report._names import report_title

    blocks = content(report)
    later = {block.name for block in blocks if isinstance(block, Picture) and block.later}
    pictures = render(drawings(report), later)
    data, text, page = (folder / f"report.{suffix}" for suffix in ("json", "md", "html"))
    files = {folder / "figures" / f"{name}.svg": chart.svg for name, chart in pictures.items() if chart.svg}
    for path, svg in files.items():
        write_bytes(path, svg)
    title = report_title(report)
    write_text(text, markdown(title, blocks))
    write_text(page, html(title, blocks, pictures))
    write_record(data, report)  # last: where it exists, the others are whole
    return [data, text, page, *files]


def write_runs(runs: Mapping[str, Report], folder: Path) -> Path:
    """Write report.html and report.md of several runs, by their names, on one page; the path of the page.

    Raises UserError where the folder cannot be written.
    """
    from htas.report._runs import page

    return page(runs, folder)


def write_inspection(
    title: str, inspection: "Inspection", facts: Sequence[tuple[str, str]], folder: Path
) -> tuple[Path, TextTable]:  # fmt: skip
    """Write inspect.html; its path, and a summary."""
    from htas.report._inspection import page

    return page(title, inspection, facts, folder)


def write_survey(
    title: str,
    curves: Sequence[CurveRecord],
    sure: float,
    doubts: Sequence[str],
    decided: str,
    facts: Mapping[str, str],
    folder: Path,
) -> tuple[Path, TextTable]:
    """Write survey.html and a PNG of each curve; the path of the page, and its table of choices.

    `decided` says how many choices are. A choice that is less than `sure` to be right is marked. Raises
    UserError where the folder cannot be written.
    """
    from htas.report._survey import page

    return page(title, curves, sure, doubts, decided, facts, folder)


def summary(report: Report) -> TextTable:
    """The answer and the networks, for a terminal."""
    from htas.report._summary import summary as table

    return table(report)


def read(path: Path) -> Report:
    """The report that `write` wrote: the path of its report.json, or of its folder. Raises UserError."""
    file = path / "report.json" if path.is_dir() else path
    content = read_json(file)
    try:
        return from_json(content, Report, file)
    except RecordError as error:
        machine = content.get("machine")
        by = machine.get("htas") if isinstance(machine, dict) else None
        other = f", written by htas {by}, where this is {__version__}" if by and by != __version__ else ""
        raise UserError(
            f"{file} is not a report ({error.reason}){other}; name the report.json of a run, or make it again with "
            "the version that made it"
        ) from error
