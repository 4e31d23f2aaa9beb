"""What one forward pass of a supernet computes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from htas.graph import Arch, Network
from htas.search.allocation import Widths

MOMENTUM = 0.1
"""Weight of a batch in the running statistics of norms."""


@dataclass(frozen=True)
class Draw:
    """The choices of one forward pass: one or two widths of every width site and the blocks of every depth site, each
    with a weight. Weights are scalars or tensors of one element; those of a site sum to 1."""

    widths: Mapping[str, tuple[Widths, Any]]
    depths: Mapping[str, Any]
    """Weights by block of the site: [k] is that of keeping k + 1 blocks; the mixture skips exact zeros."""
    momentum: float = MOMENTUM
    """Weight of this batch in the running statistics of norms, in training mode."""

    @staticmethod
    def of(arch: Arch, network: Network) -> "Draw":
        """One width per site, and depth one-hot."""
        return Draw(
            {site: ((width,), (1.0,)) for site, width in arch.widths.items()},
            {
                name: tuple(float(index == arch.depths[name] - 1) for index in range(site.base))
                for name, site in network.depths.items()
            },
        )
