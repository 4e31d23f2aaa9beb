"""What goes in comes out to the last bit, surveys stay apart, and a file that cannot be used loses nothing."""

import csv
import multiprocessing
import os
import random
import sqlite3
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import fields, replace
from math import isfinite
from multiprocessing.synchronize import Barrier
from pathlib import Path
from types import SimpleNamespace

import psutil
import pyarrow
import pytest
from pyarrow import parquet

from htas.errors import UserError
from htas.graph.layer import Layer
from htas.timing import entry as stored
from htas.timing import store
from htas.timing.entry import Entry
from htas.timing.measurement import Measurement
from htas.timing.store import Store

KINDS = [".csv", ".parquet"]


def layer(width: int) -> str:
    return Layer("conv", 16, width, (32, 32), (3, 3), padding=(1, 1), norm=True, activation="relu").key


def entry(width: int = 8, survey: str = "s1", place: str = "here", value: float = 0.001, hour: int = 1) -> Entry:
    """A layer whose readings are `value` and twice that, taken at so many o'clock."""
    context = {"device": "cpu", "runtime": "eager", "batch": "4"}
    measurement = Measurement((value, 2 * value), "s", context, survey, (1.0, 1.25), ("another process ran",))
    date = f"2026-11-23T{hour:02}:00:00+00:00"
    return Entry(place, "latency", layer(width), measurement, (0.5, 0.25), ("too noisy; stop other work",), date)


@pytest.fixture
def kept(tmp_path: Path) -> Store:
    return Store(tmp_path / "htas" / "store.sqlite")


def rows(path: Path, query: str) -> list[tuple[object, ...]]:
    """What the sqlite3 command would print."""
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(query).fetchall()


