"""htas.optimize, on a scripted device: what a Python program gives, and what it gets."""

import copy
import gc
import json
import subprocess
import sys
import weakref
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import whole_run
from scripted_device import scripted_device
from torch import Tensor, nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

import htas
from htas.data.task import Task
from htas.errors import UserError, as_arguments
from htas.files import read_tensors
from htas.run import plan, stages
from htas.run.arguments import check_once
from htas.run.user import UserData, digest
from htas.text import milliseconds

pytestmark = pytest.mark.timeout(300)  # whole runs

SHAPE = (1, 8, 8)
CLASSES = 3
QUICK = {**whole_run.QUICK, "strategy.precision": "fp32"}


def without_strategy() -> dict[str, object]:
    """QUICK for the search that is usual within limits."""
    return {key: value for key, value in QUICK.items() if not key.startswith("strategy.")}


class Net(nn.Module):
    """A user's network: two stages of residual blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.one, self.two = nn.Sequential(Block(16, 16), Block(16, 16)), nn.Sequential(Block(16, 32, 2), Block(32, 32))
        self.head = nn.Linear(32, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.two(self.one(self.stem(images))).mean((2, 3)))


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.norm2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))


def items(count: int, seed: int) -> TensorDataset:
    """A bright square at a place that tells the class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    images = 0.3 * torch.randn(count, *SHAPE, generator=generator)
    for number, label in enumerate(labels.tolist()):
        images[number, :, 2 * label : 2 * label + 3, 2 * label : 2 * label + 3] += 1
    return TensorDataset(images, labels)


DATA = items(240, 0), items(90, 1)


@pytest.fixture(scope="module")
def net() -> Net:
    """Trained until it knows the classes."""
    torch.manual_seed(0)
    made = Net()
    optimizer = torch.optim.SGD(made.parameters(), 0.05, 0.9)
    for _ in range(6):
        for images, labels in DataLoader(DATA[0], 40, shuffle=True):
            optimizer.zero_grad()
            F.cross_entropy(made(images), labels).backward()
            optimizer.step()
    return made.eval()


@pytest.fixture(scope="module")
def found(net: Net, tmp_path_factory: pytest.TempPathFactory) -> htas.OptimizationResult:
    with scripted_device():
        return htas.optimize(
            net, torch.zeros(1, *SHAPE), DATA, target=htas.Target(threads=1, batch=2), constraints={"latency": "60%"},
            epochs=3, options=QUICK, out=tmp_path_factory.mktemp("runs") / "own",
        )  # fmt: skip


@pytest.fixture(scope="module")
def call(net: Net, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A call whose result is dropped: the user's network and a copy from before, how often the data were loaded, and
    what is alive afterwards of the run's copy of the network and of the data."""
    given, loads, load = copy.deepcopy(net).train(), [], UserData.load
    given.stem[1].eval()
    before, parts = copy.deepcopy(given), (items(60, 2), items(30, 3))
    with scripted_device(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(UserData, "load", lambda self, **options: (loads.append(1), load(self, **options))[1])
        state = torch.get_rng_state()
        result = htas.optimize(
            given, torch.zeros(1, *SHAPE), parts, target=htas.Target(threads=1), constraints={"macs": "60%"}, epochs=1,
            options=QUICK, out=tmp_path_factory.mktemp("runs") / "call",
        )  # fmt: skip
    module = result.config.family._module
    assert type(module) is Net and module is not given
    references = [weakref.ref(module), weakref.ref(parts[0])]
    same = torch.equal(state, torch.get_rng_state())
    del result, module, parts
    gc.collect()
    return SimpleNamespace(net=given, before=before, loads=len(loads), alive=[each() for each in references], same=same)


def accuracy(model: nn.Module) -> float:
    images, labels = DATA[1].tensors
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).float().mean())


def test_the_network_found_is_faster_of_the_same_class_and_still_knows_its_classes(found, net):
    assert type(found.model) is Net and not found.model.training
    rows = {row.name: row for row in found.results}
    assert found.result.measured.estimate <= 0.6 * rows["base"].measured.estimate
    assert found.result.predicted <= 0.6 * rows["base"].predicted
    assert accuracy(found.model) == pytest.approx(found.result.accuracy) and found.result.accuracy >= 0.9


