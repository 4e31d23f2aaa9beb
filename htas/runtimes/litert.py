"""LiteRT (TensorFlow Lite) on a CPU, with XNNPACK's kernels: the runtime of Android.

Images lie channels last. An interpreter has threads of its own, which wait busily for a while after a call; with more
than one, readings need a machine with nothing else on it.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from htas.errors import UserError
from htas.formats.onnx import Unknown
from htas.formats.onnx_network import write_network
from htas.formats.tflite import Place, TfliteNetwork, TfliteWriter
from htas.graph.layer import Layer
from htas.plugins import needed
from htas.runtimes import Program
from htas.runtimes._written import WrittenRuntime
from htas.timing.allocator import keep_memory


@dataclass(frozen=True)
class LiteRT(WrittenRuntime[TfliteWriter]):
    """Networks and layers are written directly; one whose steps are not known here is refused."""

    build_seconds: ClassVar[float] = 0.004
    """Of a layer, on a core of an EPYC."""
    chained: ClassVar[tuple[str, ...]] = ("cpu",)
    lacking: ClassVar[str] = "graphs are written in fp32"
    what: ClassVar[str] = "LiteRT"

    def __post_init__(self) -> None:
        needed("ai_edge_litert.interpreter", "litert", "target.runtime 'litert'")

    @classmethod
    def precisions(cls, device: str) -> tuple[str, ...]:
        """fp32, on the CPU."""
        return ("fp32",) if device == "cpu" else ()

    def describe(self) -> Mapping[str, str]:
        """Versions, and how threads wait."""
        from importlib.metadata import version

        freed = "kept" if keep_memory() else "returned"
        return {
            "ai-edge-litert": version("ai-edge-litert"), "torch": torch.__version__, "kernels": "XNNPACK",
            "waiting": "threads spin", "freed memory": freed,
        }  # fmt: skip

    def session(self) -> AbstractContextManager[object]:
        """The process keeps its memory."""
        keep_memory()
        return nullcontext()

    def build(self, network: nn.Module, example: tuple[Tensor, ...]) -> Program:
        """The network, written from its steps."""
        writer = TfliteWriter()
        try:
            write_network(writer, network, example)
        except Unknown as error:
            raise UserError(f"a step of this network is not written for LiteRT yet ({error})") from error
        return self.open(writer, example)

    def writer(self, layer: Layer) -> TfliteWriter:
        """For a layer."""
        return TfliteWriter(layer)

    def open(self, writer: TfliteWriter, example: tuple[Tensor, ...], shape: torch.Size | None = None) -> Program:
        """The program of what the writer has, with these inputs."""
        return self._open(writer.content(), (tuple(writer.inputs), tuple(writer.results)), example)

    def _open(
        self, content: bytes, places: tuple[tuple[Place, ...], tuple[Place, ...]], example: tuple[Tensor, ...]
    ) -> Program:
        network = TfliteNetwork(content, places, self.target.threads)
        network.put(example)
        rebuild = partial(self._open, content, places, example)
        return Program(network.run, lambda *tensors: network.outputs(tensors)[0], rebuild)
