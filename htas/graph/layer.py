"""One operator at one exact size, with the norm and activation a runtime fuses into it.

A survey measures layers: a network of a hundred layers has about ten distinct ones.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, nn

from htas.data.split import Shape

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

Modules = Mapping[int, Callable[..., nn.Module]]
CONVS: Modules = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
"""By number of dimensions of the pixels."""
TRANSPOSED: Modules = {
    1: nn.ConvTranspose1d,
    2: nn.ConvTranspose2d,
    3: nn.ConvTranspose3d,
}
NORMS: Mapping[int, Any] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
MAX_POOLS: Modules = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
AVERAGE_POOLS: Modules = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
GLOBAL_POOLS: Modules = {
    1: nn.AdaptiveAvgPool1d,
    2: nn.AdaptiveAvgPool2d,
    3: nn.AdaptiveAvgPool3d,
}

Op = Literal["conv", "conv_transpose", "linear", "max_pool", "avg_pool", "global_pool", "add"]
Sizes = tuple[int, ...]
"""A number for each dimension of the pixels: height and width, or one of them, or three."""
WEIGHTED = ("conv", "conv_transpose", "linear")
"""Operators that have weights, for every input channel and every output channel."""


@dataclass(frozen=True)
class Layer:
    """An operator with its sizes: channels in and out, and the height and width of its input."""

    op: Op
    inputs: int
    outputs: int
    size: Sizes
    """Height and width of the input, or as many sizes as it has; (1, 1) for a linear layer, unless it works on every
    pixel."""
    kernel: Sizes = (1, 1)
    stride: Sizes = (1, 1)
    padding: Sizes = (0, 0)
    dilation: Sizes = (1, 1)
    groups: int = 1
    bias: bool = False
    norm: bool = False
    """A batch norm follows, fused by most runtimes."""
    activation: str = ""
    """A key of ACTIVATIONS, or nothing."""
    output_padding: Sizes = (0, 0)
    """conv_transpose: rows and columns added to one side of the output."""

    def __post_init__(self) -> None:
        dims = len(self.size)
        if dims != 2:  # the defaults are those of two
            for name in ("kernel", "stride", "padding", "dilation", "output_padding"):
                sizes = getattr(self, name)
                if len(sizes) != dims:
                    object.__setattr__(self, name, sizes[:1] * dims)

    @property
    def key(self) -> str:
        """Canonical JSON: equal keys mean the same work. The version changes when a field does."""
        return json.dumps({"layer": 1, **asdict(self)}, sort_keys=True)

    @staticmethod
    def of(key: str) -> "Layer":
        """The layer that has this `key`."""
        return Layer(**_fields(key, "layer"))

    @property
    def template(self) -> "Template":
        """The layer without its widths: equal for layers that differ in nothing else."""
        return replace(self.curve_template, inputs=None)

    @property
    def curve_template(self) -> "Template":
        """The layer without its number of outputs: equal for the layers on one curve of latency over width."""
        return self.curve(whole_groups=self.grouped)

    def curve(self, *, whole_groups: bool) -> "Template":
        """The layer without its number of outputs, which grows by whole groups of channels, or within each group."""
        fields = {name: getattr(self, name) for name in SHARED}
        if not whole_groups:
            return Template(**fields, inputs=self.inputs, groups=self.groups)
        each, outputs = self.inputs // self.groups, self.outputs // self.groups
        return Template(**fields, group_channels=each, group_outputs=outputs if outputs != each else 0)

    def wide(self, outputs: int) -> "Layer":
        """The layer with this many outputs; one that works within groups of channels gets as many inputs."""
        return self.curve_template.wide(outputs)

    @property
    def grouped(self) -> bool:
        """Whether it convolves within groups of channels, with as many outputs as inputs in each."""
        return self.op == "conv" and self.groups != 1 and self.inputs == self.outputs

    @property
    def kind(self) -> str:
        """The operator in words, without sizes: `conv 3x3 /2`, `depthwise 3x3`, `grouped conv 3x3`, `linear`, `add`."""
        return self.template.kind

    @property
    def output_size(self) -> Sizes:
        """Height and width of the output."""
        if self.op == "global_pool":
            return (1,) * len(self.size)
        if self.op in ("linear", "add"):
            return self.size

        def along(axis: int) -> int:
            reach = self.dilation[axis] * (self.kernel[axis] - 1) + 1
            if self.op == "conv_transpose":
                more = reach - 2 * self.padding[axis] + self.output_padding[axis]
                return (self.size[axis] - 1) * self.stride[axis] + more
            return (self.size[axis] + 2 * self.padding[axis] - reach) // self.stride[axis] + 1

        return tuple(along(axis) for axis in range(len(self.size)))

    @property
    def macs(self) -> int:
        """Multiply-adds for one image. A bias counts as one per output, as in the TAS publications."""
        pixels = prod(self.output_size)
        match self.op:
            case "conv":
                return (prod(self.kernel) * (self.inputs // self.groups) + self.bias) * self.outputs * pixels
            case "conv_transpose":
                each = prod(self.kernel) * (self.inputs // self.groups) * prod(self.size)
                return (each + self.bias * pixels) * self.outputs
            case "linear":
                return (self.inputs + self.bias) * self.outputs * pixels
            case _:
                return 0

    @property
    def params(self) -> int:
        """Trainable numbers: weights, bias, and two per normalised channel."""
        norm = 2 * self.outputs if self.norm else 0
        match self.op:
            case "conv" | "conv_transpose":
                return (prod(self.kernel) * (self.inputs // self.groups) + self.bias) * self.outputs + norm
            case "linear":
                return (self.inputs + self.bias) * self.outputs + norm
            case _:
                return norm

    def build(self) -> nn.Module:
        """The layer as a module in eval mode, with random weights, that takes `example`; an add takes two tensors."""
        parts: list[nn.Module] = [self._operator()]
        if self.norm:
            dims = 1 if self.op == "linear" else len(self.size)
            parts.append(NORMS[dims](self.outputs))
        if self.activation:
            parts.append(ACTIVATIONS[self.activation]())
        if self.op == "add":
            return Sum(parts[1:]).eval()
        return nn.Sequential(*parts).eval() if len(parts) > 1 else parts[0].eval()

    def shapes(self, batch: int) -> tuple[Shape, ...]:
        """Of its inputs: [batch, inputs, height, width]; for linear [batch, inputs], or with the height and width of
        pixels between these two."""
        pixels = self.size if self.size != (1, 1) else ()
        shape = (batch, *pixels, self.inputs) if self.op == "linear" else (batch, self.inputs, *self.size)
        return (shape,) * (2 if self.op == "add" else 1)

    def example(self, batch: int) -> tuple[Tensor, ...]:
        """Random inputs, of its `shapes`."""
        return tuple(torch.randn(shape) for shape in self.shapes(batch))

    def _operator(self) -> nn.Module:
        dims = len(self.size)
        window = (self.inputs, self.outputs, self.kernel, self.stride, self.padding)
        module: nn.Module
        match self.op:
            case "conv":
                module = CONVS[dims](*window, self.dilation, self.groups, self.bias)
            case "conv_transpose":
                module = TRANSPOSED[dims](*window, self.output_padding, self.groups, self.bias, self.dilation)
            case "linear":
                module = nn.Linear(self.inputs, self.outputs, self.bias)
            case "max_pool":
                module = MAX_POOLS[dims](self.kernel, self.stride, self.padding, self.dilation)
            case "avg_pool":
                module = AVERAGE_POOLS[dims](self.kernel, self.stride, self.padding)
            case "global_pool":
                module = GLOBAL_POOLS[dims](1)
            case "add":
                module = nn.Identity()
        return module


SHARED = ("op", "size", "kernel", "stride", "padding", "dilation", "bias", "norm", "activation", "output_padding")
"""The fields that a Layer and its Template have in common."""


@dataclass(frozen=True)
class Template:
    """What layers have in common that differ in their widths alone: a Layer without its channels."""

    op: Op
    size: Sizes
    """Height and width of the input."""
    kernel: Sizes = (1, 1)
    stride: Sizes = (1, 1)
    padding: Sizes = (0, 0)
    dilation: Sizes = (1, 1)
    bias: bool = False
    norm: bool = False
    activation: str = ""
    output_padding: Sizes = (0, 0)
    inputs: int | None = None
    """Input channels where these are fixed; None where they are free, too."""
    groups: int = 1
    """Groups of a convolution that has a fixed number of them."""
    group_channels: int | None = None
    """Channels in each group of a convolution with as many outputs as inputs (1: depthwise), whose number of groups
    grows with its width; None for every other operator."""
    group_outputs: int = 0
    """Outputs of each such group; 0 where it has as many as channels."""

    @property
    def key(self) -> str:
        """Canonical JSON. The version changes when a field does."""
        fields = {name: value for name, value in asdict(self).items() if name != "group_outputs" or value}
        return json.dumps({"template": 1, **fields}, sort_keys=True)

    @staticmethod
    def of(key: str) -> "Template":
        """The template that has this `key`."""
        return Template(**_fields(key, "template"))

    @property
    def keeps_width(self) -> bool:
        """Whether the outputs of its layers say how many inputs they have: all but plain convolutions and linear
        layers do."""
        return self.group_channels is not None or self.op not in WEIGHTED

    def at(self, inputs: int, outputs: int) -> Layer:
        """The layer with these channels; where it keeps its width, those of so many outputs."""
        fields = {name: getattr(self, name) for name in SHARED}
        if self.group_channels is not None:
            groups = outputs // (self.group_outputs or self.group_channels)
            return Layer(**fields, inputs=groups * self.group_channels, outputs=outputs, groups=groups)
        return Layer(**fields, inputs=outputs if self.keeps_width else inputs, outputs=outputs, groups=self.groups)

    def outputs(self, width: int) -> int:
        """Those where the site that the layer makes has this width."""
        return width

    def wide(self, outputs: int) -> Layer:
        """The layer with this many outputs, and the template's inputs."""
        return self.at(self.inputs or outputs, outputs)

    @property
    def kind(self) -> str:
        """The operator in words: `conv 3x3 /2`, `depthwise 3x3`, `grouped conv 3x3`, `linear`, `add`."""
        window = "x".join(map(str, self.kernel))
        if self.op == "conv_transpose":
            return f"transposed conv {window}"
        if self.op != "conv":
            return self.op
        grouped = "grouped conv" if self.groups > 1 or self.group_channels is not None else "conv"
        name = "depthwise" if self.group_channels == 1 else grouped
        stride = f" /{max(self.stride)}" if max(self.stride) > 1 else ""
        return f"{name} {window}{stride}"


def _fields(key: str, version: str) -> dict[str, Any]:
    """The fields in a key, without the name of its version."""
    content: dict[str, Any] = json.loads(key)
    del content[version]
    return {name: tuple(value) if isinstance(value, list) else value for name, value in content.items()}


class Sum(nn.Module):
    """Two tensors added, then a norm and an activation."""

    def __init__(self, after: list[nn.Module]) -> None:
        super().__init__()
        self.after = nn.Sequential(*after)

    def forward(self, one: Tensor, two: Tensor) -> Tensor:
        """[N, channels, height, width] twice, to one of that shape."""
        out: Tensor = self.after(one + two)
        return out
