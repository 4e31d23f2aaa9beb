"""The pieces a report is made of, before it is known whether they become Markdown or HTML."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from htas.report._compare import Answer


@dataclass(frozen=True)
class Cell:
    """One cell of a table: what it says and, smaller, what must be known of it."""

    text: str
    note: str = ""


@dataclass(frozen=True)
class Heading:
    """The title of a section."""

    text: str


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Points:
    """A list of sentences, each with its subject; an empty subject is left out."""

    items: tuple[tuple[str, str], ...]


def points(items: Iterable[tuple[str, str]], none: str = "None.") -> Points | Text:
    """A list, or the sentence that there is none."""
    each = tuple(items)
    return Points(each) if each else Text(none)


@dataclass(frozen=True)
class Table:
    """Rows under headings; the first column names the row."""

    headings: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    wordy: frozenset[str]
    """Headings of the columns that hold words, not numbers."""
    marked: frozenset[str] = frozenset()
    """First cells of the rows to be set off."""


def plain_table(headings: Sequence[str], rows: Iterable[Sequence[str]], wordy: Iterable[str] = ()) -> Table:
    """A table of texts without notes; all columns hold words where none is named."""
    cells = tuple(tuple(map(Cell, row)) for row in rows)
    return Table(tuple(headings), cells, frozenset(wordy) or frozenset(headings))


def cell_with_note(text: str, marks: Sequence[str] = (" \N{PLUS-MINUS SIGN} ",)) -> Cell:
    """The deviation or interval of a value is its note: `91.20 ± 0.15`, or `1.05 (1.01 to 1.09)` with the mark ` (`."""
    for mark in marks:
        value, separator, rest = text.partition(mark)
        if separator:
            return Cell(value, f"{mark.strip(' (')} {rest.removesuffix(')')}".strip())
    return Cell(text)


@dataclass(frozen=True)
class Picture:
    """A figure: its name, the chart, what it shows for those who cannot see it, and the text below it."""

    name: str
    chart: dict[str, Any]
    """As Vega-Lite has it."""
    shows: str
    caption: str
    later: bool = False
    """Drawn by the page itself, and in no other file."""

    @cached_property
    def svg(self) -> bytes:
        """The chart as a file; empty where the page draws it."""
        from htas.report._draw import svg

        return b"" if self.later else svg(self.chart)


@dataclass(frozen=True)
class Code:
    """Text that is shown as it is."""

    text: str
    language: str


@dataclass(frozen=True)
class Fold:
    """Blocks that open on request."""

    summary: str
    blocks: tuple["Block", ...]


Block = Answer | Heading | Text | Points | Table | Picture | Code | Fold