def execute(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


# -- what goes in comes out --------------------------------------------------------------------------------------------


def test_entries_come_back_as_they_were_given(kept: Store) -> None:
    given = [entry(16), replace(entry(8), anchor=(), doubts=())]
    assert kept.add(given) == 2
    found = kept.entries("s1")
    assert found == given
    assert [each.date for each in found] == ["2026-11-23T01:00:00.000000+00:00"] * 2
    assert kept.entries("s2") == []


def any_floats(count: int) -> tuple[float, ...]:
    """Positive floats of random bits, which is of all sizes, and the odd ones."""
    rng = random.Random(0)
    drawn = (abs(struct.unpack("d", rng.randbytes(8))[0]) for _ in range(count))
    return (*filter(isfinite, drawn), 5e-324, sys.float_info.max, 0.1 + 0.2)


def bits(values: tuple[float, ...]) -> list[bytes]:
    return [struct.pack("d", value) for value in values]


def test_floats_come_back_to_the_last_bit(kept: Store) -> None:
    values = any_floats(1000)
    backwards, doubled = values[::-1], values + values
    kept.add([replace(entry(), measurement=Measurement(values, "s", {}, "s1", backwards), anchor=doubled)])
    (found,) = kept.entries("s1")
    assert bits(found.measurement.values) == bits(values)
    assert bits(found.measurement.levels) == bits(backwards)
    assert bits(found.anchor) == bits(doubled)


def test_every_field_of_a_measurement_has_a_column() -> None:
    columns = {"readings" if field.name == "values" else field.name for field in fields(Measurement)}
    assert columns - set(stored.COLUMNS) == {"note"}  # of the program, which place and layer determine
    assert set(entry().row()) == set(stored.COLUMNS)


def test_the_sqlite3_command_can_read_it(kept: Store) -> None:
    kept.add([entry(8, value=0.25)])
    query = "SELECT survey, layer, unit, (SELECT min(value) FROM json_each(readings)), date FROM readings"
    assert rows(kept.path, query) == [("s1", layer(8), "s", 0.25, "2026-11-23T01:00:00.000000+00:00")]


def test_what_is_there_is_not_doubled(kept: Store) -> None:
    assert kept.add([entry(8), entry(16)]) == 2
    assert kept.add([entry(8, hour=2), entry(24), entry(24)]) == 1
    assert [each.layer for each in kept.entries("s1")] == [layer(8), layer(16), layer(24)]


def test_other_readings_of_the_same_survey_are_refused_and_none_of_them_kept(kept: Store) -> None:
    kept.add([entry(8)])
    with pytest.raises(ValueError, match=r"survey s1 already has other readings of .*htas store forget s1"):
        kept.add([entry(16), entry(8, value=0.002)])
    assert kept.entries("s1") == [entry(8)]


def test_a_curve_is_the_newest_survey_that_has_all_its_layers(kept: Store) -> None:
    kept.add([entry(width, "old", hour=1) for width in (8, 16, 24)])
    kept.add([entry(width, "new", hour=3) for width in (24, 16)])
    kept.add([entry(width, "between", hour=2, value=0.004) for width in (8, 16)])  # added last, but older
    new = kept.curve("here", "latency", [layer(16), layer(24), layer(16)])
    assert new == [entry(16, "new"), entry(24, "new"), entry(16, "new")]
    assert kept.curve("here", "latency", [layer(8), layer(16)]) == [
        entry(8, "between", value=0.004),
        entry(16, "between", value=0.004),
    ]
    assert kept.curve("here", "latency", [layer(24), layer(8)]) == [entry(24, "old"), entry(8, "old")]
    assert kept.curve("here", "latency", [layer(16)]) == [entry(16, "new")]
    assert kept.curve("here", "latency", [layer(32)]) is None


def test_of_surveys_of_one_moment_the_one_added_last_is_newest(kept: Store) -> None:
    kept.add([entry(survey="b")])
    kept.add([entry(survey="a")])
    found = kept.curve("here", "latency", [layer(8)])
    assert found == [entry(survey="a")]
    assert [each.survey for each in kept.surveys()] == ["a", "b"]


def test_a_curve_never_mixes_surveys_places_or_metrics(kept: Store) -> None:
    kept.add([entry(8, "one"), entry(16, "two")])
    kept.add([entry(8, "same", "here"), entry(16, "same", "there")])
    kept.add([entry(8, "both"), replace(entry(16, "both"), metric="energy")])
    assert kept.curve("here", "latency", [layer(8), layer(16)]) is None
    assert kept.curve("there", "latency", [layer(16)]) == [entry(16, "same", "there")]


def test_surveys_are_listed_newest_first(kept: Store) -> None:
    sure = replace(entry(8).measurement, survey="new", remarks=())
    kept.add([replace(entry(8, "new", "there", hour=5), measurement=sure, doubts=())])
    remarked = replace(entry(16, "old", hour=4), doubts=())
    doubted = replace(entry(24, "old", hour=3), measurement=replace(sure, survey="old"))
    kept.add([entry(8, "old", hour=1), remarked, doubted])
    new, old = kept.surveys()
    assert (new.survey, new.place, new.layers, new.doubtful) == ("new", "there", 1, 0)
    assert (old.survey, old.metric, old.layers, old.doubtful) == ("old", "latency", 3, 3)
    assert old.date == "2026-11-23T04:00:00.000000+00:00"
    assert old.context == {"device": "cpu", "runtime": "eager", "batch": "4"}


def test_a_survey_a_place_or_everything_is_forgotten(kept: Store) -> None:
    kept.add([entry(8), entry(16), entry(8, "s2"), entry(8, "s3", "there")])
    assert kept.forget("s1") == 2
    assert kept.forget("there") == 1
    assert kept.forget("nothing") == 0
    assert [each.survey for each in kept.surveys()] == ["s2"]
    assert kept.forget_all() == 1
    assert kept.surveys() == []


def test_forgetting_gives_the_disk_back(kept: Store) -> None:
    kept.add([entry(8)])
    small = kept.path.stat().st_size
    kept.add([replace(entry(width, "s2"), anchor=any_floats(1000)) for width in range(20)])
    assert kept.path.stat().st_size > small + 400_000
    kept.forget("s2")
    assert kept.path.stat().st_size <= small + 8192
    assert kept.entries("s1") == [entry(8)]


def test_a_question_makes_no_file(kept: Store) -> None:
    assert kept.surveys() == []
    assert kept.curve("here", "latency", [layer(8)]) is None
    assert kept.forget("s1") == kept.forget_all() == 0
    assert not kept.path.parent.exists()


def test_a_reading_of_a_chain_below_the_rest_of_the_chain_is_stored(kept: Store) -> None:
    """As increments of small layers on a busy machine are."""
    one = replace(entry(), measurement=Measurement((-1e-6, 1e-3, 1.1e-3, 1.2e-3, 1.3e-3), "s", {}, "s1"))
    assert kept.add([one]) == 1
    assert kept.entries("s1")[0].measurement.values[0] == -1e-6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reading", [0.0, -0.0, -1e-9])
def test_a_single_reading_that_takes_no_time_is_refused_wherever_layers_are_timed_alone(
    kept: Store, tmp_path: Path, kind: str, reading: float
) -> None:
    values = (reading, 1e-3, 1.1e-3, 1.2e-3, 1.3e-3)
    increments = replace(entry(), measurement=Measurement(values, "s", {"runtime": "onnxruntime"}, "s1"))
    kept.add([increments])
    kept.export(tmp_path / f"table{kind}")
    refused = r"every reading of a layer that eager timed must be above 0 to be stored, got -?\d"
    with pytest.raises(UserError, match=refused):
        replace(entry(), measurement=replace(increments.measurement, context={"runtime": "eager"}))
    execute(kept.path, """UPDATE readings SET context = '{"runtime": "eager"}'""")
    with pytest.raises(UserError, match=f"has a row of survey s1 that cannot be read: {refused}"):
        kept.entries("s1")
    table = tmp_path / f"table{kind}"
    if kind == ".csv":
        table.write_text(table.read_text().replace("onnxruntime", "eager"))
    else:
        content = parquet.read_table(table).to_pylist()
        parquet.write_table(pyarrow.Table.from_pylist([{**content[0], "context": '{"runtime": "eager"}'}]), table)
    with pytest.raises(UserError, match=f"row 1 of .* cannot be read .{refused}"):
        Store(tmp_path / "other.sqlite").import_(table)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: replace(entry(), place=""), "place of a stored measurement must not be empty"),
        (lambda: entry(survey=""), "survey of a stored measurement must not be empty"),
        (lambda: replace(entry(), metric=""), "metric of a stored measurement must not be empty"),
        (lambda: replace(entry(), layer="conv 3x3"), "must be JSON as Layer.key writes it, got 'conv 3x3'"),
        (lambda: replace(entry(), layer='{"b": 1, "a": 2}'), "must be JSON as Layer.key writes it"),
        (lambda: replace(entry(), layer="[1]"), "must be JSON as Layer.key writes it"),
        (lambda: entry(value=float("inf")), "readings must be finite"),
        (lambda: entry(value=0.0), "estimate of readings must be above 0 to be stored"),
        (lambda: entry(value=-0.001), "estimate of readings must be above 0 to be stored"),
        (lambda: replace(entry(), anchor=(float("nan"),)), "readings must be finite"),
        (
            lambda: replace(entry(), measurement=Measurement((1.0,), "s", {}, "s1", (float("nan"),))),
            "levels of readings must be above 0",
        ),
        (lambda: replace(entry(), date="yesterday"), "date must be ISO 8601 with a zone, .*, got 'yesterday'"),
        (lambda: replace(entry(), date="2026-11-23T01:00:00"), "date must be ISO 8601 with a zone"),
        (
            lambda: replace(entry(), measurement=Measurement((1.0,), "s", {"batch": 4}, "s1")),  # type: ignore[dict-item]
            "must be words by name, got",
        ),
    ],
)
def test_what_cannot_be_stored_is_refused_when_it_is_made(wrong: Callable[[], Entry], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wrong()


def test_a_date_of_another_zone_is_kept_in_utc() -> None:
    assert replace(entry(), date="2026-11-23T01:30:00.5+02:00").date == "2026-11-22T23:30:00.500000+00:00"


# -- tables ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_moves_between_stores_without_loss(kept: Store, tmp_path: Path, kind: str) -> None:
    values = any_floats(10_000)  # more than the 128 KiB that the csv module takes for a field
    odd = Measurement(values, "µs", {"processor": 'a "quoted", name\nof two lines'}, "s2")
    given = [entry(16, hour=7), entry(8), replace(entry(8), measurement=odd, doubts=(), anchor=())]
    kept.add(given)
    other = Store(tmp_path / "other.sqlite")
    assert kept.export(tmp_path / f"table{kind}") == 3
    assert other.import_(tmp_path / f"table{kind}") == 3
    assert other.entries("s1") == given[:2]
    assert [each.date for each in other.entries("s1")] == [each.date for each in given[:2]]
    (found,) = other.entries("s2")
    assert found == given[2]
    assert bits(found.measurement.values) == bits(values)


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_read_twice_adds_nothing(kept: Store, tmp_path: Path, kind: str) -> None:
    kept.add([entry(8), entry(16)])
    kept.export(tmp_path / f"table{kind}")
    assert kept.import_(tmp_path / f"table{kind}") == 0
    kept.forget("s1")
    kept.add([entry(16)])
    assert kept.import_(tmp_path / f"table{kind}") == 1
    assert kept.entries("s1") == [entry(16), entry(8)]


def test_a_parquet_table_has_lists_for_other_programs(kept: Store, tmp_path: Path) -> None:
    kept.add([entry(8, value=0.25)])
    kept.export(tmp_path / "table.parquet")
    table = parquet.read_table(tmp_path / "table.parquet")
    assert table.schema.field("readings").type == pyarrow.list_(pyarrow.float64())
    assert table["readings"].to_pylist() == [[0.25, 0.5]]


def test_a_csv_that_a_spreadsheet_has_marked_is_read(kept: Store, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    kept.add([entry(8)])
    kept.export(path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert Store(tmp_path / "other.sqlite").import_(path) == 1


def altered(path: Path, column: str, value: str) -> None:
    """Write another value into the second row of a CSV."""
    with path.open(newline="") as file:
        found = list(csv.DictReader(file))
    found[1][column] = value
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, found[0])
        writer.writeheader()
        writer.writerows(found)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("readings", "[1.0, NaN]", "readings is not what htas store export writes there: .1.0, nan."),
        ("readings", "[1" + "0" * 400 + "]", r"readings is not .*000\.\.\."),
        ("readings", "[true]", "readings is not"),
        ("readings", "[]", "at least one reading"),
        ("readings", "[0.001, -0.1]", "estimate of readings must be above 0 to be stored"),
        ("levels", "[1.0, -1.0]", "levels of readings must be above 0"),
        ("readings", "[1.0", "row 2 of .* cannot be read"),
        ("anchor", '{"a": 1}', "anchor is not"),
        ("levels", "[null]", "levels is not"),
        ("levels", "[1.0]", "2 readings need as many levels, got 1"),
        ("remarks", "{}", "remarks is not"),
        ("doubts", "[1]", "doubts is not"),
        ("context", '{"batch": 4}', "context is not"),
        ("layer", "conv", "layer of a stored measurement must be JSON"),
        ("survey", "", "survey of a stored measurement must not be empty"),
        ("date", "now", "date must be ISO 8601"),
        ("format", "2", "row 2 of .* has format 2, this version reads 1"),
    ],
)
def test_a_wrong_cell_is_named_and_nothing_of_its_table_is_kept(
    kept: Store, tmp_path: Path, column: str, value: str, message: str
) -> None:
    path = tmp_path / "table.csv"
    kept.add([entry(8), entry(16)])
    kept.export(path)
    altered(path, column, value)
    other = Store(tmp_path / "other.sqlite")
    with pytest.raises(UserError, match=message) as caught:
        other.import_(path)
    assert "row 2 of " in str(caught.value)
    assert "give a file that htas store export of this version wrote" in str(caught.value)
    assert other.surveys() == []


