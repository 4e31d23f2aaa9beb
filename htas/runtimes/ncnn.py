"""ncnn on a CPU: the runtime of many phones and boards.

Convolutions work on channels in packs of 4, 8 or 16, as wide as the processor's registers; a width that is no multiple
of 4 is computed one channel at a time. Threads are an OpenMP pool that is ncnn's own; they sleep soon after their work,
since threads that spin would take the cores of the next program.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from htas.formats.ncnn import NcnnWriter, ncnn_network, ncnn_package
from htas.formats.parity import first
from htas.formats.written import Written
from htas.graph.layer import Layer
from htas.runtimes._mobile import SteppedRuntime


@dataclass(frozen=True)
class Ncnn(SteppedRuntime):
    """Networks converted by pnnx, layers written directly; half precision only where the target asks for it.

    The process keeps its memory, as ncnn asks for that of every step again in each call.
    """

    build_seconds: ClassVar[float] = 0.004
    """Of a layer, on a core of an EPYC; pnnx takes half a second for a small network."""
    lacking: ClassVar[str] = (
        "ncnn computes in fp16 on ARM processors that have instructions for it, and its bf16 is not trusted here"
    )
    what: ClassVar[str] = "ncnn"
    engine: ClassVar[str] = "ncnn"

    def __post_init__(self) -> None:
        if not self.target.host:
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

    @classmethod
    def precisions_there(cls, flags: Collection[str]) -> tuple[str, ...]:
        """The same, by the kernel's name for those instructions."""
        return ("fp32", "fp16") if "asimdhp" in flags else ("fp32",)

    @property
    def settings(self) -> Mapping[str, str]:
        """How threads wait."""
        return {"waiting": "threads spin for less than a millisecond, then sleep"}

    def write_network(self, network: nn.Module, example: tuple[Tensor, ...]) -> Written:
        """The network as pnnx converts it."""
        with torch.no_grad():
            shape = first(network(*example)).shape
        return ncnn_network(network, example).program(example, shape)

    def writer(self, layer: Layer) -> NcnnWriter:
        """For a layer's text and weights."""
        return NcnnWriter()
