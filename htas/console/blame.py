"""An exception that the user's code raised, in one line with its place in their file."""

import importlib
import traceback
from functools import cache
from pathlib import Path

from htas.text import first_line

_OURS, _PYTHON = Path(__file__).parents[1], Path(importlib.__file__).parents[1]


def blame(error: BaseException) -> str:
    """`ValueError: its message (nets.py, line 42)`, in one line.

    The place is the innermost frame in a file of the user's, not of a library; nothing stands for it without one.
    """
    kind, message = type(error).__name__, first_line(error)
    what = kind if message == kind else f"{kind}: {message}"
    if isinstance(error, SyntaxError) and error.filename:
        return f"{what} ({error.filename}, line {error.lineno})"
    frames = traceback.extract_tb(error.__traceback__)
    users = [frame for frame in frames if not frame.filename.startswith("<") and not installed(frame.filename)]
    return f"{what} ({users[-1].filename}, line {users[-1].lineno})" if users else what


@cache
def installed(filename: str) -> bool:
    """Whether a file is of Python, of an installed library or of this package."""
    file = Path(filename)
    return "site-packages" in file.parts or file.is_relative_to(_OURS) or file.is_relative_to(_PYTHON)
