"""This machine, its noise now, and whether a survey started now would be decided."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

import htas.runtimes
from htas import plugins
from htas.cli.doctor._device import device_machine, load_between
from htas.cli.doctor._machine import Gpu, Load, Machine, between, gpus, machine, snapshot
from htas.cli.doctor._noise import Noise, Outlook, listen, outlook
from htas.errors import UserError
from htas.files import JsonObject
from htas.metrics.energy import meter
from htas.runtimes import Runtime, open_runtime
from htas.spaces.design import Design
from htas.text import listing
from htas.timing.remote.device import device
from htas.timing.remote.needs import NEEDS, install
from htas.timing.remote.power import RemoteMeter
from htas.timing.target import Target

__all__ = ["Findings", "examine"]


@dataclass(frozen=True)
class Availability:
    """A runtime or a meter, and whether it works here."""

    name: str
    there: bool
    about: Mapping[str, str] = field(default_factory=dict)
    """Versions and settings."""
    trouble: str = ""
    """Why it cannot be used, and what to do."""

    @property
    def words(self) -> str:
        """One line for a terminal."""
        if not self.there:
            return f"not here: {self.trouble}"
        return listing(f"{key} {value}" for key, value in self.about.items()) or "there"


@dataclass(frozen=True)
class Findings:
    """The facts about a machine and a target; `lines` and `json` print them."""

    target: Target
    machine: Machine
    load: Load
    gpus: tuple[Gpu, ...]
    runtimes: tuple[Availability, ...]
    meters: tuple[Availability, ...]
    noise: Noise | None
    """None where the target cannot run here."""
    outlook: Outlook | None
    trouble: str = ""
    """Why the target cannot run here."""

    @property
    def advice(self) -> tuple[str, ...]:
        """What to change before a survey, the most useful first; empty where nothing needs it."""
        threads = self.target.threads if self.target.device == "cpu" else 1
        advice = [*self.load.advice(threads, self.machine.usable), *self.machine.advice(threads, self.target.device)]
        if self.target.device == "cuda":
            advice += [words for gpu in self.gpus for words in gpu.advice()]
        if not advice and self.noise is not None and self.noise.level != "quiet":
            advice.append(
                "nothing visible from here explains the noise; it may be heat, or another virtual machine: "
                "try again later, and give the survey more time"
            )
        return tuple(advice)

    def json(self) -> JsonObject:
        """As plain JSON values; null is unknown."""
        forecast = self.outlook and {
            **asdict(self.outlook),
            "uncertainty": self.outlook.uncertainty,
            "decided": self.outlook.decided,
        }
        noise = self.noise and self.noise.json()
        return {**asdict(self), "noise": noise, "outlook": forecast, "advice": list(self.advice)}

    def lines(self) -> list[str]:
        """For a terminal: the machine in columns, then sentences."""
        gpu = [("GPU", each.words) for each in self.gpus] or [("GPU", "none found")] * (not self.target.host)
        return [
            *_block(self.target.host or "this machine", [*self.machine.rows(), *self.load.rows(), *gpu]),
            *_block("runtimes", [(each.name, each.words) for each in self.runtimes]),
            *(_block("energy meters", [(each.name, each.words) for each in self.meters]) if self.meters else []),
            *self._test(),
            *(["", "what to try:", *(f"- {words}" for words in self.advice)] if self.advice else []),
        ]

    def _test(self) -> list[str]:
        if self.noise is None or self.outlook is None:
            return [f"the noise was not tested: {self.trouble}"]
        target = self.target
        how = (target.runtime, target.device, target.precision, f"batch {target.batch}", f"threads {target.threads}")
        title = f"readings now ({', '.join(how)})"
        return [*_block(title, self.noise.rows()), self.noise.verdict, self.outlook.words]


def examine(target: Target, seconds: float = 10.0) -> Findings:
    """Look at the machine, and read a few layers on the target for about `seconds`.

    Raises UserError for a runtime that does not exist; one that is not installed is a finding.
    """
    if not seconds > 0:
        raise UserError(f"seconds must be above 0 (10 is usual), got {seconds}")
    plugins.find(htas.runtimes, Runtime, target.runtime)  # type: ignore[type-abstract]
    if target.host:
        return _examine_device(target.resolved(), seconds)
    before = snapshot()
    noise, trouble = None, ""
    try:
        noise = listen(target, seconds)
    except Exception as error:  # a broken runtime may raise anything; that is a finding
        trouble = _line(error)
    load = between(before, snapshot())
    forecast = outlook(noise.readings, Design.ties, shortest=open_runtime(target).timer().shortest) if noise else None
    cards = gpus()
    return Findings(
        target=target,
        machine=machine(),
        load=load,
        gpus=cards,
        runtimes=tuple(runtimes(target)),
        meters=tuple(
            _available(device, lambda name: {"meter": meter(name).name})
            for device in (["cpu", "cuda"] if cards else ["cpu"])
        ),
        noise=noise,
        outlook=forecast,
        trouble=trouble,
    )


def _examine_device(target: Target, seconds: float) -> Findings:
    """The machine of target.host; raises UserError where it cannot be reached."""
    with device(target.host).connected():
        before = device(target.host).look()
        noise, trouble = None, ""
        try:
            noise = listen(target, seconds)
        except Exception as error:  # what is missing there is a finding
            trouble = _line(error)
        load = load_between(target.host, before, device(target.host).look())
    return Findings(
        target=target,
        machine=device_machine(target.host),
        load=load,
        gpus=(),
        runtimes=tuple(_installed(target.host)),
        meters=(_available("device", lambda name: {"meter": RemoteMeter(device(target.host)).name}),),
        noise=noise,
        outlook=outlook(noise.readings, Design.ties) if noise else None,
        trouble=trouble,
    )


def _installed(host: str) -> list[Availability]:
    """What runtimes need there."""
    facts = device(host).facts
    needed = {"numpy": ("numpy",), **{name: (need.package, *need.besides) for name, need in NEEDS.items()}}
    found = []
    for name, packages in needed.items():
        missing = [each for each in packages if each not in facts.versions]
        versions = {each: facts.versions[each] for each in packages if not missing}
        found.append(Availability(name, not missing, versions, f"install it there: {install(facts, *missing)}"))
    return found


def runtimes(target: Target) -> list[Availability]:
    """Every runtime of the package, and the target's own class if it names one."""

    def facts(name: str) -> Mapping[str, str]:
        options = target.options if name == target.runtime else {}
        return open_runtime(replace(target, runtime=name, options=options)).describe()

    names = dict.fromkeys([*plugins.names(htas.runtimes), target.runtime])
    return [_available(name, facts, f"; pip install 'htas[{name}]'") for name in names]


def _available(name: str, about: Callable[[str], Mapping[str, str]], remedy: str = "") -> Availability:
    """A runtime or a meter, by what it says of itself; `remedy` is for one whose library is not installed."""
    try:
        return Availability(name, True, dict(about(name)))
    except Exception as error:  # a broken installation may raise anything; that is a finding
        kind = "" if isinstance(error, ImportError | UserError) else f"{type(error).__name__}: "
        trouble = f"{kind}{_line(error)}{remedy if isinstance(error, ImportError) else ''}"
        return Availability(name, False, trouble=trouble)


def _line(error: Exception) -> str:
    """The message of any exception in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _block(title: str, rows: Sequence[tuple[str, str]]) -> list[str]:
    """A title, rows in two columns, and an empty line."""
    width = max(len(label) for label, _ in rows)
    return [title, *(f"  {label:<{width}}  {words}" for label, words in rows), ""]
