"""Blocks of networks, what they learn alone, and the sum of their errors."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from htas.cost.counts import CountCost
from htas.cost.limits import Limit
from htas.data.split import Data
from htas.data.task import CLASSIFY
from htas.errors import UserError
from htas.graph import Arch, Network, ordered, resize, trace
from htas.models.cifar_resnet import CifarResNet
from htas.search.blockwise import BlockErrors, BlockOptions, Lesson, judge, train
from htas.search.inherited import settle
from htas.search.problem import Problem
from htas.search.program import best_within
from htas.search.segments import blocks_of
from htas.search.student import Maps, Student, maps_of
from htas.spaces.space import Space
from htas.strategies.blockwise import Blockwise
from htas.testing.strategy import SHAPE, split
from htas.testing.strategy import problem as tiny

pytestmark = pytest.mark.usefixtures("one_thread")
QUICK = BlockOptions(images=32, epochs=1, batch=16, lr=0.002, judged=16, cells=512, error="loss")


def halves(network: Network, *, depths: bool = True) -> Space:
    """Half of the base widths, and the base widths; all depths, or the base network's."""
    widths = {
        name: tuple(sorted({site.near(site.base / 2), site.base})) for name, site in network.widths.items()
    }  # fmt: skip
    return Space(
        "tiny", widths,
        {name: tuple(range(1 if depths else site.base, site.base + 1)) for name, site in network.depths.items()},
    )  # fmt: skip


def problem(folder: Path, net: nn.Module, *, most: float = 0.6, shape: tuple[int, ...] = SHAPE) -> Problem:
    torch.manual_seed(0)
    network = trace(net.eval(), torch.zeros(2, *shape))
    data, cost = Data(2, (shape,), split(32, 0), split(16, 1), split(16, 2), split(16, 3)), CountCost(network)
    limit = Limit("macs", f"{most:.0%}", cost, most * cost.cost(network.base))
    return Problem(
        network, lambda _: None, data, halves(network), cost, "cpu", 0, folder / "search.safetensors", lambda: net,
        limits=(limit,),
    )  # fmt: skip


class Plain(nn.Module):
    """Four convolutions without norms, and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3)
        self.three, self.four = nn.Conv2d(6, 8, 1), nn.Conv2d(8, 4, 1)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.two(F.gelu(self.one(x))))
        return self.head(F.gelu(self.four(F.gelu(self.three(x)))).mean((2, 3)))


class Residual(nn.Module):
    """A block with a norm between two feature maps."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.one, self.norm = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.two, self.head = nn.Conv2d(6, 8, 3, padding=1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = (x + self.two(self.norm(self.one(x)).relu())).relu()
        return self.head(x).mean((2, 3))


def errors_of(task: Problem, options: BlockOptions = QUICK) -> BlockErrors:
    return BlockErrors(task, ordered(task.base(), task.network.example()), options)


# -- blocks ------------------------------------------------------------------------------------------------------------


def borders(network: Network, space: Space) -> list[tuple[str, str]]:
    return [(block.entries[0].name, block.name) for block in blocks_of(network, space)]


def test_blocks_of_a_residual_network_are_its_blocks() -> None:
    network = trace(CifarResNet(14).build(2), torch.zeros(1, *SHAPE))
    blocks = blocks_of(network, halves(network))
    assert [block.name for block in blocks] == [
        "stages.0.0.relu#2", "stages.0:depth", "stages.1.0.relu#2", "stages.1:depth", "stages.2.0.relu#2",
        "stages.2:depth", "classifier",
    ]  # fmt: skip
    assert [(block.site, block.number) for block in blocks[2:4]] == [("stages.1", 0), ("stages.1", 1)]
    assert blocks[2].end is not None and blocks[2].end.name == "stages.1:depth" and blocks[3].end is None
    assert blocks[0].widths == ("stem.conv", "stages.0.0.conv1.conv")
    assert blocks[2].widths == ("stem.conv", "stages.1.0.conv1.conv", "stages.1.0.conv2.conv")
    shallow = Arch(network.base.widths, {**network.base.depths, "stages.1": 1})
    assert blocks[2].runs(shallow) and blocks[2].is_last(shallow) and not blocks[3].runs(shallow)
    assert not blocks[2].is_last(network.base) and blocks[3].runs(network.base)
    named = [block.name for block in blocks_of(network, halves(network, depths=False))]
    assert named == [*(block.name for block in blocks[:5]), ":flatten", "classifier"]


def test_a_chain_of_layers_is_cut_where_a_width_lies_between() -> None:
    net = Plain()
    network = trace(net, torch.zeros(1, *SHAPE))
    assert borders(network, halves(network)) == [(":x", ":gelu#2"), (":gelu#2", ":mean"), (":mean", "head")]


