"""Progress of long work: a bar with the time left on a terminal, plain lines on stderr elsewhere."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from htas.console import record
from htas.text import duration

EVERY = 5.0
"""Seconds between two plain lines, at least."""


class Bar:
    """Work under way; `htas watch` shows it too."""

    def __init__(self, title: str, pace: "Pace") -> None:
        self.title = title
        self.pace = pace
        self.figures = ""
        self.show()

    def step(self, figures: str = "", by: int = 1) -> None:
        """Count `by` more steps; `figures` are the current readings as text."""
        self.pace.step(by)
        self.figures = figures or self.figures
        self.show()

    def show(self) -> None:
        """Write the state into the record of the command."""
        record.work(self.line, self.pace.done / max(1, self.pace.total))

    @property
    def line(self) -> str:
        """`train base 12/40, 1 min 20 s left: loss 0.50`."""
        return f"{self.title} {self.pace.words}" + (f": {self.figures}" if self.figures else "")


@contextmanager
def progress(title: str, total: int, *, done: int = 0) -> Iterator[Bar]:
    """Show `total` steps, `done` of them by an earlier command; the time left follows from the pace of this one.

    Without a terminal there is a line at the start, one every five seconds at most, and one at the end.
    """
    if on_terminal():
        with _live(title, Pace(total, done)) as bar:
            yield bar
    else:
        lines = Lines(title, Pace(total, done))
        yield lines
        say(lines.line)


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


class Lines(Bar):
    """Plain lines, one every EVERY seconds at most."""

    _next = 0.0

    def show(self) -> None:
        """Print a line where one is due."""
        super().show()
        if not self._next or (self.pace.seconds >= self._next and self.pace.done < self.pace.total):
            self._next = self.pace.seconds + EVERY
            _print(self.line)


@contextmanager
def _live(title: str, pace: Pace) -> Iterator[Bar]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    class Live(Bar):
        def show(self) -> None:
            super().show()
            bar.update(task, completed=pace.done, words=pace.words, figures=self.figures)

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[words]}", markup=False),
        TextColumn("{task.fields[figures]}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=pace.total, words="", figures="")
        yield Live(title, pace)
