"""The arms of a comparison: how each comes by the network that it trains."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from htas import files
from htas.cost.constraints import parse
from htas.errors import UserError
from htas.experiments import pruning
from htas.experiments.arm_tables import BASE, SOURCES, ArmOptions, ArmTable, Pruning
from htas.experiments.thinet import IMAGES
from htas.files import checking, digest, need_not_below, read_record, state_of, write_record, write_tensors
from htas.graph import Arch, resize
from htas.plugins.values import Values
from htas.report.result import Result
from htas.run import limits as run_limits
from htas.run import networks, rows
from htas.run.run import Run
from htas.run.stage import StageHeader, ensure, made_from
from htas.run.stages import SEARCH
from htas.search.moves import over
from htas.search.oneshot import some
from htas.spaces import design
from htas.strategies import need_limits
from htas.text import listing, percent

REPEATS = 3
"""Pruned networks that are measured a second time: the least pruned of those that keep the limit."""
WEIGHTS = "pruned.safetensors"
"""The weights that are left of the base network, in the folder of an arm."""


@dataclass(frozen=True)
class Entry:
    """result.json: the network of an arm with one seed, trained; a new one is untrained."""

    result: Result
    search_seconds: float | None = None
    """Of the search, its finalists included; None where nothing was searched."""
    doubt: str = ""
    """Why its search has not converged; empty where it has, or where there was none."""
    excess: str = ""
    """The limits that the search's network breaks when measured, in words; empty where it keeps all."""
    images: str = ""
    """How the images came that it was trained on, where its data set has copies that differ; empty where not known."""
    options: Values = field(default_factory=dict)
    """All that the result depends on, by name."""

    def __post_init__(self) -> None:
        if self.search_seconds is not None:
            need_not_below(0, self, "search_seconds")


Others = Callable[[str], Entry | None]
"""The entry of another arm with the same seed, by name; None where it is not finished."""


@dataclass(frozen=True)
class Arm(ArmOptions, ABC):
    """Options that differ from the configuration's, and where the network comes from."""

    @property
    def source(self) -> dict[str, str]:
        """Where the network comes from, as a file of arms says it: each key of SOURCES with its text or none."""
        return {key: str(getattr(self, key, "")) for key in SOURCES}

    @property
    def row_name(self) -> str:
        """Name of the network trained; `base` alone is that of the teacher, which learns from nobody."""
        return f"{BASE} network" if self.name == BASE else self.name

    def basis(self, run: Run) -> Values:
        """All options that a result depends on, by name, and the source; it does not matter where the data lie."""
        options = run.config.options(keys=True)
        options.pop("data.path", None)
        return {**options, **self.source}

    def check(self, run: Run) -> None:
        """Raise UserError for what fails whatever is measured: a network that cannot be built, a wrong design."""
        design.check(run.network, run.config.design)

    @abstractmethod
    def untrained(self, run: Run, others: Others) -> Entry:
        """The network to train; raises UserError where there is none."""

    @property
    def after(self) -> str:
        """The name of the arm that must be finished first; empty for none."""
        return ""

    def shared(self, run: Run) -> Iterator[tuple[str, Callable[[], object]]]:
        """Work whose files other arms may need as well, in order, each with a hash of what it makes."""
        if self.uses_base(run):
            yield run.training(run.network.base, taught=False), partial(rows.base_network, run)

    def uses_base(self, run: Run) -> bool:
        """Whether it needs the trained base network for certain."""
        return run.config.distill.alpha > 0 or run.config.train.start == BASE

    def builder(self, run: Run) -> Callable[[], nn.Module] | None:
        """Builds the network where it is no arch of the base network; otherwise None."""
        return None

    def weights(self, run: Run) -> Path | None:
        """A file of the weights that the training begins with; None for those that `train.start` says."""
        return None

    def current(self, result: Result, others: Others) -> bool:
        """Whether a result follows from those of the other arms as they are now."""
        return True


@dataclass(frozen=True)
class SearchedArm(Arm):
    """A search."""

    def check(self, run: Run) -> None:
        """Also where its strategy lacks a limit or a package."""
        super().check(run)
        need_limits(bool(run.config.constraints.by_metric), run.config.strategy)
        run.config.strategy.check()

    def shared(self, run: Run) -> Iterator[tuple[str, Callable[[], object]]]:
        """The base network, and the search, whose supernet others may share."""
        yield from super().shared(run)
        supernet = run.supernet_key(next(iter(run.design.spaces.values())))
        yield supernet or SEARCH.key(run), partial(ensure, run, SEARCH)

    def untrained(self, run: Run, others: Others) -> Entry:
        """The arch that the search of the first space finds."""
        ensure(run, SEARCH)
        space = run.config.design.spaces[0]
        record = run.search(space)
        row = replace(rows.searched_row(run, record), name=self.row_name, remarks=())
        seconds = files.read_record(run.search_file(space), StageHeader).took
        excess = "; ".join(limit.excess for limit in record.limits if limit.excess)
        return Entry(row, seconds, "" if record.converged else record.why, excess)


@dataclass(frozen=True)
class NamedArm(Arm):
    """A network by its name, trained as it is."""

    network: str = BASE
    """`base`, `cifar_resnet:14`, `tas:C010-ResNet20`."""

    def check(self, run: Run) -> None:
        """Also where its own network cannot be built."""
        super().check(run)
        if build := self.builder(run):
            build()

    def uses_base(self, run: Run) -> bool:
        """Whether it is the base network, or needs it."""
        return self.network == BASE or super().uses_base(run)

    def builder(self, run: Run) -> Callable[[], nn.Module] | None:
        """Builds the network, unless it is the base network."""
        return None if self.network == BASE else partial(networks.build, self.network, run.config.data.classes)

    def untrained(self, run: Run, others: Others) -> Entry:
        """The network, with its counts."""
        untaught = self.network == BASE and run.config.distill.alpha == 0  # as the teacher of others is trained
        name = BASE if untaught else self.row_name
        row = rows.new_row(run, name, run.network.base, space="-", strategy="given", cost="-")
        build = self.builder(run)
        if build is None:
            return Entry(row)
        macs, params = rows.counted(build(), run.target)
        return Entry(replace(row, arch=Arch({}), macs=macs, params=params, family=self.network))


