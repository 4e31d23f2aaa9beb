"""Runtimes of ONNX graphs: networks through PyTorch's exporter, layers written directly, files as they are."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from math import ceil
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from htas.errors import UserError
from htas.formats.int8 import check_images, feeds_of, in_fp32_sentence, left_in_fp32, needs_seven_bits, quantize
from htas.formats.onnx import chain_graph, is_first, layer_graph
from htas.formats.onnx_file import OnnxFile
from htas.formats.onnx_network import static_graph
from htas.formats.parity import first, largest_difference
from htas.formats.written import Layout, Written, cast
from htas.graph.layer import WEIGHTED, Layer
from htas.runtimes import Program
from htas.runtimes._written import WrittenRuntime

QUANTIZING = 0.015
"""Seconds for a layer, on a core of an EPYC; a tenth of a second for ResNet-20."""
KEPT = 2**28
"""Bytes of quantized layers, about, that are kept while a runtime is open."""


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
    fp32_alone: ClassVar[tuple[str, ...]] = ()
    """Operators of ONNX that are computed in fp32 though the graph has them quantized."""

    quantized: dict[tuple[Layer, str], Written] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Layers in int8, up to KEPT bytes."""

    def __post_init__(self) -> None:
        if self.target.precision == "int8":
            object.__setattr__(self, "build_seconds", self.build_seconds + QUANTIZING)

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
            return self.builder.file(model, self._quantized_file if self.target.precision == "int8" else self.open)
        return super().compile(model, example)

    def _quantized_file(self, path: str, example: tuple[Tensor, ...]) -> Program:
        return self.remarked(self.quantized_file(path, example))

    def quantized_file(self, path: str, example: tuple[Tensor, ...]) -> Written:
        """An ONNX file in int8; raises UserError, which names it, where it cannot be quantized."""
        import onnx

        try:
            return self._noted(self._written(onnx.load(path).SerializeToString(), example))
        except UserError as error:
            raise UserError(f"{path}: {error}") from error

    def write_deployed(self, network: nn.Module, example: tuple[Tensor, ...], images: tuple[Tensor, ...]) -> Written:
        """The network, in int8 with ranges that the images show; raises UserError where they are unfit for that."""
        if self.target.precision != "int8":
            return self.write_network(network, example)
        example = cast(example, self.dtype)
        arrays = [image.numpy() for image in cast(images, self.dtype)]
        check_images(arrays, [each.numpy() for each in example])
        size, count = len(example[0]), len(arrays[0])
        # the last batch, or the only one, begins again with the first images: ranges stay as they are
        indices = np.arange(ceil(count / size) * size).reshape(-1, size) % count
        batches = [[array[batch] for array in arrays] for batch in indices]
        graph = self._checked_graph(network, example)
        content = quantize(graph, feeds_of(graph, batches), seven_bits=self.seven_bits)
        return self._noted(Written(content, example, Layout(self.dtype)))

    def _checked_graph(self, network: nn.Module, example: tuple[Tensor, ...]) -> bytes:
        """The network in fp32, whose outputs are PyTorch's; those in int8 of random weights need not be close."""
        graph = static_graph(network, example)
        with torch.no_grad():
            expected = first(network(*example))
        largest_difference(expected, self.open(graph, example).outputs(*example), f"{self.what} before it quantizes")
        return graph

    @property
    def seven_bits(self) -> bool:
        """Whether the processor wants weights of seven bits in int8."""
        return needs_seven_bits(self.target.instructions())

    def write_network(self, network: nn.Module, example: tuple[Tensor, ...]) -> Written:
        """The exported network; in int8 with the ranges of random activations, which make no difference in latency."""
        example = cast(example, self.dtype)
        if self.target.precision == "int8":
            return self._noted(self._written(self._checked_graph(network, example), example))
        return self._written(static_graph(network.to(self.dtype), example), example)

    def write_layer(self, layer: Layer, module: nn.Module, shape: torch.Size | None = None) -> Written:
        """The layer as a graph of its own, without the exporter."""
        batch = self.target.batch
        write = partial(layer_graph, layer, module, batch, self.dtype)
        return self._once((layer, "alone"), write, layer.example(batch))

    def write_chain(self, layer: Layer, module: nn.Module | None) -> Written:
        """The layer between two cheap convolutions, or these alone."""
        first = is_first(layer, self.target.shapes)
        write = partial(chain_graph, layer, module, self.target.batch, first=first, dtype=self.dtype)
        return self._once((layer, "chain" if module else "ends"), write, ())

    def in_fp32(self, layer: Layer) -> bool:
        """Whether the layer stays in fp32 though the target's precision is int8."""
        if self.target.precision != "int8" or layer.op not in WEIGHTED:
            return False
        return bool(left_in_fp32(self.write_layer(layer, layer.build()).content, self.fp32_alone))

    def load(self, written: Written) -> Program:
        """The graph, with inputs of its own where none are written."""
        return self.open(written.content, written.example or None)

    def _noted(self, written: Written) -> Written:
        """A quantized network with a remark on what stays in fp32."""
        return replace(written, remark=in_fp32_sentence(left_in_fp32(written.content, self.fp32_alone), self.what))

    def _once(self, key: tuple[Layer, str], write: Callable[[], bytes], example: tuple[Tensor, ...]) -> Written:
        """A layer's graph; in int8 the same one whenever its program is built again, so that it is quantized once."""
        if key in self.quantized:
            return self.quantized[key]
        written = self._written(write(), example)
        if self.target.precision == "int8" and sum(len(each.content) for each in self.quantized.values()) < KEPT:
            self.quantized[key] = written
        return written

    def _written(self, graph: bytes, example: tuple[Tensor, ...]) -> Written:
        if self.target.precision == "int8":
            graph = quantize(graph, seven_bits=self.seven_bits)
        return Written(graph, example, Layout(self.dtype))
