"""The readings of every survey in one SQLite file: what was measured once is there for the next run.

A row is one layer in one survey at one place. Readings are JSON text, not a BLOB: Python writes the digits that read
back as the same float, and the sqlite3 command and its json_each can read them too.

Format history (PRAGMA user_version):
1  the first one
"""

import csv
import io
import json
import os
import sqlite3
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from htas import text
from htas.console.progress import say
from htas.errors import UserError
from htas.files import write_bytes
from htas.timing.measurement import Measurement

T = TypeVar("T")

OTHER = "name another store with HTAS_STORE or --path"
WRITTEN = "give a file that htas store export of this version wrote"
"""How sentences end: the ways out."""

WORDS = ("place", "metric", "survey", "layer", "unit", "date")
VALUES = ("context", "doubts", "remarks", "readings", "levels", "anchor")
"""JSON in SQLite and CSV. The long ones are last, so that what lists surveys need not read them from the disk."""
COLUMNS = (*WORDS, *VALUES)

STEPS: tuple[tuple[str, ...], ...] = (
    (
        """
        CREATE TABLE readings (
            id INTEGER PRIMARY KEY,
            place TEXT NOT NULL,
            metric TEXT NOT NULL,
            survey TEXT NOT NULL,
            layer TEXT NOT NULL,
            unit TEXT NOT NULL,
            date TEXT NOT NULL,
            context TEXT NOT NULL,
            doubts TEXT NOT NULL,
            remarks TEXT NOT NULL,
            readings TEXT NOT NULL,
            levels TEXT NOT NULL,
            anchor TEXT NOT NULL,
            UNIQUE (place, metric, layer, survey)
        )
        """,
    ),
)
"""What leads from each format to the next; a new store takes them all. Those that were released stay as they are."""

HTAS = 0x68746173
"""PRAGMA application_id of a store, `htas` in ASCII: the files of other programs are left alone."""
TABLE = 1
"""Format of an exported table."""


def now() -> str:
    """This moment, in UTC and to the microsecond, so that dates sort as text."""
    return _utc(datetime.now(UTC))


@dataclass(frozen=True)
class Entry:
    """The readings of one layer in one survey."""

    place: str
    """Digest of all that readings depend on: device, runtime, versions, precision, threads, batch, affinity, quota."""
    metric: str
    """`latency`"""
    layer: str
    """Layer.key, or other JSON with sorted keys that says what was measured."""
    measurement: Measurement
    """With the survey it belongs to."""
    anchor: tuple[float, ...] = ()
    """Readings of the anchor layer, taken in the same rounds."""
    doubts: tuple[str, ...] = ()
    """What the survey found against these readings, beside the measurement's own remarks."""
    date: str = field(default_factory=now, compare=False)
    """ISO 8601 with a zone, kept in UTC."""

    def __post_init__(self) -> None:
        for name, word in (("place", self.place), ("metric", self.metric), ("survey", self.survey)):
            if not word:
                raise UserError(f"{name} of a stored measurement must not be empty")
        if not _canonical(self.layer):
            raise UserError(f"layer of a stored measurement must be JSON as Layer.key writes it, got {self.layer!r}")
        if not _are_named(dict(self.measurement.context)):
            raise UserError(
                f"the context of a stored measurement must be words by name, got {self.measurement.context}"
            )
        if not all(map(isfinite, (*self.measurement.values, *self.measurement.levels, *self.anchor))):
            raise UserError(f"readings must be finite to be stored, got others for {self.layer}")
        object.__setattr__(self, "date", _utc(_moment(self.date)))

    @property
    def survey(self) -> str:
        """The survey that its readings belong to."""
        return self.measurement.survey

    def json(self) -> dict[str, Any]:
        """As plain JSON values; `Entry.of` reads them back."""
        found = self.measurement
        return {
            "place": self.place,
            "metric": self.metric,
            "survey": found.survey,
            "layer": self.layer,
            "unit": found.unit,
            "date": self.date,
            "context": dict(found.context),
            "doubts": list(self.doubts),
            "remarks": list(found.remarks),
            "readings": list(map(float, found.values)),
            "levels": list(map(float, found.levels)),
            "anchor": list(map(float, self.anchor)),
        }

    @staticmethod
    def of(content: Mapping[str, Any]) -> "Entry":
        """Read what `json` gave; raises ValueError that names what is wrong."""
        for name, right in (*((word, _is_word) for word in WORDS), *CHECKS):
            if not right(content[name]):
                raise UserError(f"{name} is not what htas store export writes there: {_short(content[name])}")
        values, levels, anchor = (tuple(map(float, content[name])) for name in ("readings", "levels", "anchor"))
        about = (content["unit"], dict(content["context"]), content["survey"])
        measurement = Measurement(values, *about, levels, tuple(content["remarks"]))
        words = (content["place"], content["metric"], content["layer"])
        return Entry(*words, measurement, anchor, tuple(content["doubts"]), content["date"])


