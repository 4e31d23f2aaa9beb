"""TensorRT, through ONNX Runtime's provider: kernels chosen by timing them on this GPU."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from htas.graph.layer import Layer
from htas.runtimes import Program, Runtime
from htas.runtimes._session import Sessions, check_provider
from htas.timing.bench import Timer


@dataclass(frozen=True)
class TensorRT(Runtime):
    """Graphs as ONNX Runtime gets them; CUDA only. Which kernels win is measured while building, so builds differ."""

    exports: ClassVar[bool] = True
    build_seconds: ClassVar[float] = 5.0
    """Estimated; to be measured."""

    def __post_init__(self) -> None:
        check_provider(
            "TensorrtExecutionProvider",
            "replace the package onnxruntime by onnxruntime-gpu (uninstall the first: they share their files) and "
            "install TensorRT, or use target.runtime 'cuda_graph' or 'compiled'",
        )

    @classmethod
    def precisions(cls, device: str) -> tuple[str, ...]:
        """fp32 and fp16, on CUDA."""
        return ("fp32", "fp16") if device == "cuda" else ()

    def compile(self, model: nn.Module, example: tuple[Tensor, ...]) -> Program:
        """The exported network."""
        return self._sessions.network(model, example)

    def compile_layer(self, layer: Layer) -> Program:
        """The layer as a graph of its own, without the exporter."""
        return self._sessions.layer(layer)

    def chain(self, layer: Layer) -> tuple[Program, Program]:
        """The layer between two cheap convolutions, and these alone: without the price of a call and of reordering.

        The difference may contain other kernels for the neighbours, since TensorRT chooses them for each program.
        """
        return self._sessions.chain(layer)

    def describe(self) -> Mapping[str, str]:
        """Versions and the provider."""
        return self._sessions.describe()

    def timer(self) -> Timer:
        """The host's clock: the work is not on PyTorch's stream."""
        return self._sessions.timer()

    @property
    def _sessions(self) -> Sessions:
        settings = {"trt_fp16_enable": self.target.precision == "fp16"}
        return Sessions("TensorRT", self.target, "TensorrtExecutionProvider", settings)
