"""How far the outputs of two programs of one network are from each other."""

import torch
from torch import Tensor

from htas.data.nests import tensors_in
from htas.errors import UserError
from htas.timing.target import Target

TOLERANCE = 1e-4
"""Of the largest output: several times what reordering fp32 sums changes in a hundred layers."""
STEPS = 8
"""Of a format with fewer digits, in steps between its neighbouring numbers at 1. CIFAR ResNets of 8 to 110 layers,
rounded after every operator, came out 0.6 to 0.9 steps off in bf16 and 0.4 to 0.7 in fp16, the deep ones no more."""


QUANTIZED = 0.5
"""In int8, after calibration on random numbers: ResNet-20 came out 3 % off. This finds wrong networks; how right a
quantized one is, its accuracy says."""


def tolerance(target: Target) -> float:
    """The difference from eager fp32 that is allowed, as a share of the largest output."""
    if target.precision == "int8":
        return QUANTIZED
    if target.precision != "fp32":
        return STEPS * torch.finfo(target.dtype).eps
    # CUDA's convolutions read fp32 as TF32, which has as many digits as fp16
    return TOLERANCE if target.device == "cpu" else STEPS * torch.finfo(torch.float16).eps


def largest_difference(expected: Tensor, actual: Tensor, what: str, tolerance: float = TOLERANCE) -> float:
    """The largest absolute difference of two outputs, [N, ...] of one shape; raises UserError where it exceeds the
    tolerance.

    `what` begins the message: the file or runtime that computed `actual`. The tolerance is a fraction of the largest
    output.
    """
    if expected.shape != actual.shape:
        raise UserError(f"{what} gives outputs of shape {tuple(actual.shape)}, PyTorch {tuple(expected.shape)}")
    difference = float((expected - actual).abs().max())
    allowed = tolerance * float(expected.abs().max())
    if not difference <= allowed:  # also when either is not a number
        raise UserError(
            f"{what} differs from PyTorch by up to {difference:.2g}, {allowed:.2g} is allowed; "
            "check that forward() computes the same every time and that the weights are finite"
        )
    return difference


def unlike_fp32(expected: Tensor, actual: Tensor, precision: str) -> str:
    """A remark where outputs in this precision have nothing to do with those in fp32, `expected`; else empty."""
    if not expected.isfinite().all():
        return ""
    if not actual.isfinite().all():
        return f"In {precision} outputs are not finite, and in fp32 they are: do not deploy it so."
    difference, largest = float((expected - actual).abs().max()), float(expected.abs().max())
    if difference <= QUANTIZED * largest:
        return ""
    return (
        f"In {precision} outputs have little to do with those in fp32: on images of the calibration they differ by up "
        f"to {difference:.2g}, and the largest is {largest:.2g}; do not deploy it so."
    )


def first(outputs: object) -> Tensor:
    """The first tensor, [N, ...], in the outputs of a network."""
    return tensors_in(outputs)[0]
