"""Limits that a network must keep: as people write them, as numbers, and archs that keep them and use them.

A limit is a share of the base network's figure ("50%") or a figure with its unit ("8 ms", "1.0M"). A search is led to
AIM of it; what is chosen lies between USED and the whole.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from math import log

from htas.arch import Arch
from htas.cost import CostModel
from htas.space import Space
from htas.text import columns, listing, percent, quantity

AIM = 0.975
"""Share of a limit that a search is led to: prediction and measurement differ by a percent or two."""
USED = 0.95
"""Share of a limit, by prediction, under which an arch is made wider again."""
UNITS: Mapping[str, Mapping[str, float]] = {
    "latency": {"s": 1.0, "ms": 1e-3, "us": 1e-6},
    "energy": {"J": 1.0, "mJ": 1e-3, "uJ": 1e-6},
    "memory": {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30},
    "macs": {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9},
    "params": {"": 1.0, "k": 1e3, "M": 1e6},
}
"""Units of a figure, by metric, and how much of the metric's own unit they are."""
EXAMPLES = {"latency": "8 ms", "energy": "20 mJ", "memory": "4 MB", "macs": "20M", "params": "0.3M"}
NUMBER = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(\S*)\s*")


@dataclass(frozen=True)
class Constraints:
    """What the found network may cost at most: "50%" of the base network's, or a figure with its unit."""

    latency: str = ""
    """A batch on the target, measured: "60%", "8 ms"."""
    energy: str = ""
    """A batch on the target, by the meter of its processor or GPU: "60%", "20 mJ"."""
    memory: str = ""
    """Activations alive at once of a batch in eager PyTorch, weights left out: "50%", "4 MB"."""
    macs: str = ""
    """Multiply-adds of an image: "50%", "20M"."""
    params: str = ""
    """Trainable parameters: "50%", "0.3M"."""
    accuracy_floor: str = ""
    """For `htas fastest`: the accuracy to keep, in points below the base network's ("-0.3"), or absolute ("93.5%") of
    networks that are trained on one part of the training images and judged on the other (split.validation)."""
    seeds: int = 3
    """For `htas fastest`: trainings of each network, whose mean accuracy counts."""
    tries: int = 4
    """For `htas fastest`: budgets tried at most, each half as far from the last."""

    def __post_init__(self) -> None:
        for metric, text in self.given.items():
            parse(metric, text, 1.0)
        if self.accuracy_floor:
            floor(self.accuracy_floor, 1.0)
        for name in ("seeds", "tries"):
            if getattr(self, name) < 1:
                raise ValueError(f"constraints.{name} must be 1 or more, got {getattr(self, name)}")

    @property
    def given(self) -> dict[str, str]:
        """The limits that are given, by metric."""
        return {field.name: getattr(self, field.name) for field in fields(self)
                if field.name in UNITS and getattr(self, field.name)}  # fmt: skip


def parse(metric: str, text: str, base: float) -> float:
    """The limit in the metric's own unit, given the base network's figure.

    Raises ValueError that says how limits are written where the text is no number over 0 with a unit of the metric.
    """
    found = NUMBER.fullmatch(text)
    units = UNITS[metric]
    number, unit = (float(found[1]), found[2]) if found else (0.0, "?")
    if number <= 0 or unit not in (*units, "%"):
        named = listing([*(each for each in units if each), "%"])
        raise ValueError(
            f'constraints.{metric} must be a share of the base network such as "50%", or a number over 0 with a unit '
            f'({named}) such as "{EXAMPLES[metric]}", got {text!r}'
        )
    return number / 100 * base if unit == "%" else number * units[unit]


def floor(text: str, base: float) -> float:
    """The accuracy to keep, 0 to 1, given the base network's: "-0.3" is in points below it, "93.5%" absolute.

    Raises ValueError that says how it is written.
    """
    below, absolute = (re.fullmatch(pattern, text) for pattern in (r"\s*-\s*(\d+\.?\d*)\s*", r"\s*(\d+\.?\d*)\s*%\s*"))
    if below:
        return base - float(below[1]) / 100
    if absolute and 0 < float(absolute[1]) <= 100:
        return float(absolute[1]) / 100
    raise ValueError(
        'constraints.accuracy_floor must be in points below the base network\'s accuracy such as "-0.3", or a share '
        f'such as "93.5%", got {text!r}'
    )


