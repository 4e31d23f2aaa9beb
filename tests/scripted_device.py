"""A device that no clock is read for, and what else makes whole runs quick; for the tests of pipeline and compare."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

from htas import datasets
from htas.graph.layer import Layer
from htas.metrics import Metric, OnRound
from htas.metrics.latency import Latency
from htas.report import _draw, _page
from htas.run import stages as pipeline
from htas.timing.measurement import Measurement


def scripted(self: Latency, cases: Sequence[Any], *, on_round: OnRound | None = None, pending: Any = None) -> Any:
    """A device that computes eight channels at a time, and whole networks by their parameters."""
    if on_round is not None:
        on_round(1.0, "steady")

    def seconds(case: Layer | nn.Module) -> float:
        if isinstance(case, Layer):
            return 1e-6 * (1 + math.ceil(case.outputs / 8))
        return 1e-9 * sum(parameter.numel() for parameter in case.parameters())

    return [Measurement((seconds(case), 1.01 * seconds(case)), "s", {"clock": "scripted"}, "one") for case in cases]


BLANK = b'<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1" viewBox="0 0 1 1"/>'
"""In place of a chart, which takes longer to draw than many of these networks to train."""


@contextmanager
def scripted_device(pictures: bool = False) -> Iterator[None]:
    """No clock is read, few rivals are judged, images are read once, no charts are drawn, and one thread computes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Latency, "measure", scripted)
        patch.setattr(Latency, "sample", Metric.sample)  # one after the other, of what is scripted
        patch.setattr(pipeline, "RIVALS", 2)
        patch.setattr(datasets, "load", cache(datasets.load))
        if not pictures:
            patch.setattr(_draw, "svg", lambda given: BLANK)
            patch.setattr(_page, "script", str)
        yield
    torch.set_num_threads(before)
