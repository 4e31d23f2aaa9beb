"""One choice for every site: the widths and depths of one network."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, init=False)
class Arch:
    """Widths and depths by site name; hashable, and equal whatever the order of the sites."""

    widths: Mapping[str, int]
    depths: Mapping[str, int]

    def __init__(self, widths: Mapping[str, int], depths: Mapping[str, int] | None = None) -> None:
        object.__setattr__(self, "widths", dict(widths))
        object.__setattr__(self, "depths", dict(depths or {}))

    def __hash__(self) -> int:
        return hash((frozenset(self.widths.items()), frozenset(self.depths.items())))

    def __getitem__(self, site: str) -> int:
        return self.widths[site] if site in self.widths else self.depths[site]
