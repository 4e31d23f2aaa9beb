"""AMC walks from site to site within the limits; its agent needs Stable-Baselines3, without which its tests skip."""

import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from htas.console.progress import Bar
from htas.cost.limits import Limit
from htas.cost.model import CostModel
from htas.errors import UserError
from htas.graph import Arch
from htas.search.moves import over
from htas.search.problem import Problem
from htas.spaces.space import Space
from htas.strategies import amc
from htas.strategies._sampled import trimmed
from htas.strategies._walk import FEATURES, Walk
from htas.strategies.amc import Amc
from htas.testing.strategy import problem

pytestmark = pytest.mark.usefixtures("one_thread")
REASON = "Stable-Baselines3 is not installed: pip install 'htas[amc]'"
SITES = ("stem.conv", "stages.0.0.conv1.conv", "stages.0.1.conv1.conv")


@dataclass(frozen=True)
class Sum(CostModel):
    """Widths added."""

    unit: str = "s"

    def cost(self, arch: Arch) -> float:
        return float(sum(arch.widths.values()))

    def expected(self, space: Space, widths: Mapping[str, Tensor], depths: Mapping[str, Tensor]) -> Tensor:
        raise NotImplementedError


def three(folder: Path, most: float) -> Problem:
    """Three sites of 4, 8 or 16 channels; others have one channel, and the limit is on the sum of the three."""
    task, cost = problem(folder, depths=False), Sum()
    widths = {site: (4, 8, 16) if site in SITES else (1,) for site in task.space.widths}
    limit = Limit("macs", "some", cost, most + len(widths) - 3)
    return replace(task, space=Space("three", widths, task.space.depths), cost=cost, limits=(limit,))


def walked(walk: Walk, actions: Sequence[float]) -> list[int]:
    walk.begin()
    for action in actions:
        walk.take(action)
    assert walk.done
    return [walk.arch[site] for site in SITES]


@pytest.mark.parametrize(
    "actions, widths",
    [
        ((1.0, 1.0, 1.0), [16, 8, 4]),  # 16 leaves 12 for two: 8 and the least
        ((0.0, 0.0, 0.0), [4, 4, 4]),
        ((0.4, 0.4, 0.4), [8, 8, 8]),
        ((0.0, 1.0, 1.0), [4, 16, 8]),
        ((0.0, 0.0, 1.0), [4, 4, 16]),
    ],
)
def test_an_action_is_bounded_so_that_later_sites_can_keep_the_limit(actions, widths, tmp_path):
    """28 channels at most; the paper's Algorithm 1, by hand."""
    walk = Walk(three(tmp_path, 28))
    assert walk.sites == list(SITES)
    assert walked(walk, actions) == widths
    assert walked(walk, actions) == widths, "the same from the start again"


def test_a_state_says_where_the_agent_is_and_what_is_left_to_save(tmp_path):
    task = three(tmp_path, 28)
    walk = Walk(task)
    whole = over(task.limits, task.space.widest) * task.limits[0].most
    place, channels, *_, saving, saved, rest, share = walk.state
    assert len(walk.state) == FEATURES and (place, channels, saving, saved, share) == (0, 1, 1, 0, 1)
    assert rest == pytest.approx(3 * 12 / whole)
    walk.take(0.4)
    place, *_, saved, rest, share = walk.state
    assert (place, share) == (pytest.approx(1 / 3), 0.5)
    assert (saved, rest) == (pytest.approx(8 / whole), pytest.approx(2 * 12 / whole))


def test_walks_of_any_actions_keep_the_limits_and_pass_over_cut_blocks(tmp_path):
    task, rng = problem(tmp_path), random.Random(0)
    walk, lengths = Walk(task), set()
    for _ in range(40):
        walk.begin()
        steps = 0
        while not walk.done:
            assert len(walk.state) == FEATURES and all(0 <= number <= 1 for number in walk.state)
            walk.take(rng.random())
            steps += 1
        assert walk.arch in task.space and over(task.limits, walk.arch) <= 1
        assert walk.arch == trimmed(task, walk.arch)
        lengths.add(steps)
    assert max(lengths) == len(walk.sites) and len(lengths) > 1


