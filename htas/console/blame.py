"""What a user's own code raised, and the line of theirs that did."""

import importlib
import traceback
from pathlib import Path

from htas.text import first_line

_OURS, _PYTHON = Path(__file__).parents[1], Path(importlib.__file__).parents[1]


def blame(error: BaseException) -> str:
    """`ValueError: what it says (nets.py, line 42)`, in one line; see `where`."""
    place = where(error)
    return f"{what(error)} ({place})" if place else what(error)


def what(error: BaseException) -> str:
    """Its class, and the first line of what it says."""
    kind, said = type(error).__name__, first_line(error)
    return kind if said == kind else f"{kind}: {said}"


def where(error: BaseException) -> str:
    """File and line of the innermost frame that is the user's own, not a library's; empty where there is none."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith("<") and not _installed(Path(frame.filename))]
    return f"{own[-1].filename}, line {own[-1].lineno}" if own else ""


def _installed(file: Path) -> bool:
    return "site-packages" in file.parts or file.is_relative_to(_OURS) or file.is_relative_to(_PYTHON)
