"""Networks to trace and to resize: small ones of libraries, and by hand what no library has."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from .generator import dcgan_generator
from .multiple_inputs import siamese, two_input
from .unet import unet


@dataclass(frozen=True)
class Entry:
    """One network."""

    name: str
    build: Callable[[], nn.Module]
    """Makes it with new weights, in training mode."""
    shapes: tuple[tuple[int, ...], ...] = ((1, 3, 64, 64),)
    """The shape of each input, the batch first."""


BY_HAND: tuple[Entry, ...] = (
    Entry("dcgan_generator", dcgan_generator, ((1, 100, 1, 1),)),
    Entry("unet", unet),
    Entry("siamese", siamese, ((1, 1, 32, 32), (1, 1, 32, 32))),
    Entry("two_input", two_input, ((1, 3, 64, 64), (1, 8))),
)
