"""A report in a few lines: the answer, and the networks."""

from htas.report._blocks import Cell
from htas.report._compare import against_base, answer, base_of, found_of
from htas.report._names import row_names
from htas.report.result import Report, Result
from htas.text import NONE, TextTable, millions, percent, plus_minus, significant

HEADINGS = (
    "network", "accuracy", "measured, ms", "predicted, ms", "times as fast as base", "multiply-adds", "parameters"
)  # fmt: skip


def summary(report: Report) -> TextTable:
    """What the top of the page says."""
    names, base = row_names(report), base_of(report)
    rows = [(names[result.name], *map(str, figures(result, base))) for result in report.results]
    return TextTable([HEADINGS, *rows], 1, before=answer(report).sentences, marked=marked(report))


def marked(report: Report) -> list[str]:
    """The names of the rows to be set off: that of the searched network."""
    searched = found_of(report)
    return [row_names(report)[searched.name]] if searched else []


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
