"""A report in a few lines: its networks, and what may be claimed of two: faster, slower, or no clear difference."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, sqrt
from typing import Literal, TypeVar

from htas.report._blocks import Answer, Cell, Figure
from htas.report._names import at_the_start, is_searched, network_names, row_names, search_name
from htas.report.result import Report, Result
from htas.text import ARROW, NONE, TextTable, millions, milliseconds, percent, plus_minus, points, signed, significant
from htas.timing.measurement import Measurement, noise

Part = TypeVar("Part")
FEWEST = 5
"""With fewer readings their noise is unknown."""
SIMPLER = ("uniform", "plain", "stage")
"""Strategies of networks that need no search."""
PLUS_MINUS = "\N{PLUS-MINUS SIGN}"
HEADINGS = (
    "network", "accuracy", "measured, ms", "predicted, ms", "times as fast as base", "multiply-adds", "parameters"
)  # fmt: skip


def summary(report: Report) -> TextTable:
    """What the top of the page says."""
    names, base = row_names(report), base_of(report)
    rows = [
        with_deployed(report, (names[result.name], *map(str, figures(result, base))), str(deployed_cell(result)))
        for result in report.results
    ]
    headings = with_deployed(report, HEADINGS, deployed_heading(report))
    controls = (result for result in report.results if result.breaks and not is_searched(result))
    breaches = [f"{names[result.name]} {breach(result)}." for result in controls]
    before = answer(report).sentences
    return TextTable([headings, *rows], 1, before=before, after=breaches, marked=marked(report))


def breach(result: Result) -> str:
    """That a network breaks limits or bounds, and which, as the rest of a sentence about it; empty where it keeps them.
    A control is then here for comparison alone."""
    verb = "misses its limit" if is_searched(result) else "is no answer here, as it breaks what was asked for"
    return f"{verb}: {'; '.join(result.breaks)}" if result.breaks else ""


def deployed_heading(report: Report) -> str:
    """Of the column of accuracies as deployed; empty where no network is in another precision than fp32."""
    return next((f"in {each.deployed.precision}" for each in report.results if each.deployed), "")


def deployed_cell(result: Result) -> Cell:
    """The accuracy as deployed, with its distance from fp32."""
    return Cell(percent(result.deployed.accuracy), result.deployed.change) if result.deployed else Cell(NONE)


def with_deployed(report: Report, row: Sequence[Part], cell: Part) -> tuple[Part, ...]:
    """A row of a table with this cell after name and accuracy, where any network is deployed in another precision."""
    return (*row[:2], cell, *row[2:]) if deployed_heading(report) else tuple(row)


def marked(report: Report) -> list[str]:
    """The names of the rows to be set off: that of the searched network."""
    searched = found_of(report)
    return [row_names(report)[searched.name]] if searched else []


def figures(result: Result, base: Result | None) -> tuple[Cell, ...]:
    """Share of the test split, milliseconds measured and predicted, speed over the base, multiply-adds, parameters."""
    compared, measured = against_base(result, base), result.measured
    times = Cell("1" if result is base and measured else NONE)
    if compared is not None:
        times = Cell(significant(compared.ratio), "no clear difference" if compared.verdict == "unclear" else "")
    return (
        Cell(NONE if result.accuracy is None else percent(result.accuracy)),
        Cell(NONE if measured is None else plus_minus(1e3 * measured.estimate, 2e3 * measured.error)),
        Cell(NONE if result.predicted is None else significant(1e3 * result.predicted), result.predicted_note),
        times,
        Cell(millions(result.macs)),
        Cell(millions(result.params)),
    )


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

    Both were read in the same rounds, so the noise is what 95 of 100 differences of equal networks stay below there
    (measurement.py). With few readings it has no bound.
    """
    few = min(len(network.values), len(base.values)) < FEWEST
    saved = base.estimate - network.estimate
    ratio = base.estimate / network.estimate if network.estimate else inf
    return Comparison(saved, ratio, inf if few else noise(network, base))


