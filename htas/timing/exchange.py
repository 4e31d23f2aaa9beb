"""Tables of measurements, to move between machines: .csv and .parquet files."""

import csv
import io
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from htas.errors import UserError
from htas.files import write_bytes
from htas.text import first_line
from htas.timing.entry import COLUMNS, LISTS, WORDS, Entry

FORMAT = 1
"""Of a table, in its first column."""
WRITTEN = "give a file that htas store export of this version wrote"
"""How error sentences end: the way out."""
Rows = tuple[Sequence[str], Sequence[Mapping[str, Any]]]
"""The columns and the rows of a file."""


def write_table(path: Path, entries: Sequence[Entry]) -> None:
    """Write a .csv or .parquet file with a row for each entry, floats to the last bit."""
    write_bytes(path, _FORMATS[path.suffix][0](entries))


def read_table(path: Path) -> Iterator[Entry]:
    """Every row as an entry; raises UserError that names the row at fault."""
    check_suffix(path)
    try:
        columns, rows = _FORMATS[path.suffix][1](path)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; {WRITTEN}") from error
    except (OSError, ValueError, csv.Error) as error:  # pyarrow's own are ValueErrors
        why = getattr(error, "strerror", None) or first_line(error)
        raise UserError(f"{path} cannot be read ({why}); {WRITTEN}") from error
    for name in ("format", *COLUMNS):
        if name not in columns:
            raise UserError(f"{path} has no column {name!r}; {WRITTEN}")
    for number, row in enumerate(rows, 1):
        where = f"row {number} of {path}"
        if str(row["format"]) != str(FORMAT):
            raise UserError(f"{where} has format {row['format']}, this version reads {FORMAT}; {WRITTEN}")
        try:
            yield Entry.of_row(row)
        except ValueError as error:
            raise UserError(f"{where} cannot be read ({error}); {WRITTEN}") from error


def check_suffix(path: Path) -> None:
    """Raise UserError where a path is of no table."""
    if path.suffix not in _FORMATS:
        raise UserError(f"a table of measurements is a .csv or a .parquet file, got {path}")


def _to_csv(entries: Sequence[Entry]) -> bytes:
    """One line for each entry; lists and mappings as JSON."""
    file = io.StringIO()
    writer = csv.DictWriter(file, ("format", *COLUMNS), lineterminator="\n")
    writer.writeheader()
    writer.writerows({"format": FORMAT, **entry.row()} for entry in entries)
    return file.getvalue().encode()


def _of_csv(path: Path) -> Rows:
    limit = csv.field_size_limit(sys.maxsize)  # thousands of readings are one field
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            return reader.fieldnames or (), list(reader)
    finally:
        csv.field_size_limit(limit)


def _to_parquet(entries: Sequence[Entry]) -> bytes:
    """One row for each entry; the context is JSON, the lists are lists."""
    import pyarrow
    from pyarrow import parquet

    items = {str: pyarrow.string(), float: pyarrow.float64()}
    lists = {name: pyarrow.list_(items[kind]) for name, kind in LISTS.items()}
    kinds = {"format": pyarrow.int64(), **dict.fromkeys((*WORDS, "context"), pyarrow.string()), **lists}
    contents = [entry.json() for entry in entries]
    rows = [{"format": FORMAT, **each, "context": json.dumps(each["context"])} for each in contents]
    file = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows, pyarrow.schema(kinds)), file)
    return file.getvalue()


def _of_parquet(path: Path) -> Rows:
    from pyarrow import parquet

    table = parquet.ParquetFile(path).read()
    return table.column_names, table.to_pylist()


_FORMATS = {".csv": (_to_csv, _of_csv), ".parquet": (_to_parquet, _of_parquet)}
