"""A store that is damaged, changed by hand, on a disk that is full or read-only, or that others are killed over."""

import csv
import json
import os
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from benchmarks.faults.store_damages import (
    DAMAGES,
    READINGS,
    Scripted,
    changed,
    damages,
    entry,
    layer,
    prepared,
    tables,
)
from benchmarks.faults.store_writers import PLACE, writers
from htas import cli
from htas.errors import UserError
from htas.spaces.remember import CachedMetric
from htas.timing.entry import COLUMNS, Entry
from htas.timing.store import FORMAT, TABLES, Store

# -- samples of the campaign -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_all_ways_to_damage_a_store_end_in_a_right_result_or_a_sentence(tmp_path: Path) -> None:
    assert damages(tmp_path, 3, len(DAMAGES)).failures == []


def test_a_damaged_table_is_imported_whole_or_not_at_all(tmp_path: Path) -> None:
    assert tables(tmp_path, 1, 24).failures == []


@pytest.mark.slow
def test_writers_that_are_killed_lose_and_double_nothing(tmp_path: Path) -> None:
    tally = writers(tmp_path, 0, 3.0, 4)
    assert tally.failures == []
    assert tally.tried["readings of adds that returned"] > 0
    assert tally.tried["processes killed"] > 4


# -- changed by hand ---------------------------------------------------------------------------------------------------