def test_a_row_cut_short_is_named(kept: Store, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    kept.add([entry(8)])
    kept.export(path)
    path.write_text(path.read_text().rsplit(',"', 2)[0] + "\n")
    with pytest.raises(UserError, match=r"row 1 of .*table.csv cannot be read"):
        kept.import_(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("table.csv", b"a,b\n1,2\n", "has no column 'format'"),
        ("table.csv", b"", "has no column 'format'"),
        ("table.csv", b"\xff\xfe\x00", "cannot be read .*utf-8"),
        ("table.csv", b"format,place,metric\n1,here,latency\n", "has no column 'survey'"),
        ("table.csv", b'format,place,metric\n1,"here', "cannot be read .unexpected end of data."),
        ("table.parquet", b"PAR1", "cannot be read"),
        ("table.parquet", b"", "cannot be read"),
        ("table.csv", None, "table.csv does not exist"),
        ("table.parquet", None, "table.parquet does not exist"),
    ],
)
def test_a_file_that_is_no_table_is_refused(
    kept: Store, tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        kept.import_(tmp_path / name)
    assert str(caught.value).endswith("give a file that htas store export of this version wrote")
    assert not kept.path.exists()


def test_a_parquet_table_of_other_columns_is_refused(kept: Store, tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table({"format": [1], "place": ["here"]}), tmp_path / "table.parquet")
    with pytest.raises(UserError, match="has no column 'metric'"):
        kept.import_(tmp_path / "table.parquet")


def test_a_table_of_another_kind_or_of_nothing_is_refused(kept: Store, tmp_path: Path) -> None:
    for work in (kept.export, kept.import_):
        with pytest.raises(ValueError, match=r"is a .csv or a .parquet file, got .*table.txt"):
            work(tmp_path / "table.txt")
    with pytest.raises(ValueError, match=r"store.sqlite has no measurements to export"):
        kept.export(tmp_path / "table.csv")
    assert list(tmp_path.iterdir()) == []


# -- several processes -------------------------------------------------------------------------------------------------

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["htas.timing.store"])


