"""Tables 3 and 4: the base network, TAS, HTAS and this project's own search, trained alike and measured together."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from htas.errors import UserError
from htas.experiments.arms import Arm, Entry
from htas.experiments.compare import Comparison, Key
from htas.experiments.intervals import Blocks
from htas.experiments.reproduce._plan import DEPTHS, LAMBDA, LENGTHS, MANUAL, PAPER, PUBLISHED, TAS, Plan, within
from htas.experiments.table import EMPTY, mean_text
from htas.files import digest, from_json, read_json, to_json, write_json
from htas.report.paper import Section
from htas.run.networks import measure_networks
from htas.run.run import Run
from htas.run.stage import made_from
from htas.text import listing, plural, signed, significant
from htas.timing.measurement import Measurement
from htas.timing.target import machine

HEADINGS = (
    "network", "top-1, %, paper", "top-1, %, here", "ms, paper", "ms, here", "predicted, ms",
    "times as fast as TAS's published, paper", "than TAS's published, here", "times as fast as manual, paper",
    "than manual, here",
    "MACs, M, paper", "MACs, M, here", "trainings",
)  # fmt: skip
ROUNDS = 40
"""Of the networks that are measured without being trained."""


@dataclass(frozen=True)
class Row:
    """What is known of one network: of the paper, or of this machine over its seeds."""

    accuracies: tuple[float, ...] = ()
    """Shares."""
    seconds: tuple[float, ...] = ()
    predicted: float | None = None
    macs: float | None = None
    """In millions."""
    seeds: tuple[int, ...] = ()
    """Of the accuracies."""

    @property
    def latency(self) -> float | None:
        """The geometric mean, in seconds."""
        return math.exp(statistics.mean(map(math.log, self.seconds))) if self.seconds else None


def table3(plan: Plan) -> Section:
    """CIFAR-10; the paper's are of its GPU alone."""
    extra = () if plan.device == "cuda" else ("The paper has this table of its GPU only; here it is made on a CPU.",)
    return _table(plan, "table3", "cifar10", "gpu", (
        *extra, "The paper prints no manual networks for this table: their latencies are those of its Table 4.",
    ))  # fmt: skip


def table4(plan: Plan) -> Section:
    """CIFAR-100, on the device asked for."""
    return _table(plan, "table4", "cifar100", plan.paper)


def budget(data: str, depth: int, device: str) -> float:
    """The share of the manual network's latency that the paper's own network has, in whole percent."""
    table = "table3" if data == "cifar10" else "table4"
    printed = _printed(table, depth, device)
    return round(1 / (times(printed["manual"], printed["htas"]) or 1.0), 2)


def trained(plan: Plan, data: str, depth: int, arms: Sequence[Arm]) -> tuple[Comparison, dict[Key, Entry], list[str]]:
    """Arms of one depth, trained: their runs, their entries, and why some are missing."""
    options, place = plan.options(data, depth), plan.place(data, depth)
    comparison = Comparison.arranged(LENGTHS[plan.length], options, arms, plan.seeds, place)
    return comparison, *comparison.finished()


def measured(comparison: Comparison, there: Mapping[Key, Entry], path: Path, on: Run | None = None) -> dict[str, Row]:
    """The row of each arm, measured with the others in one interleaved run, on the target of the run `on`."""
    entries, _ = comparison.measured(there, path, on=on)
    return {arm: row_of([each for (name, _), each in entries.items() if name == arm]) for arm in comparison.arms}


