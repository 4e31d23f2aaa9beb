"""Sweeps, the search for the fastest network and the paper's tables end alike by processes: same files and numbers."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from experiments.test_trials import ENVIRONMENT, OPTIONS, without_times
from scripted_device import scripted_device

from htas import timing
from htas.cli import main
from htas.errors import UserError
from htas.experiments import budgets
from htas.experiments.at_once import Processes, Task
from htas.experiments.plans import Parallel, SweepPlan
from htas.experiments.reproduce import _tables
from htas.experiments.reproduce.plan import Plan
from htas.files import read_json, read_tensors
from htas.run.config import load

pytestmark = pytest.mark.timeout(600)  # whole runs, in processes that import PyTorch
BUDGETLESS = [option for option in OPTIONS if not option.startswith("--constraints")]
SMALL = ["--family.depth=8", "--strategy.name=random", "--strategy.archs=6"]
WORKERS = "--workers=local:2,threads=1"


def words(folder: Path, verb: str, *more: str) -> list[str]:
    (folder / "some.toml").write_text('[data]\nname = "digits"\n')
    return [verb, str(folder / "some.toml"), *BUDGETLESS, *SMALL, f"--out={folder / 'out'}", *more]


@pytest.fixture
def several(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Processes that find the scripted device."""
    monkeypatch.setenv("PYTHONPATH", ENVIRONMENT["PYTHONPATH"])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with scripted_device(patched=False):
        yield


def both(folder: Path, verb: str, *more: str) -> tuple[Path, Path]:
    """The folders of a command, by one process and by two."""
    places = []
    for name, workers in (("one", []), ("two", [WORKERS])):
        (folder / name).mkdir()
        assert main(words(folder / name, verb, *more, *workers)) == 0
        places.append(folder / name / "out")
    return places[0], places[1]


def numbers(folder: Path) -> dict[str, Any]:
    """The networks of all runs in a folder, but for what a clock reads, and their weights to the last bit."""
    places = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    content: dict[str, Any] = {}
    for name, path in sorted(places.items()):
        if re.search(r"search-.*\.json$", name):
            content[name] = {key: read_json(path)[key] for key in ("arch", "accuracy", "why")}
        elif name.endswith(("networks.json", "fastest.json")):
            content[name] = without_times({**read_json(path), "inputs": ""})
        elif re.search(r"(networks|held-out)/.*\.safetensors$", name):
            content[name] = {key: tensor.tolist() for key, tensor in read_tensors(path)[0].items()}
        elif name.endswith("result.json"):
            content[name] = without_times(read_json(path))
    return content


def apart(folder: Path) -> int:
    """Of how many processes a folder has turns, none of which computed while another one measured."""
    lines = [line for path in (folder / "logs").glob("*.jsonl") for line in path.read_text().splitlines()]
    turns = [json.loads(line) for line in lines]
    for one in [turn for turn in turns if turn["does"] == "measures"]:
        others = [turn for turn in turns if turn["process"] != one["process"]]
        assert all(other["to"] <= one["from"] or one["to"] <= other["from"] for other in others)
    return len({turn["process"] for turn in turns})


@pytest.mark.slow
@pytest.mark.usefixtures("several")
def test_a_sweep_by_processes_is_that_of_one_budget_after_the_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = both(tmp_path, "sweep", "--budgets=80%,50%")
    assert numbers(two) == numbers(one)
    assert [row["name"] for row in read_json(two / "sweep.json")["results"]] == ["base", "80%", "50%"]
    assert (two / "report.html").exists() and apart(two) == 2
    assert len(list((two / "supernets").glob("*.safetensors"))) == 1, "the searches share it"
    capsys.readouterr()
    assert main(words(tmp_path / "two", "sweep", "--budgets=80%,50%", WORKERS)) == 0
    assert "trial" not in capsys.readouterr().err and numbers(two) == numbers(one)


