"""Plain PyTorch, as most people run a network: NCHW, inference mode, nothing compiled."""

from dataclasses import dataclass
from itertools import product
from typing import ClassVar

import torch
from torch import Tensor, nn

from htas.runtimes import Program
from htas.runtimes._torch import TorchRuntime, placed, program

FORGOTTEN = 33
"""Its square is more kernels than oneDNN keeps."""


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
        """Make oneDNN drop its compiled kernels, by compiling as many others.

        It keeps the last 1024. The address of a kernel can make a layer half as slow again in one process and not in
        the next, however often the layer is built (docs/decisions.md).
        """
        if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
            return
        with torch.inference_mode():
            for inputs, outputs in product(range(1, FORGOTTEN + 1), repeat=2):
                image, weight = torch.ones(1, inputs, 2, 2), torch.ones(outputs, inputs, 1, 1)
                torch.mkldnn_convolution(image, weight, None, (0, 0), (1, 1), (1, 1), 1)

    def build(self, network: nn.Module, example: tuple[Tensor, ...]) -> Program:
        """The network itself, on the target's device, in its precision."""
        network, inputs = placed(network, example, self.target)
        return program(network, inputs, self.target)
