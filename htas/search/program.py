"""The arch of least loss within limits, found exactly: an integer program over the choices of a space.

Costs of networks are sums over layers, and a layer depends on few sites: its input width, its output width, and the
depths around it. So a cost is a sum of tables over such groups of sites (`decomposed`), and the best arch a linear
program over whole numbers (`solve`): a variable for every choice of a site, one for every cell of a table, and the
cells of a table sum to the choices of its sites.
"""

import itertools
import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from htas.cost.limits import Limit
from htas.errors import UserError
from htas.graph.arch import Arch
from htas.graph.network import Network, Segment
from htas.search.moves import fitted, over
from htas.spaces.space import Space
from htas.text import percent

Floats = NDArray[np.float64]
Group = tuple[str, ...]
"""Names of sites that one figure depends on together, in the order of the space."""


@dataclass(frozen=True)
class Tables:
    """A figure of an arch: the sum of tables, each [choices, ...] of a group of sites."""

    space: Space
    tables: Mapping[Group, Floats]
    """The empty group's is the constant."""

    def __call__(self, arch: Arch) -> float:
        """The figure of one arch of the space."""
        places = {site: choices.index(arch[site]) for site, choices in self.space.choices.items()}
        return float(sum(table[tuple(places[site] for site in group)] for group, table in self.tables.items()))

    def within(self, groups: Collection[Group]) -> "Tables":
        """The same figure over these groups, and single sites: every table joins one that has all its sites."""
        merged: dict[Group, Floats] = {}
        sizes = {site: len(choices) for site, choices in self.space.choices.items()}
        for group, table in self.tables.items():
            larger = [other for other in groups if set(group) <= set(other)] if len(group) > 1 else []
            home = min(larger, key=len, default=group)
            shape = [sizes[site] if site in group else 1 for site in home]
            whole = np.broadcast_to(table.reshape(shape), [sizes[site] for site in home])
            merged[home] = merged[home] + whole if home in merged else whole
        return Tables(self.space, merged)


def groups_of(network: Network, space: Space) -> list[Group]:
    """The groups of sites that layers depend on, the largest only; sites with one choice are in none.

    A layer that reads several sites, after a concatenation, is in a group with each of them.
    """
    ends: dict[str, list[frozenset[str]]] = {}

    def sites(segments: Iterable[Segment]) -> list[frozenset[str]]:
        """Sites that the widths of segments depend on, one set for each segment and each block it may come from."""
        sets = [ends.get(segment.site, [frozenset({segment.site} - {""})]) for segment in segments]
        return list(dict.fromkeys(itertools.chain.from_iterable(sets))) or [frozenset()]

    free = {site for site, choices in space.choices.items() if len(choices) > 1}
    order = {site: place for place, site in enumerate(space.choices)}
    nodes = {node.name: node for node in network.nodes}
    sets: set[frozenset[str]] = set()
    for node in network.nodes:
        if node.kind == "depth":
            each = [one for name in node.inputs for one in sites(nodes[name].segments)]
            ends |= {s.site: [one | {node.site} for one in each] for s in node.segments if s.site not in network.sites}
        around = frozenset(site for site, _ in node.blocks)
        for one, other in itertools.product(sites(node.consumed), sites(node.segments)):
            sets.add((one | other | around) & free)
    largest = [one for one in sets if len(one) > 1 and not any(one < other for other in sets)]
    return sorted(tuple(sorted(one, key=order.__getitem__)) for one in largest)


def decomposed(figure: Callable[[Arch], float], space: Space, groups: Iterable[Group], anchor: Arch) -> Tables:
    """A figure of archs as tables over groups of sites, and over every part of a group.

    Exact where the figure is a sum of such tables; else it is exact at the anchor and where only the sites of one group
    have other choices than there, by differences from it.
    """
    parts = {part for group in groups for size in range(len(group) + 1) for part in itertools.combinations(group, size)}
    parts |= {(), *((site,) for site, choices in space.choices.items() if len(choices) > 1)}
    tables: dict[Group, Floats] = {}
    start = {site: anchor[site] for site in space.choices}
    for group in sorted(parts, key=lambda part: (len(part), part)):  # in one order in every process
        choices = [space.choices[site] for site in group]
        values = [
            figure(space.arch(start | dict(zip(group, picks, strict=True)))) for picks in itertools.product(*choices)
        ]
        table = np.array(values, float).reshape([len(each) for each in choices])
        for size in range(len(group)):
            for part in itertools.combinations(group, size):
                shape = [len(space.choices[site]) if site in part else 1 for site in group]
                table = table - tables[part].reshape(shape)
        tables[group] = table
    return Tables(space, tables)


TURNS = 3
"""Programs solved, each about the arch of the one before, where costs are no sums over groups of sites."""
EXACT = 1e-6
"""Difference of a cost from its sum over groups of sites, as a share, up to which the sum is exact."""


@dataclass(frozen=True)
class Solution:
    """The best arch that was found."""

    arch: Arch
    gap: float
    """By how much, as a share of its loss, the best possible arch may be better: 0 where none is, inf where the solver
    had no time for any and single changes led to the arch."""

    @property
    def sentence(self) -> str:
        """How good it is, in words."""
        if math.isinf(self.gap):
            return "the solver's time ended before it had an arch; changes of one site at a time led to this one"
        if self.gap > 0:
            return f"the solver's time ended: the best arch so far, whose loss may be {percent(self.gap, 2)} too high"
        return "no other arch of the space within the limits has a lower estimated loss"


