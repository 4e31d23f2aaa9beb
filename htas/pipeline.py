"""One function per stage, files in and files out: survey, design, calibrate, search, train, measure, report.

A stage is finished when its file exists and was made from the inputs that are there now; anything else is done again.
An interrupted search or training goes on from its last epoch.
"""

import dataclasses
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from htas import __version__, budget, datasets, inspection, metrics, networks, plan
from htas.arch import Arch
from htas.budget import Limit
from htas.calibrate import Calibrate, cells, cost_model, fit_metric, held_out_error, sparing
from htas.calibrate import calibrate as fit_cost
from htas.config import Config, load
from htas.cost import CostModel, MacsCost
from htas.datasets import Data
from htas.design import DECIDED, check, paper_cost, records, spaces, undecided
from htas.distill import Distill
from htas.export import export
from htas.files import Unusable, digest, read_json, read_tensors, write_json, write_tensors, write_text
from htas.finish import MOST, finish, rounds
from htas.graph import Network, ordered, resize, trace
from htas.measurement import Measurement
from htas.metrics import Metric, energy
from htas.metrics.energy import Energy
from htas.metrics.latency import Latency
from htas.metrics.macs import Macs
from htas.metrics.params import Params
from htas.peak import PeakCost, peak_cost
from htas.plugins import find
from htas.problem import Problem, rivals
from htas.progress import progress, say, shares
from htas.record import NAME as PROGRESS
from htas.record import into
from htas.remember import Remembering
from htas.report import read as read_report
from htas.report import write, write_inspection, write_runs, write_survey
from htas.result import CurveRecord, Prediction, Report, Result, SearchRecord
from htas.runtimes import open_runtime
from htas.runtimes._file import OnnxFile
from htas.space import Space
from htas.store import Store
from htas.survey import EACH, at_most, widths_at_most
from htas.survey import survey as take_survey
from htas.tables import CountCost, TableCost
from htas.target import Target, affinity, machine
from htas.text import Shown, duration, listing, milliseconds, no_such, percent
from htas.train import evaluate
from htas.train import train as fit

RIVALS = 20
STAGES = ("survey", "design", "calibrate", "search", "train", "measure", "report")
FILES = {"train": "networks", "calibrate": "cost"}
"""Stages whose file has another name."""
BEFORE = {
    "design": ["survey"],
    "calibrate": ["design"],
    "search": ["survey", "design", "calibrate"],
    "train": ["search"],
}
"""Stages whose files a stage is made from, where it is done again when they change."""


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
        return replace(self.config.target, image=self.config.data.shape, more=self.config.data.shapes[1:])

    @cached_property
    def surveyed(self) -> dict[str, Any]:
        """survey.json."""
        return read_json(self.folder / "survey.json")

    @cached_property
    def spaces(self) -> dict[str, Space]:
        """The spaces of design.json."""
        return {name: Space.of(space) for name, space in read_json(self.folder / "design.json")["spaces"].items()}

    @cached_property
    def calibrated(self) -> TableCost:
        """Latency by cost.json, in seconds."""
        return cost_model(self.network, read_json(self.folder / "cost.json"))

    @property
    def cost(self) -> CostModel:
        """What the strategy is charged."""
        match self.config.strategy.cost:
            case "table":
                return self.calibrated
            case "macs":
                return MacsCost(self.network)
            case "paper":
                return paper_cost(self.network, self.surveyed, self.config.design)
            case other:
                return self.cost_of(other)

    def cost_of(self, metric: str) -> CostModel:
        """What an arch costs by a metric that can be constrained."""
        match metric:
            case "latency":
                return self.calibrated
            case "energy":
                return cost_model(self.network, read_json(self.folder / "cost.json"), "energy")
            case "memory":
                return self._peak
            case "macs":
                return CountCost(self.network, "macs")
            case _:
                return CountCost(self.network, "params")

    @cached_property
    def _peak(self) -> PeakCost:
        return peak_cost(self.network, self.target)

    @property
    def metered(self) -> bool:
        """Whether the energy of networks is asked for."""
        return bool(self.config.constraints.energy) or self.config.strategy.cost == "energy"

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
        return Remembering(metric.target, metric, "latency", store, place, fresh)

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
                more = ["energy"] if self.metered else []
                return digest(basis, self.place, options, space, folder / "design.json", *more)
            case "search":
                files = [folder / f"{name}.json" for name in ("design", "survey", "cost")]
                start = Path(getattr(config.strategy, "start", ""))
                searched = lasting(replace(config, distill=Distill()))  # which a search has nothing to do with
                return digest(searched, *files, *([start] if start.is_file() else []))
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

    def learning(self, space: Space) -> str:
        """A hash of what the weights of a supernet depend on, and the costs that the course of its training tells."""
        config = self.config
        learning = config.strategy.learning
        start = Path(learning.get("start", ""))
        data = [self.training(self.network.base, taught=False), dataclasses.asdict(config.parts)]  # the base network's
        files = [self.folder / "cost.json", *([start] if start.is_file() else [])]
        return digest(data, space.json(), learning, *files)

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


