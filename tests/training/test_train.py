"""Training learns, its learning rate is the recipe's, and an interruption changes not a bit of it."""

import copy
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from whole_run import kill

from htas.data.split import Split
from htas.data.task import Task
from htas.errors import UserError
from htas.files import read_tensors, write_tensors
from htas.training import loop
from htas.training.distill import Distill
from htas.training.layout import CopyingViews, Narrow, placed
from htas.training.loop import epoch_seed, has_bf16
from htas.training.recipe import RECIPES, Recipe
from htas.training.train import Training, evaluate

SHORT = Recipe(epochs=4, warmup=1, rest=1, batch=16, lr=0.05, precision="fp32")


pytestmark = pytest.mark.usefixtures("one_thread")


def toy(count: int = 64, seed: int = 0) -> Split:
    """Two classes, 8x8: bright on the left or on the right."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    images = torch.randint(80, (count, 3, 8, 8), generator=generator)
    for image, label in zip(images, labels, strict=True):
        image[:, :, 4 * label : 4 * label + 4] += 120
    return Split(images.to(torch.uint8), labels, (0.4,) * 3, (0.25,) * 3, False, 0)


def net(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(dropout), nn.Flatten(),
        nn.Linear(64, 2),
    )  # fmt: skip


def fitted(model: nn.Module, checkpoint: Path, recipe: Recipe = SHORT, **options: Any) -> nn.Module:
    Training(model, toy(), recipe, seed=3, device="cpu", checkpoint=checkpoint, title="toy", **options).run()
    return model


# -- the recipe --------------------------------------------------------------------------------------------------------


def test_the_paper_recipe_warms_up_by_step_and_falls_by_epoch():
    recipe = RECIPES["paper"]
    assert (recipe.length, recipe.batch, recipe.weight_decay, recipe.momentum) == (305, 256, 5e-4, 0.9)
    steps = 195
    assert recipe.rate(0, 0, steps) == 0.0
    assert recipe.rate(0, 39, steps) == pytest.approx(0.1 * 0.2 / 5)
    assert recipe.rate(4, 194, steps) == pytest.approx(0.1 * (4 + 194 / 195) / 5)
    for epoch in (5, 6, 155, 299):
        wanted = 0.1 * (1 + math.cos(math.pi * (epoch - 5) / 300)) / 2
        assert recipe.rate(epoch, 0, steps) == recipe.rate(epoch, 194, steps) == pytest.approx(wanted)
    assert recipe.rate(5, 0, steps) == pytest.approx(0.1)
    assert recipe.rate(155, 0, steps) == pytest.approx(0.05)
    assert [recipe.rate(epoch, 0, steps) for epoch in range(300, 305)] == [0.0] * 5


def test_the_medium_recipe_is_one_cycle_of_thirty_epochs():
    recipe = RECIPES["medium"]
    assert (recipe.length, recipe.batch, recipe.weight_decay, recipe.precision) == (30, 128, 5e-4, "auto")
    rates = [recipe.rate(epoch, step, 390) for epoch in range(30) for step in range(390)]
    top = rates.index(max(rates))
    assert (rates[0], top, rates[top]) == (0.0, 2 * 390, 0.4)
    assert rates[:top] == sorted(rates[:top]) and rates[top:] == sorted(rates[top:], reverse=True)
    assert 0 < rates[-1] < 1e-6


def test_a_recipe_by_step_falls_within_an_epoch_and_rests_at_zero():
    recipe = Recipe(epochs=3, warmup=0, rest=1, lr=0.2)
    assert recipe.rate(0, 0, 4) == pytest.approx(0.2)
    assert recipe.rate(0, 2, 4) == pytest.approx(0.1 * (1 + math.cos(math.pi / 6)))
    assert recipe.rate(1, 2, 4) == pytest.approx(0.1)
    assert recipe.length == 3 and recipe.rate(2, 0, 4) == 0.0 == recipe.rate(2, 3, 4)


def test_a_recipe_along_a_line_falls_alike_with_every_step_and_ends_just_above_zero():
    recipe = Recipe(epochs=4, warmup=2, lr=0.4, fall="line")
    assert recipe.rate(1, 5, 10) == pytest.approx(0.3)
    assert [recipe.rate(epoch, 0, 10) for epoch in range(2, 6)] == pytest.approx([0.4, 0.3, 0.2, 0.1])
    assert recipe.rate(5, 9, 10) == pytest.approx(0.01)


def test_every_step_is_taken_at_the_recipes_rate(tmp_path, monkeypatch):
    rates = []
    original = loop.set_rate
    monkeypatch.setattr(loop, "set_rate", lambda optimizer, rate: (rates.append(rate), original(optimizer, rate)))
    fitted(net(), tmp_path / "c")
    assert rates == [SHORT.rate(epoch, step, 4) for epoch in range(5) for step in range(4)]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"epochs": 0}, "train.epochs must be 1 or more, got 0"),
        ({"warmup": -1}, "train.warmup must be 0 or more, got -1"),
        ({"epochs": 3, "rest": 3}, "train.rest must lie in 0..2, below train.epochs, got 3"),
        ({"batch": 0}, "train.batch must be 1 or more, got 0"),
        ({"lr": float("nan")}, "train.lr must be above 0, got nan"),
        ({"smoothing": 1.0}, "train.smoothing must be 0 or more and below 1, got 1.0"),
    ],
)
def test_an_option_out_of_range_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**options)


def test_bf16_is_used_where_asked_for_and_never_with_fp32():
    assert has_bf16("cpu", "bf16") and not has_bf16("cpu", "fp32")
    assert isinstance(has_bf16("cpu", "auto"), bool)


def test_epochs_and_seeds_have_draws_of_their_own():
    assert len({epoch_seed(seed, epoch) for seed in range(5) for epoch in range(1000)}) == 5000


# -- training ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_tiny_network_learns_to_tell_two_classes(precision, tmp_path):
    model = net()
    recipe = Recipe(epochs=6, warmup=1, batch=16, lr=0.05, precision=precision)
    assert fitted(model, tmp_path / "c", recipe) is model
    assert evaluate(model, toy(seed=9), device="cpu", precision=precision) == 1.0


def test_two_trainings_alike_give_equal_weights_and_another_seed_does_not(tmp_path):
    one, two = fitted(net(), tmp_path / "1"), fitted(net(), tmp_path / "2")
    assert same(one, two)
    other = net()
    Training(other, toy(), SHORT, seed=4, device="cpu", checkpoint=tmp_path / "3", title="toy").run()
    assert not same(one, other)


def same(one: nn.Module, two: nn.Module) -> bool:
    left, right = one.state_dict(), two.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("method, at", [("epoch", 1), ("epoch", 4), ("keep", 3)])
def test_an_interrupted_training_ends_as_a_whole_one_to_the_last_bit(method, at, dropout, tmp_path, monkeypatch):
    wanted = fitted(net(dropout), tmp_path / "whole")
    original, calls = getattr(Training, method), iter(range(100))

    def patched(*args: Any) -> Any:
        if next(calls) == at:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(Training, method, patched)
    with pytest.raises(KeyboardInterrupt):
        fitted(net(dropout), tmp_path / "parts")
    monkeypatch.setattr(Training, method, original)
    torch.manual_seed(99)
    assert same(fitted(net(dropout), tmp_path / "parts"), wanted)


class Shaken(Split):
    """Images that are augmented by the global random numbers of Python and numpy, as a data set's own code does."""

    def batches(self, *args: Any, **options: Any) -> Any:
        for images, labels in super().batches(*args, **options):
            yield images * (0.5 + random.random()) + np.random.rand(), labels