def write_many(path: Path, name: str, together: Barrier) -> None:
    """Begin with the others, on a file that is not there yet."""
    together.wait()
    for number in range(20):
        Store(path).add([entry(8, f"{name}-{number}"), entry(16, f"{name}-{number}")])
        assert Store(path).curve("here", "latency", [layer(8), layer(16)]) is not None


def stop_half_way(path: Path) -> None:
    """Die within a transaction, as a killed process does."""

    def given() -> Iterator[Entry]:
        yield entry(8, "half")
        yield entry(16, "half")

    def die(self: Store, connection: sqlite3.Connection, each: Entry) -> int:
        if each.layer == layer(16):
            os._exit(9)
        return keep(self, connection, each)

    keep, Store._insert = Store._insert, die  # type: ignore[method-assign]
    Store(path).add(given())


@pytest.mark.slow
@pytest.mark.timeout(600)  # as every row waits for the disk
@pytest.mark.parametrize("damaged", [False, True])
def test_several_processes_write_at_once(kept: Store, damaged: bool) -> None:
    if damaged:
        kept.add([entry(8)])
        scramble(kept.path)
    together = PROCESSES.Barrier(4)
    writers = [PROCESSES.Process(target=write_many, args=(kept.path, f"p{n}", together), daemon=True) for n in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0, 0, 0]
    found = kept.surveys()
    assert {each.survey for each in found} == {f"p{n}-{number}" for n in range(4) for number in range(20)}
    assert {each.layers for each in found} == {2}
    assert rows(kept.path, "PRAGMA integrity_check") == [("ok",)]
    left = {path.name[:21] for path in kept.path.parent.iterdir() if path != kept.path}
    assert left == ({"store.sqlite.damaged-", "store.sqlite.lock"} if damaged else set())
    assert len(list(kept.path.parent.glob("*.damaged-*"))) == damaged