def open_run(config: Config, folder: Path) -> None:
    """Make the folder of a run, or see that it is this configuration's; raises Unusable otherwise."""
    path, text = folder / "config.toml", config.toml()
    if path.exists():
        try:
            old = path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise Unusable(f"{path} cannot be read ({error}); name another folder with --out") from error
        if _lasting(old) != _lasting(text) and any(not _unstarted(found) for found in folder.iterdir()):
            raise Unusable(
                f"{folder} holds a run of another configuration ({_difference(old, text)}); "
                "name another folder with --out, or delete this one"
            )
    else:
        if folder.exists() and (not folder.is_dir() or any(not _unfinished(found) for found in folder.iterdir())):
            raise Unusable(f"{folder} exists and is not the folder of a run; name another one with --out")
        old = ""
    if old != text:
        job = Run(config, folder)
        check(job.network, config.design)
        config.target.check()
        if job.metered:
            energy.meter(config.target.device)
        write_text(path, text)
    if old != text or not (folder / "environment.json").exists():
        _environment(Run(config, folder))
    into(folder)


def run(config: Config, folder: Path, command: str, supernets: Path | None = None) -> Path:
    """Every stage in turn; returns the path of report.html. In `supernets` lie those that several runs share."""
    open_run(config, folder)
    job = Run(config, folder)
    open_runtime(job.target)
    if not (folder / "report.json").exists():
        plan.show(job.network, job.data, config, folder)
    write_json(folder / "command.json", {"command": command})
    for stage in (survey, design, calibrate, partial(search, supernets=supernets), train, measure, report):
        stage(config, folder)
    return folder / "report.html"


def survey(config: Config, folder: Path, again: bool = False) -> None:
    """Section 3.2: every distinct layer at every width -> survey.json."""
    job = Run(config, folder)
    path = folder / "survey.json"
    if _finished(path, job.made_from("survey"), again):
        return
    started = time.monotonic()
    options, most = config.design, widths_at_most(open_runtime(job.target).build_seconds)
    number = at_most(job.network, expand=options.expand, inputs=options.inputs, groups=options.groups, most=most)
    with progress(f"survey of {number} layers, %", 100) as bar:
        content = take_survey(
            job.network,
            job.remembering(job.latency(config.survey.limit(number)), again),
            expand=options.expand,
            inputs=options.inputs,
            groups=options.groups,
            most=most,
            wanted=lambda content: undecided(job.network, content, options),
            on_round=shares(bar),
        )
    for doubt in content["doubts"]:
        say(f"survey: doubt: {doubt}")
    _environment(job)
    _write(path, job.made_from("survey"), time.monotonic() - started, content)


def survey_page(config: Config, folder: Path) -> tuple[Path, Shown]:
    """What the survey says by itself: the path of survey.html, and its table of choices (the paper's Table 2)."""
    job = Run(config, folder)
    _need(job, "survey")
    content = job.surveyed
    options = replace(config.design, spaces=("hardware",), widths={})
    curves = records(job.network, content, options, spaces(job.network, content, options))
    title = f"Survey of {config.family.title}: {config.target.device}, {config.target.runtime}"
    layers = f"{content['cases']}" + (f", and {more} interpolated" if (more := content.get("interpolated")) else "")
    facts = {**machine(), **content["context"], "layers": layers, "seconds": round(content["took"], 1)}
    told = {name: str(fact) for name, fact in facts.items()}
    return write_survey(title, curves, DECIDED, content["doubts"], _decided(curves), told, folder)


def design(config: Config, folder: Path, again: bool = False) -> None:
    """Eq. 1 to 4: curves, fits and choices -> design.json."""
    job = Run(config, folder)
    path = folder / "design.json"
    _need(job, "survey")
    if _finished(path, job.made_from("design"), again):
        return
    started = time.monotonic()
    made = spaces(job.network, job.surveyed, config.design)
    curves = records(job.network, job.surveyed, config.design, made)
    for curve in curves:
        for doubt in curve.doubts:
            say(f"design: doubt: {doubt}")
        for name, choices in curve.choices.items():
            say(f"design: {name}: {curve.sites[0]} and {len(curve.sites) - 1} alike: {listing(map(str, choices))}")
        if curve.dominated:
            say(f"design: no faster than a wider choice: {listing(map(str, curve.dominated))} (design.drop_dominated)")
    say(f"design: {_decided(curves)}")
    if "hardware" in made:
        _refuse_noise(curves, config.survey.undecided)
    content = {"spaces": {name: space.json() for name, space in made.items()}, "curves": [c.json() for c in curves]}
    _write(path, job.made_from("design"), time.monotonic() - started, content)


