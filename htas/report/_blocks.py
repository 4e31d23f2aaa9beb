"""The pieces a report is made of, before it is known whether they become Markdown or HTML."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

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
    """A figure by the name it was drawn under, what it shows for those who cannot see it, and the text below it."""

    name: str
    shows: str
    caption: str
    later: bool = False
    """Drawn by the page itself, and in no other file."""


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