@dataclass(frozen=True)
class Limit:
    """One constraint as a number."""

    metric: str
    text: str
    """As it was given."""
    cost: CostModel
    most: float
    """In the cost's unit."""

    def ratio(self, arch: Arch) -> float:
        """The cost of an arch over the limit: at most 1 where it is kept."""
        return self.cost.cost(arch) / self.most


def limits(constraints: Constraints, costs: Mapping[str, CostModel], base: Arch) -> tuple[Limit, ...]:
    """The constraints as numbers; `costs` has a model of every metric that is constrained."""
    return tuple(
        Limit(metric, text, costs[metric], parse(metric, text, costs[metric].cost(base)))
        for metric, text in constraints.given.items()
    )


def check(asked: Sequence[Limit], space: Space, base: Arch) -> list[str]:
    """A table of what there is and what is asked, as lines; raises ValueError where no arch can keep the limits, or
    every arch does."""
    if not asked:
        return []
    rows: list[tuple[str, ...]] = [("limit", "least possible", "base", "widest", "asked")]
    least = leanest(asked, space)
    for limit in asked:
        unit = limit.cost.unit
        own, low, high = (limit.cost.cost(arch) for arch in (base, least, space.widest))
        figures = [f"{quantity(value, unit)} ({percent(value / own, 0)})" for value in (low, own, high, limit.most)]
        rows.append((limit.metric, *figures))
        if limit.most < low:
            raise ValueError(
                f"constraints.{limit.metric} = {limit.text!r} cannot be kept: it asks for {figures[3]} of the base; "
                f"the least that a network of the space {space.name} takes is {figures[0]}; ask for more, or let "
                "design have narrower widths"
            )
        if limit.most > high:
            raise ValueError(
                f"constraints.{limit.metric} = {limit.text!r} asks for {figures[3]} of the base, and even the widest "
                f"network of the space {space.name} takes only {figures[2]}; ask for less, or leave it out"
            )
    return columns(rows, words=1)


def over(asked: Sequence[Limit], arch: Arch) -> float:
    """The largest ratio to a limit."""
    return max(limit.ratio(arch) for limit in asked)


def leanest(asked: Sequence[Limit], space: Space) -> Arch:
    """The arch that is furthest within the limits: the narrowest, unless a wider choice costs less."""
    return _downhill(space.narrowest, space, lambda arch: over(asked, arch))


def _downhill(arch: Arch, space: Space, cost: Callable[[Arch], float]) -> Arch:
    """As low as changes of one site lead."""
    best = cost(arch)
    for _ in range(10 * len(space.choices)):
        costs = {other: cost(other) for other in neighbours(arch, space, step=1)}
        if not costs or min(costs.values()) >= best:
            return arch
        arch = min(costs, key=costs.__getitem__)
        best = costs[arch]
    return arch


def neighbours(arch: Arch, space: Space, step: int | None = None) -> list[Arch]:
    """Archs that differ at one site, by `step` choices at most."""
    found = []
    for site, choices in space.choices.items():
        here = choices.index(arch[site])
        for index, choice in enumerate(choices):
            if index != here and (step is None or abs(index - here) <= step):
                found.append(changed(arch, site, choice))
    return found


def changed(arch: Arch, site: str, choice: int) -> Arch:
    """The arch with another choice at one site."""
    if site in arch.widths:
        return Arch({**arch.widths, site: choice}, arch.depths)
    return Arch(arch.widths, {**arch.depths, site: choice})


def fitted(asked: Sequence[Limit], space: Space, start: Arch, worth: Callable[[Arch], float], aim: float = 1.0) -> Arch:
    """The arch of most worth near `start` that keeps `aim` of the limits, and uses them.

    Of all changes of one site, that which loses least worth for what it saves is made until the limits are kept; then
    that which gains most for what it costs, while one fits. Where nothing keeps the limits it is the leanest arch.
    """
    arch, ratio = start, over(asked, start)
    for _ in range(sum(map(len, space.choices.values()))):
        if ratio <= aim:
            break
        moves = [(other, over(asked, other)) for other in neighbours(arch, space)]
        saving = [(other, its) for other, its in moves if its < ratio]
        if not saving:  # nor may two changes do what one does not: begin at the other end
            arch = leanest(asked, space)
            break
        value = worth(arch)
        # further than asked saves nothing
        arch, ratio = max(saving, key=lambda m: (worth(m[0]) - value) / (ratio - max(m[1], aim) + 1e-9))
    arch = _climbed(arch, asked, space, worth, 0.0, aim)
    for _ in range(sum(map(len, space.choices.values()))):
        ratio = over(asked, arch)
        moves = [(other, over(asked, other)) for other in neighbours(arch, space)]
        wider = [(other, its) for other, its in moves if ratio < its <= aim]
        if ratio >= USED * aim or not wider:
            break
        value = worth(arch)
        arch, _ = max(wider, key=lambda m: (worth(m[0]) - value) / (m[1] - ratio))
    return _climbed(arch, asked, space, worth, min(USED * aim, over(asked, arch)), aim)