def calibrate(config: Config, folder: Path, again: bool = False) -> None:
    """Layers at pairs of widths, whole networks, and the fit of one on the other -> cost.json."""
    job = Run(config, folder)
    path = folder / "cost.json"
    _need(job, "design")
    if _finished(path, job.made_from("calibrate"), again):
        return
    started = time.monotonic()
    options = job.calibration
    spaces = list(job.spaces.values())
    building = open_runtime(job.target).build_seconds
    number = sum(map(len, cells(job.network, spaces, options.widths, building).values()))
    base = paper_cost(job.network, job.surveyed, config.design).cost(job.network.base)
    limits = options.limits(number, building, base)
    with progress(f"calibration: {number} layers and {options.networks} networks, %", 100) as bar:
        content = fit_cost(
            job.network,
            spaces,
            (job.latency(limits[0]), replace(job.latency(limits[1]), rounds=MOST)),
            options,
            seed=0,
            building=building,
            base=base,
            on_round=shares(bar),
        )
    say(f"cost: {_held_out(content)}")
    for doubt in content["doubts"]:
        say(f"cost: doubt: {doubt}")
    if job.metered:
        with progress(f"energy of {options.networks} networks, %", 100) as bar:
            content["energy"] = fit_metric(job.network, content, Energy(job.target), shares(bar))
        say(f"cost: energy: {_held_out(content['energy'])}")
    content["design"] = digest(folder / "design.json")
    _write(path, job.made_from("calibrate"), time.monotonic() - started, content)


def _held_out(fitted: Mapping[str, Any]) -> str:
    error = held_out_error(fitted)
    return (
        f"networks that the fit has not seen are predicted with a mean error of {percent(error['mean'], 1)}, at "
        f"worst {percent(error['worst'], 1)} ({listing(fitted['form'])})"
    )


def search(config: Config, folder: Path, again: bool = False, supernets: Path | None = None) -> None:
    """Section 3.3: one search per space -> search-SPACE.json, with its course and its random rivals.

    In `supernets` lie those that searches share which train them alike and judge archs afterwards.
    """
    job = Run(config, folder)
    _need(job, "survey", "design", "calibrate")
    check_limits(job)  # of every space, before hours go into the first
    for name, space in job.spaces.items():
        path = job.search_file(name)
        if _finished(path, job.made_from("search"), again):
            continue
        problem = _problem(job, space, supernets)
        unfinished = (problem.checkpoint, problem.checkpoint.with_suffix(".json"))  # a supernet's, and short trainings
        for old in unfinished if again else ():
            old.unlink(missing_ok=True)
        if space.size == 1:
            _write(path, job.made_from("search"), 0.0, _only(config, space).json())
            continue
        found = config.strategy.search(problem)
        judged = time.monotonic()
        taken = finish(problem, found, job.target)
        arch = taken.arch
        latency = job.calibrated
        count = RIVALS if found.cheap else 0
        others = rivals(replace(problem, cost=latency), arch, count, seed=config.seed)
        even = [] if taken.uniform is None else [taken.uniform]
        accuracy, *theirs = found.validate([arch, *even, *others])
        evenly = theirs.pop(0) if even else None
        took = found.seconds + time.monotonic() - judged
        record = SearchRecord(
            space=name,
            strategy=_title(config),
            cost=config.strategy.cost,
            arch=arch,
            epochs=found.epochs,
            converged=found.converged,
            why=found.why,
            accuracy=accuracy,
            rivals=tuple(theirs),
            rival_costs=tuple(latency.cost(other) / latency.cost(arch) for other in others),
            seconds=found.seconds,
            seed=config.seed,
            limits=taken.limits,
            measured_archs=taken.measured,
            uniform=evenly,
            judge=found.judge,
        )
        state = "converged" if record.converged else "not converged"
        beside = f"; better than {record.beaten} of {len(theirs)} random archs of its latency" if theirs else ""
        say(f"search {name}: {state}{beside}")
        _write(path, job.made_from("search"), took, record.json())
        for done in unfinished:
            done.unlink(missing_ok=True)


