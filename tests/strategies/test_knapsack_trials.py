"""Short trainings decide between numbers of blocks that the estimate of `knapsack` hardly tells apart."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest

from htas.data.task import CLASSIFY, Task
from htas.errors import UserError
from htas.graph import Arch
from htas.search.moves import over
from htas.search.problem import Problem, SearchOutcome
from htas.strategies import knapsack
from htas.strategies.knapsack import ALIKE, STEPS, TRIAL, Knapsack
from htas.testing.strategy import problem as tiny
from htas.testing.strategy import split
from htas.training.recipe import Recipe

pytestmark = pytest.mark.usefixtures("one_thread")


class Fake:
    """In place of trials: the last of the archs is the best one, by a lead over each before it, or all diverge."""

    asked: list[Sequence[Arch]]
    diverges = False
    worst = 0.7
    lead = 0.1
    judge = "tried"
    seconds = 5.0

    def __init__(self, problem: Problem, recipe: Recipe) -> None:
        self.problem = problem
        assert recipe == knapsack.recipe(len(problem.data.weights))

    def __call__(self, archs: Sequence[Arch]) -> list[float]:
        type(self).asked.append(archs)
        if self.diverges:
            raise UserError("trial 1 diverged")
        return [self.worst + self.lead * number for number in range(len(archs))]


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> type[Fake]:
    kind = type("Fake", (Fake,), {"asked": []})
    monkeypatch.setattr(knapsack, "Trials", kind)
    monkeypatch.setattr(knapsack, "CLOSE", 1e9)
    return kind


def searched(
    folder: Path, *, trials: int = 3, anew: bool = True, judging: int = 400, task: Task = CLASSIFY
) -> tuple[Problem, SearchOutcome]:
    """A search whose trials are judged by so many images, of two classes."""
    problem = tiny(folder)
    data = dataclasses.replace(problem.data, validation=split(judging, 1), task=task)
    problem = dataclasses.replace(problem, anew=anew, data=data)
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
    assert "90.0 % of 70.0 % / 80.0 % / 90.0 %" in outcome.why and outcome.seconds > 5


def test_the_estimate_decides_where_a_trial_diverges(trials: type[Fake], tmp_path: Path) -> None:
    _, alone = searched(tmp_path, trials=1)
    trials.diverges = True
    _, outcome = searched(tmp_path)
    assert trials.asked and outcome.arch == alone.arch and outcome.why == alone.why


def test_the_estimate_decides_between_trials_that_are_alike(trials: type[Fake], tmp_path: Path) -> None:
    trials.lead = ALIKE / 3
    _, outcome = searched(tmp_path)
    assert outcome.arch == trials.asked[0][0]


def test_the_estimate_decides_between_trials_that_few_images_hardly_tell_apart(
    trials: type[Fake], tmp_path: Path
) -> None:
    """Two shares differ from 13 points on where sixty images judge, and from 24 on where twenty do."""
    _, outcome = searched(tmp_path, judging=60)
    assert outcome.arch == trials.asked[0][1]
    _, outcome = searched(tmp_path, judging=20)
    assert outcome.arch == trials.asked[1][0]


def test_the_estimate_decides_where_trials_guess(trials: type[Fake], tmp_path: Path) -> None:
    _, alone = searched(tmp_path, trials=1)
    trials.worst, trials.lead = 0.44, 0.05
    _, outcome = searched(tmp_path)
    assert trials.asked and outcome.arch == alone.arch and outcome.why == alone.why


@pytest.mark.parametrize(
    "task",
    [
        Task(train=lambda network, teacher: None),
        Task(judge=lambda network: 1.0),
        Task(score=lambda outputs, targets: outputs.mean()),
    ],
)
def test_there_are_no_trials_where_networks_are_trained_or_judged_in_another_way(
    trials: type[Fake], tmp_path: Path, task: Task
) -> None:
    searched(tmp_path, task=task)
    assert not trials.asked


def test_a_trial_takes_three_epochs_or_as_many_as_have_enough_steps() -> None:
    assert knapsack.recipe(25_000) == TRIAL and TRIAL.length == 3
    for images in (12, 128, 719, 7000):
        steps = max(1, images // TRIAL.batch)
        assert STEPS <= knapsack.recipe(images).length * steps < STEPS + steps
    weights = 719
    told = Knapsack(images=16).training_images(weights)
    assert told == 16 + 3 * weights * knapsack.recipe(weights).length


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
    monkeypatch.setattr(knapsack, "STEPS", 12)
    problem, outcome = searched(tmp_path, trials=2)
    assert "trained from scratch for 6 epochs" in outcome.why and over(problem.limits, outcome.arch) <= 1


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
