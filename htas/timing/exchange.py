"""Tables of measurements, to move between machines: .csv and .parquet files."""

import csv
import io
import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
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
Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Table(ABC):
    """A file with a row for each entry."""

    path: Path

    @staticmethod
    def of(path: Path) -> "Table":
        """The table of a path's suffix; raises UserError where there is none."""
        match path.suffix:
            case ".csv":
                return _Csv(path)
            case ".parquet":
                return _Parquet(path)
        raise UserError(f"a table of measurements is a .csv or a .parquet file, got {path}")

    def write(self, entries: Sequence[Entry]) -> None:
        """Write the file, floats to the last bit."""
        write_bytes(self.path, self._bytes(entries))

    def read(self) -> Iterator[Entry]:
        """Every row as an entry; raises UserError that names the row at fault."""
        try:
            columns, rows = self._rows()
        except FileNotFoundError as error:
            raise UserError(f"{self.path} does not exist; {WRITTEN}") from error
        except (OSError, ValueError, csv.Error) as error:  # pyarrow's own are ValueErrors
            why = getattr(error, "strerror", None) or first_line(error)
            raise UserError(f"{self.path} cannot be read ({why}); {WRITTEN}") from error
        for name in ("format", *COLUMNS):
            if name not in columns:
                raise UserError(f"{self.path} has no column {name!r}; {WRITTEN}")
        for number, row in enumerate(rows, 1):
            where = f"row {number} of {self.path}"
            if str(row["format"]) != str(FORMAT):
                raise UserError(f"{where} has format {row['format']}, this version reads {FORMAT}; {WRITTEN}")
            try:
                yield Entry.of_row(row)
            except ValueError as error:
                raise UserError(f"{where} cannot be read ({error}); {WRITTEN}") from error

    @abstractmethod
    def _bytes(self, entries: Sequence[Entry]) -> bytes:
        """The content of the file."""

    @abstractmethod
    def _rows(self) -> tuple[Sequence[str], Rows]:
        """The columns and the rows of the file."""


class _Csv(Table):
    """One line for each entry; lists and mappings as JSON."""

    def _bytes(self, entries: Sequence[Entry]) -> bytes:
        file = io.StringIO()
        writer = csv.DictWriter(file, ("format", *COLUMNS), lineterminator="\n")
        writer.writeheader()
        writer.writerows({"format": FORMAT, **entry.row()} for entry in entries)
        return file.getvalue().encode()

    def _rows(self) -> tuple[Sequence[str], Rows]:
        limit = csv.field_size_limit(sys.maxsize)  # thousands of readings are one field
        try:
            with self.path.open(encoding="utf-8-sig", newline="") as file:
                reader = csv.DictReader(file, strict=True)
                return reader.fieldnames or (), list(reader)
        finally:
            csv.field_size_limit(limit)


class _Parquet(Table):
    """One row for each entry; the context is JSON, the lists are lists."""

    def _bytes(self, entries: Sequence[Entry]) -> bytes:
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

    def _rows(self) -> tuple[Sequence[str], Rows]:
        from pyarrow import parquet

        table = parquet.ParquetFile(self.path).read()
        return table.column_names, table.to_pylist()