def _only(config: Config, space: Space) -> SearchRecord:
    """Of a space without a choice; it is said that nothing is searched."""
    why = f"the space {space.name} has a single choice at every site, so its network is trained directly"
    say(f"search {space.name}: {why}")
    return SearchRecord(
        space=space.name, strategy="none", cost="-", arch=space.widest, epochs=(), converged=True, why=why,
        accuracy=None, rivals=(), rival_costs=(), seconds=0.0, seed=config.seed,
    )  # fmt: skip


def train(config: Config, folder: Path, again: bool = False) -> None:
    """Section 4.1: the base network, then every found and control network, distilled from it -> networks.json."""
    job = Run(config, folder)
    _need(job, "survey", "design", "calibrate", "search")
    path = folder / "networks.json"
    if _finished(path, job.made_from("train"), again):
        names = [content["name"] for content in read_json(path)["results"]]
        if all(job.model_file(name).exists() for name in names):
            return
    trained = [train_row(job, row, again) for row in _rows(job)]
    content = {"results": [row.json() for row, _ in trained], "test_images": len(job.data.test)}
    _write(path, job.made_from("train"), sum(seconds for _, seconds in trained), content)


def measure(config: Config, folder: Path, again: bool = False) -> None:
    """Whole networks in one interleaved run, and their predictions -> measure.json."""
    job = Run(config, folder)
    _need(job, "train")
    path = folder / "measure.json"
    if _finished(path, job.made_from("measure"), again):
        return
    started = time.monotonic()
    rows = [Result.of(content) for content in read_json(folder / "networks.json")["results"]]
    rows = [replace(row, predicted=job.calibrated.cost(row.arch)) for row in rows]
    readings = measure_rows(job, rows, [load_network(job, row) for row in rows], "measuring whole networks, %")
    rows = [replace(row, measured=reading) for row, reading in zip(rows, readings, strict=True)]
    for row in rows:
        assert row.measured is not None
        say(f"measure: {row.name}: {milliseconds(row.measured.estimate)}, accuracy {percent(row.accuracy or 0)}")
    _environment(job)
    _write(path, job.made_from("measure"), time.monotonic() - started, {"results": [row.json() for row in rows]})


def report(config: Config, folder: Path, again: bool = False) -> None:
    """report.json, report.md and report.html, from the files of the stages that are there; what is missing is named.

    Raises Unusable where not even the survey is finished.
    """
    job = Run(config, folder)
    lacking = {path.name: _lack(job, stage, path) for stage in STAGES[:-1] for path in job.files(stage)}
    if why := lacking["survey.json"]:
        raise Unusable(why)
    missing = [why for why in lacking.values() if why]
    contents = {name: read_json(folder / name) for name, why in lacking.items() if not why}
    files = {stage: [path.name for path in job.files(stage) if path.name in contents] for stage in STAGES[:-1]}
    command = folder / "command.json"
    searches = [SearchRecord.of(plain(contents[name])) for name in files["search"]]
    made = Report(
        title=f"{config.family.title} on {config.names['data']}, {config.target.device}, {config.target.runtime}",
        command=read_json(command)["command"] if command.exists() else "htas run config.toml",
        results=tuple(_known(job, contents, searches)),
        curves=tuple(CurveRecord.of(each) for each in contents.get("design.json", {}).get("curves", ())),
        searches=tuple(searches),
        machine=read_json(folder / "environment.json"),
        config=config.toml(),
        dataset=config.names["data"],
        stages={stage: float(sum(contents[name]["took"] for name in own)) for stage, own in files.items() if own},
        remarks=(*contents["survey.json"]["doubts"], *(f"Not in this report: {why}." for why in missing)),
        test_images=contents.get("networks.json", {}).get("test_images", 0),
        predictions=tuple(
            Prediction(each["held_out"], each["measured"], each["error"])
            for each in contents.get("cost.json", {}).get("networks", ())
        ),
        blocks={name: site.producers for name, site in job.network.depths.items()},
    )
    for why in missing:
        say(f"report: not there: {why}")
    if not again and _reported(made, folder):
        return
    write(made, folder)
    say(f"report: {folder / 'report.html'}")


def _known(job: Run, contents: Mapping[str, Mapping[str, Any]], searches: Sequence[SearchRecord]) -> list[Result]:
    """The networks, as far as the run has come: measured, trained, found."""
    for name in ("measure.json", "networks.json"):
        if name in contents:
            return [Result.of(content) for content in contents[name]["results"]]
    return [_base_row(job), *(_found_row(job, record) for record in searches)]


def compared(folders: Sequence[Path], out: Path) -> Path:
    """The reports of several runs on one page; its path. Raises Unusable where one is no run, or is there twice."""
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise Unusable(f"these are not {len(folders)} different runs: {listing(map(str, folders))}")
    runs = {}
    for folder in folders:
        if (folder / "config.toml").exists():
            report(load(folder / "config.toml"), folder)
        name = folder.resolve().name
        runs[name if name not in runs else str(folder)] = read_report(folder)
    return write_runs(runs, out)


