"""The queue of trainings: each unit once, in its order, from its last epoch on, and with one teacher for all."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor, nn

from htas import datasets
from htas.data.split import Data, Images
from htas.datasets import Dataset
from htas.errors import UserError
from htas.experiments.at_once import Processes
from htas.files import digest, read_json, read_tensors, to_json, write_tensors
from htas.run.plan import GAINS

ROOT = Path(__file__).parents[1] / "benchmarks" / "evidence"
QUEUE = """
[group.tiny]
title = "Tiny."
dataset = "tiny"
base = 8
recipe = "short"
train = { epochs = 3, batch = 16, lr = 0.05, precision = "fp32" }
archs = ["archs.json"]

[group.tiny.arms]
base = { teacher = "" }
"plain, again" = { network = "cifar_resnet:8", held_out = 32 }

[[round]]
group = "tiny"
arms = ["half", "base", "plain, again"]
seeds = [0]
[[round]]
group = "tiny"
arms = ["base"]
seeds = [0, 1]
"""
SMALL = """
[group.small]
title = "Small."
dataset = "cifar10"
base = 8
recipe = "short"
train = { epochs = 30, batch = 16, lr = 0.05, precision = "fp32" }

[group.small.arms]
base = { teacher = "" }
again = { network = "cifar_resnet:8" }

