"""Plain PyTorch, as most people run a network: NCHW, inference mode, nothing compiled."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from htas.runtimes import Program
from htas.runtimes._torch import TorchRuntime, forget_kernels, placed, program, threads


@dataclass(frozen=True)
class Eager(TorchRuntime):
    """PyTorch's own operators, one after the other, on CPU or CUDA.

    In bf16 and fp16 weights and inputs are cast once. A processor without such instructions computes them too, slowly;
    `describe` says which it is.
    """

    build_seconds: ClassVar[float] = 0.001
    """Warm-up included, on a core of an EPYC."""
    what: ClassVar[str] = "eager PyTorch"

    def compile(self, model: nn.Module, example: tuple[Tensor, ...]) -> Program:
        """A copy of the network on the target's device, in its precision."""
        compare = (self.target.device, self.target.precision) != ("cpu", "fp32")  # else it is what it is compared with
        return self.builder.network(model, example, self.build, compare=compare)

    def renew(self) -> None:
        """Drop compiled kernels, on a CPU."""
        forget_kernels()

    def session(self) -> AbstractContextManager[object]:
        """Within it PyTorch computes with the target's number of threads."""
        return threads(self.target.threads)

    def build(self, network: nn.Module, example: tuple[Tensor, ...]) -> Program:
        """The network itself, on the target's device, in its precision."""
        network, inputs = placed(network, example, self.target)
        return program(network, inputs, self.target)