def export_network(folder: Path, to: str, network: str = "", file: Path | None = None) -> tuple[Path, float]:
    """A trained network of a run as a file: its path, and how far its outputs are from PyTorch's at most."""
    config = load(folder / "config.toml")
    job = Run(config, folder)
    _need(job, "train")
    rows = {row.name: row for row in map(Result.of, read_json(folder / "networks.json")["results"])}
    name = network or config.design.spaces[0]
    if name not in rows:
        raise Unusable(no_such("network of this run", name, rows))
    suffix = {"openvino": "xml"}.get(to, to)
    path = file or folder / f"{slug(name)}.{suffix}"
    if path.suffix != f".{suffix}":
        raise Unusable(
            f"--to {to} writes a file that ends in .{suffix}, got --file {path}; name it so, or leave it out"
        )
    return path, export(load_network(job, rows[name]), job.target.example(), path)


@dataclass(frozen=True)
class Figures:
    """What `htas measure NETWORK` prints of one network."""

    network: str
    runtime: str
    latency: Measurement
    macs: int
    params: int
    others: Mapping[str, Measurement] = field(default_factory=dict)
    """By the name of a further metric: energy, memory, one of the user's own."""


def measure_networks(
    names: Sequence[str], target: Target, rounds: int, classes: int, others: Sequence[str] = ()
) -> list[Figures]:
    """Named networks on a target, in one interleaved run; then by other metrics, which are named."""
    meters = {name: find(metrics, Metric, name)(target) for name in others}  # type: ignore[type-abstract]
    modules = [_named(name, target, classes) for name in names]
    measured = {}
    for name, meter in meters.items():  # first, as a machine without a meter is refused
        with progress(f"{name}, %", 100) as bar:
            measured[name] = meter.measure(modules, on_round=shares(bar))
    with progress("measure, %", 100) as bar:
        latencies = Latency(target, rounds=rounds).measure(modules, on_round=shares(bar))
    counts = [(each.macs, each.count) if isinstance(each, OnnxFile) else counted(each, target) for each in modules]
    return [
        Figures(name, target.runtime, latency, macs, params, dict(zip(measured, rest, strict=True)))
        for name, latency, (macs, params), *rest in zip(names, latencies, counts, *measured.values(), strict=True)
    ]


def _named(name: str, target: Target, classes: int) -> nn.Module:
    """A network by name, or an ONNX file."""
    return OnnxFile(Path(name), target.batch) if name.endswith(".onnx") else networks.build(name, classes)


def inspect_named(name: str, target: Target, classes: int, folder: Path) -> tuple[Path, Shown]:
    """`inspect` of a network by name, for images of the target's shape."""
    target.check()
    torch.manual_seed(0)
    network = trace(networks.build(name, classes), target.example())
    return inspect(network, target, name, folder)


def inspect(network: Network, target: Target, title: str, folder: Path) -> tuple[Path, Shown]:
    """Where the base network's time goes, and what each site could save: the path of inspect.html, and a summary."""
    runtime = open_runtime(target)
    with progress("inspect, %", 100) as bar:
        found = inspection.inspect(
            network,
            lambda seconds: Latency(target, rounds=MOST, limit=seconds),
            EACH + runtime.build_seconds,
            shares(bar),
        )
    facts = {**machine(), **found.whole.context, "htas": __version__}
    shown = [(name, str(value)) for name, value in facts.items()]
    return write_inspection(f"{title}: {target.device}, {target.runtime}", found, shown, folder)


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


# -- rows --------------------------------------------------------------------------------------------------------------


def _rows(job: Run) -> list[Result]:
    """The networks of a run, untrained: base, one per space, and the controls; the order of the report."""
    records = [SearchRecord.of(plain(read_json(job.search_file(name)))) for name in job.config.design.spaces]
    found = [_found_row(job, record) for record in records]
    return [_base_row(job), *found, *_controls(job, found[0])]


def _base_row(job: Run) -> Result:
    return new_row(job, "base", job.network.base, space="-", strategy="given", cost="-")


def _found_row(job: Run, record: SearchRecord) -> Result:
    """The network that a search has found, untrained."""
    remarks = () if record.converged else (f"The search had not converged: {record.why}.",)
    return new_row(
        job, record.space, record.arch, space=record.space, strategy=record.strategy, cost=record.cost, remarks=remarks
    )


