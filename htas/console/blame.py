"""An exception that the user's code raised, in one line with its place in their file."""

import importlib
import traceback
from pathlib import Path

from htas.text import first_line

_OURS, _PYTHON = Path(__file__).parents[1], Path(importlib.__file__).parents[1]


def blame(error: BaseException) -> str:
    """`ValueError: its message (nets.py, line 42)`, in one line; see `where`."""
    place = where(error)
    return f"{what(error)} ({place})" if place else what(error)


def what(error: BaseException) -> str:
    """The class of an exception, and the first line of its message."""
    kind, message = type(error).__name__, first_line(error)
    return kind if message == kind else f"{kind}: {message}"


def where(error: BaseException) -> str:
    """File and line of the innermost frame in a file of the user's, not of a library; empty without one."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    users = [frame for frame in frames if not frame.filename.startswith("<") and not _installed(Path(frame.filename))]
    return f"{users[-1].filename}, line {users[-1].lineno}" if users else ""


def _installed(file: Path) -> bool:
    return "site-packages" in file.parts or file.is_relative_to(_OURS) or file.is_relative_to(_PYTHON)
