"""Plain PyTorch on a GPU, recorded once as a CUDA graph and replayed: no price for launching each kernel.

A small network in eager mode is as slow as the processor launches its kernels; the graph shows what the GPU can do.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from htas.formats.parity import first
from htas.runtimes import Program
from htas.runtimes._torch import TorchRuntime, placed

WARM = 3
"""Calls before the recording, in which libraries choose kernels and allocate, as PyTorch advises."""


@dataclass(frozen=True)
class CudaGraph(TorchRuntime):
    """Eager PyTorch's kernels without its overhead; CUDA only. Timed by events, which the replay stands between."""

    build_seconds: ClassVar[float] = 0.05
    """Estimated; to be measured."""
    what: ClassVar[str] = "a CUDA graph"

    @classmethod
    def precisions(cls, device: str) -> tuple[str, ...]:
        """All, on CUDA."""
        return super().precisions(device) if device == "cuda" else ()

    def build(self, network: nn.Module, example: tuple[Tensor, ...]) -> Program:
        """The recorded network."""
        recorded = _Recorded(*placed(network, example, self.target))
        return Program(recorded.run, recorded.outputs)


class _Recorded:
    """A graph with all that it reads and writes."""

    @torch.inference_mode()
    def __init__(self, network: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.network, self.inputs = network, inputs
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM):
                network(*inputs)
        torch.cuda.current_stream().wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, pool=_pool()):
            self.output = network(*inputs)

    def run(self) -> None:
        """One replay; this object holds the memory, which must outlive the graph's last call."""
        self.graph.replay()

    @torch.inference_mode()
    def outputs(self, *tensors: Tensor) -> Tensor:
        """The output for other inputs of the same shapes, which replace the first ones."""
        for place, tensor in zip(self.inputs, tensors, strict=True):
            place.copy_(tensor)
        self.graph.replay()
        return first(self.output).float().cpu()


@cache
def _pool() -> Any:
    """One memory for all graphs of this process: they never run at once, and an output is read before the next run."""
    return torch.cuda.graph_pool_handle()
