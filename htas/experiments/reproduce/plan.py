"""What to reproduce: where, how long, and on which device; checked without PyTorch."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from htas import text
from htas.errors import UserError
from htas.experiments.arm_tables import BASE, ArmTable
from htas.experiments.plans import Parallel
from htas.files import __version__
from htas.plugins.values import Values
from htas.run.config import Config, Settings, read
from htas.timing.target import Target, machine

if TYPE_CHECKING:
    from htas.experiments.arms import Entry

HERE = Path(str(files("htas.experiments.reproduce")))
PAPER: Mapping[str, Any] = json.loads((HERE / "published.json").read_text(encoding="utf-8"))
"""The printed figures, a row of a table each."""
LENGTHS = {"full": HERE / "full.toml", "short": HERE / "short.toml", "quick": HERE / "quick.toml"}
"""The settings of the paper, and two shorter ones."""
Item = Literal["table2", "fig2", "fig3", "table3", "table4", "table5", "motivation", "int8"]
NAMES: tuple[Item, ...] = get_args(Item)
"""In the order of the page: the widths, the networks, why one measures, and the widths of int8."""
GROUPS, EXPAND = 8, 2.0
"""Of the paper's Table 2."""
DEPTHS = (110, 56, 32)
"""Of the paper's CIFAR ResNets."""
CROSSED = ("cifar100", 32)
"""Data set and depth of Table 5, and of the motivation."""
OWN = {
    "--seed": "seeds go from 0 on, and --seeds is their number",
    "--target.device": "name it with --device",
    "--data.name": "each table has the paper's data set",
}
"""Options that are not for those who call."""
MANUAL, TAS, PUBLISHED, LAMBDA = "manual", "TAS, searched here", "TAS, its published network", "HTAS, lambda 1"


