"""One network on several devices: their staircases side by side, and the networks found for each, measured on all.

It is the paper's Table 5 across devices: does the network that was found for a device win there?
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import altair as alt

from htas.files import write_record
from htas.report._blocks import Answer, Block, Cell, Heading, Picture, Table, Text, plain_table, points
from htas.report._draw import MARGIN, WIDTH, Spec, filled, spec
from htas.report._names import family_name
from htas.report._page import publish
from htas.report.result import Result
from htas.report.summary import breach, speed
from htas.report.survey import chosen_widths, curve_rows, fitted_chart
from htas.spaces.curve import CurveRecord
from htas.spaces.design import DECIDED
from htas.text import NONE, TextTable, listing, millions, milliseconds, percent, plural, plus_minus, significant
from htas.timing.measurement import Measurement

NAME = "devices"
"""Of the files: devices.html, devices.md, devices.json."""
HALF = WIDTH // 2 - MARGIN
"""Width of one of two plots next to each other."""
ABOUT = Text(
    "The measured latency m(x) of a site at every width x on each device, the fit f(x) of eq. 1, and in red the widths "
    "that the device's own space has. Dashed lines part the groups. Sites with equal layers share one curve."
)
FIGURES = (
    "Measured is the 25th percentile of the readings of the whole network, all networks in one interleaved run on each "
    "device, \N{PLUS-MINUS SIGN} two standard errors. Predicted is the calibrated sum of layers of that device, made "
    "before; for a network found elsewhere it lies between the widths that this device's space has, and is less exact. "
    "A smaller network is faster everywhere, so latencies, accuracies and multiply-adds belong together."
)


@dataclass(frozen=True)
class SurveyedDevice:
    """A device, and the latency of every width there."""

    name: str
    """Of its column, and of its folder."""
    host: str
    facts: Mapping[str, str]
    """What it is, and how it was read."""
    curves: tuple[CurveRecord, ...]
    """With the choices of the space `hardware`."""
    decided: str
    """How many of the choices are."""
    doubts: tuple[str, ...] = ()

    def curve(self, site: str) -> CurveRecord | None:
        """The curve of a site; None where the survey has none."""
        return next((curve for curve in self.curves if site in curve.sites), None)


@dataclass(frozen=True)
class CrossedNetwork:
    """A network that was measured on every device."""

    result: Result
    """Its arch, accuracy and counts."""
    home: str
    """The device that it was found for; empty for the base network."""
    predicted: Mapping[str, float]
    """Seconds by device."""
    measured: Mapping[str, Measurement]
    """By device."""


@dataclass(frozen=True)
class DevicesReport:
    """devices.json: everything that the page shows."""

    family: str
    """`cifar_resnet:20`."""
    runtime: str
    command: str
    """The command that repeats it."""
    devices: tuple[SurveyedDevice, ...]
    networks: tuple[CrossedNetwork, ...] = ()
    """The base network first; none before the searches are finished."""


def write(report: DevicesReport, folder: Path) -> tuple[Path, TextTable]:
    """Write devices.html, devices.md with its pictures in figures/, and devices.json; the path of the page, a summary.

    Raises UserError where the folder cannot be written.
    """
    title = f"{family_name(report.family)} on {_names(report)}, {report.runtime}"
    path = publish(title, _content(report), folder, NAME)[0]
    write_record(folder / f"{NAME}.json", report)
    return path, summary(report)


def summary(report: DevicesReport) -> TextTable:
    """The crossed table with the answer; before there is one, the widths chosen on each device."""
    if report.networks:
        searched = [_row_name(network) for network in report.networks if network.home]
        rows = [list(map(str, row)) for row in _crossed_rows(report)]
        return TextTable([_crossed_headings(report), *rows], 1, before=verdicts(report), marked=searched)
    rows = _width_rows(report)
    return TextTable([_width_headings(report), *rows], len(rows[0]) if rows else 0, before=[alike(report)])


# -- what it shows -----------------------------------------------------------------------------------------------------


def verdicts(report: DevicesReport) -> list[str]:
    """Which networks miss their limits; whether each device's own network is the fastest there, in one sentence, and a
    sentence for each device."""
    missed = [each for each in report.networks if each.home and each.result.breaks]
    return [*(f"The network {_row_name(each)} {breach(each.result)}." for each in missed), *_compared(report)]


def _compared(report: DevicesReport) -> list[str]:
    """The sentences that compare each device's own network with the others."""
    archs = {network.result.arch for network in report.networks if network.home}
    if len(archs) == 1:
        return [f"The searches for {_names(report)} found the same network."]
    each = {device.name: _verdict(report, device.name) for device in report.devices}
    if any(verdict is None for verdict, _ in each.values()):
        return [sentence for _, sentence in each.values()]
    won = [name for name, (verdict, _) in each.items() if verdict == "more"]
    if len(won) == len(each):
        first = "Each device's own network is the fastest there."
    elif won:
        others = listing(name for name in each if name not in won)
        first = f"A device's own network is the fastest on {listing(won)}, and not on {others}."
    else:
        first = "No device's own network is clearly the fastest there."
    return [first, *(sentence for _, sentence in each.values())]


