"""Other programs that use the processor during a measurement."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import psutil

from htas.cli.doctor._machine import throttled
from htas.text import listing, percent, plural, significant
from htas.timing.contention import OTHERS, STOLEN, Usage

BUSIEST = 3
"""Processes that are named."""


@dataclass(frozen=True)
class Snapshot:
    """Processor time up to a moment."""

    usage: Usage
    """Of the whole system."""
    processes: Mapping[int, tuple[str, float]] = field(default_factory=dict)
    """Name and seconds of every other process that is visible, by its number."""
    throttled: int | None = None
    """Times that the CPU quota has stopped this control group."""


@dataclass(frozen=True)
class Busy:
    """A process and the cores it took."""

    name: str
    pid: int
    cores: float


@dataclass(frozen=True)
class Load:
    """The load between two snapshots."""

    average: tuple[float, ...]
    """Of the last 1, 5 and 15 minutes, as `uptime` gives it, this program included; empty where there is none."""
    others: float
    """Cores that other programs took, invisible ones included."""
    stolen: float
    """Share of the time that the hypervisor gave to other virtual machines."""
    throttled: int
    """Times that the CPU quota stopped this control group."""
    busiest: tuple[Busy, ...]

    def rows(self) -> list[tuple[str, str]]:
        """What a terminal shows: a label and words."""
        averages = listing(significant(value) for value in self.average) or "unknown"
        return [
            ("load average", f"{averages} (over 1, 5 and 15 minutes)" if self.average else averages),
            ("other work", f"{significant(self.others)} cores during the test{self._names()}"),
            ("stolen", f"{percent(self.stolen, 1)} of the time went to other virtual machines"),
        ]

    def advice(self, threads: int, usable: int) -> list[str]:
        """What to change before a survey with `threads` threads on `usable` cores."""
        advice = []
        if self.others > OTHERS:
            advice.append(f"other programs take {significant(self.others)} cores{self._names()}: stop them, or wait")
            free = max(1, int(usable - self.others))
            if threads > free:
                advice.append(
                    f"the threads of a layer wait for the slowest of them, and other programs leave too few cores for "
                    f"{threads}: use --threads {free} if they must go on"
                )
        if self.stolen > STOLEN:
            advice.append(
                f"the host gave {percent(self.stolen, 1)} of the time to other virtual machines: nothing in here can "
                "change that; try another hour or a machine with cores of its own"
            )
        if self.throttled:
            advice.append(
                f"the CPU quota stopped this program {plural(self.throttled, 'time')} during the test: "
                "raise the quota or use fewer threads"
            )
        return advice

    def _names(self) -> str:
        names = listing(f"{each.name} (pid {each.pid}) {significant(each.cores)}" for each in self.busiest)
        return f", the most by {names}" if names else ""


def snapshot() -> Snapshot:
    """The counters now."""
    ours = {psutil.Process().pid, *(child.pid for child in psutil.Process().children(recursive=True))}
    others = {
        process.pid: (process.info["name"] or "?", process.info["cpu_times"].user + process.info["cpu_times"].system)
        for process in psutil.process_iter(["name", "cpu_times"])
        if process.pid not in ours and process.info["cpu_times"] is not None
    }
    return Snapshot(Usage.now(), others, throttled())


def between(before: Snapshot, after: Snapshot, average: tuple[float, ...] = ()) -> Load:
    """The load from one snapshot to a later one."""
    old, new = before.usage, after.usage
    seconds = max(new.seconds - old.seconds, 1e-9)
    return Load(
        average=average,
        others=max(0.0, new.others - old.others) / seconds,
        stolen=max(0.0, new.stolen - old.stolen) / seconds / new.cores,
        throttled=max(0, (after.throttled or 0) - (before.throttled or 0)),
        busiest=_busiest(before, after, seconds),
    )


def averages() -> tuple[float, ...]:
    """The system's load averages; nothing where it has none."""
    try:
        return tuple(psutil.getloadavg())
    except OSError:
        return ()


def _busiest(before: Snapshot, after: Snapshot, seconds: float) -> tuple[Busy, ...]:
    """The processes that took most; one that started in between began at 0 seconds."""
    processes = [
        Busy(name, pid, (spent - before.processes.get(pid, (name, 0.0))[1]) / seconds)
        for pid, (name, spent) in after.processes.items()
    ]
    processes.sort(key=lambda each: -each.cores)
    return tuple(each for each in processes[:BUSIEST] if each.cores > OTHERS)
