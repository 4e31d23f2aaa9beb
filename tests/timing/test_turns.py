"""Who measures is alone, who computes goes on afterwards, and the dead hold nothing."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import pytest

from htas.timing import turns
from htas.timing.turns import Turns

pytestmark = pytest.mark.timeout(60)
WAIT = 20.0


def computing(folder: Path, log: Path, ended: Event) -> Thread:
    """A thread that computes in steps of a millisecond, with locks of its own, as a process has them."""

    def work() -> None:
        mine = Turns(folder, log)
        while not ended.is_set():
            time.sleep(0.001)
            mine.give_way()
        mine.close()

    thread = Thread(target=work, daemon=True)
    thread.start()
    return thread


def spans(log: Path, what: str) -> list[tuple[float, float]]:
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [(line["from"], line["to"]) for line in lines if line["does"] == what]


def test_nobody_computes_or_measures_while_one_measures(tmp_path: Path) -> None:
    ended, log = Event(), tmp_path / "log.jsonl"
    others = [computing(tmp_path, log, ended) for _ in range(3)]

    def measure() -> None:
        mine = Turns(tmp_path, log)
        for _ in range(5):
            with mine.alone(""):
                time.sleep(0.01)
            mine.give_way()
        mine.close()

    measuring = [Thread(target=measure, daemon=True) for _ in range(2)]
    for thread in measuring:
        thread.start()
    for thread in measuring:
        thread.join(WAIT)
        assert not thread.is_alive(), "computing processes starve those that measure"
    ended.set()
    for thread in others:
        thread.join(WAIT)
        assert not thread.is_alive()
    alone, together = spans(log, "measures"), spans(log, "computes")
    assert len(alone) == 10 and len(together) > 5
    for start, end in alone:
        assert all(other_end <= start or end <= other for other, other_end in together)
        assert sum(other < end and start < other_end for other, other_end in alone) == 1
    assert max(end for _, end in together) > max(end for _, end in alone), "they go on afterwards"


def test_who_measures_gives_way_to_nobody(tmp_path: Path) -> None:
    """A bar moves while networks are read, and what reads may measure something else in between."""
    mine, other = Turns(tmp_path), Turns(tmp_path)
    other.close()
    with mine.alone(""):
        mine.give_way()
        with mine.alone(""):
            mine.give_way()
        late = Thread(target=lambda: Turns(tmp_path).close(), daemon=True)
        late.start()
        late.join(0.2)
        assert late.is_alive(), "nobody enters meanwhile"
    late.join(WAIT)
    assert not late.is_alive()
    mine.close()


@contextmanager
def joined(folder: Path) -> Iterator[Turns]:
    mine = Turns(folder)
    yield mine
    mine.close()


def test_another_device_is_read_by_one_while_others_compute(tmp_path: Path) -> None:
    log: list[str] = []
    with joined(tmp_path) as first, joined(tmp_path) as second, joined(tmp_path) as third:

        def read() -> None:
            with second.alone("ssh://board"):
                log.append("second")

        with first.alone("ssh://board"):
            thread = Thread(target=read, daemon=True)
            thread.start()
            with third.alone("ssh://another"):
                log.append("another")
            thread.join(0.2)
            assert log == ["another"]
        thread.join(WAIT)
        assert log == ["another", "second"]


def test_a_process_that_is_killed_holds_nothing(tmp_path: Path) -> None:
    words = f"from pathlib import Path; from htas.timing.turns import Turns; mine = Turns(Path({str(tmp_path)!r}))"
    script = f"{words}; import time; print('in', flush=True); time.sleep(100)"
    with (
        subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process,
        joined(tmp_path) as mine,
    ):
        assert process.stdout is not None and process.stdout.readline() == "in\n"
        measured = Event()

        def measure() -> None:
            with mine.alone(""):
                measured.set()

        thread = Thread(target=measure, daemon=True)
        thread.start()
        waited = not measured.wait(0.2)
        process.kill()
        assert waited, "it computes"
        assert measured.wait(WAIT)
        thread.join(WAIT)


def test_a_process_that_has_not_joined_waits_for_nobody(tmp_path: Path) -> None:
    with joined(tmp_path) as mine, mine.alone(""), turns.alone(), turns.away():
        turns.give_way()
    with turns.join(tmp_path), pytest.raises(AssertionError), turns.join(tmp_path):
        pass