@dataclass(frozen=True)
class Summary:
    """One metric of one survey at one place, in short."""

    survey: str
    place: str
    metric: str
    date: str
    """Of its newest readings."""
    layers: int
    doubtful: int
    """Layers with doubts or remarks."""
    context: Mapping[str, str]
    """Of its newest readings: device, runtime, versions, batch, ..."""


def default_path() -> Path:
    """$HTAS_STORE; or else store.sqlite in this user's folder for data."""
    if named := os.environ.get("HTAS_STORE"):
        return Path(named).expanduser()
    data = Path(os.environ.get("XDG_DATA_HOME", ""))
    if not data.is_absolute():  # the XDG specification has a relative one ignored
        library = "Library/Application Support" if sys.platform == "darwin" else ".local/share"
        data = Path(os.path.expanduser("~")) / library
    return data / "htas" / "store.sqlite"


@dataclass(frozen=True)
class Store:
    """A file of measurements that several processes may use at once.

    It is open only while it is asked, so there is nothing to close. Every question and every change is whole or not at
    all, and raises UserError where the file is locked for too long, from the future, or on a disk that is full or may
    not be written; a damaged file is set aside, which is said, and a new one begun.
    """

    path: Path = field(default_factory=default_path)
    timeout: float = 30.0
    """Seconds to wait for another process that is writing."""

    def add(self, entries: Iterable[Entry]) -> int:
        """Keep these, all or none; how many were new.

        What is there already is not doubled. Raises UserError where a survey has other readings of the same layer.
        """
        given = list(entries)

        def work(connection: sqlite3.Connection) -> int:
            with _transaction(connection):
                return sum(_keep(connection, entry) for entry in given)

        return self._do(work)

    def curve(self, place: str, metric: str, layers: Sequence[str]) -> list[Entry] | None:
        """These layers in the newest survey that has all of them, in their order; None where no survey has."""
        among = "place = ? AND metric = ? AND layer IN (SELECT value FROM json_each(?))"
        newest = (
            f"SELECT survey FROM readings WHERE {among} GROUP BY survey HAVING count(*) = ?"
            " ORDER BY max(date) DESC, max(id) DESC LIMIT 1"
        )
        asked = (place, metric, json.dumps(layers))
        found = self._entries(f"{among} AND survey = ({newest})", *asked, *asked, len(set(layers)))
        entries = {entry.layer: entry for entry in found}
        return [entries[layer] for layer in layers] if entries else None

    def surveys(self) -> list[Summary]:
        """All there is, the newest first."""
        # SQLite takes the columns beside max() from the row that has the maximum
        found = self._ask(
            "SELECT survey, place, metric, max(date) AS date, count(*) AS layers,"
            " sum(doubts || remarks <> '[][]') AS doubtful,"
            " CASE WHEN json_valid(context) THEN context ELSE '{}' END AS context"
            " FROM readings GROUP BY place, metric, survey ORDER BY max(date) DESC, id DESC"
        )
        return [Summary(**{**dict(row), "context": json.loads(row["context"])}) for row in found]

    def entries(self, survey: str) -> list[Entry]:
        """The layers of a survey, in the order they were added; none where there is no such survey."""
        return self._entries("survey = ?", survey)

    def forget(self, name: str) -> int:
        """Remove a survey, or all surveys of a place; how many layers that were."""
        return self._remove("survey = ?1 OR place = ?1", name)

    def forget_all(self) -> int:
        """Remove everything; how many layers that were."""
        return self._remove("TRUE")

    def export(self, path: Path) -> int:
        """Write everything to a .csv or .parquet file, floats to the last bit; how many layers that were."""
        write, _ = _table(path)
        found = self._entries("TRUE")
        if not found:
            raise UserError(f"{self.path} has no measurements to export")
        write_bytes(path, write(found))
        return len(found)

    def import_(self, path: Path) -> int:
        """Add what `export` wrote, all or none; how many layers were new."""
        _, read = _table(path)
        return self.add(read(path))

    def _entries(self, where: str, *values: Any) -> list[Entry]:
        found = self._ask(f"SELECT {', '.join(COLUMNS)} FROM readings WHERE {where} ORDER BY id", *values)
        return [self._entry(dict(row)) for row in found]

    def _entry(self, row: Mapping[str, str]) -> Entry:
        try:
            return _of_text(row)
        except ValueError as error:
            raise UserError(
                f"the store {self.path} has a row of survey {row['survey']} that cannot be read: {error};"
                f" remove it with htas store forget {row['survey']}"
            ) from error

    def _ask(self, query: str, *values: Any) -> list[sqlite3.Row]:
        """What is found; nothing where there is no file, and then none is made."""
        return self._do(lambda opened: opened.execute(query, values).fetchall()) if self._there() else []

    def _remove(self, where: str, *values: Any) -> int:
        def work(connection: sqlite3.Connection) -> int:
            with _transaction(connection):
                return connection.execute(f"DELETE FROM readings WHERE {where}", values).rowcount

        return self._do(work) if self._there() else 0

    def _there(self) -> bool:
        """Whether there is a file; one in a folder that may not be entered is refused in a sentence."""
        try:
            return self.path.exists()
        except OSError as error:
            raise UserError(f"the store {self.path} cannot be read: {error.strerror}; {OTHER}") from error

    # -- the file ------------------------------------------------------------------------------------------------------

    def _do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """What `work` gives; it is done again in a new file where this one is damaged."""
        before = _inode(self.path)
        try:
            return self._once(work)
        except sqlite3.DatabaseError as error:
            if _code(error) not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                self._refuse(error)
            self._set_aside(before, error)
        try:
            return self._once(work)
        except sqlite3.DatabaseError as error:
            self._refuse(error)

    def _once(self, work: Callable[[sqlite3.Connection], T]) -> T:
        path = self.path.absolute()  # SQLite gives ':memory:' and the like a meaning of their own
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"the store {path} cannot be made: {error.strerror}; {OTHER}") from error
        with closing(sqlite3.connect(path, timeout=self.timeout, isolation_level=None)) as connection:
            connection.row_factory = sqlite3.Row
            connection.text_factory = partial(str, encoding="utf-8", errors="backslashreplace")
            self._prepare(connection)
            return work(connection)

    def _prepare(self, connection: sqlite3.Connection) -> None:
        """Bring a new or older file to this format; refuse those that are no store, or a later one."""
        found = self._format(connection)
        if found == 0:
            connection.execute("PRAGMA auto_vacuum = FULL")  # heeded by new files only: forgetting frees the disk
        _set_journal(connection, self.path)
        if found < len(STEPS):
            with _transaction(connection):
                for step in STEPS[self._format(connection) :]:  # another process may have been quicker
                    for statement in step:
                        connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {len(STEPS)}")
                connection.execute(f"PRAGMA application_id = {HTAS}")

    def _format(self, connection: sqlite3.Connection) -> int:
        """0 for an empty file. One statement, so that no other process can change the file in between."""
        application, found, tables = connection.execute(
            "SELECT application_id, user_version, (SELECT count(*) FROM sqlite_master)"
            " FROM pragma_application_id, pragma_user_version"
        ).fetchone()
        if application != HTAS and (tables or found):
            raise UserError(f"{self.path} belongs to another program than htas; {OTHER}")
        if found > len(STEPS):
            raise UserError(
                f"the store {self.path} has format {found}, this version of htas knows formats up to {len(STEPS)};"
                f" install a newer htas, or {OTHER}"
            )
        return int(found)

    def _set_aside(self, before: int | None, error: Exception) -> None:
        """Rename a damaged file, unless another process has already done so."""
        if self.path.suffix != ".sqlite" and not _begins_as_sqlite(self.path):
            raise UserError(f"{self.path} is no SQLite file; {OTHER}") from error
        with _alone(self.path.parent):
            if _inode(self.path) != before:
                return
            aside = _free(f"{self.path}.damaged-{datetime.now(UTC):%Y-%m-%dT%H%M%S}")
            try:
                for ending in ("-wal", "-shm", ""):  # the file itself last: a new one must not find the others
                    with suppress(FileNotFoundError):
                        os.rename(f"{self.path}{ending}", f"{aside}{ending}")
            except OSError as refused:
                why = f"is damaged and cannot be set aside: {refused.strerror}; delete it,"
                raise UserError(f"the store {self.path} {why} or {OTHER}") from refused
        say(
            f"the store {self.path} is damaged ({error}): it is {aside.name} now, and a new one is begun;"
            " the sqlite3 command's .recover may save what it holds"
        )

    def _refuse(self, error: sqlite3.DatabaseError) -> NoReturn:
        """Raise a sentence for what is no fault of the program; other errors as they are."""
        match _code(error):
            case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
                waited = f"{text.significant(self.timeout)} s"
                why = f"has been locked by another process for {waited}; wait until that has ended,"
            case sqlite3.SQLITE_FULL:
                why = "is on a disk that is full; free some space,"
            case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM:
                why = f"cannot be opened or written ({error}); make it and its folder writable,"
            case sqlite3.SQLITE_IOERR | sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
                why = f"cannot be used ({error}); check that its disk is sound and not full,"
            case _:
                raise error
        raise UserError(f"the store {self.path} {why} or {OTHER}") from error


