"""Runtimes whose layers are written step by step, in a format of their own."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from htas.errors import UserError
from htas.formats.onnx import GraphWriter, Unknown, is_first, write_chain, write_layer
from htas.formats.parity import largest_difference, tolerance
from htas.graph.layer import Layer
from htas.runtimes import Program, Runtime
from htas.runtimes._build import in_words

W = TypeVar("W", bound=GraphWriter)


@dataclass(frozen=True)
class WrittenRuntime(Runtime, Generic[W]):
    """A subclass has a writer, and opens what one has collected."""

    @abstractmethod
    def writer(self, layer: Layer) -> W:
        """An empty one, for this layer alone or in a chain; raises Unknown where it is not for such a layer."""

    @abstractmethod
    def open(self, writer: W, example: tuple[Tensor, ...], shape: torch.Size | None = None) -> Program:
        """The program of what the writer has, with these inputs; its output takes the shape."""

    def compile_layer(self, layer: Layer) -> Program:
        """The layer alone, compared with its module."""
        example = layer.example(self.target.batch)

        def build() -> Program:
            module = layer.build()
            with torch.no_grad():
                expected = module(*example)
            writer = self._write(layer, lambda writer: write_layer(writer, layer, module, self.target.batch))
            program = self.open(writer, example, expected.shape)
            what = f"{self.what}: {in_words(layer)}"
            largest_difference(expected, program.outputs(*example), what, tolerance(self.target))
            return program

        return self.builder.layer(layer, build)

    def chain(self, layer: Layer) -> tuple[Program, Program]:
        """The layer between two cheap convolutions, and these alone: it gets and leaves channels as between the layers
        of a network, and the price of a call is in neither."""
        module, batch = layer.build(), self.target.batch
        start = is_first(layer, self.target.shapes)

        def build(part: nn.Module | None) -> Program:
            writer = self._write(layer, lambda writer: write_chain(writer, layer, part, batch, first=start))
            return self.open(writer, tuple(torch.randn(shape) for shape in writer.input_shapes))

        one, other = (self.builder.layer(layer, partial(build, part)) for part in (module, None))
        return one, other

    def _write(self, layer: Layer, write: Callable[[W], None]) -> W:
        try:
            writer = self.writer(layer)
            write(writer)
            return writer
        except Unknown as error:
            raise UserError(
                f"{self.what} has nothing like {in_words(layer)} ({error}); replace it, or use another target.runtime"
            ) from None
