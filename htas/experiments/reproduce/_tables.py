"""Tables 3 to 5: the base network, TAS, HTAS and this project's own search, trained alike and measured together."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from htas.errors import UserError
from htas.experiments.arm_tables import ArmTable
from htas.experiments.arms import Entry, arm_of
from htas.experiments.compare import Comparison, Key, Trials, Workers
from htas.experiments.intervals import Blocks
from htas.experiments.reproduce.plan import (
    CROSSED,
    DEPTHS,
    LAMBDA,
    LENGTHS,
    MANUAL,
    PAPER,
    PUBLISHED,
    TAS,
    Plan,
    describe,
)
from htas.experiments.table import EMPTY, mean_text
from htas.experiments.trials import workers_of
from htas.files import digest, from_json, read_json, to_json, write_json
from htas.report.paper import Section
from htas.report.result import Result
from htas.run.networks import measure_networks
from htas.run.run import Run
from htas.run.stage import made_from
from htas.text import listing, plural, signed, significant
from htas.timing.measurement import Measurement
from htas.timing.target import Target, machine

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

    @classmethod
    def of(cls, results: Sequence[Result]) -> "Row":
        """The seeds of one arm together."""
        guesses = [result.predicted for result in results if result.predicted]
        accuracies = {result.seed: result.accuracy for result in results if result.accuracy is not None}
        return cls(
            tuple(accuracies.values()),
            tuple(result.measured.estimate for result in results if result.measured),
            statistics.mean(guesses) if guesses else None,
            statistics.mean(result.macs for result in results) / 1e6 if results else None,
            tuple(accuracies),
        )

    @property
    def top1(self) -> str:
        """`72.41 ± 0.2`, in percent."""
        return mean_text([100 * share for share in self.accuracies], "{:.2f}")

    @property
    def milliseconds(self) -> str:
        """`24.4 ± 0.3`."""
        if self.latency is None:
            return EMPTY
        off = f" ± {1e3 * statistics.stdev(self.seconds):.2g}" if len(self.seconds) > 1 else ""
        return f"{significant(1e3 * self.latency)}{off}"

    @property
    def millions(self) -> str:
        """Multiply-adds."""
        return significant(self.macs) if self.macs else EMPTY

    def speed_over(self, other: "Row | None", places: int = 2) -> str:
        """How many times as fast as the other: `2.32`."""
        if other is None or not other.latency or not self.latency:
            return EMPTY
        return f"{other.latency / self.latency:.{places}f}"


@dataclass(frozen=True)
class TrainedArms:
    """The arms of one depth, trained."""

    comparison: Comparison
    entries: Mapping[Key, Entry]
    reasons: Sequence[str]
    """Why others are missing."""
    workers: Workers | None = None
    """Who has trained them, and measures; None for this process."""

    @classmethod
    def of(cls, plan: Plan, data: str, depth: int, arms: Sequence[ArmTable]) -> "TrainedArms":
        """Search and train what is not finished."""
        options, place = plan.options(data, depth), plan.place(data, depth)
        trials = Trials(LENGTHS[plan.length], tuple(options), tuple(map(arm_of, arms)), plan.seeds, place)
        comparison = Comparison.arranged(trials)
        workers = workers_of(plan.parallel.crew)
        return cls(comparison, *comparison.finished(workers=workers), workers)

    def rows(self, file: Path, on: Key | None = None) -> dict[str, Row]:
        """The row of each arm, measured with the others in one interleaved run, on the target of the trial `on`."""
        if self.workers is not None:
            self.workers.measure(self.comparison, self.entries, file, on)
        entries, _ = self.comparison.measured(self.entries, file, self.workers is not None, on)
        return {
            arm: Row.of([entry.result for (name, _), entry in entries.items() if name == arm])
            for arm in self.comparison.arms
        }

    @property
    def notes(self) -> list[str]:
        """What must be known of them."""
        return [*(f"Left out: {reason}" for reason in self.reasons), *doubted(self.entries)]


def table3(plan: Plan) -> Section:
    """CIFAR-10; the paper's are of its GPU alone."""
    gpu = () if plan.device == "cuda" else ("The paper has this table of its GPU only; here it is made on a CPU.",)
    manual = "The paper prints no manual networks for this table: their latencies are those of its Table 4."
    return _table(plan, "table3", "cifar10", (*gpu, manual))


