"""Progress of long work: a bar with the time left on a terminal, plain lines on stderr elsewhere."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from htas.console import record
from htas.text import duration

EVERY = 5.0
"""Seconds between two plain lines, at least."""


class Bar(Protocol):
    """Work under way."""

    def step(self, figures: str = "", by: int = 1) -> None:
        """Count `by` more steps; `figures` are the current readings as text."""


@contextmanager
def progress(title: str, total: int, *, done: int = 0) -> Iterator[Bar]:
    """Show `total` steps, `done` of them by an earlier command; the time left follows from the pace of this one.

    Without a terminal there is a line at the start, one every five seconds at most, and one at the end.
    """
    with _live(title, total, done) if on_terminal() else _plain(title, total, done) as bar:
        yield RecordedBar(bar, title, total, done)


class RecordedBar:
    """A bar that `htas watch` shows too."""

    def __init__(self, bar: Bar, title: str, total: int, done: int) -> None:
        self._bar = bar
        self._title = title
        self._pace = Pace(total, done)
        self._figures = ""
        record.work(title, self._pace.words, "", done / max(1, total))

    def step(self, figures: str = "", by: int = 1) -> None:
        """Count steps, on the bar and in the record."""
        self._bar.step(figures, by)
        self._pace.step(by)
        self._figures = figures or self._figures
        record.work(self._title, self._pace.words, self._figures, self._pace.done / max(1, self._pace.total))


def shares(bar: Bar) -> Callable[[float, str], None]:
    """A function that moves a bar of 100 steps to a share of it, 0 to 1."""
    steps = 0

    def move(share: float, figures: str) -> None:
        nonlocal steps
        reached = int(100 * share)
        bar.step(figures, by=reached - steps)
        steps = reached

    return move


def say(line: str) -> None:
    """Write a line on stderr; a live bar stays whole below it."""
    record.line(line)
    _print(line)


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # a live bar replaces sys.stderr


def on_terminal() -> bool:
    """True if a bar can be redrawn in place."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


class Pace:
    """Steps against the clock."""

    def __init__(self, total: int, done: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.total = total
        self.done = done
        self._before = done
        self._clock = clock
        self._start = clock()

    def step(self, by: int) -> None:
        """Count steps done."""
        self.done += by

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._start

    @property
    def remaining(self) -> float | None:
        """Seconds to the end at the speed so far; None before the first step."""
        since = self.done - self._before
        return self.seconds / since * max(0, self.total - self.done) if since else None

    @property
    def words(self) -> str:
        """`12/40`, `12/40, 1 min 20 s left`, `40/40, 2 min 00 s`."""
        count = f"{self.done}/{self.total}"
        if self.remaining is None:
            return count
        time_of = f"{duration(self.remaining)} left" if self.done < self.total else duration(self.seconds)
        return f"{count}, {time_of}"


class Lines:
    """Plain lines, one every EVERY seconds at most."""

    def __init__(self, title: str, pace: Pace) -> None:
        self._title = title
        self._pace = pace
        self._figures = ""
        self._next = EVERY
        _print(self._line())

    def step(self, figures: str = "", by: int = 1) -> None:
        """Count, and write a line when one is due."""
        self._pace.step(by)
        self._figures = figures or self._figures
        if self._pace.seconds >= self._next and self._pace.done < self._pace.total:
            self._next = self._pace.seconds + EVERY
            _print(self._line())

    def end(self) -> None:
        """Write the last line."""
        say(self._line())

    def _line(self) -> str:
        return f"{self._title} {self._pace.words}" + (f": {self._figures}" if self._figures else "")


@contextmanager
def _plain(title: str, total: int, done: int) -> Iterator[Bar]:
    lines = Lines(title, Pace(total, done))
    yield lines
    lines.end()


@contextmanager
def _live(title: str, total: int, done: int) -> Iterator[Bar]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TextColumn

    pace = Pace(total, done)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[words]}", markup=False),
        TextColumn("{task.fields[figures]}", markup=False),
    )

    class Live:
        def __init__(self, bar: Progress, task: TaskID) -> None:
            self._bar = bar
            self._task = task
            self._figures = ""

        def step(self, figures: str = "", by: int = 1) -> None:
            pace.step(by)
            self._figures = figures or self._figures
            self._bar.update(self._task, advance=by, words=pace.words, figures=self._figures)

    with Progress(*columns, console=Console(stderr=True)) as bar:
        yield Live(bar, bar.add_task(title, total=total, completed=done, words=pace.words, figures=""))