def accuracy(network: float, base: float, images: int) -> Comparison:
    """How much more accurate than the base, in shares of the test split (0.01 is a point).

    The noise is two standard errors of the difference of two binomial shares; nothing is known where `images` is 0, or
    of scores that are no shares, and then every difference counts.
    """
    images = images if min(network, base) >= 0 and max(network, base) <= 1 else 0
    variance = (network * (1 - network) + base * (1 - base)) / images if images else 0.0
    return Comparison(network - base, network / base if base else inf, 2 * sqrt(variance))


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


def _accuracy(result: Result, base: Result, report: Report) -> Comparison | None:
    """The accuracy of a network against another's; None where either is not trained."""
    if result.accuracy is None or base.accuracy is None:
        return None
    return accuracy(result.accuracy, base.accuracy, report.test_images)


def answer(report: Report) -> Answer:
    """The searched network against the base, and against narrowing alike, claiming no more than the data."""
    searched, base, missed = found_of(report), base_of(report), missed_sentences(report)
    if searched is None or base is None or searched is base:
        missing = "base network" if base is None else "searched network"
        nothing = f"This report holds no {missing}, so nothing is compared."
        return Answer(" ".join((*missed, nothing)), (), ())
    names = {**network_names(report), searched.name: "the searched network"}
    failures = [each for each in report.results if _failed(each, base, report)]
    report = replace(report, results=tuple(each for each in report.results if each not in failures))
    simpler = _simpler(searched, report)
    first = _simpler_sentence(simpler, searched, report, names) if simpler else ""
    narrowed = "" if simpler else _narrowing_sentence(searched, report)
    unfinished = any(search.space == searched.name and not search.converged for search in report.searches)
    unlearnt = _unlearnt_sentence(base, report, names)
    if unlearnt or searched in failures:
        first, narrowed = unlearnt or _failure_sentence(searched, base, report, names), ""
        unlearnt = first
    details = (
        "" if unlearnt else _accuracy_sentence(searched, base, report, names),
        "" if unlearnt else _rival_sentence(searched, report, names, simpler),
        *(_failure_sentence(each, base, report, names) for each in failures if each is not searched),
        f"{at_the_start(names[searched.name])}: {searched.lost[0].lower()}{searched.lost[1:]}" if searched.lost else "",
        _deployed_sentence(searched, base, names),
        f"The {search_name(searched.name)} has not converged." if unfinished else "",
    )
    figures = tuple(_figures(searched, base, report, names, trained=searched not in failures))
    headline = filter(None, (*missed, first, _speed_sentence(searched, base, names), narrowed))
    return Answer(" ".join(headline), tuple(filter(None, details)), figures)


def missed_sentences(report: Report) -> list[str]:
    """Which of the searched networks miss their limits, a sentence for each: the first ones of the report."""
    names = network_names(report)
    searched = filter(is_searched, report.results)
    return [at_the_start(f"{names[result.name]} {breach(result)}.") for result in searched if result.breaks]


def _unlearnt_sentence(base: Result, report: Report, names: Mapping[str, str]) -> str:
    """That no accuracy says anything, where the base network's is not clearly above that of guessing; else nothing."""
    if base.accuracy is None:
        return ""
    return at_the_start(guessing(names[base.name], base.accuracy, report.classes, report.test_images))


def guessing(name: str, share: float, classes: int, images: int) -> str:
    """That a network is no better than guessing, with what to do, where its share of right answers of these images is
    not clearly above that; empty otherwise, and where `classes` is 0, as it is for other scores than shares."""
    if not classes or accuracy(share, 1 / classes, images).verdict == "more":
        return ""
    return (
        f"{name} is no better than guessing, {percent(share)} with {classes} classes, so no accuracy here says "
        "anything: train longer, or check the labels."
    )


def failed(share: float, base: float, classes: int, images: int) -> bool:
    """Whether a training failed: its network is no better than guessing, as `guessing` has it, and the base network is,
    and is clearly better than that network."""
    return bool(
        guessing("", share, classes, images)
        and not guessing("", base, classes, images)
        and accuracy(share, base, images).verdict == "less"
    )


