"""Processes that do pieces of one search at the same time."""

import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from htas.console.progress import Bar, say
from htas.console.record import recording
from htas.errors import UserError
from htas.text import first_line
from htas.timing import turns
from htas.timing.crew import Crew
from htas.timing.processes import died, ending, new_process

Piece = TypeVar("Piece")
Result = TypeVar("Result")
DEATHS = 3
"""Processes that may die one after the other; then the search ends."""
LOOK = 1.0
"""Seconds between two chances for who wants to measure."""


@dataclass(frozen=True)
class Work(Generic[Piece, Result]):
    """What each process does."""

    begin: Callable[[], Callable[[Piece], Result]]
    """Called once in each process, to which it can be sent: returns what does a piece there."""
    title: str
    """Of the search."""
    does: str
    """What a process does with a piece, in words: `judges an arch`."""


@contextmanager
def processes(work: Work[Piece, Result], count: int) -> Iterator["Processes[Piece, Result]"]:
    """So many processes, which share the threads of this one; they end with this context."""
    with ending():
        yield Processes(work, count)


class Processes(Generic[Piece, Result]):
    """Does pieces in any order. A process is started when a piece waits for it, and lives on between pieces."""

    def __init__(self, work: Work[Piece, Result], count: int) -> None:
        self.work, self.count = work, count
        self.threads = max(1, torch.get_num_threads() // count)
        self.idle: list[ProcessPoolExecutor] = []
        self.deaths = 0
        """Of processes, since a piece was done."""

    def do(self, pieces: Sequence[Piece], bar: Bar) -> Iterator[tuple[Piece, Result | None]]:
        """Each piece as soon as it is done, with its result; with None where its process died.

        Raises what a process raises, and UserError where one process after the other dies.
        """
        waiting = list(pieces)
        busy: dict[Future[Result], tuple[Piece, ProcessPoolExecutor]] = {}
        while waiting or busy:
            while waiting and len(busy) < self.count:
                piece, new = waiting.pop(0), not self.idle
                process = new_process(self.threads) if new else self.idle.pop()
                future = process.submit(_do, self.work.begin if new else None, turns.joined(), piece)
                busy[future] = piece, process
            for future in wait(busy, LOOK, FIRST_COMPLETED).done:
                piece, process = busy.pop(future)
                if died(future):
                    self._bury(process)
                    yield piece, None
                else:
                    result, self.deaths = future.result(), 0
                    self.idle.append(process)
                    yield piece, result
            bar.step(by=0)

    def _bury(self, process: ProcessPoolExecutor) -> None:
        """Count a process that died; raises UserError where too many did."""
        process.shutdown(wait=False)
        self.deaths += 1
        does = f"a process that {self.work.does}"
        say(f"{self.work.title}: {does} was killed, as the system does where memory ends")
        if self.deaths == DEATHS:
            raise UserError(
                f"{does} was killed {DEATHS} times in a row, as the system does where memory ends; take fewer than "
                f"strategy.workers = {self.count}, and the same command goes on"
            )


@contextmanager
def nodes(
    begin: Callable[[Path], Callable[[Piece], Result]], folder: Path, files: Sequence[str], crew: Crew
) -> Iterator[Callable[[Sequence[Piece], Bar], Iterator[tuple[Piece, Result]]]]:
    """What does pieces on the nodes of a Ray cluster, which have these files of the run's folder, by patterns. Raises
    UserError."""
    from htas.timing import on_ray

    with on_ray.cluster(crew.address):
        paths = [path for pattern in files for path in folder.glob(pattern)]
        contents = {str(path.relative_to(folder)): path.read_bytes() for path in paths}
        yield partial(
            on_ray.each, replace(on_ray.job_in(folder, crew.threads or 1, crew.gpus), contents=contents), begin
        )


# -- in a process ------------------------------------------------------------------------------------------------------

_doing: Callable[[Any], Any] | None = None


def _do(begin: Callable[[], Callable[[Any], Any]] | None, joins: bool, piece: Any) -> Any:
    """The result of a piece; the first call begins. With `joins`, take turns with who measures."""
    global _doing
    with (
        open(os.devnull, "w") as nothing, redirect_stderr(nothing), redirect_stdout(nothing),
        turns.join() if joins else nullcontext(), recording(between=turns.give_way),
    ):  # fmt: skip
        try:
            if begin is not None:
                _doing = begin()
            assert _doing is not None
            return _doing(piece)
        except Exception as error:
            if _can_be_sent(error):
                raise
            raise RuntimeError(f"{type(error).__name__}: {first_line(error)}") from error


def _can_be_sent(error: Exception) -> bool:
    """Whether an exception, perhaps of a user's code, arrives at another process; else that looks like a death."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever its class does there
        return False
    return True
