"""Progress of long work: a bar with the time left on a terminal, plain lines on stderr elsewhere."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from htas.console import record
from htas.text import duration, printable

EVERY = 5.0
"""Seconds between two plain lines, at least."""
_silent = False


@contextmanager
def silence() -> Iterator[None]:
    """Show no progress and say nothing, as another process does."""
    global _silent
    _silent = True
    try:
        yield
    finally:
        _silent = False


class Bar:
    """Work under way, against the clock; `htas watch` shows it too."""

    def __init__(self, title: str, total: int, done: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        self.title, self.total, self.done = title, total, done
        self.figures = ""
        self._before, self._clock, self._start = done, clock, clock()
        self._last = 0.0
        """Seconds from the start to the last step that counts."""
        self.show()

    def step(self, figures: str = "", by: int = 1) -> None:
        """Count `by` more steps; `figures` are the current readings as text."""
        self.done += by
        if by:
            self._last = self.seconds
        self.figures = figures or self.figures
        self.show()

    def show(self) -> None:
        """Write the state into the record of the command."""
        record.work(self.line, self.done / max(1, self.total))

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._start

    @property
    def remaining(self) -> float | None:
        """Seconds to the end at the speed so far; None before the first step. It falls between steps, by one step at
        most: how long the present one takes longer than others is not known."""
        since, ahead = self.done - self._before, max(0, self.total - self.done)
        pace = self._last / since if since else 0.0
        return max(pace * ahead - (self.seconds - self._last), pace * (ahead - 1), 0.0) if since else None

    @property
    def words(self) -> str:
        """`12/40`, `12/40, 1 min 20 s left`, `40/40, 2 min 00 s`."""
        count = f"{self.done}/{self.total}"
        if self.remaining is None:
            return count
        time_of = f"{duration(self.remaining)} left" if self.done < self.total else duration(self.seconds)
        return f"{count}, {time_of}"

    @property
    def line(self) -> str:
        """`train base 12/40, 1 min 20 s left: loss 0.50`."""
        return f"{self.title} {self.words}" + (f": {self.figures}" if self.figures else "")


@contextmanager
def progress(title: str, total: int, *, done: int = 0) -> Iterator[Bar]:
    """Show `total` steps, `done` of them by an earlier command; the time left follows from the pace of this one.

    Without a terminal there is a line at the start, one every five seconds at most, and one at the end.
    """
    if _silent:
        yield Bar(title, total, done)
    elif sys.stderr.isatty() and os.environ.get("TERM") != "dumb":  # a bar can be redrawn in place
        with _live(title, total, done) as bar:
            yield bar
    else:
        lines = Lines(title, total, done)
        yield lines
        say(lines.line)


def shares(bar: Bar) -> Callable[[float, str], None]:
    """A function that moves a bar of 100 steps to a share of it, 0 to 1."""
    before = bar.done
    return lambda share, figures: bar.step(figures, by=before + int(100 * share) - bar.done)


def say(line: str) -> None:
    """Write a line on stderr; a live bar stays whole below it."""
    if _silent:
        return
    record.line(line)
    print(printable(line), file=sys.stderr, flush=True)  # a live bar replaces sys.stderr


class Lines(Bar):
    """Plain lines, one every EVERY seconds at most."""

    _next = 0.0

    def show(self) -> None:
        """Print a line where one is due."""
        super().show()
        if not self._next or (self.seconds >= self._next and self.done < self.total):
            self._next = self.seconds + EVERY
            print(printable(self.line), file=sys.stderr, flush=True)


@contextmanager
def _live(title: str, total: int, done: int) -> Iterator[Bar]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    class Live(Bar):
        def show(self) -> None:
            super().show()
            bar.update(task, completed=self.done, words=self.words, figures=printable(self.figures))

    name, *state = (
        TextColumn(f"{{task.{text}}}", markup=False) for text in ("description", "fields[words]", "fields[figures]")
    )
    with Progress(name, BarColumn(), *state, console=Console(stderr=True)) as bar:
        task = bar.add_task(printable(title), total=total, words="", figures="")
        yield Live(title, total, done)