def _failed(result: Result, base: Result, report: Report) -> bool:
    if result.accuracy is None or base.accuracy is None:
        return False
    return failed(result.accuracy, base.accuracy, report.classes, report.test_images)


def _failure_sentence(result: Result, base: Result, report: Report, names: Mapping[str, str]) -> str:
    """That a training failed, so that nothing is concluded from it."""
    share, other = _shares(result, base)
    return at_the_start(
        f"{names[result.name]} is no better than guessing, {share} with {report.classes} classes, where "
        f"{names[base.name]} has {other}: its training failed and says nothing about the network; its remark says "
        "what to do."
    )


def _simpler(searched: Result, report: Report) -> Result | None:
    """The most accurate network that needs no search, keeps what was asked for, is not slower, and is not clearly less
    accurate than the searched one; None where there is none, or where readings are too few to tell."""
    simpler = None
    for control in filter(_is_control, report.results):
        times = None if control.breaks else against_base(control, searched)
        lead = _accuracy(searched, control, report) if times and times.noise < inf and times.verdict != "less" else None
        if lead is not None and lead.verdict != "more":
            simpler = max(simpler or control, control, key=lambda each: each.accuracy or 0.0)
    return simpler


def _is_control(result: Result) -> bool:
    """Whether a network needs no search."""
    return result.strategy in SIMPLER and not is_searched(result)


def _simpler_sentence(simpler: Result, searched: Result, report: Report, names: Mapping[str, str]) -> str:
    """What the search was not needed for: the first sentence of the report."""
    lead, name = _accuracy(simpler, searched, report), names[simpler.name]
    assert lead is not None
    after, before = _shares(simpler, searched)
    if lead.verdict == "more":
        gap = points(lead.difference)
        return at_the_start(
            f"{name} is better, and needs no search: it is not slower ({_time(simpler)}), and {gap} more accurate "
            f"({after} against {before})."
        )
    noise = f", {PLUS_MINUS}{points(lead.noise)}" if lead.noise else ""
    return at_the_start(
        f"{name} may do as well, and needs no search: it is not slower ({_time(simpler)}), and there is no clear "
        f"difference in accuracy ({after} against {before}{noise})."
    )


def _speed_sentence(searched: Result, base: Result, names: Mapping[str, str]) -> str:
    """Faster, slower, or no clear difference."""
    network, other = names[searched.name], names[base.name]
    compared = against_base(searched, base)
    if compared is None:
        unmeasured = " and ".join(names[result.name] for result in (searched, base) if result.measured is None)
        return f"Not measured yet: {unmeasured}. Nothing can be said about speed."
    times = f"{_time(searched)} against {_time(base)} per batch"
    ratio = significant(compared.ratio)
    if compared.verdict == "more":
        return at_the_start(f"{network} is {ratio} times as fast as {other}: {times}, measured.")
    if compared.verdict == "less":
        return at_the_start(f"{network} is slower than {other}, {ratio} times as fast: {times}, measured.")
    why = "within the noise" if compared.noise < inf else f"and fewer than {FEWEST} readings to tell it by"
    return f"No clear difference in speed between {network} and {other}: {times}, {why}."


def _accuracy_sentence(searched: Result, base: Result, report: Report, names: Mapping[str, str]) -> str:
    """The difference in points, and whether that number of test images can tell it."""
    compared = _accuracy(searched, base, report)
    if compared is None:
        untrained = " and ".join(names[result.name] for result in (searched, base) if result.accuracy is None)
        return f"Not trained yet: {untrained}. Nothing can be said about accuracy."
    other, (after, before) = names[base.name], _shares(searched, base)
    if compared.difference == 0:
        return at_the_start(f"{names[searched.name]} is as accurate as {other}: {after}.")
    gap, direction = points(abs(compared.difference)), "more" if compared.difference > 0 else "less"
    if compared.verdict == "unclear":
        noise = f"within the noise of {report.test_images} test images ({PLUS_MINUS}{points(compared.noise)})"
        return f"No clear difference in accuracy to {other}: {after} against {before}, {gap} {direction}, {noise}."
    unknown = "" if report.test_images else ", and how much of that is noise is not known"
    sentence = f"{names[searched.name]} is {gap} {direction} accurate than {other}: {after} against {before}{unknown}."
    return at_the_start(sentence)


