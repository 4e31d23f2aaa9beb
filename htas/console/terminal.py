"""Printed tables: drawn on a terminal, plain columns elsewhere, JSON for programs."""

import json
import sys
from collections.abc import Mapping, Sequence

from htas.text import TextTable, printable


def show(tables: Sequence[TextTable], more: Mapping[str, str], as_json: bool) -> None:
    """Print tables, and `more` below them, a line each; as JSON one object with all of it.

    On a terminal tables have rules and the fields of a table that is too wide are wrapped; colour is left out where
    NO_COLOR is set or TERM is dumb. Elsewhere every row is one line, however wide.
    """
    if as_json:
        print(json.dumps({**more, "tables": [table.json() for table in tables]}, indent=1))
        return
    for table in tables:
        if sys.stdout.isatty():
            _draw(table)
        else:
            print(printable(str(table)))
    for value in more.values():
        print(printable(value))


def _draw(content: TextTable) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    for number, line in enumerate(content.before):
        console.print(Text(printable(line), style="bold" if number == 0 else ""))
    if content.rows:
        headings, *rows = content.rows
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
        for number, heading in enumerate(headings):
            table.add_column(Text(heading), justify="left" if number < content.words else "right")
        for row in rows:
            marked = row[0] in content.marked
            table.add_row(*(Text(printable(cell)) for cell in row), style="bold green" if marked else "")
        console.print(table)
    for line in content.after:
        console.print(Text(printable(line)))
