"""Do two ways of running a network compute the same?"""

from torch import Tensor

TOLERANCE = 1e-4
"""Of the largest output: several times what reordering fp32 sums changes in a hundred layers."""


def largest_difference(expected: Tensor, found: Tensor, what: str) -> float:
    """The largest absolute difference of two outputs of one shape; ValueError when it exceeds TOLERANCE.

    `what` begins the message: the file or runtime that computed `found`.
    """
    if expected.shape != found.shape:
        raise ValueError(f"{what} gives outputs of shape {tuple(found.shape)}, PyTorch {tuple(expected.shape)}")
    difference = float((expected - found).abs().max())
    allowed = TOLERANCE * float(expected.abs().max())
    if not difference <= allowed:  # also when either is not a number
        raise ValueError(
            f"{what} differs from PyTorch by up to {difference:.2g}, {allowed:.2g} is allowed; "
            "check that forward() computes the same every time and that the weights are finite"
        )
    return difference