def test_images_augmented_by_python_and_numpy_are_the_same_after_an_interruption(tmp_path, monkeypatch):
    split = toy()
    data = Shaken(split.images, split.labels, split.mean, split.std, False, 0)

    def train(checkpoint: Path, dice: int) -> nn.Module:
        random.seed(dice)
        np.random.seed(dice)
        model = net()
        Training(model, data, SHORT, seed=3, device="cpu", checkpoint=checkpoint, title="toy").run()
        drawn = random.random(), np.random.rand()
        assert drawn == (random.Random(dice).random(), np.random.RandomState(dice).rand())  # as before the training
        return model

    wanted = train(tmp_path / "whole", 1)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        kill(patch, Training, "epoch", 3)
        train(tmp_path / "parts", 2)
    assert same(train(tmp_path / "parts", 3), wanted)


class Modes(nn.Module):
    """Logits, and with a factor in eval mode other ones; dropout either way."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.body, self.factor = net(0.5), factor

    def forward(self, images: Tensor) -> Tensor:
        logits = F.dropout(self.body(images), 0.1, self.training)
        return logits if self.training or self.factor == 1 else self.factor * logits


@pytest.mark.parametrize("loss", [F.cross_entropy, lambda outputs, labels: F.cross_entropy(outputs, labels)])
@pytest.mark.parametrize("factor", [1.0, 0.0])
def test_a_score_of_ones_own_is_of_what_eval_mode_gives(factor, loss, tmp_path):
    sums: list[float] = []

    def score(outputs: Tensor, labels: Tensor) -> float:
        sums.append(float(outputs.abs().sum()))
        return 0.5

    evaluations: list[int] = []
    model = Modes(factor)
    model.register_forward_pre_hook(lambda module, _: None if module.training else evaluations.append(1))
    fitted(model, tmp_path / "c", task=Task(loss, score))
    assert len(sums) == 20 and all(bool(each) == (factor == 1) for each in sums)
    assert len(evaluations) <= 3 if factor == 1 else len(evaluations) >= 20  # no pass more than it needs


class Centred(nn.Module):
    """A network whose running mean its state_dict leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.body = net()
        self.register_buffer("mean", torch.zeros(2), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        logits = self.body(images)
        if self.training:
            self.mean.lerp_(logits.detach().mean(0), 0.1)
        return logits - self.mean


def test_buffers_that_a_state_dict_leaves_out_go_on_from_the_checkpoint(tmp_path):
    wanted = fitted(Centred(), tmp_path / "c")
    assert isinstance(wanted, Centred) and wanted.mean.any()
    again = fitted(Centred(), tmp_path / "c")
    assert same(again, wanted) and torch.equal(dict(again.named_buffers())["mean"], wanted.mean)
    tensors, header = read_tensors(tmp_path / "c")
    write_tensors(tmp_path / "c", {name: each for name, each in tensors.items() if "buffer/" not in name}, header)
    assert same(fitted(Centred(), tmp_path / "c"), wanted)  # an older one


def test_a_training_that_is_done_is_only_read_again(tmp_path, monkeypatch):
    wanted = fitted(net(), tmp_path / "c")
    monkeypatch.setattr(Training, "epoch", None)
    assert same(fitted(net(), tmp_path / "c"), wanted)


def test_each_epoch_is_told_when_its_checkpoint_is_there_and_may_be_the_last_for_now(tmp_path):
    wanted = fitted(net(), tmp_path / "whole")
    told: list[tuple[int, int]] = []

    class Enough(Exception):
        pass

    def on_epoch(epoch: int, loss: float, accuracy: float) -> None:
        assert math.isfinite(loss) and 0 <= accuracy <= 1
        told.append((epoch, len(read_tensors(tmp_path / "parts")[1]["epochs"])))
        if epoch == 2:
            raise Enough

    with pytest.raises(Enough):
        fitted(net(), tmp_path / "parts", on_epoch=on_epoch)
    assert same(fitted(net(), tmp_path / "parts", on_epoch=on_epoch), wanted)
    assert told == [(epoch, epoch) for epoch in (1, 2, 3, 4, 5)]


def test_a_split_smaller_than_a_batch_is_trained_whole(tmp_path):
    model = net()
    before = copy.deepcopy(model)
    recipe = Recipe(epochs=1, warmup=0, batch=1000, lr=0.05, precision="fp32")
    fitted(model, tmp_path / "c", recipe)
    assert not same(model, before)


def test_at_rest_only_the_statistics_of_norms_move(tmp_path, monkeypatch):
    states = []

    def noted(loop: Any, path: Path) -> None:
        states.append(copy.deepcopy(loop.model.state_dict()))

    monkeypatch.setattr(Training, "keep", noted)
    fitted(net(), tmp_path / "c")
    moved = {name for name in states[-1] if not torch.equal(states[-1][name], states[-2][name])}
    assert moved == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}