def new_row(job: Run, name: str, arch: Arch, **fields: Any) -> Result:
    """A network of the run, untrained."""
    config = job.config
    target = dataclasses.asdict(job.target)
    return Result(
        name=name,
        family=config.family.title,
        arch=arch,
        adds=config.design.adds,
        target={**target, "image": list(job.target.image)},
        macs=job.network.macs(arch),
        params=job.network.params(arch),
        recipe={"name": config.names["train"], **dataclasses.asdict(config.train)},
        seed=config.seed,
        versions={"htas": __version__, **machine()},
        **fields,
    )


def _controls(job: Run, found: Result) -> list[Result]:
    """The widest uniform multiplier and the deepest plain member that are not slower than the found network.

    They are picked by readings of their own, once, and kept in controls.json; the report measures all rows afresh.
    """
    path = job.folder / "controls.json"
    key = digest(job.made_from("search"), found.arch.json())
    if not _finished(path, key, False):
        started = time.monotonic()
        picked = _pick_controls(job, found)
        _write(path, key, time.monotonic() - started, picked)
    content = read_json(path)
    rows = []
    for control in content["controls"]:
        remarks = (content["note"],)
        rows.append(
            new_row(job, control["name"], Arch.of(control["arch"]), space="-", strategy=control["kind"], cost="-",
                 remarks=remarks)
        )  # fmt: skip
    return rows


def _pick_controls(job: Run, found: Result) -> dict[str, Any]:
    candidates = [*_uniform(job), *_plain_members(job)]
    modules = [resize(job.network, arch) for _, _, arch in [("", "", found.arch), *candidates]]
    with progress("looking for controls of equal latency, %", 100) as bar:
        number = rounds([job.calibrated.cost(arch) for arch in (found.arch, *(each for *_, each in candidates))])
        metric = Latency(job.target, rounds=number, seed=job.config.seed)
        readings = metric.measure(modules, on_round=shares(bar))
    limit = readings[0].estimate
    note = (
        f"The widest, or deepest, of its kind whose latency was not above that of {found.name} "
        f"({milliseconds(limit)}) in one interleaved run before training."
    )
    controls = []
    for kind in ("uniform", "plain"):
        if not any(sort == kind for sort, _, _ in candidates):
            continue
        fitting = [
            (title, arch)
            for (sort, title, arch), reading in zip(candidates, readings[1:], strict=True)
            if sort == kind and reading.estimate <= limit
        ]
        if fitting:
            title, arch = fitting[-1]
            controls.append({"kind": kind, "name": f"{kind} {title}", "arch": arch.json()})
        else:
            say(f"controls: every {kind} network is slower than {found.name}")
    return {"controls": controls, "note": note}


def _uniform(job: Run) -> Iterator[tuple[str, str, Arch]]:
    """The base network times 1/16, 2/16 ... e, narrowest first."""
    sites, depths = job.network.widths, job.network.base.depths
    for step in range(1, int(16 * job.config.design.expand) + 1):
        widths = {name: site.near(site.base * step / 16) for name, site in sites.items()}
        yield "uniform", f"x{step / 16:.2f}", Arch(widths, depths)


def _plain_members(job: Run) -> Iterator[tuple[str, str, Arch]]:
    """The base network with 1, 2 ... blocks in every stage, shallowest first."""
    network = job.network  # without depth sites it has no such members
    for blocks in range(1, max((site.base for site in network.depths.values()), default=0) + 1):
        depths = {name: min(blocks, site.base) for name, site in network.depths.items()}
        yield "plain", job.config.family.member(blocks), Arch(network.base.widths, depths)


def train_row(
    job: Run, row: Result, again: bool = False, build: Callable[[], nn.Module] | None = None
) -> tuple[Result, float]:
    """The row with its accuracy, and the seconds of its training; its weights are in networks/.

    What has been trained already is kept. `build` makes a network that is no arch of the base network.
    """
    path, key = job.model_file(row.name), job.training(row.arch, taught=row.name != "base")
    key = digest(key, row.family) if build else key
    if path.exists() and not again:
        _, about = read_tensors(path)
        if about["inputs"] == key:
            return replace(row, accuracy=about["accuracy"], teacher=about["teacher"]), about["seconds"]
    config = job.config
    teacher = None if row.name == "base" or config.distill.alpha == 0 else base_network(job)
    torch.manual_seed(config.seed)
    model = build() if build else resize(job.network, row.arch)
    job.reset(model)
    checkpoint = job.checkpoint(f"train-{row.name}", key)
    if again:
        checkpoint.unlink(missing_ok=True)
    task, seconds = job.data.task, 0.0
    if row.name == "base" and config.family.inherits:
        say(f"train {row.name}: it is trained already")
    elif task.train is not None:
        seconds = _trained_by(task.train, model, teacher, row.name)
    else:
        seconds = fit(
            model, job.data.train, config.train, seed=config.seed, device=job.device, checkpoint=checkpoint, task=task,
            title=f"train {row.name}", teacher=teacher, distill=config.distill if teacher is not None else None,
        )  # fmt: skip
    if task.judge is not None:
        accuracy = float(task.judge(model.eval()))
    else:
        accuracy = evaluate(model, job.data.test, device=job.device, precision=config.train.precision, task=task)
    name = "" if teacher is None else "base"
    about = {"accuracy": accuracy, "inputs": key, "teacher": name, "name": row.name, "seconds": seconds}
    write_tensors(path, model.state_dict(), about)
    checkpoint.unlink(missing_ok=True)
    return replace(row, accuracy=accuracy, teacher=name), seconds


