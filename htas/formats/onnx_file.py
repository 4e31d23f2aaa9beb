"""An ONNX file as a network to be measured: it runs where ONNX runs, and nowhere else."""

from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from htas.errors import UserError
from htas.text import first_line

TYPES = {1: torch.float32, 6: torch.int32, 7: torch.int64, 9: torch.bool, 10: torch.float16, 11: torch.float64}
"""PyTorch's types, by ONNX's numbers for them."""


LEAST_BYTES = {1: 4, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8}
"""Bytes of a number, by the same."""
STEPS = ("strides", "dilations", "kernel_shape", "group")
"""Attributes of convolutions and pools that are 1 or more: runtimes divide by them, and may crash elsewise."""
LARGEST = 2**31 - 1
"""Value of these and of `pads`, at most."""
EXTERNAL = 1
"""Of ONNX's data locations the one that is another file."""


def check_tensors(model: Any, path: Path) -> None:
    """Raise UserError where a constant of a model holds fewer numbers than it says, or lies in a file outside of the
    model's folder."""
    folder = path.resolve().parent
    for tensor in tensors_of(model.graph, *model.functions):
        sizes, name = list(tensor.dims), tensor.name or "a constant"
        needed = prod(sizes) * LEAST_BYTES.get(tensor.data_type, 0)
        if any(size < 0 for size in sizes):
            raise UserError(f"{path}: {name} is of shape {sizes}; no size may be below 0, so export it again")
        if tensor.data_location == EXTERNAL:
            place = {entry.key: entry.value for entry in tensor.external_data}.get("location", "")
            file = (folder / place).resolve()
            if not place or not file.is_relative_to(folder):
                raise UserError(
                    f"{path}: {name} lies in {place!r}, outside of the model's folder; put it beside the model"
                )
            available = file.stat().st_size if file.is_file() else -1
            if available < needed:
                why = f"has {available:,} bytes" if available >= 0 else "is missing"
                raise UserError(f"{path}: {name} needs {needed:,} bytes of {place}, which {why}; copy it there again")
        elif tensor.HasField("raw_data") and len(tensor.raw_data) < needed:
            raise UserError(
                f"{path}: {name} is of shape {sizes}, {needed:,} bytes, and the file holds {len(tensor.raw_data):,} of "
                "them; export it again"
            )


def check_steps(model: Any, path: Path) -> None:
    """Raise UserError where an attribute of a convolution or a pool is of a value that none may have."""
    for node in nodes_of(model.graph, *model.functions):
        for attribute in node.attribute:
            least = 1 if attribute.name in STEPS else -LARGEST if attribute.name == "pads" else None
            values = list(attribute.ints) or [attribute.i]
            if least is not None and not all(least <= value <= LARGEST for value in values):
                raise UserError(
                    f"{path}: {node.name or node.op_type} has {attribute.name} = {values}; each must be {least} to "
                    f"{LARGEST}, so export it again"
                )


def nodes_of(*graphs: Any) -> Iterator[Any]:
    """The steps of graphs and functions, those of graphs within them included."""
    for graph in graphs:
        for node in graph.node:
            yield node
            for attribute in node.attribute:
                yield from nodes_of(*((attribute.g,) if attribute.HasField("g") else ()), *attribute.graphs)


def tensors_of(*graphs: Any) -> Iterator[Any]:
    """The constants of graphs and functions, those of their nodes' attributes and of graphs within them included."""
    for graph in graphs:
        yield from getattr(graph, "initializer", ())
        for sparse in getattr(graph, "sparse_initializer", ()):
            yield from (sparse.values, sparse.indices)
        for attribute in (each for node in graph.node for each in node.attribute):
            yield from ((attribute.t,) if attribute.HasField("t") else ())
            yield from attribute.tensors
            yield from tensors_of(*((attribute.g,) if attribute.HasField("g") else ()), *attribute.graphs)


