"""Networks and layers as LiteRT's files (.tflite), channels last, written from steps in ONNX's words.

LiteRT's own converter (litert-torch) takes one to seven seconds for a layer or a small network and installs JAX and
Transformers; here a layer takes milliseconds, with the operators that the converter writes (a test has its output of
one). A layout is changed only where a step needs it: permuting dimensions is no step of its own.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from htas.data.split import Shape
from htas.formats.onnx import Unknown, Window
from htas.formats.written import Layout, Written
from htas.graph.layer import Layer
from htas.plugins import needed

IDENTIFIER = b"TFL3"
LAST = (0, 2, 3, 1)
"""Channels last: the order in which the dimensions of an image lie in memory."""
SAME, VALID = 0, 1
"""Padding."""
UNARY = {"Relu": "RELU", "Sigmoid": "LOGISTIC", "Tanh": "TANH", "HardSwish": "HARD_SWISH", "Elu": "ELU", "Gelu": "GELU",
         "LeakyRelu": "LEAKY_RELU", "Exp": "EXP", "Sqrt": "SQRT", "Neg": "NEG", "Abs": "ABS"}  # fmt: skip
BINARY = {"Add": "ADD", "Sub": "SUB", "Mul": "MUL", "Div": "DIV", "Max": "MAXIMUM", "Min": "MINIMUM"}
FUSED = {"RELU": 1, "RELU6": 3}
"""Activations that are part of the step before."""
FUSING = {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "ADD", "SUB", "MUL", "DIV"}
OPTIONS = {"CONV_2D": "Conv2DOptions", "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions", "MEAN": "ReducerOptions",
           "FULLY_CONNECTED": "FullyConnectedOptions", "MAX_POOL_2D": "Pool2DOptions", "GELU": "GeluOptions",
           "AVERAGE_POOL_2D": "Pool2DOptions", "ADD": "AddOptions", "SUB": "SubOptions", "MUL": "MulOptions",
           "DIV": "DivOptions", "LEAKY_RELU": "LeakyReluOptions", "CONCATENATION": "ConcatenationOptions",
           "RESHAPE": "ReshapeOptions", "STRIDED_SLICE": "StridedSliceOptions", "SOFTMAX": "SoftmaxOptions",
           }  # fmt: skip
"""Names of the records of options, of steps that have any."""


def usual_order(rank: int) -> Sequence[int]:
    """In which the dimensions of an input or output lie: those of images with the channels last."""
    return LAST if rank == 4 else range(rank)


@dataclass(frozen=True)
class Place:
    """Where a value is: a tensor of the file, and which of the value's dimensions lie there one after another."""

    tensor: int
    order: tuple[int, ...]

    def to_file(self, value: Tensor) -> Tensor:
        """The value as the file has it."""
        return value.permute(self.order).contiguous()

    def from_file(self, tensor: Tensor) -> Tensor:
        """The tensor of a file as the value."""
        return tensor.permute([self.order.index(dim) for dim in range(tensor.ndim)])


@dataclass
class _Step:
    kind: str
    inputs: list[int]
    output: int
    options: dict[str, int | float | bool]


@dataclass(frozen=True)
class TfliteLayout(Layout):
    """Inputs and outputs where a file has them; without places, images have their channels last."""

    inputs: tuple[Place, ...] = ()
    results: tuple[Place, ...] = ()

    def arrays(self, tensors: Sequence[Tensor]) -> list[np.ndarray]:
        """Inputs [N, ...] as the file takes them."""
        places = self.inputs or tuple(usual_place(tensor.ndim) for tensor in tensors)
        return super().arrays([place.to_file(tensor) for place, tensor in zip(places, tensors, strict=True)])

    def tensors(self, arrays: Sequence[np.ndarray]) -> list[Tensor]:
        """Outputs [N, ...] in fp32."""
        places = self.results or tuple(usual_place(array.ndim) for array in arrays)
        pairs = zip(super().tensors(arrays), places, strict=False)  # a device sends the first output only
        return [place.from_file(tensor) for tensor, place in pairs]