def _trained_by(
    function: Callable[[nn.Module, nn.Module | None], object], model: nn.Module, teacher: nn.Module | None, name: str
) -> float:
    """Seconds of a training by the user's own function."""
    started = time.monotonic()
    say(f"train {name}: by your own function")
    function(model.train(), teacher.eval() if teacher is not None else None)
    return time.monotonic() - started


def base_network(job: Run) -> nn.Module:
    """The trained base network; trained now if it is not yet."""
    train_row(job, _base_row(job))
    model = resize(job.network, job.network.base)
    tensors, _ = read_tensors(job.model_file("base"))
    model.load_state_dict(tensors)
    return model


def load_network(job: Run, row: Result, build: Callable[[], nn.Module] | None = None) -> nn.Module:
    """A trained network of the run, in eval mode, on the CPU; `build` as of `train_row`."""
    model = build() if build else resize(job.network, row.arch)
    tensors, _ = read_tensors(job.model_file(row.name))
    model.load_state_dict(tensors)
    return model.eval()


def counted(module: nn.Module, target: Target) -> tuple[int, int]:
    """Multiply-adds of an image and parameters of a network."""
    (macs,), (params,) = Macs(target).measure([module]), Params(target).measure([module])
    return round(macs.median), round(params.median)


def _title(config: Config) -> str:
    """The strategy, and what it had to keep."""
    asked = listing(f"{metric} {text}" for metric, text in config.constraints.given.items())
    return f"{config.names['strategy']} within {asked}" if asked else config.strategy.title


def measure_rows(job: Run, rows: Sequence[Result], modules: Sequence[nn.Module], title: str) -> list[Measurement]:
    """Whole networks, whose latency is predicted, on the run's target, in one interleaved run."""
    number = rounds([row.predicted or 0.0 for row in rows])
    with progress(title, 100) as bar:
        return Latency(job.target, rounds=number, seed=job.config.seed).measure(modules, on_round=shares(bar))


def check_limits(job: Run) -> None:
    """Say what there is and what is asked; raises ValueError where the limits cannot be kept in one of the spaces."""
    for name, space in job.spaces.items():
        for line in budget.check(limits(job), space, job.network.base):
            say(f"{name}: {line}")


def shares_possible(job: Run) -> tuple[float, float]:
    """The least and the most latency of the first space, over the base network's, by cost.json."""
    space, base = next(iter(job.spaces.values())), job.calibrated.cost(job.network.base)
    whole = [Limit("latency", "100%", job.calibrated, base)]
    return budget.over(whole, budget.leanest(whole, space)), budget.over(whole, space.widest)


def limits(job: Run) -> tuple[Limit, ...]:
    """The constraints as numbers."""
    costs = {metric: job.cost_of(metric) for metric in job.config.constraints.given}
    return budget.limits(job.config.constraints, costs, job.network.base)


def _problem(job: Run, space: Space, supernets: Path | None = None) -> Problem:
    trained = supernets / f"{job.learning(space)}.safetensors" if supernets and job.config.strategy.learning else None
    return Problem(
        network=job.network,
        reset=job.reset,
        data=job.data,
        space=space,
        cost=job.cost,
        device=job.device,
        seed=job.config.seed,
        checkpoint=job.checkpoint(f"search-{space.name}", job.made_from("search")),
        base=lambda: base_network(job),
        title=f"search {space.name}",
        limits=limits(job),
        trained=trained,
    )


# -- files -------------------------------------------------------------------------------------------------------------


def _finished(path: Path, key: str, again: bool) -> bool:
    """Whether a stage's file was made from what is there now."""
    return not again and path.exists() and read_json(path).get("inputs") == key


def lasting(config: Config) -> str:
    """All of a configuration that what is made depends on, as TOML."""
    return _lasting(config.toml())


def _lasting(text: str) -> str:
    """A configuration without what may change in the folder of a run, as it touches nothing that was made."""
    return "\n".join(line for line in text.splitlines() if line.partition(" = ")[0] not in ("store", "undecided"))


