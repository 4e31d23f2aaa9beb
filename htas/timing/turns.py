"""Turns of the processes that share a machine: one that measures is alone on it, those that compute give way.

A process joins with `join`; without that, nothing here does anything. Who computes holds a lock that others may hold
too, and looks between two steps of its work whether somebody waits to measure. The locks of a process that dies are
free.
"""

import fcntl
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from htas.files import digest


class Turns:
    """The locks of one process. At the gate stands who wants to measure; in the room are those who compute."""

    def __init__(self, folder: Path, log: Path | None = None) -> None:
        for each in (folder, *([log.parent] if log else [])):
            each.mkdir(parents=True, exist_ok=True)
        self.folder, self.log = folder, log
        self.gate, self.room = ((folder / name).open("w") for name in ("gate", "room"))
        self.since = 0.0
        self.measures = False
        self._enter()

    def give_way(self) -> None:
        """Wait while somebody else measures, or is about to."""
        if self.measures:
            return
        if _locked(self.gate, fcntl.LOCK_SH):
            fcntl.flock(self.gate, fcntl.LOCK_UN)
        else:
            self._leave()
            self._enter()

    @contextmanager
    def away(self) -> Iterator[None]:
        """This process waits for another one, and does not compute."""
        self._leave()
        try:
            yield
        finally:
            self._enter()

    @contextmanager
    def alone(self, host: str) -> Iterator[None]:
        """No other process measures or computes; on another device, none measures."""
        if self.measures:
            yield
        elif host:
            with (self.folder / f"device-{digest(host)}").open("w") as lock:
                with self.away():
                    fcntl.flock(lock, fcntl.LOCK_EX)
                self.measures = True
                try:
                    yield
                finally:
                    self.measures = False
        else:
            self._leave()
            fcntl.flock(self.gate, fcntl.LOCK_EX)
            fcntl.flock(self.room, fcntl.LOCK_EX)
            began, self.measures = time.monotonic(), True
            try:
                yield
            finally:
                self._write("measures", began)
                self.measures = False
                fcntl.flock(self.room, fcntl.LOCK_UN)
                fcntl.flock(self.gate, fcntl.LOCK_UN)
                self._enter()

    def _enter(self) -> None:
        fcntl.flock(self.gate, fcntl.LOCK_SH)
        fcntl.flock(self.room, fcntl.LOCK_SH)
        fcntl.flock(self.gate, fcntl.LOCK_UN)
        self.since = time.monotonic()

    def _leave(self) -> None:
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_initialized():
            torch.cuda.synchronize()  # what waits on a graphics card would go on beside a measurement
        self._write("computes", self.since)
        fcntl.flock(self.room, fcntl.LOCK_UN)

    def close(self) -> None:
        """Leave for good."""
        self._leave()
        self.gate.close()
        self.room.close()

    def _write(self, what: str, began: float) -> None:
        if self.log is not None:
            line = {"process": os.getpid(), "does": what, "from": began, "to": time.monotonic()}
            with self.log.open("a") as file:
                file.write(json.dumps(line) + "\n")


_turns: Turns | None = None


@contextmanager
def join(folder: Path | None = None, log: Path | None = None) -> Iterator[None]:
    """Take turns with all processes that have joined, those of this user on this machine; lines about whole turns go to
    `log`, in seconds of this machine's monotonic clock."""
    global _turns
    assert _turns is None, "a process joins once"
    _turns = Turns(folder or _place() / f"htas-turns-{os.getuid()}", log)
    try:
        yield
    finally:
        _turns.close()
        _turns = None


def _place() -> Path:
    """A folder that all processes of this machine have in common; jobs of a scheduler may have other temporary ones."""
    shared = Path("/dev/shm")
    return shared if os.access(shared, os.W_OK) else Path(tempfile.gettempdir())


def joined() -> bool:
    """Whether this process takes turns."""
    return _turns is not None


def give_way() -> None:
    """Between two steps of work: wait while another process measures."""
    if _turns is not None:
        _turns.give_way()


@contextmanager
def away() -> Iterator[None]:
    """Wait for other processes, without computing."""
    if _turns is None:
        yield
        return
    with _turns.away():
        yield


@contextmanager
def alone(host: str = "") -> Iterator[None]:
    """Measure, on this machine or on another device, while no other process measures there or computes here."""
    if _turns is None:
        yield
        return
    with _turns.alone(host):
        yield


def _locked(file: TextIO, how: int) -> bool:
    """Whether the lock could be had at once."""
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