def test_what_is_read_later_is_never_passed_by() -> None:
    """A feature map that the head reads too, and a layer that is called twice."""

    class Bypassed(Plain):
        def forward(self, x: Tensor) -> Tensor:
            early = F.gelu(self.two(F.gelu(self.one(x))))
            late = F.gelu(self.four(F.gelu(self.three(early))))
            return self.head(late.mean((2, 3))) + early.mean()

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.three = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 8, 1)
            self.head = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.two(F.gelu(self.one(x)))
            x = self.two(F.gelu(self.three(F.gelu(x))))
            return self.head(self.three(x).mean((2, 3)))

    for net, together in ((Bypassed(), {"three", "four", "head"}), (Twice(), {"one", "two", "three"})):
        network = trace(net, torch.zeros(1, *SHAPE))
        modules = [
            {node.module for node in block.nodes if node.module} for block in blocks_of(network, halves(network))
        ]
        assert together in modules
        assert all(not one & other for one, other in itertools.combinations(modules, 2))


def test_a_block_without_a_choice_is_left_out() -> None:
    network = trace(Plain(), torch.zeros(1, *SHAPE))
    base = {name: (site.base,) for name, site in network.widths.items()}
    site = next(name for name in base if name.startswith("three"))
    assert borders(network, Space("tiny", {**base, site: (4, 8)}, {})) != []
    assert borders(network, Space("tiny", base, {})) == []


# -- what a block learns -----------------------------------------------------------------------------------------------


def lesson_of(task: Problem, number: int = 0) -> tuple[Network, Student, list[Maps], Lesson]:
    """An untrained student, and maps of training images."""
    teacher = ordered(task.base(), task.network.example())
    network = replace(task.network, module=teacher)
    lesson = Lesson(blocks_of(network, task.space)[number], False)
    maps = list(maps_of(network, teacher, lesson.block, lesson.targets, task.data.weights.batches(32)))
    return network, Student(network, task.space, lesson.block, lesson.targets, maps), maps, lesson


