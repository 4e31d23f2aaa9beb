"""A report: one page that says what came of a run, for people (HTML, Markdown) and programs (JSON)."""

from pathlib import Path

from htas.files import Unusable, read_json, write_bytes, write_json, write_text
from htas.result import Report

__all__ = ["picture", "read", "write"]


def write(report: Report, folder: Path) -> list[Path]:
    """Write report.json, report.md with its figures/, and report.html, which needs no other file; returns the paths.

    Raises Unusable where the folder cannot be written.
    """
    from htas.report._content import content
    from htas.report._figures import drawings
    from htas.report._html import html
    from htas.report._markdown import markdown

    blocks, pictures = content(report), drawings(report)
    data, text, page = (folder / f"report.{suffix}" for suffix in ("json", "md", "html"))
    files = {folder / "figures" / f"{name}.svg": svg for name, svg in pictures.items()}
    for path, svg in files.items():
        write_bytes(path, svg)
    write_text(text, markdown(report.title, blocks))
    write_text(page, html(report.title, blocks, pictures))
    write_json(data, report.json())  # last: it tells that the others are whole
    return [data, text, page, *files]


def read(path: Path) -> Report:
    """The report that `write` wrote: the path of its report.json, or of its folder. Raises Unusable."""
    file = path / "report.json" if path.is_dir() else path
    content = read_json(file)
    try:
        return Report.of(content)
    except (KeyError, TypeError, ValueError) as error:
        raise Unusable(
            f"{file} is not a report ({error!r}); name the report.json of a run, or make it again"
        ) from error


def picture(report: Report, path: Path) -> None:
    """Write the picture of accuracy over measured latency, as SVG or PNG by the ending of the path.

    Raises ValueError for another ending, and where no network is both trained and measured.
    """
    from htas.report._figures import accuracy_over_latency, pictured, saved, style

    kind = path.suffix.lower().lstrip(".")
    if kind not in ("svg", "png"):
        raise ValueError(f"a picture is written as .svg or .png, got {path.name!r}; name a file with such an ending")
    if not pictured(report):
        raise ValueError("no network of this report is both trained and measured; train and measure one first")
    with style():
        write_bytes(path, saved(accuracy_over_latency(report), kind))
