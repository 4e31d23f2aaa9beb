"""Stores and tables of readings that are damaged in all ways, and then used (store.py is the command)."""

import contextlib
import io
import json
import os
import random
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from benchmarks.faults.campaign import Outcome, Tally, called, drawn
from benchmarks.faults.store_writers import PLACE, entry_of
from htas.errors import UserError
from htas.graph.layer import Layer
from htas.metrics import Case, Metric, OnRound, Pending
from htas.spaces.remember import CachedMetric
from htas.timing.entry import COLUMNS, Entry
from htas.timing.measurement import Measurement
from htas.timing.store import FORMAT, Store
from htas.timing.target import Target

SURVEYS, WIDTHS, READINGS = 6, 8, 60
"""Of a store that is to be damaged."""
LIMIT = 10
"""Seconds of a command."""
CHANGED = "changed, and nothing in the file tells"
"""A kind of its own: digits of a table that became others, where its check sums went with them."""


def layer(width: int) -> Layer:
    return Layer("conv", 16, width, (32, 32), (3, 3), padding=(1, 1), norm=True, activation="relu")


def entry(width: int, survey: str, day: int = 1, readings: int = READINGS) -> Entry:
    """One layer whose readings follow from its names."""
    return entry_of(layer(width).key, survey, day, readings)


Damage = Callable[[Path, random.Random], None]
DAMAGES: dict[str, Damage] = {}
"""By name; those at fault in another's place raise nothing."""
REFUSED = (
    "a folder",
    "a pipe",
    "a loop of links",
    "another database",
    "another program's number",
    "a version from the future",
    "a folder in the place of a log",
)
"""What stays in its place, as it is no store of this program's: every command says so."""


OF_OTHERS = ("has format", "belongs to another program")
"""Sentences for a header that may be that of a later version or of another program, and so stays as well."""


def damage(name: str) -> Callable[[Damage], Damage]:
    """Name a way to damage a store."""

    def named(function: Damage) -> Damage:
        DAMAGES[name] = function
        return function

    return named


