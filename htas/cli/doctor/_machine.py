"""The processor, its memory and its limits, from the kernel's files and psutil."""

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from htas.text import listing, plural, significant
from htas.timing.quota import groups, number, quota, text
from htas.timing.target import affinity

INSTRUCTIONS = (
    *("avx2", "fma3", "avx_vnni", "avx512_f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "avx10_1", "avx10_2"),
    *("amx_int8", "amx_bf16", "amx_fp16"),
    *("neon", "dot", "fp16_arith", "bf16", "i8mm", "sve", "sve2", "sve_bf16", "sme", "sme2"),
)
"""Instructions that convolutions and matrix products use, in PyTorch's names."""
CONTAINERS = (".dockerenv", "run/.containerenv")
"""Files that Docker and Podman leave in every container."""
UNKNOWN = "unknown"


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
        return [
            ("processor", f"{self.processor}{self._kind()}"),
            ("cores", self._cores()),
            ("instructions", listing(self.instructions) or UNKNOWN),
            ("frequency", self._frequency()),
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

    def _kind(self) -> str:
        kind = {True: "virtual machine", False: "", None: "virtual or not: unknown"}[self.virtual]
        parts = [part for part in (kind, "in a container" if self.container else "") if part]
        return f" ({listing(parts)})" if parts else ""

    def _cores(self) -> str:
        logical = UNKNOWN if self.logical is None else str(self.logical)
        physical = UNKNOWN if self.physical is None else str(self.physical)
        among = "" if self.cores is None else f", on {plural(self.cores, 'physical core')}"
        return f"{self.usable} usable{among} (the machine shows: logical {logical}, physical {physical})"

    def _frequency(self) -> str:
        turbo = {True: "on", False: "off", None: UNKNOWN}[self.turbo]
        most = "" if self.megahertz_most is None else f", at most {_gigahertz(self.megahertz_most)}"
        return f"{_gigahertz(self.megahertz)} now{most}; governor {self.governor or UNKNOWN}; turbo {turbo}"


def machine(root: Path = Path("/")) -> Machine:
    """This machine; `root` is where `proc` and `sys` lie."""
    cpus, memory = usable(), psutil.virtual_memory()
    return Machine(
        processor=_cpuinfo(root, "model name") or platform.processor() or platform.machine() or UNKNOWN,
        logical=psutil.cpu_count(),
        physical=psutil.cpu_count(logical=False),
        usable=len(cpus),
        cores=_cores(root, cpus),
        instructions=tuple(name for name in INSTRUCTIONS if torch.cpu.get_capabilities().get(name)),
        governor=_governor(root, cpus),
        megahertz=_megahertz(root, cpus),
        megahertz_most=_mean(_frequencies(root, cpus, "cpuinfo_max_freq")),
        turbo=_turbo(root),
        quota=quota(root),
        memory=memory.total,
        available=memory.available,
        virtual=_virtual(root),
        container=any((root / name).exists() for name in CONTAINERS),
    )


def usable() -> Sequence[int]:
    """The logical processors that this process may run on."""
    return affinity() or range(os.cpu_count() or 1)


def throttled(root: Path = Path("/")) -> int | None:
    """Times that the CPU quota of the control group has stopped it so far."""
    counts = [
        int(words[1])
        for folder in groups(root)
        for line in (text(folder / "cpu.stat") or "").splitlines()
        if len(words := line.split()) == 2 and words[0] == "nr_throttled"
    ]
    return max(counts, default=None)


def _cores(root: Path, cpus: Sequence[int]) -> int | None:
    """The number of physical cores: threads of one core name the same siblings."""
    siblings = [text(_cpu(root, cpu) / "topology/thread_siblings_list") for cpu in cpus]
    return None if None in siblings else len(set(siblings))


def _governor(root: Path, cpus: Sequence[int]) -> str | None:
    governors = {text(_cpu(root, cpu) / "cpufreq/scaling_governor") for cpu in cpus}
    return ", ".join(sorted(name for name in governors if name)) or None


def _megahertz(root: Path, cpus: Sequence[int]) -> float | None:
    now = _mean(_frequencies(root, cpus, "scaling_cur_freq"))
    return number(_cpuinfo(root, "cpu MHz")) if now is None else now


def _frequencies(root: Path, cpus: Sequence[int], name: str) -> list[float]:
    """In MHz; the kernel writes kHz."""
    frequencies = [number(text(_cpu(root, cpu) / "cpufreq" / name)) for cpu in cpus]
    return [kilohertz / 1e3 for kilohertz in frequencies if kilohertz is not None]


def _turbo(root: Path) -> bool | None:
    off = text(root / "sys/devices/system/cpu/intel_pstate/no_turbo")
    if off is not None:
        return off == "0"
    boost = text(root / "sys/devices/system/cpu/cpufreq/boost")
    return None if boost is None else boost == "1"


def _virtual(root: Path) -> bool | None:
    flags = _cpuinfo(root, "flags")
    return None if flags is None else "hypervisor" in flags.split()


def _cpuinfo(root: Path, key: str) -> str | None:
    lines = (line.partition(":") for line in (text(root / "proc/cpuinfo") or "").splitlines())
    return next((value.strip() for name, _, value in lines if name.strip() == key), None)


def _cpu(root: Path, number: int) -> Path:
    return root / f"sys/devices/system/cpu/cpu{number}"


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _gigahertz(megahertz: float | None) -> str:
    return UNKNOWN if megahertz is None else f"{significant(megahertz / 1e3)} GHz"


def _gib(size: int) -> str:
    return f"{significant(size / 2**30)} GiB"
