"""A run: a configuration in a folder, with everything that its stages share; opened for one configuration."""

import platform
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from reprlib import repr as shortened
from shutil import disk_usage
from typing import Any, TypeVar, cast

import torch
from torch import nn

from htas import datasets, metrics
from htas.console.progress import say
from htas.console.record import NAME as PROGRESS
from htas.console.record import into
from htas.cost.calibrate import Calibrate, sparing
from htas.cost.fit import read_calibration
from htas.cost.model import CostModel
from htas.cost.paper import paper_cost
from htas.cost.source import NetworkCosts
from htas.cost.tables import TableCost
from htas.data.split import Data
from htas.datasets import Dataset
from htas.errors import UserError
from htas.files import (
    __version__,
    checking,
    digest,
    is_part,
    path_of,
    read_record,
    slug,
    sweep_parts,
    to_json,
    write_json,
    write_text,
    wrong,
)
from htas.graph import Arch, Network, ordered, trace
from htas.metrics import Metric
from htas.metrics.latency import Latency
from htas.models import untrained_unchanged
from htas.run.config import Config, load
from htas.run.sole import sole
from htas.run.user import UserData, UserNetwork
from htas.runtimes import open_runtime
from htas.search.record import SearchRecord
from htas.spaces.curve import SurveyRecord
from htas.spaces.design import DesignRecord, check
from htas.spaces.remember import CachedMetric
from htas.spaces.space import Space
from htas.strategies import SupernetStrategy
from htas.timing.store import Store
from htas.timing.target import Target, usable_cores
from htas.training import ranks

T = TypeVar("T")
SHARED = Path("/dev/shm")
"""Where memory lies that processes have in common, on Linux; containers have little of it."""
UNSTARTED = ("config.toml", "environment.json", "command.json", PROGRESS)
"""Files of a run in which no stage has finished."""


@dataclass(frozen=True)
class Sources:
    """Networks and data, by a hash of what they depend on; the runs of an experiment share one."""

    networks: dict[str, Network] = field(default_factory=dict)
    data: dict[str, Data] = field(default_factory=dict)