def solve(loss: Tables, limits: Sequence[tuple[Tables, float]], *, seconds: float = 60.0) -> Solution | None:
    """The arch of least loss whose other figures are at most these; None if the time ends before any is found.

    Raises UserError where no arch keeps the limits.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    space = loss.space
    groups = _largest([loss, *(tables for tables, _ in limits)])
    figures = [tables.within(groups) for tables in (loss, *(tables for tables, _ in limits))]
    columns: dict[Group, int] = {(site,): len(choices) for site, choices in space.choices.items()}
    columns |= {group: math.prod(len(space.choices[site]) for site in group) for group in groups}
    starts = dict(zip(columns, itertools.accumulate(columns.values(), initial=0), strict=False))
    count, single = sum(columns.values()), sum(map(len, space.choices.values()))

    def row(tables: Tables) -> Floats:
        values = np.zeros(count)
        for group, table in tables.tables.items():
            if group:
                values[starts[group] : starts[group] + table.size] = table.ravel()
        return values

    links = list(_links(space, groups, starts))
    entries = [(number, column, value) for number, (pairs, _) in enumerate(links) for column, value in pairs]
    numbers, places, values = (np.array(each) for each in zip(*entries, strict=True))
    matrix = csr_array((values, (numbers, places)), shape=(len(links), count))
    right = np.array([one for _, one in links], float)
    constraints = [LinearConstraint(matrix, right, right)]
    for tables, (_, most) in zip(figures[1:], limits, strict=True):
        constant, scale = float(tables.tables.get((), np.zeros(()))), 1.0 / max(abs(most), 1e-300)
        constraints.append(LinearConstraint(row(tables)[None] * scale, -np.inf, (most - constant) * scale))
    objective = row(figures[0])
    size = float(np.abs(objective).max()) or 1.0
    result = milp(
        objective / size, integrality=(np.arange(count) < single).astype(int), bounds=Bounds(0, 1),
        constraints=constraints, options={"time_limit": seconds, "mip_rel_gap": 1e-6},
    )  # fmt: skip
    if result.status == 2:
        raise UserError("no arch of the space keeps all limits together; ask for less, or widen the space")
    if result.x is None:
        return None
    picks = {
        site: choices[int(result.x[starts[(site,)] : starts[(site,)] + len(choices)].argmax())]
        for site, choices in space.choices.items()
    }
    return Solution(space.arch(picks), max(0.0, float(result.mip_gap or 0.0)) if result.status == 1 else 0.0)


def best_within(network: Network, space: Space, limits: Sequence[Limit], loss: Tables, *, seconds: float) -> Solution:
    """The arch of least loss that keeps the limits, as predicted; `seconds` is the solver's time in all.

    Costs that are no sums over groups of sites (the peak of memory, layers after a concatenation) are sums near an
    arch: that of single changes, then the program's own.
    Raises UserError where no arch keeps the limits.
    """

    def worth(arch: Arch) -> float:
        return -loss(arch)

    def rank(solution: Solution) -> tuple[bool, float]:
        return over(limits, solution.arch) > 1, loss(solution.arch)

    groups, end = groups_of(network, space), time.monotonic() + seconds
    best = Solution(fitted(limits, space, space.nearest(network.base), worth), math.inf)
    parts = [replace(limit, cost=part) for limit in limits for part in limit.cost.parts()]
    anchor, most = best.arch, [part.most for part in parts]
    for turn in range(TURNS):
        sums = [decomposed(part.cost.cost, space, groups, anchor) for part in parts]
        try:
            solution = solve(loss, list(zip(sums, most, strict=True)), seconds=max(1.0, end - time.monotonic()))
        except UserError:
            if over(limits, best.arch) > 1:
                raise
            break
        if solution is None:
            break
        anchor = solution.arch
        if all(
            abs(each.cost.cost(anchor) - figure(anchor)) < EXACT * each.most
            for each, figure in zip(parts, sums, strict=True)
        ):
            return solution
        best = min(best, replace(solution, arch=fitted(limits, space, anchor, worth)), key=rank)
        if turn:
            most = [each * min(1.0, 1 / max(part.ratio(anchor), EXACT)) for each, part in zip(most, parts, strict=True)]
    return best


def _largest(figures: Iterable[Tables]) -> list[Group]:
    """Groups of two sites or more that are no part of another."""
    every = {group for tables in figures for group in tables.tables if len(group) > 1}
    return sorted(group for group in every if not any(set(group) < set(other) for other in every))


def _links(
    space: Space, groups: Iterable[Group], starts: Mapping[Group, int]
) -> Iterator[tuple[list[tuple[int, float]], float]]:
    """Equations, each as (column, factor) and its right side: one choice a site, and cells that sum to choices."""
    for site, choices in space.choices.items():
        yield [(starts[(site,)] + place, 1.0) for place in range(len(choices))], 1.0
    for group in groups:
        shape = [len(space.choices[site]) for site in group]
        cells = starts[group] + np.arange(math.prod(shape)).reshape(shape)
        for axis, site in enumerate(group):
            for place in range(shape[axis]):
                inside = [(int(cell), 1.0) for cell in cells.take(place, axis).ravel()]
                yield [*inside, (starts[(site,)] + place, -1.0)], 0.0
