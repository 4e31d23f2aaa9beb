"""Processes that judge archs at the same time, each with the weights of one search's supernet."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from htas.console.progress import progress
from htas.graph.arch import Arch
from htas.search.problem import Problem
from htas.strategies._sampled import Accuracies, OneShotStrategy, supernet_of
from htas.strategies._several import Processes, Work, processes
from htas.text import percent


@contextmanager
def judges(problem: Problem, strategy: OneShotStrategy, count: int) -> Iterator[Accuracies]:
    """So many processes, which judge archs by the supernet that the search has trained; they end with this context."""
    assert problem.again is not None
    work = Work(partial(_judging, problem.again, strategy), problem.title, "judges an arch")
    with processes(work, count) as several:
        yield partial(_accuracies, several)


def _accuracies(several: Processes[Arch, float], archs: Sequence[Arch]) -> Iterator[tuple[Arch, float | None]]:
    title = f"{several.work.title}: validation by {several.count} processes"
    with progress(title, len(archs)) as bar:
        for arch, accuracy in several.do(archs, bar):
            yield arch, accuracy
            bar.step("" if accuracy is None else percent(accuracy, 1))


def _judging(again: Callable[[], Problem], strategy: OneShotStrategy) -> Callable[[Arch], float]:
    """In a process: what judges an arch, by the supernet that is loaded."""
    supernet = supernet_of(again(), strategy)
    return lambda arch: supernet.validate([arch])[0]
