"""OpenVINO on a CPU: the network as one graph of oneDNN kernels.

Its threads are one oneTBB pool for all programs of the process. An idle thread looks for work for about a millisecond,
yields its core, and then sleeps (1.1 ms of processor time after a call, two threads; OpenVINO has no option for it).
The next program gets the same threads, so programs do not take each other's cores. Threads are not pinned: on a shared
machine a pinned thread waits for other programs on its core.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from htas.errors import UserError
from htas.formats.onnx import chain_graphs, is_first, layer_graph
from htas.formats.onnx_file import OnnxFile
from htas.formats.onnx_written import static_graph
from htas.graph.layer import Layer
from htas.plugins import needed
from htas.runtimes import Program, Runtime
from htas.runtimes._build import file_program, layer_program, network_program

CAPABILITIES = {"FP32": "fp32", "BF16": "bf16", "FP16": "fp16"}
"""Capabilities of the CPU plug-in, and the precision of each."""
HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}


@dataclass(frozen=True)
class OpenVINO(Runtime):
    """Networks through PyTorch's ONNX exporter, layers written directly; one stream, tuned for latency."""

    exports: ClassVar[bool] = True
    build_seconds: ClassVar[float] = 0.02
    """Warm-up included, on a core of an EPYC."""
    chained: ClassVar[tuple[str, ...]] = ("cpu",)
    lacking: ClassVar[str] = "OpenVINO finds no instructions for it in this processor"

    def __post_init__(self) -> None:
        _core()

    @classmethod
    def precisions(cls, device: str) -> tuple[str, ...]:
        """Precisions with instructions in the processor; for others OpenVINO would silently compute in fp32."""
        if device != "cpu":
            return ()
        capabilities = _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        return tuple(precision for name, precision in CAPABILITIES.items() if name in capabilities)

    def compile(self, model: nn.Module, example: tuple[Tensor, ...]) -> Program:
        """The exported network; an ONNX file as it is."""
        if isinstance(model, OnnxFile):
            return file_program("OpenVINO", self.target, model, self._open)
        return network_program("OpenVINO", self.target, model, example, self._export)

    def compile_layer(self, layer: Layer) -> Program:
        """The layer as a graph of its own, without the exporter."""

        def build() -> Program:
            graph = layer_graph(layer, layer.build(), self.target.batch)
            return self._open(graph, layer.example(self.target.batch))

        return layer_program("OpenVINO", self.target, layer, build)

    def chain(self, layer: Layer) -> tuple[Program, Program]:
        """The layer between two cheap convolutions, and these alone.

        A layer alone is reordered from NCHW to the layout of its kernel (on AVX2 mostly channels last) and back; in a
        network its neighbours have that layout already. The difference of the two programs leaves out these reorders,
        the price of a call, and an add that is fused into a convolution. It still contains a tail that reads other
        channels than without the layer (16 dot products of four pixels), and lacks caching in longer chains.
        """
        first = is_first(layer, self.target.shapes)
        graphs = chain_graphs(layer, layer.build(), self.target.batch, first=first)
        one, other = (layer_program("OpenVINO", self.target, layer, partial(self._open, graph)) for graph in graphs)
        return one, other

    def describe(self) -> Mapping[str, str]:
        """Versions and settings."""
        from openvino import get_version

        return {"openvino": get_version(), "torch": torch.__version__, "streams": "1", "pinned": "no"}

    def _export(self, network: nn.Module, example: tuple[Tensor, ...]) -> Program:
        graph = static_graph(network, example)
        return replace(self._open(graph, example), anew=partial(self._open, graph, example))

    def _open(self, graph: bytes | str, example: tuple[Tensor, ...] | None = None) -> Program:
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
        """One batch."""
        self.request.infer(share_outputs=True)

    def outputs(self, *tensors: Tensor) -> Tensor:
        """The first output for other inputs of the same shapes."""
        feed = {index: tensor.contiguous().numpy() for index, tensor in enumerate(tensors)}
        return torch.from_numpy(self.request.infer(feed)[0]).float()


@cache
def _core() -> Any:
    """OpenVINO's Core, one for the process; raises UserError where it is not installed."""
    return needed("openvino", "openvino", "openvino").Core()
