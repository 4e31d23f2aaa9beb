"""ONNX Runtime: the network as one optimised graph."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from htas.errors import UserError
from htas.graph.layer import Layer
from htas.runtimes import Program, Runtime
from htas.runtimes._session import SPIN, Sessions, check_provider
from htas.timing.bench import Timer


@dataclass(frozen=True)
class OnnxRuntime(Runtime):
    """Networks through PyTorch's exporter, layers written directly; every graph optimisation on."""

    exports: ClassVar[bool] = True
    build_seconds: ClassVar[float] = 0.002
    """Warm-up included, on a core of an EPYC."""
    chained: ClassVar[tuple[str, ...]] = ("cpu",)
    lacking: ClassVar[str] = "on a CPU it would cast to fp32 and back around every operator, and it has no bf16 at all"
    spin: int = SPIN
    """Microseconds that a CPU thread waits busily for the next call."""

    def __post_init__(self) -> None:
        if self.spin < 0:
            raise UserError(f"target.options: spin must be 0 microseconds or more, got {self.spin}")
        if self.target.device == "cuda":
            check_provider(
                "CUDAExecutionProvider",
                "replace the package onnxruntime by onnxruntime-gpu (uninstall the first: they share their files), or "
                "use target.runtime 'eager' or target.device 'cpu'",
            )

    @classmethod
    def precisions(cls, device: str) -> tuple[str, ...]:
        """fp16 only on CUDA: the CPU's operators do not compute in it."""
        return ("fp32",) if device == "cpu" else ("fp32", "fp16")

    def compile(self, model: nn.Module, example: tuple[Tensor, ...]) -> Program:
        """The exported network."""
        return self._sessions.network(model, example)

    def compile_layer(self, layer: Layer) -> Program:
        """The layer as a graph of its own, without the exporter."""
        return self._sessions.layer(layer)

    def chain(self, layer: Layer) -> tuple[Program, Program]:
        """The layer between two cheap convolutions, and these alone.

        On a CPU, convolutions and pools work on channels in blocks (of 8 with AVX2, of 16 with AVX-512). A layer alone
        is reordered into blocks and back, inside a network hardly ever; but a width that is no multiple of 4 is
        reordered in a network too, since the next convolution cannot read its blocks. The difference of the two
        programs is what the network pays: no price of a call, an add fused into the convolution before it, and a
        reorder exactly where the next layer causes one. It still contains a tail that reads other channels than
        without the layer (16 dot products of four pixels), and lacks the effect of caches in longer chains.
        """
        return self._sessions.chain(layer)

    def describe(self) -> Mapping[str, str]:
        """Versions, the provider, and how long its threads spin."""
        return self._sessions.describe()

    def timer(self) -> Timer:
        """The host's clock, on CUDA too."""
        return self._sessions.timer()

    @property
    def _sessions(self) -> Sessions:
        provider = "CPUExecutionProvider" if self.target.device == "cpu" else "CUDAExecutionProvider"
        return Sessions("ONNX Runtime", self.target, provider, {}, self.spin)
