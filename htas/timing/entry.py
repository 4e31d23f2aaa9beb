"""The readings of one layer in one survey, as a store has them, and tables of them: .csv and .parquet files."""

import csv
import io
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import inf, isfinite
from pathlib import Path
from reprlib import repr as shortened
from typing import Any, cast
from zlib import crc32

import numpy as np

from htas.errors import UserError
from htas.files import JsonObject, write_bytes
from htas.plugins.values import REFUSED, check
from htas.text import first_line
from htas.timing.measurement import Measurement

COLUMNS: Mapping[str, Any] = {
    **dict.fromkeys(("place", "metric", "survey", "layer", "unit", "date"), str),
    "context": dict[str, str],
    **dict.fromkeys(("doubts", "remarks"), tuple[str, ...]),
    **dict.fromkeys(("readings", "levels", "anchor"), tuple[float, ...]),
}
"""Columns and their types. The long ones are last, as a query need not read them from the disk."""
FORMAT = 1
"""Of a table, in its first column."""
CHECKSUM = "checksum"
"""The last column of a table, which those of earlier versions lack."""
CUT = 100
"""Letters of what another program says, or of what should be a number."""
WRITTEN = "give a file that htas store export of this version wrote"
"""How error sentences end: the way out."""
LONGEST = 200
"""Letters of a name."""
ALONE = ("eager", "compiled", "cuda_graph")
"""Runtimes whose layers are timed by themselves: a reading of the increment of a chain, as others take it, may lie
below the rest of the chain and so below 0."""
LARGEST = 2**30
"""Bytes of a table that is read at once, and of what a compressed one holds."""
Rows = tuple[Sequence[str], Sequence[Mapping[str, Any]]]
"""The columns and the rows of a file."""


@dataclass(frozen=True)
class Entry:
    """The readings of one layer in one survey. Raises UserError where they cannot be stored."""

    place: str
    """Digest of all that readings depend on: device, runtime, versions, precision, threads, batch, affinity, quota."""
    metric: str
    """`latency`"""
    layer: str
    """Layer.key, or other JSON with sorted keys that says what was measured."""
    measurement: Measurement
    """With the survey it belongs to."""
    anchor: tuple[float, ...] = ()
    """Readings of the anchor layer, from the same rounds."""
    doubts: tuple[str, ...] = ()
    """Why the survey distrusts these readings, besides the measurement's own remarks."""
    date: str = field(default_factory=lambda: datetime.now(UTC).isoformat(), compare=False)
    """ISO 8601 with a zone, converted to UTC and to the microsecond, so that dates sort as text."""

    def __post_init__(self) -> None:
        for name in ("place", "metric", "survey"):
            if not getattr(self, name):
                raise UserError(f"{name} of a stored measurement must not be empty")
        if not _is_canonical(self.layer):
            got = shortened(self.layer)
            raise UserError(f"layer of a stored measurement must be JSON as Layer.key writes it, got {got}")
        context = self.measurement.context
        if not all(isinstance(each, str) for each in (*context, *context.values())):
            raise UserError(f"the context of a stored measurement must be words by name, got {shortened(context)}")
        for name in (self.place, self.metric, self.survey, self.measurement.unit):
            if not name.isprintable() or len(name) > LONGEST:
                rule = f"must be at most {LONGEST} letters that can be printed, got {shortened(name)}"
                raise UserError(f"place, metric, survey and unit of a stored measurement {rule}")
        if not is_text(*context, *context.values(), *self.doubts, *self.measurement.remarks):
            raise UserError("the words of a stored measurement must be Unicode, got a lone surrogate")
        above = (*self.measurement.levels, *self.anchor)  # one reading of a chain may lie below the rest of it
        if not (all(map(isfinite, self.measurement.values)) and all(0 < each < inf for each in above)):
            got = shortened(self.layer)
            raise UserError(f"readings must be finite, and levels above 0, to be stored, got others for {got}")
        lowest, runtime = self.measurement.minimum, context.get("runtime")
        if lowest <= 0 and runtime in ALONE and self.storable(self.measurement):
            got = f"{lowest:g} for {shortened(self.layer)}"
            raise UserError(f"every reading of a layer that {runtime} timed must be above 0 to be stored, got {got}")
        if not self.storable(self.measurement):
            got = shortened(self.layer)
            raise UserError(f"the estimate of readings must be above 0 to be stored, it is not for {got}")
        object.__setattr__(self, "date", _in_utc(self.date))

    @staticmethod
    def storable(measurement: Measurement) -> bool:
        """Whether readings have a latency that others can be compared with; a layer that takes next to nothing may
        have none, as the increment of a chain."""
        with np.errstate(all="ignore"):
            return 0 < measurement.estimate < inf

    @property
    def survey(self) -> str:
        """The survey that its readings belong to."""
        return self.measurement.survey

    def row(self) -> JsonObject:
        """The value of each column; `Entry.of` reads them back."""
        readings = {**vars(self.measurement), "readings": self.measurement.values}
        return {name: readings[name] if name in readings else getattr(self, name) for name in COLUMNS}

    def texts(self) -> dict[str, str]:
        """One text for each column; lists and mappings as JSON."""
        return {name: value if COLUMNS[name] is str else json.dumps(value) for name, value in self.row().items()}

    @staticmethod
    def of(row: Mapping[str, Any]) -> "Entry":
        """The entry of a row, whose lists and mappings may be JSON text; raises ValueError that names the field at
        fault."""
        values = {}
        for name, kind in COLUMNS.items():
            value = row[name]
            try:
                if kind is not str and isinstance(value, str):
                    value = json.loads(value)
                values[name] = check(value, kind)
            except (*REFUSED, OverflowError, RecursionError) as error:
                raise UserError(f"{name} is not what htas store export writes there: {shortened(value)}") from error
        fields = ("readings", "unit", "context", "survey", "levels", "remarks")
        measurement = Measurement(*(values.pop(name) for name in fields))
        return Entry(measurement=measurement, **values)