def _unfinished(path: Path) -> bool:
    """Whether this is what a killed process leaves of the first file of a run."""
    return path.name.startswith(".config.toml.")


def _reported(made: Report, folder: Path) -> bool:
    """Whether the report that is there says the same."""
    paths = [folder / f"report.{suffix}" for suffix in ("json", "md", "html")]
    if not all(path.exists() for path in paths):
        return False
    try:
        return Report.of(read_json(paths[0])) == made
    except (KeyError, TypeError, ValueError):  # of another version
        return False


def _environment(job: Run) -> None:
    """Seed, versions and machine of the run, as they are now."""
    content = {"seed": job.config.seed, "fingerprint": job.target.fingerprint(), **versions()}
    write_json(job.folder / "environment.json", content)


def _unstarted(path: Path) -> bool:
    """Whether a file of a run's folder is there before any stage has finished."""
    own = ("config.toml", "environment.json", "command.json", PROGRESS, f".{PROGRESS}.part")
    return path.name in own or _unfinished(path)


def _write(path: Path, key: str, took: float, content: Mapping[str, Any]) -> None:
    write_json(path, {"inputs": key, "took": took, **content})
    say(f"{path.stem}: {duration(took)}")


def plain(content: Mapping[str, Any]) -> dict[str, Any]:
    """A stage's file without what every file has."""
    return {name: value for name, value in content.items() if name not in ("format", "inputs", "took")}


def _need(job: Run, *stages: str) -> None:
    """Raise Unusable, naming the verb to run, where a file of these stages is missing or made from older ones."""
    for stage in stages:
        for path in job.files(stage):
            if why := _lack(job, stage, path):
                raise Unusable(why)


def _lack(job: Run, stage: str, path: Path) -> str:
    """Why a file of a stage cannot be used, and the verb to run; empty where it can."""
    if not path.exists():
        return f"{path} does not exist; run `htas {stage} {path.parent}` first"
    if stage in ("survey", "calibrate") and (other := _other_target(job, path)):
        return other
    if stage in ("survey", "measure"):  # of another machine too: only measuring anew depends on the machine
        return ""
    for before in BEFORE[stage]:
        for source in job.files(before):
            if not source.exists():
                return f"{path} was made from {source}, which does not exist; run `htas {before} {path.parent}` first"
    name, key = ("design", digest(job.folder / "design.json")) if stage == "calibrate" else ("inputs", "")
    if read_json(path).get(name) != (key or job.made_from(stage)):
        return f"{path} was made from other files than are there now; run `htas {stage} {path.parent}`"
    return ""


def _other_target(job: Run, path: Path) -> str:
    """Why not, where a file's readings are of another device, runtime or load than this run asks for."""
    context = read_json(path).get("context", {})
    asked = {name: str(getattr(job.target, name)) for name in ("device", "runtime", "precision", "threads", "batch")}
    other = {name: context[name] for name, value in asked.items() if context.get(name, value) != value}
    if not other:
        return ""
    there, here = (listing(f"{name} {values[name]}" for name in other) for values in (context, asked))
    return (
        f"{path} was measured with {there}, and this run asks for {here}; take a folder that was measured so, or "
        f"measure anew: htas {'survey' if path.stem == 'survey' else 'calibrate'} {path.parent} --again"
    )


def _refuse_noise(curves: Sequence[CurveRecord], allowed: float) -> None:
    """Raise ValueError where too many groups were chosen by noise."""
    certain = [sure for curve in curves for sure in curve.certain]
    left = sum(each < DECIDED for each in certain) / max(1, len(certain))
    if left > allowed:
        raise ValueError(
            f"{_decided(curves)}, and {left:.0%} are not, where {allowed:.0%} may be (survey.undecided): this machine "
            "is too noisy to tell; stop other work (htas doctor names it) and survey again with --again, give "
            "--survey.seconds more in another folder, or accept choices made by noise with --survey.undecided=1"
        )


def _decided(curves: Sequence[CurveRecord]) -> str:
    """How many groups of the space `hardware` are decided."""
    certain = [sure for curve in curves for sure in curve.certain]
    sure = sum(each >= DECIDED for each in certain)
    return f"{sure} of {len(certain)} groups decided: their choice is right with a probability of at least {DECIDED}"


def slug(name: str) -> str:
    """A name as a file may have it."""
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name)


def _difference(old: str, new: str) -> str:
    """The first line in which two configurations differ."""
    for before, after in zip(old.splitlines(), new.splitlines(), strict=False):
        if before != after:
            return f"{before} there, {after} here"
    return "their options differ"
