"""Plain PyTorch, as most people run a network: NCHW, inference mode, nothing compiled."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from htas.runtimes import Program, Runtime


@dataclass(frozen=True)
class Eager(Runtime):
    """PyTorch's own operators, one after the other, on CPU or CUDA."""

    def compile(self, model: nn.Module, example: tuple[Tensor, ...]) -> Program:
        """A copy of the network on the target's device."""
        device = self.target.device
        network = deepcopy(model).eval().to(device)
        inputs = tuple(tensor.to(device) for tensor in example)

        @torch.inference_mode()
        def run() -> object:
            return network(*inputs)

        @torch.inference_mode()
        def outputs(*tensors: Tensor) -> Tensor:
            out: Tensor = network(*(tensor.to(device) for tensor in tensors))
            return out.cpu()

        return Program(run, outputs)

    def describe(self) -> Mapping[str, str]:
        """PyTorch's version and, on CUDA, what its convolutions are computed with."""
        about = {"torch": torch.__version__, "memory format": "contiguous"}
        if self.target.device == "cpu":
            return {**about, "instructions": torch.backends.cpu.get_cpu_capability()}
        return {
            **about,
            "gpu": torch.cuda.get_device_name(),
            "cuda": str(torch.version.cuda),
            "cudnn": str(torch.backends.cudnn.version()),  # type: ignore[no-untyped-call]
            "cudnn benchmark": str(torch.backends.cudnn.benchmark),
            "convolutions": torch.backends.cudnn.conv.fp32_precision,  # type: ignore[attr-defined]
        }

    @contextmanager
    def session(self) -> Iterator[None]:
        """PyTorch computes with the target's number of threads meanwhile."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.target.threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)
