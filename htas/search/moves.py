"""Archs within limits: neighbours of another arch, wider or narrower, and uniform networks."""

from collections.abc import Callable, Sequence
from math import log

from htas.cost.limits import Limit
from htas.errors import UserError
from htas.graph.arch import Arch
from htas.spaces.space import Space
from htas.text import columns, percent, quantity

AIM = 0.975
"""Fraction of a limit that a search aims for: prediction and measurement differ by a percent or two."""
Worth = Callable[[Arch], float]
"""How much a search prefers an arch; only its order counts."""
USED = 0.95
"""Fraction of a limit, by prediction, below which an arch is widened again."""


def check(limits: Sequence[Limit], space: Space, base: Arch) -> list[str]:
    """A table of the costs that the space allows and of the limits, as lines of text.

    Raises UserError if no arch can keep a limit, or if every arch does.
    """
    if not limits:
        return []
    rows: list[tuple[str, ...]] = [("limit", "least possible", "base", "widest", "asked")]
    ends, remarks = {"least possible": leanest(limits, space), "widest": space.widest}, []
    for limit in limits:
        unit = limit.cost.unit
        base_cost, low, high = (limit.cost.cost(arch) for arch in (base, *ends.values()))
        values = (low, base_cost, high, limit.most)
        figures = [f"{quantity(value, unit)} ({percent(value / base_cost, 0)})" for value in values]
        rows.append((limit.metric, *figures))
        by_end = {end: limit.cost.remark(arch) for end, arch in ends.items()}
        remarks += [f"{limit.metric}, {end}: {remark}" for end, remark in by_end.items() if remark]
        _need_possible(limit, space, low, high, base_cost)
    return [*columns(rows, words=1), *remarks]


def need_possible(limits: Sequence[Limit], space: Space, base: Arch) -> None:
    """Raise UserError if no arch of a space can keep a limit, or if every arch does."""
    for limit in limits:
        low, high, base_cost = (limit.cost.cost(arch) for arch in (leanest([limit], space), space.widest, base))
        _need_possible(limit, space, low, high, base_cost)


def _need_possible(limit: Limit, space: Space, low: float, high: float, base: float) -> None:
    most, least, widest = (
        f"{quantity(each, limit.cost.unit)} ({percent(each / base, 0)})" for each in (limit.most, low, high)
    )
    if limit.most < low:
        raise UserError(
            f"constraints.{limit.metric} = {limit.text!r} cannot be kept: it asks for {most} of the base; the least "
            f"that a network of the space {space.name} takes is {least}; ask for more, or let design have narrower "
            "widths"
        )
    if limit.most > high:
        raise UserError(
            f"constraints.{limit.metric} = {limit.text!r} asks for {most} of the base, and even the widest network of "
            f"the space {space.name} takes only {widest}; ask for less, or leave it out"
        )


def over(limits: Sequence[Limit], arch: Arch) -> float:
    """The largest ratio of an arch's cost to a limit; at most 1 if all limits are kept."""
    return max(limit.ratio(arch) for limit in limits)


def leanest(limits: Sequence[Limit], space: Space) -> Arch:
    """The arch furthest within the limits: the narrowest, unless a wider choice costs less."""
    arch = space.narrowest
    best = over(limits, arch)
    for _ in range(10 * len(space.choices)):
        costs = {other: over(limits, other) for other in neighbours(arch, space, step=1)}
        if not costs or min(costs.values()) >= best:
            return arch
        arch = min(costs, key=costs.__getitem__)
        best = costs[arch]
    return arch


def neighbours(arch: Arch, space: Space, step: int | None = None) -> list[Arch]:
    """Archs that differ at one site, by at most `step` choices."""
    archs = []
    for site, choices in space.choices.items():
        here = choices.index(arch[site])
        for index, choice in enumerate(choices):
            if index != here and (step is None or abs(index - here) <= step):
                archs.append(changed(arch, site, choice))
    return archs


def changed(arch: Arch, site: str, choice: int) -> Arch:
    """The arch with another choice at one site."""
    if site in arch.widths:
        return Arch({**arch.widths, site: choice}, arch.depths)
    return Arch(arch.widths, {**arch.depths, site: choice})