def _deployed_sentence(searched: Result, base: Result, names: Mapping[str, str]) -> str:
    """Both accuracies as deployed; nothing for fp32."""
    if searched.deployed is None or base.deployed is None:
        return ""
    one, other = (f"{percent(each.accuracy)} ({each.change})" for each in (searched.deployed, base.deployed))
    return (
        f"In {searched.deployed.precision}, as they are deployed, {names[searched.name]} has {one}, {names[base.name]} "
        f"{other}."
    )


def _narrowing_sentence(searched: Result, report: Report) -> str:
    """How much less accurate narrowing all layers alike ended where it is not slower and keeps what was asked for; else
    nothing."""
    controls = (other for other in report.results if other.strategy == "uniform" and _is_control(other))
    control = next((other for other in controls if not other.breaks), None)
    times = against_base(control, searched) if control else None
    compared = _accuracy(control, searched, report) if control else None
    if times is None or compared is None or times.verdict == "less" or times.noise == inf:
        return ""
    where = "At lower latency" if times.verdict == "more" else "At equal latency"
    noise = f" ({PLUS_MINUS}{points(compared.noise)})" if compared.noise else ""
    return f"{where}, narrowing all layers alike ended {points(abs(compared.difference))} lower{noise}."


def _rival_sentence(searched: Result, report: Report, names: Mapping[str, str], simpler: Result | None) -> str:
    """The most accurate other network that keeps what was asked for and is not clearly slower, apart from the base and
    narrowing; nothing where it is the simpler one of the first sentence."""
    others = [other for other in report.results if other.name != "base" and other.strategy != "uniform"]
    within = [other for other in others if not other.breaks]
    rivals = [each for each in within if (times := against_base(each, searched)) and times.verdict != "less"]
    best = max(rivals, key=lambda other: other.accuracy or 0.0, default=None)
    lead = _accuracy(searched, best, report) if best and best is not simpler else None
    if best is None or lead is None:
        return ""
    size, name = points(abs(lead.difference)), names[best.name]
    figures = f"{_shares(best)[0]}, {_time(best)}"
    return {
        "more": f"Of the networks here that are not slower, the next best is {name}, {size} less ({figures}).",
        "less": f"But {name} is not slower and {size} more accurate ({figures}).",
        "unclear": f"No clear difference in accuracy to {name}, which is not slower ({figures}).",
    }[lead.verdict]


def _time(result: Result) -> str:
    return milliseconds(result.measured.estimate) if result.measured else NONE


def _shares(*results: Result) -> list[str]:
    return [NONE if result.accuracy is None else percent(result.accuracy) for result in results]


def _figures(
    searched: Result, base: Result, report: Report, names: Mapping[str, str], *, trained: bool
) -> Iterator[Figure]:
    if faster := against_base(searched, base):
        clear, ratio = faster.verdict != "unclear", f"{significant(faster.ratio)}\N{MULTIPLICATION SIGN}"
        label = f"as fast as {names[base.name]}, measured" if clear else "no clear difference in speed"
        yield Figure(label, ratio if clear else f"({ratio})", f"{_time(base)} {ARROW} {_time(searched)}")
    if trained and (gain := _accuracy(searched, base, report)):
        label = "points of accuracy" + (": no clear difference" if gain.verdict == "unclear" else "")
        yield Figure(label, signed(gain.difference * 100), f" {ARROW} ".join(_shares(base, searched)))
    counts = (("multiply-adds", searched.macs, base.macs), ("parameters", searched.params, base.params))
    for label, after, before in counts:
        if before:
            yield Figure(f"of the {label}", percent(after / before, 0), f"{millions(before)} {ARROW} {millions(after)}")
