"""Several processes train one network as one process does: equal batches, equal steps, equal searches."""

import math
import signal
import time
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from scripted_device import scripted_device
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from two_processes import start, together
from whole_run import OPTIONS

from htas import cli, files
from htas.cost.counts import CountCost
from htas.cost.limits import Limit
from htas.data.items import items
from htas.data.split import Data, Split
from htas.errors import UserError
from htas.graph import trace
from htas.run.optimize import optimize
from htas.search.problem import Problem
from htas.spaces.space import Space
from htas.strategies.differentiable import Differentiable, _Search
from htas.strategies.random import RandomSearch
from htas.training import ranks
from htas.training.loop import EpochLoop
from htas.training.ranks import Group
from htas.training.recipe import Recipe
from htas.training.train import Training

RECIPE = Recipe(epochs=3, warmup=1, batch=16, lr=0.05, precision="fp32")
pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.timeout(300)]  # a busy machine starts them slowly


def split(count: int, seed: int = 0) -> Split:
    """Two classes, 8x8: bright on the left or on the right; cut out and mirrored at random."""
    labels = torch.arange(count) % 2
    images = torch.randint(80, (count, 3, 8, 8), generator=torch.Generator().manual_seed(seed))
    for image, label in zip(images, labels, strict=True):
        image[:, :, 4 * label : 4 * label + 4] += 120
    return Split(images.to(torch.uint8), labels, (0.4,) * 3, (0.25,) * 3, True, 1)


def net(norm: bool = False) -> nn.Sequential:
    torch.manual_seed(1)
    layers = [nn.Conv2d(3, 8, 3, padding=1), *([nn.BatchNorm2d(8)] if norm else []), nn.ReLU()]
    return nn.Sequential(
        *layers, nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)
    )


def fit(folder: Path, epochs: int = 3, norm: bool = False) -> tuple[Training, list[Path]]:
    """A training in a folder, and the files that this process wrote."""
    written: list[Path] = []
    original = files.write_bytes
    files.write_bytes = lambda path, content: (written.append(path), original(path, content))[1]
    recipe = replace(RECIPE, epochs=epochs)
    training = Training(net(norm), split(72), recipe, seed=3, device="cpu", checkpoint=folder / "c", title="toy")
    try:
        training.run()
    finally:
        files.write_bytes = original
    return training, written


def fitted(folder: Path, epochs: int = 3, norm: bool = False) -> tuple[dict[str, Tensor], list[float], list[Path]]:
    """Weights and buffers, the epochs' losses and accuracies, and the files written."""
    training, written = fit(folder, epochs, norm)
    figures = [each for epoch in training.epochs for each in (epoch.loss, epoch.accuracy)]
    return training.model.state_dict(), figures, written


def close(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float = 1e-5) -> bool:
    return one.keys() == other.keys() and all(
        torch.allclose(one[name].float(), other[name].float(), tolerance, tolerance) for name in one
    )


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# -- a training --------------------------------------------------------------------------------------------------------


def test_two_halves_of_every_batch_train_as_the_whole(tmp_path):
    whole, figures, _ = fitted(tmp_path / "one")
    (first, first_figures, written), (second, _, others) = together(tmp_path / "two", fitted, tmp_path / "two")
    assert equal(first, second) and close(first, whole)
    assert first_figures == pytest.approx(figures, rel=1e-5)
    assert written == [tmp_path / "two" / "c"] * 4 and others == []


@pytest.mark.slow
def test_a_checkpoint_of_two_processes_goes_on_with_one_and_with_two(tmp_path):
    (_, _, _), _ = together(tmp_path / "two", fitted, tmp_path / "two", 1)
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "c").write_bytes((tmp_path / "two" / "c").read_bytes())
    one, figures, _ = fitted(tmp_path / "one")
    (two, others, _), _ = together(tmp_path / "two", fitted, tmp_path / "two")
    assert close(one, two) and others == pytest.approx(figures, rel=1e-5) and len(figures) == 8


@pytest.mark.slow
def test_statistics_of_norms_are_means_over_processes(tmp_path):
    (first, _, _), (second, _, _) = together(tmp_path, fitted, tmp_path, 1, True)
    assert equal(first, second) and first["1.num_batches_tracked"] == 8
    assert not torch.equal(first["1.running_mean"], torch.zeros(8))