def test_without_the_package_it_is_refused_in_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    for refused in (Amc().check, lambda: Amc().search(problem(tmp_path))):
        with pytest.raises(UserError, match=r"strategy amc needs the package stable_baselines3, .*'htas\[amc\]'"):
            refused()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"episodes": 0}, "strategy.episodes must be 1 or more, got 0"),
        ({"episodes": 50}, "strategy.explore must lie below strategy.episodes, 50, got 100"),
        ({"noise": -1.0}, "strategy.noise must be 0 or more, got -1.0"),
        ({"lr": 0.0}, "strategy.lr must be above 0, got 0.0"),
    ],
)
def test_an_option_out_of_range_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        Amc(**options)


def test_it_asks_for_a_limit(tmp_path):
    with pytest.raises(UserError, match="strategy amc looks for the most accurate network within limits"):
        Amc().search(replace(problem(tmp_path), limits=()))


# -- the agent ---------------------------------------------------------------------------------------------------------


class Planted:
    """Accuracies that fall with the widths and depths that an arch lacks, or has too much of, to a goal's."""

    title = "planted"

    def __init__(self, goal: Arch, stop: int = 0) -> None:
        self.goal, self.stop = goal, stop
        self.accuracies: list[float] = []

    def __call__(self, archs: Sequence[Arch]) -> list[float]:
        if self.stop and len(self.accuracies) == self.stop:
            raise KeyboardInterrupt
        sites = [*self.goal.widths, *self.goal.depths]
        values = [1 - sum(abs(arch[site] / self.goal[site] - 1) for site in sites) / len(sites) for arch in archs]
        self.accuracies += values
        return values


def plant(monkeypatch: pytest.MonkeyPatch, planted: Planted) -> None:
    kind: Any = type("Kind", (), {"title": "planted", "__new__": lambda cls, task, base: planted})
    monkeypatch.setattr(amc, "Inherited", kind)


def test_an_agent_learns_where_a_planted_goal_is(tmp_path, monkeypatch):
    pytest.importorskip("stable_baselines3", reason=REASON)
    task = three(tmp_path, 28)
    goal = {**task.space.widest.widths, **dict(zip(SITES, (4, 16, 8), strict=True))}
    planted = Planted(Arch(goal, task.space.widest.depths))
    plant(monkeypatch, planted)
    rewards: list[float] = []
    bar = Bar.step
    monkeypatch.setattr(Bar, "step", lambda self, text: rewards.append(float(text.split()[0])) or bar(self, text))
    outcome = Amc(episodes=160, explore=40).search(task)
    assert len(rewards) == 160 and sum(rewards[-20:]) / 20 > sum(rewards[:40]) / 40 + 3, "per cent of accuracy"
    assert planted([outcome.arch])[0] == max(planted.accuracies) and over(task.limits, outcome.arch) <= 1
    assert outcome.pool[0] == outcome.arch and outcome.judge == "planted"


def test_an_interrupted_search_ends_as_an_uninterrupted_one_and_judges_nothing_twice(tmp_path, monkeypatch):
    pytest.importorskip("stable_baselines3", reason=REASON)
    (tmp_path / "parts").mkdir()
    whole_task, task = three(tmp_path, 36), three(tmp_path / "parts", 36)
    goal, agent = task.space.widest, Amc(episodes=30, explore=8)
    plant(monkeypatch, whole := Planted(goal))
    outcome = agent.search(whole_task)
    plant(monkeypatch, first := Planted(goal, stop=7))
    with pytest.raises(KeyboardInterrupt):
        agent.search(task)
    plant(monkeypatch, second := Planted(goal))
    again = agent.search(task)
    assert again.arch == outcome.arch and again.pool == outcome.pool
    assert first.accuracies + second.accuracies == whole.accuracies and second.accuracies


def test_a_space_of_one_arch_is_judged_once(tmp_path, monkeypatch):
    pytest.importorskip("stable_baselines3", reason=REASON)
    task = problem(tmp_path)
    arch = task.space.narrowest
    space = Space("one", {site: (n,) for site, n in arch.widths.items()}, {k: (n,) for k, n in arch.depths.items()})
    plant(monkeypatch, planted := Planted(arch))
    assert Amc(episodes=3, explore=1).search(replace(task, space=space)).arch == arch
    assert planted.accuracies == [1.0]