def test_a_trained_network_is_the_base_as_it_is_and_what_is_found_inherits(found, net):
    images = DATA[1].tensors[0]
    torch.testing.assert_close(found.base(images), net(images), atol=1e-5, rtol=1e-4)
    assert found.results[0].accuracy == pytest.approx(accuracy(net))


def test_the_user_network_stays_as_it_was(call):
    given, before = call.net, call.before
    assert all(torch.equal(one, other) for one, other in zip(given.parameters(), before.parameters(), strict=True))
    assert [part.training for part in given.modules()] == [part.training for part in before.modules()]
    assert all(parameter.is_contiguous() for parameter in given.parameters())


def test_what_the_caller_draws_next_does_not_depend_on_the_call(call):
    assert call.same


def test_a_result_as_text_is_the_answer_and_the_networks(found):
    lines = str(found).splitlines()
    times = f"{milliseconds(found.result.measured.estimate)} against 0.0427 ms"
    assert "the searched network" in lines[0].lower() and times in lines[0]
    assert len(lines) >= len(found.results) + 2
    assert repr(found) == f"OptimizationResult({str(found.folder)!r})"


@pytest.mark.slow
def test_what_is_saved_lives_without_htas(found, tmp_path):
    place = found.save(tmp_path / "fast")
    assert sorted(path.name for path in place.iterdir()) == [
        "README.md", "arch.json", "model.onnx", "model.pt2", "model.safetensors"
    ]  # fmt: skip
    images = DATA[1].tensors[0]
    alone = tmp_path / "alone.py"
    alone.write_text(
        "import sys, torch\n"
        "model = torch.export.load(sys.argv[1]).module()\n"
        "torch.save(model(torch.load(sys.argv[2], weights_only=True)), sys.argv[3])\n"
        "assert not any(name.startswith('htas') for name in sys.modules)\n"
    )
    torch.save(images, tmp_path / "images.pt")
    subprocess.run(
        [sys.executable, alone, place / "model.pt2", tmp_path / "images.pt", tmp_path / "logits.pt"], check=True
    )
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt", weights_only=True), found.model(images))
    tensors, _ = read_tensors(place / "model.safetensors")
    assert tensors.keys() == found.model.state_dict().keys()
    assert json.loads((place / "arch.json").read_text())["widths"] == dict(found.arch.widths)
    card = (place / "README.md").read_text()
    assert card.startswith("# Net, made faster") and "| hardware |" in card and "| base |" in card


def test_the_report_and_the_exports_go_where_they_are_asked_for(found, tmp_path):
    page = found.report(tmp_path / "deep" / "report.html")
    assert "<title>" in page.read_text()
    assert found.export(tmp_path / "fast.onnx") < 1e-4
    with pytest.raises(ValueError, match=r"cannot export to 'fast.tf'"):
        found.export(tmp_path / "fast.tf")


def test_the_same_call_again_does_nothing_anew(found, net):
    before = {path: path.stat().st_mtime_ns for path in found.folder.rglob("*.safetensors")}
    with scripted_device():
        again = htas.optimize(
            net, torch.zeros(1, *SHAPE), DATA, target=htas.Target(threads=1, batch=2), constraints={"latency": "60%"},
            epochs=3, options=QUICK, out=found.folder,
        )  # fmt: skip
    assert {path: path.stat().st_mtime_ns for path in found.folder.rglob("*.safetensors")} == before
    assert again.arch == found.arch


def test_a_call_reads_its_data_once_and_keeps_nothing_when_its_result_is_gone(call):
    assert (call.loads, call.alive) == (1, [None, None])


def test_the_outlook_counts_no_training_of_a_base_network_that_is_trained(found, capsys):
    with scripted_device():
        plan.show(found.run)
    lines = capsys.readouterr().err
    assert "search of 1 space" in lines and "train the base network" not in lines


@pytest.mark.slow
@pytest.mark.parametrize("words", [("search", "--again"), ("export", "--to=onnx")])
def test_another_process_says_that_the_network_was_given_in_python(found, words):
    command = [sys.executable, "-m", "htas", words[0], str(found.folder), words[1]]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "was given to htas.optimize in Python; call it again" in done.stderr and "Traceback" not in done.stderr
    assert "delete" not in done.stderr, "no file is at fault"