@pytest.mark.slow
def test_a_killed_process_ends_the_other_and_the_same_training_goes_on(tmp_path):
    processes = start(tmp_path / "k", fitted, tmp_path / "k", 2000)
    while not (tmp_path / "k" / "c").exists():
        time.sleep(0.02)
        assert all(process.is_alive() for process in processes)
    processes[1].kill()
    processes[0].join(100)
    assert processes[1].exitcode == -signal.SIGKILL and processes[0].exitcode == 0
    end = torch.load(tmp_path / "k" / "0.pt", weights_only=False)
    assert end.startswith("htas.training.ranks.PeerError: another of the processes that train together has ended")
    done = len(files.read_tensors(tmp_path / "k" / "c")[1]["epochs"])
    (weights, figures, _), _ = together(tmp_path / "k", fitted, tmp_path / "k", done + 1)
    assert len(figures) == 2 * (done + 2) and all(value.isfinite().all() for value in weights.values())


# -- a search ----------------------------------------------------------------------------------------------------------


def problem(folder: Path) -> Problem:
    """A network without norms, which has widths of its own, and half of its multiply-adds."""
    network = trace(net(), torch.zeros(2, 3, 8, 8))
    space = Space("tiny", {name: (2, 4, 6, 8) for name in network.widths}, {})
    data = Data(2, ((3, 8, 8),), split(64), split(48, 1), split(32, 2), split(16, 3))
    cost = CountCost(network)
    limits = (Limit("macs", "50%", cost, 0.5 * cost.cost(network.base)),)
    return Problem(network, reset, data, space, cost, "cpu", 0, folder / "s", net, limits=limits)


def reset(module: nn.Module) -> None:
    for part in module.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()


def searched(folder: Path) -> dict[str, Any]:
    """All that a differentiable search ends with, gradients of its last step included."""
    options = Differentiable(epochs=3, batch=16, lr=0.03, arch_lr=0.1, start="random", precision="fp32")
    run = _Search(problem(folder), options)
    run.run()
    weights = dict(run.model.named_parameters())
    return {
        "weights": {name: each.detach().clone() for name, each in weights.items()},
        "gradients": {name: each.grad for name, each in weights.items() if each.grad is not None},
        "logits": {"table": run.logits.table.detach(), "gradient": run.logits.table.grad},
        "multiplier": run.multiplier.value,
        "figures": [
            each for epoch in run.epochs for each in (epoch.train_loss, epoch.validation_loss, epoch.expected_cost)
        ],
        "arch": run.logits.argmax(),
        "accuracies": run.validate([run.logits.argmax(), run.problem.space.widest]),
    }


@pytest.mark.slow
def test_two_halves_of_every_batch_search_as_the_whole(tmp_path):
    whole = searched(tmp_path / "one")
    first, second = together(tmp_path / "two", searched, tmp_path / "two")
    for name in ("weights", "gradients", "logits"):
        assert equal(first[name], second[name]) and close(first[name], whole[name], 1e-4), name
    assert first["multiplier"] == second["multiplier"] == pytest.approx(whole["multiplier"], rel=1e-4) != 0
    assert first["figures"] == second["figures"] == pytest.approx(whole["figures"], rel=1e-4)
    assert first["arch"] == second["arch"] == whole["arch"]
    assert first["accuracies"] == second["accuracies"] == pytest.approx(whole["accuracies"])


def sampled(folder: Path) -> tuple[Any, float, list[str]]:
    """The arch, its loss, and the files in the folder that are there by then."""
    outcome = RandomSearch(epochs=2, batch=16, archs=6, start="random", precision="fp32").search(problem(folder))
    return outcome.arch, outcome.epochs[-1].train_loss, outcome.validate([outcome.arch])


@pytest.mark.slow
def test_archs_are_judged_once_for_all_processes(tmp_path):
    arch, loss, accuracy = sampled(tmp_path / "one")
    first, second = together(tmp_path / "two", sampled, tmp_path / "two")
    assert first == second and first[0] == arch and first[1] == pytest.approx(loss, rel=1e-4)
    assert first[2] == pytest.approx(accuracy)


# -- what all share ----------------------------------------------------------------------------------------------------


