"""The arch of least loss within limits: an integer program over the choices of a space, exact where costs are sums.

Costs of networks are sums over layers, and a layer depends on few sites: its input width, its output width, and the
depths around it. So a cost is a sum of tables over such groups of sites (`decomposed`), and the best arch a linear
program over whole numbers (`solve`): a variable for every choice of a site, one for every cell of a table, and the
cells of a table sum to the choices of its sites.
"""

import itertools
import math
import random
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from htas.cost.limits import Limit
from htas.errors import UserError
from htas.graph.arch import Arch
from htas.graph.network import Network, Segment
from htas.search.moves import changed, fitted, over
from htas.spaces.space import Space
from htas.text import percent, plural

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


TURNS = 5
"""Programs solved, each about the arch of another, where costs are no sums over groups of sites."""
EXACT = 1e-6
"""Difference of a cost from its sum over groups of sites, as a share of the limit, up to which the sum is exact."""
DRAWN = 100
"""Number of random archs at which a cost must be its sum for a program to be believed."""
TILTS = (-2.0, -1.0, 0.0, 1.0, 2.0)
"""How far they tend to wide choices."""
ASK = "ask for less, or widen the space"
LOOSER = 1.05
"""Limits of a program, as a multiple of those to keep, where the limits themselves lead to no other arch."""
PAIRS = 400
"""Changes of two sites, the most promising first, that are tried on an arch where costs are no such sums."""


@dataclass(frozen=True)
class Solution:
    """The best arch that was found."""

    arch: Arch
    gap: float
    """By how much, as a share of its loss, the best possible arch may be better: 0 where none is, inf where the solver
    had no time for any and single changes led to the arch."""
    programs: int = 0
    """Number of programs that it is the best of, where costs are no sums over groups of sites; 0 where they are."""

    @property
    def proven(self) -> bool:
        """Whether no arch is better."""
        return self.gap == 0 and not self.programs

    @property
    def sentence(self) -> str:
        """How good it is, in words."""
        if self.programs:
            return (
                f"the best arch of {plural(self.programs, 'program')} and of changes of one or two sites; costs do not "
                "add up layer by layer here, so a better one is possible"
            )
        if math.isinf(self.gap):
            return "the solver's time ended before it had an arch; changes of one site at a time led to this one"
        if self.gap > 0:
            return f"the solver's time ended: the best arch so far, whose loss may be {percent(self.gap, 2)} too high"
        return "no other arch of the space within the limits has a lower estimated loss"


