"""The NVIDIA GPUs of this machine, by PyTorch and, where nvidia-ml-py is installed, by the driver."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from htas.text import significant

UNKNOWN = "unknown"


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
    try:
        import pynvml
    except ImportError:
        return _by_torch()
    try:
        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
        return tuple(_gpu(pynvml, pynvml.nvmlDeviceGetHandleByIndex(index)) for index in range(count))
    except pynvml.NVMLError:  # no driver, or a GPU that it has lost
        return _by_torch()


def _by_torch() -> tuple[Gpu, ...]:
    if not torch.cuda.is_available():
        return ()
    devices = (torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count()))
    return tuple(Gpu(each.name, each.total_memory) for each in devices)


def _gpu(nvml: Any, handle: Any) -> Gpu:
    def answer(question: Callable[[], Any]) -> Any:
        """The answer of the driver; None where this GPU does not support the question."""
        try:
            return question()
        except nvml.NVMLError:
            return None

    clock = nvml.NVML_CLOCK_SM
    mig = answer(lambda: nvml.nvmlDeviceGetMigMode(handle))
    persistence = answer(lambda: nvml.nvmlDeviceGetPersistenceMode(handle))
    memory = answer(lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
    return Gpu(
        name=answer(lambda: nvml.nvmlDeviceGetName(handle)) or UNKNOWN,
        memory=0 if memory is None else memory.total,
        driver=answer(nvml.nvmlSystemGetDriverVersion),
        megahertz=answer(lambda: nvml.nvmlDeviceGetClockInfo(handle, clock)),
        megahertz_most=answer(lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, clock)),
        persistence=None if persistence is None else bool(persistence),
        mig=None if mig is None else bool(mig[0]),
        usable=torch.cuda.is_available(),
    )


def _on(state: bool | None) -> str:
    return {True: "on", False: "off", None: UNKNOWN}[state]