@dataclass(frozen=True)
class Plan:
    """One call of `htas reproduce`."""

    folder: Path
    command: str = "htas reproduce"
    device: Literal["cpu", "cuda"] = "cpu"
    length: str = "short"
    """A key of LENGTHS."""
    seeds: int = 1
    depths: tuple[int, ...] = (32,)
    """Those of the ResNets that are trained; of the others, what needs no training is measured."""
    second: str = ""
    """The other target of Table 5, as options that differ from the first: runtime=onnxruntime,threads=1."""
    overrides: tuple[str, ...] = ()
    """Options of the configuration that hold for all: --target.runtime=openvino, --data.path=FOLDER."""
    parallel: Parallel = field(default_factory=Parallel)
    """How the searches and trainings of a table are done."""

    def __post_init__(self) -> None:
        if odd := [depth for depth in self.depths if depth not in DEPTHS]:
            raise UserError(f"--depths may name {text.listing(map(str, DEPTHS))}, the paper's ResNets, got {odd[0]}")
        if self.seeds < 1:
            raise UserError(f"--seeds must be 1 or more, got {self.seeds}")
        for option in self.overrides:
            name, _, value = option.partition("=")
            if name in OWN or name.startswith("--family."):
                usual = OWN.get(name, "the networks are those of the paper")
                raise UserError(f"htas reproduce takes no {name}, got {value!r}: {usual}")

    def options(self, data: str, depth: int) -> list[str]:
        """The options of a row; where --data.path holds several data sets in folders of their names, that folder."""
        row_options = ["--family.name=cifar_resnet", f"--family.depth={depth}", f"--data.name={data}"]
        for option in self.overrides:
            name, _, value = option.partition("=")
            inner = Path(value) / data
            row_options.append(f"{name}={inner}" if name == "--data.path" and inner.is_dir() else option)
        return [*row_options, f"--target.device={self.device}"]

    def settings(self, data: str, depth: int, *more: str) -> Settings:
        """The options of a row with those of an arm, before PyTorch is imported."""
        return read(LENGTHS[self.length], [*self.options(data, depth), *more])

    def config(self, data: str, depth: int, *more: str) -> Config:
        """The configuration of a row, with options of an arm."""
        return self.settings(data, depth, *more).config()

    def items(self, what: Sequence[str]) -> list[Item]:
        """The items named (`all` for every one), in the order of the page.

        Raises UserError for an item that does not exist, a wrong option, another second target than Table 5 needs, and
        widths that are not those of the paper's groups.
        """
        for name in what:
            if name not in (*NAMES, "all"):
                raise UserError(text.no_such("table or figure", name, (*NAMES, "all")))
        names = [name for name in NAMES if name in what or "all" in what]
        settings = self.settings("cifar10", 32)
        if {"table5", "motivation"} & set(names):
            self.second_target()
        if {"table2", "fig2", "fig3", "int8"} & set(names):
            _check_widths(settings.tables["design"])
        return names

    @property
    def paper(self) -> str:
        """The paper's name for the device."""
        return "gpu" if self.device == "cuda" else "cpu"

    def second_target(self) -> Target:
        """The other target; raises UserError where it is the first one, or no target."""
        target = self.settings(*CROSSED, *self.other()).target
        if target == self.settings(*CROSSED).target:
            raise UserError(f"--second is the target of the first search too, {describe(target)}; name another one")
        return target

    def other(self) -> list[str]:
        """The options of the other target. Raises UserError where they are none."""
        usual = "runtime=onnxruntime" if self.device == "cpu" else "device=cpu"
        parts = [part.strip() for part in (self.second or usual).split(",") if part.strip()]
        if odd := [part for part in parts if "=" not in part]:
            raise UserError(f"--second must be options of a target with commas between, as {usual}, got {odd[0]!r}")
        names = [part.partition("=")[0] for part in parts]
        batch = ["batch=0"] if "device" in names and "batch" not in names else []  # the paper's for that device
        return [f"--target.{part}" for part in [*parts, *batch]]

    def facts(self, target: Target, config: Config | None = None, entries: Iterable["Entry"] = ()) -> dict[str, str]:
        """How a section was made: on what, how long, with which images, by which command."""
        from htas.run.run import packages

        here, versions = machine(), {"htas": __version__, **packages()}
        named = ("htas", "torch", "onnxruntime", "openvino")
        cores = text.plural(int(here["cores"]), "core")
        parts = (here["processor"], cores, here["instructions"], here["gpu"], here["system"])
        facts = {
            "Target": describe(target),
            "Machine": text.listing(str(part) for part in parts if part != "none"),
            "Versions": ", ".join(f"{name} {versions[name]}" for name in named if name in versions),
        }
        if config is not None:
            facts["Length"] = self.length_text(config)
            copies = dict.fromkeys(entry.images or config.data.encoding for entry in entries)
            images = "; others ".join(copies) or config.data.encoding
            facts["Data"] = f"{config.names['data']}: {images}"
        return {**facts, "Date": f"{datetime.now(UTC):%Y-%m-%d}", "Command": self.command}

    def length_text(self, config: Config) -> str:
        """The length of searches and trainings, and the paper's, in words."""
        images = f"{config.split.limit} training images" if config.split.limit else "all training images"
        tested = f", {min(config.split.limit, 10000)} test images" if config.split.limit else ""
        usual = read(LENGTHS["full"], ["--family.name=cifar_resnet", "--data.name=cifar10"]).config()
        (search, training, limit), paper = (
            (each.options()["strategy.epochs"], each.train.length, each.split.limit) for each in (config, usual)
        )
        here = f"{text.plural(search, 'epoch')} of search, {training} of training, {images}{tested}"
        if (search, training, limit) == paper:
            return f"the paper's: {here}"
        name = "full, but" if self.length == "full" else f"{self.length}:"
        return f"{name} {here}; the paper's is {paper[0]} epochs of search and {paper[1]} of training with all images"

    def place(self, data: str, depth: int) -> Path:
        """The folder of a row's searches and trainings, which tables share."""
        return self.folder / f"{data}-resnet{depth}-{self.paper}-{self.length}"

    def printed_on(self, data: str) -> str:
        """The paper's device of a data set: all its results on CIFAR-10 are of its GPU."""
        return "gpu" if data == "cifar10" else self.paper

    def arms(self, data: str, depth: int) -> list[ArmTable]:
        """What a table trains at one depth: the base network, TAS's search and its published network, and two searches
        of the hardware-aware space: with the paper's loss and cost and a lambda of 1, as it gives none; and within a
        budget, that share of the base network's latency, by calibrated latencies."""
        ratio = PAPER["tas_ratio"][data][str(depth)]
        band = ("loss=band", f"ratio={ratio}", "tolerance=0.05", "weight=2.0", "cost=macs")
        return [
            ArmTable(MANUAL, ("--distill.alpha=0",), "network", BASE),
            ArmTable(TAS, ('--design.spaces=["tas"]', "--design.expand=1.0", *(f"--strategy.{each}" for each in band))),
            ArmTable(PUBLISHED, (), "network", self.published(data, depth)),
            ArmTable(LAMBDA),
            self.within(data, depth),
        ]

    def within(self, data: str, depth: int, *options: str, name_of: str = "") -> ArmTable:
        """The search within a budget, the paper's; with further options, its name says of what."""
        share = f"{100 * budget(data, depth, self.printed_on(data)):.0f}"
        name = f"HTAS within {share} %" + (f", for {name_of}" if name_of else "")
        return ArmTable(name, ("--strategy.cost=table", f"--constraints.latency={share}%", *options))

    @staticmethod
    def published(data: str, depth: int) -> str:
        """The network that TAS published."""
        return f"tas:{PAPER['tas_published'][data]}-ResNet{depth}"


def _check_widths(design: Values) -> None:
    """Raise UserError for widths that are not those of the paper's groups."""
    groups, expand = design["groups"], design["expand"]
    if (groups, expand, design["widths"]) != (GROUPS, EXPAND, {}):
        raise UserError(
            f"the paper's Table 2, Fig. 2 and Fig. 3, and int8, have {GROUPS} groups of widths up to {EXPAND:g} times "
            f"the base width, got --design.groups={groups}, --design.expand={expand:g}; leave those options out"
        )


def budget(data: str, depth: int, device: str) -> float:
    """The share of the manual network's latency that the paper's own network has, in whole percent.

    Table 3, of CIFAR-10, has no manual network, and the latency of Table 4's serves.
    """
    rows = [*PAPER["table4"], *(PAPER["table3"] if data == "cifar10" else ())]
    latencies = {row["method"]: row["latency_ms"] for row in rows if (row["depth"], row["device"]) == (depth, device)}
    return round(float(latencies["htas"] / latencies["manual"]), 2)


def describe(target: Target) -> str:
    """`cpu, eager, fp32, batch 4, 2 threads`."""
    threads = f", {target.threads} thread{'s' if target.threads > 1 else ''}" if target.device == "cpu" else ""
    return f"{target.device}, {target.runtime}, {target.precision}, batch {target.batch}{threads}"
