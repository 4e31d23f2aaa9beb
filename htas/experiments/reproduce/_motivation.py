"""Why one measures: multiply-adds saved against speed really gained, on every runtime of this machine."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn

from htas.console.progress import progress, say, shares
from htas.errors import UserError
from htas.experiments import pruning
from htas.experiments.arm_tables import Pruning
from htas.experiments.arms import Entry
from htas.experiments.reproduce._tables import TrainedArms, crossed_arms
from htas.experiments.reproduce.plan import CROSSED, MANUAL, PUBLISHED, TAS, Plan, describe
from htas.files import digest, read_json, to_json, write_json
from htas.graph import Arch, resize
from htas.metrics.latency import Latency
from htas.report.paper import Picture, Section, gained
from htas.run import networks
from htas.run import rows as run_rows
from htas.run.run import Run
from htas.run.stage import made_from
from htas.runtimes import open_runtime
from htas.text import plural
from htas.timing.target import Target

RUNTIMES = {"cpu": ("eager", "onnxruntime", "openvino"), "cuda": ("eager", "cuda_graph", "onnxruntime")}
MACS = (0.75, 0.5, 0.25)
"""Shares of the base network's multiply-adds that uniform narrowing and pruning are brought to."""
CRITERIA = ("l1", "group-norm")
ROUNDS = 60


@dataclass(frozen=True)
class Candidate:
    """A network with fewer multiply-adds than the base network."""

    name: str
    kind: str
    build: Callable[[], nn.Module]
    mark: str
    """A hash or a name that identifies it."""


@dataclass(frozen=True)
class Speed:
    """How many times as fast as the base network a network is on one runtime, and two standard errors of that."""

    ratio: float
    error: float

    @classmethod
    def of(cls, reading: tuple[float, float], base: tuple[float, float]) -> "Speed":
        """From seconds and their standard errors."""
        ratio = base[0] / reading[0]
        return cls(ratio, 2 * ratio * math.hypot(reading[1] / reading[0], base[1] / base[0]))


def motivation(plan: Plan) -> Section:
    """Torch-Pruning, TAS, uniform narrowing and searches, each compared with the base network on every runtime."""
    candidates, job, notes, entries = _candidates(plan)
    targets = _targets(job.target)
    table: dict[str, list[Speed]] = {}
    macs: list[int] = []
    for target in targets:
        readings, macs = measured(plan, target, candidates, f"motivation-{target.runtime}")
        table[target.runtime] = [Speed.of(reading, readings[0]) for reading in readings]
    saved = [1 - each / macs[0] for each in macs]
    points = [
        {"network": each.name, "kind": each.kind, "runtime": runtime, "saved": saved[n], "speed": speeds[n].ratio,
         "macs": macs[n] / 1e6}
        for runtime, speeds in table.items() for n, each in enumerate(candidates) if n
    ]  # fmt: skip
    order = sorted(range(1, len(candidates)), key=lambda n: saved[n])
    rows = tuple(
        (candidates[n].name, candidates[n].kind, f"{100 * saved[n]:.1f}", f"{macs[0] / macs[n]:.2f}",
         *(f"{speeds[n].ratio:.2f} ± {speeds[n].error:.2g}" for speeds in table.values()))
        for n in order
    )  # fmt: skip
    return Section(
        "Why one measures: multiply-adds saved against speed gained",
        tuple(_says(runtime, speeds, saved, candidates) for runtime, speeds in table.items()),
        ("network", "made by", "MACs saved, %", "promised by them", *table),
        rows, 2,
        figures=(Picture(
            "motivation", gained(points), "Speed gained over multiply-adds saved, a panel for each runtime",
            f"ResNet-{CROSSED[1]}, {describe(targets[0])} and the other runtimes alike; the dashed line is what the "
            "multiply-adds promise.",
        ),),
        notes=(
            "Each column of speeds is of one interleaved run, over the base network in it, with two standard errors of "
            "the readings; from one hour to another the machine moves by more.",
            f"Uniform narrowing and Torch-Pruning ({', '.join(CRITERIA)}; of the trained base network) are brought as "
            f"near as they come to {', '.join(f'{share:.0%}' for share in MACS)} of the multiply-adds.",
            *notes,
        ),
        facts=plan.facts(job.target, job.config, entries),
    )  # fmt: skip


