"""The record of a running command: its progress, for `htas watch`, and with --tensorboard scalars."""

import json
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

from htas.errors import UserError
from htas.files import write_bytes

NAME = "progress.json"
"""The file in the folder of a run; no stage depends on it."""
EVERY = 1.0
"""Least seconds between two writes."""
LINES = 8
"""Number of recorded lines."""
STATES = ("running", "finished", "stopped", "gone")
"""Of a command; `gone` is what a reader says of one that ended without a word."""
MOST_PROCESSES = 2**31
"""Numbers that the system gives to processes."""


@dataclass(frozen=True)
class Progress:
    """The content of the file."""

    state: str
    """One of STATES."""
    why: str
    """Why it stopped."""
    lines: tuple[str, ...]
    """The last lines that the command printed."""
    work: str
    """The piece of work under way, with the steps done and the current readings; empty for none."""
    share: float
    """Share of that piece that is done, 0 to 1."""
    began: float
    """Seconds since 1970, as `time`."""
    time: float
    """Of this state."""
    process: int
    host: str

    def __post_init__(self) -> None:
        if self.state not in STATES:
            raise ValueError(f"must have a state that is one of {', '.join(STATES)}, got {shortened(self.state)}")
        if not 0 < self.process < MOST_PROCESSES:
            raise ValueError(f"must have a process from 1 on, got {self.process}")


class Record:
    """The progress of one command, written into the folder of its run."""

    def __init__(self, tensorboard: bool, between: Callable[[], None] | None) -> None:
        self.tensorboard, self.between = tensorboard, between
        self.folder: Path | None = None
        self.writer: Any = None
        self.lines: deque[str] = deque(maxlen=LINES)
        self.work = ("", 0.0)
        self.written = 0.0
        self._began = time.time()

    def end(self, state: str, why: str, folder: Path | None) -> None:
        """Write that the work in a folder ended, and why."""
        self.write(state, why, folder)
        if self.writer is not None:
            self.writer.close()
        self.writer = None

    def write(self, state: str, why: str, folder: Path | None) -> None:
        """Write the state without waiting for the disk, which would disturb a measurement; a failure is ignored."""
        if folder is None:
            return
        self.written = time.monotonic()
        lines, host = tuple(self.lines), socket.gethostname()
        progress = Progress(state, why, lines, *self.work, self._began, time.time(), os.getpid(), host)
        if folder.is_dir():
            with suppress(UserError):
                write_bytes(folder / NAME, json.dumps(asdict(progress)).encode(), wait=False)


_current: Record | None = None


@contextmanager
def recording(tensorboard: bool = False, between: Callable[[], None] | None = None) -> Iterator[None]:
    """Record lines and progress in the folders that `into` names; `between` is called after every step of work."""
    global _current
    before, _current = _current, Record(tensorboard, between)
    state, why = "finished", ""
    try:
        yield
    except BaseException as error:
        state, why = "stopped", str(error) or type(error).__name__
        raise
    finally:
        _current.end(state, why, _current.folder)
        _current = before


def into(folder: Path) -> None:
    """Name the folder of the run, which must exist; without a recording, nothing happens.

    The record in the folder before ends after that, so that `htas watch` of a folder around both always finds one of
    them running.
    """
    if _current is None or folder == _current.folder:
        return
    before, _current.folder, _current.work = _current.folder, folder, ("", 0.0)
    _current.write("running", "", folder)
    _current.end("finished", "", before)
    if not _current.tensorboard:
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError(
            f"--tensorboard needs TensorBoard, which is not installed ({error}): pip install 'htas[tensorboard]'"
        ) from error
    _current.writer = SummaryWriter(str(folder / "tensorboard"))


def line(text: str) -> None:
    """Record a line."""
    if _current is not None:
        _current.lines.append(text)
        _current.write("running", "", _current.folder)


def work(words: str, share: float) -> None:
    """Record the state of a bar in words; `share` of it is done, 0 to 1."""
    if _current is not None:
        _current.work = (words, share)
        if time.monotonic() >= _current.written + EVERY or share >= 1:
            _current.write("running", "", _current.folder)
        if _current.between is not None:
            _current.between()


def under_way() -> str:
    """The piece of work of this process, as recorded; empty for none."""
    return _current.work[0] if _current is not None else ""


def scalars(title: str, step: int, values: Mapping[str, float]) -> None:
    """Write figures of an epoch, by name, for TensorBoard."""
    if _current is not None and _current.writer is not None:
        for name, value in values.items():
            _current.writer.add_scalar(f"{title}/{name}", value, step)
        _current.writer.flush()
