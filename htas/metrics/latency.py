"""Seconds per batch on the target; the readings of all cases are interleaved."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil, inf
from typing import TYPE_CHECKING, ClassVar, Literal, Self
from uuid import uuid4

import numpy as np
import torch
from torch import nn

from htas.errors import UserError, need_least
from htas.graph.layer import Layer
from htas.metrics import Case, Metric, OnRound, Pending, elsewhere
from htas.runtimes import Program, Runtime, open_runtime
from htas.text import plural
from htas.timing.bench import REPEAT, Bench, Call, HostTimer, Readings
from htas.timing.measurement import BLOCKS, LOW, Measurement
from htas.timing.target import Target
from htas.timing.turns import alone

if TYPE_CHECKING:
    from htas.cost.model import CostModel
    from htas.cost.source import NetworkCosts

CHEAP = 0.05
"""Largest number of seconds to build a layer for its program to be rebuilt while it is measured, on a CPU, where two
of each fit into memory."""
MIN_ROUNDS, MAX_ROUNDS = 20, 1000
"""Rounds in which whole networks are read; each network is read three times a round."""
MIN_SECONDS = 6.0
"""Seconds that reading whole networks lasts at least, unless MAX_ROUNDS end it: other programs come and go."""


@dataclass(frozen=True)
class Latency(Metric):
    """Seconds of one batch; inputs and weights are random."""

    unit: ClassVar[str] = "s"
    units: ClassVar[Mapping[str, float]] = {"s": 1.0, "ms": 1e-3, "us": 1e-6}
    example: ClassVar[str] = "8 ms"
    fitted: ClassVar[bool] = False
    rounds: int = 30
    """Largest number of rounds; each case is read three times a round."""
    limit: float = inf
    """Seconds after which no round begins."""
    reading: float = 0.0
    """Shortest length of a reading in seconds; 0 means as short as the clock allows."""
    seed: int = 0
    """Seed of inputs, of weights of layers, and of the order of readings."""
    layers: Literal["auto", "alone", "chain"] = "auto"
    """How a layer is timed: alone, as the increment of a chain of layers, or as suits its runtime (auto)."""
    programs: dict[Case, Callable[[], Program]] = field(default_factory=dict, repr=False, compare=False)
    """Builders of programs of networks measured before, which skip the export; `replace` passes them on."""

    def __post_init__(self) -> None:
        need_least(1, self, "latency", "rounds")
        if not self.limit > 0:
            raise UserError(f"latency.limit must be over 0 seconds, got {self.limit}")
        if not self.reading >= 0:
            raise UserError(
                f"latency.reading must be 0 seconds (as short as the clock allows) or more, got {self.reading}"
            )

    @classmethod
    def cost(cls, costs: "NetworkCosts") -> "CostModel":
        """The calibrated table of layers."""
        return costs.latency

    def reread(self, seed: int, predicted: Sequence[float] = ()) -> Self:
        """Another order of readings, in rounds enough for networks of these seconds; exported networks are kept."""
        return replace(self, seed=seed, rounds=rounds(predicted))

    def measure(self, cases: Sequence[Case], *, on_round: OnRound = None, pending: Pending = None) -> list[Measurement]:
        """One measurement for each case, in seconds; a repeated case is measured once."""
        readings = self.sample(cases, cases, on_round=on_round, pending=pending)
        return [readings[case] for case in cases]

    def sample(
        self, cases: Sequence[Case], first: Collection[Case], *, on_round: OnRound = None, pending: Pending = None
    ) -> dict[Case, Measurement]:
        """The `first` cases and those `pending` then, all in the same rounds."""
        if (read := elsewhere()) is not None and pending is None:
            whole = list(dict.fromkeys(cases))
            return dict(zip(whole, read(replace(self, programs={}), whole), strict=True))
        runtime = open_runtime(self.target)
        timer, survey, context = runtime.timer(), uuid4().hex[:12], runtime.context()
        distinct = list(dict.fromkeys(cases))
        calls = _Calls(runtime, distinct, self.chained(runtime), self.programs)

        def measurements(readings: Sequence[Readings], remarks: tuple[str, ...] = ()) -> dict[Case, Measurement]:
            return {
                case: Measurement(
                    each.seconds,
                    self.unit,
                    context,
                    survey,
                    each.levels,
                    (*remarks, *too_short(each, timer.shortest, self.reading)),
                    calls.notes.get(case, ""),
                )
                for case, each in calls.of_cases(readings).items()
            }

        def open_calls(readings: Sequence[Readings]) -> Collection[int]:
            assert pending is not None
            return calls.numbers(set(pending(measurements(readings))))

        def heard(share: float, figures: str) -> None:
            watch.look()
            if on_round is not None:
                on_round(share, figures)

        bench = Bench(timer, self.rounds, self.limit, self.reading, seed=self.seed, now=runtime.now)
        with (
            alone(self.target.host),
            runtime.session(),
            torch.random.fork_rng(devices=[]),
            runtime.priority() as raised,
        ):
            torch.default_generator.manual_seed(self.seed)
            calls.prepare()
            watch = runtime.watch()
            context["priority"] = "raised" if raised else "usual"
            readings = bench.run(
                calls.build,
                len(calls.parts),
                first=None if len(set(first)) == len(distinct) else calls.numbers(set(first)),
                rebuild=self.target.device == "cpu" and runtime.build_seconds <= CHEAP,
                renew=runtime.renew,
                pending=open_calls if pending is not None else None,
                on_round=heard,
            )
            remarks = (*watch.remarks(), *crowded(self.target))
            context |= watch.context()
        return measurements(readings, remarks)

    def chained(self, runtime: Runtime) -> bool:
        """Whether layers are timed in a chain."""
        return self.target.device in runtime.chained if self.layers == "auto" else self.layers == "chain"


class _Calls:
    """Calls that time the cases: one each, or two for a layer in a chain, with the layer and without."""

    def __init__(
        self, runtime: Runtime, cases: Sequence[Case], chained: bool, programs: dict[Case, Callable[[], Program]]
    ) -> None:
        self.runtime, self.programs = runtime, programs
        self.parts = [
            (case, without)
            for case in cases
            for without in ((False, True) if chained and isinstance(case, Layer) else (False,))
        ]
        self.pairs = {case for case, without in self.parts if without}
        self.waiting: dict[tuple[Case, bool], Call] = {}
        self.notes: dict[Case, str] = {}

    def prepare(self) -> None:
        """Build the networks, since an export may take long."""
        for case, _ in self.parts:
            if not isinstance(case, Layer):
                self.waiting[case, False] = self._compile(case).run

    def _compile(self, module: nn.Module) -> Program:
        rebuild = self.programs.get(module)
        program = rebuild() if rebuild else self.runtime.compile(module, self.runtime.target.example())
        self.notes[module] = program.remark
        if program.rebuild is not None:
            self.programs[module] = program.rebuild
        return program

    def build(self, number: int) -> Call:
        """Build the call of that number; the two chains of a layer are built together."""
        part = case, without = self.parts[number]
        if part in self.waiting:
            return self.waiting.pop(part)
        if not isinstance(case, Layer):
            return self._compile(case).run
        if case not in self.pairs:
            return self.runtime.compile_layer(case).run
        chain = self.runtime.chain(case)
        both = [each.run for each in chain] if chain else [self.runtime.compile_layer(case).run, lambda: None]
        self.waiting[case, not without] = both[not without]
        return both[without]

    def numbers(self, cases: Collection[Case]) -> set[int]:
        return {number for number, (case, _) in enumerate(self.parts) if case in cases}

    def of_cases(self, readings: Sequence[Readings]) -> dict[Case, Readings]:
        """Readings of each case: its call's, or the increment of its chain."""
        read = {part: each for part, each in zip(self.parts, readings, strict=True) if each.seconds}
        return {
            case: increment(each, read[case, True]) if case in self.pairs else each
            for (case, without), each in read.items()
            if not without
        }


