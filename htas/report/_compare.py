"""What may be claimed of two networks: faster, slower, or no clear difference."""

from dataclasses import dataclass
from math import hypot, inf, sqrt
from typing import Literal

from htas.report.result import Report, Result
from htas.text import ARROW, NONE, TIMES, millions, milliseconds, percent, points, signed, significant
from htas.timing.measurement import Measurement

FEWEST = 5
"""Readings below which their noise cannot be told."""


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

    sentences: tuple[str, ...]
    figures: tuple[Figure, ...]


def base_of(report: Report) -> Result | None:
    """The network called `base`, if the report has one."""
    return next((result for result in report.results if result.name == "base"), None)


def found_of(report: Report) -> Result | None:
    """The searched network that counts: the first one, as the configuration orders its spaces."""
    return next(filter(is_searched, report.results), None)


def is_searched(result: Result) -> bool:
    """Whether a search has found the network."""
    return result.space not in ("", "-", NONE, "none")


def against_base(result: Result, base: Result | None) -> Comparison | None:
    """The speed of a network against the base; None where either is not measured, or it is the base itself."""
    if base is None or base is result or base.measured is None or result.measured is None:
        return None
    return speed(result.measured, base.measured)


def answer(report: Report) -> Answer:
    """The headline: the searched network against the base, claiming no more than the data."""
    found, base = found_of(report), base_of(report)
    if found is None or base is None or found is base:
        missing = "base network" if base is None else "searched network"
        return Answer((f"This report holds no {missing}, so nothing is compared.",), ())
    sentences = (
        speed_sentence(found, base),
        accuracy_sentence(found, base, report.test_images),
        *rival_sentence(found, report),
        *convergence_sentence(found, report),
    )
    return Answer(sentences, tuple(_figures(found, base, report.test_images)))


def speed_sentence(found: Result, base: Result) -> str:
    """Faster, slower, or no clear difference."""
    if found.measured is None or base.measured is None:
        unmeasured = " and ".join(result.name for result in (found, base) if result.measured is None)
        return f"Not measured yet: {unmeasured}. Nothing can be said about speed."
    compared = speed(found.measured, base.measured)
    times = f"{_time(found)} against {_time(base)} per batch"
    match compared.verdict:
        case "more":
            return f"{found.name} is {significant(compared.ratio)} times as fast as {base.name}: {times}, measured."
        case "less":
            ratio = significant(compared.ratio)
            return f"{found.name} is slower than {base.name}, {ratio} times as fast: {times}, measured."
    why = "within the noise" if compared.noise < inf else f"and fewer than {FEWEST} readings to tell it by"
    return f"No clear difference in speed between {found.name} and {base.name}: {times}, {why}."


def accuracy_sentence(found: Result, base: Result, images: int) -> str:
    """The difference in points, and whether so many test images can tell it."""
    if found.accuracy is None or base.accuracy is None:
        untrained = " and ".join(result.name for result in (found, base) if result.accuracy is None)
        return f"Not trained yet: {untrained}. Nothing can be said about accuracy."
    compared = accuracy(found.accuracy, base.accuracy, images)
    shares = f"{percent(found.accuracy)} against {percent(base.accuracy)}"
    size = f"{points(abs(compared.difference))} {'higher' if compared.difference > 0 else 'lower'}"
    if compared.difference == 0:
        return f"Accuracy is the same: {percent(found.accuracy)}."
    if compared.verdict == "unclear":
        noise = f"within the noise of {images} test images (\N{PLUS-MINUS SIGN}{points(compared.noise)})"
        return f"No clear difference in accuracy: {shares}, {size}, {noise}."
    return f"Its accuracy is {size}: {shares}."


def rival_sentence(found: Result, report: Report) -> tuple[str, ...]:
    """How the found network stands to the most accurate other one, the base apart, that is not clearly slower."""
    if found.measured is None or found.accuracy is None:
        return ()
    rivals = [other for other in report.results if other.name != "base" and _as_fast(other, found)]
    best = max(rivals, key=lambda other: other.accuracy or 0.0, default=None)
    if best is None or best.accuracy is None:
        return ()
    lead = accuracy(found.accuracy, best.accuracy, report.test_images)
    size = points(abs(lead.difference))
    figures = f"{percent(best.accuracy)}, {_time(best)}"
    match lead.verdict:
        case "more":
            return (
                f"Of the networks here that are not slower, the next best is {best.name}, {size} less ({figures}).",
            )
        case "less":
            return (f"But {best.name} is not slower and {size} more accurate ({figures}).",)
    return (f"No clear difference in accuracy to {best.name}, which is not slower ({figures}).",)


def _as_fast(other: Result, found: Result) -> bool:
    if other is found or other.accuracy is None or other.measured is None or found.measured is None:
        return False
    return speed(other.measured, found.measured).verdict != "less"


def convergence_sentence(found: Result, report: Report) -> tuple[str, ...]:
    """A warning where the search behind the network did not converge."""
    open_ended = any(search.space == found.name and not search.converged for search in report.searches)
    return (f"The search behind {found.name} has not converged.",) if open_ended else ()


def _time(result: Result) -> str:
    return milliseconds(result.measured.estimate) if result.measured else NONE


def _figures(found: Result, base: Result, images: int) -> list[Figure]:
    figures = []
    if found.measured and base.measured:
        compared = speed(found.measured, base.measured)
        clear = compared.verdict != "unclear"
        label = f"as fast as {base.name}, measured" if clear else "no clear difference in speed"
        value = f"{significant(compared.ratio)}{TIMES}"
        figures.append(Figure(label, value if clear else f"({value})", f"{_time(base)} {ARROW} {_time(found)}"))
    if found.accuracy is not None and base.accuracy is not None:
        gained = accuracy(found.accuracy, base.accuracy, images)
        label = "points of accuracy" + (": no clear difference" if gained.verdict == "unclear" else "")
        note = f"{percent(base.accuracy)} {ARROW} {percent(found.accuracy)}"
        figures.append(Figure(label, signed(gained.difference * 100), note))
    for label, after, before in (("multiply-adds", found.macs, base.macs), ("parameters", found.params, base.params)):
        if before:
            note = f"{millions(before)} {ARROW} {millions(after)}"
            figures.append(Figure(f"of the {label}", percent(after / before, 0), note))
    return figures
