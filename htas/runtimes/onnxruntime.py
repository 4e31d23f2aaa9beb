"""ONNX Runtime: the network as one optimised graph.

On a CPU, convolutions and pools work on channels in blocks (of 8 with AVX2, of 16 with AVX-512). A layer alone is
reordered into blocks and back, inside a network hardly ever; but a width that is no multiple of 4 is reordered in a
network too, since the next convolution cannot read its blocks.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from htas.errors import UserError
from htas.runtimes._session import SPIN, SessionRuntime


@dataclass(frozen=True)
class OnnxRuntime(SessionRuntime):
    """Networks through PyTorch's exporter, layers written directly; every graph optimisation on."""

    build_seconds: ClassVar[float] = 0.002
    """Warm-up included, on a core of an EPYC."""
    chained: ClassVar[tuple[str, ...]] = ("cpu",)
    lacking: ClassVar[str] = "on a CPU it would cast to fp32 and back around every operator, and it has no bf16 at all"
    what: ClassVar[str] = "ONNX Runtime"
    fp32_alone: ClassVar[tuple[str, ...]] = ("ConvTranspose",)
    engine: ClassVar[str] = "onnxruntime"
    install: ClassVar[str] = (
        "replace the package onnxruntime by onnxruntime-gpu (uninstall the first: they share their files), or use "
        "target.runtime 'eager' or target.device 'cpu'"
    )
    spin: int = SPIN
    """Microseconds that a CPU thread waits busily for the next call."""

    def __post_init__(self) -> None:
        if self.spin < 0:
            raise UserError(f"target.options: spin must be 0 microseconds or more, got {self.spin}")
        super().__post_init__()

    @classmethod
    def precisions(cls, device: str) -> tuple[str, ...]:
        """int8 on the CPU, fp16 only on CUDA: the CPU's operators do not compute in it."""
        return ("fp32", "int8") if device == "cpu" else ("fp32", "fp16")

    @classmethod
    def precisions_there(cls, flags: Collection[str]) -> tuple[str, ...]:
        """The same on the CPU of another machine."""
        return ("fp32", "int8")

    @property
    def provider(self) -> tuple[str, Mapping[str, Any]]:
        """The device's own, as it is."""
        return "CPUExecutionProvider" if self.target.device == "cpu" else "CUDAExecutionProvider", {}

    @property
    def spinning(self) -> int:
        """Microseconds that a CPU thread waits busily for the next call: the option."""
        return self.spin
