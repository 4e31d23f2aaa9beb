"""A run that goes on elsewhere, seen from another terminal."""

import json
import os
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from htas.console.record import NAME
from htas.errors import UserError
from htas.text import duration

EVERY = 1.0
"""Seconds between two looks."""
QUIET = 30.0
"""Seconds between two lines of a run that says nothing new, where there is no terminal."""


@dataclass(frozen=True)
class State:
    """What a run has left of itself."""

    folder: Path
    state: str
    """`running`, `finished`, `stopped`, or `gone`: its process is no more."""
    why: str
    lines: tuple[str, ...]
    work: str
    """The piece of work under way, in words; empty for none."""
    share: float
    """Of that piece that is done."""
    began: float
    time: float

    @property
    def words(self) -> tuple[str, ...]:
        """A few lines for people."""
        head = f"{self.folder}: {self.state}"
        if self.state == "running":
            head += f" for {duration(self.time - self.began)}, seen {duration(max(0.0, time.time() - self.time))} ago"
        elif self.state == "gone":
            head += "; its process is no more, and the same command goes on where it was"
        elif self.why:
            head += f": {self.why}"
        return (head, *self.lines, *([self.work] if self.work and self.state == "running" else []))


def state(folder: Path) -> State:
    """How far the run is; of a folder of runs the one that moved last, of those that are running where one is. Raises
    UserError where none has begun."""
    found = [path for path in (folder / NAME, *folder.glob(f"*/{NAME}"), *folder.glob(f"*/*/{NAME}")) if path.exists()]
    if not found:
        raise UserError(
            f"{folder} is no folder in which a run has begun; name the folder of one, which htas run prints and --out "
            "names"
        )
    latest, *others = sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)
    last = _read(latest)
    for path in others if last.state != "running" else ():
        with suppress(UserError):  # of a run before this one
            if (other := _read(path)).state == "running":
                return other
    return last


def _read(path: Path) -> State:
    try:
        content = json.loads(path.read_text())
        work = content["work"]
        shown = f"{work['title']} {work['words']}" + (f": {work['figures']}" if work["figures"] else "") if work else ""
        return State(
            path.parent, _state(content), content["why"], tuple(content["lines"]), shown,
            work.get("share", 0.0), content["began"], content["time"],
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} does not say how far a run is ({error!r}); it is written anew while one works"
        ) from error


def watch(folder: Path, once: bool, sleep: Callable[[float], None] = time.sleep) -> State:
    """Show how far a run is until it ends, on a terminal in place and else by lines; its last state."""
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
    said, shown = set(last.lines), time.monotonic()
    while last.state == "running":
        sleep(EVERY)
        last = state(folder)
        new = [line for line in last.lines if line not in said]
        said |= set(new)
        if not new and time.monotonic() > shown + QUIET:
            new = [last.work]
        if new:
            shown = time.monotonic()
            print("\n".join(new), flush=True)
    print(last.words[0], flush=True)
    return last


def _state(content: dict[str, Any]) -> str:
    """As it is written, unless its process of this machine is no more."""
    if content["state"] != "running" or content["host"] != socket.gethostname():
        return str(content["state"])
    try:
        os.kill(content["process"], 0)
    except ProcessLookupError:
        return "gone"
    except PermissionError:
        return "running"
    return "running"