def _climbed(
    arch: Arch, asked: Sequence[Limit], space: Space, worth: Callable[[Arch], float], least: float, most: float
) -> Arch:
    """As much worth as changes of one site lead to, between these ratios to the limits."""
    for _ in range(sum(map(len, space.choices.values()))):
        value = worth(arch)
        better = [other for other in neighbours(arch, space) if worth(other) > value]
        better = [other for other in better if least <= over(asked, other) <= most]
        if not better:
            break
        arch = max(better, key=worth)
    return arch


def next_aim(turns: Sequence[tuple[float, float]], wanted: float = AIM) -> float:
    """Where to lead predictions, as a share of the limit, so that what is measured comes to `wanted` of it.

    `turns` are pairs of an aim and what its archs came to when measured, over the limit. From one, prediction and
    measurement are taken to be proportional; from several, the line (of logarithms) through the two nearest the limit.
    """
    if not turns:
        return 1.0
    nearest = sorted(turns, key=lambda turn: abs(log(turn[1] / wanted)))
    (aim, came), *rest = nearest
    slope = 1.0
    for other, its in rest[:1]:
        if other != aim and (log(its) - log(came)) / (log(other) - log(aim)) > 0:
            slope = min(max((log(its) - log(came)) / (log(other) - log(aim)), 0.7), 4.0)
    return float(aim * (wanted / came) ** (1 / slope))


def uniforms(asked: Sequence[Limit], space: Space) -> list[Arch]:
    """The archs within the limits that have all blocks and the same of its choices at every site, the widest first."""
    found = []
    for index in reversed(range(max((len(choices) for choices in space.widths.values()), default=0))):
        widths = {site: choices[min(index, len(choices) - 1)] for site, choices in space.widths.items()}
        arch = Arch(widths, {site: choices[-1] for site, choices in space.depths.items()})
        if asked and over(asked, arch) <= 1:
            found.append(arch)
    return found


def filled(asked: Sequence[Limit], space: Space, arch: Arch) -> Arch:
    """The arch with as many widths as the limits leave room for one choice wider, in the order of the sites."""
    for site, choices in space.widths.items():
        wider = changed(arch, site, next((choice for choice in choices if choice > arch[site]), arch[site]))
        if over(asked, wider) <= 1:
            arch = wider
    return arch


def finalists(
    asked: Sequence[Limit],
    space: Space,
    start: Arch,
    worth: Callable[[Arch], float],
    count: int,
    pool: Sequence[Arch] = (),
) -> list[Arch]:
    """`fitted`, and those of its neighbours of most worth that keep and use the limits too; of a pool, if there is one,
    those of most worth that keep them, then the nearest to them."""
    if pool:
        ratios = {arch: over(asked, arch) for arch in pool}
        order = sorted(pool, key=worth, reverse=True)
        keep = [arch for arch in order if ratios[arch] <= 1]
        beyond = sorted((arch for arch in pool if ratios[arch] > 1), key=ratios.__getitem__)
        return [*keep, *beyond][:count]
    first = fitted(asked, space, start, worth)
    around = neighbours(first, space)
    near = [other for other in around if USED <= over(asked, other) <= 1]
    if len(near) < count - 1:  # then two changes
        further = dict.fromkeys(each for other in around for each in neighbours(other, space, step=1))
        near += [other for other in further if other not in (first, *near) and USED <= over(asked, other) <= 1]
    return [first, *sorted(near, key=worth, reverse=True)[: count - 1]]


def miss(ratio: float) -> tuple[bool, float]:
    """What keeps a limit comes before what does not, then by the distance from it."""
    return ratio > 1, abs(ratio - 1)


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Of (cost, worth) pairs the numbers of those that no other beats in both, cheapest first."""
    order = sorted(range(len(points)), key=lambda number: (points[number][0], -points[number][1]))
    kept: list[int] = []
    for number in order:
        if not kept or points[number][1] > points[kept[-1]][1]:
            kept.append(number)
    return kept
