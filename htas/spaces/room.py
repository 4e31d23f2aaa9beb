"""How many widths can be measured in the memory that is free, as all layers of a survey or a calibration are open at
once."""

from collections.abc import Callable, Collection, Iterable
from typing import TypeVar

from htas.errors import UserError
from htas.graph.layer import Layer
from htas.text import plural

Plan = TypeVar("Plan")

LAYER_BYTES, WEIGHT_BYTES, WEIGHT_COPIES = 1e6, 4, 2.5
"""Bytes of a layer's two programs without weights; of a weight; and its copies: read, and packed by the runtime, with
what is lost between them. 4,096 layers of a ResNet-18 at 224x224, 2.05 G weights, take 19.2 GB in ONNX Runtime."""
SHARE = 0.6
"""Fraction of the free memory that layers may fill; the data and the networks need room, too."""


def filled(layers: Collection[Layer]) -> float:
    """Bytes that these layers take while they are measured, about."""
    return sum(LAYER_BYTES + WEIGHT_BYTES * WEIGHT_COPIES * layer.params for layer in layers)


def roomy(plans: Iterable[tuple[int, Plan]], size: Callable[[Plan], float], free: float, what: str) -> tuple[Plan, str]:
    """The first of plans, by descending number of widths, whose bytes fit into those that are free; a sentence where
    that is not the first one. Raises UserError, which says the figures, where even the last one does not fit.

    `what` is the subject of these sentences: `a survey`.
    """
    most = 0
    for widths, plan in plans:
        most, needed = most or widths, size(plan)
        if needed <= SHARE * free:
            less = (
                f"{what} measures {widths} widths of a site and not {most}, which would not fit into the "
                f"{free / 1e9:.3g} GB of memory that are free; the others are interpolated"
            )
            return plan, less if widths < most else ""
    raise UserError(
        f"{what} of {plural(widths, 'width')} of each site fills {needed / 1e9:.3g} GB of memory, and "
        f"{free / 1e9:.3g} GB are free, of which it may fill {SHARE:.0%}; free some, give design.expand=1, or hold "
        "sites at one width (design.widths)"
    )