def test_a_diverging_training_says_what_to_lower_and_keeps_no_broken_weights(tmp_path):
    recipe = Recipe(epochs=2, warmup=0, batch=16, lr=1e30, precision="fp32")
    message = r"^training of toy diverged in epoch 1 at a learning rate of [0-9.]+e\+29; lower train.lr$"
    with pytest.raises(ValueError, match=message):
        fitted(net(), tmp_path / "c", recipe)
    assert not (tmp_path / "c").exists()


def test_a_training_that_diverges_later_names_its_last_good_state(tmp_path):
    model, path = net(), tmp_path / "c"
    fitted(model, path, Recipe(epochs=1, warmup=0, batch=16, lr=0.05, precision="fp32"))
    good = path.read_bytes()
    message = rf"in epoch 2 at .*; its last good state, of epoch 1, is in {path}; lower strategy.lr$"
    recipe = Recipe(epochs=2, warmup=0, batch=16, lr=1e30, precision="fp32")
    with pytest.raises(ValueError, match=message):
        fitted(model, path, recipe, rate_option="strategy.lr")
    assert path.read_bytes() == good


def test_a_truncated_checkpoint_is_refused_in_a_sentence(tmp_path):
    path = tmp_path / "c"
    fitted(net(), path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"cannot be read as safetensors.*delete it and run its stage again"):
        fitted(net(), path)