@pytest.mark.parametrize("images", [1, 5, 8])
def test_norms_behind_pooling_settle_with_a_last_batch_of_one_image(images: int) -> None:
    """One value a channel has no variance, and PyTorch refuses it."""
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4), nn.BatchNorm1d(4)).eval()
    norm, pixels = net[3], torch.randn(images, 3, 6, 6)
    assert isinstance(norm, nn.BatchNorm1d) and norm.running_mean is not None
    settle(net, [(each, torch.zeros(len(each))) for each in pixels.split(4)])
    whole = pixels[: images // 4 * 4].split(4)
    expected = [net[:3](each).mean(0) for each in whole if len(each)] or [torch.zeros(4)]
    torch.testing.assert_close(norm.running_mean, torch.stack(expected).mean(0))
    assert not norm.training


@pytest.mark.parametrize("build", [Plain, Residual])
def test_the_base_networks_own_choices_err_by_nothing(build: Callable[[], nn.Module], tmp_path: Path) -> None:
    task = problem(tmp_path, build())
    settle(task.base(), task.data.weights.batches(32))
    for number in range(len(blocks_of(task.network, task.space))):
        network, student, maps, _ = lesson_of(task, number)
        student.allocate([network.base])
        assert not student.into and not student.back
        assert judge(student, maps, [network.base])[0] < 1e-4


def test_an_error_is_what_plain_modules_make_of_chosen_channels(tmp_path: Path) -> None:
    """The body of a network with half of its channels everywhere, before it learns: by torch alone."""
    task = problem(tmp_path, Residual())
    teacher = ordered(task.base(), task.network.example())
    network = replace(task.network, module=teacher)
    space = task.space
    lesson = Lesson(blocks_of(network, space)[0], False)
    batches = list(task.data.weights.batches(16))
    maps = list(maps_of(network, teacher, lesson.block, lesson.targets, batches))
    student = Student(network, space, lesson.block, lesson.targets, maps)
    student.allocate([space.narrowest])
    [error] = judge(student, maps, [space.narrowest])

    small = resize(network, space.narrowest)
    small.norm.train()
    with torch.no_grad():
        x = small.stem(batches[0][0]).relu()
        made = (x + small.two(small.norm(small.one(x)).relu())).relu().movedim(1, -1).flatten(0, 2).double().numpy()
        x = teacher.stem(batches[0][0]).relu()
        wanted = (x + teacher.two(teacher.norm(teacher.one(x)).relu())).relu()
    wanted = wanted.movedim(1, -1).flatten(0, 2).double().numpy()
    matrix = np.linalg.lstsq(np.c_[wanted[:, :4], np.ones(len(wanted))], wanted, rcond=None)[0]
    noise = ((np.c_[made, np.ones(len(made))] @ matrix - wanted) ** 2).mean(0)
    assert lesson.name == ":relu#3" and len(maps) == 1 and made.shape[1] == 4
    assert error == pytest.approx((noise / wanted.var(0).clip(0.01 * wanted.var(0).mean())).mean(), rel=0.02)


def test_what_an_error_adds_to_the_loss_is_half_of_its_square_times_that_of_the_slope(tmp_path: Path) -> None:
    """By the gradients of a plain forward pass, for classes drawn alike."""
    task = problem(tmp_path, Plain())
    teacher = ordered(task.base(), task.network.example())
    network, block = replace(task.network, module=teacher), blocks_of(task.network, task.space)[0]
    images, labels = next(iter(task.data.validation.batches(16)))
    torch.manual_seed(3)
    [maps] = maps_of(network, teacher, block, block.exits, [(images, labels)], CLASSIFY)
    torch.manual_seed(3)
    with torch.no_grad():
        start = F.gelu(teacher.two(F.gelu(teacher.one(images))))
    start.requires_grad_()
    outputs = teacher.head(F.gelu(teacher.four(F.gelu(teacher.three(start)))).mean((2, 3)))
    drawn = torch.distributions.Categorical(logits=outputs.detach()).sample()
    F.cross_entropy(outputs, drawn, reduction="sum").backward()
    torch.testing.assert_close(maps.slopes[0], start.grad)
    torch.testing.assert_close(maps.targets[0], start.detach())
    error = torch.randn(maps.targets[0].shape)
    expected = sum(float((start.grad[at] * error[at]).square().sum()) / 2 for at in range(16)) / 16
    assert float(Student.loss([error], maps)) == pytest.approx(expected, rel=1e-4)


def test_a_block_learns_to_err_less_and_wider_blocks_err_less(tmp_path: Path) -> None:
    task = problem(tmp_path, Plain())
    network, student, maps, lesson = lesson_of(task)
    sites = [site for site in lesson.block.widths if site in task.space.widths]
    archs = [Arch({**network.base.widths, **{site: width(site) for site in sites}}, {}) for width in (
        lambda site: task.space.widths[site][0], lambda site: network.base.widths[site],
    )]  # fmt: skip
    student.allocate(archs)
    before = judge(student, maps, archs)
    from random import Random

    train(student, maps, archs, 100, 0.005, Random(0), lesson.name)
    after = judge(student, maps, archs)
    assert after[0] < 0.8 * before[0] and after[1] < after[0]


def test_the_last_block_of_a_stage_learns_what_the_stage_makes(tmp_path: Path) -> None:
    task = tiny(tmp_path)
    task = replace(task, base=lambda: CifarResNet(14).build(2))
    errors = errors_of(task)
    lessons = [lesson for lesson, _ in errors.lessons()]
    assert [lesson.name for lesson in lessons if lesson.last] == [
        f"stages.{stage}.0.relu#2 as the last" for stage in range(3)
    ]
    assert lessons[-1].name == "classifier" and len(lessons) == len({lesson.name for lesson in lessons}) == 10
    last = next(lesson for lesson in lessons if lesson.last)
    assert [node.name for node in last.targets] == ["stages.0:depth"]


# -- sums and archs ----------------------------------------------------------------------------------------------------


def test_the_program_takes_the_arch_of_least_error_that_trying_all_finds(tmp_path: Path) -> None:
    task = problem(tmp_path, Plain(), most=0.5)
    errors = errors_of(task)
    loss = errors.tables()
    cells = {lesson.name: cells for lesson, cells in errors.lessons()}
    space = task.space
    archs = [
        space.arch(dict(zip(space.choices, picks, strict=True))) for picks in itertools.product(*space.choices.values())
    ]
    for arch in archs:
        total = 0.0
        for block in errors.blocks:
            key = tuple(arch.widths[site] for site in block.widths)
            total += errors.errors[block.name][list(cells[block.name]).index(key)]
        assert loss(arch) == pytest.approx(total)
    best = min((arch for arch in archs if task.limits[0].ratio(arch) <= 1), key=loss)
    assert best_within(task.network, space, task.limits, loss, seconds=10).arch == best
    assert Blockwise(epochs=1, images=32, batch=16, judged=16).search(task).arch == best


def test_a_block_that_is_cut_does_not_err_and_the_one_before_has_its_work(tmp_path: Path) -> None:
    task = replace(tiny(tmp_path), base=lambda: CifarResNet(14).build(2))
    errors = errors_of(task)
    lessons = {lesson.name: cells for lesson, cells in errors.lessons()}
    errors.errors = {  # planted: its place in the list of lessons, whatever the widths
        name: [float(place)] * len(cells) for place, (name, cells) in enumerate(lessons.items())
    }
    loss, base = errors.tables(), task.network.base
    places = dict(zip(lessons, itertools.count(), strict=False))

    def at(depth: int) -> float:
        return loss(Arch(base.widths, {**base.depths, "stages.1": depth}))

    assert at(1) - at(2) == pytest.approx(
        places["stages.1.0.relu#2 as the last"] - places["stages.1.0.relu#2"] - places["stages.1:depth"]
    )


@pytest.mark.parametrize("cells", [6, 1])
def test_few_cells_give_sums_over_layers_or_single_sites(cells: int, tmp_path: Path) -> None:
    task = problem(tmp_path, Residual())
    errors = errors_of(task, replace(QUICK, cells=cells))
    assert max(len(group) for group in errors.groups[errors.blocks[0].name]) == (2 if cells == 6 else 1)
    loss = errors.tables()
    known = {lesson.name: list(each.values()) for lesson, each in errors.lessons()}
    for block in errors.blocks:
        assert len(known[block.name]) <= (4 if cells == 6 else 3)
    for arch, error in zip(known[errors.blocks[0].name], errors.errors[errors.blocks[0].name], strict=True):
        others = sum(
            errors.errors[block.name][0] if all(arch.widths[s] == task.network.base.widths[s] for s in block.widths)
            else errors.errors[block.name][
                [[each.widths[s] for s in block.widths] for each in known[block.name]].index(
                    [arch.widths[s] for s in block.widths])]
            for block in errors.blocks[1:]
        )  # fmt: skip
        if errors.groups[errors.blocks[0].name][0] and cells == 6:
            assert loss(arch) == pytest.approx(error + others)


def test_an_interrupted_search_ends_as_an_uninterrupted_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    strategy = Blockwise(epochs=1, images=32, batch=16, judged=16)
    (tmp_path / "parts").mkdir()
    whole = problem(tmp_path, Plain())
    parts = replace(whole, checkpoint=tmp_path / "parts" / "search.safetensors")
    expected = strategy.search(whole)
    learn, names = BlockErrors.learn, list[str]()

    def interrupted(self: BlockErrors, lesson: Lesson, cells: list[Arch], seed: int) -> list[float]:
        if len(names) == 2:
            raise KeyboardInterrupt
        names.append(lesson.name)
        return learn(self, lesson, cells, seed)

    monkeypatch.setattr(BlockErrors, "learn", interrupted)
    with pytest.raises(KeyboardInterrupt):
        strategy.search(parts)
    calls = iter(range(-100, 0))
    monkeypatch.setattr(BlockErrors, "learn", lambda *args: next(calls) and learn(*args))
    outcome = strategy.search(parts)
    assert len(names) == 2 and next(calls) == -99
    assert outcome.arch == expected.arch
    assert errors_of(parts).errors == errors_of(whole).errors
    for arch in (whole.space.narrowest, whole.space.widest):
        assert outcome.worth(arch) == expected.worth(arch)


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_feature_maps_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    net = Plain()
    task = problem(tmp_path, net)
    with torch.no_grad():
        net.four.bias[0] = math.inf
    with pytest.raises(UserError, match=r"what the trained network makes at (:mean|head) is not finite: its inputs"):
        Blockwise(images=32, batch=16).search(task)


def test_a_block_that_diverges_says_what_to_lower(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"the block that ends at .* diverged at a learning rate of .*; lower strategy.lr"
    ):
        Blockwise(images=32, epochs=3, batch=16, lr=1e30).search(problem(tmp_path, Plain()))


def test_maps_of_another_size_are_refused(tmp_path: Path) -> None:
    network, student, maps, _ = lesson_of(problem(tmp_path, Plain()))
    other = Maps(maps[0].entries, tuple(each[..., 1:] for each in maps[0].targets))
    with pytest.raises(UserError, match=r"the block that ends at :gelu#2 makes \[.*\] where the trained network makes"):
        student.misses(other, network.base)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"images": 0}, "strategy.images must be 1 or more, got 0"),
        ({"batch": 1}, "strategy.batch must be 2 or more, got 1"),
        ({"lr": 0.0}, "strategy.lr must be above 0, got 0.0"),
        ({"error": "least"}, "strategy.error must be loss or noise, got 'least'"),
    ],
)
def test_an_option_out_of_range_is_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Blockwise(**options)  # type: ignore[arg-type]
