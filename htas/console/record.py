"""What a run leaves while it works: how far it is, for `htas watch`; and scalars for TensorBoard, where asked."""

import json
import os
import socket
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from htas.errors import UserError

NAME = "progress.json"
"""In the folder of a run; no stage is made from it."""
EVERY = 1.0
"""Seconds between two states that are written, at least."""
LINES = 8
"""Lines that are kept."""


class Record:
    """How far one command is, in the folder it works in."""

    def __init__(self, tensorboard: bool) -> None:
        self._tensorboard = tensorboard
        self._folder: Path | None = None
        self._writer: Any = None
        self._lines: deque[str] = deque(maxlen=LINES)
        self._work: Mapping[str, Any] = {}
        self._written = 0.0
        self._began = time.time()

    def open(self, folder: Path) -> None:
        """Write into this folder from now on, and only then end in the one before: who watches a folder around both
        finds one of them running at any time."""
        before = self._folder
        if folder == before:
            return
        self._folder, self._work = folder, {}
        self._write("running", "", folder)
        self._end("finished", "", before)
        if self._tensorboard:
            self._writer = _writer(folder / "tensorboard")

    def line(self, text: str) -> None:
        """A line was said."""
        self._lines.append(text)
        self._write("running", "", self._folder)

    def work(self, title: str, words: str, figures: str, share: float) -> None:
        """A bar has moved."""
        self._work = {"title": title, "words": words, "figures": figures, "share": share}
        if time.monotonic() >= self._written + EVERY or share >= 1:
            self._write("running", "", self._folder)

    def scalars(self, title: str, step: int, values: Mapping[str, float]) -> None:
        """Figures of an epoch."""
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(f"{title}/{name}", value, step)
            self._writer.flush()

    def end(self, state: str, why: str) -> None:
        """The command has ended in this folder."""
        self._end(state, why, self._folder)
        self._folder = None

    def _end(self, state: str, why: str, folder: Path | None) -> None:
        self._write(state, why, folder)
        if self._writer is not None:
            self._writer.close()
        self._writer = None

    def _write(self, state: str, why: str, folder: Path | None) -> None:
        """Not waited for: the disk must not be busy while something is measured. What cannot be written is left out."""
        if folder is None:
            return
        self._written = time.monotonic()
        content = {
            "state": state, "why": why, "lines": list(self._lines), "work": self._work, "began": self._began,
            "time": time.time(), "process": os.getpid(), "host": socket.gethostname(),
        }  # fmt: skip
        part = folder / f".{NAME}.part"
        try:
            part.write_text(json.dumps(content))
            part.replace(folder / NAME)
        except OSError:
            return


_current: Record | None = None


@contextmanager
def recording(tensorboard: bool = False) -> Iterator[None]:
    """What is said and worked at within is written into the folders that `into` names."""
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
    """Name the folder that is worked in, which is there; nothing where no recording goes on."""
    if _current is not None:
        _current.open(folder)


def line(text: str) -> None:
    """Record a line."""
    if _current is not None:
        _current.line(text)


def work(title: str, words: str, figures: str, share: float) -> None:
    """Record how far a piece of work is."""
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