def _sharing(data: Dataset) -> Dataset:
    """A data set with workers for this process's part of the cores, where it would have one for each of them."""
    if ranks.here() == 1 or getattr(data, "workers", 0) >= 0:
        return data
    shared: Any = data
    return cast(Dataset, replace(shared, workers=max(1, usable_cores() // ranks.here())))


@dataclass(frozen=True)
class Run:
    """A configuration and its folder, with everything that the stages need, each built when first used."""

    config: Config
    folder: Path
    supernets: Path | None = None
    """Folder of the supernets that the searches of several runs share; None for none."""
    sources: Sources = field(default_factory=Sources, repr=False, compare=False)
    _records: dict[Path, tuple[tuple[int, int], Any]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def data(self) -> Data:
        """The images, on the device that trains."""
        config, split = self.config, self.config.split
        if self._data_key not in self.sources.data:
            say(f"reading {config.data.name}")
            self.sources.data[self._data_key] = datasets.load(
                _sharing(config.data), device=self.device, validation=split.validation, seed=config.seed,
                limit=split.limit,
            )  # fmt: skip
        return self.sources.data[self._data_key]

    @property
    def _data_key(self) -> str:
        config = self.config
        return digest(config.names["data"], config.values("data"), config.values("split"), config.seed, self.device)

    @property
    def classes(self) -> int:
        """Of the data set, where an accuracy is a share of right answers; 0 where functions of the user's own score."""
        return 0 if getattr(self.config.data, "task", "") else self.config.data.classes

    @property
    def in_memory(self) -> Sources:
        """The images, to be sent to processes of this machine, which have them in common; without them, where they
        are no plain images in its memory or it has no room for common ones, each process reads its own."""
        size = self.data.plain_bytes
        fits = size > 0 and (not SHARED.is_dir() or size < disk_usage(SHARED).free / 2)
        return Sources(data={self._data_key: self.data}) if fits else Sources()

    @property
    def network(self) -> Network:
        """The base network, traced; its weights drawn from the seed, or the user's."""
        family, data, design = self.config.family, self.config.data, self.config.design
        datasets.check(data)
        key = digest(self.config.seed, self.family, data.shapes, design.adds, design.ignored)
        if key not in self.sources.networks:
            torch.manual_seed(self.config.seed)
            module = family.build(data.classes)
            example = tuple(torch.zeros(2, *shape) for shape in data.shapes)
            family.check(module, example, data.classes)
            if family.inherits:  # narrower networks keep the most important channels
                module = ordered(module, example)
            self.sources.networks[key] = trace(
                module, example, adds=design.adds, project_norm=family.project_norm, ignored=design.ignored
            )
        return self.sources.networks[key]

    @property
    def elsewhere(self) -> bool:
        """Whether another process can open this run: not one whose network and data htas.optimize was called with."""
        return not (isinstance(self.config.family, UserNetwork) or isinstance(self.config.data, UserData))

    @property
    def device(self) -> str:
        """The device that trains: a GPU if there is one, whichever the target is."""
        return "cuda" if torch.cuda.is_available() else "cpu"

    @property
    def target(self) -> Target:
        """The target, for the inputs of this data set."""
        return replace(self.config.target, shapes=self.config.data.shapes)

    @property
    def survey(self) -> SurveyRecord:
        """survey.json."""
        return self._record("survey.json", lambda path: read_record(path, SurveyRecord))

    @property
    def design(self) -> DesignRecord:
        """design.json."""
        return self._record("design.json", self._read_design)

    def _read_design(self, path: Path) -> DesignRecord:
        record = read_record(path, DesignRecord)
        with checking(path):
            record.check(self.network, self.config.design.spaces)
        return record

    @property
    def costs(self) -> NetworkCosts:
        """Cost models by metric; those that need cost.json read it when first asked for."""
        return self._record(
            "cost.json",
            lambda path: NetworkCosts(self.network, self.target, lambda: read_calibration(path, self.network)),
        )

    @property
    def calibrated(self) -> TableCost:
        """Latency by cost.json, in seconds."""
        return self.costs.latency

    def _record(self, name: str, make: Callable[[Path], T]) -> T:
        """An object built from a file; built again only when the file has changed."""
        path = self.folder / name
        state = (path.stat().st_mtime_ns, path.stat().st_size) if path.exists() else (0, 0)
        if path not in self._records or self._records[path][0] != state:
            self._records[path] = state, make(path)
        return cast(T, self._records[path][1])

    @property
    def cost(self) -> CostModel:
        """The cost model that the strategy is charged by."""
        match self.config.strategy.charged:
            case "table":
                return self.calibrated
            case "paper":
                return paper_cost(self.network, self.survey.layers, self.config.design)
            case metric:
                return self.costs.by(metric)

    @property
    def fitted_metrics(self) -> dict[str, Metric]:
        """Metrics that are limited or charged and that the calibration has to measure next to latency, by name."""
        names = [*self.config.constraints.by_metric, self.config.strategy.charged]
        kinds = {name: metrics.named(name) for name in names if name not in ("table", "paper")}
        return {metrics.name_of(kind): kind(self.target) for kind in kinds.values() if kind.fitted}

    @property
    def calibration(self) -> Calibrate:
        """Calibration options, reduced for runtimes that are slow to build."""
        return sparing(self.config.calibrate, self.network, open_runtime(self.target))

    def latency(self, seconds: float) -> Latency:
        """The metric that measures layers, within a number of seconds, by the survey's options."""
        options = self.config.survey
        return Latency(self.target, options.rounds, seconds, options.reading, self.config.seed)

    def remembering(self, metric: Latency, fresh: bool) -> Metric:
        """The metric, cached in the store of survey.store; with `fresh` every layer is measured again."""
        options = self.config.survey
        if options.store == "none":
            return metric
        store = Store() if options.store == "user" else Store(path_of(options.store, "survey.store"))
        place = digest(
            self.place, self.target.affinity(), options.seconds, metric.reading
        )  # other lengths share no readings
        return CachedMetric(metric.target, metric, "latency", store, place, fresh)

    @property
    def family(self) -> list[Any]:
        """Name, options and source of the model family."""
        source = self.config.family.source
        return [self.config.names["family"], self.config.values("family"), *([source] if source else [])]

    @property
    def anew(self) -> bool:
        """Whether the networks found are trained from new weights."""
        return self.config.train.start != "base" and not self.config.family.inherits

    def reset(self, module: nn.Module) -> None:
        """Draw the weights of a network, but for those that are not trained (requires_grad is False); nothing where
        networks of this run inherit the base network's weights."""
        if not self.config.family.inherits:
            with untrained_unchanged(module):
                self.config.family.reset(module)

    @property
    def place(self) -> str:
        """A hash of what latencies depend on: the target on this machine, its runtime, and how layers are timed."""
        runtime = open_runtime(self.target)
        timed = {"layers": "chain"} if Latency(self.target).chained(runtime) else {}
        return digest(self.target.fingerprint(), runtime.describe(), timed)

    def training(self, arch: Arch, *, taught: bool) -> str:
        """A hash of everything that a training depends on; `taught` tells whether it is distilled."""
        config = self.config
        basis = [config.seed, *self.family, config.design.adds]
        data = [config.names["data"], config.values("data"), config.split.limit]
        train = config.values("train", keys=True)
        train.pop("int8_epochs")  # they come later, and leave these weights as they are
        if not taught and train["start"] in ("random", "base"):  # the base network, which has nothing to start from
            train.pop("start")
        return digest(basis, data, train, config.values("distill") if taught else {}, to_json(arch))

    def supernet_key(self, space: Space) -> str:
        """A hash of what the weights of a supernet depend on, and the costs in its records; empty where searches
        share no supernet."""
        config, strategy = self.config, self.config.strategy
        options = strategy.supernet_key if isinstance(strategy, SupernetStrategy) else {}
        data = [self.training(self.network.base, taught=False), config.values("split")]  # the base network's
        files = [self.folder / "cost.json", *strategy.files]
        return digest(data, to_json(space), options, *files) if options else ""

    def search(self, space: str) -> SearchRecord:
        """The record of a space's search; raises UserError where its arch is not one of this network."""
        path = self.search_file(space)
        record = read_record(path, SearchRecord)
        with checking(path):
            self.network.check(record.arch)
        if record.space != space:
            raise wrong(path, f"space must be {space}, got {shortened(record.space)}")
        return record

    def search_file(self, space: str) -> Path:
        """The file of a space's search."""
        return self.folder / f"search-{space}.json"

    def model_file(self, name: str) -> Path:
        """The file of a network's trained weights."""
        return self.folder / "networks" / f"{slug(name)}.safetensors"

    def checkpoint(self, name: str, key: str) -> Path:
        """The checkpoint of unfinished work; `key` is a hash of everything the work depends on."""
        return self.folder / "checkpoints" / f"{slug(name)}-{key}.safetensors"


PACKAGES = (
    "torch", "numpy", "scipy", "onnx", "onnxruntime", "onnxruntime-gpu", "openvino", "ncnn", "pnnx", "ai-edge-litert",
    "executorch", "accelerate", "scikit-learn",
)  # fmt: skip


def packages() -> dict[str, str]:
    """The versions of installed packages that a result may depend on."""
    versions = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


@dataclass(frozen=True)
class CommandRecord:
    """command.json: the command that made a folder."""

    command: str


@dataclass(frozen=True)
class EnvironmentRecord:
    """What is read of environment.json."""

    machine: Mapping[str, str | int]


def write_environment(run: Run) -> None:
    """Write seed, versions and machine of the run, as they are now, into environment.json."""
    date = datetime.now(UTC).isoformat(timespec="seconds")
    host = {"machine": run.target.machine(), "packages": packages(), "host": platform.machine(), "date": date}
    facts = {"seed": run.config.seed, "fingerprint": run.target.fingerprint(), "htas": __version__}
    write_json(run.folder / "environment.json", {**facts, **host})


def open_run(config: Config, folder: Path, *, supernets: Path | None = None, sources: Sources | None = None) -> Run:
    """The run of a configuration in a folder, which is made, or is this configuration's already; see `Run`.

    Raises UserError where the folder holds something else, and where the configuration does not fit the network or
    this machine.
    """
    run = Run(config, folder, supernets, sources or Sources())
    ranks.of_first(lambda: _claim(run))
    into(folder)
    return run


def _claim(run: Run) -> None:
    """Make the folder that of a run, unless it is."""
    config, folder = run.config, run.folder
    if (folder / "config.toml").exists():
        sweep_parts(folder)
    path, text, old = folder / "config.toml", config.toml(), ""
    files = list(folder.iterdir()) if folder.is_dir() else []
    if path.exists():
        try:
            old = path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path} cannot be read ({error}); name another folder with --out") from error
        if old != text and _differs(path, config) and not all(map(_unstarted, files)):
            raise UserError(
                f"{folder} holds a run of another configuration ({_difference(old, text)}); "
                "name another folder with --out, or delete this one"
            )
    elif folder.is_file() or not all(map(is_part, files)):
        raise UserError(f"{folder} exists and is not the folder of a run; name another one with --out")
    if old != text:
        check_fits(run)
        with sole(folder) if path.exists() else nullcontext():  # another command may work with the old one
            write_text(path, text)
    if old != text or not (folder / "environment.json").exists():
        write_environment(run)


def check_fits(run: Run) -> None:
    """Raise UserError where a configuration does not fit the network, or this machine and its devices."""
    check(run.network, run.config.design)
    run.config.target.check()
    for metric in run.fitted_metrics.values():
        metric.check()


def _differs(path: Path, config: Config) -> bool:
    """Whether the configuration in a file may give other results."""
    with suppress(UserError):  # of a plug-in that is gone, or has other options by now
        return load(path).options(keys=True) != config.options(keys=True)
    return True


def _unstarted(path: Path) -> bool:
    """Whether this file may exist before any stage has finished."""
    return path.name in UNSTARTED or is_part(path)


def _difference(old: str, new: str) -> str:
    """The first line in which two configurations differ."""
    pairs = zip(old.splitlines(), new.splitlines(), strict=False)
    return next((f"{before} there, {after} here" for before, after in pairs if before != after), "their options differ")
