"""The processor, its limits and the GPUs of this machine, and the load of other programs, from the kernel's files,
psutil, PyTorch and the NVIDIA driver."""

import os
import platform
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch

from htas.text import listing, percent, plural, significant
from htas.timing.contention import OTHERS, STOLEN, Usage
from htas.timing.quota import cpuinfo, groups, number, quota, text
from htas.timing.target import affinity

INSTRUCTIONS = (
    *("avx2", "fma3", "avx_vnni", "avx512_f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "avx10_1", "avx10_2"),
    *("amx_int8", "amx_bf16", "amx_fp16"),
    *("neon", "dot", "fp16_arith", "bf16", "i8mm", "sve", "sve2", "sve_bf16", "sme", "sme2"),
)
"""Instructions that convolutions and matrix products use, in PyTorch's names."""
CONTAINERS = (".dockerenv", "run/.containerenv")
"""Files that Docker and Podman leave in every container."""
BUSIEST = 3
"""Processes that are named."""
UNKNOWN = "unknown"
SWITCH = {True: "on", False: "off", None: UNKNOWN}

# -- the processor -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Machine:
    """A processor and its limits; None where this system does not say."""

    processor: str
    logical: int | None
    """Threads of the processor, also those that this process may not use."""
    physical: int | None
    usable: int
    """Threads that this process may run on."""
    cores: int | None
    """Different physical cores among the usable threads."""
    instructions: tuple[str, ...]
    governor: str | None
    """The kernel's policy for the frequency; several in a row where cores differ."""
    megahertz: float | None
    """The frequency now, the mean over usable cores."""
    megahertz_most: float | None
    turbo: bool | None
    quota: float | None
    """Cores that the control group grants; None also where it grants all."""
    memory: int
    """Bytes."""
    available: int
    """Bytes that programs could take now."""
    virtual: bool | None
    """True under a hypervisor."""
    container: bool

    def rows(self) -> list[tuple[str, str]]:
        """Lines for a terminal: a label and words."""
        virtual = {True: "virtual machine", False: "", None: "virtual or not: unknown"}[self.virtual]
        kind = listing(part for part in (virtual, "in a container" if self.container else "") if part)
        among = "" if self.cores is None else f", on {plural(self.cores, 'physical core')}"
        shows = f"logical {self.logical or UNKNOWN}, physical {self.physical or UNKNOWN}"
        most = "" if self.megahertz_most is None else f", at most {_gigahertz(self.megahertz_most)}"
        policy = f"governor {self.governor or UNKNOWN}; turbo {SWITCH[self.turbo]}"
        return [
            ("processor", f"{self.processor} ({kind})" if kind else self.processor),
            ("cores", f"{self.usable} usable{among} (the machine shows: {shows})"),
            ("instructions", listing(self.instructions) or UNKNOWN),
            ("frequency", f"{_gigahertz(self.megahertz)} now{most}; {policy}"),
            ("CPU quota", "no limit found" if self.quota is None else f"{significant(self.quota)} cores"),
            ("memory", f"{_gib(self.memory)}, {_gib(self.available)} of it available"),
        ]

    def advice(self, threads: int, device: str) -> list[str]:
        """What to change about the machine, or about the target's threads, before a survey on this device."""
        advice: list[str] = []
        if device != "cpu":
            return advice
        if self.quota is not None and self.quota < threads:
            advice.append(
                f"the CPU quota is {significant(self.quota)} cores, and {plural(threads, 'thread')} will be stopped "
                f"for using more: raise the quota, or use --threads {max(1, int(self.quota))}"
            )
        if threads > self.usable:
            advice.append(
                f"{plural(threads, 'thread')} on {plural(self.usable, 'usable core')} take turns: "
                f"use --threads {self.usable}"
            )
        elif self.cores is not None and threads > self.cores:
            advice.append(
                f"{plural(threads, 'thread')} share {plural(self.cores, 'physical core')} in pairs (SMT), which makes "
                f"readings depend on who is paired with whom: use --threads {self.cores}"
            )
        if self.governor is not None and self.governor != "performance":
            advice.append(
                f"the frequency governor is {self.governor}, which follows the load: "
                "sudo cpupower frequency-set -g performance"
            )
        return advice


def machine(root: Path = Path("/")) -> Machine:
    """This machine; `root` is where `proc` and `sys` lie."""
    cpus, memory = usable(), psutil.virtual_memory()
    folder = root / "sys/devices/system/cpu"
    info = cpuinfo(root)

    def each(file: str) -> list[str | None]:
        """A file of every usable thread."""
        return [text(folder / f"cpu{cpu}" / file) for cpu in cpus]

    def megahertz(file: str) -> float | None:
        """The mean of a frequency that the kernel writes in kHz."""
        values = [value for value in map(number, each(f"cpufreq/{file}")) if value is not None]
        return sum(values) / len(values) / 1e3 if values else None

    siblings, governors = each("topology/thread_siblings_list"), each("cpufreq/scaling_governor")
    frequency = megahertz("scaling_cur_freq")
    off, boost = (text(folder / file) for file in ("intel_pstate/no_turbo", "cpufreq/boost"))  # Intel's, or AMD's
    turbo = None if boost is None else boost == "1"
    return Machine(
        processor=info.get("model name") or platform.processor() or platform.machine() or UNKNOWN,
        logical=psutil.cpu_count(),
        physical=psutil.cpu_count(logical=False),
        usable=len(cpus),
        cores=None if None in siblings else len(set(siblings)),  # threads of one core name the same siblings
        instructions=tuple(name for name in INSTRUCTIONS if torch.cpu.get_capabilities().get(name)),
        governor=", ".join(sorted({name for name in governors if name})) or None,
        megahertz=number(info.get("cpu MHz")) if frequency is None else frequency,
        megahertz_most=megahertz("cpuinfo_max_freq"),
        turbo=turbo if off is None else off == "0",
        quota=quota(root),
        memory=memory.total,
        available=memory.available,
        virtual="hypervisor" in info["flags"].split() if "flags" in info else None,
        container=any((root / name).exists() for name in CONTAINERS),
    )


def usable() -> Sequence[int]:
    """The logical processors that this process may run on."""
    return affinity() or range(os.cpu_count() or 1)


def _gigahertz(megahertz: float | None) -> str:
    return UNKNOWN if megahertz is None else f"{significant(megahertz / 1e3)} GHz"


def _gib(size: int) -> str:
    return f"{significant(size / 2**30)} GiB"


# -- other programs ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Snapshot:
    """Processor time up to a moment."""

    usage: Usage
    """Of the whole system."""
    processes: Mapping[int, tuple[str, float]] = field(default_factory=dict)
    """Name and seconds of every other process that is visible, by its number."""
    throttled: int | None = None
    """Times that the CPU quota has stopped this control group."""
    average: tuple[float, ...] = ()
    """Load of the last 1, 5 and 15 minutes, as `uptime` gives it, this program included; empty where there is none."""


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
    """Of the first snapshot."""
    others: float
    """Cores that other programs took, invisible ones included."""
    stolen: float
    """Share of the time that the hypervisor gave to other virtual machines."""
    throttled: int
    """Times that the CPU quota stopped this control group."""
    busiest: tuple[Busy, ...]

    def rows(self) -> list[tuple[str, str]]:
        """What a terminal shows: a label and words."""
        averages = f"{listing(map(significant, self.average))} (over 1, 5 and 15 minutes)"
        return [
            ("load average", averages if self.average else UNKNOWN),
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
    average: tuple[float, ...] = ()
    with suppress(OSError):  # a system that has none
        average = psutil.getloadavg()
    return Snapshot(Usage.now(), others, throttled(), average)


def between(before: Snapshot, after: Snapshot) -> Load:
    """The load from one snapshot to a later one; a process that started in between began at 0 seconds."""
    old, new = before.usage, after.usage
    seconds = max(new.seconds - old.seconds, 1e-9)
    processes = [
        Busy(name, pid, (spent - before.processes.get(pid, (name, 0.0))[1]) / seconds)
        for pid, (name, spent) in after.processes.items()
    ]
    busiest = sorted(processes, key=lambda each: -each.cores)[:BUSIEST]
    return Load(
        average=before.average,
        others=max(0.0, new.others - old.others) / seconds,
        stolen=max(0.0, new.stolen - old.stolen) / seconds / new.cores,
        throttled=max(0, (after.throttled or 0) - (before.throttled or 0)),
        busiest=tuple(each for each in busiest if each.cores > OTHERS),
    )


def throttled(root: Path = Path("/")) -> int | None:
    """Times that the CPU quota of the control group has stopped it so far."""
    files = (text(folder / "cpu.stat") or "" for folder in groups(root))
    counts = [int(count) for file in files for count in re.findall(r"^nr_throttled (\d+)$", file, re.MULTILINE)]
    return max(counts, default=None)


# -- GPUs --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gpu:
    """One GPU; None where the driver does not say."""

    name: str
    memory: int
    """Bytes."""
    driver: str | None = None
    megahertz: int | None = None
    """Clock of its multiprocessors now; low while the GPU is idle."""
    megahertz_most: int | None = None
    persistence: bool | None = None
    """Whether the driver stays loaded when no program uses the GPU."""
    mig: bool | None = None
    """Whether it is cut into slices."""
    usable: bool = True
    """Whether this PyTorch can use it."""

    @property
    def words(self) -> str:
        """One line for a terminal."""
        clock = UNKNOWN if self.megahertz is None else f"{self.megahertz} of {self.megahertz_most} MHz"
        modes = f"persistence {SWITCH[self.persistence]}, MIG {SWITCH[self.mig]}"
        return f"{self.name}: {_gib(self.memory)}, driver {self.driver or UNKNOWN}, clock {clock}, {modes}"

    def advice(self) -> list[str]:
        """What to change before a survey on it."""
        advice = []
        if not self.usable:
            advice.append(f"PyTorch {torch.__version__} cannot use the {self.name}: install a CUDA build of it")
        if self.persistence is False:
            advice.append(
                f"the {self.name} is put to sleep between programs (persistence mode is off), and the first readings "
                "wait for it: sudo nvidia-smi -pm 1"
            )
        if self.mig:
            advice.append(f"the {self.name} is cut into slices (MIG): readings hold for this slice alone")
        return advice


def gpus() -> tuple[Gpu, ...]:
    """Every NVIDIA GPU that the driver or PyTorch shows."""
    with suppress(ImportError):
        import pynvml

        with suppress(pynvml.NVMLError):  # no driver, or a GPU that it has lost
            pynvml.nvmlInit()
            count = pynvml.nvmlDeviceGetCount()
            return tuple(_gpu(pynvml, pynvml.nvmlDeviceGetHandleByIndex(index)) for index in range(count))
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    devices = map(torch.cuda.get_device_properties, range(count))
    return tuple(Gpu(each.name, each.total_memory) for each in devices)


def _gpu(nvml: Any, handle: Any) -> Gpu:
    def answer(question: str, *arguments: Any) -> Any:
        """The answer of the driver; None where this GPU does not support the question."""
        with suppress(nvml.NVMLError):
            return getattr(nvml, question)(*arguments)

    mig, persistence = (answer(f"nvmlDeviceGet{name}Mode", handle) for name in ("Mig", "Persistence"))
    memory = answer("nvmlDeviceGetMemoryInfo", handle)
    return Gpu(
        name=answer("nvmlDeviceGetName", handle) or UNKNOWN,
        memory=0 if memory is None else memory.total,
        driver=answer("nvmlSystemGetDriverVersion"),
        megahertz=answer("nvmlDeviceGetClockInfo", handle, nvml.NVML_CLOCK_SM),
        megahertz_most=answer("nvmlDeviceGetMaxClockInfo", handle, nvml.NVML_CLOCK_SM),
        persistence=None if persistence is None else bool(persistence),
        mig=None if mig is None else bool(mig[0]),
        usable=torch.cuda.is_available(),
    )