def _code(error: sqlite3.Error) -> int:
    """The kind of an error of SQLite's, without its finer distinctions."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None


def _begins_as_sqlite(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(16) == b"SQLite format 3\0"
    except OSError:
        return False


def _free(name: str) -> Path:
    """The first of NAME, NAME-2, NAME-3, ... that no file has."""
    names = (name, *(f"{name}-{number}" for number in range(2, 1000)))
    return next(Path(each) for each in names if not Path(each).exists())


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Only one process at a time, where the file system can see to that."""
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All that is written within, or nothing; other writers wait meanwhile."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):  # a full disk may have rolled it back already
            connection.execute("ROLLBACK")
        raise


def _set_journal(connection: sqlite3.Connection, path: Path) -> None:
    """A write-ahead log, so that nobody waits for readers; but it shares memory, so not where machines share a disk."""
    wanted = "wal" if _is_local(path) else "delete"
    with suppress(sqlite3.OperationalError):  # it is only a wish: the file works in either mode
        if connection.execute("PRAGMA journal_mode").fetchone()[0] != wanted:
            connection.execute(f"PRAGMA journal_mode = {wanted}")


LOCAL = ("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "bcachefs", "tmpfs", "overlay")


def _is_local(path: Path) -> bool:
    try:
        mounts = Path("/proc/self/mounts").read_text()
    except OSError:
        return True  # not Linux
    return _file_system(path.resolve().parent, mounts) in LOCAL


def _file_system(folder: Path, mounts: str) -> str:
    """The kind of the file system that a folder is on, from the kernel's table."""
    kinds = {}
    for line in mounts.splitlines():
        _, point, kind, *_ = line.split()
        kinds[point.replace(r"\040", " ")] = kind
    return next((kinds[str(each)] for each in (folder, *folder.parents) if str(each) in kinds), "")


# -- rows --------------------------------------------------------------------------------------------------------------


def _keep(connection: sqlite3.Connection, entry: Entry) -> int:
    """Add an entry, unless it is there: 1 or 0."""
    names, marks = ", ".join(COLUMNS), ", ".join(f":{name}" for name in COLUMNS)
    added = connection.execute(
        f"INSERT INTO readings ({names}) VALUES ({marks}) ON CONFLICT (place, metric, layer, survey) DO NOTHING",
        row := _as_text(entry),
    ).rowcount
    if not added:
        key = "place = :place AND metric = :metric AND layer = :layer AND survey = :survey"
        there = connection.execute(f"SELECT {names} FROM readings WHERE {key}", row).fetchone()
        if _of_text(dict(there)) != entry:
            raise UserError(
                f"survey {entry.survey} already has other readings of {entry.layer}; give the new ones a survey of"
                f" their own, or remove the old ones with htas store forget {entry.survey}"
            )
    return added


def _as_text(entry: Entry) -> dict[str, str]:
    """One text for each column."""
    return {name: json.dumps(value) if name in VALUES else value for name, value in entry.json().items()}


def _of_text(row: Mapping[str, str]) -> Entry:
    return Entry.of({name: json.loads(row[name]) if name in VALUES else row[name] for name in COLUMNS})


def _utc(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


def _moment(date: str) -> datetime:
    try:
        moment = datetime.fromisoformat(date)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise UserError(f"date must be ISO 8601 with a zone, such as 2026-11-23T04:05:06+00:00, got {date!r}")
    return moment


def _canonical(layer: str) -> bool:
    """Whether equal work would have an equal key: a JSON object with its names in order."""
    try:
        content = json.loads(layer)
    except ValueError:
        return False
    return isinstance(content, dict) and json.dumps(content, sort_keys=True) == layer


def _is_word(value: object) -> bool:
    return isinstance(value, str)


def _are_words(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_word, value))


def _are_named(value: object) -> bool:
    return isinstance(value, dict) and all(map(_is_word, (*value.keys(), *value.values())))


def _are_numbers(value: object) -> bool:
    largest = sys.float_info.max  # beyond it are infinity, integers that no float can hold and, not being less, NaN
    return isinstance(value, list) and all(type(each) in (int, float) and abs(each) <= largest for each in value)


CHECKS = (
    ("context", _are_named),
    *((name, _are_words) for name in ("doubts", "remarks")),
    *((name, _are_numbers) for name in ("readings", "levels", "anchor")),
)


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


# -- tables to move between machines -----------------------------------------------------------------------------------


def _table(path: Path) -> tuple[Callable[[Sequence[Entry]], bytes], Callable[[Path], list[Entry]]]:
    """What writes and what reads such a file."""
    match path.suffix:
        case ".csv":
            return _to_csv, _from_csv
        case ".parquet":
            return _to_parquet, _from_parquet
    raise UserError(f"a table of measurements is a .csv or a .parquet file, got {path}")


def _to_csv(entries: Sequence[Entry]) -> bytes:
    """One line for each layer of a survey; lists and mappings as JSON."""
    file = io.StringIO()
    writer = csv.DictWriter(file, ("format", *COLUMNS), lineterminator="\n")
    writer.writeheader()
    writer.writerows({"format": TABLE, **_as_text(entry)} for entry in entries)
    return file.getvalue().encode()


def _from_csv(path: Path) -> list[Entry]:
    limit = csv.field_size_limit(sys.maxsize)  # thousands of readings are one field
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            _check_columns(path, reader.fieldnames or ())
            return _read_rows(path, reader, _of_text)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _unread(path, error) from error
    finally:
        csv.field_size_limit(limit)


def _to_parquet(entries: Sequence[Entry]) -> bytes:
    """One row for each layer of a survey; the context is JSON, the lists are lists."""
    import pyarrow
    from pyarrow import parquet

    numbers, words = pyarrow.list_(pyarrow.float64()), pyarrow.list_(pyarrow.string())
    kinds = {"format": pyarrow.int64(), **dict.fromkeys(COLUMNS, pyarrow.string())}
    kinds |= {**dict.fromkeys(("doubts", "remarks"), words), **dict.fromkeys(("readings", "levels", "anchor"), numbers)}
    rows = [{"format": TABLE, **entry.json(), "context": json.dumps(entry.measurement.context)} for entry in entries]
    file = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows, pyarrow.schema(kinds)), file)
    return file.getvalue()