@pytest.mark.parametrize("alpha", [None, 0.0, 0.5])
def test_smoothed_labels_are_spread_over_all_classes(alpha, tmp_path, monkeypatch):
    """By hand: 0.2 of each of two classes, so that a label counts 0.8 + 0.1 and the other class 0.1."""
    losses = []
    original = Distill.loss if alpha is not None else None

    def kept(self: Distill, *args: Any) -> Tensor:
        losses.append((self.alpha, args, original(self, *args)))
        return losses[-1][-1]

    monkeypatch.setattr(Distill, "loss", kept)
    recipe = replace(SHORT, epochs=1, warmup=0, rest=0, smoothing=0.2)
    logged = []
    monkeypatch.setattr(loop, "scalars", lambda title, epoch, values: logged.append(values["loss"]))
    model = net()
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self: None)
    teaching = {} if alpha is None else {"teacher": net(), "distill": Distill(alpha)}
    fitted(model, tmp_path / "c", recipe, **teaching)
    if alpha is None:
        wanted = []
        for images, labels in loop.batches(toy(), 16, epoch_seed(3, 0)):
            logs = F.log_softmax(net().train()(images), 1)
            wanted.append(-(0.8 * logs[range(16), labels] + 0.2 * logs.mean(1)).mean())
        assert logged == [pytest.approx(torch.stack(wanted).mean().item(), rel=1e-5)]
    for share, (student, teacher, labels, _), loss in losses:
        logs, temperature = F.log_softmax(student, 1), 4
        hard = -(0.8 * logs[range(16), labels] + 0.2 * logs.mean(1)).mean()
        soft = F.softmax(teacher / temperature, 1)
        apart = (soft * (soft.log() - F.log_softmax(student / temperature, 1))).sum(1).mean()
        torch.testing.assert_close(loss, (1 - share) * hard + share * temperature**2 * apart)


def test_labels_of_a_task_with_a_loss_of_its_own_are_not_smoothed(tmp_path):
    with pytest.raises(ValueError, match=r"^train.smoothing = 0.1 is for classification by cross-entropy; set it to 0"):
        fitted(net(), tmp_path / "c", replace(SHORT, smoothing=0.1), task=Task(loss=F.multi_margin_loss))


# -- with a teacher ----------------------------------------------------------------------------------------------------


