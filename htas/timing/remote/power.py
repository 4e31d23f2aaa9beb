"""The energy that a device's own meter tells, from what it shows while a program runs there."""

from dataclasses import dataclass
from math import isfinite

from htas.errors import UserError
from htas.timing.bench import Call, Timer
from htas.timing.remote.device import PATIENCE, Device, RemoteProgram
from htas.timing.remote.pipe import Header, Lost

STILL = 5.0
"""Seconds of work without a move after which a meter is rejected."""


@dataclass(frozen=True)
class RemoteMeter:
    """The meter of a device, read by its agent; raises UserError where there is none that can be read."""

    device: Device

    def __post_init__(self) -> None:
        facts = self.device.facts
        if not facts.meter and facts.locked:
            raise UserError(
                f"energy needs a meter, and on {self.device} {facts.locked} may be read by root alone; allow it until "
                f"the next boot, there: sudo chmod a+r {facts.locked}"
            )
        if not facts.meter:
            raise UserError(
                f"energy needs a meter, and {self.device} shows none: neither a processor package in "
                "/sys/class/powercap nor an INA power sensor, such as a Jetson's; leave energy out"
            )

    @property
    def name(self) -> str:
        """Name for reports."""
        return self.device.facts.meter

    @property
    def chunk(self) -> float:
        """Seconds of calls between two looks; a sensor of power takes longer to read than a counter."""
        return 0.01 if self.name.startswith("RAPL") else 0.1

    def joules_of(self, run: Call, loops: int, timer: Timer, seconds: float) -> float:
        """Joules per call of a program that runs for `seconds` without a pause, `loops` calls between two looks."""
        assert isinstance(run, RemoteProgram)
        header = {"do": "draw", "loops": loops, "seconds": seconds, "patience": STILL}
        deadline = self.device.deadlines.read + PATIENCE * (seconds + STILL)
        energy = self.device.ask(run, header, b"", deadline, lambda reply, _: joules(reply))
        if energy is None:
            raise UserError(
                f"energy needs a meter that moves, and {self.name} of {self.device} has stood still for {STILL:.0f} "
                "seconds of work; leave energy out"
            )
        return energy


def joules(reply: Header) -> float | None:
    """Joules per call: of counters in microjoules, or the mean of watts times seconds. None where nothing moved; raises
    Lost where the reply makes no sense."""
    looks, ranges, calls, lasted = (reply.get(name) for name in ("looks", "ranges", "calls", "lasted"))
    energy: float
    if not isinstance(looks, list) or not isinstance(ranges, list) or type(calls) is not int:
        raise Lost("sent no readings of its meter")
    if not all(isinstance(look, list) and len(look) == len(looks[0]) and all(map(_number, look)) for look in looks):
        raise Lost("sent readings that no meter gives")
    if len(looks) < 2 or calls < 1:
        return None
    if not ranges:
        if not isinstance(lasted, float) or not _number(lasted):
            raise Lost("sent the power of no time")
        energy = sum(map(sum, looks[1:])) / (len(looks) - 1) * lasted / calls
        return energy or None
    if len(ranges) != len(looks[0]) or not all(_number(most) and most > 0 for most in ranges):
        raise Lost("sent counters without an end")
    changes = zip(looks[0], looks[-1], ranges, strict=True)
    energy = sum((new - old) % most for old, new, most in changes) / 1e6 / calls
    return energy


def _number(value: object) -> bool:
    return isinstance(value, int | float) and isfinite(value) and value >= 0
