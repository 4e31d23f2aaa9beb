"""Plain PyTorch, as most people run a network: NCHW, inference mode, nothing compiled."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from htas.graph.layer import Layer
from htas.runtimes import Program, Runtime
from htas.runtimes._build import layer_program, network_program
from htas.runtimes._torch import about, forget_kernels, placed, program, threads


@dataclass(frozen=True)
class Eager(Runtime):
    """PyTorch's own operators, one after the other, on CPU or CUDA.

    In bf16 and fp16 weights and inputs are cast once. A processor without such instructions computes them too, slowly;
    `describe` says which it is.
    """

    build_seconds: ClassVar[float] = 0.001
    """Warm-up included, on a core of an EPYC."""

    @classmethod
    def precisions(cls, device: str) -> tuple[str, ...]:
        """All, on every device."""
        return ("fp32", "bf16", "fp16")

    def compile(self, model: nn.Module, example: tuple[Tensor, ...]) -> Program:
        """A copy of the network on the target's device, in its precision."""
        same = self.target.device == "cpu" and self.target.precision == "fp32"
        return network_program("eager PyTorch", self.target, model, example, self._build, same=same)

    def compile_layer(self, layer: Layer) -> Program:
        """The layer's module, unchecked."""
        example = layer.example(self.target.batch)
        return layer_program("eager PyTorch", self.target, layer, lambda: self._build(layer.build(), example))

    def describe(self) -> Mapping[str, str]:
        """PyTorch's version and the libraries and settings of its convolutions."""
        return about(self.target)

    def renew(self) -> None:
        """Drop compiled kernels, on a CPU."""
        forget_kernels()

    def session(self) -> AbstractContextManager[object]:
        """Within it PyTorch computes with the target's number of threads."""
        return threads(self.target.threads)

    def _build(self, network: nn.Module, example: tuple[Tensor, ...]) -> Program:
        network, inputs = placed(network, example, self.target)
        return program(network, inputs, self.target)
