"""Trials on a Ray cluster of two nodes on this machine end as those of a sequential comparison."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from experiments.test_at_once import apart, numbers
from experiments.test_trials import ARMS, ENVIRONMENT, OPTIONS, ended, sequential, words  # noqa: F401, a fixture
from scripted_device import HOLD, scripted_device

from htas.errors import UserError
from htas.experiments import arm_tables, budgets, compare
from htas.experiments.arms import arm_of
from htas.experiments.plans import FastestPlan, SweepPlan
from htas.experiments.trials import ClusterWorkers
from htas.files import read_json
from htas.run.config import Config, load

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'htas[ray]'")
engine = pytest.importorskip("htas.timing.on_ray")
tasks = pytest.importorskip("htas.experiments.on_ray")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.filterwarnings("ignore")]  # of Ray's own


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A head without processors, and two nodes of one: the device and another."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        for name in ("PYTHONPATH", "OMP_NUM_THREADS"):
            patch.setenv(name, ENVIRONMENT[name])
        patch.setenv(HOLD, str(tmp_path_factory.mktemp("hold") / "hold"))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        made.add_node(num_cpus=1, resources={"htas_device": 1})
        made.add_node(num_cpus=1, resources={"other": 1})
        yield made
        ray.shutdown()
        made.shutdown()


def trials_in(folder: Path, arms: str = ARMS, seeds: int = 2, *more: str) -> Any:
    given = words(folder, arms=arms)
    tables = arm_tables.read_arms(Path(given[2]))
    return compare.Trials(Path(given[1]), (*OPTIONS, *more), tuple(map(arm_of, tables)), seeds, folder / "out")


def test_nodes_come_to_the_same_as_one_after_the_other(cluster: Any, sequential: Path, tmp_path: Path) -> None:  # noqa: F811
    command = [sys.executable, "-m", "htas", *words(tmp_path, f"--workers={cluster.address}")]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert ended(tmp_path / "out") == ended(sequential)
    logs = tmp_path / "out" / "logs"
    turns = [json.loads(line) for path in logs.glob("*.jsonl") for line in path.read_text().splitlines()]
    measured = [turn for turn in turns if turn["does"] == "measures"]
    assert measured and len({turn["process"] for turn in turns if turn["does"] == "computes"}) > 1
    for one in measured:
        others = [turn for turn in turns if turn is not one and turn["process"] != one["process"]]
        assert all(other["to"] <= one["from"] or one["to"] <= other["from"] for other in others)
    whole = [lasted(path) for path in logs.glob("*-?.jsonl")]
    assert len(whole) == 6
    at_once = [sum(start <= begun < end for start, end in whole) for begun, _ in whole]
    assert max(at_once) <= 2, "one that waits for a reading keeps its processor"


def lasted(log: Path) -> tuple[float, float]:
    """When a trial began and ended."""
    turns = [json.loads(line) for line in log.read_text().splitlines()]
    return min(turn["from"] for turn in turns), max(turn["to"] for turn in turns)


class Unshared(tasks.RayTasks):  # type: ignore[misc,name-defined]
    """Nodes that do not see the folder of the driver."""

    def job(self, folder: Path) -> Any:
        return replace(super().job(folder), token="of another disk")


def test_nodes_that_share_no_disk_send_what_they_made(cluster: Any, sequential: Path, tmp_path: Path) -> None:  # noqa: F811
    compare.compare(trials_in(tmp_path), workers=ClusterWorkers(Unshared(cluster.address)))
    found, expected = ended(tmp_path / "out"), ended(sequential)
    assert {name: value for name, value in found.items() if name in expected} == expected


def test_a_trial_whose_node_dies_goes_on_elsewhere(cluster: Any, sequential: Path, tmp_path: Path) -> None:  # noqa: F811
    node = next(each for each in cluster.worker_nodes if "other" in (each._ray_params.resources or {}))
    logs = tmp_path / "out" / "logs"
    where: list[str] = []

    def kill() -> None:
        while not any(path.stat().st_size for path in logs.glob("*.log")):
            time.sleep(0.1)
        time.sleep(1.0)
        where.extend(path.name for path in logs.glob("*.log"))
        cluster.remove_node(node, allow_graceful=False)

    killer = Thread(target=kill)
    killer.start()
    compare.compare(trials_in(tmp_path), workers=ClusterWorkers(tasks.RayTasks(cluster.address)))
    killer.join()
    cluster.add_node(num_cpus=1, resources={"other": 1})
    assert where and ended(tmp_path / "out") == ended(sequential)
    assert len(json.loads((tmp_path / "out" / "compare.json").read_text())["arms"]) == 6


@pytest.mark.parametrize("meanwhile", ["surveys", "reads finalists", "reads all networks"])
def test_the_next_device_reads_again_what_the_last_one_was_at_when_it_died(
    meanwhile: str,
    cluster: Any,
    sequential: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    node = next(each for each in cluster.worker_nodes if engine.DEVICE in (each._ray_params.resources or {}))
    out, hold = tmp_path / "out", Path(os.environ[HOLD])
    ready = {
        "surveys": lambda: True,
        "reads finalists": lambda: any(out.glob("logs/found-*.log")),
        "reads all networks": lambda: len(list(out.glob("*/result.json"))) == 6,
    }[meanwhile]
    command = [sys.executable, "-m", "htas", *words(tmp_path, f"--workers={cluster.address}")]
    with (tmp_path / "printed").open("w") as printed:
        done = subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, stdout=printed, stderr=printed)
        until(ready)
        hold.touch()
        try:
            until(hold.with_suffix(".reached").exists)
            cluster.remove_node(node, allow_graceful=False)
        finally:
            hold.unlink()
            hold.with_suffix(".reached").unlink(missing_ok=True)
        cluster.add_node(num_cpus=1, resources={engine.DEVICE: 1})  # which only a main thread can
        assert done.wait(timeout=400) == 0, (tmp_path / "printed").read_text()[-3000:]
    assert ended(out) == ended(sequential)
    assert len(json.loads((out / "compare.json").read_text())["arms"]) == 6


def until(reached: Callable[[], bool]) -> None:
    """Wait for it; raises TimeoutError in place of waiting for ever."""
    end = time.monotonic() + 300
    while not reached():
        if time.monotonic() > end:
            raise TimeoutError("what a test waits for does not come")
        time.sleep(0.005)


class Elsewhere(tasks.RayTasks):  # type: ignore[misc,name-defined]
    """A driver with another PyTorch."""

    def job(self, folder: Path) -> Any:
        job = super().job(folder)
        return replace(job, versions={**job.versions, "torch": "1.0"})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"gpus": 1.0}, "no node of the Ray cluster has 1 CPU, 1 GPU, which each trial asks for; ask for less"),
        ({"cpus": 64}, "no node of the Ray cluster has 64 CPU, which each trial asks for"),
    ],
)
def test_what_no_node_has_is_one_sentence(
    options: Mapping[str, Any], said: str, cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "PATIENCE", 2.0)
    with pytest.raises(UserError, match=said):
        compare.compare(
            trials_in(tmp_path, seeds=1), workers=ClusterWorkers(tasks.RayTasks(cluster.address, **options))
        )


def test_nodes_of_other_versions_are_refused(cluster: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the node \S+ has torch 2\S+, and this command torch 1.0; install the same"):
        compare.compare(trials_in(tmp_path, seeds=1), workers=ClusterWorkers(Elsewhere(cluster.address)))


def test_a_cluster_without_the_device_or_an_address_without_a_cluster_is_one_sentence(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "PATIENCE", 2.0)
    monkeypatch.setattr(engine, "DEVICE", "board")
    with pytest.raises(UserError, match="no node of the Ray cluster is the device that is measured: start Ray there"):
        compare.compare(trials_in(tmp_path, seeds=1), workers=ClusterWorkers(tasks.RayTasks(cluster.address)))
    with pytest.raises(UserError, match="no node of the Ray cluster is the device that is measured: start Ray there"):
        budgets.sweep(config_of(), tmp_path / "out", BUDGETS, "htas sweep", tasks.RayTasks(cluster.address))
    with pytest.raises(UserError, match=r"no Ray cluster answers at 127.0.0.1:9 \(.*refused\); start one there"):
        compare.compare(trials_in(tmp_path, seeds=1), workers=ClusterWorkers(tasks.RayTasks("127.0.0.1:9")))


def test_a_fault_of_ones_own_is_named_and_leaves_the_others(cluster: Any, tmp_path: Path) -> None:
    arms = '[found]\n["no such"]\nstrategy.name = "mine:Search"\n["plain 8"]\nnetwork = "cifar_resnet:8"\n'
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\nfrom htas.strategies import Strategy\n\n\n@dataclass(frozen=True)\n"
        "class Search(Strategy):\n    def search(self, problem):\n        raise KeyError('of mine')\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        options = [each for each in OPTIONS if not each.startswith("--strategy")]
        given = replace(trials_in(tmp_path, arms, 1), overrides=tuple(options))
        compare.compare(given, workers=ClusterWorkers(tasks.RayTasks(cluster.address)))
    done = json.loads((tmp_path / "out" / "compare.json").read_text())["arms"]
    assert {each["arm"] for each in done} == {"found", "plain 8"}
    assert "KeyError" in (tmp_path / "out" / "logs" / "no-such-0.log").read_text()
    assert os.path.exists(tmp_path / "out" / "compare.html")


# -- budgets -----------------------------------------------------------------------------------------------------------


def config_of(*more: str) -> Config:
    """Searches of which nothing is measured before the end."""
    options = [*BUDGETLESS, "--family.depth=8", "--strategy.name=most", "--calibrate.networks=6", *more]
    return load(None, ["--data.name=digits", *(each for each in options if not each.startswith(SUPERNET))])


BUDGETLESS = [option for option in OPTIONS if not option.startswith("--constraints")]
SUPERNET = ("--strategy.epochs", "--strategy.batch", "--strategy.precision")
BUDGETS = SweepPlan(("80%", "50%", "30%"))
FLOOR = FastestPlan("-90", seeds=2, tries=1)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One budget after the other."""
    folder = tmp_path_factory.mktemp("swept")
    with scripted_device(patched=False):
        budgets.sweep(config_of(), folder, BUDGETS, "htas sweep")
    return folder


