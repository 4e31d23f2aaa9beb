"""What the runtimes that are PyTorch share: building, devices, threads, versions."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from htas.formats.parity import first
from htas.graph.layer import Layer
from htas.runtimes import Program, Runtime
from htas.timing.allocator import keep_memory
from htas.timing.target import PRECISIONS, Target


@dataclass(frozen=True)
class TorchRuntime(Runtime):
    """A runtime that builds modules, of networks and of layers alike."""

    @classmethod
    def precisions(cls, device: str) -> tuple[str, ...]:
        """All, on every device."""
        return tuple(name for name in PRECISIONS if name != "int8")

    def compile_layer(self, layer: Layer) -> Program:
        """The layer's module, unchecked."""
        example = layer.example(self.target.batch)
        return self.builder.layer(layer, lambda: self.build(layer.build(), example))

    def session(self) -> AbstractContextManager[object]:
        """Within it PyTorch computes with the target's number of threads."""
        return threads(self.target.threads)

    def describe(self) -> Mapping[str, str]:
        """PyTorch's version and the libraries and settings of its convolutions."""
        common = {"torch": torch.__version__, "memory format": "contiguous"}
        if self.target.device == "cpu":
            instructions = torch.backends.cpu.get_cpu_capability()
            freed = "kept" if keep_memory() else "returned"
            return {**common, "instructions": instructions, "freed memory": freed, **_emulated(self.target)}
        return {
            **common,
            "gpu": torch.cuda.get_device_name(),
            "cuda": str(torch.version.cuda),
            "cudnn": str(torch.backends.cudnn.version()),  # type: ignore[no-untyped-call]
            "cudnn benchmark": str(torch.backends.cudnn.benchmark),
            "convolutions": torch.backends.cudnn.conv.fp32_precision,  # type: ignore[attr-defined]
        }


def placed(network: nn.Module, example: tuple[Tensor, ...], target: Target) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Network and inputs on the target's device, in its precision."""
    moved = network.to(target.device, target.dtype)
    return moved, tuple(tensor.to(target.device, target.dtype) for tensor in example)


def program(call: Callable[..., Any], inputs: tuple[Tensor, ...], target: Target) -> Program:
    """The program of a call, with these inputs."""

    @torch.inference_mode()
    def run() -> object:
        return call(*inputs)

    @torch.inference_mode()
    def outputs(*tensors: Tensor) -> Tensor:
        return first(call(*(tensor.to(target.device, target.dtype) for tensor in tensors))).float().cpu()

    return Program(run, outputs)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Within it PyTorch computes with `count` threads, and the process keeps its memory."""
    keep_memory()
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _emulated(target: Target) -> Mapping[str, str]:
    """Whether this processor has instructions for the precision, or PyTorch emulates it slowly."""
    if target.precision == "fp32":
        return {}
    native = getattr(torch.ops.mkldnn, f"_is_mkldnn_{target.precision}_supported")()
    return {target.precision: "native" if native else "emulated"}
