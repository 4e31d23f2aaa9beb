"""LiteRT (TensorFlow Lite) on a CPU, with XNNPACK's kernels: the runtime of Android.

Images lie channels last. An interpreter has threads of its own, which wait busily for a while after a call; with more
than one, readings need a machine with nothing else on it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from htas.errors import UserError
from htas.formats.onnx import Unknown
from htas.formats.onnx_network import write_network
from htas.formats.tflite import TfliteWriter
from htas.formats.written import Written
from htas.graph.layer import Layer
from htas.plugins import needed
from htas.runtimes._mobile import SteppedRuntime


@dataclass(frozen=True)
class LiteRT(SteppedRuntime):
    """Networks and layers are written directly; one whose steps are not known here is refused."""

    build_seconds: ClassVar[float] = 0.004
    """Of a layer, on a core of an EPYC."""
    lacking: ClassVar[str] = "graphs are written in fp32"
    what: ClassVar[str] = "LiteRT"
    engine: ClassVar[str] = "litert"

    def __post_init__(self) -> None:
        needed("ai_edge_litert.interpreter", "litert", "target.runtime 'litert'")

    @property
    def settings(self) -> Mapping[str, str]:
        """Kernels, and how threads wait."""
        return {"kernels": "XNNPACK", "waiting": "threads spin"}

    def write_network(self, network: nn.Module, example: tuple[Tensor, ...]) -> Written:
        """The network, written from its steps."""
        writer = TfliteWriter()
        try:
            write_network(writer, network, example)
        except Unknown as error:
            raise UserError(f"a step of this network is not written for LiteRT yet ({error})") from error
        return writer.program(example)

    def writer(self, layer: Layer) -> TfliteWriter:
        """For a layer."""
        return TfliteWriter(layer)
