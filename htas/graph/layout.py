"""Where the channels of width sites stand along a dimension, at any widths."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Run:
    """Neighbouring positions of one site: each of its atoms stands `repeat` times in a row, one after the other."""

    site: str
    """Empty where the positions never change."""
    atoms: int
    """Atoms of the site, or positions, in the base network."""
    repeat: int = 1
    multiple: int = 1
    """Channels of the site in each of its atoms: a width of w has w / multiple atoms."""

    def atoms_at(self, widths: Mapping[str, int]) -> int:
        """Its atoms where sites have these widths."""
        return widths[self.site] // self.multiple if self.site else self.atoms


@dataclass(frozen=True)
class Layout:
    """What stands along one dimension of a tensor: runs of the channels of sites, in their order."""

    runs: tuple[Run, ...]

    @property
    def free(self) -> bool:
        """Whether any of it belongs to a site."""
        return any(run.site for run in self.runs)

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites along it, each once."""
        return tuple(dict.fromkeys(run.site for run in self.runs if run.site))

    def size(self, widths: Mapping[str, int]) -> int:
        """Its positions where sites have these widths."""
        return sum(run.atoms_at(widths) * run.repeat for run in self.runs)

    def common(self, one: Mapping[str, int], two: Mapping[str, int]) -> tuple[Tensor, Tensor]:
        """Positions that two sets of widths share: [n] at the first widths, [n] at the second."""
        parts: tuple[list[Tensor], list[Tensor]] = ([], [])
        starts = [0, 0]
        for run in self.runs:
            counts = [run.atoms_at(one), run.atoms_at(two)]
            for part, start in zip(parts, starts, strict=True):
                part.append(torch.arange(start, start + min(counts) * run.repeat))
            starts = [start + count * run.repeat for start, count in zip(starts, counts, strict=True)]
        return torch.cat(parts[0]), torch.cat(parts[1])

    def ordered(self, orders: Mapping[str, Tensor]) -> Tensor | None:
        """Where each position comes from when the atoms of sites change places; None where all stay."""
        if not any(run.site in orders for run in self.runs):
            return None
        parts, start = [], 0
        for run in self.runs:
            order = orders.get(run.site, torch.arange(run.atoms))
            parts.append((start + order[:, None] * run.repeat + torch.arange(run.repeat)).flatten())
            start += run.atoms * run.repeat
        return torch.cat(parts)

    def by_atom(self, values: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The numbers of positions, [..., positions], by the atoms of sites: [..., atoms, repeat] for each run."""
        start = 0
        for run in self.runs:
            count = run.atoms * run.repeat
            if run.site:
                part = values[..., start : start + count]
                yield run.site, part.reshape(*values.shape[:-1], run.atoms, run.repeat)
            start += count


Layouts = Sequence[Layout | None]
"""Of each dimension of a parameter; None where its size never changes."""
