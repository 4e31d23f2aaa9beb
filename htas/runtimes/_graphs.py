"""Runtimes of ONNX graphs: networks through PyTorch's exporter, layers written directly, files as they are."""

from abc import abstractmethod
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from htas.formats.onnx import chain_graphs, is_first, layer_graph
from htas.formats.onnx_file import OnnxFile
from htas.formats.onnx_network import static_graph
from htas.graph.layer import Layer
from htas.runtimes import Program, Runtime


@dataclass(frozen=True)
class GraphRuntime(Runtime):
    """A subclass opens graphs."""

    exports: ClassVar[bool] = True

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

    def build(self, network: nn.Module, example: tuple[Tensor, ...]) -> Program:
        """The exported network; `rebuild` opens the same graph again."""
        graph = static_graph(network.to(self.dtype), cast(example, self.dtype))
        return replace(self.open(graph, example), rebuild=partial(self.open, graph, example))

    def compile_layer(self, layer: Layer) -> Program:
        """The layer as a graph of its own, without the exporter."""

        def build() -> Program:
            graph = layer_graph(layer, layer.build(), self.target.batch, self.dtype)
            return self.open(graph, layer.example(self.target.batch))

        return self.builder.layer(layer, build)

    def chain(self, layer: Layer) -> tuple[Program, Program]:
        """The layer between two cheap convolutions, and these alone.

        On a CPU, a layer alone is reordered from NCHW to the layout of its kernel and back; inside a network its
        neighbours mostly have that layout already. The difference of the two programs is what the network pays: no
        price of a call, an add fused into the convolution before it, and a reorder exactly where the next layer causes
        one. It still contains a tail that reads other channels than without the layer (16 dot products of four
        pixels), and lacks the effect of caches in longer chains.
        """
        first, batch = is_first(layer, self.target.shapes), self.target.batch
        graphs = chain_graphs(layer, layer.build(), batch, first=first, dtype=self.dtype)
        one, other = (self.builder.layer(layer, partial(self.open, graph)) for graph in graphs)
        return one, other


def cast(tensors: tuple[Tensor, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Tensors on the CPU, floating-point ones as `dtype`."""
    return tuple(tensor.cpu().to(dtype) if tensor.is_floating_point() else tensor.cpu() for tensor in tensors)
