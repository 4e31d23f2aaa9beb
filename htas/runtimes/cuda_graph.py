"""Plain PyTorch on a GPU, recorded once as a CUDA graph and replayed: no price for launching each kernel.

A small network in eager mode is as slow as the processor launches its kernels; the graph shows what the GPU can do.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from htas.formats.parity import first
from htas.graph.layer import Layer
from htas.runtimes import Program, Runtime
from htas.runtimes._build import layer_program, network_program
from htas.runtimes._torch import about, placed

WARM = 3
"""Calls before the recording, in which libraries choose kernels and allocate, as PyTorch advises."""


@dataclass(frozen=True)
class CudaGraph(Runtime):
    """Eager PyTorch's kernels without its overhead; CUDA only. Timed by events, which the replay stands between."""

    build_seconds: ClassVar[float] = 0.05
    """Estimated; to be measured."""

    @classmethod
    def precisions(cls, device: str) -> tuple[str, ...]:
        """All, on CUDA."""
        return ("fp32", "bf16", "fp16") if device == "cuda" else ()

    def compile(self, model: nn.Module, example: tuple[Tensor, ...]) -> Program:
        """The recorded network."""
        return network_program("a CUDA graph", self.target, model, example, self._build)

    def compile_layer(self, layer: Layer) -> Program:
        """The layer's module, recorded."""
        example = layer.example(self.target.batch)
        return layer_program("a CUDA graph", self.target, layer, lambda: self._build(layer.build(), example))

    def describe(self) -> Mapping[str, str]:
        """PyTorch's version and the libraries and settings of its convolutions."""
        return about(self.target)

    def _build(self, network: nn.Module, example: tuple[Tensor, ...]) -> Program:
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
