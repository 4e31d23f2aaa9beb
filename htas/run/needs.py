"""What is refused before hours go into a run: batches that several processes cannot share, trainings that this
machine's memory cannot hold, limits that nothing can keep, a strategy that cannot keep what is limited, a supernet
that fails."""

import math
from typing import Literal

from htas.errors import UserError
from htas.graph import Arch, Network
from htas.run.config import Config
from htas.run.limits import need_possible
from htas.run.run import Run
from htas.runtimes import open_runtime
from htas.search.oneshot import SearchOptions
from htas.search.rehearsal import rehearse
from htas.strategies import SupernetStrategy, need_limits
from htas.timing.quota import free_memory
from htas.training import ranks

FLOAT, WEIGHTS, VALUES = 4, 3, 3
"""Bytes of a number; copies of a weight in training, which are itself, its gradient and its momentum; and of a value
between layers at least (measured: 3.0 to 3.7, in supernets 3.6 to 4.6)."""


def need_startable(run: Run) -> None:
    """Raise UserError where a run would be refused before its survey, but for its supernet, which takes seconds."""
    config, strategy = run.config, run.config.strategy
    need_limits(bool(config.constraints.by_metric), strategy)
    strategy.check()
    need_divisible(config)
    if strategy.processes > 1 and not run.elsewhere:
        raise UserError(
            f"strategy.workers = {getattr(strategy, 'workers', '')} needs a network and data that other processes can "
            "build, and htas.optimize has those of a Python program; leave it at 1"
        )
    need_possible(run)
    open_runtime(run.target)
    if not _calibrated(run):
        need_memory(run)


def need_supernet(run: Run) -> None:
    """Raise UserError where the supernet of the strategy fails, before hours go into measurements."""
    strategy = run.config.strategy
    if not _calibrated(run) and isinstance(strategy, SupernetStrategy) and run.network.sites:
        mix: Literal["interpolate", "pad"] = getattr(strategy, "mix", "pad")
        rehearse(
            run.network, run.reset, strategy.shortcut, mix, strategy.norms, inherits=strategy.start == "base"
        )  # fmt: skip


def _calibrated(run: Run) -> bool:
    return (run.folder / "cost.json").exists()


def need_divisible(config: Config) -> None:
    """Raise UserError where batches cannot be divided among the processes that train together."""
    ranks.need_divisible(config.train.batch, "train.batch", ranks.processes())
    if isinstance(config.strategy, SearchOptions):
        ranks.need_divisible(config.strategy.batch, "strategy.batch", ranks.processes())


def need_memory(run: Run, arch: Arch | None = None) -> None:
    """Raise UserError, with the figures, where the memory of this machine that is free cannot hold the search, or the
    training of the base network, on its processor; with an arch, the search whose supernet is as wide as that."""
    if run.device != "cpu":  # cards say so themselves
        return
    config, network, data = run.config, run.network, run.data
    if arch is None:
        batch = min(config.train.batch, len(data.train))
        _need(network, network.base, batch, "train.batch", "training of the base network", "")
    if isinstance(config.strategy, SearchOptions):
        way = ", give design.expand=1, or take a search without a supernet (--strategy.name=knapsack, within limits)"
        what = "search with a supernet of such widths" if arch else "search"
        batch = min(config.strategy.batch, len(data.weights))
        _need(network, arch or network.base, batch, "strategy.batch", what, way)


def training_bytes(network: Network, arch: Arch, batch: int) -> tuple[float, float]:
    """Bytes that a step of a training takes at least: weights, and what a batch leaves between layers."""
    layers = [use.layer for use in network.uses(arch)]
    values = sum((each.outputs or 0) * math.prod(each.size) // math.prod(each.stride) for each in layers)
    return FLOAT * WEIGHTS * network.params(arch), float(FLOAT * VALUES * values * batch)


def _need(network: Network, arch: Arch, batch: int, option: str, what: str, way: str) -> None:
    share = ranks.here() / ranks.processes()
    weights, values = training_bytes(network, arch, max(1, int(batch * share)))
    needed, free = weights * ranks.here() + values, free_memory()
    if needed > free:
        raise UserError(
            f"the {what} takes {needed / 1e9:.3g} GB of memory at least ({weights / 1e9:.3g} GB for "
            f"{network.params(arch) / 1e6:.3g} M weights, {values / 1e9:.3g} GB for a batch of {batch}), and "
            f"{free / 1e9:.3g} GB are free; free some, lower {option}{way}"
        )
