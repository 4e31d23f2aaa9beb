"""The readings of every survey in one SQLite file, so that a layer that was measured once need not be measured again.

A row is one layer in one survey at one place. Lists are JSON text, not BLOBs: Python writes the digits that read back
as the same float, and the sqlite3 command and its json_each can read them too.
"""

import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from htas import text
from htas.console.progress import say
from htas.errors import UserError
from htas.files import path_of
from htas.timing.entry import COLUMNS, Entry, check_suffix, read_table, write_table

T = TypeVar("T")

OTHER = "name another store with HTAS_STORE or --path"
"""How error sentences end: the way out."""

FORMAT = 1
"""PRAGMA user_version of a store."""
APPLICATION = 0x68746173
"""PRAGMA application_id of a store, `htas` in ASCII: the files of other programs are left alone."""
SCHEMA = f"""
    BEGIN IMMEDIATE;
    CREATE TABLE IF NOT EXISTS readings (
        id INTEGER PRIMARY KEY, {", ".join(f"{name} TEXT NOT NULL" for name in COLUMNS)},
        UNIQUE (place, metric, layer, survey)
    );
    PRAGMA user_version = {FORMAT};
    PRAGMA application_id = {APPLICATION};
    COMMIT;
"""
SHARED_DISKS = ("nfs", "cifs", "smb", "afs", "9p", "fuse", "lustre", "gpfs", "beegfs", "ceph", "gluster")
"""How the names of file systems begin that several machines may share."""

