"""Networks and layers for ncnn: a text that lists the steps (.param), and their weights (.bin).

Networks are converted by pnnx, ncnn's own converter, from TorchScript. It takes a third of a second for one layer, so
layers are written here, with the steps that pnnx would write and with the norms and activations that it would make part
of them (a test compares both).
"""

import struct
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from htas.data.split import Shape
from htas.errors import UserError
from htas.formats.onnx import Unknown, Window, cannot_export, quiet
from htas.formats.written import Layout, Written
from htas.plugins import needed
from htas.timing.remote.engines import import_ncnn

TAG = struct.pack("<I", 0)
"""Before weights of fp32."""
MAGIC = "7767517"
"""The first line of every text."""
PNNX = "pnnx"
AXES = (("1", "2", "3", "4", "18"), ("11", "12", "13", "14", "19"), ("21", "22", "23", "24", "20"))
"""Numbers of the parameters kernel, dilation, stride, padding and output padding: along the width, height, depth."""
POOL_AXES = (("1", "2", "3"), ("11", "12", "13"), ("21", "22", "23"))
"""Numbers of the parameters kernel, stride and padding of a pool."""
SUFFIXES = {1: "1D", 2: "", 3: "3D"}
"""What a step's name ends in, by the number of dimensions of the pixels."""
SIMPLE: Mapping[str, tuple[str, str]] = {
    "Relu": ("ReLU", ""), "Sigmoid": ("Sigmoid", ""), "Tanh": ("TanH", ""), "Add": ("BinaryOp", "0=0"),
    "HardSwish": ("HardSwish", "0=0.166666672 1=0.5"), "HardSigmoid": ("HardSigmoid", "0=0.166666672 1=0.5"),
}  # fmt: skip
"""ONNX's names of steps without weights, as ncnn has them."""
ELEMENTWISE = {*SIMPLE, "Clip", "LeakyRelu", "Elu", "Gelu", "Mul", "BatchNormalization"}
"""Steps whose output has the shape of their input."""
FUSED = ("Convolution", "ConvolutionDepthWise", "Deconvolution", "DeconvolutionDepthWise", "InnerProduct")
"""Steps that an activation becomes part of, with the endings for other dimensions."""


@dataclass(frozen=True)
class NcnnModel:
    """A network as ncnn's files have it; its inputs are called in0, in1 and so on, its outputs out0, out1 and so on."""

    param: str
    """The steps as text."""
    weights: bytes

    def program(self, example: tuple[Tensor, ...] = (), shape: torch.Size | None = None) -> Written:
        """As an engine opens it, with inputs [N, ...] and the shape of the first output."""
        text = self.param.encode()
        return Written(len(text).to_bytes(4, "big") + text + self.weights, example, Layout(shape=shape))


@cache
def ncnn_package() -> Any:
    """The package, whose threads sleep while they have no work; raises UserError where it is not installed."""
    load: Callable[[], Any] = import_ncnn
    with suppress(ImportError):
        return load()
    return needed("ncnn", "ncnn", "target.runtime 'ncnn'")


