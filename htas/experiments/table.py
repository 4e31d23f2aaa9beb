"""The table of a comparison: means and intervals over seeds."""

import math
import statistics
from collections.abc import Mapping, Sequence

from htas.experiments.arms import Entry
from htas.experiments.intervals import Blocks, reach
from htas.graph import Network
from htas.text import duration, millions

EMPTY = "-"
"""A cell without a figure, or without one yet."""
FEW = "too few trainings"
"""No interval can be given."""


def table(
    there: Mapping[tuple[str, int], Entry], arms: Sequence[str], seeds: int, against: str
) -> list[tuple[str, ...]]:
    """A line for each arm: means over its seeds, deviations behind them, and the comparison with `against`.

    The difference of accuracies is that of the same seeds, which share a teacher, with its 95 % interval; where that
    holds 0 it is no difference. `at least` is the one-sided bound: the arm is not worse than that, at 95 %. The speed
    has Welch's interval over the archs of the seeds; the noise of reading them is left out.
    """
    lines: list[tuple[str, ...]] = [(
        "arm", "accuracy, %", f"less {against}", "at least", "so", "measured, ms", f"speed over {against}", "so",
        "predicted, ms", "MACs", "parameters", "search", "trainings",
    )]  # fmt: skip
    other = [entry for (name, _), entry in there.items() if name == against]
    accuracies = {key: entry.result.accuracy for key, entry in there.items()}
    blocks = Blocks({key: 100 * share for key, share in accuracies.items() if share is not None})
    for arm in arms:
        entries = [entry for (name, _), entry in there.items() if name == arm]
        accuracy, measured, *rest = _figures(entries)
        difference = _more(blocks, entries, other, arm, against)
        speed = _speed(entries, other) if arm != against else (EMPTY, EMPTY)
        lines.append((arm, accuracy, *difference, measured, *speed, *rest, f"{len(entries)} of {seeds}"))
    return lines


def _figures(entries: Sequence[Entry]) -> tuple[str, ...]:
    rows = [entry.result for entry in entries]
    searched = [entry.search_seconds for entry in entries if entry.search_seconds is not None]
    return (
        mean_text([100 * row.accuracy for row in rows if row.accuracy is not None], "{:.2f}"),
        mean_text([1e3 * row.measured.estimate for row in rows if row.measured], "{:.3g}"),
        mean_text([1e3 * row.predicted for row in rows if row.predicted], "{:.3g}"),
        millions(statistics.mean(row.macs for row in rows)) if rows else EMPTY,
        millions(statistics.mean(row.params for row in rows)) if rows else EMPTY,
        duration(statistics.mean(searched)) if searched else EMPTY,
    )


def mean_text(values: Sequence[float], template: str) -> str:
    """`91.20 ± 0.15`: the mean, and the deviation of more than one, to two digits."""
    if not values:
        return EMPTY
    off = f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else ""
    return f"{template.format(statistics.mean(values))}{off}"


def _more(blocks: Blocks, entries: Sequence[Entry], other: Sequence[Entry], arm: str, against: str) -> tuple[str, ...]:
    """How much more accurate, in points, with the 95 % interval; the one-sided bound; and that in words."""
    if arm == against or not entries or not other:
        return (EMPTY,) * 3
    off, wide = blocks.difference(arm, against), blocks.reach(arm, against)
    if wide == math.inf:
        return EMPTY, EMPTY, FEW
    verdict = "no difference" if abs(off) <= wide else "more accurate" if off > 0 else "less accurate"
    return f"{off:+.2f} ± {wide:.2f}", f"{off - blocks.reach(arm, against, 0.9):+.2f}", verdict


def _speed(ours: Sequence[Entry], other: Sequence[Entry]) -> tuple[str, str]:
    """How many times as fast, by geometric means, with Welch's 95 % interval of the logarithms; and that in words."""
    logs = [[math.log(each.result.measured.estimate) for each in entries if each.result.measured]
            for entries in (ours, other)]  # fmt: skip
    if not all(logs):
        return EMPTY, EMPTY
    off, wide = statistics.mean(logs[1]) - statistics.mean(logs[0]), reach(logs)
    if wide == math.inf:
        return f"{math.exp(off):.2f}", FEW
    verdict = "no difference" if abs(off) <= wide else "faster" if off > 0 else "slower"
    return f"{math.exp(off):.2f} ({math.exp(off - wide):.2f} to {math.exp(off + wide):.2f})", verdict


def every(there: Mapping[tuple[str, int], Entry], network: Network) -> list[tuple[str, ...]]:
    """A line for each training: its network and figures. Widths are those of the blocks that stay."""
    lines: list[tuple[str, ...]] = [
        ("arm", "seed", "accuracy, %", "measured, ms", "of the base", "MACs", "search", "blocks", "widths")
    ]
    rows = {name: entry.result for name, entry in there.items()}
    latencies = {name: row.measured.estimate for name, row in rows.items() if row.measured}
    plain = [seconds for name, seconds in latencies.items() if rows[name].arch == network.base]
    for (arm, seed), entry in there.items():
        row, seconds = entry.result, latencies.get((arm, seed))
        fits = bool(row.arch.widths) and set(row.arch.widths) == set(network.widths)
        used = {site for use in network.uses(row.arch) for site in use.sites} if fits else set(row.arch.widths)
        widths = ", ".join(str(width) for site, width in row.arch.widths.items() if site in used)
        lines.append((
            arm, str(seed), f"{100 * row.accuracy:.2f}" if row.accuracy is not None else EMPTY,
            f"{1e3 * seconds:.3g}" if seconds else EMPTY,
            f"{seconds / statistics.mean(plain):.3f}" if seconds and plain else EMPTY,
            millions(row.macs), duration(entry.search_seconds) if entry.search_seconds is not None else EMPTY,
            ", ".join(map(str, row.arch.depths.values())) or EMPTY, widths or EMPTY,
        ))  # fmt: skip
    return lines


FIGURES = (
    "Accuracy is that of the last epoch on the test images, mean and standard deviation over the seeds; latencies are "
    "of one interleaved run. Differences of accuracy, in points, are those of the same seeds, which share a teacher, "
    "with the 95 % interval of a block design; 'at least' is the one-sided 95 % bound. Speed has Welch's interval; "
    "an empty cell is not known, or not yet."
)
"""What the figures of the table are."""


def dots(there: Mapping[tuple[str, int], Entry]) -> list[tuple[str, bool, list[tuple[float, float]]]]:
    """Of each arm with a measured network: whether it was searched, and latency and accuracy of its trainings."""
    pairs: dict[str, list[tuple[float, float]]] = {}
    for (name, _), entry in there.items():
        row = entry.result
        if row.measured and row.accuracy is not None:
            pairs.setdefault(name, []).append((row.measured.estimate, row.accuracy))
    searched = {name for (name, _), entry in there.items() if entry.search_seconds is not None}
    return [(name, name in searched, each) for name, each in pairs.items()]