def _says(runtime: str, speeds: list[Speed], saved: list[float], candidates: list[Candidate]) -> str:
    much = [n for n in range(1, len(saved)) if saved[n] >= 0.4]
    if not much:
        return f"{runtime}: no network saves 40 % of the multiply-adds."
    shares = {n: (speeds[n].ratio - 1) / (1 / (1 - saved[n]) - 1) for n in much}
    slower = sum(speeds[n].ratio + speeds[n].error < 1 for n in much)
    faster = sum(speeds[n].ratio - speeds[n].error > 1 for n in much)
    worst, best = min(shares, key=shares.__getitem__), max(shares, key=shares.__getitem__)
    return (
        f"{runtime}: of {plural(len(much), 'network')} with 40 % of the multiply-adds saved or more, {faster} by two "
        f"standard errors faster than the base network, {slower} slower, {len(much) - faster - slower} neither. Of the "
        f"gain that is promised, the best reaches {shares[best]:.0%} ({candidates[best].kind}) and the worst "
        f"{shares[worst]:.0%} ({candidates[worst].kind})."
    )


def _targets(first: Target) -> list[Target]:
    """The run's own target, and the other runtimes that this machine has."""
    targets = [first]
    for runtime in (each for each in RUNTIMES[first.device] if each != first.runtime):
        target = replace(first, runtime=runtime, options={})
        try:
            target.check()
            open_runtime(target)
            targets.append(target)
        except UserError as error:
            say(f"motivation: without {runtime}: {error}")
    return targets


def _candidates(plan: Plan) -> tuple[list[Candidate], Run, list[str], list[Entry]]:
    """The base network first; those of searches are the first seed's. With them a run of the target, what must be known
    of them, and what they come from."""
    crossed = crossed_arms(plan)
    jobs = crossed.comparison.jobs
    _, first, other = crossed.comparison.arms
    tas = TrainedArms.of(plan, *CROSSED, plan.arms(*CROSSED)[:2])  # with the manual network
    job, network = jobs[first, 0], jobs[first, 0].network

    def candidate(name: str, kind: str, arch: Arch) -> Candidate:
        return Candidate(name, kind, partial(resize, network, arch), digest(to_json(arch)))

    def nearest(archs: list[Arch], aim: float) -> Arch:
        return min(archs, key=lambda arch: abs(network.macs(arch) / network.macs(network.base) - aim))

    candidates = [candidate("base", "the base network", network.base)]
    narrow = [
        Arch({name: site.near(site.base * step / 64) for name, site in network.widths.items()}, network.base.depths)
        for step in range(8, 64)
    ]
    narrower = {("uniform", "uniform narrowing"): narrow}
    notes = [f"Left out: {reason}" for reason in tas.reasons]
    try:
        model, example = run_rows.base_network(jobs[MANUAL, 0]), torch.zeros(2, *job.config.data.shapes[0])
        for criterion in CRITERIA:
            pruned = pruning.candidates(network, model, example, Pruning(criterion))
            narrower[f"pruned by {criterion}", "Torch-Pruning"] = [*pruned]
    except UserError as error:
        notes.append(f"Left out: {error}")
    for (how, kind), archs in narrower.items():
        candidates += [candidate(f"{how}, {aim:.0%} of the MACs", kind, nearest(archs, aim)) for aim in MACS]
    name = plan.published(*CROSSED)
    candidates.append(Candidate(PUBLISHED, "TAS", partial(networks.build, name, job.config.data.classes), name))
    searched = {
        (TAS, "TAS"): tas.entries.get((TAS, 0)),
        (f"{first}, for {job.target.runtime}", "this project"): crossed.entries[first, 0],
        (other, "this project"): crossed.entries[other, 0],
    }
    entries = {title: entry for title, entry in searched.items() if entry is not None}
    candidates += [candidate(*title, entry.result.arch) for title, entry in entries.items()]
    return candidates, job, notes, list(entries.values())


def measured(
    plan: Plan, target: Target, candidates: list[Candidate], name: str
) -> tuple[list[tuple[float, float]], list[int]]:
    """Seconds with their standard errors, and multiply-adds, of all on one target, in one interleaved run that is
    kept under a name."""
    path = plan.folder / f"{name}-{target.device}.json"
    marks = [[each.name, each.mark] for each in candidates]
    key = digest("readings", target.fingerprint(), open_runtime(target).describe(), marks)
    if not made_from(path, key):
        modules = [each.build().eval() for each in candidates]
        with progress(f"measuring {len(candidates)} networks on {target.runtime}, %", 100) as bar:
            readings = Latency(target, rounds=ROUNDS).measure(modules, on_round=shares(bar))
        counts = [run_rows.counted(module, target)[0] for module in modules]
        figures = [[each.estimate, each.error] for each in readings]
        write_json(path, {"inputs": key, "readings": figures, "macs": counts})
    content = read_json(path)
    return [(seconds, error) for seconds, error in content["readings"]], content["macs"]