def shared() -> dict[str, Any]:
    """What the functions of ranks give to this process."""
    number = ranks.rank()
    results: dict[str, Any] = {"size": ranks.size(), "first": ranks.of_first(lambda: (number, ranks.size()))}
    results["nested"] = ranks.of_first(lambda: ranks.of_first(lambda: number))
    used = nn.ParameterList([nn.Parameter(torch.zeros(2)) for _ in range(3)])
    used[0].grad = torch.full((2,), 1.0 + number)
    if number == 0:
        used[1].grad = torch.full((2,), 4.0)
    ranks.reduce_gradients(used)
    results["gradients"] = [None if each.grad is None else each.grad.tolist() for each in used]
    weights, statistics = torch.ones(2), torch.tensor([0.1, -math.inf, float(number)])
    count = torch.tensor([5 + number])
    ranks.equalize([weights], [statistics, count])
    results["statistics"] = [*statistics.tolist(), *count.tolist()]
    results["environment"] = ranks.launched()
    try:
        ranks.equalize([weights + number], [])
    except UserError as error:
        results["apart"] = str(error)
    return results


@pytest.mark.slow
def test_what_all_processes_get(tmp_path):
    first, second = together(tmp_path, shared)
    assert first["size"] == 2 and first["first"] == second["first"] == (0, 1) and second["nested"] == 0
    assert first["gradients"] == second["gradients"] == [[1.5, 1.5], [2.0, 2.0], None]
    assert first["statistics"] == second["statistics"] == [pytest.approx(0.1), -math.inf, 0.5, 5.0]
    assert first["environment"] is False and "apart" not in first
    assert second["apart"].startswith("the weights of the processes have come apart")


def failing() -> None:
    ranks.of_first(lambda: [].pop())


@pytest.mark.slow
def test_where_the_first_fails_the_others_end_without_a_word(tmp_path):
    first, second = together(tmp_path, failing)
    assert first == "IndexError: pop from empty list" and "FirstProcessError" in second
    assert not ranks.speaks(ranks.FirstProcessError())


class Alone(Training):
    """A training whose step leaves the other processes out."""

    def update(self, optimizer: torch.optim.Optimizer) -> None:
        optimizer.step()


def fit_alone(folder: Path) -> None:
    Alone(net(), split(64), RECIPE, seed=0, device="cpu", checkpoint=folder / "c", title="toy").run()


@pytest.mark.slow
def test_a_step_without_the_others_is_noticed(tmp_path):
    _, second = together(tmp_path, fit_alone, tmp_path)
    assert "let EpochLoop.update take it" in second


def fit_elsewhere(folder: Path) -> None:
    fit(folder / str(ranks.rank()), 1)


@pytest.mark.slow
def test_processes_that_see_other_folders_are_refused(tmp_path):
    fitted(tmp_path / "0", 1)
    _, second = together(tmp_path, fit_elsewhere, tmp_path)
    assert "process 1 does not see the checkpoint" in second and "must read and write one folder" in second