[[round]]
group = "small"
arms = ["again", "base"]
seeds = [0, 1]
"""


def loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"evidence_{name}", ROOT / f"{name}.py")
    assert spec and spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


evidence, table = loaded("evidence"), loaded("table")

pytestmark = pytest.mark.usefixtures("one_thread")


class Tiny(Dataset):
    """Two classes of noise, bright and dark."""

    classes, shapes, mean, std, flip, crop = 2, ((3, 32, 32),), (0.5,) * 3, (0.3,) * 3, True, 4  # type: ignore[assignment]

    def __init__(self, path: str = "") -> None:
        pass

    def read(self, part: str) -> Images:
        labels = torch.arange(64) % 2
        noise = torch.randint(100, (64, 3, 32, 32), generator=torch.Generator().manual_seed(len(part)))
        return Images((noise + 100 * labels.view(-1, 1, 1, 1)).to(torch.uint8), labels)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def images(dataset: str, folder: Path, held_out: int, device: str) -> Data:
        return datasets.load(Tiny(), device=device, validation=(held_out or 32) / 64, seed=0)

    monkeypatch.setattr(evidence, "DATASETS", {"tiny": Tiny})
    monkeypatch.setattr(evidence, "images", images)
    (tmp_path / "queue.toml").write_text(QUEUE)
    base = to_json(evidence.traced(8, "tiny").base)
    half = {"widths": {site: width // 2 for site, width in base["widths"].items()}, "depths": base["depths"]}
    (tmp_path / "archs.json").write_text(json.dumps({"format": 1, "archs": {"half": half}}))
    return evidence.Place(tmp_path / "data", tmp_path / "out", tmp_path / "results", tmp_path / "pause")


def done(place: Any) -> list[str]:
    return sorted((path.stem for path in place.results.glob("*.json")), key=lambda name: read_json(
        place.result(name))["date"])  # fmt: skip


def work(place: Any, only: str = "*") -> bool:
    result: bool = evidence.work(place.out.parent / "queue.toml", place, only)
    return result


def test_one_network_may_teach_all_seeds(place, tmp_path):
    queue = QUEUE.replace("base = 8\n", "base = 8\nteacher_seed = 0\n").replace("seeds = [0]", "seeds = [0, 1]")
    (tmp_path / "queue.toml").write_text(queue)
    shared = {unit.name: unit for unit in evidence.units(tmp_path / "queue.toml")}
    (tmp_path / "queue.toml").write_text(queue.replace("teacher_seed = 0\n", ""))
    own = {unit.name: unit for unit in evidence.units(tmp_path / "queue.toml")}
    assert shared["tiny-half-s1"].teaching == shared["tiny-half-s0"].teaching == "tiny-base-s0"
    assert own["tiny-half-s1"].teaching == "tiny-base-s1" and shared["tiny-base-s1"].teaching == ""
    assert shared["tiny-half-s1"].key != own["tiny-half-s1"].key, "a result of the one is none of the other"
    assert shared["tiny-base-s1"].key == own["tiny-base-s1"].key


def test_units_are_trained_in_order_once_and_students_after_their_teacher(place):
    listed = evidence.units(place.out.parent / "queue.toml")
    assert [unit.name for unit in listed] == ["tiny-half-s0", "tiny-base-s0", "tiny-plain-again-s0", "tiny-base-s1"]
    known = {unit.name: unit for unit in listed}
    assert evidence.state(listed[0], known, place) == "waits for the weights of tiny-base-s0"
    for wanted in ("tiny-base-s0", "tiny-half-s0", "tiny-plain-again-s0", "tiny-base-s1"):
        before = set(place.results.glob("*"))
        assert work(place)
        assert {path.stem for path in set(place.results.glob("*")) - before} == {wanted}
    assert not work(place)
    base, half, plain = (read_json(place.result(unit)) for unit in ("tiny-base-s0", "tiny-half-s0",
                                                                      "tiny-plain-again-s0"))  # fmt: skip
    assert (base["teacher"], half["teacher"], plain["teacher"]) == ("", "tiny-base-s0", "tiny-base-s0")
    assert base["distill"] is None and half["distill"] == {"alpha": 0.9, "temperature": 4.0}
    assert half["macs"] < base["macs"] == plain["macs"] and half["params"] < base["params"] == plain["params"]
    assert (base["judged_on"], plain["judged_on"]) == ("64 test images", "32 training images held out")
    assert (base["trained_on"], plain["trained_on"]) == (64, 32)
    assert [epoch for epoch, _, _ in base["epochs"]] == [1, 2, 3] and base["recipe"]["epochs"] == 3
    assert all(each["accuracy"] > 0.8 for each in (base, half, plain)), "bright and dark are told apart"
    assert str(place.data) not in place.result("tiny-base-s0").read_text(), "a result says nothing of folders"
    assert not list((place.out / "checkpoints").glob("*"))


def test_a_student_learns_from_weights_that_came_with_the_results(place):
    assert work(place, "tiny-base-s0") and work(place, "tiny-half-s0")
    name, result = "tiny-base-s0", read_json(place.result("tiny-half-s0"))
    kept = place.results.parent / "teachers" / f"{name}.safetensors"
    kept.parent.mkdir()
    shutil.copy(place.weights(name), kept)
    assert result["teacher_weights"] == digest(kept)
    place.result("tiny-half-s0").unlink()
    shutil.rmtree(place.out)
    assert work(place, "tiny-half-s0")
    same = "accuracy", "epochs", "teacher_weights"
    again = read_json(place.result("tiny-half-s0"))
    assert [again[key] for key in same] == [result[key] for key in same]
    assert read_json(place.result(name))["teacher_weights"] == ""


def test_weights_of_another_recipe_teach_nobody(place):
    assert work(place, "tiny-base-s0")
    kept = place.results.parent / "teachers" / "tiny-base-s0.safetensors"
    write_tensors(kept, read_tensors(place.weights("tiny-base-s0"))[0], {"inputs": "other"})
    place.weights("tiny-base-s0").unlink()
    with pytest.raises(ValueError, match=r"teachers/tiny-base-s0.safetensors is of another recipe .*; delete it"):
        work(place, "tiny-half-s0")


class InTurn(Processes):
    """Does tasks in this process, which has the tiny data set."""

    def do(self, verb: str, tasks: Any, folder: Path, before: Any) -> dict[str, str]:
        waiting, reasons = dict(tasks), dict(before)
        while waiting:
            name = next(each for each, task in waiting.items() if task.after not in waiting)
            task = waiting.pop(name)
            task.work(folder, *task.arguments)
        return reasons


@pytest.mark.slow
def test_units_of_workers_follow_their_teachers_and_come_to_the_same(place):
    queue = place.out.parent / "queue.toml"
    while work(place):
        pass
    same = {name: read_json(place.result(name))["accuracy"] for name in done(place)}
    there = replace(place, out=place.out / "again", results=place.results / "again")
    with evidence.locked(there.out / "locks" / "tiny-base-s1.lock"):
        assert evidence.all_at_once(queue, there, "*", InTurn(2)) == {}
    first = min(there.results.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    assert first.stem == "tiny-base-s0"
    assert evidence.all_at_once(queue, there, "*", InTurn(2)) == {}
    assert {name: read_json(there.result(name))["accuracy"] for name in done(there)} == same and len(same) == 4
    with pytest.raises(UserError, match="again is not there; name a folder that all nodes share with --out"):
        evidence.one_of(place.out, queue, there, "tiny-base-s0")


def test_workers_that_are_none_are_one_sentence(place, capsys):
    assert evidence.by_workers("4", place.out.parent / "queue.toml", place, "*") == 2
    assert "--workers must be local:N for N processes on this machine" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("workers", ["local:2", "ray"])
def test_a_queue_by_processes_is_trained_and_a_signal_leaves_nothing(workers, images, tmp_path):
    if workers == "ray":
        pytest.importorskip("ray", reason="Ray is not installed: pip install 'htas[ray]'")
    (tmp_path / "queue.toml").write_text(SMALL)
    words = ["--data", str(images), "--queue", str(tmp_path / "queue.toml"), "--out", str(tmp_path / "out")]
    words += ["--results", str(tmp_path / "results"), f"--workers={workers}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT.parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "evidence.py"), *words]
    with (tmp_path / "printed").open("w") as printed:
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=printed, stderr=printed)
        while not any((tmp_path / "out").glob("checkpoints/*.safetensors")):
            assert process.poll() is None, (tmp_path / "printed").read_text()
            time.sleep(0.1)
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0, (tmp_path / "printed").read_text()
    assert len(children) >= 2 and not psutil.wait_procs(children, timeout=30)[1]
    text = (tmp_path / "printed").read_text()
    assert "stopped; the same command goes on" in text and "Traceback" not in text
    again = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    assert again.returncode == 0 and "nothing is left to do here" in again.stdout, again.stderr
    names = {path.stem for path in (tmp_path / "results").glob("*.json")}
    assert names == {f"small-{arm}-s{seed}" for arm in ("base", "again") for seed in (0, 1)}


def test_an_arm_that_is_nowhere_is_named(place):
    queue = place.out.parent / "queue.toml"
    queue.write_text(QUEUE.replace('"half"', '"halves"'))
    with pytest.raises(ValueError, match=r"group tiny has no arch halves for its arm halves in archs.json"):
        evidence.units(queue)


def test_a_signal_stops_after_the_epoch_and_the_next_command_goes_on_to_the_same_weights(place, monkeypatch):
    assert work(place, "*-base-s0")
    whole, _ = read_tensors(place.weights("tiny-base-s0"))
    wanted = read_json(place.result("tiny-base-s0"))
    place.result("tiny-base-s0").unlink()
    original, steps = evidence.Place.wait, iter(range(100))

    def wait(self: Any) -> None:
        if next(steps) == 5:
            self.signals.append(15)
        original(self)

    monkeypatch.setattr(evidence.Place, "wait", wait)
    with pytest.raises(evidence.Interruption):
        work(place, "*-base-s0")
    assert not place.result("tiny-base-s0").exists() and next(steps) == 8, "two epochs of four steps"
    place.signals.clear()
    assert work(place, "*-base-s0")
    parts, _ = read_tensors(place.weights("tiny-base-s0"))
    assert all(torch.equal(parts[name], tensor) for name, tensor in whole.items())
    again = read_json(place.result("tiny-base-s0"))
    assert again["epochs"] == wanted["epochs"] and again["accuracy"] == wanted["accuracy"]


def test_a_second_signal_stops_at_once(place):
    place.signals.extend([15, 15])
    with pytest.raises(evidence.Interruption):
        work(place, "*-base-s0")


def test_nothing_is_computed_while_there_is_a_pause(place, monkeypatch):
    naps = []

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 3:
            place.pause.unlink()

    monkeypatch.setattr(evidence.time, "sleep", sleep)
    place.pause.touch()
    assert work(place, "*-base-s0") and len(naps) == 3
    place.pause.touch()
    place.signals.append(15)
    with pytest.raises(evidence.Interruption):
        place.wait()


def test_a_unit_that_another_command_works_on_is_passed_over(place):
    with evidence.locked(place.out / "locks" / "tiny-base-s0.lock") as mine:
        assert mine
        assert not work(place, "*-s0"), "the others wait for their teacher"
    assert work(place, "*-s0")


def test_a_result_of_another_recipe_is_not_taken_for_this_one(place):
    assert work(place, "*-base-s0")
    queue = place.out.parent / "queue.toml"
    queue.write_text(QUEUE.replace("lr = 0.05", "lr = 0.06"))
    with pytest.raises(ValueError, match=r"tiny-base-s0.json is of another recipe or network than the queue's"):
        work(place)


def test_a_training_that_diverges_has_a_result_that_says_so(place):
    (place.out.parent / "queue.toml").write_text(QUEUE.replace("lr = 0.05", "lr = 1e30"))
    assert work(place, "*-base-s0")
    result = read_json(place.result("tiny-base-s0"))
    assert result["failed"] == "diverged" and result["accuracy"] is None and result["epochs"] == []


class Counted(nn.Module):
    """Logits that are sums of pixels; it counts how often it is asked."""

    calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        return torch.stack([images.sum((1, 2, 3)), images[:, 0].mean((1, 2))], 1).to(torch.bfloat16)


def test_a_teacher_answers_from_its_file_what_it_was_asked_before_to_the_last_bit(tmp_path):
    torch.manual_seed(0)
    asked = [torch.randn(4, 3, 8, 8).contiguous(memory_format=torch.channels_last) for _ in range(3)]
    network, path = Counted(), tmp_path / "answers" / "teacher.bin"
    first = evidence.Remembering(network, path)
    wanted = [first(images) for images in asked]
    assert network.calls == 3
    assert torch.equal(first(asked[1]), wanted[1]) and network.calls == 3
    second = evidence.Remembering(network, path)
    found = [second(images) for images in reversed(asked)]
    assert network.calls == 4, "its form is known from the first answer"
    assert all(torch.equal(one, two) for one, two in zip(found, reversed(wanted), strict=True))
    assert path.stat().st_size == 3 * (8 + 4 * 2 * 2)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 3)
    third = evidence.Remembering(network, path)
    assert [torch.equal(third(images), want) for images, want in zip(asked, wanted, strict=True)] == [True] * 3
    assert network.calls == 6, "the record that was cut off is asked for again"
    assert torch.equal(third(asked[0][:2]), wanted[0][:2]) and path.stat().st_size == 3 * (8 + 4 * 2 * 2)


def test_every_unit_of_the_queue_has_a_teacher_there_and_an_arch_that_fits():
    listed = evidence.units(ROOT / "queue.toml")
    names = {unit.name for unit in listed}
    for unit in listed:
        assert not unit.teacher or unit.teaching in names
        if unit.arch is not None:
            evidence.traced(unit.base, unit.dataset).check(unit.arch)


def test_results_are_of_the_queue_and_the_readme_has_their_table():
    known = {unit.name: unit for unit in evidence.units(ROOT / "queue.toml")}
    results = [read_json(path) for path in sorted((ROOT / "results").glob("*.json"))]
    assert all(known[result["name"]].key == result["inputs"] for result in results)
    text = (ROOT / "README.md").read_text()
    made = table.tables(results, tomllib.loads((ROOT / "queue.toml").read_text()), ROOT)
    assert text.partition(table.BEGIN)[2].partition(table.END)[0].strip() == made.strip()


@pytest.mark.parametrize(("budget", "rival"), [(50, "uniform, 50 %"), (35, "plain ResNet-8")])
def test_what_a_plan_says_of_the_usual_search_is_what_the_results_say(budget: int, rival: str) -> None:
    accuracies: dict[str, dict[int, float]] = {f"knapsack, {budget} %": {}, rival: {}}
    for path in (ROOT / "results").glob("cifar10-resnet20-*.json"):
        result = read_json(path)
        if result["arm"] in accuracies:
            accuracies[result["arm"]][result["seed"]] = 100 * result["accuracy"]
    seeds = set.intersection(*(set(each) for each in accuracies.values()))
    found, other = (sum(each[seed] for seed in seeds) / len(seeds) for each in accuracies.values())
    words = GAINS["knapsack"]
    assert f"is {found - other:.1f} points above" in words
    number = {1: "one seed", 2: "two seeds", 3: "three seeds"}[len(seeds)]
    assert f"({found:.1f} and {other:.1f} %, {number})" in words


@pytest.mark.parametrize(
    ("gains", "ratio", "met"),
    [
        ((0.5, 0.7, 0.6), 1.0, "yes"),  # better by more than half a point, at one latency
        ((0.5, 0.7, 0.6), 1.02, "no"),  # but slower
        ((-2.0, 2.5, 1.2), 1.0, "no"),  # better by chance
        ((-0.2, -0.3, -0.1), 0.95, "yes"),  # faster, and as good
        ((-0.4, -0.5, -0.3), 0.95, "no"),  # faster, and worse
    ],
)
def test_measured_widths_are_held_against_those_of_a_grid(gains, ratio, met, tmp_path):
    """By hand: the ratio is the latency of the arm over that of the grid's network."""
    arms, results, over_base = ("knapsack, 50 %", "knapsack in grid, 50 %"), [], {}
    for seed, gain in enumerate(gains):
        for arm, accuracy, latency in zip(arms, (0.85 + gain / 100, 0.85), (0.5 * ratio, 0.5), strict=True):
            name = evidence.named(table.MOBILE, arm, seed)
            results.append({"group": table.MOBILE, "arm": arm, "seed": seed, "accuracy": accuracy, "name": name})
            over_base[name] = {"ratio": latency}
    (tmp_path / "mobile").mkdir()
    content = {"group": table.MOBILE, "over_base": over_base}
    (tmp_path / "mobile" / "latencies.json").write_text(json.dumps(content))
    (text,) = table.of_widths(results, tmp_path)
    cells = text.strip().splitlines()[-1].strip("| ").split(" | ")
    assert (cells[0], cells[1], cells[3], cells[-2], cells[-1]) == (*arms, f"{1 / ratio:.3f}", "3 seeds", met)
    assert list(table.of_widths(results[:1], tmp_path)) == [], "one of the two is missing"
