"""The readings of every survey in one SQLite file, so that a layer that was measured once need not be measured again.

A row is one layer in one survey at one place. Lists are JSON text, not BLOBs: Python writes the digits that read back
as the same float, and the sqlite3 command and its json_each can read them too.
"""

import json
import os
import shutil
import sqlite3
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from reprlib import repr as shortened
from typing import Any, NoReturn, TypeVar
from urllib.parse import quote

from htas import text
from htas.console.progress import say
from htas.errors import UserError
from htas.files import path_of
from htas.timing.entry import COLUMNS, Entry, check_suffix, checksum, is_text, read_context, read_table, write_table

T = TypeVar("T")

OTHER = "name another store with HTAS_STORE or --path"
"""How error sentences end: the way out."""

PAGE = 64 * 1024
"""The most bytes that SQLite writes at once."""
CUT = 200
"""Letters of a path that may be no path."""

FORMAT = 2
"""PRAGMA user_version of a store; 1 had no check sums."""
APPLICATION = 0x68746173
"""PRAGMA application_id of a store, `htas` in ASCII: the files of other programs are left alone."""
_CELLS = ", ".join(f"{name} TEXT NOT NULL" for name in COLUMNS)
_UNIQUE = "UNIQUE (place, metric, layer, survey)"
TABLES = {
    1: f"""readings (
        id INTEGER PRIMARY KEY, {_CELLS},
        {_UNIQUE}
    )""",
    2: f"""readings (
        id INTEGER PRIMARY KEY, {_CELLS}, checksum INTEGER NOT NULL,
        {_UNIQUE}
    )""",
}
"""The table of each format; one of another text has been changed by hand."""
SORTED = ("place", "metric", "survey", "layer", "date")
"""Columns by which rows are found, and so must be text; what another one holds that cannot be read is named."""
LOGS = ("-wal", "-shm", "-journal")
"""How the names of files end that belong to a store and are there while it is open, or after a process was killed."""
SHARED_DISKS = ("nfs", "cifs", "smb", "afs", "9p", "fuse", "lustre", "gpfs", "beegfs", "ceph", "gluster")
"""How the names of file systems begin that several machines may share."""

DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
UNWRITABLE = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM)
FAILED = (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL)
REASONS = {
    (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL):
        "has been locked by another process for {seconds} s; wait until that has ended",
    (sqlite3.SQLITE_FULL,): "is on a disk that is full; free some space",
    UNWRITABLE:
        "cannot be opened or written ({error}); make it and its folder writable",
    (sqlite3.SQLITE_IOERR, *DAMAGE):
        "cannot be used ({error}); check that its disk is sound and not full",
}  # fmt: skip
"""Errors of SQLite's, by code, that are no fault of the program."""


class DamageError(sqlite3.DatabaseError):
    """A file that SQLite can read and that is no whole store."""

    sqlite_errorcode = sqlite3.SQLITE_CORRUPT


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
        return path_of(named, "HTAS_STORE")
    from platformdirs import user_data_path

    return user_data_path("htas", appauthor=False) / "store.sqlite"