def solve(
    loss: Tables, limits: Sequence[tuple[Tables, float]], *, seconds: float = 60.0, without: Collection[Arch] = ()
) -> Solution | None:
    """The arch of least loss whose other figures are at most these; None if the time ends before any is found. Archs
    `without` are left out.

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
    for arch in without:
        columns_of = [starts[(site,)] + choices.index(arch[site]) for site, choices in space.choices.items()]
        picked = np.zeros(count)
        picked[columns_of] = 1.0
        constraints.append(LinearConstraint(picked[None], -np.inf, len(columns_of) - 1))
    objective = row(figures[0])
    size = float(np.abs(objective).max()) or 1.0
    result = milp(
        objective / size, integrality=(np.arange(count) < single).astype(int), bounds=Bounds(0, 1),
        constraints=constraints, options={"time_limit": seconds, "mip_rel_gap": 1e-6},
    )  # fmt: skip
    if result.status == 2:
        raise UserError(f"no arch of the space keeps all limits together; {ASK}")
    if result.x is None:
        return None
    picks = {
        site: choices[int(result.x[starts[(site,)] : starts[(site,)] + len(choices)].argmax())]
        for site, choices in space.choices.items()
    }
    arch = space.arch(picks)
    if result.status != 1:
        return Solution(arch, 0.0)
    behind = max(0.0, float(result.fun - result.mip_dual_bound)) * size
    return Solution(arch, behind / max(abs(loss(arch)), 1e-300))


def best_within(network: Network, space: Space, limits: Sequence[Limit], loss: Tables, *, seconds: float) -> Solution:
    """The arch of least loss that keeps the limits, as predicted; `seconds` is the solver's time in all.

    Costs that are no sums over groups of sites (the peak of memory, layers after a concatenation) are sums near an
    arch: that of single changes, then the last program's, or the best so far.
    Raises UserError where no arch keeps the limits, or none was found.
    """

    def rank(arch: Arch) -> tuple[bool, float]:
        return over(limits, arch) > 1, loss(arch)

    def near(start: Arch) -> Arch:
        return fitted(limits, space, start, lambda arch: -loss(arch))

    groups, end = groups_of(network, space), time.monotonic() + seconds
    parts = [replace(limit, cost=part) for limit in limits for part in limit.cost.parts()]
    figures, bounds = [part.cost.cost for part in parts], tuple(part.most for part in parts)
    best = near(space.nearest(network.base))
    turns, wrong = [(best, bounds)], list[Arch]()
    sums, gap, programs = [decomposed(figure, space, groups, best) for figure in figures], math.inf, 0
    exact = all(is_sum(*each) for each in zip(figures, sums, bounds, strict=True))
    while programs < TURNS:
        try:
            limited, remaining = zip(sums, turns[-1][1], strict=True), max(1.0, end - time.monotonic())
            solution = solve(loss, list(limited), seconds=remaining, without=wrong)
        except UserError as error:
            if over(limits, best) > 1:
                raise (
                    error if exact else UserError(f"no arch that keeps all limits together was found; {ASK}")
                ) from error
            break
        if solution is None:
            break
        programs, gap = programs + 1, solution.gap
        if exact and over(limits, solution.arch) <= 1:
            return replace(solution, arch=min(solution.arch, best, key=rank))
        if exact:  # what was measured of an arch takes the place of the sum
            wrong.append(solution.arch)
            continue
        best = min(best, _improved(near(solution.arch), space, limits, loss, end), key=rank)
        most = tuple(each / max(1.0, part.ratio(solution.arch)) for each, part in zip(turns[-1][1], parts, strict=True))
        looser = tuple(LOOSER * each for each in bounds)  # for archs that cost less than their sums
        following = ((solution.arch, most), (best, bounds), (best, looser))
        turn = next((each for each in following if each not in turns), None)
        if turn is None or time.monotonic() > end:
            break
        turns.append(turn)
        sums = [decomposed(figure, space, groups, turn[0]) for figure in figures]
    return Solution(best, gap, programs)


def is_sum(figure: Callable[[Arch], float], tables: Tables, scale: float) -> bool:
    """Whether a figure is the sum of these tables, to a small share of a scale, at random archs of all sizes."""
    rng = random.Random(0)
    archs = (tables.space.sample(rng, tilt) for tilt in TILTS * (DRAWN // len(TILTS)))
    return all(abs(figure(arch) - tables(arch)) <= EXACT * abs(scale) for arch in archs)


def _improved(arch: Arch, space: Space, limits: Sequence[Limit], loss: Tables, end: float) -> Arch:
    """The arch that changes of one site or two lead to, each of which lowers the loss within the limits."""
    while over(limits, arch) <= 1 and time.monotonic() < end:
        better = next(_better(arch, space, limits, loss), None)
        if better is None:
            break
        arch = better
    return arch


def _better(arch: Arch, space: Space, limits: Sequence[Limit], loss: Tables) -> Iterator[Arch]:
    """Archs of less loss within the limits that differ at one site or two, those first that promise most."""

    def figures(of: Arch) -> Floats:
        return np.array([loss(of), *(limit.ratio(of) for limit in limits)])

    places = [(site, choice) for site, choices in space.choices.items() for choice in choices if choice != arch[site]]
    here = figures(arch)
    moves = np.array([figures(changed(arch, *place)) - here for place in places]).reshape(len(places), len(here))
    first, second = np.triu_indices(len(places))  # a move with itself is that move
    promised = here + moves[first] + np.where(first == second, 0.0, 1.0)[:, None] * moves[second]
    promising = np.flatnonzero(promised[:, 0] < here[0])
    order = np.lexsort((promised[promising, 0], promised[promising, 1:].max(axis=1) > 1))
    for pair in promising[order][:PAIRS]:
        (site, choice), (other, its_choice) = places[first[pair]], places[second[pair]]
        if site != other or choice == its_choice:
            new = changed(changed(arch, site, choice), other, its_choice)
            if loss(new) < here[0] and over(limits, new) <= 1:
                yield new


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
