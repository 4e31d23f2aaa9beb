"""The progress of a run that another process does."""

import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from htas.console.record import NAME, Progress
from htas.errors import UserError
from htas.files import RecordError, from_json, parse_json
from htas.text import duration, printable

EVERY = 1.0
"""Seconds between two reads."""
QUIET = 30.0
"""Seconds between two lines of a run without news, where there is no terminal."""


@dataclass(frozen=True)
class State(Progress):
    """The record of a run, read from its folder; `state` is also `gone`: its process ended without a word."""

    folder: Path

    @property
    def words(self) -> tuple[str, ...]:
        """A few lines for people."""
        head = f"{self.folder}: {self.state}"
        if self.state == "running":
            head += f" for {duration(self.time - self.began)}, seen {duration(max(0.0, time.time() - self.time))} ago"
        elif self.state == "gone":
            head += "; its process ended without a word, and the same command continues where it was"
        elif self.why:
            head += f": {self.why}"
        lines = (head, *self.lines, *([self.work] if self.work and self.state == "running" else []))
        return tuple(printable(line) for line in lines)


def state(folder: Path) -> State:
    """The state of a run; in a folder of several, of the command that does them at once, or else of the last one that
    wrote, and rather of a running one.

    Raises UserError where no run has begun.
    """
    paths = [path for path in (folder / NAME, *folder.glob(f"*/{NAME}"), *folder.glob(f"*/*/{NAME}")) if path.exists()]
    if not paths:
        raise UserError(
            f"{folder} is no folder in which a run has begun; name the folder of one, which htas run prints and --out "
            "names"
        )
    if folder / NAME in paths and (several := _read(folder / NAME)).state == "running":
        return several
    latest, *others = sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True)
    last = _read(latest)
    for path in others if last.state != "running" else ():
        with suppress(UserError):  # of a run before this one
            if (other := _read(path)).state == "running":
                return other
    return last


def _read(path: Path) -> State:
    try:
        progress = from_json(parse_json(path.read_text(encoding="utf-8")), Progress, path)
    except (OSError, ValueError) as error:
        reason = error.reason if isinstance(error, RecordError) else repr(error)
        raise UserError(
            f"{path} does not say how far a run is ({reason}); a running command writes it again"
        ) from error
    here = progress.host == socket.gethostname()
    gone = progress.state == "running" and here and not psutil.pid_exists(progress.process)
    return State(**{**vars(progress), **({"state": "gone"} if gone else {})}, folder=path.parent)


def watch(folder: Path, once: bool, sleep: Callable[[float], None] = time.sleep) -> State:
    """Show the progress of a run until it ends, in place on a terminal, by lines elsewhere; returns its last state."""
    last = state(folder)
    if once:
        print("\n".join(last.words))
        return last
    if sys.stdout.isatty():
        from rich.live import Live
        from rich.text import Text

        with Live(Text("\n".join(last.words)), auto_refresh=False) as live:
            while last.state == "running":
                sleep(EVERY)
                last = state(folder)
                live.update(Text("\n".join(last.words)), refresh=True)
        return last
    print("\n".join(last.words), flush=True)
    printed, last_print = set(last.lines), time.monotonic()
    while last.state == "running":
        sleep(EVERY)
        last = state(folder)
        new = [line for line in last.lines if line not in printed]
        printed |= set(new)
        if not new and time.monotonic() > last_print + QUIET:
            new = [last.work]
        if new:
            last_print = time.monotonic()
            print(printable("\n".join(new)), flush=True)
    print(last.words[0], flush=True)
    return last