class OnnxFile(nn.Module):
    """The network in an ONNX file. PyTorch cannot run it: `forward` says which runtimes can."""

    def __init__(self, path: Path, batch: int) -> None:
        super().__init__()
        import onnx

        self.path, self.batch = path, batch
        try:
            model = onnx.load(path, load_external_data=False)
            check_tensors(model, path)
            check_steps(model, path)
            self.graph: Any = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        except FileNotFoundError as error:
            raise UserError(f"there is no file {path}; name an ONNX file") from error
        except UserError:
            raise
        except Exception as error:  # whatever the parser makes of another file
            why = first_line(error)[:300]
            raise UserError(f"{path} is no ONNX file that can be read ({type(error).__name__}: {why})") from error
        held = {tensor.name for tensor in self.graph.initializer}
        self.inputs = [each for each in self.graph.input if each.name not in held]
        if not self.graph.output or not self.graph.node:
            raise UserError(f"{path} has no {'outputs' if self.graph.node else 'steps'}, so nothing can be computed")
        self._check_memory()

    def _check_memory(self) -> None:
        """Raise UserError where an input, an output or what a step makes does not fit into this machine's memory."""
        import psutil

        free = psutil.virtual_memory().available
        for each in (*self.graph.input, *self.graph.output, *self.graph.value_info):
            kind = each.type.tensor_type
            sizes = [dim.dim_value or 1 for dim in kind.shape.dim]
            if any(size < 0 for size in sizes) or prod(sizes) * LEAST_BYTES.get(kind.elem_type, 1) > free:
                raise UserError(_too_large(self.path, each.name, sizes, free))

    def forward(self, *images: Tensor) -> NoReturn:
        """Raises UserError: another runtime is needed."""
        raise UserError(
            f"{self.path} is an ONNX file, which eager PyTorch cannot run; give --runtime onnxruntime or openvino"
        )

    def example(self) -> tuple[Tensor, ...]:
        """Random inputs, [N, *shape] each: N is the target's batch where the file leaves it open.

        Raises UserError where the file fixes another batch, leaves other sizes open, or has an input of a strange type.
        """
        import psutil

        tensors = []
        for each in self.inputs:
            kind = each.type.tensor_type
            shape = self._shape(each.name, kind.shape.dim)
            if prod(shape) * LEAST_BYTES.get(kind.elem_type, 1) > (free := psutil.virtual_memory().available):
                raise UserError(_too_large(self.path, each.name, shape, free))
            dtype = TYPES.get(kind.elem_type)
            if dtype is None:
                raise UserError(f"{self.path}: the input {each.name} has a type that cannot be measured")
            tensors.append(torch.randn(shape).to(dtype) if dtype.is_floating_point else torch.zeros(shape, dtype=dtype))
        return tuple(tensors)

    def _shape(self, name: str, dims: Any) -> list[int]:
        sizes = [dim.dim_value for dim in dims]
        opened = [number for number, size in enumerate(sizes) if size < 1]
        if opened and opened != [0]:
            raise UserError(
                f"{self.path}: the input {name} leaves more open than the batch, {sizes}; export it with fixed sizes"
            )
        if not opened and sizes and sizes[0] != self.batch:
            raise UserError(
                f"{self.path}: the input {name} is fixed to a batch of {sizes[0]}, and the target's is {self.batch}; "
                f"give --batch {sizes[0]}, or export it with an open batch"
            )
        return [self.batch, *sizes[1:]] if opened else sizes

    @property
    def count(self) -> int:
        """Weights and constants, counted as numbers."""
        return sum(prod(tensor.dims) for tensor in self.graph.initializer if tensor.data_type in (1, 10, 11))

    @property
    def macs(self) -> int:
        """Multiply-adds of convolutions and matrix products for one image, biases left out; 0 where shapes are open."""
        weights = {tensor.name: list(tensor.dims) for tensor in self.graph.initializer}
        values = [*self.graph.value_info, *self.graph.output, *self.graph.input]
        shapes = {each.name: [dim.dim_value for dim in each.type.tensor_type.shape.dim] for each in values}
        total = 0
        for node in self.graph.node:
            weight = next((weights[name] for name in node.input[1:2] if name in weights), None)
            out, shape_in = (shapes.get(ends[0], []) if ends else [] for ends in (node.output, node.input))
            if node.op_type == "MatMul" and weight is None and out and shape_in:  # of activations, as in attention
                total += shape_in[-1] * (prod(out) // self.batch or prod(out[1:]))
            if weight is None or node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
                continue
            pixels = shape_in if node.op_type == "ConvTranspose" else out
            over = pixels[2:] if node.op_type.startswith("Conv") else out[1:-1]
            total += prod(weight) * prod(over)
        return total


def _too_large(path: Path, name: str, sizes: list[int], free: int) -> str:
    return (
        f"{path}: {name} is of shape {sizes}, {prod(sizes):,} numbers, and {free / 1e9:.3g} GB of memory are free; "
        "export it with smaller sizes, or lower --batch"
    )