@dataclass(frozen=True)
class PrunedRecord:
    """pruned.json: the network that a pruned arm trains."""

    arch: Arch


@dataclass(frozen=True)
class PrunedArm(Arm):
    """The base network pruned by Torch-Pruning to the limit of latency, as measured."""

    prune: Pruning = field(default_factory=Pruning)
    """By which criterion, and how."""

    def check(self, run: Run) -> None:
        """Also without a limit of latency."""
        super().check(run)
        self._latency(run)

    def uses_base(self, run: Run) -> bool:
        """It prunes that."""
        return True

    def weights(self, run: Run) -> Path | None:
        """Those that are left of the base network, where they are kept."""
        return run.folder / WEIGHTS if self.prune.weights == "kept" else None

    def untrained(self, run: Run, others: Others) -> Entry:
        """The least pruned network within the limits: of latency, by two readings next to the base network."""
        text = self._latency(run)
        path, key = run.folder / "pruned.json", digest(self.basis(run))
        if made_from(path, key):
            arch = read_record(path, PrunedRecord).arch
            with checking(path):
                run.network.check(arch)
            return Entry(self._row(run, arch))
        exact = [limit for limit in run_limits.limits(run) if limit.metric != "latency"]
        example, model = torch.zeros(2, *run.config.data.shapes[0]), rows.base_network(run)
        importance = pruning.importance_of(self.prune.criterion, some(run.data.train, IMAGES))
        archs_of = pruning.candidates(run.network, model, example, self.prune, importance)
        archs = [arch for arch in archs_of if not exact or over(exact, arch) <= 1]
        if not archs:
            limits = listing(f"{limit.metric} {limit.text}" for limit in exact)
            raise UserError(f"no network pruned by {self.prune} keeps what is asked for, {limits}")
        ratios = self._ratios(run, archs, text, "looking for")
        within = [arch for arch in archs if ratios[arch] <= 1]
        if not within:
            raise UserError(
                f"no network pruned by {self.prune} keeps the latency asked for, {text}; the fastest takes "
                f"{percent(min(ratios.values()))} of that"
            )
        # the readings that pick a network favour it, so others confirm it
        again = self._ratios(run, within[:REPEATS], text, "measuring again the")
        arch = next((arch for arch in within if again.get(arch, 1.0) <= 1), within[-1])
        if weights := self.weights(run):
            _, module = pruning.pruned(run.network, model, example, self.prune, archs_of[arch], importance)
            write_tensors(weights, state_of(module))
        write_record(path, PrunedRecord(arch), inputs=key)
        return Entry(self._row(run, arch))

    def _latency(self, run: Run) -> str:
        """What it is pruned to; raises UserError where nothing is said."""
        if not run.config.constraints.latency:
            raise UserError("a pruned network needs a latency to be pruned to; give one: --constraints.latency=50%")
        return run.config.constraints.latency

    def _ratios(self, run: Run, archs: Sequence[Arch], text: str, what: str) -> dict[Arch, float]:
        """Latency of each over the limit, in one run with the base network."""
        measured = [self._row(run, arch) for arch in (run.network.base, *archs)]
        modules = [resize(run.network, row.arch) for row in measured]
        base, *readings = rows.measure_rows(run, measured, modules, f"{what} networks pruned to {text}, %")
        most = parse("latency", text, base.estimate)
        return {arch: reading.estimate / most for arch, reading in zip(archs, readings, strict=True)}

    def _row(self, run: Run, arch: Arch) -> Result:
        row = rows.new_row(run, self.row_name, arch, space="-", strategy=f"torch-pruning, {self.prune}", cost="-")
        return rows.predicted(run, row)


@dataclass(frozen=True)
class SameAsArm(Arm):
    """The network that another arm searches, trained with this arm's options."""

    like: str = ""
    """The name of the other arm."""

    @property
    def after(self) -> str:
        """The other arm."""
        return self.like

    def untrained(self, run: Run, others: Others) -> Entry:
        """The arch of the other arm."""
        entry = others(self.like)
        if entry is None:
            raise UserError(unfinished(self.like))
        result = entry.result
        run.network.check(result.arch)
        row = rows.new_row(run, self.name, result.arch, space=result.space, strategy=result.strategy, cost=result.cost)
        return Entry(row, entry.search_seconds, excess=entry.excess)

    def current(self, result: Result, others: Others) -> bool:
        """Whether the other arm is finished and still has this arch."""
        entry = others(self.like)
        return entry is not None and entry.result.arch == result.arch


def unfinished(name: str) -> str:
    """Why an arm cannot be trained that trains the network of this one."""
    return f"the arm {name}, whose network it trains, is not finished"


KINDS: Mapping[str, Callable[..., Arm]] = {
    "network": NamedArm,
    "prune": PrunedArm,
    "like": SameAsArm,
}
"""The arms that search nothing, by the key of SOURCES."""


def arm_of(table: ArmTable) -> Arm:
    """The arm of a table."""
    if not table.source:
        return SearchedArm(table.name, table.overrides)
    return KINDS[table.source](table.name, table.overrides, table.value)
