"""The NVIDIA GPUs of this machine, by PyTorch and, where nvidia-ml-py is installed, by the driver."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from htas.text import significant

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Gpu:
    """One GPU; None where nothing tells."""

    name: str
    memory: int
    """Bytes."""
    driver: str | None = None
    megahertz: int | None = None
    """Of its multiprocessors, now: low while it has nothing to do."""
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
        parts = [
            f"{significant(self.memory / 2**30)} GiB",
            f"driver {self.driver or UNKNOWN}",
            f"clock {clock}",
            f"persistence {_on(self.persistence)}",
            f"MIG {_on(self.mig)}",
        ]
        return f"{self.name}: {', '.join(parts)}"

    def advice(self) -> list[str]:
        """What to change before a survey on it."""
        found = []
        if not self.usable:
            found.append(f"PyTorch {torch.__version__} cannot use the {self.name}: install a CUDA build of it")
        if self.persistence is False:
            found.append(
                f"the {self.name} is put to sleep between programs (persistence mode is off), and the first readings "
                "wait for it: sudo nvidia-smi -pm 1"
            )
        if self.mig:
            found.append(f"the {self.name} is cut into slices (MIG): readings hold for this slice alone")
        return found


def gpus() -> tuple[Gpu, ...]:
    """Every NVIDIA GPU that the driver or PyTorch shows."""
    try:
        import pynvml
    except ImportError:
        return _by_torch()
    try:
        pynvml.nvmlInit()
        return _by_nvml(pynvml)
    except pynvml.NVMLError:  # no driver, or a GPU that it has lost
        return _by_torch()


def _by_torch() -> tuple[Gpu, ...]:
    if not torch.cuda.is_available():
        return ()
    found = (torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count()))
    return tuple(Gpu(each.name, each.total_memory) for each in found)


def _by_nvml(nvml: Any) -> tuple[Gpu, ...]:
    handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    return tuple(_gpu(nvml, handle) for handle in handles)


def _gpu(nvml: Any, handle: Any) -> Gpu:
    def asked(question: Callable[[], Any]) -> Any:
        """The answer, or None: many are not supported by every GPU."""
        try:
            return question()
        except nvml.NVMLError:
            return None

    clock = nvml.NVML_CLOCK_SM
    mig = asked(lambda: nvml.nvmlDeviceGetMigMode(handle))
    persistence = asked(lambda: nvml.nvmlDeviceGetPersistenceMode(handle))
    memory = asked(lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
    return Gpu(
        name=asked(lambda: nvml.nvmlDeviceGetName(handle)) or UNKNOWN,
        memory=0 if memory is None else memory.total,
        driver=asked(nvml.nvmlSystemGetDriverVersion),
        megahertz=asked(lambda: nvml.nvmlDeviceGetClockInfo(handle, clock)),
        megahertz_most=asked(lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, clock)),
        persistence=None if persistence is None else bool(persistence),
        mig=None if mig is None else bool(mig[0]),
        usable=torch.cuda.is_available(),
    )


def _on(state: bool | None) -> str:
    return {True: "on", False: "off", None: UNKNOWN}[state]
