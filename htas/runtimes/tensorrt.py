"""TensorRT, through ONNX Runtime's provider: kernels chosen by timing them on this GPU.

The difference of a chain may contain other kernels for the neighbours, since TensorRT chooses them for each program.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from htas.runtimes._session import SessionRuntime


@dataclass(frozen=True)
class TensorRT(SessionRuntime):
    """Graphs as ONNX Runtime gets them; CUDA only. Which kernels win is measured while building, so builds differ."""

    build_seconds: ClassVar[float] = 5.0
    """Estimated; to be measured."""
    what: ClassVar[str] = "TensorRT"
    install: ClassVar[str] = (
        "replace the package onnxruntime by onnxruntime-gpu (uninstall the first: they share their files) and install "
        "TensorRT, or use target.runtime 'cuda_graph' or 'compiled'"
    )

    @classmethod
    def precisions(cls, device: str) -> tuple[str, ...]:
        """fp32 and fp16, on CUDA."""
        return ("fp32", "fp16") if device == "cuda" else ()

    @property
    def provider(self) -> tuple[str, Mapping[str, Any]]:
        """TensorRT's, with its own switch for fp16."""
        return "TensorrtExecutionProvider", {"trt_fp16_enable": self.target.precision == "fp16"}
