"""A report: one page with the outcome of a run, for people (HTML, Markdown) and programs (JSON)."""

from pathlib import Path

from htas.errors import UserError
from htas.files import RecordError, __version__, from_json, read_json, write_record
from htas.report.result import Report

__all__ = ["read", "write"]


def write(report: Report, folder: Path) -> list[Path]:
    """Write report.json, report.md with its figures/, and report.html, which needs no other file; returns the paths.

    Raises UserError where the folder cannot be written.
    """
    from htas.report._content import content
    from htas.report._names import report_title
    from htas.report._page import publish

    pages = publish(report_title(report), content(report), folder, "report")
    data = folder / "report.json"
    write_record(data, report)  # last: where it exists, the others are whole
    return [data, *pages]


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
