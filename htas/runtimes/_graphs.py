"""Runtimes of ONNX graphs: networks through PyTorch's exporter, layers written directly, files as they are."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from htas.formats.onnx import chain_graph, is_first, layer_graph
from htas.formats.onnx_file import OnnxFile
from htas.formats.onnx_network import static_graph
from htas.formats.written import Layout, Written, cast
from htas.graph.layer import Layer
from htas.runtimes import Program
from htas.runtimes._written import WrittenRuntime


@dataclass(frozen=True)
class GraphRuntime(WrittenRuntime):
    """A subclass opens graphs.

    On a CPU, a layer alone is reordered from NCHW to the layout of its kernel and back; inside a network its neighbours
    mostly have that layout already. The difference of the two programs of a chain is what the network pays: no price of
    a call, an add fused into the convolution before it, and a reorder exactly where the next layer causes one. It still
    contains a tail that reads other channels than without the layer (16 dot products of four pixels), and lacks the
    effect of caches in longer chains.
    """

    exports: ClassVar[bool] = True
    compares: ClassVar[bool] = False

    @abstractmethod
    def open(self, graph: bytes | str, example: tuple[Tensor, ...] | None = None) -> Program:
        """The program of a graph, or of a file by its path; its inputs are random without an example."""

    @property
    def dtype(self) -> torch.dtype:
        """Number format of graphs."""
        return torch.float32

    def compile(self, model: nn.Module, example: tuple[Tensor, ...]) -> Program:
        """The exported network, checked; an ONNX file as it is."""
        if isinstance(model, OnnxFile):
            return self.builder.file(model, self.open)
        return super().compile(model, example)

    def write_network(self, network: nn.Module, example: tuple[Tensor, ...]) -> Written:
        """The exported network."""
        example = cast(example, self.dtype)
        return self._written(static_graph(network.to(self.dtype), example), example)

    def write_layer(self, layer: Layer, module: nn.Module, shape: torch.Size | None = None) -> Written:
        """The layer as a graph of its own, without the exporter."""
        batch = self.target.batch
        return self._written(layer_graph(layer, module, batch, self.dtype), layer.example(batch))

    def write_chain(self, layer: Layer, module: nn.Module | None) -> Written:
        """The layer between two cheap convolutions, or these alone."""
        first = is_first(layer, self.target.shapes)
        return self._written(chain_graph(layer, module, self.target.batch, first=first, dtype=self.dtype), ())

    def load(self, written: Written) -> Program:
        """The graph, with inputs of its own where none are written."""
        return self.open(written.content, written.example or None)

    def _written(self, graph: bytes, example: tuple[Tensor, ...]) -> Written:
        return Written(graph, example, Layout(self.dtype))