@pytest.mark.slow
def test_what_is_to_stay_stays_and_widths_keep_their_bounds(net, tmp_path):
    with scripted_device():
        made = htas.optimize(
            net, torch.zeros(1, *SHAPE), DATA, target=htas.Target(threads=1), constraints={"macs": "63%"}, epochs=1,
            ignored_layers=["one"], widths={"32": (12, 24)}, options=without_strategy(), out=tmp_path / "run",
        )  # fmt: skip
    assert made.config.names["strategy"] == "knapsack", "within limits the usual search needs no supernet"
    assert made.model.one[0].conv1.weight.shape == net.one[0].conv1.weight.shape and len(made.model.one) == 2
    wide = [width for site, width in made.arch.widths.items() if site.startswith("two")]
    assert wide and all(12 <= width <= 24 for width in wide)


@pytest.mark.slow
def test_an_untrained_network_is_trained_here_and_loaders_are_data(tmp_path):
    torch.manual_seed(1)
    loaders = DataLoader(DATA[0], 16, shuffle=True), DataLoader(DATA[1], 30)
    with scripted_device():
        made = htas.optimize(
            Net(), torch.zeros(4, *SHAPE), loaders, target=htas.Target(threads=1), constraints={"macs": "50%"},
            trained=False, epochs=4, options=QUICK, out=tmp_path / "run",
        )  # fmt: skip
    assert made.results[0].accuracy >= 0.9 and made.result.macs <= 0.5 * made.results[0].macs


