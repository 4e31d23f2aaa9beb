"""What a strategy must keep."""

from collections.abc import Sequence
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from htas.cost.counts import CountCost
from htas.cost.limits import Limit
from htas.data.split import Data, Split
from htas.graph import trace
from htas.models.cifar_resnet import CifarResNet
from htas.search.problem import Problem
from htas.search.record import EpochRecord
from htas.spaces.space import Space
from htas.strategies import Strategy
from htas.testing.plugin import check_options

SHAPE = (3, 8, 8)


def split(count: int, seed: int) -> Split:
    """Images of two classes, dark and bright, so that a network learns something in a few steps."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    noise = torch.randint(100, (count, *SHAPE), generator=generator)
    return Split((noise + 100 * labels.view(-1, 1, 1, 1)).to(torch.uint8), labels, (0.4,) * 3, (0.25,) * 3, False, 1)


def problem(folder: Path, *, most: float = 0.6, depths: bool = True, family: CifarResNet | None = None) -> Problem:
    """A ResNet-14 for 8x8 images, three widths a site, and a limit: `most` of the base network's multiply-adds.

    Without `depths` all blocks stay. The checkpoint lies in `folder`.
    """
    family = family or CifarResNet(14)
    network = trace(family.build(2), torch.zeros(2, *SHAPE))
    widths = {name: (site.base // 4, site.base // 2, site.base) for name, site in network.widths.items()}
    blocks = {name: tuple(range(1 if depths else site.base, site.base + 1)) for name, site in network.depths.items()}
    data, cost = Data(2, (SHAPE,), split(32, 0), split(16, 1), split(16, 2), split(16, 3)), CountCost(network)
    limit = Limit("macs", f"{most:.0%}", cost, most * cost.cost(network.base))
    return Problem(
        network, family.reset, data, Space("tiny", widths, blocks), cost, "cpu", 0, folder / "search.safetensors",
        lambda: family.build(2), limits=(limit,),
    )  # fmt: skip


class StrategyContract:
    """Inherit it in a class `TestMine` that sets `strategy`, with options that make it quick.

    `searches_depths` and `keeps_limits` are to be False where a strategy leaves depths alone, or weighs the cost in
    place of keeping it.
    """

    strategy: Strategy
    searches_depths: bool = True
    keeps_limits: bool = True

    @pytest.fixture
    def plugin(self) -> Strategy:
        """The strategy; a fixture of this name in a subclass may give several."""
        return self.strategy

    @pytest.fixture
    def task(self, plugin: Strategy, tmp_path: Path) -> Problem:
        """What is searched."""
        return problem(tmp_path, depths=self.searches_depths)

    @pytest.fixture(autouse=True)
    def _one_thread(self) -> Any:
        """Threads wait for each other longer than such networks compute."""
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(before)

    def test_it_documents_its_options(self, plugin: Strategy) -> None:
        check_options(type(plugin), Strategy)
        assert plugin.title
        for field in fields(plugin)[:1]:  # type: ignore[arg-type]
            with pytest.raises(FrozenInstanceError):
                setattr(plugin, field.name, None)

    def test_it_finds_an_arch_of_the_space_and_judges_others_alike(self, plugin: Strategy, task: Problem) -> None:
        outcome, space = plugin.search(task), task.space
        assert outcome.arch in space and all(arch in space for arch in outcome.pool)
        assert not self.keeps_limits or task.limits[0].ratio(outcome.arch) <= 1
        assert all(isinstance(epoch, EpochRecord) for epoch in outcome.epochs)
        assert isinstance(outcome.converged, bool) and outcome.why and outcome.seconds >= 0
        accuracies = outcome.validate([outcome.arch, space.narrowest, space.widest, outcome.arch])
        assert len(accuracies) == 4 and all(0 <= accuracy <= 1 for accuracy in accuracies)
        assert accuracies[0] == accuracies[3] == outcome.validate([outcome.arch])[0]

    def test_it_repeats_under_a_seed_and_never_sees_the_test_images(
        self, plugin: Strategy, task: Problem, tmp_path: Path
    ) -> None:
        blind = replace(task, data=replace(task.data, test=None))  # type: ignore[arg-type]
        before = {key: tensor.clone() for key, tensor in blind.network.module.state_dict().items()}
        (tmp_path / "other").mkdir()
        one, two = (
            plugin.search(replace(blind, checkpoint=folder / "search.safetensors"))
            for folder in (tmp_path, tmp_path / "other")
        )
        one.validate([one.arch])
        assert one.arch == two.arch and _timeless(one.epochs) == _timeless(two.epochs)
        assert all(torch.equal(tensor, before[key]) for key, tensor in blind.network.module.state_dict().items())


def _timeless(epochs: Sequence[EpochRecord]) -> list[EpochRecord]:
    return [replace(epoch, seconds=0.0) for epoch in epochs]
