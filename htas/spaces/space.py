"""The choices of a search at every site."""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from htas.errors import UserError
from htas.graph.arch import Arch


@dataclass(frozen=True)
class Space:
    """Choices, ascending and distinct, by site name."""

    name: str
    widths: Mapping[str, tuple[int, ...]]
    depths: Mapping[str, tuple[int, ...]]

    def __post_init__(self) -> None:
        for site, choices in self.choices.items():
            if not choices or list(choices) != sorted(set(choices)) or choices[0] < 1:
                raise UserError(f"the choices of {site} must be distinct, ascending and at least 1, got {choices}")

    @property
    def choices(self) -> dict[str, tuple[int, ...]]:
        """Of widths and depths together."""
        return {**self.widths, **self.depths}

    @property
    def size(self) -> int:
        """Number of archs."""
        return math.prod(len(choices) for choices in self.choices.values())

    @property
    def narrowest(self) -> Arch:
        """The smallest choice of every site."""
        return self._pick(lambda choices: choices[0])

    @property
    def widest(self) -> Arch:
        """The largest choice of every site."""
        return self._pick(lambda choices: choices[-1])

    def sample(self, rng: random.Random, tilt: float = 0.0) -> Arch:
        """A random arch; a `tilt` above 0 favours wide and deep, below 0 narrow and shallow, 0 is uniform."""

        def draw(choices: Sequence[int]) -> int:
            weights = [math.exp(tilt * index / max(1, len(choices) - 1)) for index in range(len(choices))]
            return rng.choices(choices, weights)[0]

        return self._pick(draw)

    def __contains__(self, arch: Arch) -> bool:
        sites = {**arch.widths, **arch.depths}
        return sites.keys() == self.choices.keys() and all(sites[name] in self.choices[name] for name in sites)

    def arch(self, picks: Mapping[str, int]) -> Arch:
        """The arch with these choices, by site."""
        return Arch({site: picks[site] for site in self.widths}, {site: picks[site] for site in self.depths})

    def nearest(self, arch: Arch) -> Arch:
        """The arch of the choices nearest to another's, site by site."""
        return self.arch(
            {site: min(each, key=lambda one: abs(one - arch[site])) for site, each in self.choices.items()}
        )

    def _pick(self, choose: Callable[[Sequence[int]], int]) -> Arch:
        return self.arch({site: choose(choices) for site, choices in self.choices.items()})


def depth_choices(blocks: int) -> tuple[int, ...]:
    """Numbers of leading blocks to choose from, as TAS: all up to 3, then the odd ones and the last."""
    if blocks <= 3:
        return tuple(range(1, blocks + 1))
    return tuple(sorted({*range(1, blocks + 1, 2), blocks}))


def tas_widths(base: int, multiple: int = 1) -> tuple[int, ...]:
    """TAS's choices: 0.3, 0.4 ... 1.0 of the base width, cut to whole numbers (multiples)."""
    units = base // multiple
    return tuple(sorted({multiple * max(1, units * tenths // 10) for tenths in range(3, 11)}))


def group_bounds(widest: int, groups: int) -> tuple[tuple[int, int], ...]:
    """First and last width of each of the equal runs that 1..widest is cut into; the last takes the remainder (eq. 3).

    Raises UserError where there are more groups than widths.
    """
    if groups > widest:
        raise UserError(
            f"design.groups = {groups} is more than the {widest} widths of the narrowest site; "
            f"lower design.groups or raise design.expand"
        )
    length = widest // groups
    return tuple(
        (group * length + 1, widest if group == groups - 1 else (group + 1) * length) for group in range(groups)
    )


def group_slices(widths: int, groups: int) -> list[slice]:
    """Where each group stands in a list of widths, of this length; at most one group for each width."""
    return [slice(first - 1, last) for first, last in group_bounds(widths, min(groups, widths))]
