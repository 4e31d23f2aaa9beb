"""The networks that a searched one is compared with: uniform ones, and plain members of the family."""

from collections.abc import Iterator
from dataclasses import dataclass

from htas.graph import Arch
from htas.run.run import Run

STEPS = 16
"""Uniform networks up to the base widths; `design.expand` times as many in all."""


@dataclass(frozen=True)
class Control:
    """A network that is no slower than the searched one, for comparison."""

    kind: str
    """`uniform` or `plain`."""
    name: str
    arch: Arch


def candidates(run: Run) -> list[Control]:
    """Uniform networks, then plain members; of each kind the fastest first."""
    return [*_uniform(run), *_plain_members(run)]


def ends(run: Run) -> list[Arch]:
    """The narrowest and the widest uniform network, and the shallowest plain member, that are not the base network:
    between them and the spaces lies all that a report predicts."""
    uniform, plain = list(_uniform(run)), list(_plain_members(run))
    archs = [each.arch for each in (uniform[0], uniform[-1], *plain[:1])]
    return [arch for arch in dict.fromkeys(archs) if arch != run.network.base]


def _uniform(run: Run) -> Iterator[Control]:
    """The base network times 1/16, 2/16 ... e, narrowest first."""
    sites, depths = run.network.widths, run.network.base.depths
    for step in range(1, int(STEPS * run.config.design.expand) + 1):
        widths = {name: site.near(site.base * step / STEPS) for name, site in sites.items()}
        yield Control("uniform", f"uniform x{step / STEPS:.2f}", Arch(widths, depths))


def _plain_members(run: Run) -> Iterator[Control]:
    """The base network with 1, 2 ... blocks in every stage, shallowest first; none without depth sites."""
    sites, widths = run.network.depths, run.network.base.widths
    for blocks in range(1, max((site.base for site in sites.values()), default=0) + 1):
        depths = {name: min(blocks, site.base) for name, site in sites.items()}
        yield Control("plain", f"plain {run.config.family.member(blocks)}", Arch(widths, depths))
