"""What the campaigns against htas share: what was tried, what failed and how to do it again, and what a command did.

Every campaign draws its trials from a seed and a number, so that trial 17 of seed 0 is the same one on any day:

    python benchmarks/faults/NAME.py [OUT] [--seed 0] [--count N] [--first 0]

It prints a table of kinds (tried, failed) and one line for every failure, and ends with exit code 1 where one failed.
"""

import contextlib
import io
import random
import signal
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import FrameType

LONGEST = 1000
"""Letters of a sentence: longer ones are not read to their end."""


@dataclass
class Tally:
    """How often each kind was tried, and what failed."""

    tried: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[str, str, str]] = field(default_factory=list)

    def add(self, kind: str, trouble: str, again: str) -> None:
        """Count one trial; `trouble` says what was wrong ("" for nothing), `again` how to do the same again."""
        self.tried[kind] += 1
        if trouble:
            self.failures.append((kind, trouble, again))

    def table(self) -> str:
        """Kinds as Markdown, the failures below."""
        failed = Counter(kind for kind, _, _ in self.failures)
        rows = [("| all |", self.tried.total(), failed.total())]
        rows += [(f"| {kind} |", count, failed[kind]) for kind, count in sorted(self.tried.items())]
        lines = [
            "| what | tried | failed |",
            "|---|---|---|",
            *(f"{name} {all_} | {bad} |" for name, all_, bad in rows),
        ]
        return "\n".join(lines + [f"- {kind}: {trouble} ({again})" for kind, trouble, again in self.failures])

    def end(self) -> int:
        """Print the table; returns the exit code."""
        print(self.table(), flush=True)
        return int(bool(self.failures))


def drawn(seed: int, number: int) -> random.Random:
    """The random numbers of one trial."""
    return random.Random(f"{seed}:{number}")


@dataclass(frozen=True)
class Outcome:
    """What a command did: its exit code (None: it was still running at the limit), and what it printed."""

    code: int | None
    out: str
    err: str

    def trouble(self, codes: Sequence[int] = (0, 2)) -> str:
        """What is wrong with it; "" where it ended with one of `codes`, and with one sentence if that is 2."""
        if self.code is None:
            return "it did not end"
        last = [line for line in self.err.splitlines() if line.strip()][-1:]
        if "Traceback" in self.err:
            return f"a traceback: {[line for line in self.err.splitlines() if line and line[0] != ' '][-2:]}"
        if self.code not in codes:
            return f"exit code {self.code}: {last}"
        if self.code == 2 and not (last and last[0].startswith("htas: ")):
            return f"exit code 2 without a sentence: {last}"
        if self.code == 2 and len(last[0]) > LONGEST:
            return f"a sentence of {len(last[0])} letters"
        return "an escape sequence" if "\x1b" in self.err else ""


class TooLongError(BaseException):
    """A call that took longer than its limit."""


@contextlib.contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raise TooLongError in the main thread after so many seconds."""

    def late(number: int, frame: FrameType | None) -> None:
        raise TooLongError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def called(argv: Sequence[str], seconds: int = 10) -> Outcome:
    """One command in this process, which saves a second of imports; at most so many seconds."""
    from htas.cli import main

    out, err = io.StringIO(), io.StringIO()
    code: int | None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            with limited(seconds):
                code = main(argv)
        except TooLongError:
            code = None
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except BaseException:
            err.write(traceback.format_exc())
            code = 1
    return Outcome(code, out.getvalue(), err.getvalue())