def ncnn_network(model: nn.Module, example: tuple[Tensor, ...]) -> NcnnModel:
    """A network in eval mode as pnnx converts it, for inputs like `example`, [N, *shape] each.

    Raises UserError where TorchScript or pnnx cannot convert it.
    """
    converter = needed(PNNX, "ncnn", "a network for ncnn").EXEC_PATH
    if not all(tensor.dtype == torch.float32 for tensor in example):
        raise UserError("ncnn gets inputs of real numbers here; use target.runtime 'onnxruntime' for whole numbers")
    with TemporaryDirectory() as name:
        folder = Path(name)
        with quiet():
            try:
                with torch.no_grad():
                    torch.jit.trace(model, example, check_trace=False).save(folder / "network.pt")  # type: ignore
            except Exception as error:  # tracing runs the model
                raise UserError(cannot_export(model, "TorchScript", error)) from error
        shapes = ",".join("[" + ",".join(map(str, tensor.shape)) + "]" for tensor in example)
        command = [converter, "network.pt", f"inputshape={shapes}", "fp16=0", "device=cpu"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        param, weights = folder / "network.ncnn.param", folder / "network.ncnn.bin"
        if done.returncode or not param.exists() or not weights.exists():
            lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
            raise UserError(f"pnnx cannot convert this network ({lines[-1][:200] if lines else 'it says nothing'})")
        return NcnnModel(param.read_text(), weights.read_bytes())


@dataclass
class _Step:
    """One line of the text, with its weights."""

    kind: str
    inputs: list[str]
    output: str
    settings: str = ""
    weights: list[Tensor] = field(default_factory=list)
    tagged: bool = False
    """Whether four bytes before the first weights name their number format."""
    outputs: int = 0
    """Channels of a weighted step's output."""
    activation: str = ""
    """Settings of the activation that is part of it."""
    fused: str = ""
    """Of an activation: those settings, where it can be part of the step before."""

    @property
    def fuses(self) -> bool:
        """Whether an activation can become part of it, and none has yet."""
        return self.kind.removesuffix("1D").removesuffix("3D") in FUSED and not self.activation


class NcnnWriter:
    """Collects steps in ONNX's words, and writes them as ncnn's."""

    def __init__(self) -> None:
        self.path = ""
        self.inputs: list[Any] = []
        self.steps: list[_Step] = []
        self.results: list[str] = []
        self.constants: dict[str, Tensor] = {}
        self.shapes: dict[str, Shape] = {}

    def input(self, name: str, shape: Shape) -> str:
        """Declare an input, [N, *shape]; its name."""
        name = f"in{len(self.inputs)}"
        self.inputs.append(name)
        self.steps.append(_Step("Input", [], name))
        self.shapes[name] = shape
        return name

    @property
    def input_shapes(self) -> list[Shape]:
        """Shapes of the inputs, [N, *shape]."""
        return [self.shapes[name] for name in self.inputs]

    def output(self, name: str) -> None:
        """Declare that a value is an output."""
        self.results.append(name)

    def constant(self, tensor: Tensor) -> str:
        """Add a constant of any shape; its name."""
        name = f"constant{len(self.constants)}"
        self.constants[name] = tensor.detach().cpu().float()
        return name

    def node(self, op: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Add a step; the name of its output. Raises Unknown where ncnn has none like it."""
        values = [name for name in inputs if name not in self.constants]
        constants = [self.constants[name] for name in inputs if name in self.constants]
        shape = self.shapes.get(values[0])
        kernel = attributes.get("kernel_shape") or (constants[0].shape[2:] if op.startswith("Conv") else ())
        window = Window.of(kernel, **attributes)
        match op:
            case "Conv" if shape is not None and {*shape[2:], *kernel, window.groups} == {1}:
                output = self._weighted("InnerProduct", values, [constants[0].flatten(1), *constants[1:]])
            case "Conv" | "ConvTranspose":
                output = self._convolution(op == "ConvTranspose", values, constants, window)
            case "Gemm":
                output = self._weighted("InnerProduct", values, constants)
            case "MatMul" if len(constants) == 1 and shape is not None:
                return self._rows(values, [constants[0].t()], shape)
            case "Add" if constants:
                return self._biased(values[0], constants[0])
            case "MaxPool" | "AveragePool":
                counted = attributes.get("count_include_pad") if op == "AveragePool" else None
                output = self._pool(values, window, counted)
            case "GlobalAveragePool" if shape is not None:
                output = self._step(f"Pooling{SUFFIXES[len(shape) - 2]}", values, "0=1 4=1")
            case "BatchNormalization":
                output = self._normed(values[0], constants, attributes["epsilon"])
            case _:
                output = self._elementwise(op, values, constants, **attributes)
        if shape is not None:
            self.shapes[output] = shape if op in ELEMENTWISE else _after(op, shape, constants, window)
        return output

    def program(self, example: tuple[Tensor, ...], shape: torch.Size | None = None) -> Written:
        """All of it as an engine opens it, with inputs [N, ...] and the shape of the output."""
        return self.content().program(example, shape)

    def content(self) -> NcnnModel:
        """All of it, as ncnn's files have it."""
        self._fuse()
        renamed, steps = {}, self.steps
        for place, name in enumerate(self.results):
            if name in renamed or name in self.inputs:
                raise Unknown(name)
            renamed[name] = f"out{place}"
        for step in steps:
            step.inputs = [renamed.get(name, name) for name in step.inputs]
            step.output = renamed.get(step.output, step.output)
        lines: list[str] = []
        number = 0
        for step in steps:
            readers = [(other, at) for other in steps for at, name in enumerate(other.inputs) if name == step.output]
            lines.append(_line(step, len(lines), [step.output]))
            number += 1
            if len(readers) > 1:  # every value has one reader in ncnn
                copies = [f"{step.output}_{place}" for place in range(len(readers))]
                lines.append(_line(_Step("Split", [step.output], ""), len(lines), copies))
                number += len(copies)
                for (reader, at), copy in zip(readers, copies, strict=True):
                    reader.inputs[at] = copy
        text = "\n".join([MAGIC, f"{len(lines)} {number}", *lines, ""])
        return NcnnModel(text, b"".join(map(_weight_bytes, steps)))

    # -- steps ---------------------------------------------------------------------------------------------------------

    def _step(self, kind: str, inputs: Sequence[str], settings: str = "", **more: Any) -> str:
        name = f"value{len(self.steps)}"
        self.steps.append(_Step(kind, list(inputs), name, settings, **more))
        return name

    def _last(self, name: str) -> _Step:
        return next(step for step in self.steps if step.output == name)

    def _weighted(self, kind: str, inputs: Sequence[str], weights: list[Tensor], settings: str = "") -> str:
        outputs = weights[0].shape[0]
        return self._step(kind, inputs, settings, weights=list(weights), tagged=True, outputs=outputs)

    def _convolution(self, transposed: bool, inputs: Sequence[str], weights: list[Tensor], window: Window) -> str:
        weight, groups, dims = weights[0], window.groups, len(window.kernel)
        options = [window.kernel, window.dilation, window.stride, window.padding]
        if transposed:
            options.append(window.output_padding)
            each = weight.reshape(groups, -1, *weight.shape[1:]).transpose(1, 2)  # [groups, outputs, inputs, *kernel]
            weight = each.flatten(0, 1)
        words = [
            f"{number}={value[-1 - axis]}"
            for axis in range(dims)
            for number, value in zip(AXES[axis], options, strict=False)
        ]
        if groups > 1:
            words.append(f"7={groups}")
        kind = ("Deconvolution" if transposed else "Convolution") + ("DepthWise" if groups > 1 else "")
        return self._weighted(kind + SUFFIXES[dims], inputs, [weight, *weights[1:]], " ".join(words))

    def _rows(self, inputs: Sequence[str], weights: list[Tensor], shape: Shape) -> str:
        """A linear layer on every pixel, [N, *pixels, channels]: as one matrix, and back."""
        rows = self._step("Reshape", inputs, f"0={shape[-1]} 1=-1")
        last = self._weighted("Gemm" if shape[0] == 1 else "InnerProduct", [rows], weights)
        pixels = list(reversed((*shape[1:-1], weights[0].shape[0])))
        names = {2: ("0", "1"), 3: ("0", "1", "2"), 4: ("0", "1", "11", "2")}[len(pixels)]
        back = " ".join(f"{name}={size}" for name, size in zip(names, pixels, strict=True))
        output = self._step("Reshape", [last], back)
        self.shapes[output] = (*shape[:-1], weights[0].shape[0])
        return output

    def _biased(self, name: str, bias: Tensor) -> str:
        """The bias of the linear layer on every pixel before."""
        last = self._last(name)
        if last.kind != "Reshape":
            raise Unknown("Add")
        self._last(last.inputs[0]).weights.append(bias)
        return name

    def _pool(self, inputs: Sequence[str], window: Window, counted: int | None) -> str:
        """A pool; `counted` says of an average whether padding counts, and is None for a maximum."""
        dims = len(window.kernel)
        if set(window.dilation) != {1}:
            raise Unknown("a pool with dilation")
        options = window.kernel, window.stride, window.padding
        words = [
            f"{number}={value[-1 - axis]}"
            for axis in range(dims)
            for number, value in zip(POOL_AXES[axis], options, strict=True)
        ]
        kind, last = (0, "") if counted is None else (1, f" 6={counted}")
        return self._step(f"Pooling{SUFFIXES[dims]}", inputs, f"0={kind} 5=1 {' '.join(words)}{last}")

    def _normed(self, name: str, tensors: list[Tensor], eps: float) -> str:
        """A norm, part of the convolution or linear layer before it."""
        scale, shift, mean, variance = tensors
        step = self._last(name)
        if not step.fuses or any(name in other.inputs for other in self.steps):
            return self._step(
                "BatchNorm", [name], f"0={len(scale)} 1={eps:.8e}", weights=[scale, mean, variance, shift]
            )
        factor = scale * torch.rsqrt(variance + eps)
        weight, bias = step.weights[0], [*step.weights, torch.zeros(len(scale))][1]
        step.weights = [weight * factor.view(-1, *(1 for _ in weight.shape[1:])), shift + (bias - mean) * factor]
        return name

    def _elementwise(self, op: str, inputs: Sequence[str], constants: list[Tensor], **attributes: Any) -> str:
        match op:
            case "Mul" if len(inputs) == 2:  # SiLU, as ONNX writes it
                sigmoid = self._last(inputs[1])
                if not (sigmoid.kind == "Sigmoid" and sigmoid.inputs == [inputs[0]]):
                    raise Unknown(op)
                self.steps.remove(sigmoid)
                return self._step("Swish", inputs[:1])
            case "Clip":
                low, high = (float(bound) for bound in constants)
                kind, settings, fused = "Clip", f"0={low} 1={high}", f"9=3 -23310=2,{low},{high}"
            case "LeakyRelu":
                slope = attributes["alpha"]
                kind, settings, fused = "ReLU", f"0={slope:.8g}", f"9=2 -23310=1,{slope:.8e}"
            case "Elu":
                kind, settings, fused = "ELU", f"0={float(attributes['alpha'])}", ""
            case "Gelu":
                kind, settings, fused = "GELU", f"0={int(attributes['approximate'] == 'tanh')}", ""
            case _ if op in SIMPLE:
                kind, settings = SIMPLE[op]
                fused = {"Relu": "9=1", "Sigmoid": "9=4"}.get(op, "")
            case _:
                raise Unknown(op)
        return self._step(kind, inputs, settings, fused=fused)

    def _fuse(self) -> None:
        """Make activations part of the steps before them."""
        for step in list(self.steps):
            before = next((other for other in self.steps if [other.output] == step.inputs), None)
            alone = sum(other.inputs.count(step.inputs[0]) for other in self.steps) == 1 if step.inputs else False
            if step.fused and before is not None and before.fuses and alone and before.output not in self.results:
                before.activation, before.output = step.fused, step.output
                self.steps.remove(step)


def _line(step: _Step, number: int, outputs: Sequence[str]) -> str:
    """A line of the text: the kind, a name, the numbers of inputs and outputs, their names, the settings."""
    words = [step.kind, f"step{number}", str(len(step.inputs)), str(len(outputs)), *step.inputs, *outputs]
    return " ".join(filter(None, [*words, step.settings, _sizes(step), step.activation]))


def _sizes(step: _Step) -> str:
    """The settings that say how many weights follow."""
    if not step.tagged:
        return ""
    weight, bias = step.weights[0], step.weights[1:]
    if step.kind == "Gemm":
        fixed = "2=0 3=1 4=0 5=1 6=1"  # only the second matrix is turned, and it is a constant
        return f"10={4 if bias else -1} {fixed} 7=0 8={weight.shape[0]} 9={weight.shape[1]}"
    names = ("1", "2") if step.kind == "InnerProduct" else ("5", "6")
    return f"0={step.outputs} {names[0]}={len(bias)} {names[1]}={weight.numel()}"


def _weight_bytes(step: _Step) -> bytes:
    """Weights as fp32, after four bytes that say so where the kind has them."""
    arrays = [weight.contiguous().numpy().astype("<f4").tobytes() for weight in step.weights]
    if step.kind == "Gemm":  # its bias has them, too
        return b"".join(TAG + array for array in arrays)
    return (TAG if step.tagged else b"") + b"".join(arrays)


def _after(op: str, shape: Shape, constants: Sequence[Tensor], window: Window) -> Shape:
    """The output's shape of a step with weights or a window, for an input [N, channels, *size]."""
    batch, channels, *size = shape
    match op:
        case "GlobalAveragePool":
            return (batch, channels, *(1 for _ in size))
        case "Gemm":
            return (batch, len(constants[0]))
        case "ConvTranspose":
            return (batch, constants[0].shape[1] * window.groups, *window.sizes(size, transposed=True))
    return (batch, len(constants[0]) if op == "Conv" else channels, *window.sizes(size))