def test_a_sweep_on_nodes_is_that_of_one_budget_after_the_other(cluster: Any, swept: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    budgets.sweep(config_of(), out, BUDGETS, "htas sweep", tasks.RayTasks(cluster.address))
    assert numbers(out) == numbers(swept) and (out / "report.html").exists()
    assert [row["name"] for row in read_json(out / "sweep.json")["results"]] == ["base", *BUDGETS.budgets]
    assert apart(out) > 1
    before = {path: path.read_bytes() for path in out.rglob("sweep.json")}
    budgets.sweep(config_of(), out, BUDGETS, "htas sweep", tasks.RayTasks(cluster.address))
    assert all(path.read_bytes() == content for path, content in before.items()), "nothing is measured again"


def test_a_sweep_on_nodes_that_share_no_disk_and_one_that_dies(cluster: Any, swept: Path, tmp_path: Path) -> None:
    node = next(each for each in cluster.worker_nodes if "other" in (each._ray_params.resources or {}))
    out, place, logs = tmp_path / "out", Path(tempfile.gettempdir()), "htas-*/logs/latency-*.log"
    before = set(place.glob(logs))

    def kill() -> None:
        until(lambda: any(path.stat().st_size for path in set(place.glob(logs)) - before))
        cluster.remove_node(node, allow_graceful=False)

    killer = Thread(target=kill)
    killer.start()
    budgets.sweep(config_of(), out, BUDGETS, "htas sweep", Unshared(cluster.address))
    killer.join()
    cluster.add_node(num_cpus=1, resources={"other": 1})
    assert numbers(out) == numbers(swept)


def test_the_fastest_network_is_found_on_nodes_alike(cluster: Any, tmp_path: Path) -> None:
    with scripted_device(patched=False):
        budgets.fastest(config_of(), tmp_path / "one", FLOOR, "htas fastest")
    for name, workers in (("two", tasks.RayTasks(cluster.address)), ("three", Unshared(cluster.address))):
        page, lines = budgets.fastest(config_of(), tmp_path / name, FLOOR, "htas fastest", workers)
        assert page.exists() and lines.after
        assert numbers(tmp_path / name) == numbers(tmp_path / "one")
