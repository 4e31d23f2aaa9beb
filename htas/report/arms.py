"""Arms of a comparison on one page: accuracy over measured latency, and the table that compares them with one."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from htas.report._blocks import Cell, Heading, Picture, Table, Text, cell_with_note, plain_table, points
from htas.report._figures import arms_over_latency
from htas.report._page import publish

MARKS = (" ± ", " (")
CAPTION = (
    "The large mark of an arm is the mean of its trainings, the small ones. Searched networks are diamonds, others "
    "circles. Up and to the left is better."
)


def page(
    title: str,
    table: Sequence[Sequence[str]],
    arms: Sequence[tuple[str, bool, Sequence[tuple[float, float]]]],
    against: str,
    note: str,
    notes: Sequence[str],
    facts: Mapping[str, str],
    every: Sequence[Sequence[str]],
    folder: Path,
) -> Path:
    """Write compare.html, and compare.md with its picture in figures/; the path of the page.

    `arms` are the names, whether each was searched, and the latency in seconds and accuracy in shares of its trainings;
    `against` is set off, and `note` says what the figures of the table are; `every` has a line for each training.
    Raises UserError where the folder cannot be written.
    """
    headings, *rows = table
    cells = tuple((Cell(name), *(cell_with_note(figure, MARKS) for figure in figures)) for name, *figures in rows)
    first, *others = every
    trained = [arm for arm in arms if arm[2]]
    shows = f"Accuracy over measured latency of {', '.join(name for name, _, _ in trained)}"
    pictures = [Picture("arms", arms_over_latency(trained, against), shows, CAPTION)] if trained else []
    blocks = [
        *pictures,
        Text(note),
        Table(tuple(headings), cells, frozenset(headings[:1]), frozenset([against])),
        *([Heading("Notes"), points(("", note) for note in notes)] if notes else []),
        Heading("Every network"),
        plain_table(first, others, (first[0], *first[-2:])),
        Heading("How it was measured"),
        points(facts.items()),
    ]
    return publish(title, blocks, folder, "compare")[0]