@pytest.mark.slow
@pytest.mark.usefixtures("several")
def test_the_fastest_network_is_found_by_processes_alike(tmp_path: Path) -> None:
    one, two = both(tmp_path, "fastest", "--accuracy-floor=-90", "--seeds=2", "--tries=1")
    assert numbers(two) == numbers(one)
    assert len(list((two / "held-out").iterdir())) == 4


@pytest.mark.slow
def test_a_budget_that_fails_is_named_and_those_that_share_its_supernet_follow_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []

    def do(self: Processes, verb: str, tasks: Any, folder: Path, before: Any) -> dict[str, str]:
        given.append(tasks)
        return {"latency-80-": "it is broken"}

    monkeypatch.setattr(Processes, "do", do)
    config = load(None, [*BUDGETLESS, "--family.depth=8", "--strategy.name=differentiable", "--strategy.epochs=2"])
    with scripted_device(patched=False), pytest.raises(UserError, match="latency-80-: it is broken"):
        budgets.sweep(config, tmp_path / "out", SweepPlan(("80%", "50%"), share=True), "htas sweep", Processes(2, 1))
    (tasks,) = given
    assert list(tasks) == ["latency-80-", "latency-50-"]
    assert tasks["latency-50-"].after == "latency-80-" and "80%, whose supernet" in tasks["latency-50-"].without


def broken(folder: Path, name: str) -> None:
    (folder / name).write_text("done")
    raise UserError("it is broken")


@pytest.mark.slow
def test_a_task_that_follows_one_that_failed_is_not_begun(tmp_path: Path) -> None:
    tasks = {
        "other": Task(broken, ("other",), "one", "one is not done"),
        "one": Task(broken, ("one",)),
    }
    reasons = Processes(2, 1).do("sweep", tasks, tmp_path, {})
    assert reasons == {"one": "it is broken", "other": "one is not done"}
    assert (tmp_path / "one").exists() and not (tmp_path / "other").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("several")
def test_tables_by_processes_are_those_of_one_training_after_the_other(tmp_path: Path, images: Path) -> None:
    entries = {}
    for name, workers in (("one", ""), ("two", "local:2,threads=1")):
        overrides = ("--target.runtime=scripted_device:Scripted", "--target.threads=1", f"--data.path={images}",
                     "--survey.store=none", "--survey.undecided=1")  # fmt: skip
        plan = Plan(tmp_path / name, length="quick", overrides=overrides, parallel=Parallel(workers))
        arms = [arm for arm in plan.arms("cifar100", 32) if arm.source]
        trained = _tables.TrainedArms.of(plan, "cifar100", 32, arms)
        rows = trained.rows(plan.place("cifar100", 32) / "latencies.json")
        assert not trained.reasons and all(row.seconds for row in rows.values())
        entries[name] = numbers(tmp_path / name)
    assert entries["one"] == entries["two"] and len(entries["one"]) > 4


@pytest.mark.parametrize("verb", ["sweep", "fastest"])
@pytest.mark.parametrize(
    ("workers", "said"),
    [
        ("locl:2", "--workers must be local:N for N processes on this machine, ray for .*, got 'locl:2'"),
        ("local:2,threads=x", "threads of --workers must be a whole number, got 'x'"),
        ("ray,cpus=2", "--workers must be local:N for N processes on this machine, ray for .*, got 'ray,cpus=2'"),
    ],
)
def test_what_cannot_be_done_at_once_is_one_sentence(
    verb: str, workers: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--accuracy-floor=-1"] if verb == "fastest" else []
    assert main(words(tmp_path, verb, *more, f"--workers={workers}")) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.search(said, error), error
    assert main(["reproduce", "table4", "--workers=4"]) == 2
    assert "--workers must be local:N" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["sweep", "fastest"])
def test_workers_on_ray_without_ray_are_one_sentence(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    for name in ("htas.timing.on_ray", "htas.experiments.on_ray"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.delattr(timing, "on_ray", raising=False)
    more = ["--accuracy-floor=-1"] if verb == "fastest" else []
    assert main(words(tmp_path, verb, *more, "--workers=ray")) == 2
    assert "--workers=ray needs Ray, which is not installed" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()
