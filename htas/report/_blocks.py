"""The pieces a report is made of, before it is known whether they become Markdown or HTML."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any


@dataclass(frozen=True)
class Cell:
    """One cell of a table: what it says and, smaller, what must be known of it."""

    text: str
    note: str = ""

    def __str__(self) -> str:
        return f"{self.text} ({self.note})" if self.note else self.text


@dataclass(frozen=True)
class Figure:
    """One number of the answer on top: what it is called, its value, and what it is made of."""

    label: str
    value: str
    note: str


@dataclass(frozen=True)
class Answer:
    """What a reader should know after five seconds."""

    headline: str
    details: tuple[str, ...]
    figures: tuple[Figure, ...]

    @property
    def sentences(self) -> tuple[str, ...]:
        """The headline, and the sentences below it."""
        return (self.headline, *self.details)


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

    items: Sequence[tuple[str, str]]


def points(items: Iterable[tuple[str, str]], none: str = "None.") -> Points | Text:
    """A list, or the sentence that there is none."""
    each = list(items)
    return Points(each) if each else Text(none)


@dataclass(frozen=True)
class Table:
    """Rows under headings; the first column names the row."""

    headings: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    wordy: Sequence[str]
    """Headings of the columns that hold words, not numbers."""
    marked: Sequence[str] = ()
    """First cells of the rows to be set off."""


def plain_table(headings: Sequence[str], rows: Iterable[Sequence[str]], wordy: Sequence[str] = ()) -> Table:
    """A table of texts without notes; all columns hold words where none is named."""
    return Table(headings, [list(map(Cell, row)) for row in rows], wordy or headings)


def facts_table(facts: Mapping[str, object]) -> Table:
    """Names and their values."""
    return plain_table(("what", "value"), [(name, str(fact)) for name, fact in facts.items()])


def cell_with_note(text: str) -> Cell:
    """The deviation or interval of a value is its note: `91.20 ± 0.15`, `1.05 (1.01 to 1.09)`."""
    parts = re.fullmatch(r"([-+\N{MINUS SIGN}]?[\d.]+) (± .*|\(.*\))", text)
    return Cell(parts[1], parts[2].strip("()")) if parts else Cell(text)


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
    blocks: Sequence["Block"]


Block = Answer | Heading | Text | Points | Table | Picture | Code | Fold
