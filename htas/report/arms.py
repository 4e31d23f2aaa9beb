"""Arms of a comparison on one page: accuracy over measured latency, and the table that compares them with one."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from htas.report._blocks import Cell, Heading, Table, Text, cell_with_note, plain_table, points
from htas.report._figures import arms_over_latency
from htas.report._page import publish
from htas.text import TextTable


def page(
    title: str,
    table: TextTable,
    arms: Sequence[tuple[str, bool, Sequence[tuple[float, float]]]],
    note: str,
    facts: Mapping[str, str],
    every: Sequence[Sequence[str]],
    folder: Path,
) -> Path:
    """Write compare.html, and compare.md with its picture in figures/; the path of the page.

    `arms` are the names, whether each was searched, and the latency in seconds and accuracy in shares of its trainings;
    the marked one is compared with. `note` says what the figures of the table are; `every` has a line for each
    training. Raises UserError where the folder cannot be written.
    """
    headings, *rows = table.rows
    cells = [[Cell(name), *map(cell_with_note, figures)] for name, *figures in rows]
    first, *others = every
    blocks = [
        *([arms_over_latency(arms, *table.marked)] if arms else []),
        Text(note),
        Table(headings, cells, headings[:1], table.marked),
        *([Heading("Notes"), points(("", line) for line in table.after)] if table.after else []),
        Heading("Every network"),
        plain_table(first, others, (first[0], *first[-2:])),
        Heading("How it was measured"),
        points(facts.items()),
    ]
    return publish(title, blocks, folder, "compare")[0]