@pytest.fixture
def kept(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store.sqlite")
    store.add([entry(8, "s1"), entry(16, "s1"), entry(8, "s2", day=2)])
    return Store(store.path)


def without_unique(path: Path, *statements: str) -> None:
    """Change the table behind the back of its index."""
    with closing(sqlite3.connect(path)) as connection:
        ((table,),) = connection.execute("SELECT sql FROM sqlite_master WHERE type = 'table'").fetchall()
        index = connection.execute("SELECT * FROM sqlite_master WHERE type = 'index'").fetchone()
    plain = table[: table.index(",\n        UNIQUE")] + ")"
    alone = f"UPDATE sqlite_master SET sql = '{plain}' WHERE type = 'table'"
    changed(path, "DELETE FROM sqlite_master WHERE type = 'index'", alone, writable=True)
    changed(path, *statements)
    back = f"INSERT INTO sqlite_master VALUES ('index', '{index[1]}', 'readings', {index[3]}, NULL)"
    changed(path, f"UPDATE sqlite_master SET sql = '{table}' WHERE type = 'table'", back, writable=True)


def null(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        ((table,),) = connection.execute("SELECT sql FROM sqlite_master WHERE type = 'table'").fetchall()
    loose = table.replace(" NOT NULL", "")
    changed(path, f"UPDATE sqlite_master SET sql = '{loose}' WHERE type = 'table'", writable=True)
    changed(path, "UPDATE readings SET survey = NULL WHERE survey = 's2'")
    changed(path, f"UPDATE sqlite_master SET sql = '{table}' WHERE type = 'table'", writable=True)


BY_HAND: dict[str, tuple[Callable[[Path], None], str]] = {
    "dropped": (lambda path: changed(path, "DROP TABLE readings"), "its table of readings is gone"),
    "renamed": (lambda path: changed(path, "ALTER TABLE readings RENAME TO other"), "its table of readings is gone"),
    "column": (lambda path: changed(path, "ALTER TABLE readings DROP COLUMN anchor"), "gone or was changed"),
    "trigger": (
        lambda path: changed(path, "CREATE TRIGGER t AFTER INSERT ON readings BEGIN DELETE FROM readings; END"),
        "gone or was changed",
    ),
    "null": (null, "NULL value in readings.survey"),
    "bytes": (lambda path: changed(path, "UPDATE readings SET place = x'ff'"), "row 1 has something else than text"),
    "row gone": (lambda path: without_unique(path, "DELETE FROM readings WHERE id = 2"), "wrong # of entries in index"),
    "row moved": (lambda path: without_unique(path, "UPDATE readings SET id = 9 WHERE id = 2"), "missing from index"),
}


@pytest.mark.parametrize("way", BY_HAND)
def test_what_was_changed_by_hand_is_set_aside_before_anything_is_measured(
    kept: Store, way: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change, reason = BY_HAND[way]
    change(kept.path)
    known = []
    metric = Scripted(on_measuring=lambda: known.append(capsys.readouterr().err))
    CachedMetric(metric.target, metric, "latency", Store(kept.path), PLACE).measure([layer(8), layer(24)])
    assert f"the store {kept.path} is damaged (" in known[0]
    assert reason in known[0]
    assert capsys.readouterr().err == ""
    assert len(list(kept.path.parent.glob("store.sqlite.damaged-*"))) == 1
    assert [each.survey for each in kept.surveys()] == ["new"]


@pytest.mark.parametrize("verb", ["ls", "show s1", "import more.csv", "export out.csv", "forget s1"])
def test_every_command_sets_a_dropped_table_aside(
    kept: Store, tmp_path: Path, verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    kept.export(tmp_path / "more.csv")
    changed(kept.path, "DROP TABLE readings")
    code = cli.main(["store", *verb.split(), "--path", str(kept.path)])
    assert code == (0 if verb.split()[0] in ("ls", "import") else 2)
    assert "is damaged (its table of readings is gone): it is store.sqlite.damaged-" in capsys.readouterr().err
    assert cli.main(["store", "ls", "--path", str(kept.path)]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("version", [0, -1, -(2**31)])
def test_a_version_that_never_was_is_put_right_and_loses_nothing(kept: Store, version: int) -> None:
    changed(kept.path, f"PRAGMA user_version = {version}")
    assert {each.survey for each in kept.surveys()} == {"s1", "s2"}
    assert kept.add([entry(24, "s3")]) == 1
    with closing(sqlite3.connect(kept.path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchall() == [(FORMAT,)]


def test_a_file_format_that_sqlite_does_not_know_is_damage(kept: Store, capsys: pytest.CaptureFixture[str]) -> None:
    content = bytearray(kept.path.read_bytes())
    content[47] = 99  # the schema's
    kept.path.write_bytes(content)
    assert kept.surveys() == []
    assert "is damaged (unsupported file format)" in capsys.readouterr().err


def test_a_schema_that_is_no_text_is_damage(kept: Store, capsys: pytest.CaptureFixture[str]) -> None:
    content = kept.path.read_bytes()
    kept.path.write_bytes(content.replace(b"CREATE TABLE readings", b"CREATE T\xb1BLE readings"))
    assert kept.surveys() == []
    assert "is damaged (" in capsys.readouterr().err


@pytest.mark.parametrize("context", ["[1]", '{"device": 1}', "null", "{" * 5000, "[" * 1500 + "]" * 1500])
def test_a_context_that_is_none_is_listed_without(
    kept: Store, context: str, capsys: pytest.CaptureFixture[str]
) -> None:
    changed(kept.path, f"UPDATE readings SET context = '{context}' WHERE survey = 's1'")
    assert cli.main(["store", "ls", "--path", str(kept.path)]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["survey", "s2", "s1"]


def test_an_entry_that_cannot_be_read_is_named_when_it_is_added_again(kept: Store) -> None:
    changed(kept.path, "UPDATE readings SET readings = '[]' WHERE survey = 's1'")
    with pytest.raises(UserError, match=r"has a row of survey s1 that cannot be read: .*htas store forget s1"):
        kept.add([entry(8, "s1")])


@pytest.mark.parametrize(
    "cell", ["[0.0, 0.0]", "[-1.0, -2.0]", "[NaN, 1.0]", "[Infinity, 1.0]", "[" * 9999, "[1e-320, 1e-320]"]
)
@pytest.mark.parametrize("column", ["readings", "levels", "anchor"])
def test_a_store_of_readings_that_are_none_fails_no_survey(
    kept: Store, column: str, cell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    changed(kept.path, f"UPDATE readings SET readings = '[1.0, 1.0]', levels = '[1.0, 1.0]', {column} = '{cell}'")
    for survey in ("new", "newer"):
        metric = Scripted(survey=survey)
        found = CachedMetric(metric.target, metric, "latency", Store(kept.path), PLACE).measure([layer(8), layer(16)])
        assert len(found) == 2
    assert "store: 2 of 2 layers were measured before and still hold" in capsys.readouterr().err  # those of "new"


def test_a_survey_of_the_future_is_not_the_newest_for_good(kept: Store) -> None:
    for date in ("9999-01-01T00:00:00.000000+00:00", "soon"):
        changed(kept.path, f"UPDATE readings SET date = '{date}' WHERE survey = 's2'")
        assert kept.curve(PLACE, "latency", [layer(8).key]) == [entry(8, "s1")]


def test_the_log_of_a_store_behind_a_link_is_seen(kept: Store, tmp_path: Path) -> None:
    link = tmp_path / "link.sqlite"
    link.symlink_to(kept.path)
    kept.path.with_name("store.sqlite-wal").write_text("a log")
    assert not Store(link)._is_settled()


def test_a_folder_a_pipe_or_a_loop_in_its_place_is_said(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    path.mkdir()
    for work in (Store(path).surveys, lambda: Store(path).add([entry(8, "s1")])):
        with pytest.raises(
            UserError, match=r"store.sqlite is a folder and no file that could be a store; name another"
        ):
            work()
    path.rmdir()
    os.mkfifo(path)
    with pytest.raises(UserError, match="is a pipe or a device"):
        Store(path).surveys()
    path.unlink()
    path.symlink_to(path.name)
    with pytest.raises(UserError, match="cannot be used: Too many levels of symbolic links"):
        Store(path).surveys()


@pytest.mark.parametrize("path", ["a\0b", "x" * 300, "x/" * 3000])
def test_a_path_that_none_can_be_is_said(tmp_path: Path, path: str) -> None:
    for work in (Store(tmp_path / path).surveys, lambda: Store(tmp_path / path).add([entry(8, "s1")])):
        with pytest.raises(UserError, match=r"cannot be used: .*; name another store") as caught:
            work()
        assert len(str(caught.value)) < 400


def test_a_folder_of_nobody_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTAS_STORE", "~nosuch/x.sqlite")
    with pytest.raises(UserError, match=r"HTAS_STORE: this machine has no such user as '~nosuch'"):
        Store()


def test_a_name_of_bytes_is_no_survey(kept: Store) -> None:
    assert kept.entries("\udcff") == []
    assert kept.forget("\udcff") == 0


@pytest.mark.parametrize("ending", ["-wal", "-shm", "-journal"])
def test_a_folder_in_the_place_of_a_log_is_named(kept: Store, ending: str) -> None:
    kept.path.with_name(f"store.sqlite{ending}").mkdir()
    try:
        kept.add([entry(24, "s3")])
    except UserError as error:
        assert f"cannot be used, as store.sqlite{ending} is a folder; delete that, or name" in str(error)
    assert {"s1", "s2"} <= {each.survey for each in kept.surveys()}


def as_format_1(path: Path) -> None:
    """Bring a store back to how the first version of this program wrote it."""
    changed(
        path,
        "ALTER TABLE readings RENAME TO newer",
        f"CREATE TABLE {TABLES[1]}",
        f"INSERT INTO readings SELECT id, {', '.join(COLUMNS)} FROM newer",
        "DROP TABLE newer",
        "PRAGMA user_version = 1",
    )


def test_a_store_of_the_first_format_gets_check_sums_and_loses_nothing(kept: Store, tmp_path: Path) -> None:
    before = kept._entries("TRUE")
    as_format_1(kept.path)
    store = Store(kept.path)
    assert store._entries("TRUE") == before and store.add([entry(24, "s3")]) == 1 and store.add(before) == 0
    with closing(sqlite3.connect(kept.path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchall() == [(FORMAT,)]
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    assert tables == [("readings",)]
    changed(kept.path, "UPDATE readings SET readings = replace(readings, '0.0', '0.1')")
    with pytest.raises(UserError, match="were changed after they were written"):
        Store(kept.path).entries("s1")


def test_a_store_of_the_first_format_on_a_read_only_disk_is_read_as_it_is(
    disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copied_to(disk, tmp_path)
    before = Store(path)._entries("TRUE")
    as_format_1(path)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    assert Store(path)._entries("TRUE") == before and len(Store(path).surveys()) == 6
    with pytest.raises(UserError, match="cannot be opened or written"):
        Store(path).add([entry(24, "s9")])


@pytest.mark.parametrize("way", ["null", "bytes", "row gone", "column"])
def test_a_damaged_store_of_the_first_format_is_set_aside(
    kept: Store, way: str, capsys: pytest.CaptureFixture[str]
) -> None:
    as_format_1(kept.path)
    change, reason = BY_HAND[way]
    change(kept.path)
    assert Store(kept.path).surveys() == []
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize("column", COLUMNS)
def test_a_cell_that_became_another_valid_one_is_noticed(kept: Store, tmp_path: Path, column: str) -> None:
    others = {
        "place": "'other'", "metric": "'energy'", "survey": "'s9'", "layer": f"'{layer(64).key}'", "unit": "'ms'",
        "date": "'2025-01-01T00:00:00.000000+00:00'", "context": """'{"x": "y"}'""", "doubts": """'["x"]'""",
        "remarks": """'["x"]'""",
    }  # fmt: skip
    digits = json.dumps([0.5] * READINGS)
    changed(kept.path, f"UPDATE readings SET {column} = {others.get(column, repr(digits))} WHERE id = 1")
    store = Store(kept.path)
    with pytest.raises(UserError, match=r"has a row of survey s\d that cannot be read: its readings of .*forget s\d"):
        store.export(tmp_path / "table.csv")
    for work in (lambda: store.entries("s1"), lambda: store.entries("s9")):
        try:
            work()
        except UserError as error:
            assert "were changed after they were written" in str(error)


# -- disks -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of a megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("only root may mount a disk")
    yield place
    subprocess.run(["umount", place], check=True)


def fill(disk: Path) -> Path:
    """A file that takes all the room that is left."""
    file = os.open(disk / "full", os.O_WRONLY | os.O_CREAT)
    try:
        while True:
            os.write(file, bytes(512))
    except OSError:
        os.close(file)
    return disk / "full"


def as_survey(path: Path) -> None:
    metric = Scripted()
    assert len(CachedMetric(metric.target, metric, "latency", Store(path), PLACE).measure([layer(8)])) == 1


def refused(path: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The sentence of a command that ends with exit code 2."""
    assert cli.main(["store", *words, "--path", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def copied_to(disk: Path, tmp_path: Path) -> Path:
    """A store with readings on the disk."""
    path = disk / "store.sqlite"
    path.write_bytes(prepared(tmp_path).read_bytes())
    return path


def writes(tmp_path: Path) -> list[list[str]]:
    """Commands that change a store."""
    return [["forget", "s1"], ["forget", "all", "--yes"], ["import", str(tmp_path / "more.csv")]]


def test_a_store_on_a_read_only_disk_can_be_read_and_a_survey_says_so_first(
    disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copied_to(disk, tmp_path)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    for words in (["ls"], ["show", "s1"], ["export", str(tmp_path / "out.csv")]):
        assert cli.main(["store", *words, "--path", str(path)]) == 0
    assert Store(tmp_path / "other.sqlite").import_(tmp_path / "out.csv") == 48
    capsys.readouterr()
    for words in writes(tmp_path):
        assert f"htas: the store {path} cannot be opened or written" in refused(path, capsys, *words)
    as_survey(path)
    said = capsys.readouterr().err.splitlines()
    assert said[0].endswith("unless that is done before the readings are taken, they are for this run alone")
    assert said[1] == "store: 1 of 1 layers were measured before and still hold"


def test_a_full_disk_is_one_sentence_and_loses_nothing(
    disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copied_to(disk, tmp_path)
    full = fill(disk)
    capsys.readouterr()
    for words in writes(tmp_path):
        assert "is on a disk that is full; free some space, or name another" in refused(path, capsys, *words)
    sentence = refused(path, capsys, "export", str(disk / "out.csv"))
    assert sentence == (
        f"htas: cannot write {disk / 'out.csv'}: No space left on device; free some space or name another folder"
    )
    as_survey(path)
    assert "is on a disk that is full" in capsys.readouterr().err.splitlines()[0]
    assert cli.main(["store", "ls", "--path", str(path)]) == 0
    full.unlink()
    assert Store(path)._entries("TRUE") == Store(prepared(tmp_path))._entries("TRUE")
    assert Store(path).forget("s1") == 8


def test_a_damaged_store_that_cannot_be_set_aside_keeps_its_log(kept: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    log = kept.path.with_name("store.sqlite-wal")
    log.write_text("a log")
    rename = os.rename

    def fails(old: str, new: str) -> None:
        if old == str(kept.path):
            raise OSError(1, "Operation not permitted")
        rename(old, new)

    monkeypatch.setattr(os, "rename", fails)
    with pytest.raises(UserError, match="is damaged and cannot be set aside: Operation not permitted; delete it, or"):
        kept._set_aside(kept.path.stat().st_ino, sqlite3.DatabaseError("some damage"))
    assert log.read_text() == "a log"


# -- tables ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [".csv", ".parquet"])
def test_a_table_that_is_no_file_or_too_large_is_refused_before_it_is_read(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / f"table{kind}"
    os.mkfifo(table)
    store = Store(tmp_path / "store.sqlite")
    with pytest.raises(UserError, match=r"table\.\w+ is no file; give a file that htas store export"):
        store.import_(table)
    table.unlink()
    table.touch()
    os.truncate(table, 2**40)
    with pytest.raises(UserError, match=r"holds 1.02e\+03 GiB, and at most 1 GiB is read at once; give it in parts"):
        store.import_(table)


def test_a_compressed_table_of_much_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared(tmp_path)
    monkeypatch.setattr("htas.timing.entry.LARGEST", 2 * (tmp_path / "more.parquet").stat().st_size)
    many = Store(tmp_path / "many.sqlite")
    many.add([entry(width, "s", readings=1000) for width in range(1, 40)])
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table({"format": pyarrow.array([1] * 1_000_000)})
    parquet.write_table(table, tmp_path / "table.parquet")
    with pytest.raises(UserError, match="is read at once; give it in parts"):
        many.import_(tmp_path / "table.parquet")


def test_names_that_a_terminal_would_obey_are_refused_and_older_ones_shown_without(
    kept: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("\x1b[31mred", "x" * 300):
        with pytest.raises(UserError, match="must be at most 200 letters that can be printed"):
            entry(8, name)
    changed(kept.path, "UPDATE readings SET survey = char(27) || '[31mred' WHERE survey = 's1'")
    assert cli.main(["store", "ls", "--path", str(kept.path)]) == 0
    assert cli.main(["store", "show", "nosuch", "--path", str(kept.path)]) == 2
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err
    with pytest.raises(UserError, match=r"remove it with htas store forget \$'.x1b\[31mred'"):
        kept.entries("\x1b[31mred")


def test_words_that_are_no_unicode_are_refused(kept: Store) -> None:
    with pytest.raises(UserError, match="must be Unicode"):
        Entry(PLACE, "latency", layer(8).key, entry(8, "s").measurement, (), ("\ud800",))


@pytest.mark.parametrize("kind", [".csv", ".parquet"])
def test_a_table_whose_digits_became_others_is_refused_and_one_without_check_sums_read(
    kept: Store, tmp_path: Path, kind: str
) -> None:
    import pyarrow
    from pyarrow import parquet

    table, other = tmp_path / f"table{kind}", Store(tmp_path / "other.sqlite")
    kept.export(table)
    rows = (
        list(csv.DictReader(table.read_text().splitlines()))
        if kind == ".csv"
        else parquet.read_table(table).to_pylist()
    )
    digits = json.loads(rows[1]["readings"]) if kind == ".csv" else rows[1]["readings"]
    changed_digits = [*digits[:-1], digits[-1] * 1.5]
    rows[1]["readings"] = json.dumps(changed_digits) if kind == ".csv" else changed_digits

    def write(content: list[dict[str, Any]]) -> None:
        if kind == ".parquet":
            parquet.write_table(pyarrow.Table.from_pylist(content), table)
            return
        with table.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(content[0]))
            writer.writeheader()
            writer.writerows(content)

    write(rows)
    with pytest.raises(UserError, match=r"row 2 of .* cannot be read .its cells were changed after they were exported"):
        other.import_(table)
    assert other.surveys() == []
    write([{name: cell for name, cell in row.items() if name != "checksum"} for row in rows])
    assert other.import_(table) == 3  # of an earlier version