def _from_parquet(path: Path) -> list[Entry]:
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(path).read()
    except (OSError, pyarrow.ArrowException) as error:
        raise _unread(path, error) from error
    _check_columns(path, table.column_names)
    return _read_rows(path, table.to_pylist(), lambda row: Entry.of({**row, "context": json.loads(row["context"])}))


def _check_columns(path: Path, found: Sequence[str]) -> None:
    for name in ("format", *COLUMNS):
        if name not in found:
            raise UserError(f"{path} has no column {name!r}; {WRITTEN}")


def _read_rows(path: Path, rows: Iterable[Mapping[str, Any]], read: Callable[[Any], Entry]) -> list[Entry]:
    """Every row as an entry; the one that is none is named."""
    entries = []
    for number, row in enumerate(rows, 1):
        if str(row["format"]) != str(TABLE):
            raise UserError(f"row {number} of {path} has format {row['format']}, this version reads {TABLE}; {WRITTEN}")
        try:
            entries.append(read(row))
        except (ValueError, TypeError) as error:  # TypeError: a cell that is not there is None
            raise UserError(f"row {number} of {path} cannot be read ({error}); {WRITTEN}") from error
    return entries


def _unread(path: Path, error: Exception) -> UserError:
    if isinstance(error, FileNotFoundError):
        return UserError(f"{path} does not exist; {WRITTEN}")
    said = getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]
    return UserError(f"{path} cannot be read ({said}); {WRITTEN}")