def fitted(limits: Sequence[Limit], space: Space, start: Arch, worth: Worth) -> Arch:
    """The arch of highest worth near `start` that keeps the limits, and uses them.

    While the limits are broken, the change of one site that loses least worth per saved cost is made; then, while one
    fits, the change that gains most worth per added cost. If nothing keeps the limits, the leanest arch.
    """
    arch, ratio, most = start, over(limits, start), sum(map(len, space.choices.values()))
    for _ in range(most):
        if ratio <= 1:
            break
        saving = [(other, after) for other, after in _ratios(arch, limits, space) if after < ratio]
        if not saving:  # two changes might, so begin at the other end
            arch = leanest(limits, space)
            break
        value = worth(arch)
        # a change beyond the limit earns nothing more
        arch, ratio = max(saving, key=lambda m: (worth(m[0]) - value) / (ratio - max(m[1], 1.0) + 1e-9))
    arch = _climbed(arch, limits, space, worth, 0.0)
    for _ in range(most):
        ratio = over(limits, arch)
        wider = [(other, after) for other, after in _ratios(arch, limits, space) if ratio < after <= 1]
        if ratio >= USED or not wider:
            break
        value = worth(arch)
        arch, _ = max(wider, key=lambda m: (worth(m[0]) - value) / (m[1] - ratio))
    return _climbed(arch, limits, space, worth, min(USED, over(limits, arch)))


def _ratios(arch: Arch, limits: Sequence[Limit], space: Space) -> list[tuple[Arch, float]]:
    return [(other, over(limits, other)) for other in neighbours(arch, space)]


def _climbed(arch: Arch, limits: Sequence[Limit], space: Space, worth: Worth, least: float) -> Arch:
    """The arch of highest worth that changes of one site reach with a ratio to the limits in [least, 1]."""
    for _ in range(sum(map(len, space.choices.values()))):
        value = worth(arch)
        better = [other for other in neighbours(arch, space) if worth(other) > value]
        better = [other for other in better if least <= over(limits, other) <= 1]
        if not better:
            break
        arch = max(better, key=worth)
    return arch


def next_aim(turns: Sequence[tuple[float, float]], share: float = AIM) -> float:
    """Predicted cost to aim for, as a fraction of the limit, so that the measured cost lands at `share` of it.

    `turns` are pairs of an aim and the measured cost of its archs over the limit. One pair makes measurement
    proportional to prediction; of several, a line in logarithms goes through the two nearest the limit.
    """
    if not turns:
        return 1.0
    nearest = sorted(turns, key=lambda turn: abs(log(turn[1] / share)))
    (aim, came), *rest = nearest
    slope = 1.0
    for other, other_came in rest[:1]:
        if other != aim and (log(other_came) - log(came)) / (log(other) - log(aim)) > 0:
            slope = min(max((log(other_came) - log(came)) / (log(other) - log(aim)), 0.7), 4.0)
    return float(aim * (share / came) ** (1 / slope))


def uniforms(limits: Sequence[Limit], space: Space) -> list[Arch]:
    """Archs within the limits with all blocks and the same index of choice at every site, the widest first."""
    most, depths = max(map(len, space.widths.values()), default=0), space.widest.depths
    archs = [
        Arch({site: choices[min(index, len(choices) - 1)] for site, choices in space.widths.items()}, depths)
        for index in reversed(range(most))
    ]
    return [arch for arch in archs if limits and over(limits, arch) <= 1]


def filled(limits: Sequence[Limit], space: Space, arch: Arch) -> Arch:
    """The arch with widths one choice wider, site after site, while the limits leave room."""
    for site, choices in space.widths.items():
        wider = changed(arch, site, next((choice for choice in choices if choice > arch[site]), arch[site]))
        if over(limits, wider) <= 1:
            arch = wider
    return arch


def finalists(
    limits: Sequence[Limit], space: Space, start: Arch, worth: Worth, count: int, pool: Sequence[Arch] = ()
) -> list[Arch]:
    """`fitted`, and its neighbours of highest worth that keep and use the limits too. From a pool, if there is one: the
    archs of highest worth that keep the limits, then the nearest to them."""
    if pool:
        ratios = {arch: over(limits, arch) for arch in pool}
        order = sorted(pool, key=worth, reverse=True)
        keep = [arch for arch in order if ratios[arch] <= 1]
        beyond = sorted((arch for arch in pool if ratios[arch] > 1), key=ratios.__getitem__)
        return [*keep, *beyond][:count]
    first = fitted(limits, space, start, worth)
    around = neighbours(first, space)
    near = [other for other in around if USED <= over(limits, other) <= 1]
    if len(near) < count - 1:  # then two changes
        further = dict.fromkeys(each for other in around for each in neighbours(other, space, step=1))
        near += [other for other in further if other not in (first, *near) and USED <= over(limits, other) <= 1]
    return [first, *sorted(near, key=worth, reverse=True)[: count - 1]]


def miss(ratio: float) -> tuple[bool, float]:
    """Sort key of a ratio to a limit: those that keep it first, then by the distance from it."""
    return ratio > 1, abs(ratio - 1)
