"""What a device says of itself, checked."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, TypeVar

from htas.files import RecordError, from_json
from htas.timing.remote.agent import MOST_LOOPS
from htas.timing.remote.pipe import Lost, printable

if TYPE_CHECKING:
    from htas.timing.remote.pipe import Header

T = TypeVar("T")
Readings = tuple[tuple[float, ...], tuple[int, ...]]
"""Of one program in a row: the seconds of each, and its number of calls."""


@dataclass(frozen=True)
class State:
    """A device at one moment; None where it does not say."""

    seconds: float
    """Of its steady clock."""
    busy: float
    """Processor seconds of all programs since it was started; 0 where it does not count."""
    stolen: float
    agent: float
    """Processor seconds of the agent."""
    average: tuple[float, ...]
    hertz: float | None
    celsius: float | None
    throttling: tuple[str, ...]
    """In words what slows it down now."""
    hot: bool
    """Whether that is heat."""
    throttled: float
    """Times that it was slowed down, where it counts them."""


@dataclass(frozen=True)
class Facts:
    """A device: what it is, what is installed and how it was when it was asked."""

    processor: str
    emulated: bool
    """Whether a processor of another kind computes what this one would."""
    board: str
    architecture: str
    affinity: tuple[int, ...]
    cores: int
    logical: int | None
    physical: int | None
    flags: tuple[str, ...]
    governor: str
    hertz_most: float | None
    turbo: bool | None
    quota: float | None
    memory: int
    """Bytes."""
    available: int
    virtual: bool | None
    container: bool
    system: str
    python: str
    executable: str
    managed: bool
    """Whether pip installs nothing beside it (PEP 668), as in Debian from 12 on."""
    versions: Mapping[str, str]
    """Of numpy and the runtimes that are installed there, by package."""
    name: str
    identity: str
    """A hash of what no other device has."""
    boot: str
    """Of the time since it was started; another one after each start. Empty where it does not say."""
    pid: int
    """Of the agent."""
    meter: str
    """The name of what tells the energy; empty where there is nothing."""
    locked: str
    """A meter that the user there may not read; empty where there is none."""
    state: State

    @property
    def machine(self) -> dict[str, str]:
        """What readings depend on beside the runtime, in the words of `machine()`."""
        return {
            "processor": self.processor,
            "cores": str(self.cores),
            "quota": "none" if self.quota is None else f"{self.quota:g} cores",
            "architecture": self.architecture,
            "gpu": "none",
            "system": self.system,
            "python": self.python,
            "numpy": self.versions.get("numpy", "none"),
            "measured on": f"{self.name} ({self.identity})",
        }


def checked(reply: "Header", kind: type[T]) -> T:
    """A reply as a record; raises Lost where it lacks something, or has something of another kind."""
    try:
        return from_json(_plain(reply), kind, "the answer")
    except (RecordError, RecursionError) as error:
        words = printable(getattr(error, "reason", "it has no end"), 200)
        raise Lost(f"sent an answer that makes no sense: {words}") from error


def _plain(value: object) -> object:
    """The same, with words that can be shown on a terminal; raises Lost for a number that is none."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Mapping):
        return {printable(str(name)): _plain(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, int | float) and not abs(value) < 1e18:
        raise Lost("sent an answer that makes no sense: a number without end")
    return value


def checked_readings(reply: "Header", count: int, repeat: int) -> list[Readings]:
    """Raises Lost where a reply has no readings for each turn."""
    lasted, loops = reply.get("lasted"), reply.get("loops")
    if not isinstance(lasted, list) or not isinstance(loops, list) or not len(lasted) == len(loops) == count:
        raise Lost("sent readings of other programs")
    for seconds, calls in zip(lasted, loops, strict=True):
        if not isinstance(seconds, list) or not isinstance(calls, list) or not len(seconds) == len(calls) == repeat:
            raise Lost("sent too few readings, or too many")
        if not all(isinstance(each, float) and isfinite(each) and each >= 0 for each in seconds):
            raise Lost(f"sent readings that no clock gives: {str(seconds)[:100]}")
        if not all(type(each) is int and 1 <= each <= MOST_LOOPS for each in calls):
            raise Lost("sent readings of no calls, or of too many")
    return [(tuple(seconds), tuple(calls)) for seconds, calls in zip(lasted, loops, strict=True)]
