"""A report in a few lines: the answer, and the networks."""

from htas.report._compare import against_base, answer, base_of, found_of
from htas.report.result import Report, Result
from htas.text import NONE, TextTable, millions, percent, plus_minus, shown, significant

HEADINGS = (
    "network", "accuracy", "measured, ms", "predicted, ms", "times as fast as base", "multiply-adds", "parameters"
)  # fmt: skip


def summary(report: Report) -> TextTable:
    """What the top of the page says."""
    base, found = base_of(report), found_of(report)
    return shown(
        [HEADINGS, *(_row(result, base) for result in report.results)], 1,
        before=answer(report).sentences, marked=(found.name,) if found else (),
    )  # fmt: skip


def _row(result: Result, base: Result | None) -> tuple[str, ...]:
    compared, measured = against_base(result, base), result.measured
    times = "1" if result is base and measured else NONE
    if compared is not None:
        times = significant(compared.ratio) + (" (no clear difference)" if compared.verdict == "unclear" else "")
    return (
        result.name,
        NONE if result.accuracy is None else percent(result.accuracy),
        NONE if measured is None else plus_minus(1e3 * measured.estimate, 2e3 * measured.error),
        NONE if result.predicted is None else significant(1e3 * result.predicted),
        times,
        millions(result.macs),
        millions(result.params),
    )
