"""An ONNX file as a network to be measured: it runs where ONNX runs, and nowhere else."""

from math import prod
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from htas.errors import UserError

TYPES = {1: torch.float32, 6: torch.int32, 7: torch.int64, 9: torch.bool, 10: torch.float16, 11: torch.float64}
"""PyTorch's types, by ONNX's numbers for them."""


class OnnxFile(nn.Module):
    """The network in an ONNX file. PyTorch cannot run it: `forward` says which runtimes can."""

    def __init__(self, path: Path, batch: int) -> None:
        super().__init__()
        import onnx

        self.path, self.batch = path, batch
        try:
            model = onnx.load(path, load_external_data=False)
            self.graph: Any = onnx.shape_inference.infer_shapes(model).graph
        except FileNotFoundError as error:
            raise UserError(f"there is no file {path}; name an ONNX file") from error
        except Exception as error:  # whatever the parser makes of another file
            raise UserError(f"{path} is no ONNX file that can be read ({type(error).__name__})") from error
        held = {tensor.name for tensor in self.graph.initializer}
        self.inputs = [each for each in self.graph.input if each.name not in held]

    def forward(self, *images: Tensor) -> NoReturn:
        """Raises UserError: another runtime is needed."""
        raise UserError(
            f"{self.path} is an ONNX file, which eager PyTorch cannot run; give --runtime onnxruntime or openvino"
        )

    def example(self) -> tuple[Tensor, ...]:
        """Random inputs, [N, *shape] each: N is the target's batch where the file leaves it open.

        Raises UserError where the file fixes another batch, leaves other sizes open, or has an input of a strange type.
        """
        tensors = []
        for each in self.inputs:
            kind = each.type.tensor_type
            shape = self._shape(each.name, kind.shape.dim)
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
            out, shape_in = shapes.get(node.output[0], []), shapes.get(node.input[0] if node.input else "", [])
            if weight is None or node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
                continue
            pixels = shape_in if node.op_type == "ConvTranspose" else out
            over = pixels[2:] if node.op_type.startswith("Conv") else out[1:-1]
            total += prod(weight) * prod(over)
        return total