def _verdict(report: DevicesReport, device: str) -> tuple[str | None, str]:
    """Of a device's own network against the fastest other one: more, less or unclear, and that in words.

    None where a network is not measured there.
    """
    home = next((each for each in report.networks if each.home == device), None)
    others = [each for each in report.networks if each.home not in ("", device) and device in each.measured]
    if home is None or device not in home.measured or not others:
        return None, f"Not all networks are measured on {device} yet."
    rival = min(others, key=lambda each: each.measured[device].estimate)
    compared = speed(home.measured[device], rival.measured[device])
    mine, other = (milliseconds(each.measured[device].estimate) for each in (home, rival))
    match compared.verdict:
        case "more":
            words = f"On {device} the network found for it is {significant(compared.ratio)} times as fast as the one "
            words += f"found for {rival.home} ({mine} against {other})."
        case "less":
            words = f"On {device} the network found for {rival.home} is {significant(1 / compared.ratio)} times as fast"
            words += f" as the one found for it ({other} against {mine})."
        case _:
            words = f"On {device} there is no clear difference in speed between the network found for it and the one "
            words += f"found for {rival.home} ({mine} and {other})."
    return compared.verdict, words


def alike(report: DevicesReport) -> str:
    """In how many groups all devices choose the same width, in a sentence: of all, and of those decided on all."""
    same, sure = [], []
    for curve in report.devices[0].curves:
        every = [each for device in report.devices if (each := device.curve(curve.sites[0])) is not None]
        for number, (start, end) in enumerate(curve.groups):
            same.append(len({_within(each, start, end) for each in every}) == 1)
            sure.append(all(number < len(each.certain) and each.certain[number] >= DECIDED for each in every))
    both = sum(one and other for one, other in zip(same, sure, strict=True))
    return (
        f"The best width is the same on {_names(report)} in {sum(same)} of {plural(len(same), 'group')}, and in {both} "
        f"of the {sum(sure)} that are decided on all of them."
    )


def _within(curve: CurveRecord, start: int, end: int) -> tuple[int, ...]:
    return tuple(width for width in curve.choices["hardware"] if start <= width <= end)


def _names(report: DevicesReport) -> str:
    """`board, jetson and phone`."""
    *first, last = [device.name for device in report.devices]
    return f"{listing(first)} and {last}"


# -- the page ----------------------------------------------------------------------------------------------------------


