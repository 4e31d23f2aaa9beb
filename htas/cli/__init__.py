"""The command `htas`.

Everything else is imported within `main`, so that Ctrl-C during the imports is no traceback.
"""

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: "Sequence[str] | None" = None) -> int:
    """Run one command.

    Returns the exit code: 0; 1 for a fault of this package, with its traceback; 2 for a mistake of the user's, in one
    sentence; 130 for Ctrl-C, 143 for SIGTERM and 129 for SIGHUP, after which no process that it started is left.
    """
    try:
        from htas.cli.edge import run
    except KeyboardInterrupt:
        print("\nhtas: stopped", file=sys.stderr)
        return 130
    return run(argv)
