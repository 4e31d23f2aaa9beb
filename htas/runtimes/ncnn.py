"""ncnn on a CPU: the runtime of many phones and boards.

Convolutions work on channels in packs of 4, 8 or 16, as wide as the processor's registers; a width that is no multiple
of 4 is computed one channel at a time. Threads are an OpenMP pool that is ncnn's own; they sleep while they have no
work, since threads that spin would take the cores of the next program.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from htas.formats.ncnn import SINGLE, NcnnModel, NcnnNetwork, NcnnWriter, ncnn_inputs, ncnn_network, ncnn_package
from htas.formats.parity import first
from htas.graph.layer import Layer
from htas.runtimes import Program
from htas.runtimes._written import WrittenRuntime
from htas.timing.allocator import keep_memory


@dataclass(frozen=True)
class Ncnn(WrittenRuntime[NcnnWriter]):
    """Networks converted by pnnx, layers written directly; half precision only where the target asks for it."""

    build_seconds: ClassVar[float] = 0.004
    """Of a layer, on a core of an EPYC; pnnx takes half a second for a small network."""
    chained: ClassVar[tuple[str, ...]] = ("cpu",)
    lacking: ClassVar[str] = (
        "ncnn computes in fp16 on ARM processors that have instructions for it, and its bf16 is not trusted here"
    )
    what: ClassVar[str] = "ncnn"

    def __post_init__(self) -> None:
        ncnn_package()

    @classmethod
    def precisions(cls, device: str) -> tuple[str, ...]:
        """fp32, and fp16 on ARM processors that compute in it.

        bf16 is left out: with it, ncnn 1.0.20261020 gives wrong values for an ELU on x86.
        """
        if device != "cpu":
            return ()
        half = ("fp16",) if ncnn_package().cpu_support_arm_asimdhp() else ()
        return ("fp32", *half)

    def describe(self) -> Mapping[str, str]:
        """Versions, and how threads wait."""
        freed = "kept" if keep_memory() else "returned"
        return {
            "ncnn": ncnn_package().__version__, "torch": torch.__version__, "waiting": "threads sleep",
            "freed memory": freed,
        }  # fmt: skip

    def session(self) -> AbstractContextManager[object]:
        """The process keeps its memory: ncnn asks for that of every step anew."""
        keep_memory()
        return nullcontext()

    def build(self, network: nn.Module, example: tuple[Tensor, ...]) -> Program:
        """The network as pnnx converts it."""
        with torch.no_grad():
            shape = first(network(*example)).shape
        model = ncnn_network(network, example)
        return self._open(model, example, shape)

    def writer(self, layer: Layer) -> NcnnWriter:
        """For a layer's text and weights."""
        return NcnnWriter()

    def open(self, writer: NcnnWriter, example: tuple[Tensor, ...], shape: torch.Size | None = None) -> Program:
        """The program of what the writer has, with these inputs."""
        return self._open(writer.content(), example, shape)

    def _open(self, model: NcnnModel, example: tuple[Tensor, ...], shape: torch.Size | None = None) -> Program:
        """The program of a network; its output takes the shape, since ncnn leaves out dimensions of one."""
        half = self.target.precision == "fp16"
        options = {**(dict.fromkeys(SINGLE, True) if half else SINGLE), "num_threads": self.target.threads}
        network, inputs = NcnnNetwork(model, options), ncnn_inputs(example)

        def outputs(*tensors: Tensor) -> Tensor:
            output = network.outputs(tensors)[0]
            return output.reshape(shape) if shape is not None and output.numel() == shape.numel() else output

        return Program(lambda: network.run(inputs), outputs, partial(self._open, model, example, shape))