# -- parts of a batch --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [64, 10])
def test_parts_of_a_batch_are_those_of_the_whole(count):
    size = min(16, count)
    data, halves = split(count), (slice(0, size // 2), slice(size // 2, size))
    whole = list(data.batches(size, seed=4, augment=True, drop_last=True))
    parts = [list(data.batches(size, seed=4, augment=True, drop_last=True, only=half)) for half in halves]
    for number, (images, labels) in enumerate(whole):
        assert torch.equal(torch.cat([part[number][0] for part in parts]), images)
        assert torch.equal(torch.cat([part[number][1] for part in parts]), labels)


class Counted(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Items that remember who was loaded."""

    def __init__(self) -> None:
        self.loaded: list[int] = []

    def __len__(self) -> int:
        return 40

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        self.loaded.append(number)
        return torch.full((3, 8, 8), float(number)), number


def test_items_of_another_process_are_not_loaded():
    dataset = Counted()
    source, half = items(dataset, "the training data"), slice(8, 16)
    whole = [labels for _, labels in source.batches(16, seed=2, drop_last=True)]
    dataset.loaded.clear()
    parts = [labels for _, labels in source.batches(16, seed=2, drop_last=True, only=half)]
    assert len(parts) == 2 and all(torch.equal(part, labels[half]) for part, labels in zip(parts, whole, strict=True))
    assert dataset.loaded == torch.cat(parts).tolist()
    draws = [
        [labels for _, labels in source.draws(16, 3, generator=torch.Generator().manual_seed(1), only=only)]
        for only in (slice(None), half)
    ]
    assert all(torch.equal(part, labels[half]) for labels, part in zip(*draws, strict=True))


# -- whole runs --------------------------------------------------------------------------------------------------------


def run_all(folder: Path, strategy: str) -> tuple[int, str, str, list[str]]:
    """Exit code and output of `htas run` on a device by script, and the files that this process wrote."""
    out, err = StringIO(), StringIO()
    written: list[str] = []
    original = files.write_bytes
    files.write_bytes = lambda path, content: (written.append(path.name), original(path, content))[1]
    (folder / "some.toml").write_text("")
    more = [] if strategy == "differentiable" else ["constraints.macs=50%"]
    words = [f"--{word}" for word in (*OPTIONS, f"strategy.name={strategy}", *more) if fits(word, strategy)]
    with scripted_device(), redirect_stdout(out), redirect_stderr(err):
        code = cli.main(["run", str(folder / "some.toml"), *words, f"--out={folder / 'run'}"])
    return code, out.getvalue(), err.getvalue(), written


def fits(word: str, strategy: str) -> bool:
    """Whether a strategy has this option of whole_run.py."""
    table, _, option = word.partition("=")[0].partition(".")
    if table != "strategy" or strategy == "differentiable":
        return True
    return option in {"scaled": ("epochs", "batch", "precision"), "random": ("epochs", "batch", "start")}.get(
        strategy, ()
    )


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["differentiable", "random", "scaled", "knapsack"])
def test_the_first_of_two_processes_writes_and_prints_a_whole_run(strategy, tmp_path):
    first, second = together(tmp_path, run_all, tmp_path, strategy)
    code, out, err, written = first
    assert code == 0 and out.rstrip().endswith("report.html"), err
    assert second == (0, "", "", [])
    stages = {"survey.json", "design.json", "cost.json", "networks.json", "measure.json", "report.json"}
    assert stages <= set(written) and all(written.count(name) == 1 for name in stages)
    again, _ = together(tmp_path, run_all, tmp_path, strategy)
    assert again[0] == 0 and again[3] == ["command.json"]


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_a_batch_that_cannot_be_divided_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(ranks, "_group", Group(1, 3, None))
    assert ranks.share(12, "train.batch") == slice(4, 8)
    with pytest.raises(UserError) as error:
        Training(net(), split(64), RECIPE, seed=0, device="cpu", checkpoint=tmp_path / "c", title="toy")
    assert str(error.value) == (
        "train.batch: a batch of 16 images cannot be divided among 3 processes, each of which takes as many; give a "
        "multiple of 3, such as 15"
    )


@pytest.mark.parametrize("words", [["compare", "a.toml", "b.toml"], ["sweep", "a.toml"], ["survey", "a.toml"]])
def test_what_one_process_does_is_refused_in_several(words: Sequence[str], monkeypatch, capsys):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    assert cli.main(words) == 2
    assert capsys.readouterr().err == (
        f"htas: htas {words[0]} is done by one process; start it without accelerate launch or torchrun, which are for "
        "htas run, search, train and demo\n"
    )


@pytest.mark.parametrize("words", [["--help"], [], ["run", "--help"], ["compare", "-h"], ["--version"]])
def test_the_first_of_several_processes_prints_what_a_command_takes(words, monkeypatch, capsys):
    """Without meeting the others, who would not come."""
    for name, value in {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    printed = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        assert cli.main(words) == 0
        printed.append(capsys.readouterr().out)
    assert len(printed[0]) > 4 and not printed[1]


def test_every_process_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setenv("RANK", "5")
    assert ranks._gpu(4) == 1
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert ranks._gpu(4) == 2
    with pytest.raises(UserError, match="3 processes on this machine need as many GPUs, and it has 1: start 1 there"):
        ranks._gpu(1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    assert ranks._gpu(1) == 0


def test_one_process_has_no_group():
    with ranks.joined():
        assert (ranks.size(), ranks.rank(), ranks.first()) == (1, 0, True)
        assert ranks.of_first(lambda: 3) == 3 and ranks.share(7, "batch") == slice(None) and ranks.own_seed(5) == 5
        assert not torch.distributed.is_initialized()
    assert EpochLoop.batch_option == "train.batch"


# -- networks of a program's own ---------------------------------------------------------------------------------------


def optimized(folder: Path) -> None:
    torch.manual_seed(ranks.rank())
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 2))
    items = TensorDataset(torch.randn(8, 1, 8, 8), torch.tensor([0, 1] * 4))
    optimize(model, torch.randn(1, 1, 8, 8), (items, items), out=folder)


@pytest.mark.slow
def test_processes_with_networks_of_other_weights_are_all_refused(tmp_path):
    for end in together(tmp_path, optimized, tmp_path / "out"):
        assert "the processes were given networks of other weights; load the same weights in each" in end
    assert not (tmp_path / "out").exists()