def test_a_process_that_dies_half_way_leaves_nothing_of_its_survey(kept: Store) -> None:
    kept.add([entry(8)])
    writer = PROCESSES.Process(target=stop_half_way, args=(kept.path,))
    writer.start()
    writer.join()
    assert writer.exitcode == 9
    assert [each.survey for each in kept.surveys()] == ["s1"]
    assert kept.add([entry(8, "half"), entry(16, "half")]) == 2


def test_readers_do_not_wait_for_a_writer_where_the_file_system_allows(kept: Store) -> None:
    kept.add([entry(8)])
    if rows(kept.path, "PRAGMA journal_mode") != [("wal",)]:
        pytest.skip("this file system is not known to be local")
    with closing(sqlite3.connect(kept.path, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("DELETE FROM readings")
        assert replace(kept, timeout=0.0).entries("s1") == [entry(8)]
        writer.execute("ROLLBACK")


def test_a_store_on_a_shared_disk_has_no_write_ahead_log(kept: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_is_shared", lambda path: True)
    kept.add([entry(8), entry(16)])
    assert rows(kept.path, "PRAGMA journal_mode") == [("delete",)]
    assert kept.entries("s1") == [entry(8), entry(16)]


def test_the_file_system_is_that_of_the_nearest_mount(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mounts = {"/": "ext4", "/home": "nfs4", "/home/me/my disk": "cifs", "/homes": "xfs"}
    partitions = [SimpleNamespace(mountpoint=point, fstype=kind) for point, kind in mounts.items()]
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: partitions)
    assert store._is_shared(Path("/home/.local/store.sqlite"))
    assert store._is_shared(Path("/home/me/my disk/a/store.sqlite"))
    assert not store._is_shared(Path("/homes/store.sqlite"))
    assert not store._is_shared(Path("/elsewhere/store.sqlite"))
    partitions.clear()
    assert not store._is_shared(Path("/home/store.sqlite"))


# -- files that cannot be used -----------------------------------------------------------------------------------------


def test_a_locked_store_is_waited_for_and_then_refused(kept: Store) -> None:
    kept.add([entry(8)])
    with closing(sqlite3.connect(kept.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(
            UserError, match=r"store.sqlite has been locked by another process for 0.0500 s; wait until .*HTAS_STORE"
        ):
            replace(kept, timeout=0.05).add([entry(16)])
        other.execute("ROLLBACK")
    assert kept.entries("s1") == [entry(8)]
    assert kept.add([entry(16)]) == 1


def test_a_full_disk_is_said_and_loses_nothing(kept: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    kept.add([entry(8)])
    prepare = Store._prepare

    def full(self: Store, connection: sqlite3.Connection, writes: bool) -> None:
        prepare(self, connection, writes)
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")  # SQLite then answers as on a full disk

    with monkeypatch.context() as patched:
        patched.setattr(Store, "_prepare", full)
        with pytest.raises(
            UserError, match=r"store.sqlite is on a disk that is full; free some space, or name another"
        ):
            kept.add([replace(entry(width, "s2"), anchor=any_floats(1000)) for width in range(10)])
    assert [each.survey for each in kept.surveys()] == ["s1"]
    assert kept.add([entry(16)]) == 1


def test_a_disk_that_may_not_be_written_is_said_and_can_be_read(kept: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    kept.add([entry(8)])
    prepare = Store._prepare

    def protected(self: Store, connection: sqlite3.Connection, writes: bool) -> None:
        prepare(self, connection, writes)
        connection.execute("PRAGMA query_only = TRUE")  # SQLite then answers as on a read-only disk

    monkeypatch.setattr(Store, "_prepare", protected)
    with pytest.raises(UserError, match=r"store.sqlite cannot be opened or written .*make it and its folder"):
        kept.add([entry(16)])
    assert kept.entries("s1") == [entry(8)]


def test_a_place_where_no_file_can_be_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be used: Not a directory; name another store with HTAS_STORE"):
        Store(tmp_path / "file" / "store.sqlite").add([entry(8)])
    with pytest.raises(UserError, match=r"is a folder and no file that could be a store; name another store"):
        Store(tmp_path).surveys()


def test_a_name_that_sqlite_treats_specially_is_a_file_like_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Store(Path(":memory:")).add([entry(8)])
    assert Store(Path(":memory:")).entries("s1") == [entry(8)]
    assert (tmp_path / ":memory:").exists()


def test_a_store_from_the_future_is_refused_and_left_as_it_is(kept: Store) -> None:
    kept.add([entry(8)])
    execute(kept.path, "PRAGMA user_version = 99")
    before = kept.path.read_bytes()
    for work in (kept.surveys, lambda: kept.add([entry(16)]), kept.forget_all):
        with pytest.raises(
            UserError, match="has format 99, this version of htas knows formats up to 2; install a newer"
        ):
            work()
    assert kept.path.read_bytes() == before


def test_a_file_of_another_program_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "photos.sqlite"
    execute(path, "CREATE TABLE photos (name TEXT)")
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"photos.sqlite belongs to another program than htas; name another store"):
        Store(path).add([entry(8)])
    assert path.read_bytes() == before


def test_a_file_that_is_no_database_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    path.write_text("network,latency\n" * 100)
    with pytest.raises(UserError, match=r"results.csv is no SQLite file; name another store"):
        Store(path).surveys()
    assert [each.name for each in tmp_path.iterdir()] == ["results.csv"]


def scramble(path: Path) -> None:
    """Nothing of the file is left."""
    path.write_bytes(b"\xa5" * path.stat().st_size)


def scramble_pages(path: Path) -> None:
    """The header is left, and with it what says that this is a store."""
    content = path.read_bytes()
    path.write_bytes(content[:100] + b"\xa5" * (len(content) - 100))


def truncate(path: Path) -> None:
    """The second half is gone, as after a copy that was stopped."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize("damage", [scramble, scramble_pages, truncate])
def test_a_damaged_store_is_set_aside_and_a_new_one_begun(
    kept: Store, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None]
) -> None:
    kept.add([entry(width) for width in range(1, 60)])
    damage(kept.path)
    broken = kept.path.read_bytes()
    assert kept.add([entry(8, "new")]) == 1
    said = capsys.readouterr().err
    (aside,) = kept.path.parent.glob("store.sqlite.damaged-20*")
    assert aside.read_bytes() == broken
    assert said.startswith(f"the store {kept.path} is damaged (")
    assert f"it is {aside.name} now, and a new one is begun" in said
    assert kept.entries("new") == [entry(8, "new")]
    assert [each.survey for each in kept.surveys()] == ["new"]


def test_the_log_of_a_damaged_store_goes_with_it(kept: Store) -> None:
    kept.add([entry(8)])
    inode = kept.path.stat().st_ino
    for ending in ("-wal", "-shm"):
        kept.path.with_name(f"store.sqlite{ending}").write_text(ending)
    kept._set_aside(inode, sqlite3.DatabaseError("some damage"))
    found = sorted(path.name for path in kept.path.parent.glob("*.damaged-*"))
    assert found == [f"{found[0]}{ending}" for ending in ("", "-shm", "-wal")]
    assert kept.path.with_name(f"{found[0]}-wal").read_text() == "-wal"
    assert kept.entries("s1") == []


def test_damage_found_by_a_question_is_set_aside_too(kept: Store, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        kept.add([entry(8)])
        scramble(kept.path)
        assert kept.curve("here", "latency", [layer(8)]) is None
        assert "is damaged" in capsys.readouterr().err
    assert len(list(kept.path.parent.glob("store.sqlite.damaged-*"))) == 2


def test_a_store_that_another_process_has_renewed_is_not_set_aside(
    kept: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept.add([entry(8)])
    scramble(kept.path)
    once, tries = Store._once, []

    def meanwhile(self: Store, work: Callable[[sqlite3.Connection], object]) -> object:
        tries.append(work)
        try:
            return once(self, work)
        except sqlite3.DatabaseError:
            monkeypatch.undo()
            Store(kept.path).add([entry(24, "another")])
            raise

    monkeypatch.setattr(Store, "_once", meanwhile)
    assert kept.add([entry(16, "mine")]) == 1
    assert len(tries) == 1
    assert {each.survey for each in kept.surveys()} == {"another", "mine"}
    assert len(list(kept.path.parent.glob("store.sqlite.damaged-*"))) == 1
    assert capsys.readouterr().err.count("is damaged") == 1


@pytest.mark.parametrize(
    "change",
    [
        "readings = '[1.0'",
        "readings = '[\"a\"]'",
        "context = x'ff'",
        "context = CAST(x'ff' AS TEXT)",
        "layer = 'conv'",
        "doubts = '{}'",
    ],
)
def test_one_row_that_cannot_be_read_is_named_and_can_be_forgotten(kept: Store, change: str) -> None:
    kept.add([entry(8), entry(8, "s2")])
    execute(kept.path, f"UPDATE readings SET {change} WHERE survey = 's1'")
    with pytest.raises(UserError, match=r"has a row of survey s1 that cannot be read: .*; remove it with htas store"):
        kept.entries("s1")
    assert {each.survey for each in kept.surveys()} == {"s1", "s2"}
    assert kept.forget("s1") == 1
    assert kept.entries("s2") == [entry(8, "s2")]


# -- where it is -------------------------------------------------------------------------------------------------------


def test_the_default_is_one_file_per_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("HTAS_STORE", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_DATA_HOME", "not/absolute")
    assert Store().path == tmp_path / ".local/share/htas/store.sqlite"
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert Store().path == Path("/data/htas/store.sqlite")
    monkeypatch.setenv("HTAS_STORE", "~/mine.sqlite")
    assert Store().path == tmp_path / "mine.sqlite"
    assert Store(Path("given")).path == Path("given")
