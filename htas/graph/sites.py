"""From channels to width sites: classes of elements that stand in the same places, in their order."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from htas.graph.channels import Channels, Ids
from htas.graph.layout import Layout, Run

ORDER = "its channels stand in another order elsewhere"


@dataclass
class Atoms:
    """The atoms of each site, and the site and number of each element."""

    roots: Ids
    """By element, the one that stands for all tied to it."""
    reasons: Mapping[int, str]
    """By root, why it is frozen."""
    group: Ids
    """By root, the number of its site; -1 where it is frozen."""
    number: Ids
    """By root, its place within the site."""
    counts: dict[int, int] = field(default_factory=dict)
    """By site its number of atoms."""
    names: dict[int, str] = field(default_factory=dict)
    multiples: dict[int, int] = field(default_factory=dict)
    frozen: dict[int, str] = field(default_factory=dict)
    """By site that could not be laid out, the reason."""
    _pieces: dict[bytes, list[tuple[int, int, int]]] = field(default_factory=dict, repr=False)
    """Of lines that were laid out, by their bytes."""

    def pieces(self, ids: Ids) -> list[tuple[int, int, int]]:
        """(site, atoms, repeat) of each run along a dimension; the site is -1 for what is frozen."""
        roots = self.roots[ids]
        groups = self.group[roots]
        edges = np.flatnonzero(np.diff(groups)) + 1
        found: list[tuple[int, int, int]] = []
        for start, end in zip([0, *edges], [*edges, len(ids)], strict=True):
            site = int(groups[start])
            if site < 0:
                found.append((-1, int(end - start), 1))
                continue
            atoms, numbers = self.counts[site], self.number[roots[start:end]]
            repeat = int((np.flatnonzero(numbers != numbers[0]).tolist() or [len(numbers)])[0])
            once = np.repeat(np.arange(atoms), repeat)
            copies, rest = divmod(len(numbers), len(once))
            if rest or not np.array_equal(numbers, np.tile(once, copies)):
                raise _Disordered(site)
            found += [(site, atoms, repeat)] * copies
        return found

    def layout(self, ids: Ids) -> Layout:
        """What stands along a dimension."""
        line = ids.tobytes()
        if line not in self._pieces:
            self._pieces[line] = self.pieces(ids)
        return Layout(tuple(
            Run(self.names[site], atoms, repeat, self.multiples[site]) if site >= 0 else Run("", atoms)
            for site, atoms, repeat in self._pieces[line]
        ))  # fmt: skip

    def why(self, ids: Ids) -> str:
        """Why elements are frozen; empty where any is free."""
        roots = self.roots[ids]
        if (self.group[roots] >= 0).any():
            return ""
        return next((self.reasons[int(root)] for root in roots if int(root) in self.reasons), ORDER)


class _Disordered(Exception):
    def __init__(self, site: int) -> None:
        super().__init__(site)
        self.site = site


def atoms_of(channels: Channels, lines: Iterable[Ids]) -> Atoms:
    """Sites are the classes that stand in the same of `lines`, equally often in each; a site whose atoms are not in one
    order everywhere is frozen."""
    roots, reasons = channels.classes()
    distinct = list({roots[ids].tobytes(): ids for ids in lines}.values())
    color = np.zeros(channels.count, np.uint64)
    token = np.random.default_rng(0).integers(1, 2**63, len(distinct), dtype=np.uint64)
    for ids, mark in zip(distinct, token, strict=True):
        ones, counts = np.unique(roots[ids], return_counts=True)
        color[ones] = color[ones] * np.uint64(6364136223846793005) + mark * counts.astype(np.uint64)
    group, number = np.full(channels.count, -1, np.int64), np.zeros(channels.count, np.int64)
    atoms = Atoms(roots, dict(reasons), group, number)
    sites: dict[int, int] = {}
    for ids in distinct:
        for root in roots[ids].tolist():
            if root in reasons or group[root] >= 0:
                continue
            site = sites.setdefault(int(color[root]), len(sites))
            group[root], number[root] = site, atoms.counts.get(site, 0)
            atoms.counts[site] = int(number[root]) + 1
    checked = False
    while not checked:
        checked = True
        for ids in distinct:
            try:
                atoms.pieces(ids)
            except _Disordered as error:
                gone = np.flatnonzero(group == error.site)
                group[gone] = -1
                atoms.reasons = {**atoms.reasons, **{int(root): ORDER for root in gone}}
                checked = False
    return atoms