@dataclass(frozen=True)
class Store:
    """A file of measurements that several processes may use at once.

    It is open only during a query or a change, so there is nothing to close. Each is done as a whole or not at all, and
    raises UserError where the file is locked for too long, from the future, or on a disk that is full or read-only;
    what cannot be written can be read. A damaged file is set aside, with a message, and a new one begun: its first
    use looks at all of it.
    """

    path: Path = field(default_factory=default_path)
    timeout: float = 30.0
    """Seconds to wait for another process that is writing."""
    _sound: set[int | None] = field(default_factory=set, init=False, repr=False, compare=False)
    """Files that were looked at and are whole, by inode."""

    def need_writable(self) -> None:
        """Raise UserError where readings could not be added; makes the file where there is none."""
        self._do(lambda connection: connection.execute(f"PRAGMA application_id = {APPLICATION}"))

    def add(self, entries: Iterable[Entry]) -> int:
        """Add these, all or none; returns how many were new.

        An entry that is there already is not doubled. Raises UserError where a survey has other readings of a layer.
        """
        new = list(entries)
        return self._do(lambda connection: sum(self._insert(connection, entry) for entry in new))

    def curve(self, place: str, metric: str, layers: Sequence[str]) -> list[Entry] | None:
        """These layers in the newest survey that has all of them, in their order; None where no survey has.

        What is dated in the future comes last: it would be the newest for good.
        """
        among = "place = ? AND metric = ? AND layer IN (SELECT value FROM json_each(?))"
        newest = (
            f"SELECT survey FROM readings WHERE {among} GROUP BY survey HAVING count(*) = ?"
            " ORDER BY max(date) > ?, max(date) DESC, max(id) DESC LIMIT 1"
        )
        tomorrow = (datetime.now(UTC) + timedelta(days=1)).isoformat()
        key = (place, metric, json.dumps(layers))
        entries = self._entries(f"{among} AND survey = ({newest})", *key, *key, len(set(layers)), tomorrow)
        by_layer = {entry.layer: entry for entry in entries}
        return [by_layer[layer] for layer in layers] if entries else None

    def surveys(self) -> list[Summary]:
        """All surveys, the newest first."""
        # SQLite takes the columns next to max() from the row that has the maximum
        rows = self._query(
            "SELECT survey, place, metric, max(date) AS date, count(*) AS layers,"
            " sum(doubts || remarks <> '[][]') AS doubtful, context"
            " FROM readings GROUP BY place, metric, survey ORDER BY max(date) DESC, id DESC"
        )
        return [Summary(**{**dict(row), "context": read_context(row["context"])}) for row in rows]

    def entries(self, survey: str) -> list[Entry]:
        """The layers of a survey, in the order they were added; none where there is no such survey."""
        return self._entries("survey = ?", survey)

    def forget(self, name: str) -> int:
        """Remove a survey, or all surveys of a place; returns the number of layers removed."""
        return self._delete("WHERE survey = ?1 OR place = ?1", name)

    def forget_all(self) -> int:
        """Remove everything; returns the number of layers removed."""
        return self._delete("")

    def export(self, path: Path) -> int:
        """Write everything to a .csv or .parquet file, floats to the last bit; returns the number of layers.

        Raises UserError for another kind of file, and where the store is empty.
        """
        check_suffix(path)
        entries = self._entries("TRUE")
        if not entries:
            raise UserError(f"{self.path} has no measurements to export")
        write_table(path, entries)
        return len(entries)

    def import_(self, path: Path) -> int:
        """Add the entries of a file that `export` wrote, all or none; returns how many layers were new.

        Raises UserError that names the row at fault.
        """
        return self.add(read_table(path))

    def _entries(self, where: str, *values: Any) -> list[Entry]:
        rows = self._query(f"SELECT * FROM readings WHERE {where} ORDER BY id", *values)
        return [self._entry(dict(row)) for row in rows]

    def _entry(self, row: Mapping[str, object]) -> Entry:
        try:
            entry = Entry.of(row)
            if "checksum" in row and row["checksum"] != checksum(row):
                raise UserError(f"its readings of {shortened(row['layer'])} were changed after they were written")
            return entry
        except ValueError as error:
            name = str(row["survey"])
            survey = name if name.isprintable() else f"${name!r}"  # as a shell reads it
            raise UserError(
                f"the store {self.path} has a row of survey {survey} that cannot be read: {error};"
                f" remove it with htas store forget {survey}"
            ) from error

    def _query(self, query: str, *values: Any) -> list[sqlite3.Row]:
        """The rows; none where there is no file, and then none is created."""
        if self._is_empty() or not is_text(*values):
            return []
        return self._do(lambda connection: connection.execute(query, values).fetchall(), reads=True)

    def _delete(self, where: str, *values: str) -> int:
        if self._is_empty() or not is_text(*values):
            return 0
        query = f"DELETE FROM readings {where} RETURNING id"
        return self._do(lambda connection: len(connection.execute(query, values).fetchall()))

    def _insert(self, connection: sqlite3.Connection, entry: Entry) -> int:
        """Add an entry, unless it is there: 1 or 0."""
        row: dict[str, str | int] = {**(texts := entry.texts()), "checksum": checksum(texts)}
        added = connection.execute(
            f"INSERT INTO readings ({', '.join(row)}) VALUES ({', '.join(f':{name}' for name in row)})"
            " ON CONFLICT (place, metric, layer, survey) DO NOTHING",
            row,
        ).rowcount
        if not added:
            key = "place = :place AND metric = :metric AND layer = :layer AND survey = :survey"
            stored = connection.execute(f"SELECT * FROM readings WHERE {key}", row).fetchone()
            if self._entry(dict(stored)) != entry:
                raise UserError(
                    f"survey {entry.survey} already has other readings of {shortened(entry.layer)}; give the new ones"
                    f" a survey of their own, or remove the old ones with htas store forget {entry.survey}"
                )
        return added

    # -- the file ------------------------------------------------------------------------------------------------------

    def _is_empty(self) -> bool:
        """Whether there is no file, or nothing in it; raises UserError where there is something else in its place."""
        try:
            about = self.path.stat()
        except FileNotFoundError:
            return True
        except (OSError, ValueError) as error:  # the latter for a letter that no path has
            why = getattr(error, "strerror", None) or error
            raise UserError(f"the store {str(self.path)[:CUT]!r} cannot be used: {why}; {OTHER}") from error
        if not stat.S_ISREG(about.st_mode):
            kind = "a folder" if stat.S_ISDIR(about.st_mode) else "a pipe or a device"
            raise UserError(f"{self.path} is {kind} and no file that could be a store; {OTHER}")
        return about.st_size == 0

    def _do(self, work: Callable[[sqlite3.Connection], T], reads: bool = False, again: bool = True) -> T:
        """The result of `work`; it is done again in a new file where this one is damaged.

        Work that only `reads` is done again without any file beside this one, where none can be written.
        """
        self._is_empty()
        before = _inode(self.path)
        try:
            try:
                return self._once(work)
            except sqlite3.DatabaseError as error:
                if not (reads and _code(error) in (*UNWRITABLE, *FAILED) and self._is_settled()):
                    raise
                return self._once(work, writes=False)
        except sqlite3.DatabaseError as error:
            if not again or _code(error) not in DAMAGE:
                self._refuse(error)
            self._set_aside(before, error)
        return self._do(work, reads, again=False)

    def _is_settled(self) -> bool:
        """Whether no log beside the file has changes that are not in it."""
        return not any(log.is_file() and log.stat().st_size for log in self._logs("-wal", "-journal"))

    def _logs(self, *endings: str) -> list[Path]:
        return [Path(f"{os.path.realpath(self.path)}{ending}") for ending in endings]

    def _once(self, work: Callable[[sqlite3.Connection], T], writes: bool = True) -> T:
        path = self.path.absolute()  # SQLite gives ':memory:' and the like a meaning of their own
        try:
            if writes:
                path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"the store {path} cannot be made: {error.strerror}; {OTHER}") from error
        name = path if writes else f"file:{quote(bytes(path))}?mode=ro&immutable=1"
        with closing(
            sqlite3.connect(name, timeout=self.timeout, isolation_level="IMMEDIATE", uri=not writes)
        ) as connection:
            connection.row_factory = sqlite3.Row
            connection.text_factory = lambda raw: raw.decode(errors="backslashreplace")
            self._prepare(connection, writes)
            if (inode := _inode(path)) not in self._sound:
                inspect(connection, connection.execute("PRAGMA user_version").fetchone()[0])
                self._sound.add(inode)
            with connection:
                return work(connection)

    def _prepare(self, connection: sqlite3.Connection, writes: bool) -> None:
        """Create the table in an empty file, and give that of an older version check sums, where it `writes`; refuse a
        file that is no store, or one of a later version."""
        try:
            application, version, tables = connection.execute(  # one statement: no other process comes between
                "SELECT application_id, user_version, (SELECT count(*) FROM sqlite_master)"
                " FROM pragma_application_id, pragma_user_version"
            ).fetchone()
        except sqlite3.OperationalError as error:
            if _code(error) == sqlite3.SQLITE_ERROR:  # what the file says of itself is what SQLite does not know
                raise DamageError(str(error)) from error
            raise
        except UnicodeDecodeError as error:  # of the message of SQLite's that quotes the file
            raise DamageError("its schema is no text") from error
        if application != APPLICATION and (tables or version):
            raise UserError(f"{self.path} belongs to another program than htas; {OTHER}")
        if version > FORMAT:
            raise UserError(
                f"the store {self.path} has format {version}, this version of htas knows formats up to {FORMAT};"
                f" install a newer htas, or {OTHER}"
            )
        if version < FORMAT and (writes or version not in TABLES):
            connection.execute("PRAGMA auto_vacuum = FULL")  # only new files can have it: removing frees the disk
            with suppress(sqlite3.OperationalError):  # another process creates the file: either mode works
                # readers do not wait for a write-ahead log; but machines that share a disk cannot share its memory
                connection.execute(f"PRAGMA journal_mode = {'delete' if _is_shared(self.path) else 'wal'}")
            _upgrade(connection)

    def _set_aside(self, before: int | None, error: sqlite3.Error) -> None:
        """Rename a damaged file, unless another process has already done so."""
        from filelock import FileLock

        if self.path.suffix != ".sqlite" and _code(error) == sqlite3.SQLITE_NOTADB:
            raise UserError(f"{self.path} is no SQLite file; {OTHER}") from error
        try:
            with FileLock(f"{self.path}.lock"):
                if _inode(self.path) != before:
                    return
                aside = f"{self.path}.damaged-{datetime.now(UTC):%Y-%m-%dT%H%M%S.%f}"
                move((f"{self.path}{ending}", f"{aside}{ending}") for ending in (*LOGS, ""))  # a new file finds none
        except OSError as refused:
            why = f"is damaged and cannot be set aside: {refused.strerror}; delete it,"
            raise UserError(f"the store {self.path} {why} or {OTHER}") from refused
        say(
            f"the store {self.path} is damaged ({error}): it is {Path(aside).name} now, and a new one is begun;"
            " the sqlite3 command's .recover may save what it holds"
        )

    def _refuse(self, error: sqlite3.DatabaseError) -> NoReturn:
        """Raise a sentence for what is no fault of the program; other errors as they are."""
        reason = next((reason for codes, reason in REASONS.items() if _code(error) in codes), "")
        if _code(error) == sqlite3.SQLITE_IOERR and _is_full(self.path):
            reason = REASONS[(sqlite3.SQLITE_FULL,)]
        for log in filter(Path.is_dir, self._logs(*LOGS) if reason else ()):
            reason = f"cannot be used, as {log.name} is a folder; delete that"
        if not reason:
            raise error
        why = reason.format(seconds=text.significant(self.timeout), error=error)
        raise UserError(f"the store {self.path} {why}, or {OTHER}") from error


