"""Blockwise: every block learns the trained network's feature map alone; an integer program adds up the errors."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from htas.console.progress import say
from htas.errors import UserError, need_above_zero, need_least, need_most
from htas.graph import ordered
from htas.plugins.trust import need_trusted_cluster
from htas.search.blockwise import BlockErrors, BlockOptions, Teach
from htas.search.inherited import Inherited
from htas.search.problem import Problem, SearchOutcome
from htas.search.program import best_within
from htas.strategies import Strategy, need_limits
from htas.strategies._several import Work, nodes, processes
from htas.timing.crew import MOST, Crew
from htas.training.layout import placed
from htas.training.loop import engine

FILES = ("config.toml", "*.json", "networks/base.safetensors")
"""What other machines need of the folder of a run."""


@dataclass(frozen=True)
class Blockwise(Strategy):
    """Blocks of layers learn what the trained base network makes of its own feature maps, one block at a time, at all
    of their widths; a program over whole numbers finds the arch whose blocks err least in all, within the limits.

    After LANA (Molchanov et al. 2021) and DONNA (Moons et al. 2020). No network is trained whole, and no weight is
    shared between blocks.
    """

    seeks_within_limits = True
    images: int = 2048
    """Training images that blocks learn from."""
    epochs: int = 4
    """Passes of each block over these images."""
    batch: int = 64
    """Images of a step."""
    lr: float = 0.002
    """Learning rate (Adam) of a block, falling to 0 along half a cosine."""
    judged: int = 256
    """Validation images on which the errors are found."""
    error: Literal["loss", "noise"] = "loss"
    """What is added up: what the errors of a block add to the loss of the trained network, or their power over that of
    its feature map, noise to signal."""
    cells: int = 512
    """Largest number of combinations of choices for which a block has an error of its own."""
    seconds: float = 60.0
    """Longest time of the solver; it then gives the best arch so far, and by how much another may be better."""
    workers: int | str = field(default=1, metadata={"key": False})
    """Number of processes on this machine that teach blocks at the same time, each with its share of the threads, and
    the base network and the feature maps of a block in its memory; or ray or HOST:PORT for the nodes of a Ray cluster,
    each of whose tasks teaches one."""

    def __post_init__(self) -> None:
        need_least(1, self, "strategy", "images", "epochs", "judged", "cells")
        if isinstance(self.workers, int):
            need_least(1, self, "strategy", "workers")
            need_most(MOST, self, "strategy", "workers")
        else:
            self.crew.check()
            if self.crew.processes and self.crew.threads:
                raise UserError(f"strategy.workers: processes share the threads of the search, got {self.workers!r}")
        need_least(2, self, "strategy", "batch")
        need_above_zero(self, "strategy", "lr", "seconds")
        if self.error not in ("loss", "noise"):
            raise UserError(f"strategy.error must be loss or noise, got {self.error!r}")

    def check(self) -> None:
        """Raises UserError for a cluster that a configuration names, where nothing may run that it names."""
        super().check()
        if self.crew.address:
            need_trusted_cluster("strategy.workers", self.crew.address)

    @property
    def processes(self) -> int:
        """Those of this machine; as many as there may be on a Ray cluster."""
        return self.workers if isinstance(self.workers, int) else self.crew.processes or MOST

    @property
    def crew(self) -> Crew:
        """Who teaches, where that is more than a number."""
        return Crew("" if isinstance(self.workers, int) else self.workers, "strategy.workers", "N or ")

    def training_images(self, weights: int) -> float:
        """The steps of blocks, each of which learns twice where its depth site may end with it, and their errors."""
        return min(self.images, weights) * self.epochs * 2 + self.judged * self.cells / 10

    def search(self, problem: Problem) -> SearchOutcome:
        """Raises UserError without limits, where no arch keeps them, and where an error is not finite."""
        need_limits(bool(problem.limits), self)
        started, network = time.monotonic(), problem.network
        base, errors = self._begin(problem)
        before = errors.seconds
        with self._teaching(problem) as teach:
            loss = errors.tables(teach)
        solution = best_within(network, problem.space, problem.limits, loss, seconds=self.seconds)
        say(f"{problem.title}: {solution.sentence}")
        return SearchOutcome(
            solution.arch, (), True, solution.sentence, Inherited(problem, base), before + time.monotonic() - started,
            worth=lambda arch: -loss(arch), estimates=True, judge=Inherited.title,
        )  # fmt: skip

    def _begin(self, problem: Problem) -> tuple[nn.Module, BlockErrors]:
        """The trained base network, and the errors of blocks that learn from it."""
        torch.manual_seed(problem.seed)
        base = problem.base()
        teacher = placed(ordered(base.cpu(), problem.network.example()), engine(problem.device, "fp32").device)
        options = BlockOptions(self.images, self.epochs, self.batch, self.lr, self.judged, self.cells, self.error)
        return base, BlockErrors(problem, teacher, options)

    @contextmanager
    def _teaching(self, problem: Problem) -> Iterator[Teach | None]:
        """The processes that teach blocks; None for this one alone."""
        if self.processes == 1:
            yield None
            return
        assert problem.again is not None
        if self.crew.text and not self.crew.processes:
            assert problem.anywhere is not None
            with nodes(partial(_there, problem.anywhere, self), problem.folder, FILES, self.crew) as teach:
                yield teach
            return
        work = Work(partial(_learning, problem.again, self), problem.title, "teaches a block")
        with processes(work, self.processes) as several:
            yield several.do


def _there(anywhere: Callable[[Path], Problem], strategy: Blockwise, folder: Path) -> Callable[[int], list[float]]:
    """On a node: what teaches a block, as `_learning`."""
    return _learning(partial(anywhere, folder), strategy)


def _learning(again: Callable[[], Problem], strategy: Blockwise) -> Callable[[int], list[float]]:
    """In a process: what teaches a block, by number, from the trained base network that is loaded."""
    return strategy._begin(again())[1].errors_of
