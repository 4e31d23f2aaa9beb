"""A device that no clock is read for, and what else makes whole runs quick; for the tests of pipeline and compare."""

import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from htas import datasets
from htas.graph.layer import Layer
from htas.metrics import Metric, OnRound
from htas.metrics.latency import Latency
from htas.report import _draw, _page
from htas.run import stages as pipeline
from htas.runtimes import Program, Runtime
from htas.timing.bench import Timer
from htas.timing.measurement import Measurement


def seconds(case: Layer | nn.Module) -> float:
    """Eight channels are computed at a time, and a whole network takes as long as it has parameters."""
    if isinstance(case, Layer):
        return 1e-6 * (1 + math.ceil(case.outputs / 8))
    return 1e-9 * sum(parameter.numel() for parameter in case.parameters())


HOLD = "HTAS_TEST_HOLD"
"""Names a file: while it exists, a reading does not end."""


@dataclass(frozen=True)
class Lasting:
    """A call that computes nothing."""

    seconds: float

    def __call__(self) -> None:
        pass


class Script(Timer):
    """Reads in the script how long a call takes."""

    shortest: ClassVar[float] = 1e-9

    def time(self, call: Any, loops: int) -> float:
        hold = Path(os.environ.get(HOLD, "/nowhere"))
        while hold.exists():
            hold.with_suffix(".reached").touch()
            time.sleep(0.05)
        return loops * call.seconds


@dataclass(frozen=True)
class Scripted(Runtime):
    """The device by configuration, `target.runtime = "scripted_device:Scripted"`: nothing is patched."""

    def compile(self, model: nn.Module, example: tuple[Tensor, ...]) -> Program:
        return Program(Lasting(seconds(model)), model)

    def compile_layer(self, layer: Layer) -> Program:
        return Program(Lasting(seconds(layer)), lambda *inputs: layer.build()(*inputs))

    def describe(self) -> Mapping[str, str]:
        return {"clock": "scripted"}

    def timer(self) -> Timer:
        return Script()


def scripted(self: Latency, cases: Sequence[Any], *, on_round: OnRound | None = None, pending: Any = None) -> Any:
    """The same in place of `Latency.measure`, whatever runtime is asked for, and quicker: there are two readings."""
    if on_round is not None:
        on_round(1.0, "steady")
    return [Measurement((seconds(case), 1.01 * seconds(case)), "s", {"clock": "scripted"}, "one") for case in cases]


BLANK = b'<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1" viewBox="0 0 1 1"/>'
"""In place of a chart, which takes longer to draw than many of these networks to train."""


@contextmanager
def scripted_device(pictures: bool = False, patched: bool = True) -> Iterator[None]:
    """No clock is read, few rivals are judged, images are read once, no charts are drawn, and one thread computes.

    Where the configuration names the runtime `Scripted`, `Latency` need not be patched.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        if patched:
            patch.setattr(Latency, "measure", scripted)
            patch.setattr(Latency, "sample", Metric.sample)  # one after the other, of what is scripted
        patch.setattr(pipeline, "RIVALS", 2)
        patch.setattr(datasets, "load", cache(datasets.load))
        if not pictures:
            patch.setattr(_draw, "svg", lambda given: BLANK)
            patch.setattr(_page, "script", str)
        yield
    torch.set_num_threads(before)