def _content(report: DevicesReport) -> list[Block]:
    networks: list[Block] = []
    if report.networks:
        first, *rest = verdicts(report)
        marked = [_row_name(network) for network in report.networks if network.home]
        headings = _crossed_headings(report)
        networks = [
            Answer(first, tuple(rest), ()),
            Heading("Networks found for one device, measured on all"),
            Table(headings, _crossed_rows(report), headings[:1], marked),
            Text(FIGURES),
        ]
    names = [device.name for device in report.devices]
    facts = dict.fromkeys(what for device in report.devices for what in device.facts if what != "host")
    doubts = [(device.name, doubt) for device in report.devices for doubt in (*device.doubts, device.decided)]
    return [
        *networks,
        Heading("The widths that each device is fast at"),
        Text(alike(report)),
        plain_table(_width_headings(report), _width_rows(report)),
        Text("A question mark marks a width whose group is not decided: more readings could choose another."),
        Heading("Latency curves"),
        ABOUT,
        *_staircases(report),
        Heading("Doubts"),
        points(doubts),
        Heading("The devices"),
        plain_table(
            ("what", *names),
            [
                ("host", *(device.host for device in report.devices)),
                *((what, *(device.facts.get(what, NONE) for device in report.devices)) for what in facts),
            ],
        ),
        Heading("How to repeat it"),
        Text(report.command),
    ]


def _crossed_headings(report: DevicesReport) -> list[str]:
    pairs = [(f"on {device.name}, ms", f"predicted there, ms ({device.name})") for device in report.devices]
    return ["network", "accuracy", *(heading for pair in pairs for heading in pair), "multiply-adds", "parameters"]


def _row_name(network: CrossedNetwork) -> str:
    return f"found for {network.home}" if network.home else "base"


def _crossed_rows(report: DevicesReport) -> list[list[Cell]]:
    rows = []
    for network in report.networks:
        accuracy = network.result.accuracy
        row = [Cell(_row_name(network)), Cell(NONE if accuracy is None else percent(accuracy))]
        for device in report.devices:
            measured, predicted = network.measured.get(device.name), network.predicted.get(device.name)
            row.append(Cell(NONE if measured is None else plus_minus(1e3 * measured.estimate, 2e3 * measured.error)))
            row.append(Cell(NONE if predicted is None else significant(1e3 * predicted)))
        rows.append([*row, Cell(millions(network.result.macs)), Cell(millions(network.result.params))])
    return rows


def _width_headings(report: DevicesReport) -> list[str]:
    names = [device.name for device in report.devices]
    return ["site", "base width", *(f"widths on {name}" for name in names), *(f"latency on {name}" for name in names)]


def _width_rows(report: DevicesReport) -> list[list[str]]:
    """Table 2 for several devices: a line for each curve of the first one."""
    rows = []
    for curve in report.devices[0].curves:
        site, more = curve.sites[0], len(curve.sites) - 1
        each = [device.curve(site) for device in report.devices]
        rows.append([
            f"{site} and {more} alike" if more else site, str(curve.base),
            *(NONE if other is None else chosen_widths(other) for other in each),
            *(NONE if other is None else milliseconds(other.measured.at(other.base)) for other in each),
        ])  # fmt: skip
    return rows


def _staircases(report: DevicesReport) -> list[Picture]:
    pictures = []
    for number, curve in enumerate(report.devices[0].curves, 1):
        panels = [(each.name, other) for each in report.devices if (other := each.curve(curve.sites[0])) is not None]
        sites = f"{plural(len(curve.sites), 'site')} of base width {curve.base}: {listing(curve.sites)}"
        widths = "; ".join(f"{name}: {chosen_widths(other)}" for name, other in panels)
        shows = f"Latency by width on {listing(name for name, _ in panels)}, base width {curve.base}"
        pictures.append(Picture(f"staircase-{number}", _side_by_side(panels), shows, f"{sites}. {widths}."))
    return pictures


def _side_by_side(panels: Sequence[tuple[str, CurveRecord]]) -> Spec:
    """m(x) with the widths chosen, in ms, a panel for each device."""
    rows = {
        f"{what}-{number}": each for number, (_, curve) in enumerate(panels) for what, each in curve_rows(curve).items()
    }
    return filled(_empty(tuple(name for name, _ in panels)), rows)


@cache
def _empty(names: tuple[str, ...]) -> Spec:
    """The panels of these devices without rows: Altair is slow."""
    panels = (fitted_chart(f"-{number}", HALF, name) for number, name in enumerate(names))
    return spec(alt.concat(*panels, columns=2))
