"""Arms of a comparison on one page: accuracy over measured latency, and the table that compares them with one."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from htas.report._blocks import Block, Cell, Heading, Picture, Points, Table, Text, cell_with_note, plain_table
from htas.report._draw import RenderedChart, render
from htas.report._figures import arms_over_latency
from htas.report._publish import publish

PICTURE = "arms"
MARKS = (" ± ", " (")


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
    blocks: list[Block] = []
    pictures: dict[str, RenderedChart] = {}
    trained = [arm for arm in arms if arm[2]]
    if trained:
        pictures = render({PICTURE: arms_over_latency(trained, against)})
        shows = f"Accuracy over measured latency of {', '.join(name for name, _, _ in trained)}"
        blocks.append(Picture(PICTURE, shows, (
            "The large mark of an arm is the mean of its trainings, the small ones. Searched networks are diamonds, "
            "others circles. Up and to the left is better."
        )))  # fmt: skip
    headings, *rows = table
    wordy = frozenset(headings[:1])
    cells = tuple((Cell(name), *(cell_with_note(figure, MARKS) for figure in figures)) for name, *figures in rows)
    blocks += [Text(note), Table(tuple(headings), cells, wordy, frozenset([against]))]
    if notes:
        blocks += [Heading("Notes"), Points(tuple(("", note) for note in notes))]
    first, *others = every
    blocks += [Heading("Every network"), plain_table(first, others, (first[0], *first[-2:]))]
    blocks += [Heading("How it was measured"), Points(tuple(facts.items()))]
    return publish(title, blocks, pictures, folder, "compare")
