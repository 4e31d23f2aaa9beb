"""The networks that a searched one is compared with: uniform ones, plain members of the family, and the base network
with one stage narrowed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from htas.graph import Arch, Network
from htas.run.limits import broken
from htas.run.run import Run

STEPS = 16
"""Uniform networks up to the base widths; `design.expand` times as many in all."""

CLOSE = 1.02
"""Predicted latency over that of the searched network, up to which a network with one stage narrowed is measured."""


@dataclass(frozen=True)
class Control:
    """A network that is no slower than the searched one, for comparison."""

    kind: str
    """`uniform`, `plain` or `stage`."""
    name: str
    arch: Arch


def candidates(run: Run) -> list[Control]:
    """Uniform networks, then plain members, but for the base network itself; of each kind the fastest first."""
    return [each for each in (*_uniform(run), *_plain_members(run)) if each.arch != run.network.base]


def of_one_stage(run: Run, searched: Arch) -> list[Control]:
    """The base network with one stage narrowed, its layers of one map size: of each stage the widest network predicted
    to be about as fast as the searched one and within limits and bounds, and the next narrower one; the richest last,
    by multiply-adds times parameters. None where narrowing one stage is not enough, or where there is one stage only.
    """
    stages = _stages(run.network)
    most = CLOSE * run.calibrated.cost(searched)
    controls = []
    for size, sites in stages.items() if len(stages) > 1 else ():
        fast = [each for each in _narrowed(run.network, size, sites) if run.calibrated.cost(each.arch) <= most]
        within = [each for each in fast if not broken(run, each.arch)]
        controls += within[-2:]
    return sorted(controls, key=lambda each: run.network.macs(each.arch) * run.network.params(each.arch))


def _stages(network: Network) -> dict[str, list[str]]:
    """Width sites by the map size of the layers that make them, such as 16x16, from the image on."""
    stages: dict[str, list[str]] = {}
    seen: set[str] = set()
    for use in network.uses(network.base):
        for segment in use.outputs:
            if segment.site in network.widths and segment.site not in seen:
                seen.add(segment.site)
                stages.setdefault("x".join(map(str, use.layer.size)), []).append(segment.site)
    return stages


def _narrowed(network: Network, size: str, sites: Sequence[str]) -> Iterator[Control]:
    """The base network with these sites times 1/16 ... 15/16, narrowest first."""
    for step in range(1, STEPS):
        widths = {name: network.sites[name].near(network.sites[name].base * step / STEPS) for name in sites}
        yield Control(
            "stage", f"stage {size} x{step / STEPS:.2f}", Arch({**network.base.widths, **widths}, network.base.depths)
        )


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