def _table(plan: Plan, name: str, data: str, device: str, notes: Sequence[str] = ()) -> Section:
    rows: list[tuple[str, ...]] = []
    says: list[str] = []
    reasons: list[str] = []
    marked = []
    entries: list[Entry] = []
    config = plan.config(data, plan.depths[0])
    for depth in DEPTHS:
        if depth in plan.depths:
            here, depth_entries, doubts = _trained_rows(plan, data, depth, device)
            entries, reasons = [*entries, *depth_entries], [*reasons, *doubts]
        else:
            here = _measured_untrained(plan, data, depth)
        printed = _printed(name, depth, device)
        ours = within(budget(data, depth, device)).name
        named = {MANUAL: "manual", PUBLISHED: "tas", TAS: "", ours: "htas", LAMBDA: ""}
        paper = {arm: printed.get(kind, Row()) for arm, kind in named.items()}
        for arm in named:
            mine = here.get(arm, Row())
            if arm in (TAS, LAMBDA) and not mine.seconds:
                continue
            rows.append(_row(f"ResNet-{depth}, {arm}", paper[arm], mine, paper, here))
            if arm == ours:
                marked.append(rows[-1][0])
        says += _verdict(depth, paper, here, ours) if depth in plan.depths else _untrained(depth, paper, here)
    untrained = [f"ResNet-{depth}" for depth in DEPTHS if depth not in plan.depths]
    if untrained:
        notes = (*notes, (
            f"{listing(untrained)} {'was' if len(untrained) == 1 else 'were'} not trained here: the manual networks "
            "and those that TAS published need no training to be measured, and a search of them is left out."
        ))  # fmt: skip
    title = {"table3": "Table 3: CIFAR-10", "table4": "Table 4: CIFAR-100"}[name]
    return Section(
        f"{title}, {plan.device}, {config.target.runtime}", tuple(says), HEADINGS, tuple(rows), 1, tuple(marked),
        notes=(
            *notes,
            *PAPER["notes"].get(name, ()),
            "Networks of one depth are measured here in one interleaved run. Accuracies are those of the last epoch, "
            "mean and standard deviation over the seeds; latencies the geometric mean.",
            f"{LAMBDA} is searched with the paper's loss and its sum of fitted lines (eq. 6 to 8); the paper gives no "
            "lambda and no unit of it, so the size that the search ends at cannot be compared with the paper's. "
            "HTAS within a budget is what the paper's rows are compared with: the same space and search, calibrated "
            "latencies, and as budget the share of the manual network's latency that the paper's network has.",
            *reasons,
        ),
        facts=plan.facts(config.target, config, entries),
    )  # fmt: skip


def _trained_rows(
    plan: Plan, data: str, depth: int, device: str
) -> tuple[dict[str, Row], Sequence[Entry], Sequence[str]]:
    """The row of each arm, what it was made of, and what must be known of that. Raises UserError without any."""
    arms = plan.arms(data, depth, budget(data, depth, device))
    comparison, there, lacking = trained(plan, data, depth, arms)
    if not there:
        raise UserError(f"no network of ResNet-{depth} could be trained: {lacking[0]}")
    rows = measured(comparison, there, plan.place(data, depth) / "latencies.json")
    return rows, [*there.values()], [*(f"Left out: {reason}" for reason in lacking), *doubted(there)]


def doubted(there: Mapping[Key, Entry]) -> list[str]:
    """The searches that have not converged, and what was found on another machine than the one that measures."""
    here = _machine(machine())
    others: dict[str, list[str]] = {}
    for (arm, seed), each in there.items():
        if (machine_text := _machine(each.result.versions)) != here:
            others.setdefault(machine_text, []).append(f"{arm}, seed {seed}")
    return [
        *(f"Found and trained on another machine ({machine_text}), and measured here: {listing(which)}"
          for machine_text, which in others.items()),
        *(f"{arm}, seed {seed}, has not converged: {each.doubt}" for (arm, seed), each in there.items() if each.doubt),
    ]  # fmt: skip


def _machine(about: Mapping[str, str | int]) -> str:
    facts = [str(about.get(name, "")) for name in ("processor", "instructions", "gpu")]
    return ", ".join(each for each in facts if each not in ("", "none")) or "unknown"


def row_of(entries: Sequence[Entry]) -> Row:
    """The seeds of one arm together."""
    results = [each.result for each in entries]
    guesses = [result.predicted for result in results if result.predicted]
    return Row(
        tuple(result.accuracy for result in results if result.accuracy is not None),
        tuple(result.measured.estimate for result in results if result.measured),
        statistics.mean(guesses) if guesses else None,
        statistics.mean(result.macs for result in results) / 1e6 if results else None,
        tuple(result.seed for result in results if result.accuracy is not None),
    )


def _measured_untrained(plan: Plan, data: str, depth: int) -> dict[str, Row]:
    """Latency and multiply-adds of networks that are known without a search, untrained."""
    config = plan.config(data, depth)
    names = {MANUAL: f"cifar_resnet:{depth}", PUBLISHED: f"tas:{PAPER['tas_published'][data]}-ResNet{depth}"}
    path = plan.folder / f"untrained-{data}-resnet{depth}-{plan.paper}.json"
    key = digest(Run(config, plan.folder).place, names)
    if not made_from(path, key):
        figures = measure_networks(list(names.values()), config.target, ROUNDS, config.data.classes)
        write_json(path, {"inputs": key, "networks": [[to_json(each.latency), each.macs] for each in figures]})
    content = read_json(path)["networks"]
    return {
        arm: Row(seconds=(from_json(reading, Measurement, path).estimate,), macs=macs / 1e6)
        for arm, (reading, macs) in zip(names, content, strict=True)
    }