def checksum(cells: Mapping[str, object]) -> int:
    """Of the texts of a row: digits that a disk or a hand changed give another one."""
    return crc32("\0".join(str(cells[name]) for name in COLUMNS).encode(errors="backslashreplace"))


def read_context(cell: object) -> Mapping[str, str]:
    """What a cell of the context says; nothing where it cannot be read."""
    with suppress(*REFUSED, RecursionError):
        return cast(Mapping[str, str], check(json.loads(cast(str, cell)), COLUMNS["context"]))
    return {}


def is_text(*values: object) -> bool:
    """Whether all of them that are strings are Unicode, and no bytes that stand for themselves."""
    try:
        return all(not isinstance(each, str) or each.isascii() or bool(each.encode()) for each in values)
    except UnicodeEncodeError:
        return False


def _in_utc(date: str) -> str:
    with suppress(ValueError, OverflowError):
        if (moment := datetime.fromisoformat(date)).tzinfo is not None:
            return moment.astimezone(UTC).isoformat(timespec="microseconds")
    raise UserError(f"date must be ISO 8601 with a zone, such as 2026-11-23T04:05:06+00:00, got {shortened(date)}")


def _is_canonical(layer: str) -> bool:
    """Whether equal work would have an equal key: a JSON object with its names in order."""
    with suppress(ValueError, RecursionError):
        content = json.loads(layer)
        return isinstance(content, dict) and json.dumps(content, sort_keys=True) == layer
    return False


def write_table(path: Path, entries: Sequence[Entry]) -> None:
    """Write a .csv or .parquet file with a row for each entry, floats to the last bit.

    Raises UserError where the file cannot be written.
    """
    write_bytes(path, _FORMATS[path.suffix][0](entries))


def read_table(path: Path) -> Iterator[Entry]:
    """Every row as an entry; raises UserError that names the row at fault."""
    check_suffix(path)
    try:
        if not path.is_file():
            raise UserError(f"{path} {'is no file' if path.exists() else 'does not exist'}; {WRITTEN}")
        _check_size(path, path.stat().st_size)
        columns, rows = _FORMATS[path.suffix][1](path)
    except UserError:
        raise
    except (OSError, ValueError, csv.Error) as error:
        why = getattr(error, "strerror", None) or first_line(error)[:CUT]
        raise UserError(f"{path} cannot be read ({why}); {WRITTEN}") from error
    for name in ("format", *COLUMNS):
        if name not in columns:
            raise UserError(f"{path} has no column {name!r}; {WRITTEN}")
    for number, row in enumerate(rows, 1):
        where = f"row {number} of {path}"
        if str(row["format"]) != str(FORMAT):
            raise UserError(f"{where} has format {str(row['format'])[:CUT]}, this version reads {FORMAT}; {WRITTEN}")
        try:
            entry = Entry.of(row)
            if row.get(CHECKSUM) not in (None, "", number_of := checksum(entry.texts()), str(number_of)):
                raise UserError("its cells were changed after they were exported")
            yield entry
        except ValueError as error:
            raise UserError(f"{where} cannot be read ({error}); {WRITTEN}") from error


def check_suffix(path: Path) -> None:
    """Raise UserError where a path is of no table."""
    if path.suffix not in _FORMATS:
        raise UserError(f"a table of measurements is a .csv or a .parquet file, got {path}")


def _check_size(path: Path, size: int) -> None:
    """Raise UserError where a table is too large to be read at once."""
    if size > LARGEST:
        most = f"{LARGEST / 2**30:g} GiB"
        raise UserError(f"{path} holds {size / 2**30:.3g} GiB, and at most {most} is read at once; give it in parts")


def _to_csv(entries: Sequence[Entry]) -> bytes:
    file = io.StringIO()
    writer = csv.DictWriter(file, ("format", *COLUMNS, CHECKSUM), lineterminator="\n")
    writer.writeheader()
    for entry in entries:
        writer.writerow({"format": FORMAT, **(texts := entry.texts()), CHECKSUM: checksum(texts)})
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

    text = pyarrow.string()
    types = {tuple[str, ...]: pyarrow.list_(text), tuple[float, ...]: pyarrow.list_(pyarrow.float64())}
    schema = {"format": pyarrow.int64(), **{name: types.get(kind, text) for name, kind in COLUMNS.items()}}
    schema[CHECKSUM] = pyarrow.int64()
    several = ((entry.row(), entry.texts()) for entry in entries)
    rows = [{"format": FORMAT, **row, "context": texts["context"], CHECKSUM: checksum(texts)} for row, texts in several]
    file = io.BytesIO()
    table = pyarrow.Table.from_pylist(rows, pyarrow.schema(schema))
    parquet.write_table(table, file, write_page_checksum=True)
    return file.getvalue()


def _of_parquet(path: Path) -> Rows:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path, page_checksum_verification=True) as file:
            groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
            chunks = [group.column(number) for group in groups for number in range(group.num_columns)]
            _check_size(path, sum(max(each.total_uncompressed_size, 8 * each.num_values) for each in chunks))
            columns = file.schema_arrow.names
            table = file.read([name for name in ("format", *COLUMNS, CHECKSUM) if name in columns])
        table.validate(full=True)
        return columns, table.to_pylist()
    except (pyarrow.ArrowException, OverflowError, TypeError) as error:  # the latter for what Python has no value for
        raise ValueError(first_line(error)) from error


_FORMATS = {".csv": (_to_csv, _of_csv), ".parquet": (_to_parquet, _of_parquet)}