def table4(plan: Plan) -> Section:
    """CIFAR-100, on the device asked for."""
    return _table(plan, "table4", "cifar100")


def _table(plan: Plan, name: str, data: str, notes: Sequence[str] = ()) -> Section:
    rows: list[tuple[str, ...]] = []
    says: list[str] = []
    reasons: list[str] = []
    marked = []
    entries: list[Entry] = []
    config = plan.config(data, plan.depths[0])
    for depth in DEPTHS:
        if depth in plan.depths:
            trained = TrainedArms.of(plan, data, depth, plan.arms(data, depth))
            if not trained.entries:
                raise UserError(f"no network of ResNet-{depth} could be trained: {trained.reasons[0]}")
            here = trained.rows(plan.place(data, depth) / "latencies.json")
            entries, reasons = [*entries, *trained.entries.values()], [*reasons, *trained.notes]
        else:
            here = _measured_untrained(plan, data, depth)
        printed = _printed(name, depth, plan.printed_on(data))
        ours = plan.within(data, depth).name
        named = {MANUAL: "manual", PUBLISHED: "tas", TAS: "", ours: "htas", LAMBDA: ""}
        paper = {arm: printed.get(kind, Row()) for arm, kind in named.items()}
        for arm in named:
            mine = here.get(arm, Row())
            if arm in (TAS, LAMBDA) and not mine.seconds:
                continue
            rows.append(_row(f"ResNet-{depth}, {arm}", paper[arm], mine, paper, here))
            if arm == ours:
                marked.append(rows[-1][0])
        if depth in plan.depths:
            says += _verdict(depth, paper, here, ours)
        else:
            speed, printed_speed = (each[PUBLISHED].speed_over(each[MANUAL]) for each in (here, paper))
            says.append(
                f"ResNet-{depth}, untrained: the network that TAS published is {speed} times as fast as the manual one "
                f"(the paper's: {printed_speed})."
            )
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


def _measured_untrained(plan: Plan, data: str, depth: int) -> dict[str, Row]:
    """Latency and multiply-adds of networks that are known without a search, untrained."""
    config = plan.config(data, depth)
    names = {MANUAL: f"cifar_resnet:{depth}", PUBLISHED: plan.published(data, depth)}
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
    pairs = ((paper, papers), (here, heres))
    speeds = [row.speed_over(rows.get(arm)) for arm in (PUBLISHED, MANUAL) for row, rows in pairs]
    return (
        title, paper.top1, here.top1, paper.milliseconds, here.milliseconds,
        significant(1e3 * here.predicted) if here.predicted else EMPTY,
        *speeds, paper.millions, here.millions, str(len(here.accuracies)) if here.accuracies else EMPTY,
    )  # fmt: skip