def _printed(name: str, depth: int, device: str) -> dict[str, Row]:
    """The paper's rows of one depth, by method. Table 3 has no manual network, and the latency of Table 4's serves."""
    rows = {
        row["method"]: Row(
            accuracies=(row["top1"] / 100,) if "top1" in row else (),
            seconds=(row["latency_ms"] / 1e3,),
            macs=row["mmacs"],
        )
        for row in PAPER[name]
        if (row["depth"], row["device"]) == (depth, device)
    }
    if "manual" not in rows:
        rows["manual"] = replace(_printed("table4", depth, device)["manual"], accuracies=())
    return rows


def _row(title: str, paper: Row, here: Row, papers: Mapping[str, Row], heres: Mapping[str, Row]) -> tuple[str, ...]:
    return (
        title,
        accuracy(paper), accuracy(here),
        milliseconds(paper), milliseconds(here),
        significant(1e3 * here.predicted) if here.predicted else EMPTY,
        _times(papers.get(PUBLISHED), paper), _times(heres.get(PUBLISHED), here),
        _times(papers.get(MANUAL), paper), _times(heres.get(MANUAL), here),
        millions(paper),
        millions(here),
        str(len(here.accuracies)) if here.accuracies else EMPTY,
    )  # fmt: skip


def accuracy(row: Row) -> str:
    """`72.41 ± 0.2`, in percent."""
    return mean_text([100 * share for share in row.accuracies], "{:.2f}")


def milliseconds(row: Row) -> str:
    """`24.4 ± 0.3`."""
    if row.latency is None:
        return EMPTY
    off = f" ± {1e3 * statistics.stdev(row.seconds):.2g}" if len(row.seconds) > 1 else ""
    return f"{significant(1e3 * row.latency)}{off}"


def millions(row: Row) -> str:
    """Multiply-adds."""
    return significant(row.macs) if row.macs else EMPTY


def times(other: Row | None, row: Row) -> float | None:
    """How many times as fast as the other."""
    return other.latency / row.latency if other and other.latency and row.latency else None


def _times(other: Row | None, row: Row) -> str:
    ratio = times(other, row)
    return EMPTY if ratio is None else f"{ratio:.2f}"


def _verdict(depth: int, paper: Mapping[str, Row], here: Mapping[str, Row], ours: str) -> list[str]:
    """The result at one trained depth, and the paper's, in words."""
    sentences = []
    for arm in (ours, LAMBDA):
        mine = here.get(arm, Row())
        speeds = [_times(here.get(other), mine) for other in (MANUAL, PUBLISHED)]
        if EMPTY in speeds:
            continue
        speed = (
            f"{speeds[0]} times as fast as the manual network and {speeds[1]} times as fast as TAS's published one, "
            f"with {millions(mine)} M multiply-adds"
        )
        if arm == ours:  # only its budget is the paper's
            printed = [_times(paper[other], paper[ours]) for other in (MANUAL, PUBLISHED)]
            speed += (
                f" (the paper's: {printed[0]}, {printed[1]}, {millions(paper[ours])} M). The first of these speeds is "
                "what the budget asks for"
            )
        sentences.append(f"ResNet-{depth}: {arm} is {speed}. {_accuracy(here, arm)}")
    return sentences


def _accuracy(here: Mapping[str, Row], arm: str) -> str:
    """How much more accurate than the manual network, and whether that is clear."""
    shared = set(here[arm].seeds) & set(here.get(MANUAL, Row()).seeds)
    if not shared:
        return "The manual network of the same seeds is missing."
    blocks = Blocks({
        (name, seed): 100 * share for name, row in here.items()
        for seed, share in zip(row.seeds, row.accuracies, strict=True)
    })  # fmt: skip
    off, wide = blocks.difference(arm, MANUAL), blocks.reach(arm, MANUAL)
    words = f"Its accuracy less the manual network's is {signed(off, 1)}"
    if len(shared) == 1 or math.isinf(wide):
        return f"{words} points, of one training each, which says little."
    verdict = "a clear difference" if abs(off) > wide else "no clear difference"
    return f"{words} ± {wide:.1f} points (95 %, {plural(len(shared), 'seed')}), {verdict} at this length."


def _untrained(depth: int, paper: Mapping[str, Row], here: Mapping[str, Row]) -> list[str]:
    """The result at one depth where nothing was trained, in words."""
    here_ratio, printed = _times(here[MANUAL], here[PUBLISHED]), _times(paper[MANUAL], paper[PUBLISHED])
    return [
        f"ResNet-{depth}, untrained: the network that TAS published is {here_ratio} times as fast as the manual one "
        f"(the paper's: {printed})."
    ]
