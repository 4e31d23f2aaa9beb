"""Short trainings decide between numbers of blocks that the estimate of `knapsack` hardly tells apart."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest

from htas.errors import UserError
from htas.graph import Arch
from htas.search.moves import over
from htas.search.problem import Problem, SearchOutcome
from htas.strategies import knapsack
from htas.strategies.knapsack import ALIKE, TRIAL, Knapsack
from htas.testing.strategy import problem as tiny
from htas.training.recipe import Recipe

pytestmark = pytest.mark.usefixtures("one_thread")


class Fake:
    """In place of trials: the last of the archs is the best one, by a lead over each before it, or all diverge."""

    asked: list[Sequence[Arch]]
    diverges = False
    lead = 0.1
    judge = "tried"
    seconds = 5.0

    def __init__(self, problem: Problem, recipe: Recipe) -> None:
        self.problem = problem
        assert recipe == TRIAL

    def __call__(self, archs: Sequence[Arch]) -> list[float]:
        type(self).asked.append(archs)
        if self.diverges:
            raise UserError("trial 1 diverged")
        return [self.lead * number for number in range(1, len(archs) + 1)]


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> type[Fake]:
    kind = type("Fake", (Fake,), {"asked": []})
    monkeypatch.setattr(knapsack, "Trials", kind)
    monkeypatch.setattr(knapsack, "CLOSE", 1e9)
    return kind


def searched(folder: Path, *, trials: int = 3, anew: bool = True) -> tuple[Problem, SearchOutcome]:
    problem = dataclasses.replace(tiny(folder), anew=anew)
    return problem, Knapsack(images=16, trials=trials).search(problem)


def test_the_best_of_the_trials_is_taken_and_none_that_lost_is_preferred(trials: type[Fake], tmp_path: Path) -> None:
    problem, alone = searched(tmp_path, trials=1)
    assert not trials.asked
    problem, outcome = searched(tmp_path)
    (archs,) = trials.asked
    assert archs[0] == alone.arch and outcome.arch == archs[-1] and len(archs) == 3
    assert len({tuple(arch.depths.items()) for arch in archs}) == 3
    assert all(over(problem.limits, arch) <= 1 for arch in archs)
    assert all(sum(alone.arch.depths[site] != arch.depths[site] for site in arch.depths) <= 1 for arch in archs)
    assert [alone.worth(arch) for arch in archs] == sorted((alone.worth(arch) for arch in archs), reverse=True)
    assert max(outcome.worth(arch) for arch in archs[:-1]) <= outcome.worth(archs[-1]) == alone.worth(archs[-1])
    assert "30.0 % of 10.0 % / 20.0 % / 30.0 %" in outcome.why and outcome.seconds > 5


def test_the_estimate_decides_where_a_trial_diverges(trials: type[Fake], tmp_path: Path) -> None:
    _, alone = searched(tmp_path, trials=1)
    trials.diverges = True
    _, outcome = searched(tmp_path)
    assert trials.asked and outcome.arch == alone.arch and outcome.why == alone.why


def test_the_estimate_decides_between_trials_that_are_alike(trials: type[Fake], tmp_path: Path) -> None:
    trials.lead = ALIKE / 3
    _, outcome = searched(tmp_path)
    assert outcome.arch == trials.asked[0][0]


def test_networks_that_begin_with_trained_weights_are_not_tried(trials: type[Fake], tmp_path: Path) -> None:
    searched(tmp_path, anew=False)
    assert not trials.asked


def test_a_clear_estimate_needs_no_trial(trials: type[Fake], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knapsack, "CLOSE", 0.0)
    searched(tmp_path)
    assert not trials.asked


def test_a_trial_is_a_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the fake: real networks on real, tiny images."""
    monkeypatch.setattr(knapsack, "CLOSE", 1e9)
    monkeypatch.setattr(knapsack, "TRIAL", dataclasses.replace(TRIAL, batch=8, precision="fp32"))
    problem, outcome = searched(tmp_path, trials=2)
    assert "trained from scratch for 3 epochs" in outcome.why and over(problem.limits, outcome.arch) <= 1


def test_archs_are_tried_whose_estimates_are_close(
    trials: type[Fake], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a share of the least loss that lies between the second arch's and the third's."""
    _, alone = searched(tmp_path, trials=1)
    searched(tmp_path)
    first, second, third = (-alone.worth(arch) for arch in trials.asked[0])
    assert 0 < first < second < third
    monkeypatch.setattr(knapsack, "CLOSE", (second + third) / 2 / first - 1)
    searched(tmp_path)
    assert trials.asked[1] == trials.asked[0][:2]
