"""Evolution goes on from the archs that were judged, and judges those of a generation at the same time."""

import dataclasses
import random
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pytest
from one_in import one_in
from two_processes import die

from htas.errors import UserError
from htas.graph.arch import Arch
from htas.search.moves import over
from htas.search.oneshot import Judge
from htas.search.problem import Problem
from htas.strategies._journal import Journal
from htas.strategies._sampled import AROUND, TRIALS, _Training, near_limits, trimmed
from htas.strategies._several import DEATHS
from htas.strategies.evolution import Evolution
from htas.testing.strategy import problem

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.timeout(120)]
QUICK: Any = {"epochs": 1, "batch": 16, "precision": "fp32", "start": "random"}


def planted(given: Problem, stop: int = 0) -> tuple[Judge, list[Arch]]:
    """Accuracies that fall with the distance to a goal, and the archs asked for; interrupted at that one."""
    goal, asked = near_limits(given, random.Random(7)), list[Arch]()

    def accuracies(archs: Any) -> list[float]:
        asked.extend(archs)
        if len(asked) == stop:
            raise KeyboardInterrupt
        return [1 - sum(abs(arch[s] / goal[s] - 1) for s in goal.widths) / len(goal.widths) for arch in archs]

    return Judge(accuracies), asked


def one_after_the_other(given: Problem, judge: Judge, archs: int, population: int) -> None:
    """The evolution as Optuna describes it: a child is bred when the last one has its accuracy."""
    choices = {site: options for site, options in given.space.choices.items() if len(options) > 1}
    sampler = optuna.samplers.NSGAIISampler(population_size=population, seed=given.seed)
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    rng = random.Random(given.seed)
    for _ in range(population):
        arch = near_limits(given, rng, rng.uniform(1 - AROUND, 1.0))
        study.enqueue_trial({site: options.index(arch[site]) for site, options in choices.items()})
    for _ in range(TRIALS * archs):
        if len(judge.accuracies) >= archs:
            break
        trial = study.ask()
        picked = {site: options[0] for site, options in given.space.choices.items()}
        picked |= {site: each[trial.suggest_int(site, 0, len(each) - 1)] for site, each in choices.items()}
        arch = trimmed(given, given.space.arch(picked))
        ratio = over(given.limits, arch)
        trial.set_constraint("limits", ratio - 1 - AROUND)
        study.tell(trial, [judge([arch])[0] if ratio <= 1 + AROUND else 0.0, max(ratio, 1 - AROUND)])


@pytest.mark.parametrize("seed", [0, 1])
def test_a_generation_is_that_of_children_bred_one_after_the_other(seed: int, tmp_path: Path) -> None:
    given = dataclasses.replace(problem(tmp_path), seed=seed)
    (expected, _), (judge, _) = planted(given), planted(given)
    one_after_the_other(given, expected, 60, 12)
    Evolution(archs=60, population=12).pick(given, judge)
    assert list(judge.accuracies.items()) == list(expected.accuracies.items()) and len(expected.accuracies) == 60


@pytest.mark.parametrize("torn", one_in(2, [b'{"op_code":4,"worker', b""]))
def test_an_interrupted_evolution_judges_no_arch_again_and_ends_as_an_uninterrupted_one(
    torn: bytes, tmp_path: Path
) -> None:
    strategy = Evolution(archs=60, population=12)
    whole, parts = problem(tmp_path / "whole"), problem(tmp_path / "parts")
    expected, everything = planted(whole)
    strategy.pick(whole, expected)
    killed, before = planted(parts, stop=33)
    with pytest.raises(KeyboardInterrupt):
        strategy.pick(parts, killed)
    with parts.journal.open("ab") as file:
        file.write(torn)
    if torn:  # by a process that was killed as it wrote
        parts.journal.with_name(f"{parts.journal.name}.lock").touch()
    judge, after = planted(parts)
    strategy.pick(parts, judge)
    assert [*before[:-1], *after] == everything and len(before) == 33
    assert list(judge.accuracies.items()) == list(expected.accuracies.items())
    assert judge.seconds > 0


def test_archs_judged_by_other_weights_are_judged_again(tmp_path: Path) -> None:
    given, strategy = problem(tmp_path), Evolution(archs=10, population=5)
    counts = []
    for weights in (b"one", b"other", b"other"):
        given.checkpoint.write_bytes(weights)
        judge, asked = planted(given)
        strategy.pick(given, judge)
        counts.append(len(asked))
    assert counts == [10, 10, 0]


def again(folder: Path) -> Problem:
    """What another process makes the problem from."""
    return problem(folder)


def dying(folder: Path, deaths: int, after: int) -> Problem:
    """The same where so many processes die, each as it judges an arch after so many."""
    validate, counts = _Training.validate, iter(range(1000))

    def dies(self: _Training, archs: Any) -> list[float]:
        if next(counts) == after:
            die(folder, deaths)
        return validate(self, archs)

    _Training.validate = dies  # type: ignore[method-assign]
    return problem(folder)


def several(folder: Path, make: Any = again, *more: int) -> Problem:
    folder.mkdir(exist_ok=True)
    return dataclasses.replace(problem(folder), again=partial(make, folder, *more))


@pytest.mark.slow
def test_several_processes_come_to_what_one_does(tmp_path: Path) -> None:
    given = several(tmp_path / "two")
    one = Evolution(**QUICK, archs=12, population=5).search(several(tmp_path / "one"))
    two = Evolution(**QUICK, archs=12, population=5, workers=2).search(given)
    assert two.arch == one.arch and two.pool == one.pool and two.validate(two.pool) == one.validate(one.pool)
    study = optuna.load_study(study_name=None, storage=optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(given.journal))
    ))  # fmt: skip
    assert len(study.trials) == 12 and all(trial.state.name == "COMPLETE" for trial in study.trials)


@pytest.mark.slow
def test_a_process_that_dies_leaves_its_trial_failed_and_the_study_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = several(tmp_path / "some", dying, 1, 2)
    outcome = Evolution(**QUICK, archs=12, population=5, workers=2).search(given)
    assert len(outcome.pool) == 12
    (study,) = optuna.get_all_study_names(Journal(given.journal, "other", {}).study._storage)[:1]
    states = [trial.state.name for trial in Journal(given.journal, study, {}).study.trials]
    assert states.count("FAIL") == 1 and states.count("COMPLETE") == 12
    assert "a process that judges an arch was killed, as the system does where memory ends" in capsys.readouterr().err


@pytest.mark.slow
def test_processes_that_all_die_end_the_search(tmp_path: Path) -> None:
    given = several(tmp_path / "none", dying, 9, 0)
    with pytest.raises(UserError, match=r"an arch was killed 3 times in a row.* take fewer than strategy\.workers = 2"):
        Evolution(**QUICK, archs=12, population=5, workers=2).search(given)
    assert len(list((tmp_path / "none").glob("dead-*"))) >= DEATHS


def test_there_is_a_process_at_least() -> None:
    with pytest.raises(UserError, match=r"strategy\.workers must be 1 or more, got 0"):
        Evolution(workers=0)
