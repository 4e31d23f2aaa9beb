"""What the runtimes of phones and boards share: fp32 on a CPU, in a process that keeps its memory."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from htas.errors import UserError
from htas.formats.onnx import GraphWriter, Unknown, is_first, write_chain, write_layer
from htas.formats.written import Opened, Written
from htas.graph.layer import Layer
from htas.runtimes import Program
from htas.runtimes._build import in_words
from htas.runtimes._written import WrittenRuntime
from htas.timing.allocator import keep_memory
from htas.timing.remote.needs import NEEDS


class ProgramWriter(GraphWriter, Protocol):
    """Collects steps, and writes them as an engine opens them."""

    def program(self, example: tuple[Tensor, ...], shape: torch.Size | None = None) -> Written:
        """All of it, with inputs [N, ...] and the shape of the output."""


@dataclass(frozen=True)
class MobileRuntime(WrittenRuntime):
    """A subclass names one of the agent's engines, and writes programs."""

    chained: ClassVar[tuple[str, ...]] = ("cpu",)

    @classmethod
    def precisions(cls, device: str) -> tuple[str, ...]:
        """fp32, on the CPU."""
        return ("fp32",) if device == "cpu" else ()

    def describe(self) -> Mapping[str, str]:
        """Versions and settings."""
        package, freed = NEEDS[self.engine].package, "kept" if keep_memory() else "returned"
        return {
            package: version(package), "torch": torch.__version__, **self.settings, "freed memory": freed,
        }  # fmt: skip

    def session(self) -> AbstractContextManager[object]:
        """The process keeps its memory."""
        keep_memory()
        return nullcontext()


@dataclass(frozen=True)
class SteppedRuntime(MobileRuntime):
    """A subclass has a writer of steps, so that layers take milliseconds."""

    @abstractmethod
    def writer(self, layer: Layer) -> ProgramWriter:
        """An empty one, for this layer alone or in a chain; raises Unknown where it is not for such a layer."""

    def write_layer(self, layer: Layer, module: nn.Module, shape: torch.Size | None = None) -> Written:
        """The layer's steps."""
        batch = self.target.batch
        writer = self._write(layer, lambda writer: write_layer(writer, layer, module, batch))
        return writer.program(layer.example(batch), shape)

    def write_chain(self, layer: Layer, module: nn.Module | None) -> Written:
        """The steps of a chain, by `htas.formats.onnx.write_chain`."""
        batch, first = self.target.batch, is_first(layer, self.target.shapes)
        writer = self._write(layer, lambda writer: write_chain(writer, layer, module, batch, first=first))
        return writer.program(tuple(torch.randn(shape) for shape in writer.input_shapes))

    def load(self, written: Written) -> Program:
        """The program of an engine."""
        opened = Opened(self.engine, written, self.target.threads, half=self.target.precision == "fp16")
        return Program(opened.run, lambda *tensors: opened.outputs(tensors)[0])

    def _write(self, layer: Layer, write: Callable[[ProgramWriter], None]) -> ProgramWriter:
        try:
            writer = self.writer(layer)
            write(writer)
            return writer
        except Unknown as error:
            raise UserError(
                f"{self.what} has nothing like {in_words(layer)} ({error}); replace it, or use another target.runtime"
            ) from None
