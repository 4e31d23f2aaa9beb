"""Processes that judge archs at the same time, each with the weights of one search's supernet."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout

import torch

from htas.console.progress import progress, say
from htas.console.record import recording
from htas.errors import UserError
from htas.graph.arch import Arch
from htas.search.oneshot import SupernetLoop
from htas.search.problem import Problem
from htas.strategies._sampled import Accuracies, OneShotStrategy, supernet_of
from htas.text import percent
from htas.timing import turns
from htas.timing.processes import died, ending, new_process

DEATHS = 3
"""Processes that may die one after the other; then the search ends."""
LOOK = 1.0
"""Seconds between two chances for who wants to measure."""


@contextmanager
def judges(problem: Problem, strategy: OneShotStrategy, count: int) -> Iterator[Accuracies]:
    """So many processes, which judge archs by the supernet that the search has trained; they end with this context."""
    with ending():
        yield _Judges(problem, strategy, count)


class _Judges:
    def __init__(self, problem: Problem, strategy: OneShotStrategy, count: int) -> None:
        assert problem.again is not None
        self.again, self.strategy, self.title = problem.again, strategy, problem.title
        self.count, self.threads = count, max(1, torch.get_num_threads() // count)
        self.idle: list[ProcessPoolExecutor] = []
        self.deaths = 0
        """Of processes, since an arch was judged."""

    def __call__(self, archs: Sequence[Arch]) -> Iterator[tuple[Arch, float | None]]:
        waiting = list(archs)
        busy: dict[Future[float], tuple[Arch, ProcessPoolExecutor]] = {}
        with progress(f"{self.title}: validation by {self.count} processes", len(archs)) as bar:
            while waiting or busy:
                while waiting and len(busy) < self.count:
                    arch, process = waiting.pop(0), self.idle.pop() if self.idle else new_process(self.threads)
                    busy[process.submit(_accuracy, self.again, self.strategy, turns.joined(), arch)] = arch, process
                for future in wait(busy, LOOK, FIRST_COMPLETED).done:
                    arch, process = busy.pop(future)
                    if died(future):
                        self._bury(process)
                        yield arch, None
                    else:
                        accuracy, self.deaths = future.result(), 0
                        self.idle.append(process)
                        yield arch, accuracy
                    bar.step("" if died(future) else percent(accuracy, 1))
                bar.step(by=0)

    def _bury(self, process: ProcessPoolExecutor) -> None:
        """Count a process that died; raises UserError where too many did."""
        process.shutdown(wait=False)
        self.deaths += 1
        say(f"{self.title}: a process that judged an arch was killed, as the system does where memory ends")
        if self.deaths == DEATHS:
            raise UserError(
                f"{DEATHS} processes that judge archs were killed one after the other, as the system does where memory "
                f"ends; take fewer than strategy.workers = {self.count}, and the same command goes on"
            )


# -- in a process ------------------------------------------------------------------------------------------------------

_supernet: SupernetLoop | None = None


def _accuracy(again: Callable[[], Problem], strategy: OneShotStrategy, joins: bool, arch: Arch) -> float:
    """The accuracy of an arch; the first call loads the supernet. With `joins`, take turns with who measures."""
    global _supernet
    with (
        open(os.devnull, "w") as nothing, redirect_stderr(nothing), redirect_stdout(nothing),
        turns.join() if joins else nullcontext(), recording(between=turns.give_way),
    ):  # fmt: skip
        if _supernet is None:
            _supernet = supernet_of(again(), strategy)
        return _supernet.validate([arch])[0]