REASONS = {
    (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        "has been locked by another process for {seconds} s; wait until that has ended",
    (sqlite3.SQLITE_FULL,): "is on a disk that is full; free some space",
    (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        "cannot be opened or written ({error}); make it and its folder writable",
    (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        "cannot be used ({error}); check that its disk is sound and not full",
}  # fmt: skip
"""Errors of SQLite's, by code, that are no fault of the program."""


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
    raises UserError where the file is locked for too long, from the future, or on a disk that is full or read-only.
    A damaged file is set aside, with a message, and a new one begun.
    """

    path: Path = field(default_factory=default_path)
    timeout: float = 30.0
    """Seconds to wait for another process that is writing."""

    def add(self, entries: Iterable[Entry]) -> int:
        """Add these, all or none; returns how many were new.

        An entry that is there already is not doubled. Raises UserError where a survey has other readings of a layer.
        """
        new = list(entries)
        return self._do(lambda connection: sum(_insert(connection, entry) for entry in new))

    def curve(self, place: str, metric: str, layers: Sequence[str]) -> list[Entry] | None:
        """These layers in the newest survey that has all of them, in their order; None where no survey has."""
        among = "place = ? AND metric = ? AND layer IN (SELECT value FROM json_each(?))"
        newest = (
            f"SELECT survey FROM readings WHERE {among} GROUP BY survey HAVING count(*) = ?"
            " ORDER BY max(date) DESC, max(id) DESC LIMIT 1"
        )
        key = (place, metric, json.dumps(layers))
        entries = self._entries(f"{among} AND survey = ({newest})", *key, *key, len(set(layers)))
        by_layer = {entry.layer: entry for entry in entries}
        return [by_layer[layer] for layer in layers] if entries else None

    def surveys(self) -> list[Summary]:
        """All surveys, the newest first."""
        # SQLite takes the columns next to max() from the row that has the maximum
        rows = self._query(
            "SELECT survey, place, metric, max(date) AS date, count(*) AS layers,"
            " sum(doubts || remarks <> '[][]') AS doubtful,"
            " CASE WHEN json_valid(context) THEN context ELSE '{}' END AS context"
            " FROM readings GROUP BY place, metric, survey ORDER BY max(date) DESC, id DESC"
        )
        return [Summary(**{**dict(row), "context": json.loads(row["context"])}) for row in rows]

    def entries(self, survey: str) -> list[Entry]:
        """The layers of a survey, in the order they were added; none where there is no such survey."""
        return self._entries("survey = ?", survey)

    def forget(self, name: str) -> int:
        """Remove a survey, or all surveys of a place; returns the number of layers removed."""
        return len(self._query("DELETE FROM readings WHERE survey = ?1 OR place = ?1 RETURNING id", name))

    def forget_all(self) -> int:
        """Remove everything; returns the number of layers removed."""
        return len(self._query("DELETE FROM readings RETURNING id"))

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
        entries = []
        for row in self._query(f"SELECT {', '.join(COLUMNS)} FROM readings WHERE {where} ORDER BY id", *values):
            try:
                entries.append(Entry.of(dict(row)))
            except ValueError as error:
                raise UserError(
                    f"the store {self.path} has a row of survey {row['survey']} that cannot be read: {error};"
                    f" remove it with htas store forget {row['survey']}"
                ) from error
        return entries

    def _query(self, query: str, *values: Any) -> list[sqlite3.Row]:
        """The rows; none where there is no file, and then none is created."""
        try:
            if not self.path.exists():
                return []
        except OSError as error:
            raise UserError(f"the store {self.path} cannot be read: {error.strerror}; {OTHER}") from error
        return self._do(lambda connection: connection.execute(query, values).fetchall())

    # -- the file ------------------------------------------------------------------------------------------------------

    def _do(self, work: Callable[[sqlite3.Connection], T], again: bool = True) -> T:
        """The result of `work`; it is done again in a new file where this one is damaged."""
        before = _inode(self.path)
        try:
            return self._once(work)
        except sqlite3.DatabaseError as error:
            if not again or _code(error) not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                self._refuse(error)
            self._set_aside(before, error)
        return self._do(work, again=False)

    def _once(self, work: Callable[[sqlite3.Connection], T]) -> T:
        path = self.path.absolute()  # SQLite gives ':memory:' and the like a meaning of their own
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"the store {path} cannot be made: {error.strerror}; {OTHER}") from error
        with closing(sqlite3.connect(path, timeout=self.timeout, isolation_level="IMMEDIATE")) as connection:
            connection.row_factory = sqlite3.Row
            connection.text_factory = lambda raw: raw.decode(errors="backslashreplace")
            self._prepare(connection)
            with connection:
                return work(connection)

    def _prepare(self, connection: sqlite3.Connection) -> None:
        """Create the table in an empty file; refuse a file that is no store, or one of a later version."""
        application, version, tables = connection.execute(  # one statement, so that no other process comes between
            "SELECT application_id, user_version, (SELECT count(*) FROM sqlite_master)"
            " FROM pragma_application_id, pragma_user_version"
        ).fetchone()
        if application != APPLICATION and (tables or version):
            raise UserError(f"{self.path} belongs to another program than htas; {OTHER}")
        if version > FORMAT:
            raise UserError(
                f"the store {self.path} has format {version}, this version of htas knows formats up to {FORMAT};"
                f" install a newer htas, or {OTHER}"
            )
        if version == 0:
            connection.execute("PRAGMA auto_vacuum = FULL")  # only new files can have it: removing frees the disk
            with suppress(sqlite3.OperationalError):  # another process creates the file: either mode works
                # readers do not wait for a write-ahead log; but machines that share a disk cannot share its memory
                connection.execute(f"PRAGMA journal_mode = {'delete' if _is_shared(self.path) else 'wal'}")
            connection.executescript(SCHEMA)

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
                for ending in ("-wal", "-shm", ""):  # the file itself last: a new one must not find the others
                    with suppress(FileNotFoundError):
                        os.rename(f"{self.path}{ending}", f"{aside}{ending}")
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
        if not reason:
            raise error
        why = reason.format(seconds=text.significant(self.timeout), error=error)
        raise UserError(f"the store {self.path} {why}, or {OTHER}") from error


def _code(error: sqlite3.Error) -> int:
    """The kind of an error of SQLite's, without its finer distinctions."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None


def _is_shared(path: Path) -> bool:
    """Whether other machines may use the disk of a file, too."""
    import psutil

    kinds = {each.mountpoint: each.fstype for each in psutil.disk_partitions(all=True)}
    kind = next((kinds[str(each)] for each in path.resolve().parents if str(each) in kinds), "")
    return kind.startswith(SHARED_DISKS)


def _insert(connection: sqlite3.Connection, entry: Entry) -> int:
    """Add an entry, unless it is there: 1 or 0."""
    row, names = entry.texts(), ", ".join(COLUMNS)
    added = connection.execute(
        f"INSERT INTO readings ({names}) VALUES ({', '.join(f':{name}' for name in COLUMNS)})"
        " ON CONFLICT (place, metric, layer, survey) DO NOTHING",
        row,
    ).rowcount
    if not added:
        key = "place = :place AND metric = :metric AND layer = :layer AND survey = :survey"
        stored = connection.execute(f"SELECT {names} FROM readings WHERE {key}", row).fetchone()
        if Entry.of(dict(stored)) != entry:
            raise UserError(
                f"survey {entry.survey} already has other readings of {entry.layer}; give the new ones a survey of"
                f" their own, or remove the old ones with htas store forget {entry.survey}"
            )
    return added