def usual_place(rank: int) -> Place:
    """Of a value that lies in the usual order, in whatever tensor."""
    return Place(0, tuple(usual_order(rank)))


class TfliteWriter:
    """Collects steps in ONNX's words, and writes them as LiteRT's; images are given and returned channels last."""

    def __init__(self, layer: Layer | None = None) -> None:
        """For a network; or for a layer alone or in a chain, where a convolution has one reader, into which a norm
        then goes, and where a linear layer gets its channels last."""
        if layer is not None and len(layer.size) != 2:
            raise Unknown(f"{len(layer.size)} dimensions of pixels")
        self.folds, self.channels_last = layer is not None, layer is not None and layer.op == "linear"
        self.schema = needed("ai_edge_litert.schema_py_generated", "litert", "a .tflite file")
        self.path = ""
        self.inputs: list[Place] = []
        self.results: list[Place] = []
        self.steps: list[_Step] = []
        self.places: dict[str, Place] = {}
        self.shapes: dict[str, Shape] = {}
        self.constants: dict[str, Tensor] = {}
        self.tensors: list[tuple[Shape, np.ndarray | None]] = []

    def input(self, name: str, shape: Shape) -> str:
        """Declare an input, [N, *shape]; its name."""
        order = range(len(shape)) if self.channels_last else usual_order(len(shape))
        place = self._value(name, shape, order)
        self.inputs.append(place)
        return name

    @property
    def input_shapes(self) -> list[Shape]:
        """Shapes of the inputs, [N, *shape]."""
        return [self.shapes[name] for name, place in self.places.items() if place in self.inputs]

    def output(self, name: str) -> None:
        """Declare that a value is an output; that of a network lies in the usual order."""
        place, order = self.places[name], usual_order(len(self.shapes[name]))
        self.results.append(place if self.folds else Place(self._ordered(name, order), tuple(order)))

    def constant(self, tensor: Tensor) -> str:
        """Add a constant of any shape; its name."""
        name = f"weight{len(self.constants)}"
        self.constants[name] = tensor.detach().cpu()
        return name

    def node(self, op: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Add a step; the name of its output. Raises Unknown where LiteRT has none like it, or not written here."""
        values = [name for name in inputs if name in self.places]
        constants = [self.constants[name] for name in inputs if name in self.constants]
        if not values:
            raise Unknown(op)
        shape = self.shapes[values[0]]
        match op:
            case "Conv":
                return self._conv(values[0], shape, constants, Window.of(constants[0].shape[2:], **attributes))
            case "Gemm":
                return self._linear(values[0], shape, constants)
            case "MatMul" if len(constants) == 1 and constants[0].ndim == 2:
                return self._linear(values[0], shape, [constants[0].t()])
            case "MaxPool" | "AveragePool":
                counted = attributes.get("count_include_pad", 0) if op == "AveragePool" else None
                return self._pool(values[0], shape, Window.of(attributes.pop("kernel_shape"), **attributes), counted)
            case "GlobalAveragePool":
                return self._mean(values[0], range(2, len(shape)), keep=True)
            case "ReduceMean":
                return self._mean(values[0], [int(dim) for dim in constants[0]], keep=bool(attributes["keepdims"]))
            case "BatchNormalization":
                return self._norm(values[0], shape, constants, attributes["epsilon"])
            case "Reshape":
                return self._reshape(values[0], [int(side) for side in constants[0]])
            case "Transpose":
                return self._permuted(values[0], attributes["perm"])
            case "Concat":
                return self._concat(values, attributes["axis"]) if not constants else self._unknown(op)
            case "Slice":
                return self._slice(values[0], constants)
            case "Identity":
                return values[0]
            case _ if op in BINARY and len(inputs) == 2:
                return self._binary(BINARY[op], inputs)
            case _:
                return self._activation(op, values[0], constants, **attributes)

    def program(self, example: tuple[Tensor, ...], shape: torch.Size | None = None) -> Written:
        """All of it as an engine opens it, with inputs [N, ...]; it needs no shape."""
        layout = TfliteLayout(inputs=tuple(self.inputs), results=tuple(self.results))
        return Written(self.content(), example, layout)

    def content(self) -> bytes:
        """All of it as one file."""
        import flatbuffers

        self._fuse()
        schema = self.schema
        model, graph = schema.ModelT(), schema.SubGraphT()
        model.version, model.description, model.subgraphs = 3, "htas", [graph]
        model.buffers = [schema.BufferT()]
        graph.tensors, graph.operators = [], []
        names = {place.tensor: f"output{number}" for number, place in enumerate(self.results)}
        names |= {place.tensor: f"input{number}" for number, place in enumerate(self.inputs)}
        for number, (shape, values) in enumerate(self.tensors):
            tensor = schema.TensorT()
            tensor.shape, tensor.name = np.array(shape, np.int32), names.get(number, f"tensor{number}")
            whole = values is not None and values.dtype == np.int32
            tensor.type = schema.TensorType.INT32 if whole else schema.TensorType.FLOAT32
            tensor.buffer = 0
            if values is not None:
                tensor.buffer = len(model.buffers)
                buffer = schema.BufferT()
                buffer.data = np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)
                model.buffers.append(buffer)
            graph.tensors.append(tensor)
        kinds = list(dict.fromkeys(step.kind for step in self.steps))
        model.operatorCodes = [self._code(kind) for kind in kinds]
        graph.operators = [self._operator(step, kinds.index(step.kind)) for step in self.steps]
        graph.inputs = np.array([place.tensor for place in self.inputs], np.int32)
        graph.outputs = np.array([place.tensor for place in self.results], np.int32)
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), file_identifier=IDENTIFIER)
        return bytes(builder.Output())

    def _fuse(self) -> None:
        """Make activations, and the biases of linear layers on pixels, part of the steps before them, where nothing
        else reads those."""
        makers = {step.output: step for step in self.steps}
        readers = Counter(tensor for step in self.steps for tensor in step.inputs)
        readers.update(place.tensor for place in self.results)
        for step in list(self.steps):
            maker = makers.get(step.inputs[0])
            if maker is None or readers[step.inputs[0]] > 1 or "fusedActivationFunction" in maker.options:
                continue
            if step.kind == "ADD" and self._is_bias(maker, step.inputs[1]):
                maker.inputs[2] = self._fixed(self._array(step.inputs[1]).reshape(-1))
            elif step.kind in FUSED and maker.kind in FUSING:
                maker.options["fusedActivationFunction"] = FUSED[step.kind]
            else:
                continue
            maker.output = step.output
            makers[step.output] = maker
            self.steps.remove(step)

    def _is_bias(self, maker: _Step, tensor: int) -> bool:
        """Whether a tensor is a constant for every output of this linear layer, which has no bias yet."""
        shape, values = self.tensors[tensor]
        if maker.kind != "FULLY_CONNECTED" or values is None or self._array(maker.inputs[2]).any():
            return False
        return bool(shape) and shape[-1] == values.size == self.tensors[maker.output][0][-1]

    # -- the file ------------------------------------------------------------------------------------------------------

    def _code(self, kind: str) -> Any:
        code = self.schema.OperatorCodeT()
        code.builtinCode = getattr(self.schema.BuiltinOperator, kind)
        code.deprecatedBuiltinCode, code.version = min(code.builtinCode, 127), 1
        return code

    def _operator(self, step: _Step, code: int) -> Any:
        operator = self.schema.OperatorT()
        operator.opcodeIndex = code
        operator.inputs, operator.outputs = np.array(step.inputs, np.int32), np.array([step.output], np.int32)
        if step.kind in OPTIONS:
            operator.builtinOptionsType = getattr(self.schema.BuiltinOptions, OPTIONS[step.kind])
            operator.builtinOptions = getattr(self.schema, f"{OPTIONS[step.kind]}T")()
            for name, value in step.options.items():
                setattr(operator.builtinOptions, name, value)
        return operator

    # -- values --------------------------------------------------------------------------------------------------------

    def _unknown(self, what: object) -> str:
        raise Unknown(what)

    def _tensor(self, shape: Sequence[int], values: np.ndarray | None = None) -> int:
        self.tensors.append((tuple(shape), values))
        return len(self.tensors) - 1

    def _fixed(self, values: Any, kind: Any = np.float32) -> int:
        array = np.asarray(values.numpy() if isinstance(values, Tensor) else values).astype(kind)
        return self._tensor(array.shape, array)

    def _value(self, name: str, shape: Sequence[int], order: Sequence[int]) -> Place:
        place = Place(self._tensor([shape[dim] for dim in order]), tuple(order))
        self.places[name], self.shapes[name] = place, tuple(shape)
        return place

    def _add(self, kind: str, inputs: Sequence[int], shape: Sequence[int], order: Sequence[int], **options: Any) -> str:
        name = f"value{len(self.places)}"
        place = self._value(name, shape, order)
        self.steps.append(_Step(kind, list(inputs), place.tensor, options))
        return name

    def _ordered(self, name: str, order: Sequence[int]) -> int:
        """The tensor that holds a value in this order."""
        place, shape, order = self.places[name], self.shapes[name], tuple(order)

        def sides(order: Sequence[int]) -> list[int]:
            return [dim for dim in order if shape[dim] != 1]

        if place.order == order:
            return place.tensor
        sizes = [shape[dim] for dim in order]
        output = self._tensor(sizes)
        if sides(place.order) == sides(order):  # the numbers lie in the same order
            self.steps.append(
                _Step(
                    "RESHAPE",
                    [place.tensor, self._fixed([-1 if dim == 0 else shape[dim] for dim in order], np.int32)],
                    output,
                    {},
                )
            )
        else:
            turn = [place.order.index(dim) for dim in order]
            self.steps.append(_Step("TRANSPOSE", [place.tensor, self._fixed(turn, np.int32)], output, {}))
        return output

    # -- steps ---------------------------------------------------------------------------------------------------------

    def _padded(self, tensor: int, padding: Sequence[int], value: float | None = None) -> int:
        """The image, [N, height, width, channels], with zeros or the value around it."""
        shape = list(self.tensors[tensor][0])
        pairs = [(0, 0), *((pad, pad) for pad in padding), (0, 0)]
        output = self._tensor([side + before + after for side, (before, after) in zip(shape, pairs, strict=True)])
        extra = [] if value is None else [self._fixed(np.float32(value).reshape(1))]
        kind = "PAD" if value is None else "PADV2"
        self.steps.append(_Step(kind, [tensor, self._fixed(pairs, np.int32), *extra], output, {}))
        return output

    def _conv(self, name: str, shape: Shape, constants: list[Tensor], window: Window) -> str:
        if len(shape) != 4:
            raise Unknown(f"{len(shape) - 2}-d conv")
        weight, groups = constants[0].float(), window.groups
        bias = constants[1].float() if constants[1:] else torch.zeros(len(weight))
        tensor, padding = self._ordered(name, LAST), VALID
        if any(window.padding):
            if set(window.stride) == {1} and window.sizes(shape[2:]) == tuple(shape[2:]):
                padding = SAME
            else:
                tensor = self._padded(tensor, window.padding)
        options: dict[str, int | float | bool] = {
            "padding": padding, "strideH": window.stride[0], "strideW": window.stride[1],
            "dilationHFactor": window.dilation[0], "dilationWFactor": window.dilation[1],
        }  # fmt: skip
        kind, weights = "CONV_2D", weight.permute(0, 2, 3, 1)
        if groups == shape[1] and groups > 1:
            kind, weights = "DEPTHWISE_CONV_2D", weight.permute(1, 2, 3, 0)
            options["depthMultiplier"] = len(weight) // groups
        after = (shape[0], len(weight), *window.sizes(shape[2:]))
        return self._add(kind, [tensor, self._fixed(weights), self._fixed(bias)], after, LAST, **options)

    def _linear(self, name: str, shape: Shape, constants: list[Tensor]) -> str:
        weight = constants[0].float()
        bias = constants[1].float() if constants[1:] else torch.zeros(len(weight))
        order = range(len(shape))
        inputs = [self._ordered(name, order), self._fixed(weight), self._fixed(bias)]
        return self._add("FULLY_CONNECTED", inputs, (*shape[:-1], len(weight)), order, keepNumDims=len(shape) > 2)

    def _pool(self, name: str, shape: Shape, window: Window, counted: int | None) -> str:
        if len(shape) != 4:
            raise Unknown(f"{len(shape) - 2}-d pool")
        if set(window.dilation) != {1}:
            raise Unknown("a pool with dilation")
        tensor, padding = self._ordered(name, LAST), VALID
        if any(window.padding):
            if counted is None:
                tensor = self._padded(tensor, window.padding, float(np.finfo(np.float32).min))
            elif counted:
                tensor = self._padded(tensor, window.padding)
            elif set(window.stride) == {1} and window.sizes(shape[2:]) == tuple(shape[2:]):
                padding = SAME
            else:
                raise Unknown("an average without the padding")
        options = {
            "padding": padding, "strideH": window.stride[0], "strideW": window.stride[1],
            "filterHeight": window.kernel[0], "filterWidth": window.kernel[1],
        }  # fmt: skip
        kind = "MAX_POOL_2D" if counted is None else "AVERAGE_POOL_2D"
        return self._add(kind, [tensor], (*shape[:2], *window.sizes(shape[2:])), LAST, **options)

    def _mean(self, name: str, dims: Sequence[int], *, keep: bool) -> str:
        place, shape = self.places[name], self.shapes[name]
        dims = [dim % len(shape) for dim in dims]
        axes = self._fixed([place.order.index(dim) for dim in dims], np.int32)
        if keep:
            after = [1 if dim in dims else side for dim, side in enumerate(shape)]
            return self._add("MEAN", [place.tensor, axes], after, place.order, keepDims=True)
        rest = [dim for dim in range(len(shape)) if dim not in dims]
        order = [rest.index(dim) for dim in place.order if dim in rest]
        return self._add("MEAN", [place.tensor, axes], [shape[dim] for dim in rest], order, keepDims=False)

    def _norm(self, name: str, shape: Shape, tensors: list[Tensor], eps: float) -> str:
        """A norm, part of the convolution or linear layer before it where nothing else reads that."""
        scale, shift, mean, variance = (tensor.float() for tensor in tensors)
        factor = scale * torch.rsqrt(variance + eps)
        step = next((step for step in self.steps if step.output == self.places[name].tensor), None)
        if self.folds and step is not None and step.kind in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
            weight, bias = (torch.from_numpy(self._array(tensor)) for tensor in step.inputs[1:])
            turned = factor if step.kind == "DEPTHWISE_CONV_2D" else factor.view(-1, *(1 for _ in weight.shape[1:]))
            step.inputs[1:] = self._fixed(weight * turned), self._fixed(shift + (bias - mean) * factor)
            return name
        sides = (1, -1, *(1 for _ in shape[2:]))
        scaled = self._binary("MUL", [name, self.constant(factor.view(sides))])
        return self._binary("ADD", [scaled, self.constant((shift - mean * factor).view(sides))])

    def _array(self, tensor: int) -> np.ndarray:
        values = self.tensors[tensor][1]
        assert values is not None
        return values

    def _binary(self, kind: str, names: Sequence[str]) -> str:
        shapes = [self.shapes[name] if name in self.places else tuple(self.constants[name].shape) for name in names]
        after = tuple(np.broadcast_shapes(*shapes))
        value = next(name for name in names if name in self.places and len(self.shapes[name]) == len(after))
        order, tensors = self.places[value].order, []
        for name, shape in zip(names, shapes, strict=True):
            if name in self.constants:
                full = self.constants[name].float().reshape((1,) * (len(after) - len(shape)) + shape)
                tensors.append(self._fixed(full.permute(order) if len(after) else full))
            elif len(shape) == len(after):
                tensors.append(self._ordered(name, order))
            else:
                raise Unknown("dimensions")
        return self._add(kind, tensors, after, order)

    def _activation(self, op: str, name: str, constants: list[Tensor], **attributes: Any) -> str:
        place, shape = self.places[name], self.shapes[name]
        if op == "Clip" and [float(bound) for bound in constants] == [0.0, 6.0]:
            kind = "RELU6"
        elif op == "HardSigmoid":
            moved = self._binary("ADD", [name, self.constant(torch.tensor([3.0]))])
            return self._binary("MUL", [self._activation("Clip", moved, [torch.tensor(0.0), torch.tensor(6.0)]),
                                        self.constant(torch.tensor([1 / 6]))])  # fmt: skip
        elif op == "Elu" and attributes["alpha"] != 1:
            raise Unknown(op)
        elif op in UNARY:
            kind = UNARY[op]
        else:
            raise Unknown(op)
        options = {}
        if op == "LeakyRelu":
            options = {"alpha": attributes["alpha"]}
        if op == "Gelu":
            options = {"approximate": attributes["approximate"] == "tanh"}
        return self._add(kind, [place.tensor], shape, place.order, **options)

    # -- moves ---------------------------------------------------------------------------------------------------------

    def _reshape(self, name: str, shape: Sequence[int]) -> str:
        place, before, after = self.places[name], self.shapes[name], tuple(shape)
        if before == after:
            return name
        sides = [dim for dim in place.order if before[dim] != 1]
        tensor = place.tensor if sides == sorted(sides) else self._ordered(name, range(len(before)))
        order = LAST if len(after) == 4 and set(after[2:]) == {1} else range(len(after))
        sizes = self._fixed([-1 if dim == 0 else after[dim] for dim in order], np.int32)  # for any batch
        return self._add("RESHAPE", [tensor, sizes], after, order)

    def _permuted(self, name: str, perm: Sequence[int]) -> str:
        place, shape = self.places[name], self.shapes[name]
        alias = f"value{len(self.places)}"
        self.places[alias] = Place(place.tensor, tuple(perm.index(dim) for dim in place.order))
        self.shapes[alias] = tuple(shape[dim] for dim in perm)
        return alias

    def _concat(self, names: Sequence[str], axis: int) -> str:
        order, shape = self.places[names[0]].order, list(self.shapes[names[0]])
        shape[axis] = sum(self.shapes[name][axis] for name in names)
        tensors = [self._ordered(name, order) for name in names]
        return self._add("CONCATENATION", tensors, shape, order, axis=order.index(axis))

    def _slice(self, name: str, constants: list[Tensor]) -> str:
        place, shape = self.places[name], list(self.shapes[name])
        starts, ends, steps, whole = [0] * len(shape), list(shape), [1] * len(shape), 2 ** len(shape) - 1
        for start, end, axis, step in zip(*(each.tolist() for each in constants), strict=True):
            starts[axis], ends[axis], steps[axis] = start, end, step
            shape[axis] = -(-(end - start) // step)
            whole &= ~(1 << place.order.index(axis))
        parts = [self._fixed([each[dim] for dim in place.order], np.int32) for each in (starts, ends, steps)]
        return self._add("STRIDED_SLICE", [place.tensor, *parts], shape, place.order, beginMask=whole, endMask=whole)
