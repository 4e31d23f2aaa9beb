"""Seconds per batch on the target, the readings of all cases interleaved."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import ClassVar
from uuid import uuid4

import torch

from htas.bench import bench
from htas.layer import Layer
from htas.measurement import Measurement
from htas.metrics import Case, Metric
from htas.runtimes import Program, Runtime, open_runtime


@dataclass(frozen=True)
class Latency(Metric):
    """The time of one batch, inputs and weights drawn at random."""

    unit: ClassVar[str] = "s"
    rounds: int = 30
    """Readings of each case."""
    reading: float = 0.002
    """Seconds that one reading lasts at least."""
    seed: int = 0
    """Of the inputs, the weights of layers, and the order of readings."""

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"latency.rounds must be 1 or more, got {self.rounds}")
        if self.reading <= 0:
            raise ValueError(f"latency.reading must be over 0 seconds (0.002 is usual), got {self.reading}")

    def measure(
        self, cases: Sequence[Case], *, on_round: Callable[[int, int], None] | None = None
    ) -> list[Measurement]:
        """One measurement for each case; a case given twice is measured once."""
        runtime = open_runtime(self.target)
        distinct = list(dict.fromkeys(cases))
        with runtime.session(), _seeded(self.seed):
            programs = [self._compile(runtime, case) for case in distinct]
            readings = bench(
                [program.run for program in programs],
                timer=runtime.timer(),
                rounds=self.rounds,
                reading=self.reading,
                seed=self.seed,
                on_round=on_round,
            )
        context, survey = self._context(runtime), uuid4().hex[:12]
        found = {
            case: Measurement(values, self.unit, context, survey)
            for case, values in zip(distinct, readings, strict=True)
        }
        return [found[case] for case in cases]

    def _compile(self, runtime: Runtime, case: Case) -> Program:
        if isinstance(case, Layer):
            return runtime.compile_layer(case)
        return runtime.compile(case, (torch.randn(self.target.batch, *self.target.image),))

    def _context(self, runtime: Runtime) -> dict[str, str]:
        """Where the readings come from: the runtime's versions and settings, the target, and when."""
        target = {name: str(value) for name, value in asdict(self.target).items()}
        target["image"] = "x".join(str(size) for size in self.target.image)
        return {**runtime.describe(), **target, "date": datetime.now(UTC).isoformat(timespec="seconds")}


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """PyTorch draws from this seed meanwhile, and goes on afterwards as if nothing had been drawn."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
