"""Processes that do pieces of a search at the same time: the blocks of a network, above all."""

import dataclasses
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from two_processes import die

from htas.console.progress import Bar
from htas.data.split import Data, Split
from htas.data.task import Task
from htas.errors import UserError
from htas.files import read_json
from htas.run import run
from htas.run import stages as pipeline
from htas.run.config import load
from htas.run.user import UserData
from htas.search.blockwise import BlockErrors
from htas.search.problem import Problem
from htas.strategies._several import DEATHS, Work, processes
from htas.strategies.blockwise import Blockwise
from htas.testing.strategy import SHAPE, problem, split

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.timeout(300)]
ROOT = Path(__file__).parents[2]
QUICK = Blockwise(epochs=1, images=32, batch=16, judged=16, cells=4)


def again(folder: Path, deaths: int = 0) -> Problem:
    """What another process makes the problem from; so many die there, each as it begins a block."""
    learn = BlockErrors.learn

    def dies(self: BlockErrors, *arguments: object) -> list[float]:
        die(folder, deaths)
        return learn(self, *arguments)  # type: ignore[arg-type]

    BlockErrors.learn = dies  # type: ignore[method-assign]
    return problem(folder)


def several(folder: Path, deaths: int = 0) -> Problem:
    folder.mkdir(exist_ok=True)
    return dataclasses.replace(problem(folder), again=partial(again, folder, deaths))


def errors(given: Problem) -> dict[str, list[float]]:
    content: dict[str, list[float]] = read_json(given.checkpoint.with_suffix(".json"))["errors"]
    return content


@pytest.mark.slow
def test_blocks_taught_by_several_processes_are_those_of_one_whoever_dies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, died = several(tmp_path / "one"), several(tmp_path / "two"), several(tmp_path / "died", 1)
    expected = QUICK.search(one)
    monkeypatch.setattr(BlockErrors, "learn", None)  # nothing is left for this process
    for given in (two, died):
        outcome = dataclasses.replace(QUICK, workers=2).search(given)
        assert outcome.arch == expected.arch and errors(given) == errors(one)
        assert outcome.worth(given.space.narrowest) == expected.worth(given.space.narrowest)
        assert read_json(given.checkpoint.with_suffix(".json"))["seconds"] > 0
    assert len(errors(one)) == 10
    assert capsys.readouterr().err.count("a process that teaches a block was killed, as the system does") == 1


@pytest.mark.slow
def test_blocks_that_are_taught_are_not_taught_again_by_more_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, parts = several(tmp_path / "one"), several(tmp_path / "parts", 9)
    expected, taught = QUICK.search(one), list[int]()
    errors_of = BlockErrors.errors_of

    def interrupted(self: BlockErrors, number: int) -> list[float]:
        if len(taught) == 8:
            raise KeyboardInterrupt
        taught.append(number)
        return errors_of(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(BlockErrors, "errors_of", interrupted)
        with pytest.raises(KeyboardInterrupt):
            QUICK.search(parts)
    with pytest.raises(UserError, match=r"teaches a block was killed 3 times in a row.* strategy\.workers = 2, and"):
        dataclasses.replace(QUICK, workers=2).search(parts)
    assert len(errors(parts)) == 8 and DEATHS <= len(list((tmp_path / "parts").glob("dead-*"))) <= DEATHS + 1
    outcome = dataclasses.replace(QUICK, workers=2).search(dataclasses.replace(parts, again=one.again))
    assert outcome.arch == expected.arch and errors(parts) == errors(one)


def taught_elsewhere(folder: Path) -> Problem:
    """What a node makes the problem from."""
    assert (folder / "config.toml").read_text() == "of the run"
    return problem(folder)


@pytest.mark.slow
def test_blocks_on_the_nodes_of_a_cluster_are_those_of_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'htas[ray]'")
    from htas.timing import on_ray

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (ROOT, ROOT / "tests"))))
    one = problem(tmp_path / "one" / "checkpoints")
    expected, job_in = QUICK.search(one), on_ray.job_in
    monkeypatch.setattr(BlockErrors, "learn", None)  # nothing is left for this process
    for name, token in (("shared", ""), ("apart", "of another disk")):
        monkeypatch.setattr(
            on_ray, "job_in",
            lambda *words, token=token: dataclasses.replace(job_in(*words), **({"token": token} if token else {})),
        )  # fmt: skip
        given = dataclasses.replace(
            problem(tmp_path / name / "checkpoints"), again=taught_elsewhere, anywhere=taught_elsewhere
        )
        given.checkpoint.parent.mkdir(parents=True)
        (given.folder / "config.toml").write_text("of the run")
        outcome = dataclasses.replace(QUICK, workers="ray").search(given)
        assert outcome.arch == expected.arch and errors(given) == errors(one) and len(errors(one)) == 10


