"""A configuration and its folder, with what every stage needs."""

import dataclasses
import platform
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from htas import datasets, metrics
from htas.console.progress import say
from htas.cost.calibrate import Calibrate, sparing
from htas.cost.model import CostModel
from htas.cost.paper import paper_cost
from htas.cost.source import NetworkCosts
from htas.cost.tables import TableCost
from htas.data.split import Data
from htas.files import __version__, digest, read_json, slug, write_json
from htas.graph import Network, ordered, trace
from htas.graph.arch import Arch
from htas.metrics import Metric
from htas.metrics.latency import Latency
from htas.run.config import Config
from htas.runtimes import open_runtime
from htas.spaces.remember import CachedMetric
from htas.spaces.space import Space
from htas.strategies import SupernetStrategy
from htas.timing.store import Store
from htas.timing.target import Target, affinity, machine
from htas.training.distill import Distill

FILES = {"train": "networks", "calibrate": "cost"}
"""Stages whose file has another name."""


@dataclass(frozen=True)
class Run:
    """A configuration and its folder, with what every stage needs; made when first asked for."""

    config: Config
    folder: Path

    @cached_property
    def data(self) -> Data:
        """The images, on the device that trains."""
        config, parts = self.config, self.config.parts
        say(f"reading {config.names['data']}")
        return datasets.load(
            config.data, device=self.device, validation=parts.validation, seed=config.seed, limit=parts.limit
        )

    @cached_property
    def network(self) -> Network:
        """The base network, traced; its weights drawn from the seed, or as they were given."""
        torch.manual_seed(self.config.seed)
        module = self.config.family.build(self.config.data.classes)
        example = tuple(torch.zeros(2, *shape) for shape in self.config.data.shapes)
        self.config.family.check(module, example, self.config.data.classes)
        if self.config.family.inherits:  # what is narrower shall have the channels that matter most
            module = ordered(module, example)
        options, normed = self.config.design, self.config.family.project_norm
        return trace(module, example, adds=options.adds, project_norm=normed, ignored=options.ignored)

    @property
    def device(self) -> str:
        """Training happens where there is a GPU, whatever the target."""
        return "cuda" if torch.cuda.is_available() else "cpu"

    @property
    def target(self) -> Target:
        """The target, for the inputs of this data set."""
        return replace(self.config.target, shapes=self.config.data.shapes)

    @cached_property
    def surveyed(self) -> dict[str, Any]:
        """survey.json."""
        return read_json(self.folder / "survey.json")

    @cached_property
    def spaces(self) -> dict[str, Space]:
        """The spaces of design.json."""
        return {name: Space.of(space) for name, space in read_json(self.folder / "design.json")["spaces"].items()}

    @cached_property
    def costs(self) -> NetworkCosts:
        """Cost models by metric; those that need cost.json read it when first asked for."""
        return NetworkCosts(self.network, self.target, lambda: read_json(self.folder / "cost.json"))

    @property
    def calibrated(self) -> TableCost:
        """Latency by cost.json, in seconds."""
        return self.costs.calibrated()

    @property
    def cost(self) -> CostModel:
        """The cost model that the strategy is charged by."""
        match self.config.strategy.charged:
            case "table":
                return self.calibrated
            case "paper":
                return paper_cost(self.network, self.surveyed, self.config.design)
            case metric:
                return self.costs.by(metric)

    @property
    def fitted_metrics(self) -> dict[str, Metric]:
        """Metrics that are limited or charged and that the calibration has to measure next to latency, by name."""
        names = [*self.config.constraints.given, self.config.strategy.charged]
        kinds = {name: metrics.named(name) for name in names if name not in ("table", "paper")}
        return {metrics.name_of(kind): kind(self.target) for kind in kinds.values() if kind.fitted}

    @property
    def calibration(self) -> Calibrate:
        """The options of the calibration, as far as the runtime is quick."""
        return sparing(self.config.calibrate, self.network, open_runtime(self.target))

    def latency(self, seconds: float) -> Latency:
        """What measures layers for so many seconds, as the survey's options say."""
        options = self.config.survey
        return Latency(self.target, options.rounds, seconds, options.reading, self.config.seed)

    def remembering(self, metric: Latency, fresh: bool) -> Metric:
        """The metric with the store beside it that the survey's options name; `fresh` measures all anew."""
        name = self.config.survey.store
        if name == "none":
            return metric
        store = Store() if name == "user" else Store(Path(name).expanduser())
        asked = (self.config.survey.seconds, metric.reading)  # more time is worth other readings
        place = digest(self.place, affinity(), *asked)
        return CachedMetric(metric.target, metric, "latency", store, place, fresh)

    @property
    def family(self) -> list[Any]:
        """What the base network is made from."""
        own = self.config.family
        source = [own.source] if own.source else []
        return [self.config.names["family"], dataclasses.asdict(own), *source]  # type: ignore[call-overload]

    def reset(self, module: nn.Module) -> None:
        """Draw all weights of a network anew, unless it starts from those that it has of the base network."""
        if not self.config.family.inherits:
            self.config.family.reset(module)

    def made_from(self, stage: str) -> str:
        """A hash of what a stage is made from; a stage whose file holds another one is done again."""
        config, folder = self.config, self.folder
        basis = [*self.family, config.data.classes]
        space = [config.design.expand, config.design.inputs, config.design.adds, *config.design.ignored]
        match stage:
            case "survey":
                options = {**dataclasses.asdict(config.survey), "store": "", "undecided": 0}  # do not touch readings
                return digest(basis, self.place, options, space)
            case "design":
                return digest(basis, dataclasses.asdict(config.design), folder / "survey.json")
            case "calibrate":
                options = dataclasses.asdict(config.calibrate)
                return digest(basis, self.place, options, space, folder / "design.json", *self.fitted_metrics)
            case "search":
                files = [folder / f"{name}.json" for name in ("design", "survey", "cost")]
                searched = lasting(replace(config, distill=Distill()))  # which a search has nothing to do with
                return digest(searched, *files, *config.strategy.files)
            case "train":
                return digest(lasting(config), *(self.search_file(name) for name in config.design.spaces))
            case _:
                return digest(lasting(config), self.place, folder / "networks.json")

    @property
    def place(self) -> dict[str, Any]:
        """What latencies depend on: the target on this machine, its runtime's versions, and how layers are timed."""
        runtime = open_runtime(self.target)
        timed = {"layers": "chain"} if Latency(self.target).chained(runtime) else {}
        return {"target": self.target.fingerprint(), **runtime.describe(), **timed}

    def training(self, arch: Arch, *, taught: bool) -> str:
        """A hash of what a training depends on."""
        config = self.config
        basis = [config.seed, *self.family, config.design.adds]
        data = [config.names["data"], dataclasses.asdict(config.data), config.parts.limit]  # type: ignore[call-overload]
        teaching = dataclasses.asdict(config.distill) if taught else {}
        return digest(basis, data, dataclasses.asdict(config.train), teaching, arch.json())

    def supernet_key(self, space: Space) -> str:
        """A hash of what the weights of a supernet depend on, and the costs that its records tell; empty where searches
        share no supernet."""
        config, strategy = self.config, self.config.strategy
        options = strategy.supernet_key if isinstance(strategy, SupernetStrategy) else {}
        data = [self.training(self.network.base, taught=False), dataclasses.asdict(config.parts)]  # the base network's
        files = [self.folder / "cost.json", *strategy.files]
        return digest(data, space.json(), options, *files) if options else ""

    def files(self, stage: str) -> list[Path]:
        """What a stage before the report leaves behind."""
        if stage == "search":
            return [self.search_file(name) for name in self.config.design.spaces]
        return [self.folder / f"{FILES.get(stage, stage)}.json"]

    def search_file(self, space: str) -> Path:
        """Where the search of a space ends up."""
        return self.folder / f"search-{space}.json"

    def model_file(self, name: str) -> Path:
        """Where a network's trained weights are."""
        return self.folder / "networks" / f"{slug(name)}.safetensors"

    def checkpoint(self, name: str, key: str) -> Path:
        """Where unfinished work is kept; `key` is the hash of what it is made from."""
        return self.folder / "checkpoints" / f"{slug(name)}-{key}.safetensors"


def versions() -> dict[str, Any]:
    """The machine, the versions that a result may depend on, and the date."""
    packages = (
        "torch",
        "numpy",
        "scipy",
        "onnx",
        "onnxruntime",
        "onnxruntime-gpu",
        "openvino",
        "accelerate",
        "scikit-learn",
    )
    return {
        "htas": __version__,
        "machine": machine(),
        "packages": {name: found for name in packages if (found := _version(name))},
        "host": platform.machine(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _version(package: str) -> str:
    """The version of an installed package; empty for one that is not there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def lasting(config: Config) -> str:
    """All of a configuration that what is made depends on, as TOML."""
    return _lasting(config.toml())


def _lasting(text: str) -> str:
    """A configuration without what may change in the folder of a run, as it touches nothing that was made."""
    return "\n".join(line for line in text.splitlines() if line.partition(" = ")[0] not in ("store", "undecided"))


def _environment(job: Run) -> None:
    """Seed, versions and machine of the run, as they are now."""
    content = {"seed": job.config.seed, "fingerprint": job.target.fingerprint(), **versions()}
    write_json(job.folder / "environment.json", content)
