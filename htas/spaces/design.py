"""Sections 3.1 and 3.2: from latency curves to spaces: expand, fit, score, group, choose (eq. 1 to 4)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from reprlib import repr as shortened
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from htas.errors import UserError, need_least, need_most
from htas.graph import Network, Site
from htas.graph.layer import Layer
from htas.spaces.curve import Curve, CurveRecord, Estimate, Fit, LayerTable, add, curve
from htas.spaces.layers import MOST, SurveyPlan, fewer, widest, widths_of
from htas.spaces.room import roomy
from htas.spaces.space import Space, depth_choices, group_bounds, group_slices, tas_widths
from htas.text import no_such

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
SiteWidths = Mapping[str, tuple[int, ...]]
SPACES = ("hardware", "tas", "grid", "explicit")
MOST_EXPAND = 64.0
"""Largest `expand`: each width up to there is one to choose from."""
DECIDED = 0.9
"""A group is decided when its choice is right with this probability."""
SETTLED = 1.5
"""... and is settled, so that it is read no more, when not one draw with errors this many times as large differs."""
DRAWS = 300
"""To see how sure a choice is."""


@dataclass(frozen=True)
class DesignRecord:
    """The spaces to search, and the curves that they were chosen by (design.json)."""

    spaces: Mapping[str, Space]
    curves: tuple[CurveRecord, ...]

    def __post_init__(self) -> None:
        for name, space in self.spaces.items():
            if space.name != name:
                raise ValueError(f"must have the space {name} under its name, got {shortened(space.name)}")
        for each in self.curves:
            for name, choices in each.choices.items():
                widths = self.spaces[name].widths if name in self.spaces else {}
                if any(widths.get(site) != choices for site in each.sites):
                    raise ValueError(
                        f"must have the choices of {shortened(each.sites[0])} in the space {shortened(name)} as its "
                        "curve has them"
                    )

    def check(self, network: Network, names: Sequence[str]) -> None:
        """Raise UserError where these are not spaces of such names for a network."""
        if list(self.spaces) != list(names):
            raise UserError(f"spaces must be {', '.join(names)}, got {shortened(', '.join(self.spaces))}")
        for space in self.spaces.values():
            for arch in (space.narrowest, space.widest):
                network.check(arch)
            for site, choices in space.widths.items():
                if any(width % network.sites[site].multiple for width in choices):
                    raise UserError(f"the choices of {site} must be multiples of {network.sites[site].multiple}")


@dataclass(frozen=True)
class Design:
    """How the widths that a search may choose from are chosen."""

    expand: float = 2.0
    """e of section 3.1: the widest choice over the base width; from 1 to 64."""
    groups: int = 8
    """g of eq. 3: the number of equal runs that the widths are cut into; each gives one choice."""
    alpha: float | Literal["fit"] = 1.0
    """The exponent of eq. 1: a number (the paper's is 1), or 'fit' to find it."""
    ties: float = 0.025
    """Scores within this share of the latency count as equal, and the widest wins."""
    selection: Literal["ties", "paper"] = "ties"
    """`paper`: the mean of all readings and the very best score, as in eq. 3 and 4, which on a shared machine chooses
    by noise; kept for comparison."""
    drop_dominated: bool = False
    """Whether the space `hardware` leaves out a width that is no faster than a wider one of its choices."""
    inputs: Literal["base", "expanded"] = "base"
    """The input width at which a layer is surveyed: the base network's, or e times it."""
    adds: Literal["join", "project"] = "join"
    """`join`: layers that are added share one width. `project`: each has its own, and a 1x1 convolution where they
    differ, as in TAS's published networks."""
    depth: bool = True
    """Whether the number of blocks of a stage is searched too; otherwise all stay."""
    spaces: tuple[str, ...] = ("hardware", "tas", "grid")
    """Spaces to search, the first being the one that counts: hardware (measured), tas (0.3 to 1.0 of the base width),
    grid (the last width of each group, nothing measured), explicit (the widths under design.widths)."""
    widths: dict[str, list[int]] = field(default_factory=dict)
    """Choices of the space 'explicit': by site name, or by base width as text ("16")."""
    ignored: tuple[str, ...] = ()
    """Modules, by name, that keep the widths that they give and their blocks, with all that is in them."""
    bounds: dict[str, list[int]] = field(default_factory=dict)
    """Least and most channels by site name, or by base width as text: {"layer1.0.conv1" = [16, 64]}."""

    def __post_init__(self) -> None:
        need_least(1, self, "design", "expand", "groups")
        need_most(MOST_EXPAND, self, "design", "expand")
        if self.alpha != "fit" and not self.alpha > 0:
            raise UserError(f"design.alpha must be above 0 or 'fit', got {self.alpha!r}")
        if not 0 <= self.ties < 1:
            raise UserError(f"design.ties must lie in 0..1, got {self.ties}")
        if not self.spaces:
            raise UserError("design.spaces must name at least one of hardware, tas, grid, explicit")
        for space in self.spaces:
            if space not in SPACES:
                raise UserError(f"design.spaces may name {', '.join(SPACES)}; got {space!r}")
        if len(set(self.spaces)) != len(self.spaces):
            raise UserError(f"design.spaces names a space twice: {', '.join(self.spaces)}")
        if ("explicit" in self.spaces) != bool(self.widths):
            raise UserError("the space 'explicit' needs design.widths, and design.widths needs that space")
        for name, bounds in self.bounds.items():
            if len(bounds) != 2 or not 1 <= bounds[0] <= bounds[1]:
                raise UserError(f"design.bounds of {name} must be the least and the most channels, got {bounds}")

    @property
    def estimate(self) -> Estimate:
        """The summary of a width's readings that stands for its latency."""
        return "mean" if self.selection == "paper" else "estimate"

    @property
    def margin(self) -> float:
        """Scores within this share of the latency count as equal."""
        return 0.0 if self.selection == "paper" else self.ties

    def survey_plan(self, network: Network, most: int = MOST) -> SurveyPlan:
        """The survey that this design needs; at most this many widths of a site are measured."""
        return SurveyPlan(network, self.expand, self.inputs, self.groups, most)

    def bounds_of(self, site: Site) -> tuple[float, float]:
        """The least and the most channels of a site; 1 and infinity where it has no bounds."""
        least, most = _of_site(self.bounds, site) or (1, inf)
        return least, most

    def roomy_survey(self, network: Network, most: int, free: float) -> tuple[SurveyPlan, str]:
        """The same with fewer widths where more do not fit into so many bytes, and a sentence that says so."""
        plans = ((widths, self.survey_plan(network, widths)) for widths in fewer(most))
        return roomy(plans, lambda plan: plan.filled, free, "a survey")


def choose(measured: Curve, fit: Fit, groups: int, ties: float = 0.0) -> tuple[int, ...]:
    """The width of each group with the best score (eq. 3 and 4); the widest of those within `ties` of the latency.

    A width that was not measured is not chosen, unless its group has no other.
    """
    scores, seconds = np.asarray(measured.scores(fit)), np.asarray(measured.seconds)
    scores[~_choosable(measured, groups)] = -np.inf
    return tuple(measured.widths[number] for number in _choices(scores[None], seconds[None], groups, ties)[0].tolist())


def certainty(measured: Curve, alpha: float, groups: int, ties: float, scale: float = 1.0) -> tuple[float, ...]:
    """The probability, for each group, that an endless survey would choose the same width.

    It is the fraction of random curves, within `scale` times the standard errors, that choose it; each has its own fit
    of exponent `alpha`. A curve without errors is certain. Each random curve steps at another place between two
    measured widths, so a group is uncertain where a width that was not measured may be better.
    """
    if not measured.errors:
        return (1.0,) * min(groups, len(measured.widths))
    first, others = _resampled(measured, alpha, groups, ties, scale)
    return tuple((others == first).mean(axis=0).tolist())


def _resampled(measured: Curve, alpha: float, groups: int, ties: float, scale: float) -> tuple[Ints, Ints]:
    """The choice of each group, and those of random curves, as indices of widths: [groups] and [draws, groups]."""
    rng = np.random.default_rng(0)
    noise = scale * rng.standard_normal((DRAWS, len(measured.widths)))
    curves = _stepped(measured, np.asarray(measured.seconds) + noise * np.asarray(measured.errors), rng)
    seconds = np.vstack([measured.seconds, curves])
    x = np.asarray(measured.widths, float) ** alpha
    columns = np.stack([x, np.ones_like(x)], axis=1)
    fits = seconds @ (columns @ np.linalg.pinv(columns)).T
    scores = fits - seconds
    scores[0, ~_choosable(measured, groups)] = -np.inf
    choices = _choices(scores, seconds, groups, ties)
    return choices[0], choices[1:]


def dominated(measured: Curve, choices: Sequence[int]) -> tuple[int, ...]:
    """The choices that are no faster than a wider one."""
    return tuple(
        width
        for number, width in enumerate(choices)
        if any(measured.at(wider) <= measured.at(width) for wider in choices[number + 1 :])
    )


def undecided(network: Network, tables: Mapping[str, LayerTable], design: Design) -> set[Layer]:
    """The layers that need more readings: every width of the groups whose choice is not settled yet.

    Of the widths that were not measured, only those that may be chosen.
    """
    open_layers: set[Layer] = set()
    visited: set[Any] = set()
    layers = design.survey_plan(network).templates
    for site, measured in site_curves(network, tables, design).items():
        if (alike := (frozenset(layers[site].items()), measured.widths)) in visited:
            continue
        visited.add(alike)
        alpha = measured.fit(design.alpha).alpha
        current, others = _resampled(measured, alpha, design.groups, design.margin, SETTLED)
        for group, choice, rivals in zip(measured.grouped(design.groups), current, others.T, strict=True):
            if (rivals != choice).any():
                might = {measured.widths[number] for number in rivals.tolist()}
                widths = {*group} - {*measured.interpolated} | might
                open_layers |= {layer.wide(width) for layer in layers[site] for width in widths}
    return open_layers


def _choices(scores: Floats, seconds: Floats, groups: int, ties: float) -> Ints:
    """Eq. 3 and 4 for many surveys at once: scores [surveys, widths] to the index of each group's choice, [surveys,
    groups]."""
    columns = []
    for run in group_slices(scores.shape[1], groups):
        best = scores[:, run].argmax(axis=1)[:, None]
        margin = ties * np.take_along_axis(seconds[:, run], best, axis=1)
        equal = scores[:, run] >= np.take_along_axis(scores[:, run], best, axis=1) - margin
        columns.append(run.stop - 1 - equal[:, ::-1].argmax(axis=1))
    return np.stack(columns, axis=1)


def _is_measured(measured: Curve) -> NDArray[np.bool_]:
    """Which of its widths were measured: [widths]."""
    return ~np.isin(measured.widths, measured.interpolated)


def _choosable(measured: Curve, groups: int) -> NDArray[np.bool_]:
    """The widths that were measured; all of a group that has none."""
    allowed = _is_measured(measured)
    for run in group_slices(len(allowed), groups):
        allowed[run] |= not allowed[run].any()
    return allowed


def _stepped(measured: Curve, curves: Floats, rng: np.random.Generator) -> Floats:
    """Random curves, [draws, widths], with one step anywhere between two measured widths, in place of a line."""
    measured_at = _is_measured(measured)
    if measured_at.all() or not measured_at.any():
        return curves
    numbers = np.arange(len(measured_at))
    below = np.maximum.accumulate(np.where(measured_at, numbers, numbers[measured_at][0]))
    above = np.minimum.accumulate(np.where(measured_at, numbers, numbers[measured_at][-1])[::-1])[::-1]
    share = (numbers - below) / np.maximum(above - below, 1)
    steps = rng.random(curves.shape)[:, below]
    return np.where(share > steps, curves[:, above], curves[:, below])


def check(network: Network, design: Design) -> None:
    """Raise UserError where the design does not fit the network, before anything is measured."""
    if not network.widths:
        reason = next(iter(network.frozen.values()), "it has no convolution that trace can follow")
        raise UserError(f"this network has no width that could change ({reason})")
    alone = [widest(site.base, design.expand) for site in network.widths.values() if site.multiple == 1]
    group_bounds(min(alone, default=design.groups), design.groups)
    names = {*network.widths, *(str(site.base) for site in network.widths.values())}
    for option, sites in (("widths", design.widths), ("bounds", design.bounds)):
        for name in sorted(sites.keys() - names):
            raise UserError(f"design.{option}: {no_such('site or base width', name, sorted(names))}")
    if "explicit" in design.spaces:
        _explicit(network, design)


def _of_site(options: Mapping[str, list[int]], site: Site) -> list[int]:
    """An option of one site, by its name or its base width; empty where it has none."""
    return options.get(site.name) or options.get(str(site.base)) or []


def spaces(network: Network, tables: Mapping[str, LayerTable], design: Design) -> dict[str, Space]:
    """The spaces that the design names, from what the survey measured; equal sites have equal choices."""
    return _spaces(network, design, lambda: _hardware(network, tables, design))


def possible_spaces(network: Network, design: Design) -> dict[str, Space]:
    """The same before the survey: the space `hardware` has every width that it may choose."""
    every = {name: tuple(widths_of(site, design.expand)) for name, site in network.widths.items()}
    return _spaces(network, design, lambda: every)


def _spaces(network: Network, design: Design, hardware: Callable[[], SiteWidths]) -> dict[str, Space]:
    depths = {name: depth_choices(site.base) if design.depth else (site.base,) for name, site in network.depths.items()}
    makers: dict[str, Callable[[], SiteWidths]] = {
        "hardware": hardware,
        "tas": lambda: {name: tas_widths(site.base, site.multiple) for name, site in network.widths.items()},
        "grid": lambda: {name: grid_widths(site, design) for name, site in network.widths.items()},
        "explicit": lambda: _explicit(network, design),
    }
    return {name: Space(name, _within(network, makers[name](), design, name), depths) for name in design.spaces}


def _within(
    network: Network, widths: Mapping[str, tuple[int, ...]], design: Design, space: str
) -> dict[str, tuple[int, ...]]:
    """Choices within the bounds; raises UserError where a site has none."""
    bounded = {}
    for name, choices in widths.items():
        site = network.sites[name]
        least, most = design.bounds_of(site)
        bounded[name] = tuple(width for width in choices if max(least, site.least) <= width <= most)
        if not bounded[name]:
            raise UserError(
                f"design.bounds leaves {name} no choice in the space {space}, which has "
                f"{', '.join(map(str, choices))}; widen the bounds, or raise design.groups"
            )
    return bounded


def site_curves(network: Network, tables: Mapping[str, LayerTable], design: Design) -> dict[str, Curve]:
    """m(x) of every site: the sum over the layers that produce it, with their multiplicity."""
    plan, curves = design.survey_plan(network), {}
    for site, layers in plan.templates.items():
        widths = plan.widths(site)
        parts = [(count, curve(tables, layer, widths, design.estimate)) for layer, count in layers.items()]
        curves[site] = add(parts)
    return curves


def records(
    network: Network, tables: Mapping[str, LayerTable], design: Design, spaces: Mapping[str, Space]
) -> list[CurveRecord]:
    """One record per distinct curve and choices, with fit, groups and doubts."""
    sites_by_curve: dict[Any, list[str]] = {}
    for site, measured in site_curves(network, tables, design).items():
        choices = tuple(space.widths[site] for space in spaces.values())
        sites_by_curve.setdefault((measured, network.sites[site].base, choices), []).append(site)
    curves = []
    for (measured, base, choices), sites in sites_by_curve.items():
        fit = measured.fit(design.alpha)
        flat = (
            f"latency does not grow with the width of {sites[0]} (k = {fit.k:.3g} s per channel): "
            "the readings are noise, or the width hardly matters; stop other work and survey again"
        )
        groups = tuple((group[0], group[-1]) for group in measured.grouped(design.groups))
        curves.append(CurveRecord(
            tuple(sites), base, measured, fit, groups, dict(zip(spaces, choices, strict=True)),
            doubts=(flat,) if fit.k <= 0 else (),
            certain=certainty(measured, fit.alpha, design.groups, design.margin),
            dominated=dominated(measured, _choice(measured, design)),
        ))  # fmt: skip
    return curves


def grid_widths(site: Site, design: Design) -> tuple[int, ...]:
    """The last width of each group."""
    widths = widths_of(site, design.expand)
    return tuple(widths[run][-1] for run in group_slices(len(widths), design.groups))


def _choice(measured: Curve, design: Design) -> tuple[int, ...]:
    """The best width of each group, as the design says what is best."""
    return choose(measured, measured.fit(design.alpha), design.groups, design.margin)


def _hardware(network: Network, tables: Mapping[str, LayerTable], design: Design) -> dict[str, tuple[int, ...]]:
    widths = {}
    for site, measured in site_curves(network, tables, design).items():
        choices = _choice(measured, design)
        slow = dominated(measured, choices) if design.drop_dominated else ()
        widths[site] = tuple(width for width in choices if width not in slow)
    return widths


def _explicit(network: Network, design: Design) -> dict[str, tuple[int, ...]]:
    widths = {}
    for name, site in network.widths.items():
        choices = _of_site(design.widths, site)
        if not choices:
            raise UserError(f'design.widths has no choices for {name}; add them under its name or "{site.base}"')
        if min(choices) < site.least:
            raise UserError(f"the choices of {name} in design.widths must be at least {site.least}, got {min(choices)}")
        if off := [width for width in choices if width % site.multiple]:
            raise UserError(
                f"the choices of {name} in design.widths must be multiples of {site.multiple}, as its channels stand "
                f"in groups; got {off[0]}"
            )
        widths[name] = tuple(sorted(set(choices)))
    return widths