@pytest.mark.parametrize(
    ("workers", "said"),
    [
        (0, "strategy.workers must be 1 or more, got 0"),
        ("rays", r"strategy.workers must be N or local:N .*, ray for a Ray cluster .*, got 'rays'"),
        ("local:2,threads=1", "strategy.workers: processes share the threads of the search, got 'local:2,threads=1'"),
        ("ray,gpus=x", "gpus of strategy.workers must be 0, .*got 'x'"),
    ],
)
def test_workers_that_are_none_are_one_sentence(workers: int | str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        Blockwise(workers=workers)
    assert Blockwise(workers="local:3").processes == 3


def refusing(kind: str) -> Callable[[int], int]:
    """What does a piece, and fails."""

    class Own(Exception):
        """It cannot be sent."""

        def __init__(self, one: str, two: str) -> None:
            super().__init__(one + two)

    def fails(piece: int) -> int:
        raise {"user": UserError("too high a rate"), "own": Own("its", " words"), "fault": KeyError("x")}[kind]

    return fails


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind, error, words",
    [("user", UserError, "too high a rate"), ("own", RuntimeError, "Own: its words"), ("fault", KeyError, "x")],
)
def test_what_fails_in_a_process_fails_here(kind: str, error: type[Exception], words: str) -> None:
    work = Work(partial(refusing, kind), "search", "does it")
    with pytest.raises(error, match=words), processes(work, 1) as some:
        list(some.do([1, 2], Bar("search", 2)))


class Pieces:
    """In a process: whether its images are in memory that processes have in common, and their sum."""

    def __init__(self, data: Data) -> None:
        self.data = data

    def __call__(self) -> Callable[[int], tuple[bool, int]]:
        train = self.data.train
        assert isinstance(train, Split)
        return lambda _: (train.images.is_shared(), int(train.images.sum()))


@pytest.mark.slow
def test_processes_have_the_images_in_common() -> None:
    data = Data(2, (SHAPE,), split(32, 0), split(16, 1), split(16, 2), split(16, 3))
    assert isinstance(data.train, Split)
    total = int(data.train.images.sum())
    with processes(Work(Pieces(data), "search", "adds"), 2) as some:
        assert dict(some.do([0, 1], Bar("search", 2))) == {0: (True, total), 1: (True, total)}
    assert data.train.images.is_shared()


def test_only_plain_images_that_fit_are_had_in_common(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = Data(2, (SHAPE,), split(32, 0), split(16, 1), split(16, 2), split(16, 3))
    assert data.plain_bytes == (32 + 3 * 16) * (3 * 8 * 8 + 8)
    assert not dataclasses.replace(data, task=Task(score=lambda outputs, targets: torch.tensor(1.0))).plain_bytes
    given = run.Run(load(None, ["--data.name=digits", "--split.limit=40"]), tmp_path)
    assert list(given.in_memory.data.values()) == [given.data]
    assert run.Run(given.config, tmp_path, None, given.in_memory).data is given.data
    monkeypatch.setattr(run, "disk_usage", lambda place: Usage(free=1000))
    monkeypatch.setattr(run, "SHARED", tmp_path)
    assert not given.in_memory.data


@dataclasses.dataclass
class Usage:
    free: int


@pytest.mark.parametrize("name", ["evolution", "blockwise"])
def test_a_network_that_only_this_process_has_is_searched_by_one(name: str, tmp_path: Path) -> None:
    config = load(None, [f"--strategy.name={name}", "--strategy.workers=2", "--constraints.latency=50%"])
    here = dataclasses.replace(config, data=UserData("key", (1, 1)))
    assert run.Run(config, tmp_path).elsewhere
    with pytest.raises(UserError, match=r"strategy\.workers = 2 needs a network and data that other processes can"):
        pipeline.begin(run.Run(here, tmp_path), "htas run")
