"""An exception that the user's code raised, in one line with its place in their file."""

import importlib
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from htas.errors import UserError
from htas.text import first_line

_OURS, _PYTHON = Path(__file__).parents[1], Path(importlib.__file__).parents[1]
_FRAME = re.compile(r'^ *File "(.+)", line (\d+)', re.MULTILINE)
"""A frame of a traceback that is text."""
_MODE = "__torch_function__"
LONGEST = 300
"""Letters of an exception's message that are told."""


def blame(error: BaseException) -> str:
    """`ValueError: its message (nets.py, line 42)`, in one line.

    The place is the innermost frame in a file of the user's, not of a library; nothing stands for it without one.
    """
    error = _origin(error)
    kind, message = type(error).__name__, first_line(error)
    if of_worker(error):  # the traceback of another process, which ends with the same line there
        kind, _, message = str(error).strip().splitlines()[-1].partition(": ")
    message = message if len(message) <= LONGEST else f"{message[:LONGEST]}..."
    what = kind if message in (kind, "") else f"{kind}: {message}"
    if isinstance(error, SyntaxError) and error.filename:
        return f"{what} ({error.filename}, line {error.lineno})"
    users = [frame for frame in _frames(error) if not frame[0].startswith("<") and not installed(frame[0])]
    return f"{what} ({users[-1][0]}, line {users[-1][1]})" if users else what


def of_worker(error: BaseException) -> bool:
    """Whether it was raised in a worker of a DataLoader, whose traceback is its message."""
    return str(error).startswith("Caught ") and "Original Traceback" in str(error)


def is_users(error: BaseException) -> bool:
    """Whether the innermost frame that is not of Python or of another library stands in a file of the user's: a fault
    of this package is never one, whoever calls it. What a mode of PyTorch's hands on is of the one who called it."""
    frames = traceback.extract_tb(_origin(error).__traceback__)
    modes = [each for each in frames if each.name == _MODE and "return func(" in str(each.line)]
    handed_on = {(each.filename, each.lineno) for each in modes}
    files = [frame[0] for frame in _frames(_origin(error)) if not frame[0].startswith("<") and frame not in handed_on]
    owners = [file for file in files if _is_ours(file) or not installed(file)]
    return bool(owners) and not _is_ours(owners[-1])


@contextmanager
def users_faults() -> Iterator[None]:
    """Raise UserError, with file and line, for what the user's own code raises, `sys.exit()` included; faults of this
    package pass as they are."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        if not is_users(error):
            raise
        raise UserError(f"code of your own raised {blame(error)}; mend it there") from error


@cache
def installed(filename: str) -> bool:
    """Whether a file is of Python, of an installed library or of this package."""
    file = Path(filename)
    return "site-packages" in file.parts or file.is_relative_to(_PYTHON) or _is_ours(filename)


def _is_ours(filename: str) -> bool:
    """Whether it is a file of this package, or the module's name, which stands for one that is read, not imported."""
    return Path(filename).is_relative_to(_OURS) or filename.startswith(f"{_OURS.name}.")


def _origin(error: BaseException) -> BaseException:
    """The error itself, or the StopIteration of which a generator around it makes another."""
    return error.__cause__ if isinstance(error.__cause__, StopIteration) else error


def _frames(error: BaseException) -> list[tuple[str, int]]:
    """File and line of each frame, the innermost last."""
    frames = [(frame.filename, frame.lineno or 0) for frame in traceback.extract_tb(error.__traceback__)]
    if of_worker(error):
        frames += [(file, int(line)) for file, line in _FRAME.findall(str(error))]
    return frames
