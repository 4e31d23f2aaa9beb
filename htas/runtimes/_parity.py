"""The comparison of a program's outputs with eager PyTorch's."""

import torch
from torch import Tensor, nn

from htas.errors import UserError
from htas.formats.parity import first, largest_difference, tolerance
from htas.runtimes import Program
from htas.timing.target import Target


def check(program: Program, network: nn.Module, example: tuple[Tensor, ...], target: Target, what: str) -> None:
    """Raise UserError where a program's outputs differ from those of eager PyTorch in fp32 on the target's device.

    The network is moved to that device.
    """
    with torch.inference_mode():
        reference = network.to(target.device)
        expected = first(reference(*(tensor.to(target.device) for tensor in example))).cpu()
        outputs = program.outputs(*example)
    if target.precision == "fp16" and expected.isfinite().all() and not outputs.isfinite().all():
        raise UserError(
            f"{what} overflows with this network in fp16, which ends at 65504; use target.precision 'bf16' or 'fp32'"
        )
    largest_difference(expected, outputs, what, tolerance(target))
