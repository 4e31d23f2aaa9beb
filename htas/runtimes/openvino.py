"""OpenVINO on a CPU: the network as one graph of oneDNN kernels.

Its threads are one oneTBB pool for all programs of the process. An idle thread looks for work for about a millisecond,
yields its core, and then sleeps (1.1 ms of processor time after a call, two threads; OpenVINO has no option for it).
The next program gets the same threads, so programs do not take each other's cores. Threads are not pinned: on a shared
machine a pinned thread waits for other programs on its core. On AVX2 its kernels mostly have channels last.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from htas.errors import UserError
from htas.plugins import needed
from htas.runtimes import Program
from htas.runtimes._graphs import GraphRuntime
from htas.timing.target import PRECISIONS

HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "f32"}
"""Formats of what is not quantized."""


@dataclass(frozen=True)
class OpenVINO(GraphRuntime):
    """Networks through PyTorch's ONNX exporter, layers written directly; one stream, tuned for latency."""

    build_seconds: ClassVar[float] = 0.02
    """Warm-up included, on a core of an EPYC."""
    chained: ClassVar[tuple[str, ...]] = ("cpu",)
    lacking: ClassVar[str] = "OpenVINO finds no instructions for it in this processor"
    what: ClassVar[str] = "OpenVINO"

    def __post_init__(self) -> None:
        super().__post_init__()
        _core()

    @classmethod
    def precisions(cls, device: str) -> tuple[str, ...]:
        """Precisions with instructions in the processor; for others OpenVINO would silently compute in fp32."""
        if device != "cpu":
            return ()
        capabilities = _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        return tuple(precision for precision in PRECISIONS if precision.upper() in capabilities)

    def describe(self) -> Mapping[str, str]:
        """Versions and settings."""
        from openvino import get_version

        context = {"openvino": get_version(), "torch": torch.__version__, "streams": "1", "pinned": "no"}
        if self.target.precision == "int8":
            import onnxruntime

            context["quantizer"] = f"onnxruntime {onnxruntime.__version__}"
        return context

    def open(self, graph: bytes | str, example: tuple[Tensor, ...] | None = None) -> Program:
        """The program of a graph or a file, with the target's threads, not pinned."""
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": self.target.threads,
            "ENABLE_CPU_PINNING": False,
            "ENABLE_HYPER_THREADING": True,  # otherwise it takes fewer threads
            "INFERENCE_PRECISION_HINT": HINTS[self.target.precision],
        }
        compiled = _core().compile_model(_core().read_model(graph), "CPU", settings)
        threads = compiled.get_property("INFERENCE_NUM_THREADS")
        if threads != self.target.threads:
            raise UserError(
                f"OpenVINO takes {threads} threads here; set target.threads to that, or use another runtime"
            )
        bound = _Bound(compiled, example or tuple(torch.randn(list(port.shape)) for port in compiled.inputs))
        return Program(bound.run, bound.outputs)


class _Bound:
    """A request whose inputs are in place; the output stays there until it is overwritten."""

    def __init__(self, compiled: Any, example: tuple[Tensor, ...]) -> None:
        from openvino import Tensor as Place

        self.request = compiled.create_infer_request()
        # copies: a request writes new inputs into the memory of the first ones
        self.inputs = [Place(tensor.clone().contiguous().numpy(), shared_memory=True) for tensor in example]
        for index, place in enumerate(self.inputs):
            self.request.set_input_tensor(index, place)

    def run(self) -> None:
        self.request.infer(share_outputs=True)

    def outputs(self, *tensors: Tensor) -> Tensor:
        """The first output for other inputs of the same shapes."""
        feed = {index: tensor.contiguous().numpy() for index, tensor in enumerate(tensors)}
        return torch.from_numpy(self.request.infer(feed)[0]).float()


@cache
def _core() -> Any:
    """OpenVINO's Core, one for the process; raises UserError where it is not installed."""
    return needed("openvino", "openvino", "target.runtime 'openvino'").Core()