def _upgrade(connection: sqlite3.Connection) -> None:
    """Make the table where there is none, or bring one of format 1 to this format; all or nothing."""
    connection.execute("BEGIN IMMEDIATE")
    if _schema(connection) == [" ".join(f"CREATE TABLE {TABLES[1]}".split())]:
        inspect(connection, 1)
        names = ", ".join(COLUMNS)
        connection.execute("ALTER TABLE readings RENAME TO older")
        connection.execute(f"CREATE TABLE {TABLES[FORMAT]}")
        connection.execute(f"INSERT INTO readings SELECT id, {names}, 0 FROM older ORDER BY id")
        for row in connection.execute(f"SELECT id, {names} FROM older"):
            connection.execute("UPDATE readings SET checksum = ? WHERE id = ?", (checksum(dict(row)), row["id"]))
        connection.execute("DROP TABLE older")
    connection.execute(f"CREATE TABLE IF NOT EXISTS {TABLES[FORMAT]}")
    connection.execute(f"PRAGMA user_version = {FORMAT}")
    connection.execute(f"PRAGMA application_id = {APPLICATION}")
    connection.execute("COMMIT")


def _schema(connection: sqlite3.Connection) -> list[str]:
    """The statements that made the table of readings, and what the user made for it."""
    rows = connection.execute(
        "SELECT sql FROM sqlite_master WHERE tbl_name = 'readings' AND name NOT LIKE 'sqlite!_%' ESCAPE '!'"
    )
    return [" ".join(str(row["sql"]).split()) for row in rows]


