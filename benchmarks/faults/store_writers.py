"""Processes that add readings to one store, are killed at random and replaced (store.py is the command)."""

import json
import multiprocessing
import random
import sqlite3
import time
from contextlib import closing
from multiprocessing.process import BaseProcess
from pathlib import Path

from benchmarks.faults.campaign import Tally
from htas.timing.entry import Entry
from htas.timing.measurement import Measurement
from htas.timing.store import Store

PLACE = "here"


def entry_of(layer: str, survey: str, day: int = 1, readings: int = 60) -> Entry:
    """One layer whose readings follow from its names."""
    rng = random.Random(f"{layer}:{survey}")
    values = tuple(0.001 * (1 + rng.random() / 100) for _ in range(readings))
    measurement = Measurement(values, "s", {"device": "cpu", "runtime": "eager"}, survey, (1.0,) * readings)
    return Entry(PLACE, "latency", layer, measurement, values, (), f"2026-11-{day:02}T00:00:00+00:00")


PROCESSES = multiprocessing.get_context("forkserver")


def batch(name: str, number: int) -> list[Entry]:
    """What a writer adds in its turn."""
    rng = random.Random(f"{name}:{number}")
    survey, first = f"{name}-{number}", rng.randrange(1, 50)
    keys = [json.dumps({"width": width}) for width in range(first, first + rng.randint(1, 6))]
    return [entry_of(key, survey, readings=rng.choice((1, 5, 40))) for key in keys]


def write(path: Path, log: Path, name: str) -> None:
    """Add readings until killed; the log says what was begun, what has returned, and which errors came."""
    store = Store(path)
    with log.open("a", buffering=1) as file:
        for number in range(10**9):
            try:
                print("begun", number, file=file)
                added = store.add(batch(name, number))
                print("done", number, file=file)
                if added != len(batch(name, number)):
                    print("error", f"{added} new readings of {len(batch(name, number))}", file=file)
                if number % 3 == 0 and store.add(batch(name, number)):
                    print("error", "readings were added twice", file=file)
                if number % 7 == 0 and store.entries(f"{name}-{number}") != batch(name, number):
                    print("error", "other readings came back", file=file)
                if number % 11 == 0 and not store.curve(PLACE, "latency", [batch(name, number)[0].layer]):
                    print("error", "no curve came back", file=file)
            except Exception as error:
                print("error", " ".join(str(error).split()) or type(error).__name__, file=file)


def has_begun(log: Path) -> bool:
    """Whether a writer has added something."""
    return log.exists() and "done" in log.read_text()


def writers(folder: Path, seed: int, seconds: float, count: int = 8) -> Tally:
    """Kill writers at random, for so many seconds after all have begun, and look at what is there."""
    PROCESSES.set_forkserver_preload(["__main__", "benchmarks.faults.store_writers"])
    path, logs, rng = folder / "store.sqlite", folder / "logs", random.Random(seed)
    logs.mkdir(parents=True)
    begun = 0

    def one_more() -> BaseProcess:
        nonlocal begun
        begun += 1
        process = PROCESSES.Process(target=write, args=(path, logs / f"w{begun}", f"w{begun}"), daemon=True)
        process.start()
        return process

    running = [one_more() for _ in range(count)]
    while not all(has_begun(logs / f"w{number + 1}") for number in range(count)):
        time.sleep(0.1)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(rng.uniform(0, 0.5))
        victim = rng.randrange(count)
        running[victim].kill()
        running[victim].join()
        running[victim] = one_more()
    for process in running:
        process.kill()
        process.join()
    return judged(path, logs, begun)


def judged(path: Path, logs: Path, killed: int) -> Tally:
    """Compare a store with what its writers wrote into their logs."""
    tally = Tally()
    expected: dict[str, list[Entry]] = {}
    returned = set()
    for log in sorted(logs.iterdir()):
        for line in log.read_text().splitlines():
            kind, _, words = line.partition(" ")
            if kind == "begun":
                expected[f"{log.name}-{words}"] = batch(log.name, int(words))
            elif kind == "done":
                returned.add(f"{log.name}-{words}")
                tally.add("adds that returned", "", "")
            elif kind == "error":
                tally.add("errors seen by writers", words, log.name)
    kept: dict[str, list[Entry]] = {}
    with closing(sqlite3.connect(path)) as connection:
        ((sound,),) = connection.execute("PRAGMA integrity_check").fetchall()
        doubled = connection.execute(
            "SELECT survey FROM readings NOT INDEXED GROUP BY place, metric, layer, survey HAVING count(*) > 1"
        ).fetchall()
    tally.add("integrity check", "" if sound == "ok" else sound, str(path))
    tally.add("doubled readings", f"{doubled}" if doubled else "", str(path))
    for each in Store(path)._entries("TRUE"):
        kept.setdefault(each.survey, []).append(each)
    for survey, entries in expected.items():
        if survey in returned:
            tally.tried["readings of adds that returned"] += len(entries)
            if kept.get(survey) != entries:
                tally.add("readings of adds that returned", f"{len(kept.get(survey, []))} of {len(entries)}", survey)
        else:
            whole = survey not in kept or kept[survey] == entries
            tally.add("adds that were killed", "" if whole else f"{len(kept[survey])} of {len(entries)}", survey)
    for survey in kept.keys() - expected.keys():
        tally.add("readings of nobody", "there", survey)
    for aside in path.parent.glob("*.damaged-*"):
        tally.add("set aside", "a whole store", aside.name)
    tally.tried["processes killed"] = killed
    return tally
