"""Arithmetic in eight bits, simulated in fp32: what judges and trains networks for a target in int8."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

WEIGHED = (F.conv1d, F.conv2d, F.conv3d, F.linear)
"""Functions of (inputs, weight, ...) whose weights have a row for each output channel; transposed convolutions, which
have none, and products of two activations stay in fp32."""
SMALLEST = 1e-12
"""Of the largest value of a tensor that is rounded, so that there is a scale where all are 0."""


def _unasked(function: Any) -> Callable[..., Any]:
    """A function of torch in Python that does not hand itself to a context as a whole, but each of its steps."""
    steps = {**function.__globals__, "has_torch_function": lambda tensors: False}
    copy = FunctionType(function.__code__, steps, function.__name__, function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


COMPOSITE = {F.multi_head_attention_forward: _unasked(F.multi_head_attention_forward)}
"""Functions of torch that multiply by weights within, by how they are called within the context."""


class SimulatedInt8(TorchFunctionMode):
    """Within this context, convolutions and products with weights round what they read to eight bits, as a quantized
    network does (`htas/formats/int8.py`): weights signed, with a scale for each output channel; activations unsigned,
    with one scale for each tensor, from the batch at hand.

    A norm behind a convolution may stay apart: as part of its weights it would scale a channel, and the channel's scale
    with it. Gradients pass as if nothing were rounded (Jacob et al. 2018, "Quantization and Training of Neural
    Networks for Efficient Integer-Arithmetic-Only Inference"). `bits` of weights: 8, or 7 where the processor's sums
    would overflow.
    """

    def __init__(self, bits: int = 8) -> None:
        super().__init__()
        self.most = 127 if bits == 8 else 2 ** (bits - 1)  # as ONNX Runtime's quantizer has it

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, object] | None = None
    ) -> Any:
        """The same function of torch, of rounded inputs and weights where it has weights."""
        named = dict(kwargs or {})
        if func in COMPOSITE:
            with self:
                return COMPOSITE[func](*args, **named)
        if func in WEIGHED:
            values: list[Any] = [*args, *(named.pop(name) for name in ("input", "weight") if name in named)]
            inputs, weight, *others = values
            args = rounded(inputs), rounded_by_row(weight, self.most), *others
        return func(*args, **named)


def simulated(bits: int) -> AbstractContextManager[object]:
    """Int8 with weights of so many bits; with 0 the arithmetic stays as it is."""
    return SimulatedInt8(bits) if bits else nullcontext()


def rounded(x: Tensor) -> Tensor:
    """A tensor as 256 steps from its smallest to its largest value, of which 0 is one; its shape and gradient."""
    x = x.float()
    low, high = torch.aminmax(x.detach())
    low, high = low.clamp(max=0.0), high.clamp(min=SMALLEST)
    scale = (high - low) / 255
    zero = (-low / scale).round().to(torch.int32)
    return torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, 255)


def rounded_by_row(weight: Tensor, most: int) -> Tensor:
    """Weights [rows, ...] as whole multiples, up to `most`, of a scale of each row; their shape and gradient."""
    weight = weight.float()
    scale = weight.detach().abs().flatten(1).amax(1).clamp(min=SMALLEST) / most
    zeros = torch.zeros(len(scale), dtype=torch.int32, device=weight.device)
    return torch.fake_quantize_per_channel_affine(weight, scale, zeros, 0, -most, most)
