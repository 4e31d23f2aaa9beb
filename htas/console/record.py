"""The record of a running command: its progress, for `htas watch`, and with --tensorboard scalars."""

import json
import os
import socket
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from htas.errors import UserError

NAME = "progress.json"
"""The file in the folder of a run; no stage depends on it."""
EVERY = 1.0
"""Least seconds between two writes."""
LINES = 8
"""Number of recorded lines."""


@dataclass(frozen=True)
class Work:
    """The state of a bar."""

    title: str
    words: str
    """Steps done and the time left, as text."""
    figures: str
    """The current readings, as text."""
    share: float
    """Share that is done, 0 to 1."""


@dataclass(frozen=True)
class Progress:
    """The content of the file."""

    state: str
    """`running`, `finished` or `stopped`."""
    why: str
    """Why it stopped."""
    lines: tuple[str, ...]
    """The last lines that the command printed."""
    work: Work | None
    began: float
    """Seconds since 1970, as `time`."""
    time: float
    """Of this state."""
    process: int
    host: str


class Record:
    """The progress of one command, written into the folder of its run."""

    def __init__(self, tensorboard: bool) -> None:
        self._tensorboard = tensorboard
        self._folder: Path | None = None
        self._writer: Any = None
        self._lines: deque[str] = deque(maxlen=LINES)
        self._work: Work | None = None
        self._written = 0.0
        self._began = time.time()

    def open(self, folder: Path) -> None:
        """Write into this folder from now on.

        The record in the folder before ends after that, so that `htas watch` of a folder around both always finds one
        of them running.
        """
        before = self._folder
        if folder == before:
            return
        self._folder, self._work = folder, None
        self._write("running", "", folder)
        self._end("finished", "", before)
        if self._tensorboard:
            self._writer = _writer(folder / "tensorboard")

    def line(self, text: str) -> None:
        """Record a line."""
        self._lines.append(text)
        self._write("running", "", self._folder)

    def work(self, title: str, words: str, figures: str, share: float) -> None:
        """Record the state of a bar; `share` of it is done, 0 to 1."""
        self._work = Work(title, words, figures, share)
        if time.monotonic() >= self._written + EVERY or share >= 1:
            self._write("running", "", self._folder)

    def scalars(self, title: str, step: int, values: Mapping[str, float]) -> None:
        """Write figures of an epoch for TensorBoard."""
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(f"{title}/{name}", value, step)
            self._writer.flush()

    def end(self, state: str, why: str) -> None:
        """Write that the command ended, and why."""
        self._end(state, why, self._folder)
        self._folder = None

    def _end(self, state: str, why: str, folder: Path | None) -> None:
        self._write(state, why, folder)
        if self._writer is not None:
            self._writer.close()
        self._writer = None

    def _write(self, state: str, why: str, folder: Path | None) -> None:
        """Write the state without waiting for the disk, which would disturb a measurement; a failure is ignored."""
        if folder is None:
            return
        self._written = time.monotonic()
        progress = Progress(
            state, why, tuple(self._lines), self._work, self._began, time.time(), os.getpid(), socket.gethostname()
        )
        part = folder / f".{NAME}.part"
        try:
            part.write_text(json.dumps(asdict(progress)))
            part.replace(folder / NAME)
        except OSError:
            return


_current: Record | None = None


@contextmanager
def recording(tensorboard: bool = False) -> Iterator[None]:
    """Record lines and progress in the folders that `into` names."""
    global _current
    before, _current = _current, Record(tensorboard)
    try:
        yield
    except BaseException as error:
        _current.end("stopped", str(error) or type(error).__name__)
        raise
    else:
        _current.end("finished", "")
    finally:
        _current = before


def into(folder: Path) -> None:
    """Name the folder of the run, which must exist; without a recording, nothing happens."""
    if _current is not None:
        _current.open(folder)


def line(text: str) -> None:
    """Record a line."""
    if _current is not None:
        _current.line(text)


def work(title: str, words: str, figures: str, share: float) -> None:
    """Record the state of a bar; `share` of it is done, 0 to 1."""
    if _current is not None:
        _current.work(title, words, figures, share)


def scalars(title: str, step: int, values: Mapping[str, float]) -> None:
    """Record figures of an epoch, by name."""
    if _current is not None:
        _current.scalars(title, step, values)


def _writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError(
            f"--tensorboard needs TensorBoard, which is not installed ({error}): pip install 'htas[tensorboard]'"
        ) from error
    return SummaryWriter(str(folder))
