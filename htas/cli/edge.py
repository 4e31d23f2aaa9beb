"""How the command ends: exit codes, and the lines for a mistake, a fault and a signal."""

import errno
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress

from htas.cli.stopping import end_children, stopping
from htas.errors import PlaceError, UserError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)
"""Errors of the operating system where nothing can be written: a full or read-only disk, a missing permission."""
PLACES = (
    *(*FULL, errno.EPERM, errno.EIO, errno.ESTALE, errno.ENXIO, errno.ENODEV),
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY, errno.EBUSY),
)
"""Errors that are of a place that the user named: another kind is a fault, and so is one that names no place."""
SHORT = {
    errno.EMFILE: "close some files, or raise ulimit -n",
    errno.ENFILE: "close some files, or raise the system's limit",
    errno.ENOMEM: "free some memory",
    errno.EAGAIN: "end other processes, or raise ulimit -u",
}
"""Errors where the system has no more of something, with what to do."""

RESUMED = (
    *("run", "survey", "design", "calibrate", "search", "train", "report", "transfer", "demo"),
    *("sweep", "fastest", "compare", "reproduce"),
)
"""Verbs that keep in a folder what is done, and go on from there."""


def run(argv: Sequence[str] | None) -> int:
    """Run one command; see `htas.cli.main`."""
    words = list(sys.argv[1:] if argv is None else argv)
    began = time.time()
    with stopping(last=argv is None) as stop:
        try:
            from htas.cli.app import call

            call(words)
            sys.stdout.flush()
            return 0
        except SystemExit as error:
            if isinstance(error.__context__, BrokenPipeError):  # rich, which prints help, ends so
                return 0
            raise
        except BaseException as error:
            if stop.number:  # whatever became of it on the way here
                end_children(began)
            elif not isinstance(error, KeyboardInterrupt):
                if not isinstance(error, Exception):
                    raise
                return _failed(error, words)
            with suppress(OSError):  # the terminal may be gone
                if _speaks(error if isinstance(error, KeyboardInterrupt) else KeyboardInterrupt()):
                    print(f"\nhtas: {stop.words}{_resumption(words)}", file=sys.stderr)
            return stop.code


def _resumption(words: Sequence[str]) -> str:
    """How a command goes on that was stopped; empty where it keeps nothing, as `measure` of networks by name does."""
    verb, *others = [word for word in words if not word.startswith("-")] or [""]
    resumes = verb in RESUMED or (verb == "measure" and any(map(os.path.exists, others)))
    return "; the same command continues where this one was" if resumes else ""


def _failed(error: Exception, words: Sequence[str]) -> int:
    """Print why the command failed; returns the exit code."""
    from htas.training.ranks import PeerError

    match error:
        case BrokenPipeError():
            return 0 if _reader_closed_pipe() else _fault(words)
        case PlaceError():
            return _refusal(f"{error}{_option(words)}", error)
        case UserError() | PeerError():
            return _refusal(str(error), error)
        case OSError() if error.errno in FULL or (error.errno in PLACES and error.filename is not None):
            place, reason = error.filename or "the disk", os.strerror(error.errno)
            way = "free some space or name another folder" if error.errno in FULL else "name another place"
            return _refusal(f"{_text(place)} cannot be used: {reason}; {way}{_option(words)}", error)
        case OSError() if error.errno in SHORT:
            return _refusal(f"{os.strerror(error.errno)}: {SHORT[error.errno]}, and give the same command again", error)
    return _fault(words)


def _speaks(error: BaseException) -> bool:
    from htas.training.ranks import speaks

    return speaks(error)


def _refusal(words: str, error: BaseException) -> int:
    from htas.text import sentence

    if _speaks(error):
        print(f"htas: {sentence(words)}", file=sys.stderr)
    return 2


def _option(words: Sequence[str]) -> str:
    """` with --out`, or the option of the verb by which another place is named; nothing where it has none."""
    from htas.cli.verbs import VERBS

    parameters = VERBS[words[0]].__annotations__ if words and words[0] in VERBS else {}
    return next((f" with --{name}" for name in ("out", "file") if name in parameters), "")


def _text(place: object) -> str:
    return os.fsdecode(place) if isinstance(place, bytes) else str(place)


def _fault(argv: Sequence[str]) -> int:
    """Print the traceback of the exception that is being handled, and where to report it."""
    import shlex
    import traceback

    from htas.files import __version__
    from htas.text import printable

    sys.stderr.write(printable(traceback.format_exc()))
    command = printable(shlex.join(["htas", *argv]))
    print(
        f"htas: this is a fault of htas {__version__}, unless the lines above end in code of your own; please report "
        f"it in the project's issue tracker, with these lines and the command: {command}",
        file=sys.stderr,
    )
    return 1


def _reader_closed_pipe() -> bool:
    """True if the reader of stdout closed the pipe (`head`); further output is dropped."""
    import select

    output = select.poll()
    output.register(sys.stdout.fileno(), 0)  # errors are reported in any case
    closed = any(event & select.POLLERR for _, event in output.poll(0))
    if closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains when it flushes
    return closed
