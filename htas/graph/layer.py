"""One operator at one exact size, with the norm and activation a runtime fuses into it.

Layers are what a survey measures: a network of a hundred layers has about ten distinct ones.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

ACTIVATIONS: Mapping[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "silu": nn.SiLU,
    "hardswish": nn.Hardswish,
    "gelu": nn.GELU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "hardsigmoid": nn.Hardsigmoid,
}

Op = Literal["conv", "conv_transpose", "linear", "max_pool", "avg_pool", "global_pool", "add"]
Pair = tuple[int, int]
WEIGHTED = ("conv", "conv_transpose", "linear")
"""Operators that have weights, for every input channel and every output channel."""


@dataclass(frozen=True)
class Layer:
    """An operator with its sizes: channels in and out, and the height and width of its input."""

    op: Op
    inputs: int
    outputs: int
    size: Pair
    """Height and width of the input; (1, 1) for a linear layer, unless it works on every pixel."""
    kernel: Pair = (1, 1)
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    bias: bool = False
    norm: bool = False
    """A batch norm follows, fused by most runtimes."""
    activation: str = ""
    """A key of ACTIVATIONS, or nothing."""
    output_padding: Pair = (0, 0)
    """conv_transpose: what is added to one side of the output."""

    @property
    def key(self) -> str:
        """Canonical JSON: equal keys mean the same work. The version changes when a field does."""
        content = asdict(self)
        if self.output_padding == (0, 0):  # a field that came later
            del content["output_padding"]
        return json.dumps({"layer": 1, **content}, sort_keys=True)

    @staticmethod
    def of(key: str) -> "Layer":
        """Read what `key` gave."""
        content: dict[str, Any] = json.loads(key)
        del content["layer"]
        fields: dict[str, Any] = {n: tuple(value) if isinstance(value, list) else value for n, value in content.items()}
        return Layer(**fields)

    def wide(self, outputs: int) -> "Layer":
        """The layer with so many outputs; one that works within groups of channels has as many inputs."""
        if not self.grouped:
            return replace(self, outputs=outputs)
        if outputs == 0:
            return replace(self, inputs=self.each if self.each > 1 else 0, outputs=0, groups=0)
        return replace(self, inputs=outputs, outputs=outputs, groups=outputs // self.each)

    @property
    def template(self) -> "Layer":
        """The layer without its widths: equal for layers that differ in nothing else. Of one that works within groups,
        `groups` is 0, and `inputs` the channels of a group, 0 for one."""
        return self.wide(0) if self.grouped else replace(self, inputs=0, outputs=0)

    def sized(self, inputs: int, outputs: int) -> "Layer":
        """A template at these widths; of what treats each channel alike the inputs are its outputs."""
        if self.groups == 0:
            return self.wide(outputs)
        return replace(self, inputs=inputs if self.op in WEIGHTED else outputs, outputs=outputs)

    @property
    def grouped(self) -> bool:
        """Does it convolve within groups of channels, with as many outputs as inputs in each?"""
        return self.op == "conv" and self.groups != 1 and (self.groups == 0 or self.inputs == self.outputs)

    @property
    def each(self) -> int:
        """Input channels of a group."""
        return max(1, self.inputs // max(1, self.groups))

    @property
    def kind(self) -> str:
        """The operator in words, without sizes: `conv 3x3 /2`, `depthwise 3x3`, `grouped conv 3x3`, `linear`, `add`."""
        if self.op == "conv_transpose":
            return f"transposed conv {self.kernel[0]}x{self.kernel[1]}"
        if self.op != "conv":
            return self.op
        name = "conv" if self.groups == 1 else "depthwise" if self.grouped and self.each == 1 else "grouped conv"
        stride = f" /{max(self.stride)}" if max(self.stride) > 1 else ""
        return f"{name} {self.kernel[0]}x{self.kernel[1]}{stride}"

    @property
    def output_size(self) -> Pair:
        """Height and width of the output."""
        if self.op == "global_pool":
            return (1, 1)
        if self.op in ("linear", "add"):
            return self.size

        def along(axis: int) -> int:
            reach = self.dilation[axis] * (self.kernel[axis] - 1) + 1
            if self.op == "conv_transpose":
                more = reach - 2 * self.padding[axis] + self.output_padding[axis]
                return (self.size[axis] - 1) * self.stride[axis] + more
            return (self.size[axis] + 2 * self.padding[axis] - reach) // self.stride[axis] + 1

        return along(0), along(1)

    @property
    def macs(self) -> int:
        """Multiply-adds for one image. A bias counts as one per output, as in the TAS publications."""
        height, width = self.output_size
        match self.op:
            case "conv":
                each = self.kernel[0] * self.kernel[1] * (self.inputs // self.groups) + self.bias
                return each * self.outputs * height * width
            case "conv_transpose":
                each = self.kernel[0] * self.kernel[1] * self.inputs * self.size[0] * self.size[1]
                return (each + self.bias * height * width) * self.outputs
            case "linear":
                return (self.inputs + self.bias) * self.outputs * height * width
            case _:
                return 0

    @property
    def params(self) -> int:
        """Trainable numbers: weights, bias, and two per normalised channel."""
        norm = 2 * self.outputs if self.norm else 0
        match self.op:
            case "conv" | "conv_transpose":
                each = self.kernel[0] * self.kernel[1] * (self.inputs // self.groups) + self.bias
                return each * self.outputs + norm
            case "linear":
                return (self.inputs + self.bias) * self.outputs + norm
            case _:
                return norm

    def build(self) -> nn.Module:
        """The layer as a module in eval mode, with weights drawn at random. An add takes two tensors."""
        parts: list[nn.Module] = [self._operator()]
        if self.norm:
            parts.append(nn.BatchNorm1d(self.outputs) if self.op == "linear" else nn.BatchNorm2d(self.outputs))
        if self.activation:
            parts.append(ACTIVATIONS[self.activation]())
        if self.op == "add":
            return Sum(parts[1:]).eval()
        return nn.Sequential(*parts).eval() if len(parts) > 1 else parts[0].eval()

    def example(self, batch: int) -> tuple[Tensor, ...]:
        """Inputs of the right shapes: [batch, inputs, height, width]; for linear [batch, inputs], or with the height
        and width of pixels between these two."""
        pixels = self.size if self.size != (1, 1) else ()
        shape = (batch, *pixels, self.inputs) if self.op == "linear" else (batch, self.inputs, *self.size)
        return tuple(torch.randn(shape) for _ in range(2 if self.op == "add" else 1))

    def _operator(self) -> nn.Module:
        match self.op:
            case "conv":
                return nn.Conv2d(
                    self.inputs,
                    self.outputs,
                    self.kernel,
                    self.stride,
                    self.padding,
                    self.dilation,
                    self.groups,
                    self.bias,
                )
            case "conv_transpose":
                return nn.ConvTranspose2d(
                    self.inputs,
                    self.outputs,
                    self.kernel,
                    self.stride,
                    self.padding,
                    self.output_padding,
                    self.groups,
                    self.bias,
                    self.dilation,
                )
            case "linear":
                return nn.Linear(self.inputs, self.outputs, self.bias)
            case "max_pool":
                return nn.MaxPool2d(self.kernel, self.stride, self.padding, self.dilation)
            case "avg_pool":
                return nn.AvgPool2d(self.kernel, self.stride, self.padding)
            case "global_pool":
                return nn.AdaptiveAvgPool2d(1)
            case "add":
                return nn.Identity()


class Sum(nn.Module):
    """Two tensors added, then what follows."""

    def __init__(self, after: list[nn.Module]) -> None:
        super().__init__()
        self.after = nn.Sequential(*after)

    def forward(self, one: Tensor, two: Tensor) -> Tensor:
        """Both of one shape."""
        out: Tensor = self.after(one + two)
        return out
