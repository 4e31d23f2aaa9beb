"""A device whose best widths are known: noise, drift and bursts must not move what a survey chooses."""

import random
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from htas.graph import Network, trace
from htas.graph.layer import Layer
from htas.metrics.latency import Latency
from htas.runtimes import Program, Runtime
from htas.spaces.curve import Curve, LayerTable
from htas.spaces.design import Design, choose, site_curves, spaces, undecided
from htas.spaces.layers import SurveyPlan
from htas.spaces.survey import survey
from htas.timing.bench import HostTimer, Timer
from htas.timing.target import Target

WIDTHS = 32
GROUPS = 8
BEST = (2, 7, 9, 14, 18, 21, 27, 30)
"""None of them the last of its group of four."""
BURSTS, TWICE = 0.05, 2.0
"""So many readings take so much longer."""
DRIFT = 0.10
"""The device becomes so much slower in the first quarter of a survey, which always takes place."""
NOISE = 0.03
"""Standard deviation of a reading, of its latency."""


def latency(width: int) -> float:
    """A slope, and a dip at the best widths: the runner-up is more than 5 % of the latency behind."""
    return 1e-3 * (1 + width / 40) * (0.93 if width in BEST else 1.0)


class Device:
    """A clock that readings move, and its disturbances."""

    def __init__(self, seed: int, calls: int) -> None:
        self.now, self.done, self.calls, self.rng = 0.0, 0, calls, random.Random(seed)

    def run(self, seconds: float) -> None:
        """A call that takes about so long."""
        self.done += 1
        burst = TWICE if self.rng.random() < BURSTS else 1.0
        drift = 1 + DRIFT * min(1.0, self.done / self.calls)
        self.now += seconds * burst * drift * max(0.5, self.rng.gauss(1.0, NOISE))


device = Device(0, 1)


@dataclass(frozen=True)
class Planted(Runtime):
    """Layers take what the plan says, on the device's clock."""

    def compile(self, model: nn.Module, example: tuple[Tensor, ...]) -> Program:
        raise NotImplementedError

    def compile_layer(self, layer: Layer) -> Program:
        seconds = latency(layer.outputs) if layer.op == "conv" else 1e-3
        return Program(lambda: device.run(seconds), layer.build)

    def describe(self) -> Mapping[str, str]:
        return {}

    def timer(self) -> Timer:
        return HostTimer(clock=lambda: device.now)


def network() -> Network:
    """One site, of base width 16."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.last = nn.Conv2d(3, WIDTHS // 2, 1), nn.Linear(WIDTHS // 2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.conv(x).mean((2, 3)))  # type: ignore[no-any-return]

    return trace(Net(), torch.zeros(1, 3, 4, 4))


NET = network()
DESIGN = Design(groups=GROUPS, spaces=("hardware",))
ROUNDS = 60


def surveyed(seed: int) -> Mapping[str, LayerTable]:
    """The tables of a device in this mood."""
    global device
    device = Device(seed, ROUNDS * (WIDTHS + 1))
    metric = Latency(Target(runtime=f"{__name__}:Planted", threads=1), rounds=ROUNDS, seed=seed)
    pending = lambda content: undecided(NET, content, DESIGN)  # noqa: E731
    return survey(SurveyPlan(NET), metric, pending=pending).layers


def recovered(seeds: range) -> tuple[int, int, int]:
    """Surveys that chose exactly the planted widths: ours, the mean and strict argmax, and always the widest."""
    ours = paper = widest = 0
    for seed in seeds:
        content = surveyed(seed)
        ours += spaces(NET, content, DESIGN)["hardware"].widths["conv"] == BEST
        mean = Design(groups=GROUPS, spaces=("hardware",), selection="paper")
        paper += spaces(NET, content, mean)["hardware"].widths["conv"] == BEST
        always = Design(groups=GROUPS, spaces=("hardware",), ties=0.99)
        widest += spaces(NET, content, always)["hardware"].widths["conv"] == BEST
    return ours, paper, widest


def test_the_plan_is_as_hard_as_it_says() -> None:
    curve = Curve(tuple(range(1, WIDTHS + 1)), tuple(latency(width) for width in range(1, WIDTHS + 1)))
    fit = curve.fit(1.0)
    assert choose(curve, fit, GROUPS) == choose(curve, fit, GROUPS, ties=DESIGN.ties) == BEST
    for group, best in enumerate(BEST):
        behind = [
            (fit(best) - latency(best) - fit(width) + latency(width)) / latency(best)
            for width in range(4 * group + 1, 4 * group + 5)
            if width != best
        ]
        assert min(behind) >= 0.05


def test_planted_choices_are_recovered() -> None:
    ours, _, widest = recovered(range(20))
    assert (ours, widest) == (20, 0)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_planted_choices_are_recovered_for_a_thousand_seeds() -> None:
    ours, paper, widest = recovered(range(1000))
    assert ours == 1000
    assert widest == 0
    assert paper < 900


@pytest.mark.slow
def test_the_stated_error_is_what_repetitions_show() -> None:
    repeated = [site_curves(NET, surveyed(seed), DESIGN)["conv"] for seed in range(20)]
    logs = np.log([curve.seconds for curve in repeated])
    true = np.sqrt(np.var(logs - logs.mean(axis=1, keepdims=True), axis=0, ddof=1).mean())
    stated = np.sqrt(np.mean([np.square(np.divide(curve.errors, curve.seconds)) for curve in repeated]))
    assert 0.6 < stated / true < 1.6