def inspect(connection: sqlite3.Connection, version: int = FORMAT) -> None:
    """Raise DamageError where a file is not all that a store of a format is, which single queries may not notice."""
    schema = _schema(connection)
    if schema != [" ".join(f"CREATE TABLE {TABLES[version]}".split())]:
        raise DamageError("its table of readings is gone or was changed" if schema else "its table of readings is gone")
    ((result,),) = connection.execute("PRAGMA integrity_check(1)").fetchall()
    if result != "ok":
        raise DamageError(" ".join(str(result).split()))
    odd = " OR ".join(f"typeof({name}) <> 'text'" for name in SORTED)
    if row := connection.execute(f"SELECT id FROM readings WHERE {odd} LIMIT 1").fetchone():
        raise DamageError(f"row {row['id']} has something else than text where {', '.join(SORTED)} are")


def move(names: Iterable[tuple[str, str]]) -> None:
    """Rename files that are there, all or none; raises OSError."""
    done: list[tuple[str, str]] = []
    try:
        for old, new in names:
            with suppress(FileNotFoundError):
                os.rename(old, new)
                done.append((old, new))
    except OSError:
        for old, new in reversed(done):
            os.rename(new, old)
        raise


def _code(error: sqlite3.Error) -> int:
    """The kind of an error of SQLite's, without its finer distinctions."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None


def _is_full(path: Path) -> bool:
    """Whether the disk of a file has no room for a page more."""
    try:
        return shutil.disk_usage(path.parent).free < PAGE
    except OSError:
        return False


def _is_shared(path: Path) -> bool:
    """Whether other machines may use the disk of a file, too."""
    import psutil

    kinds = {each.mountpoint: each.fstype for each in psutil.disk_partitions(all=True)}
    kind = next((kinds[str(each)] for each in path.resolve().parents if str(each) in kinds), "")
    return kind.startswith(SHARED_DISKS)