def rounds(seconds: Sequence[float]) -> int:
    """Rounds for networks of these latencies, in seconds: MIN_ROUNDS, or more, so that reading lasts MIN_SECONDS."""
    if not seconds:
        return MIN_ROUNDS
    turns = (each + REPEAT * max(each, HostTimer.shortest) for each in seconds)
    return min(MAX_ROUNDS, max(MIN_ROUNDS, ceil(MIN_SECONDS / sum(turns))))


def increment(chain: Readings, without: Readings) -> Readings:
    """Readings of a chain minus the time of the chain without the layer.

    That time is estimated for each stretch of the run, so that its error shows in the differences between stretches.
    """
    steady, rest = (np.divide(each.seconds, each.levels) for each in (chain, without))
    blocks = BLOCKS if min(len(steady), len(rest)) >= 2 * BLOCKS else 1
    parts = [
        part - np.percentile(other, LOW)
        for part, other in zip(np.array_split(steady, blocks), np.array_split(rest, blocks), strict=True)
    ]
    return Readings(tuple((np.concatenate(parts) * np.asarray(chain.levels)).tolist()), chain.levels, chain.lasted)


def crowded(target: Target) -> tuple[str, ...]:
    """A remark if threads must share cores; each waits for the others there."""
    cores = len(target.affinity()) if target.device == "cpu" else 0
    if not 0 < cores < target.threads:
        return ()
    return (f"{target.threads} threads shared {plural(cores, 'core')}; set target.threads to {cores} or fewer",)


def too_short(readings: Readings, shortest: float, asked: float) -> tuple[str, ...]:
    """A remark if readings last less than half of `shortest`, the seconds that the clock needs.

    `asked` are the seconds that a reading should last at least, 0 for as short as the clock allows.
    """
    if readings.lasted >= shortest / 2:
        return ()
    if 0 < asked < shortest:
        remedy = f"leave survey.reading at 0, or give it at least {shortest:g} s"
    else:
        remedy = "its speed changed within a round; measure again on a quieter machine"
    return (f"readings lasted less than {1e6 * shortest / 2:g} us, which this clock cannot tell well; {remedy}",)
