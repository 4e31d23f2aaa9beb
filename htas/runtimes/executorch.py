"""ExecuTorch on a CPU, with XNNPACK's kernels: PyTorch's own runtime for phones.

A program gets and returns images with the channels first and reorders them on the way to XNNPACK's kernels and back; a
network does so once, so layers are timed in chains. Threads are one pool for the process.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from htas.errors import UserError
from htas.formats.onnx import TAIL, cannot_export, is_first, quiet
from htas.formats.written import Written
from htas.graph.layer import CONVS, Layer
from htas.plugins import needed
from htas.runtimes import Program
from htas.runtimes._mobile import MobileRuntime
from htas.timing.allocator import keep_memory
from htas.timing.target import Target


@dataclass(frozen=True)
class ExecuTorch(MobileRuntime):
    """Networks and layers through torch.export; steps that XNNPACK lacks run in ExecuTorch's own kernels."""

    build_seconds: ClassVar[float] = 1.0
    """Of a chain with a layer and one without, on a core of an EPYC."""
    lacking: ClassVar[str] = "programs are exported in fp32"
    what: ClassVar[str] = "ExecuTorch"
    engine: ClassVar[str] = "executorch"

    def __post_init__(self) -> None:
        _package()

    @property
    def settings(self) -> Mapping[str, str]:
        """Kernels."""
        return {"kernels": "XNNPACK"}

    def session(self) -> AbstractContextManager[object]:
        """Within it the pool has the target's threads, and the process keeps its memory."""
        return _threads(self.target)

    def write_network(self, network: nn.Module, example: tuple[Tensor, ...]) -> Written:
        """The exported network."""
        return Written(_exported(network, example), example)

    def write_layer(self, layer: Layer, module: nn.Module, shape: torch.Size | None = None) -> Written:
        """The exported layer."""
        return self.write_network(module, layer.example(self.target.batch))

    def write_chain(self, layer: Layer, module: nn.Module | None) -> Written:
        """The layer between two cheap convolutions, or these alone: it gets and leaves channels last, as between the
        layers of a network."""
        chain = _Chain(layer, module, first=is_first(layer, self.target.shapes)).eval()
        shapes = layer.shapes(self.target.batch)
        example = tuple(torch.randn(shape if chain.whole else (shape[0], 1, *shape[2:])) for shape in shapes)
        return self.write_network(chain, example)

    def load(self, written: Written) -> Program:
        """The program, run once: what it cannot run shows only then."""
        loaded = _Loaded(written.content, written.example)
        loaded.run()
        return Program(loaded.run, loaded.outputs)


class _Loaded:
    """A method with inputs in place; it reads the bytes of its program, which holds them."""

    def __init__(self, content: bytes, example: tuple[Tensor, ...]) -> None:
        with quiet():
            self.program = _package().Runtime.get().load_program(content)
            self.method = self.program.load_method("forward")
        self.inputs = [tensor.clone() for tensor in example]

    def run(self) -> None:
        self.method.execute(self.inputs)

    def outputs(self, *tensors: Tensor) -> Tensor:
        """The first output for other inputs."""
        result: Tensor = self.method.execute([tensor.contiguous() for tensor in tensors])[0]
        return result.clone().float()


class _Chain(nn.Module):
    """A head for each input, the layer unless it is None, and a tail for each head, as in ONNX's chains."""

    def __init__(self, layer: Layer, module: nn.Module | None, *, first: bool) -> None:
        super().__init__()
        dims, adds = len(layer.size), layer.op == "add"
        self.whole, self.linear = first or layer.op == "linear", layer.op == "linear"
        head = nn.ReLU if self.linear else nn.Identity if first else None
        heads = (head() if head else CONVS[dims](1, layer.inputs, 1, bias=False) for _ in range(1 + adds))
        self.heads, self.layer = nn.ModuleList(heads), module
        channels, size = (layer.inputs, layer.size) if module is None else (layer.outputs, layer.output_size)
        window = tuple(min(side, 2) for side in size)
        tails = (CONVS[dims](channels, TAIL, window, size, bias=False) for _ in self.heads)
        self.tails = nn.ModuleList([] if self.linear else tails)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """[N, 1 or channels, ...] each, to the output of each tail."""
        values = [head(each) for head, each in zip(self.heads, inputs, strict=True)]
        if self.layer is not None:
            values = [self.layer(*values)] * len(values)
        return tuple(values) if self.linear else tuple(
            tail(each) for tail, each in zip(self.tails, values, strict=True)
        )  # fmt: skip


def _exported(network: nn.Module, example: tuple[Tensor, ...]) -> bytes:
    """The network as a program; raises UserError where PyTorch cannot export it."""
    _package()
    with quiet():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        try:
            exported = torch.export.export(network, example)
        except Exception as error:  # the exporter raises many kinds
            raise UserError(cannot_export(network, "ExecuTorch", error)) from error
        lowered = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
        content: bytes = lowered.to_executorch().buffer
        return content


@cache
def _package() -> Any:
    """ExecuTorch's runtime; raises UserError where it is not installed."""
    before = dict(os.environ)
    with quiet():  # it warns that it is experimental
        package = needed("executorch.runtime", "executorch", "target.runtime 'executorch'")
        needed("executorch.extension.pybindings.portable_lib", "executorch", "target.runtime 'executorch'")
    for name in set(os.environ) - set(before):  # it points its own OpenVINO at another's files
        del os.environ[name]
    return package


@contextmanager
def _threads(target: Target) -> Iterator[None]:
    """Within it ExecuTorch's pool has the target's threads."""
    keep_memory()
    pool = needed("executorch.extension.pybindings.portable_lib", "executorch", "target.runtime 'executorch'")
    before = pool._threadpool_get_thread_count()
    pool._unsafe_reset_threadpool(target.threads)
    try:
        yield
    finally:
        pool._unsafe_reset_threadpool(before)
