"""What happened to the machine during a measurement: who else used it, and whether its clock moved."""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch

from htas.timing.target import usable_cores

OTHERS = 0.1
"""Cores that other processes may use without a remark."""
STOLEN = 0.01
"""Share of the cores' time that a hypervisor may give to others without a remark."""
CLOCK = 0.05
"""Share by which a clock may move without a remark."""
LOOKS = 1.0
"""Seconds between two looks at the clock, at least."""


@dataclass
class Watch:
    """Counts, from its creation, the time that other processes and other machines on the same hardware use."""

    device: str = "cpu"
    """Whose clock is watched."""
    _start: "Usage" = field(default_factory=lambda: Usage.now())
    _clocks: list[float] = field(default_factory=list)
    _looked: float = field(default_factory=lambda: time.monotonic())

    def look(self) -> None:
        """Note the clock, once a second at most. Call it while the device works, as an idle one slows down."""
        if time.monotonic() - self._looked >= LOOKS:
            self._clocks.append(clock(self.device))
            self._looked = time.monotonic()

    def remarks(self) -> tuple[str, ...]:
        """What may mislead, and what to do; empty where the machine was quiet, or the system does not report it."""
        return (*remarks(self._start, Usage.now()), *clock_remarks(self._clocks, self.device))

    def context(self) -> Mapping[str, str]:
        """What else belongs to the context of a measurement."""
        return {}


def clock(device: str) -> float:
    """Hertz of the fastest core, or of the GPU; 0 where the system does not say."""
    import psutil

    with suppress(Exception):  # every driver has errors of its own, and none of them may spoil a reading
        if device == "cuda":
            return 1e6 * float(torch.cuda.clock_rate())
        return 1e6 * max(float(core.current) for core in psutil.cpu_freq(percpu=True))
    return 0.0


def clock_remarks(clocks: Sequence[float], device: str) -> tuple[str, ...]:
    """Remarks on a clock in hertz at several moments, 0 where it is unknown."""
    rates = [each for each in clocks if each > 0]
    if not rates or max(rates) <= (1 + CLOCK) * min(rates):
        return ()
    whose, fix = (
        ("GPU", "nvidia-smi -lgc") if device == "cuda" else ("processor", "cpupower frequency-set -g performance")
    )
    return (
        f"the {whose}'s clock moved between {min(rates) / 1e9:.2f} and {max(rates) / 1e9:.2f} GHz meanwhile; "
        f"fix it ({fix}), or let the machine warm up first",
    )


def remarks(start: "Usage", end: "Usage") -> tuple[str, ...]:
    """Remarks on the others that used the machine between two moments."""
    seconds, cores = end.seconds - start.seconds, end.cores
    if seconds <= 0:
        return ()
    sentences = []
    if (others := (end.others - start.others) / seconds) > OTHERS:
        sentences.append(f"other processes used {others:.2f} of {cores} cores meanwhile; stop them")
    if (stolen := (end.stolen - start.stolen) / seconds / cores) > STOLEN:
        sentences.append(f"the hypervisor gave {stolen:.0%} of this machine's time to others; measure at another hour")
    return tuple(sentences)


@dataclass(frozen=True)
class Usage:
    """Processor seconds up to a moment."""

    seconds: float
    """Of the clock on the wall."""
    cores: int
    others: float
    """Used by other processes of this machine."""
    stolen: float
    """Given to other machines by the hypervisor."""

    @staticmethod
    def now() -> "Usage":
        """As the system counts; whatever it does not count is 0."""
        import psutil

        cores = psutil.cpu_count() or 1
        times: Any = psutil.cpu_times()
        busy = sum(getattr(times, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq"))
        others = busy - _own() if usable_cores() == cores else 0.0  # on cores that are not ours they do not count
        return Usage(time.monotonic(), cores, others, getattr(times, "steal", 0.0))


@contextmanager
def priority(niceness: int = -15) -> Iterator[bool]:
    """Give all threads of this process priority over others, where the system allows; yields whether it does.

    While another process keeps one of two cores busy, every call of two threads waits for its turn on that core.
    """
    before: dict[int, int] = {}
    allowed = False
    for thread in _threads():
        with suppress(OSError):  # it is not allowed, or the thread has ended
            before[thread] = os.getpriority(os.PRIO_PROCESS, thread)
            os.setpriority(os.PRIO_PROCESS, thread, niceness)
            allowed = True
    usual = before.get(os.getpid(), 0)
    try:
        yield allowed
    finally:
        for thread in _threads() if allowed else ():  # threads that started since have inherited it
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, thread, before.get(thread, usual))


def _threads() -> list[int]:
    """Of this process, by number; none where the system does not say."""
    try:
        return [int(name) for name in os.listdir("/proc/self/task")]
    except OSError:
        return []


def _own() -> float:
    """Processor seconds of this process and its children, those that have ended included."""
    import psutil

    used = 0.0
    this = psutil.Process()
    for process in [this, *this.children(recursive=True)]:
        with suppress(psutil.Error):
            times = process.cpu_times()
            used += times.user + times.system + times.children_user + times.children_system
    return used