class Masked(Net):
    """Its channels have weights that its state_dict leaves out, and so has a mean that it keeps in training."""

    def __init__(self) -> None:
        super().__init__()
        self.stem.register_buffer("mask", torch.linspace(0.2, 2, 16).view(16, 1, 1), persistent=False)
        self.register_buffer("mean", torch.zeros(3), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        logits = self.head(self.two(self.one(self.stem(images) * self.stem.mask)).mean((2, 3)))
        if self.training:
            self.mean.lerp_(logits.detach().mean(0) + 1, 0.5)
        return logits - self.mean


@pytest.mark.slow
def test_buffers_that_a_state_dict_leaves_out_come_with_the_result(tmp_path):
    torch.manual_seed(1)
    with scripted_device():
        made = htas.optimize(
            Masked(), torch.zeros(4, *SHAPE), DATA, target=htas.Target(threads=1), constraints={"macs": "50%"},
            trained=False, epochs=2, options=QUICK, out=tmp_path / "run",
        )  # fmt: skip
    for row, model in ((made.results[0], made.base), (made.result, made.model)):
        assert accuracy(model) == pytest.approx(row.accuracy) and model.mean.any()
    buffers, _ = read_tensors(made.save(tmp_path / "fast") / "buffers.safetensors")
    assert buffers.keys() == {"stem.mask", "mean"} and torch.equal(buffers["mean"], made.model.mean)


# -- other tasks -------------------------------------------------------------------------------------------------------


class Places(nn.Module):
    """Where the bright square is, and a map of it: two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.blocks = nn.Sequential(Block(16, 16), Block(16, 16))
        self.place, self.map = nn.Linear(16 * 64, 2), nn.Conv2d(16, 1, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = self.blocks(self.stem(images))
        return self.place(x.flatten(1)), self.map(x)


def places() -> tuple[TensorDataset, TensorDataset]:
    """The same images; the targets are where the square stands."""
    parts = []
    for part in DATA:
        images, labels = part.tensors
        parts.append(TensorDataset(images, torch.stack([2.0 * labels, 2.0 * labels], 1)))
    return parts[0], parts[1]


def far(outputs: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
    place, shown = outputs
    return F.mse_loss(place, targets) + 0.01 * shown.square().mean()


def near(outputs: tuple[Tensor, Tensor], targets: Tensor) -> float:
    return float(((outputs[0] - targets).abs() < 1).all(1).double().mean())


def alike(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
    return F.mse_loss(student[0], teacher[0]) + F.mse_loss(student[1], teacher[1])


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["differentiable", "knapsack", "random"])
def test_a_network_of_another_task_learns_by_its_own_loss_and_is_judged_by_its_own_score(strategy, tmp_path, capsys):
    torch.manual_seed(0)
    options = {**QUICK, "train.lr": 0.002, "strategy.lr": 0.002}
    if strategy == "random":
        options |= {"strategy.name": "random", "strategy.archs": 6}
    if strategy == "knapsack":
        options = {**without_strategy(), "train.lr": 0.002}
    with scripted_device():
        made = htas.optimize(
            Places(), torch.zeros(1, *SHAPE), places(), target=htas.Target(threads=1), constraints={"macs": "60%"},
            trained=False, epochs=6, loss_fn=far, eval_fn=near, distill_fn=alike, options=options, out=tmp_path / "run",
        )  # fmt: skip
    assert made.result.macs <= 0.6 * made.results[0].macs
    images, targets = places()[1].tensors
    with torch.no_grad():
        assert near(made.model(images), targets) == pytest.approx(made.result.accuracy)
    assert made.result.accuracy > 0.5 and made.result.teacher == "base"
    assert "nothing is distilled" not in capsys.readouterr().err


class Viewing(nn.Module):
    """Vectors of maps of several pixels by `view`, as many a tutorial has them."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, padding=1)
        self.head, self.maps = nn.Linear(16 * 4 * 4, CLASSES), nn.Conv2d(16, 2, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.two(F.relu(self.one(images))))
        return self.head(x.view(-1, 16 * 4 * 4)), self.maps(x)


def viewed(outputs: tuple[Tensor, Tensor], labels: Tensor) -> Tensor:
    logits, maps = outputs
    return F.cross_entropy(logits, labels) + 0.01 * maps.view(-1).square().mean()


@pytest.mark.parametrize("strategy", [pytest.param("differentiable", marks=pytest.mark.slow), "random"])
def test_networks_losses_and_scores_may_view_maps_as_vectors(strategy, tmp_path):
    options = {**QUICK, **({"strategy.name": "random", "strategy.archs": 4} if strategy == "random" else {})}
    score = lambda network: float(viewed(network(DATA[1].tensors[0]), DATA[1].tensors[1]).detach())  # noqa: E731
    with scripted_device():
        made = htas.optimize(
            Viewing(), torch.zeros(1, *SHAPE), DATA, target=htas.Target(threads=1), constraints={"macs": "60%"},
            trained=False, epochs=1, search_epochs=1, loss_fn=viewed, out=tmp_path / "run", options=options,
            eval_fn=lambda outputs, labels: 1 - viewed(outputs, labels), score_func=score,
        )  # fmt: skip
    assert made.result.macs <= 0.6 * made.results[0].macs
    assert made.result.accuracy == pytest.approx(score(made.model), abs=1e-5)


@pytest.mark.slow
def test_without_a_distill_fn_nothing_is_distilled_and_that_is_said(tmp_path, capsys):
    torch.manual_seed(0)
    with scripted_device():
        made = htas.optimize(
            Places(), torch.zeros(1, *SHAPE), places(), target=htas.Target(threads=1), constraints={"macs": "60%"},
            trained=False, epochs=1, loss_fn=far, out=tmp_path / "run",
            options={**QUICK, "train.lr": 0.002, "strategy.lr": 0.002},
        )  # fmt: skip
    assert "nothing is distilled, as the loss is your own" in capsys.readouterr().err
    assert made.result.teacher == "" and 0 < made.result.accuracy < 1


@pytest.mark.slow
def test_whole_networks_are_trained_and_judged_by_ones_own_functions(net, tmp_path):
    seen: list[tuple[str, bool]] = []

    def own(model: nn.Module, teacher: nn.Module | None) -> None:
        seen.append((type(model).__name__, teacher is not None))

    with scripted_device():
        made = htas.optimize(
            net, torch.zeros(1, *SHAPE), DATA, target=htas.Target(threads=1), constraints={"macs": "60%"}, train_fn=own,
            score_func=lambda model: 0.25, options=QUICK, out=tmp_path / "run",
        )  # fmt: skip
    assert set(seen) == {("Net", True)} and len(seen) == len(made.results) - 1
    assert {row.accuracy for row in made.results} == {0.25}


class Two(nn.Module):
    """Whether the squares of two images are in one place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.blocks = nn.Sequential(Block(16, 16), Block(16, 16))
        self.head = nn.Linear(2 * 16 * 16, 2)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        both = [self.blocks(self.stem(each)).flatten(1) for each in (left, right)]
        return self.head(torch.cat(both, 1))


class Pairs(Dataset[Any]):
    """(image, image, whether they are of one class), or a dictionary of them."""

    def __init__(self, part: TensorDataset, named: bool) -> None:
        self.part, self.named = part, named

    def __len__(self) -> int:
        return len(self.part)

    def __getitem__(self, number: int) -> Any:
        (left, one), (right, other) = self.part[number], self.part[number // 2]
        label = int(one == other)
        return {"left": left, "label": label, "right": right} if self.named else (left, right, label)


def test_items_of_two_inputs_are_the_same_in_order_and_by_name():
    both = [UserData.of(*(Pairs(part, named) for part in DATA), 2, (SHAPE, SHAPE)) for named in (False, True)]
    for data in both:
        data.check()
    one, other = (data.load(device="cpu", validation=0.5, seed=0, limit=0) for data in both)
    for part in ("train", "weights", "validation", "test"):
        mine, theirs = getattr(one, part), getattr(other, part)
        for (inputs, labels), (others, same) in zip(mine.batches(50), theirs.batches(50), strict=True):
            assert len(inputs) == 2 and all(map(torch.equal, inputs, others)) and torch.equal(labels, same)


@pytest.mark.slow
def test_a_network_of_two_inputs_is_measured_searched_trained_and_saved(tmp_path):
    torch.manual_seed(0)
    target = htas.Target(threads=1, batch=2, runtime="onnxruntime")
    with scripted_device():
        made = htas.optimize(
            Two(), [torch.zeros(1, *SHAPE)] * 2, tuple(Pairs(part, True) for part in DATA), target=target,
            constraints={"latency": "60%"}, trained=False, epochs=8, options=QUICK, out=tmp_path / "run",
        )  # fmt: skip
    assert made.result.measured.estimate <= 0.6 * made.results[0].measured.estimate
    left, right, labels = next(iter(DataLoader(Pairs(DATA[1], False), len(DATA[1]))))
    with torch.no_grad():
        logits = made.model(left, right)
    assert float((logits.argmax(1) == labels).float().mean()) == pytest.approx(made.result.accuracy)
    assert made.result.accuracy > 0.6
    place = made.save(tmp_path / "fast")
    again = torch.export.load(place / "model.pt2").module()(left, right)
    torch.testing.assert_close(again, logits, atol=1e-4, rtol=1e-4)
    assert "outputs = model(input1, input2)  # [N, 1, 8, 8] and [N, 1, 8, 8]" in (place / "README.md").read_text()


class Boxed(Dataset[Any]):
    """Targets as detection has them: a dictionary of tensors."""

    def __init__(self, part: TensorDataset) -> None:
        self.part = part

    def __len__(self) -> int:
        return len(self.part)

    def __getitem__(self, number: int) -> Any:
        image, label = self.part[number]
        corner = 2.0 * label
        return image, {"boxes": torch.stack([corner, corner, corner + 3, corner + 3]), "labels": label}


def missed(outputs: tuple[Tensor, Tensor], targets: dict[str, Tensor]) -> Tensor:
    return F.mse_loss(outputs[0], targets["boxes"][:, :2]) + 0.01 * outputs[1].square().mean()


@pytest.mark.slow
def test_targets_may_be_a_dictionary_as_those_of_detection_are(tmp_path):
    torch.manual_seed(0)
    with scripted_device():
        made = htas.optimize(
            Places(), torch.zeros(1, *SHAPE), tuple(map(Boxed, DATA)), target=htas.Target(threads=1), loss_fn=missed,
            constraints={"macs": "60%"}, trained=False, epochs=2, out=tmp_path / "run",
            options={**QUICK, "train.lr": 0.002, "strategy.lr": 0.002},
        )  # fmt: skip
    boxes = torch.stack([2.0 * DATA[1].tensors[1]] * 2, 1)
    with torch.no_grad():
        outputs = made.model(DATA[1].tensors[0])
    loss = F.mse_loss(outputs[0], boxes) + 0.01 * outputs[1].square().mean()
    assert made.result.accuracy == pytest.approx(1 / (1 + float(loss)), rel=1e-3)


# -- what tells one run from another, and which items are whose --------------------------------------------------------


def test_other_data_of_the_same_size_are_no_reason_to_go_on(found, net):
    other = TensorDataset(DATA[0].tensors[0].flip(0).contiguous(), DATA[0].tensors[1])
    with scripted_device(), pytest.raises(ValueError, match=r"holds a run of another configuration .*key = "):
        htas.optimize(
            net, torch.zeros(1, *SHAPE), (other, DATA[1]), target=htas.Target(threads=1, batch=2),
            constraints={"latency": "60%"}, epochs=3, options=QUICK, out=found.folder,
        )  # fmt: skip


def test_functions_are_told_apart_by_their_text_and_by_what_they_hold():
    def scaled(factor: float) -> Any:
        return lambda outputs, targets: factor * F.mse_loss(outputs, targets)

    one, same, other = (Task(loss=scaled(factor)).name for factor in (1.0, 1.0, 2.0))
    assert one == same != other
    assert Task(loss=partial(F.mse_loss, reduction="sum")).name != Task(loss=partial(F.mse_loss)).name
    assert Task().name == ""


def test_a_network_is_told_from_another_by_its_forward_pass_too():
    class Scaled(nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.conv, self.factor = nn.Conv2d(1, 2, 3), factor

        def forward(self, images: Tensor) -> Tensor:
            return self.factor * self.conv(images).mean((2, 3))

    one, other = Scaled(1.0), Scaled(5.0)
    other.load_state_dict(one.state_dict())
    inputs = (torch.zeros(1, 1, 8, 8),)
    assert digest(one, inputs) != digest(other, inputs) and digest(one, inputs) == digest(copy.deepcopy(one), inputs)
    assert digest(one.bfloat16(), inputs) != digest(other.bfloat16(), inputs)


def test_loaders_of_one_dataset_have_the_items_that_their_samplers_draw():
    loaders = [DataLoader(DATA[0], 4, sampler=SubsetRandomSampler(range(*ends))) for ends in ((0, 200), (200, 240))]
    made = UserData.of(*loaders, CLASSES, (SHAPE,)).load(device="cpu", validation=0.5, seed=0, limit=0)
    assert (len(made.train), len(made.test)) == (200, 40)
    assert torch.equal(torch.cat([images for images, _ in made.test.batches(40)]), DATA[0].tensors[0][200:])


def test_given_data_are_called_by_their_own_class_in_a_report():
    assert UserData.of(*DATA, CLASSES, (SHAPE,)).name == "the given data"
    assert UserData.of(*(Pairs(part, True) for part in DATA), 2, (SHAPE, SHAPE)).name == "Pairs"


def test_labels_are_those_that_items_have_and_any_whole_numbers():
    class Mapped(Dataset[Any]):
        targets = [7, 8] * 30

        def __len__(self) -> int:
            return 60

        def __getitem__(self, number: int) -> Any:
            return torch.zeros(SHAPE), torch.tensor(self.targets[number] - 7, dtype=torch.int32)

    made = UserData.of(Mapped(), Mapped(), 2, (SHAPE,)).load(device="cpu", validation=0.5, seed=0, limit=0)
    _, labels = next(made.train.batches(8))
    assert labels.dtype == torch.int64 and labels.tolist() == [0, 1] * 4


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(())


class Dictionaries(Dataset[Any]):
    def __len__(self) -> int:
        return 40

    def __getitem__(self, number: int) -> Any:
        return {"image": torch.zeros(SHAPE), "class": number % CLASSES}


WRONG = TensorDataset(torch.zeros(40, *SHAPE), torch.arange(40) % 5)


def guessing() -> nn.Module:
    """A network that names one class for all images; drawn weights may be lucky."""
    net = Net()
    nn.init.zeros_(net.head.weight)
    nn.init.zeros_(net.head.bias)
    return net


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": "net"}, "model must be an nn.Module, got str"),
        (
            {"example_inputs": torch.zeros(1, 64)},
            "example_inputs must begin with images [N, C, H, W], series [N, C, T] or volumes",
        ),
        (
            {"example_inputs": torch.zeros(1, 3, 8, 8)},
            "the model does not run on example_inputs of shape (1, 3, 8, 8): ",
        ),
        (
            {"example_inputs": [SHAPE]},
            "example_inputs must be a tensor [N, C, H, W], or a list with one for each",
        ),
        ({"data": DATA[0]}, "data must be a pair (training, validation), got TensorDataset"),
        ({"data": (Endless(), DATA[1])}, "the training data must be a torch Dataset with a length and items by number"),
        (
            {"data": (Dictionaries(), Dictionaries())},
            "an item of data must be (input tensor, targets), with several inputs (input, input, targets), or a "
            "dictionary of them with 'label' or 'labels' or 'target' or 'targets', of which batches of tensors are "
            "made; got dict with image, class: give a",
        ),
        (
            {"data": (WRONG, WRONG), "trained": False},
            "labels of the training data must lie in 0 to 2, as the network has",
        ),
        ({"model": guessing()}, "the model's accuracy on the validation items is "),
        (
            {"model": nn.Sequential(Net(), nn.Flatten(0))},
            "the model must give logits [N, classes] of 2 classes or more",
        ),
        (
            {"data": (DataLoader(DATA[0], sampler=WeightedRandomSampler([1.0] * 240, 9)), DATA[1])},
            "the DataLoader of the training data has a WeightedRandomSampler, and batches are drawn here without",
        ),
        (
            {"example_inputs": torch.zeros(1, 1, 16, 16)},
            "an item of the training data has inputs of shape (1, 8, 8), and example_inputs (1, 16, 16); give an",
        ),
        ({"loss_fn": "mse"}, "loss_fn must be a function, got str"),
        ({"epochs": -1}, "epochs must be a whole number, 0 for the usual, got -1"),
        ({"epochs": "3"}, "epochs must be a whole number, 0 for the usual, got '3'"),
        ({"search_epochs": 2.5}, "search_epochs must be a whole number, 0 for the usual, got 2.5"),
        ({"out": None}, "out must be a folder, as text or a Path, got None; leave it out for runs/optimize-CLASS"),
        ({"constraints": "50%"}, """constraints must be limits by metric, such as {"latency": "50%"}, got '50%'"""),
        ({"constraints": {}}, "constraints is empty, and something must limit the network: give "),
        (
            {"constraints": {"macs": ""}},
            "constraints has no limit, got {'macs': ''}, and something must limit the network: give "
            '{"latency": "50%"}, or',
        ),
        ({"trained": "no"}, "trained must be True, or False to have the base network trained from new weights, "),
        ({"trained": None}, "trained must be True, or False to have the base network trained from new weights, "),
        (
            {"target": htas.Target(batch=1), "options": {"target.batch": 7}},
            "target.batch is given twice, 1 by target and 7 by options: leave it out of options, or target out of the ",
        ),
        (
            {"constraints": {"macs": "50%"}, "options": {"constraints.macs": "30%"}},
            "constraints.macs is given twice, '50%' by constraints and '30%' by options: leave it out of options, or ",
        ),
        ({"seed": 0, "options": {"seed": 5}}, "seed is given twice, 0 by seed and 5 by options: leave it out of "),
        ({"epochs": 2, "options": {"train.epochs": 3}}, "train.epochs is given twice, 2 by epochs and 3 by options: "),
        (
            {"widths": {"16": (4, 16)}, "options": {"design.bounds": {"16": [8, 16]}}},
            "design.bounds is given twice, {'16': [4, 16]} by widths and {'16': [8, 16]} by options: leave it out of ",
        ),
        ({"constraints": {"macs": None}}, 'the limit of macs in constraints must be text such as "50%", got None'),
        ({"widths": {"stem.0": 4}}, "widths of stem.0 must be two whole numbers, the least and the most channels as"),
        (
            {"widths": {"stem.0": "48"}},
            "widths of stem.0 must be two whole numbers, the least and the most channels as",
        ),
        ({"widths": [4, 8]}, 'widths must be least and most channels by site, such as {"64": (16, 64)}, got [4, 8]'),
        ({"ignored_layers": 3}, 'ignored_layers must be names of modules, such as ["stages.0"], got 3'),
        ({"options": ["train.lr"]}, "options must be values by name, such as "),
        ({"constraints": {"latncy": "50%"}}, "constraints has no option 'latncy'; did you mean 'latency'?"),
        ({"options": {"design.groups": 0}}, "design.groups must be 1 or more, got 0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_used_is_refused_in_one_sentence(net, tmp_path, change, said):
    torch.manual_seed(2)
    given = {"model": net, "example_inputs": torch.zeros(1, *SHAPE), "data": DATA, "out": tmp_path / "run", **change}
    with scripted_device(), pytest.raises(ValueError) as caught:
        options = given.get("options", {})
        htas.optimize(**{**given, "options": {**QUICK, **options} if isinstance(options, dict) else options})
    assert str(caught.value).startswith(said) and "\n" not in str(caught.value)


def test_a_refusal_in_python_advises_arguments(net, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "photo.png").touch()
    with pytest.raises(UserError, match=r"is not the folder of a run; name another one with out=$"):
        htas.optimize(net, torch.zeros(1, *SHAPE), DATA, out=tmp_path / "run")


@pytest.mark.parametrize(
    "words, said",
    [
        ("free 8 MB or name another folder with --out", "free 8 MB or name another folder with out="),
        ("name another folder with --out, or delete", "name another folder with out=, or delete"),
        (
            "go on from there with --train.start=/a/b-c.safetensors, a lower --train.lr and another --out",
            "go on from there with options={'train.start': '/a/b-c.safetensors'}, a lower options['train.lr'] and "
            "another out",
        ),
        ("with --strategy.lr=0.03 and another --out", "with options={'strategy.lr': 0.03} and another out"),
        (
            'give one, such as --constraints.latency="50%", or take another',
            'give one, such as constraints={"latency": "50%"}, or take another',
        ),
        ("'a--b' and x --y-z stay", "'a--b' and x --y-z stay"),
    ],
)
def test_options_of_the_command_are_arguments_in_python(words, said):
    assert as_arguments(words) == said


def test_the_same_value_may_be_given_twice():
    target = htas.Target(batch=2, shapes=((1, 8, 8),))
    options = {"target.batch": 2, "target.shapes": [[1, 8, 8]], "constraints.macs": "50%", "seed": 3, "train.lr": 0.1}
    check_once(options, {
        "target": {f"target.{name}": value for name, value in vars(target).items()},
        "constraints": {"constraints.macs": "50%"}, "seed": {"seed": None}, "epochs": {"train.epochs": None},
    })  # fmt: skip


@pytest.mark.parametrize("change, said", [
    ({"trained": False}, "cheaper: options={'strategy.trials': 1}, no short trainings where its estimates are close"),
    ({"trained": True}, "points above the base with all widths narrowed alike"),
    ({"trained": False, "eval_fn": lambda outputs, labels: 0.5}, "points above the base with all widths narrowed "),
])  # fmt: skip
def test_what_is_cheaper_is_said_in_python_and_only_where_it_is(net, change, said, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(plan, "estimate", lambda run: iter([("survey, at most", 60.0)]))
    monkeypatch.setattr(stages, "need_supernet", lambda run: (_ for _ in ()).throw(UserError("enough")))
    with pytest.raises(UserError, match="enough"):
        htas.optimize(net, torch.zeros(1, *SHAPE), DATA, out=tmp_path / "run", **change)
    err = capsys.readouterr().err
    assert said in err and "--strategy" not in err and ("cheaper: " in err) == said.startswith("cheaper")


def test_the_public_names_are_there_and_others_are_refused_by_name():
    assert all(getattr(htas, name) is not None for name in htas.__all__)
    assert htas.UserError is UserError
    with pytest.raises(AttributeError, match="module 'htas' has no attribute 'optimise'; it has Arch, "):
        _ = htas.optimise