def _verdict(depth: int, paper: Mapping[str, Row], here: Mapping[str, Row], ours: str) -> list[str]:
    """The result at one trained depth, and the paper's, in words."""
    sentences = []
    for arm in (ours, LAMBDA):
        mine = here.get(arm, Row())
        speeds = [mine.speed_over(here.get(other)) for other in (MANUAL, PUBLISHED)]
        if EMPTY in speeds:
            continue
        speed = (
            f"{speeds[0]} times as fast as the manual network and {speeds[1]} times as fast as TAS's published one, "
            f"with {mine.millions} M multiply-adds"
        )
        if arm == ours:  # only its budget is the paper's
            printed = [paper[ours].speed_over(paper[other]) for other in (MANUAL, PUBLISHED)]
            speed += (
                f" (the paper's: {printed[0]}, {printed[1]}, {paper[ours].millions} M). The first of these speeds is "
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


def table5(plan: Plan) -> Section:
    """The paper's search for each of two targets, and both networks on both."""
    crossed = crossed_arms(plan)
    jobs = crossed.comparison.jobs
    _, first, other = crossed.comparison.arms
    rows, targets = {}, {}
    for where, arm in {"A": first, "B": other}.items():
        targets[where] = jobs[arm, 0].target
        file = plan.place(*CROSSED) / f"latencies-{_name(targets[where], jobs[first, 0].target)}.json"
        rows[where] = crossed.rows(file, on=(arm, 0))
    printed = {row["target"]: row for row in PAPER["table5"]}
    away = {"gpu": "cpu", "cpu": "gpu"}
    gains = {home: printed[away[home]][f"{home}_ms"] / printed[home][f"{home}_ms"] for home in away}
    lines = [
        (f"the paper's ResNet32-{home[0].upper()}, for its {home.upper()}", f"{printed[home]['top1']:.2f}",
         f"{printed[home]['gpu_ms']} (GPU)", f"{printed[home]['cpu_ms']} (CPU)", f"{gain:.3f}",
         f"{printed[home]['mmacs']}")
        for home, gain in gains.items()
    ]  # fmt: skip
    says = []
    for name, home, rival, where in ((first, "A", other, "B"), (other, "B", first, "A"), (MANUAL, "A", "", "")):
        here, against = rows[home][name], rows[home].get(rival)
        lines.append((
            f"here, searched for {home}" if rival else "here, manual", here.top1, rows["A"][name].milliseconds,
            rows["B"][name].milliseconds, here.speed_over(against, 3), here.millions,
        ))  # fmt: skip
        if (speed := here.speed_over(against)) != EMPTY:
            says.append(
                f"On {home} ({describe(targets[home])}) the network searched for it is {speed} times as fast as "
                f"the one searched for {where}."
            )
    return Section(
        "Table 5: searched for one target, measured on two",
        (*says, f"The paper's are {gains['gpu']:.2f} times as fast on its GPU, and {gains['cpu']:.2f} on its CPU."),
        ("network", "top-1, %", "on A, ms", "on B, ms", "on its own target, times as fast as the other", "MACs, M"),
        tuple(lines), 1, ("here, searched for A", "here, searched for B"),
        notes=(
            f"A is {describe(targets['A'])}; B is {describe(targets['B'])}. All networks of this table are measured in "
            "one interleaved run on each.",
            f"Both searches have one budget, {first.removeprefix('HTAS within ')} of the manual network's latency, "
            "each on its own target. A smaller network is faster on both, so speeds and multiply-adds belong together.",
            *crossed.notes,
        ),
        facts=plan.facts(targets["A"], plan.config(*CROSSED), crossed.entries.values()),
    )  # fmt: skip


def crossed_arms(plan: Plan) -> TrainedArms:
    """The manual network and a search for each target."""
    name = _name(plan.second_target(), plan.config(*CROSSED).target)
    manual, *_, first = plan.arms(*CROSSED)
    arms = [manual, first, plan.within(*CROSSED, *plan.other(), name_of=name)]
    crossed = TrainedArms.of(plan, *CROSSED, arms)
    lacking = [arm.name for arm in arms if (arm.name, 0) not in crossed.entries]
    if lacking:
        raise UserError(
            f"Table 5 lacks {lacking[0]}: {crossed.reasons[0] if crossed.reasons else 'it is not finished'}"
        )
    return crossed


def _name(target: Target, first: Target) -> str:
    """`eager-cpu-2`, with what else differs from the first one's, `eager-cpu-2-batch-1`: as a file may be called."""
    batch = target.batch if target.batch != first.batch and target.device == first.device == "cpu" else 0
    precision = target.precision if target.precision != first.precision else ""
    parts = [target.runtime, target.device, str(target.threads if target.device == "cpu" else target.batch)]
    return "-".join([*parts, *(["batch", str(batch)] if batch else []), *([precision] if precision else [])])