def test_the_teacher_is_unchanged_in_eval_mode_and_without_gradients(tmp_path):
    teacher = net().train()
    before = copy.deepcopy(teacher)
    fitted(net(), tmp_path / "c", teacher=teacher, distill=Distill())
    assert same(teacher, before) and not teacher.training
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_a_student_learns_what_its_teacher_says_and_not_the_labels(tmp_path):
    """With alpha 1, from a teacher that takes right for left."""

    class Contrary(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            left, right = images[..., :4].mean((1, 2, 3)), images[..., 4:].mean((1, 2, 3))
            return torch.stack([right, left], 1) * 10

    recipe = Recipe(epochs=8, warmup=1, batch=16, lr=0.05, precision="fp32")
    student = fitted(net(), tmp_path / "c", recipe, teacher=Contrary(), distill=Distill(alpha=1.0))
    assert evaluate(student, toy(), device="cpu", precision="fp32") == 0.0


# -- evaluation --------------------------------------------------------------------------------------------------------


class Answers(nn.Module):
    """Says class 1 for every image, and minds in which mode it is asked."""

    def forward(self, images: Tensor) -> Tensor:
        assert not self.training
        return torch.tensor([[0.0, 1.0]]).repeat(len(images), 1)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("batch", [3, 500])
def test_evaluate_counts_right_answers_in_eval_mode_and_restores_the_mode(training, batch):
    model = Answers().train(training)
    split = toy(10)
    split.labels[0] = 1
    assert evaluate(model, split, device="cpu", precision="fp32", batch=batch) == 0.6
    assert model.training == training


def test_views_copy_where_they_must_and_only_there():
    maps = torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    with pytest.raises(RuntimeError, match="view size"):
        maps.view(2, -1)
    with CopyingViews():
        torch.testing.assert_close(maps.view(2, -1), maps.flatten(1))
        torch.testing.assert_close(maps.view(size=(2, 48)), maps.flatten(1))
        torch.testing.assert_close(maps.view_as(torch.zeros(6, 16)), maps.reshape(6, 16))
        assert maps.view(2, 3, 16).data_ptr() == maps.data_ptr()
        assert maps.view(torch.int32).dtype == maps.view(dtype=torch.int32).dtype == torch.int32


@pytest.mark.parametrize("groups", [1, 5])
def test_a_strided_convolution_of_few_inputs_reads_only_what_it_takes_and_gives_the_same(groups: int) -> None:
    """As PyTorch's kernel for that writes beyond its memory on some CPUs."""
    torch.manual_seed(0)
    plain = nn.Conv2d(5, 10, 1, (2, 3), groups=groups)
    wide, padded = nn.Conv2d(8, 10, 1, 2), nn.Conv2d(5, 10, 1, 2, padding=1)
    model = nn.ModuleList([plain, wide, padded])
    images = torch.randn(4, 5, 9, 8, dtype=torch.double)
    expected = F.conv2d(images, plain.weight.double(), plain.bias.double(), (2, 3), groups=groups)
    placed(model, "cpu")
    assert [type(part) for part in model] == [Narrow, nn.Conv2d, nn.Conv2d]
    found = model[0](images.float().contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
    found.sum().backward()
    taken = images[:, :, ::2, ::3].sum((0, 2, 3)).float()
    rows = taken.expand(10, 5) if groups == 1 else taken.repeat_interleave(2)[:, None]
    torch.testing.assert_close(plain.weight.grad[:, :, 0, 0], rows, atol=1e-4, rtol=1e-4)
    assert set(model.state_dict()) == {f"{n}.{name}" for n in range(3) for name in ("weight", "bias")}


# -- what is to blame where a loss is no number ------------------------------------------------------------------------


class Roots(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))[:, :2].sub(1e6).sqrt()


def test_a_network_that_gives_no_numbers_is_named_and_no_learning_rate(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 2, 3), Roots())
    with pytest.raises(UserError, match="diverged in epoch 1, and not by its learning rate: the network gives NaN"):
        fitted(model, tmp_path / "c")


def test_weights_that_are_no_numbers_are_named(tmp_path):
    model = net()
    model[0].weight.data[0] = math.nan
    with pytest.raises(UserError, match=r"toy cannot begin: 0.weight holds NaN or infinite weights"):
        fitted(model, tmp_path / "c")


def test_inputs_that_are_no_numbers_are_named_in_any_epoch(tmp_path):
    split = replace(toy(), std=(0.25, 0.0, 0.25))
    with pytest.raises(
        UserError, match="and not by its learning rate: inputs of the training data are NaN or infinite"
    ):
        Training(net(), split, SHORT, seed=3, device="cpu", checkpoint=tmp_path / "c", title="toy").run()


def test_a_teacher_that_gives_no_numbers_is_named(tmp_path):
    teacher = nn.Sequential(nn.Conv2d(3, 2, 3), Roots())
    with pytest.raises(UserError, match="its teacher's outputs are NaN or infinite"):
        fitted(net(), tmp_path / "c", teacher=teacher, distill=Distill())


def test_a_loss_that_gives_no_numbers_is_named(tmp_path):
    task = Task(lambda outputs, targets: outputs.sum() * math.nan)
    with pytest.raises(UserError, match="the loss is no number at the first step, for inputs that are"):
        fitted(net(), tmp_path / "c", task=task)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Recipe(momentum=1.0),
        lambda: Recipe(weight_decay=50.0),
        lambda: Recipe(start="nope"),
        lambda: Distill(temperature=1e-9),
        lambda: Distill(temperature=1e30),
    ],
)
def test_options_with_which_nothing_is_learnt_are_refused(make):
    with pytest.raises(UserError, match=r"^(train|distill)\.\w+ "):
        make()