def changed(path: Path, *statements: str, writable: bool = False) -> None:
    """Execute statements as the sqlite3 command would."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        if writable:
            connection.execute("PRAGMA writable_schema = ON")
        for statement in statements:
            connection.execute(statement)


def flip(path: Path, places: Sequence[int], rng: random.Random) -> None:
    """Change a byte at each of these places."""
    content = bytearray(path.read_bytes())
    for place in places:
        content[place % len(content)] ^= rng.randrange(1, 256)
    path.write_bytes(content)


def page_size(path: Path) -> int:
    return int.from_bytes(path.read_bytes()[16:18], "big") or 4096


@damage("cut short")
def _cut(path: Path, rng: random.Random) -> None:
    os.truncate(path, rng.randrange(1, path.stat().st_size))


@damage("bytes after its end")
def _grown(path: Path, rng: random.Random) -> None:
    with path.open("ab") as file:
        file.write(rng.randbytes(rng.randrange(1, 20_000)))


@damage("bytes of the header")
def _header(path: Path, rng: random.Random) -> None:
    flip(path, [rng.randrange(100) for _ in range(rng.randint(1, 4))], rng)


@damage("bytes of the schema's page")
def _schema(path: Path, rng: random.Random) -> None:
    flip(path, [rng.randrange(100, page_size(path)) for _ in range(rng.randint(1, 20))], rng)


@damage("bytes of pages")
def _pages(path: Path, rng: random.Random) -> None:
    flip(path, [rng.randrange(100, path.stat().st_size) for _ in range(rng.randint(1, 30))], rng)


@damage("bytes of pages' heads")
def _heads(path: Path, rng: random.Random) -> None:
    size = page_size(path)
    pages = path.stat().st_size // size
    flip(path, [size * rng.randrange(1, pages) + rng.randrange(40) for _ in range(rng.randint(1, 10))], rng)


@damage("bytes of the list of free pages")
def _free(path: Path, rng: random.Random) -> None:
    changed(path, "PRAGMA journal_mode = delete", "PRAGMA auto_vacuum = NONE", "VACUUM")
    changed(path, "DELETE FROM readings WHERE survey = 's5'")
    trunk = int.from_bytes(path.read_bytes()[32:36], "big")
    flip(path, [page_size(path) * (trunk - 1) + rng.randrange(64) for _ in range(rng.randint(1, 6))], rng)


@damage("zeroed pages")
def _zeroed(path: Path, rng: random.Random) -> None:
    _overwrite(path, rng, lambda size: bytes(size))


@damage("random pages")
def _random(path: Path, rng: random.Random) -> None:
    _overwrite(path, rng, rng.randbytes)


def _overwrite(path: Path, rng: random.Random, fresh: Callable[[int], bytes]) -> None:
    size = page_size(path)
    with path.open("r+b") as file:
        for _ in range(rng.randint(1, 5)):
            file.seek(size * rng.randrange(path.stat().st_size // size))
            file.write(fresh(size))


@damage("pages in each other's place")
def _swapped(path: Path, rng: random.Random) -> None:
    size, content = page_size(path), path.read_bytes()
    pages = [content[start : start + size] for start in range(0, len(content), size)]
    one, other = rng.sample(range(1, len(pages)), 2)
    pages[one], pages[other] = pages[other], pages[one]
    path.write_bytes(b"".join(pages))


@damage("a picture")
def _picture(path: Path, rng: random.Random) -> None:
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + rng.randbytes(rng.randrange(5000)))


@damage("text")
def _text(path: Path, rng: random.Random) -> None:
    path.write_text("network,latency\n" * rng.randrange(1, 500))


@damage("JSON")
def _json(path: Path, rng: random.Random) -> None:
    path.write_text(json.dumps({"format": 1, "readings": [0.1] * rng.randrange(500)}))


@damage("nothing")
def _nothing(path: Path, rng: random.Random) -> None:
    path.write_bytes(b"")


@damage("zeros")
def _zeros(path: Path, rng: random.Random) -> None:
    path.write_bytes(bytes(rng.randrange(1, 50_000)))


@damage("a header and zeros")
def _only_header(path: Path, rng: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:100] + bytes(len(content) - 100))


@damage("a folder")
def _folder(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.mkdir()


@damage("a pipe")
def _pipe(path: Path, rng: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


@damage("a loop of links")
def _loop(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.symlink_to(path.name)


@damage("a link to nothing")
def _dangling(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.symlink_to("elsewhere.sqlite")


@damage("another database")
def _other(path: Path, rng: random.Random) -> None:
    path.unlink()
    changed(path, "CREATE TABLE photos (name TEXT)", "INSERT INTO photos VALUES ('a.png')")


@damage("another program's number")
def _number(path: Path, rng: random.Random) -> None:
    changed(path, f"PRAGMA application_id = {rng.randrange(1, 2**31 - 1)}")


@damage("a version from the future")
def _future(path: Path, rng: random.Random) -> None:
    changed(path, f"PRAGMA user_version = {rng.choice((FORMAT + 1, 99, 2**31 - 1))}")


@damage("a version of 0 or below")
def _past(path: Path, rng: random.Random) -> None:
    changed(path, f"PRAGMA user_version = {rng.choice((0, -1, -(2**31)))}")


@damage("a log of garbage beside it")
def _garbage(path: Path, rng: random.Random) -> None:
    ending = rng.choice(("-wal", "-shm", "-journal"))
    magic = {"-wal": b"\x37\x7f\x06\x82", "-journal": b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7", "-shm": b""}[ending]
    head = magic if rng.random() < 0.5 else b""
    path.with_name(path.name + ending).write_bytes(head + rng.randbytes(rng.randrange(1, 40_000)))


@damage("a folder in the place of a log")
def _folder_beside(path: Path, rng: random.Random) -> None:
    path.with_name(path.name + rng.choice(("-wal", "-shm", "-journal"))).mkdir()


@damage("another store's log beside it")
def _foreign(path: Path, rng: random.Random) -> None:
    with tempfile.TemporaryDirectory() as folder:
        other = Path(folder) / "store.sqlite"
        Store(other).add([entry(width, "foreign") for width in range(1, rng.randint(2, 20))])
        with closing(sqlite3.connect(other)) as keeps:
            keeps.execute("SELECT count(*) FROM readings").fetchall()
            Store(other).add([entry(width, "foreign too") for width in range(1, rng.randint(2, 20))])
            shutil.copy(f"{other}-wal", f"{path}-wal")


@damage("a log cut short, or with other bytes")
def _log(path: Path, rng: random.Random) -> None:
    with closing(sqlite3.connect(path)) as keeps:
        keeps.execute("SELECT count(*) FROM readings").fetchall()
        Store(path).add([entry(width, "logged") for width in range(1, 9)])
        for ending in ("", "-wal"):
            shutil.copy(f"{path}{ending}", f"{path}.copy{ending}")
    for ending in ("", "-wal"):
        os.rename(f"{path}.copy{ending}", f"{path}{ending}")
    log = path.with_name(f"{path.name}-wal")
    if rng.random() < 0.5:
        os.truncate(log, rng.randrange(log.stat().st_size))
    else:
        flip(log, [rng.randrange(log.stat().st_size) for _ in range(rng.randint(1, 10))], rng)


@damage("a table dropped")
def _dropped(path: Path, rng: random.Random) -> None:
    changed(path, "DROP TABLE readings")


@damage("a table renamed")
def _renamed(path: Path, rng: random.Random) -> None:
    changed(path, "ALTER TABLE readings RENAME TO other")


@damage("a column more, less or renamed")
def _column(path: Path, rng: random.Random) -> None:
    more = "ADD COLUMN extra TEXT NOT NULL DEFAULT ''"
    way = rng.choice((more, "DROP COLUMN anchor", "RENAME COLUMN unit TO units"))
    changed(path, f"ALTER TABLE readings {way}")


@damage("a trigger or an index of the user's")
def _trigger(path: Path, rng: random.Random) -> None:
    stops = "CREATE TRIGGER stop BEFORE INSERT ON readings BEGIN SELECT RAISE(ABORT, 'no'); END"
    changed(path, rng.choice((stops, "CREATE UNIQUE INDEX one ON readings (survey, layer)")))


@damage("a view of the user's")
def _view(path: Path, rng: random.Random) -> None:
    changed(path, "CREATE VIEW devices AS SELECT context FROM readings")


@damage("a table without its index")
def _no_index(path: Path, rng: random.Random) -> None:
    changed(path, "DELETE FROM sqlite_master WHERE type = 'index'", writable=True)


@damage("an index that disagrees with its table")
def _disagrees(path: Path, rng: random.Random) -> None:
    with closing(sqlite3.connect(path)) as connection:
        ((root,),) = connection.execute("SELECT rootpage FROM sqlite_master WHERE type = 'index'").fetchall()
        ((table,),) = connection.execute("SELECT sql FROM sqlite_master WHERE type = 'table'").fetchall()
    plain = table[: table.index(",\n        UNIQUE")] + ")"
    alone = f"UPDATE sqlite_master SET sql = '{plain}' WHERE type = 'table'"
    changed(path, "DELETE FROM sqlite_master WHERE type = 'index'", alone, writable=True)
    for _ in range(rng.randint(1, 4)):
        row = f"(SELECT id FROM readings LIMIT 1 OFFSET {rng.randrange(20)})"
        width = rng.randrange(1, 40)
        changed(
            path,
            rng.choice(
                (
                    f"DELETE FROM readings WHERE id = {row}",
                    f"UPDATE readings SET layer = '{layer(width).key}' WHERE id = {row}",
                    f"UPDATE readings SET id = id + 1000 WHERE id = {row}",
                )
            ),
        )
    back = f"INSERT INTO sqlite_master VALUES ('index', 'sqlite_autoindex_readings_1', 'readings', {root}, NULL)"
    changed(path, f"UPDATE sqlite_master SET sql = '{table}' WHERE type = 'table'", back, writable=True)


@damage("empty cells")
def _null(path: Path, rng: random.Random) -> None:
    with closing(sqlite3.connect(path)) as connection:
        ((table,),) = connection.execute("SELECT sql FROM sqlite_master WHERE type = 'table'").fetchall()
    loose = table.replace(" NOT NULL", "")
    changed(path, f"UPDATE sqlite_master SET sql = '{loose}' WHERE type = 'table'", writable=True)
    changed(path, f"UPDATE readings SET {rng.choice(list(COLUMNS))} = NULL WHERE {_some(rng)}")
    if rng.random() < 0.7:
        changed(path, f"UPDATE sqlite_master SET sql = '{table}' WHERE type = 'table'", writable=True)


@damage("cells of another type")
def _types(path: Path, rng: random.Random) -> None:
    value = rng.choice(("x'ff00'", "x''", "CAST(x'ff' AS TEXT)", "''", "'17'", "'null'"))
    changed(path, f"UPDATE OR IGNORE readings SET {rng.choice(list(COLUMNS))} = {value} WHERE {_some(rng)}")


@damage("cells of other JSON")
def _cells(path: Path, rng: random.Random) -> None:
    deep, many = "[" * 50_000, "9" * 5000
    texts = ("[1.0", "{}", "[]", '["a"]', "[null]", '{"a": 1}', "[true]", deep, f"[{many}]", "[1e999]", '["\\ud800"]')
    column = rng.choice(("layer", "context", "doubts", "remarks", "readings", "levels", "anchor"))
    changed(path, f"UPDATE OR IGNORE readings SET {column} = '{rng.choice(texts)}' WHERE {_some(rng)}")


@damage("readings that are none")
def _readings(path: Path, rng: random.Random) -> None:
    column, value = (
        rng.choice(("readings", "levels", "anchor")),
        rng.choice(("0.0", "-1.0", "NaN", "Infinity", "5e-324")),
    )
    cell = json.dumps([0] * READINGS).replace("0", value)
    changed(path, f"UPDATE readings SET {column} = '{cell}' WHERE {_some(rng)}")


def _some(rng: random.Random) -> str:
    """A condition that holds for some rows."""
    return rng.choice(("TRUE", "survey = 's5'", "survey = 's0'", f"id = {rng.randint(1, SURVEYS * WIDTHS)}"))


@dataclass(frozen=True)
class Scripted(Metric):
    """Every layer takes a millisecond."""

    unit: ClassVar[str] = "s"
    target: Target = field(default_factory=lambda: Target(threads=1))
    survey: str = "new"
    on_measuring: Callable[[], None] = lambda: None

    def measure(self, cases: Sequence[Case], *, on_round: OnRound = None, pending: Pending = None) -> list[Measurement]:
        self.on_measuring()
        return [Measurement((0.001,) * 4, "s", {"x": "y"}, self.survey, (1.0,) * 4) for _ in cases]


def readable(path: Path) -> dict[int, bytes]:
    """The rows that SQLite reads of a damaged file, in the order of the table, until it reads no more."""
    rows: dict[int, bytes] = {}
    with tempfile.TemporaryDirectory() as folder:
        for ending in ("", "-wal", "-journal"):
            if os.path.isfile(f"{path}{ending}"):
                shutil.copy(f"{path}{ending}", f"{folder}/copy{ending}")
        with contextlib.suppress(sqlite3.Error, UnicodeError), closing(sqlite3.connect(f"{folder}/copy")) as connection:
            connection.text_factory = bytes
            for row in connection.execute("SELECT * FROM readings NOT INDEXED"):
                rows[row[0]] = repr(row).encode()
    return rows


def damaged(name: str, number: int, seed: int, template: Path) -> list[tuple[str, str]]:
    """What is wrong with the commands on a store damaged in this way: kinds and sentences ("" for nothing)."""
    with tempfile.TemporaryDirectory() as folder:
        path, rng = Path(folder) / "store.sqlite", drawn(seed, number)
        shutil.copy(template, path)
        DAMAGES[name](path, rng)
        return list(_used(name, path, template, rng))


def _used(name: str, path: Path, template: Path, rng: random.Random) -> Iterator[tuple[str, str]]:
    before, table = readable(path), path.with_name("exported.csv")
    commands = [["ls"], ["import", str(template.with_name("more.csv"))], ["export", str(table)], []]
    first = rng.randrange(len(commands))
    codes: list[int | None] = []
    for words in commands[first:] + commands[:first]:
        if not words:
            yield name, _surveyed(path)
            continue
        outcome = called(["store", *words, "--path", str(path)], LIMIT)
        yield name, _quiet(outcome, words[0])
        empty = words[0] == "export" and "has no measurements" in outcome.err
        if "htas store forget" in outcome.err:
            yield name, _forgotten(path, words)
        elif not empty:
            codes.append(outcome.code)
    asides = [each for each in path.parent.glob("*.damaged-*") if not each.name.endswith(("-wal", "-shm", "-journal"))]
    of_others = any(words in outcome.err for words in OF_OTHERS)
    if name not in REFUSED and not of_others and set(codes) - {0}:
        yield name, f"commands ended with {codes}: {outcome.err}"
    if len(asides) > 1:
        yield name, f"set aside {len(asides)} times"
    if asides and before.items() - readable(asides[0]).items():
        yield name, "what could be read is no longer there under the new name"
    if table.is_file():
        yield from _compared(name, table)


def _quiet(outcome: Outcome, verb: str) -> str:
    trouble = outcome.trouble()
    return f"store {verb}: {trouble}" if trouble else ""


def _forgotten(path: Path, words: Sequence[str]) -> str:
    """Follow the advice to forget surveys until the command has its way."""
    for _ in range(SURVEYS + 4):
        outcome = called(["store", *words, "--path", str(path)], LIMIT)
        if outcome.code == 0 or "has no measurements" in outcome.err:
            return ""
        survey = outcome.err.split("htas store forget ")[-1].strip()
        if called(["store", "forget", survey, "--path", str(path)], LIMIT).code != 0:
            return f"{survey!r} could not be forgotten: {outcome.err}"
    return f"it failed for good: {outcome.err}"


def _surveyed(path: Path) -> str:
    """A survey has its readings, and knows before it measures whether it can store them."""
    said, known = io.StringIO(), []
    metric = Scripted(on_measuring=lambda: known.append(said.getvalue()))
    cases = [layer(width) for width in (8, 24)]
    with contextlib.redirect_stderr(said):
        try:
            found = CachedMetric(metric.target, metric, "latency", Store(path), PLACE).measure(cases)
        except Exception as error:
            return f"a survey: {type(error).__name__}: {error}"
    if len(found) != len(cases):
        return f"a survey: {len(found)} readings"
    late = [line for line in said.getvalue().splitlines() if line not in known[0] and "damaged" in line]
    if "this survey is not in it" in said.getvalue() and "unless that is done before" not in known[0]:
        return f"a survey learned too late: {said.getvalue().splitlines()[-1]}"
    return f"a survey learned too late: {late[0]}" if late else ""


def _compared(name: str, table: Path) -> Iterator[tuple[str, str]]:
    """What was exported is what was put in."""
    known = {(each.survey, each.layer): each for each in originals()}
    other = Store(table.with_name("other.sqlite"))
    try:
        other.import_(table)
        wrong = [each for each in other._entries("TRUE") if known.get((each.survey, each.layer)) != each]
    except UserError as error:
        yield name, f"what was exported cannot be imported: {error}"
        return
    if [each for each in wrong if each.survey != Scripted.survey]:
        yield name, "digits became others, and nothing said so"


def originals() -> list[Entry]:
    """All that may be in a store."""
    surveys = [(f"s{number}", number + 1, WIDTHS) for number in range(SURVEYS)]
    more = [("more", 28, WIDTHS), ("logged", 1, 9), ("foreign", 1, 20), ("foreign too", 1, 20)]
    return [
        entry(8 * width if survey[0] in "sm" else width, survey, day=day)
        for survey, day, count in (*surveys, *more)
        for width in range(1, count + 1)
    ]


def prepared(folder: Path) -> Path:
    """A store to be damaged, and more.csv to be imported."""
    path, other = folder / "template.sqlite", Store(folder / "more.sqlite")
    Store(path).add([each for each in originals() if each.survey[0] == "s"])
    other.add([each for each in originals() if each.survey == "more"])
    other.export(folder / "more.csv")
    other.export(folder / "more.parquet")
    return path


def damages(folder: Path, seed: int, count: int, first: int = 0) -> Tally:
    """Damage stores, all ways in turn, and use them."""
    tally, template, names = Tally(), prepared(folder), sorted(DAMAGES)
    for number in range(first, first + count):
        name = names[number % len(names)]
        results = damaged(name, number, seed, template)
        trouble = "; ".join(sentence for kind, sentence in results if sentence and kind != CHANGED)
        tally.add(name, trouble, f"--seed {seed} --first {number} --count 1")
        tally.tried[CHANGED] += sum(kind == CHANGED for kind, _ in results)
    return tally


# -- tables ------------------------------------------------------------------------------------------------------------


def spoilt(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    """A table that is damaged, and how."""
    way = rng.choice(("cut short", "other bytes", "a part twice", "a part less", "zeros", "other letters"))
    start = rng.randrange(len(content))
    end = min(len(content), start + rng.randrange(1, 400))
    match way:
        case "cut short":
            return way, content[:start]
        case "other bytes":
            changed = bytearray(content)
            for _ in range(rng.randint(1, 20)):
                changed[rng.randrange(len(content))] ^= rng.randrange(1, 256)
            return way, bytes(changed)
        case "a part twice":
            return way, content[:end] + content[start:]
        case "a part less":
            return way, content[:start] + content[end:]
        case "zeros":
            return way, content[:start] + bytes(end - start) + content[end:]
    letters = rng.choice(
        (b'"', b"\n", b"[" * 5000, b"9" * 5000, b"NaN", b"-", b"1e400", b"\\ud800", b",", b"\xff", b"0")
    )
    return way, content[:start] + letters + content[start:]


def tables(folder: Path, seed: int, count: int, first: int = 0) -> Tally:
    """Import damaged tables: all or nothing, and nothing but what was exported."""
    tally, originally = Tally(), {(each.survey, each.layer): each for each in originals()}
    prepared(folder)
    for number in range(first, first + count):
        rng = drawn(seed, number)
        ending = (".csv", ".parquet")[number % 2]
        how, content = spoilt((folder / f"more{ending}").read_bytes(), rng)
        with tempfile.TemporaryDirectory() as place:
            table, store = Path(place) / f"table{ending}", Store(Path(place) / "store.sqlite")
            table.write_bytes(content)
            outcome = called(["store", "import", str(table), "--path", str(store.path)], LIMIT)
            kept = store._entries("TRUE")
            trouble = outcome.trouble()
            if outcome.code == 2 and (kept or str(table) not in outcome.err):
                trouble = trouble or f"{len(kept)} layers kept of a table that was refused: {outcome.err}"
            tally.add(f"{ending}, {how}", trouble, f"--seed {seed} --first {number} --count 1")
            tally.tried[CHANGED] += any(originally.get((each.survey, each.layer)) != each for each in kept)
    return tally
