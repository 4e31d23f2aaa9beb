"""A report in a few lines: the answer, and the networks."""

from htas.report._blocks import Cell
from htas.report._compare import against_base, answer, base_of, found_of
from htas.report._names import network_names, row_name
from htas.report.result import Report, Result
from htas.text import NONE, TextTable, millions, percent, plus_minus, significant

HEADINGS = (
    "network", "accuracy", "measured, ms", "predicted, ms", "times as fast as base", "multiply-adds", "parameters"
)  # fmt: skip


def summary(report: Report) -> TextTable:
    """What the top of the page says."""
    base, searched = base_of(report), found_of(report)
    names = {name: row_name(label) for name, label in network_names(report).items()}
    rows = [
        (
            names[result.name],
            *(f"{cell.text} ({cell.note})" if cell.note else cell.text for cell in figures(result, base)),
        )
        for result in report.results
    ]
    marked = (names[searched.name],) if searched else ()
    return TextTable([HEADINGS, *rows], 1, before=answer(report).sentences, marked=marked)


def figures(result: Result, base: Result | None) -> tuple[Cell, ...]:
    """Share of the test split, milliseconds measured and predicted, speed over the base, multiply-adds, parameters."""
    compared, measured = against_base(result, base), result.measured
    times = Cell("1" if result is base and measured else NONE)
    if compared is not None:
        times = Cell(significant(compared.ratio), "no clear difference" if compared.verdict == "unclear" else "")
    return (
        Cell(NONE if result.accuracy is None else percent(result.accuracy)),
        Cell(NONE if measured is None else plus_minus(1e3 * measured.estimate, 2e3 * measured.error)),
        Cell(NONE if result.predicted is None else significant(1e3 * result.predicted)),
        times,
        Cell(millions(result.macs)),
        Cell(millions(result.params)),
    )
