"""What may be claimed of two networks: faster, slower, or no clear difference."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import hypot, inf, sqrt
from typing import Literal

from htas.report._names import at_the_start, is_searched, network_names, search_name
from htas.report.result import Report, Result
from htas.text import ARROW, NONE, TIMES, millions, milliseconds, percent, points, signed, significant
from htas.timing.measurement import Measurement

FEWEST = 5
"""With fewer readings their noise is unknown."""
PLUS_MINUS = "\N{PLUS-MINUS SIGN}"


@dataclass(frozen=True)
class Comparison:
    """One figure of two networks, with the difference that noise alone could make."""

    difference: float
    ratio: float
    noise: float
    """In the unit of the difference."""

    @property
    def verdict(self) -> Literal["more", "less", "unclear"]:
        """Which way the difference goes, where it is larger than the noise."""
        if abs(self.difference) <= self.noise:
            return "unclear"
        return "more" if self.difference > 0 else "less"


def speed(network: Measurement, base: Measurement) -> Comparison:
    """How many times as fast as the base: ratio of estimates, base over network; the difference is in seconds saved.

    The noise is two standard errors of the difference; those of the machine's level do not count, since both were
    read in the same rounds. With few readings it has no bound.
    """
    few = min(len(network.values), len(base.values)) < FEWEST
    noise = inf if few else 2 * hypot(network.error, base.error)
    saved = base.estimate - network.estimate
    return Comparison(saved, base.estimate / network.estimate if network.estimate else inf, noise)


def accuracy(network: float, base: float, images: int) -> Comparison:
    """How much more accurate than the base, in shares of the test split (0.01 is a point).

    The noise is two standard errors of the difference of two binomial shares; nothing is known where `images` is 0,
    and then every difference counts.
    """
    variance = (network * (1 - network) + base * (1 - base)) / images if images else 0.0
    return Comparison(network - base, network / base if base else inf, 2 * sqrt(variance))


@dataclass(frozen=True)
class Figure:
    """One number of the answer on top: what it is called, its value, and what it is made of."""

    label: str
    value: str
    note: str


@dataclass(frozen=True)
class Answer:
    """What a reader should know after five seconds."""

    headline: str
    details: tuple[str, ...]
    figures: tuple[Figure, ...]

    @property
    def sentences(self) -> tuple[str, ...]:
        """The headline, and the sentences below it."""
        return (self.headline, *self.details)


def base_of(report: Report) -> Result | None:
    """The network called `base`, if the report has one."""
    return next((result for result in report.results if result.name == "base"), None)


def found_of(report: Report) -> Result | None:
    """The searched network that counts: the first one, as the configuration orders its spaces."""
    return next(filter(is_searched, report.results), None)


def against_base(result: Result, base: Result | None) -> Comparison | None:
    """The speed of a network against the base; None where either is not measured, or it is the base itself."""
    if base is None or base is result or base.measured is None or result.measured is None:
        return None
    return speed(result.measured, base.measured)


def answer(report: Report) -> Answer:
    """The searched network against the base, and against narrowing alike, claiming no more than the data."""
    searched, base = found_of(report), base_of(report)
    if searched is None or base is None or searched is base:
        missing = "base network" if base is None else "searched network"
        return Answer(f"This report holds no {missing}, so nothing is compared.", (), ())
    names = {**network_names(report), searched.name: "the searched network"}
    clear, narrowed = narrowing_sentence(searched, report)
    headline = speed_sentence(searched, base, names)
    details = (
        accuracy_sentence(searched, base, report.test_images, names),
        *([narrowed] if narrowed and not clear else []),
        *rival_sentence(searched, report, names),
        *convergence_sentence(searched, report),
    )
    figures = tuple(_figures(searched, base, report.test_images, names))
    return Answer(f"{headline} {narrowed}" if clear else headline, details, figures)


def speed_sentence(searched: Result, base: Result, names: Mapping[str, str]) -> str:
    """Faster, slower, or no clear difference."""
    network, other = names[searched.name], names[base.name]
    if searched.measured is None or base.measured is None:
        unmeasured = " and ".join(names[result.name] for result in (searched, base) if result.measured is None)
        return f"Not measured yet: {unmeasured}. Nothing can be said about speed."
    compared = speed(searched.measured, base.measured)
    times = f"{_time(searched)} against {_time(base)} per batch"
    ratio = significant(compared.ratio)
    match compared.verdict:
        case "more":
            return at_the_start(f"{network} is {ratio} times as fast as {other}: {times}, measured.")
        case "less":
            return at_the_start(f"{network} is slower than {other}, {ratio} times as fast: {times}, measured.")
    why = "within the noise" if compared.noise < inf else f"and fewer than {FEWEST} readings to tell it by"
    return f"No clear difference in speed between {network} and {other}: {times}, {why}."


def accuracy_sentence(searched: Result, base: Result, images: int, names: Mapping[str, str]) -> str:
    """The difference in points, and whether that number of test images can tell it."""
    if searched.accuracy is None or base.accuracy is None:
        untrained = " and ".join(names[result.name] for result in (searched, base) if result.accuracy is None)
        return f"Not trained yet: {untrained}. Nothing can be said about accuracy."
    compared = accuracy(searched.accuracy, base.accuracy, images)
    other = names[base.name]
    shares = f"{percent(searched.accuracy)} against {percent(base.accuracy)}"
    gap, direction = points(abs(compared.difference)), "more" if compared.difference > 0 else "less"
    if compared.difference == 0:
        return at_the_start(f"{names[searched.name]} is as accurate as {other}: {percent(searched.accuracy)}.")
    if compared.verdict == "unclear":
        noise = f"within the noise of {images} test images ({PLUS_MINUS}{points(compared.noise)})"
        return f"No clear difference in accuracy to {other}: {shares}, {gap} {direction}, {noise}."
    return at_the_start(f"{names[searched.name]} is {gap} {direction} accurate than {other}: {shares}.")


def narrowing_sentence(searched: Result, report: Report) -> tuple[bool, str]:
    """Where narrowing all layers alike ended that is not slower, and whether the difference is clear; else nothing."""
    control = next((other for other in report.results if other.strategy == "uniform" and not is_searched(other)), None)
    if control is None or control.accuracy is None or searched.accuracy is None or not _as_fast(control, searched):
        return False, ""
    assert control.measured is not None and searched.measured is not None
    times = speed(control.measured, searched.measured)
    if times.noise == inf:
        return False, ""
    where = "at lower latency" if times.verdict == "more" else "at equal latency"
    compared = accuracy(control.accuracy, searched.accuracy, report.test_images)
    noise = f" ({PLUS_MINUS}{points(compared.noise)})" if compared.noise else ""
    if compared.verdict == "unclear":
        return False, f"No clear difference in accuracy to narrowing all layers alike {where}{noise}."
    size = f"{points(abs(compared.difference))} {'higher' if compared.verdict == 'more' else 'lower'}{noise}"
    return True, f"{where[0].upper()}{where[1:]}, narrowing all layers alike ended {size}."


def rival_sentence(searched: Result, report: Report, names: Mapping[str, str]) -> tuple[str, ...]:
    """The most accurate other network that is not clearly slower, apart from the base and narrowing."""
    if searched.measured is None or searched.accuracy is None:
        return ()
    others = [other for other in report.results if other.name != "base" and other.strategy != "uniform"]
    rivals = [other for other in others if _as_fast(other, searched)]
    best = max(rivals, key=lambda other: other.accuracy or 0.0, default=None)
    if best is None or best.accuracy is None:
        return ()
    lead = accuracy(searched.accuracy, best.accuracy, report.test_images)
    size, name = points(abs(lead.difference)), names[best.name]
    figures = f"{percent(best.accuracy)}, {_time(best)}"
    match lead.verdict:
        case "more":
            return (f"Of the networks here that are not slower, the next best is {name}, {size} less ({figures}).",)
        case "less":
            return (f"But {name} is not slower and {size} more accurate ({figures}).",)
    return (f"No clear difference in accuracy to {name}, which is not slower ({figures}).",)


def _as_fast(other: Result, searched: Result) -> bool:
    if other is searched or other.accuracy is None or other.measured is None or searched.measured is None:
        return False
    return speed(other.measured, searched.measured).verdict != "less"


def convergence_sentence(searched: Result, report: Report) -> tuple[str, ...]:
    """A warning where the search behind the network did not converge."""
    unfinished = any(search.space == searched.name and not search.converged for search in report.searches)
    return (f"The {search_name(searched.name)} has not converged.",) if unfinished else ()


def _time(result: Result) -> str:
    return milliseconds(result.measured.estimate) if result.measured else NONE


def _figures(searched: Result, base: Result, images: int, names: Mapping[str, str]) -> list[Figure]:
    figures = []
    if searched.measured and base.measured:
        compared = speed(searched.measured, base.measured)
        clear = compared.verdict != "unclear"
        label = f"as fast as {names[base.name]}, measured" if clear else "no clear difference in speed"
        ratio = f"{significant(compared.ratio)}{TIMES}"
        times = f"{_time(base)} {ARROW} {_time(searched)}"
        figures.append(Figure(label, ratio if clear else f"({ratio})", times))
    if searched.accuracy is not None and base.accuracy is not None:
        gained = accuracy(searched.accuracy, base.accuracy, images)
        label = "points of accuracy" + (": no clear difference" if gained.verdict == "unclear" else "")
        note = f"{percent(base.accuracy)} {ARROW} {percent(searched.accuracy)}"
        figures.append(Figure(label, signed(gained.difference * 100), note))
    counts = (("multiply-adds", searched.macs, base.macs), ("parameters", searched.params, base.params))
    for label, after, before in counts:
        if before:
            note = f"{millions(before)} {ARROW} {millions(after)}"
            figures.append(Figure(f"of the {label}", percent(after / before, 0), note))
    return figures
