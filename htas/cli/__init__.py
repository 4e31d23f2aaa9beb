"""The command `htas`. Here: exit codes, and the lines for a mistake, a fault and Ctrl-C.

Everything else is imported within `main`, so that Ctrl-C during the imports is no traceback.
"""

import errno
import os
import sys
from collections.abc import Sequence

from htas.errors import UserError
from htas.training.ranks import PeerError, speaks

ENVIRONMENT = (errno.ENOSPC, errno.EROFS, errno.EACCES)
"""Errors of the operating system that the user can put right: a full or read-only disk, a missing permission."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns the exit code: 0; 1 for a fault of this package, with its traceback; 2 for a mistake of the user's, in one
    sentence; 130 for Ctrl-C.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        from htas.cli.app import call

        call(words)
        sys.stdout.flush()
        return 0
    except BrokenPipeError:
        if _reader_closed_pipe():
            return 0
        return _fault(words)
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):  # rich, which prints help, ends so
            return 0
        raise
    except KeyboardInterrupt as error:
        if speaks(error):
            print("\nhtas: stopped; the same command continues where this one was", file=sys.stderr)
        return 130
    except (UserError, PeerError) as error:
        return _refusal(str(error)) if speaks(error) else 2
    except OSError as error:
        if error.errno not in ENVIRONMENT:
            return _fault(words)
        place, reason = error.filename or "the disk", os.strerror(error.errno or 0)
        return _refusal(f"{place} cannot be used: {reason}; free some space or name another folder with --out")
    except Exception:
        return _fault(words)


def _refusal(sentence: str) -> int:
    from htas.text import printable

    print(f"htas: {printable(' '.join(sentence.split()))}", file=sys.stderr)
    return 2


def _fault(argv: Sequence[str]) -> int:
    """Print the traceback of the exception that is being handled, and where to report it."""
    import shlex
    import traceback

    from htas.files import __version__

    traceback.print_exc()
    print(
        f"htas: this is a fault of htas {__version__}, unless the lines above end in code of your own; please report "
        f"it in the project's issue tracker, with these lines and the command: {shlex.join(['htas', *argv])}",
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
