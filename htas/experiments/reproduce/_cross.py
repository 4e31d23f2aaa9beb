"""Table 5: networks searched for one target, measured on it and on another."""

from htas.errors import UserError
from htas.experiments.arms import Entry, NamedArm
from htas.experiments.compare import Comparison, Key
from htas.experiments.reproduce._plan import MANUAL, PAPER, Plan, describe, within
from htas.experiments.reproduce._rows import (
    Row,
    accuracy,
    budget,
    doubted,
    measured,
    millions,
    milliseconds,
    times,
    trained,
)
from htas.report.paper import Section
from htas.timing.target import Target

DATA, DEPTH = "cifar100", 32
"""Of the paper's Table 5."""


def table5(plan: Plan) -> Section:
    """The paper's search for each of two targets, and both networks on both."""
    comparison, there, reasons = crossed(plan)
    _, first, other = comparison.arms
    place = plan.place(DATA, DEPTH)
    rows: dict[str, dict[str, Row]] = {}
    targets = {}
    for where, arm in {"A": first, "B": other}.items():
        on = comparison.jobs[arm, 0]
        targets[where] = on.target
        path = place / f"latencies-{_name(on.target, comparison.jobs[first, 0].target)}.json"
        rows[where] = measured(comparison, there, path, on)
    printed = {row["target"]: row for row in PAPER["table5"]}
    lines: list[tuple[str, ...]] = []
    for model, home, theirs in (("ResNet32-G", "gpu", "cpu"), ("ResNet32-C", "cpu", "gpu")):
        row, rival = printed[home], printed[theirs]
        lines.append((
            f"the paper's {model}, for its {home.upper()}", f"{row['top1']:.2f}", f"{row['gpu_ms']} (GPU)",
            f"{row['cpu_ms']} (CPU)", f"{rival[f'{home}_ms'] / row[f'{home}_ms']:.3f}", f"{row['mmacs']}",
        ))  # fmt: skip
    says = []
    for name, home, rival, where in ((first, "A", other, "B"), (other, "B", first, "A")):
        gain = times(rows[home].get(rival), rows[home].get(name, Row()))
        lines.append((
            f"here, searched for {home}", accuracy(rows[home][name]),
            milliseconds(rows["A"][name]), milliseconds(rows["B"][name]),
            "-" if gain is None else f"{gain:.3f}", millions(rows[home][name]),
        ))  # fmt: skip
        if gain is not None:
            says.append(
                f"On {home} ({describe(targets[home])}) the network searched for it is {gain:.2f} times as fast as "
                f"the one searched for {where}."
            )
    lines.append((
        "here, manual", accuracy(rows["A"][MANUAL]),
        milliseconds(rows["A"][MANUAL]), milliseconds(rows["B"][MANUAL]), "-", millions(rows["A"][MANUAL]),
    ))  # fmt: skip
    config = plan.config(DATA, DEPTH)
    paper = [
        printed[theirs][f"{home}_ms"] / printed[home][f"{home}_ms"] for home, theirs in (("gpu", "cpu"), ("cpu", "gpu"))
    ]
    return Section(
        "Table 5: searched for one target, measured on two",
        (*says, f"The paper's are {paper[0]:.2f} times as fast on its GPU, and {paper[1]:.2f} on its CPU."),
        ("network", "top-1, %", "on A, ms", "on B, ms", "on its own target, times as fast as the other", "MACs, M"),
        tuple(lines), 1, ("here, searched for A", "here, searched for B"),
        notes=(
            f"A is {describe(targets['A'])}; B is {describe(targets['B'])}. All networks of this table are measured in "
            "one interleaved run on each.",
            f"Both searches have one budget, {first.removeprefix('HTAS within ')} of the manual network's latency, "
            "each on its own target. A smaller network is faster on both, so speeds and multiply-adds belong together.",
            *(f"Left out: {reason}" for reason in reasons),
            *doubted(there),
        ),
        facts=plan.facts(targets["A"], config, there.values()),
    )  # fmt: skip


def crossed(plan: Plan) -> tuple[Comparison, dict[Key, Entry], list[str]]:
    """The manual network and a search for each target: the three arms' runs, entries, and why some are missing."""
    one, second = plan.config(DATA, DEPTH).target, plan.second_target()
    share = budget(DATA, DEPTH, plan.paper)
    arms = [
        NamedArm(MANUAL, ("--distill.alpha=0",)),
        within(share),
        within(share, *plan.other(), name_of=_name(second, one)),
    ]
    comparison, there, reasons = trained(plan, DATA, DEPTH, arms)
    lacking = [arm.name for arm in arms if (arm.name, 0) not in there]
    if lacking:
        raise UserError(f"Table 5 lacks {lacking[0]}: {reasons[0] if reasons else 'it is not finished'}")
    return comparison, there, reasons


def _name(target: Target, first: Target) -> str:
    """`eager-cpu-2`, with what else differs from the first one's, `eager-cpu-2-batch-1`: as a file may be called."""
    batch = target.batch if target.batch != first.batch and target.device == first.device == "cpu" else 0
    precision = target.precision if target.precision != first.precision else ""
    parts = [target.runtime, target.device, str(target.threads if target.device == "cpu" else target.batch)]
    return "-".join([*parts, *(["batch", str(batch)] if batch else []), *([precision] if precision else [])])
