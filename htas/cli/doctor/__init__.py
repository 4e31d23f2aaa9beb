"""This machine, its noise now, and whether a survey started now would be decided."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import htas.runtimes
from htas.cli.doctor._available import Availability, meters, runtimes
from htas.cli.doctor._gpus import Gpu, gpus
from htas.cli.doctor._load import Load, averages, between, snapshot
from htas.cli.doctor._machine import Machine, machine
from htas.cli.doctor._noise import Noise, listen
from htas.cli.doctor._outlook import Outlook, outlook
from htas.errors import UserError
from htas.files import JsonObject
from htas.plugins import find
from htas.runtimes import Runtime, open_runtime
from htas.spaces.design import Design
from htas.timing.target import Target

__all__ = ["Findings", "examine"]


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
        gpu = [("GPU", each.words) for each in self.gpus] or [("GPU", "none found")]
        return [
            *_block("this machine", [*self.machine.rows(), *self.load.rows(), *gpu]),
            *_block("runtimes", [(each.name, each.words) for each in self.runtimes]),
            *_block("energy meters", [(each.name, each.words) for each in self.meters]),
            *self._test(),
            *(["", "what to try:", *(f"- {words}" for words in self.advice)] if self.advice else []),
        ]

    def _test(self) -> list[str]:
        if self.noise is None or self.outlook is None:
            return [f"the noise was not tested: {self.trouble}"]
        target = self.target
        title = f"readings now ({target.runtime}, {target.device}, batch {target.batch}, threads {target.threads})"
        return [*_block(title, self.noise.rows()), self.noise.verdict, self.outlook.words]


def examine(target: Target, seconds: float = 10.0) -> Findings:
    """Look at the machine, and read a few layers on the target for about `seconds`.

    Raises UserError for a runtime that does not exist; one that is not installed is a finding.
    """
    if not seconds > 0:
        raise UserError(f"seconds must be above 0 (10 is usual), got {seconds}")
    find(htas.runtimes, Runtime, target.runtime)  # type: ignore[type-abstract]
    average, before = averages(), snapshot()
    noise, trouble = _listened(target, seconds)
    load = between(before, snapshot(), average)
    forecast = outlook(noise.readings, Design.ties, shortest=open_runtime(target).timer().shortest) if noise else None
    cards = gpus()
    return Findings(
        target=target,
        machine=machine(),
        load=load,
        gpus=cards,
        runtimes=tuple(runtimes(target)),
        meters=tuple(meters(["cpu", "cuda"] if cards else ["cpu"])),
        noise=noise,
        outlook=forecast,
        trouble=trouble,
    )


def _listened(target: Target, seconds: float) -> tuple[Noise | None, str]:
    """The noise; or None, and why the target cannot be read."""
    try:
        return listen(target, seconds), ""
    except Exception as error:  # a broken runtime may raise anything; that is a finding
        return None, " ".join(str(error).split()) or type(error).__name__


def _block(title: str, rows: Sequence[tuple[str, str]]) -> list[str]:
    """A title, rows in two columns, and an empty line."""
    width = max(len(label) for label, _ in rows)
    return [title, *(f"  {label:<{width}}  {words}" for label, words in rows), ""]
