"""The paper's tables and figures next to those measured here, on one page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from htas.report._blocks import Block, Heading, Picture, Points, Table, Text, cell_with_note
from htas.report._curves import fitted_curve, scored_widths
from htas.report._draw import RenderedChart, Spec, render
from htas.report._figures import gained
from htas.report._publish import publish

__all__ = ["Figure", "Section", "fitted_curve", "gained", "page", "scored_widths"]


@dataclass(frozen=True)
class Figure:
    """A picture of a section: its name, the chart, what it shows for those who cannot see it, the text below it."""

    name: str
    chart: Spec
    shows: str
    caption: str


@dataclass(frozen=True)
class Section:
    """A table or figure of the paper, made again."""

    title: str
    says: tuple[str, ...]
    """What came out, and by how much it is like the paper's; a paragraph each."""
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int
    """The number of columns, from the first on, that hold words and no numbers."""
    marked: tuple[str, ...] = ()
    """First cells of the rows to be set off."""
    figures: tuple[Figure, ...] = ()
    notes: tuple[str, ...] = ()
    """What must be known before a figure is believed."""
    facts: Mapping[str, str] | None = None
    """How it was made: length, target, machine, versions, the command."""


def page(title: str, intro: str, sections: Sequence[Section], folder: Path) -> Path:
    """Write reproduce.html, and reproduce.md with its pictures in figures/; the path of the page.

    Raises UserError where the folder cannot be written.
    """
    blocks: list[Block] = [Text(intro)]
    pictures: dict[str, RenderedChart] = {}
    for section in sections:
        pictures |= render({figure.name: figure.chart for figure in section.figures})
        blocks += _blocks(section)
    return publish(title, blocks, pictures, folder, "reproduce")


def _blocks(section: Section) -> list[Block]:
    rows = tuple(tuple(map(cell_with_note, row)) for row in section.rows)
    words = frozenset(section.headings[: section.words])
    blocks: list[Block] = [Heading(section.title), *map(Text, section.says)]
    blocks.append(Table(section.headings, rows, words, frozenset(section.marked)))
    blocks += [Picture(figure.name, figure.shows, figure.caption) for figure in section.figures]
    points = [("", note) for note in section.notes] + list((section.facts or {}).items())
    return [*blocks, *([Points(tuple(points))] if points else [])]
