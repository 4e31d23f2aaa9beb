"""Where the target is in int8, archs are judged in simulated int8: in a supernet, with inherited weights, by trials."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from one_in import one_in
from torch import Tensor

from htas.data.split import Data, Split
from htas.data.task import CLASSIFY
from htas.graph import Arch, trace
from htas.models.cifar_resnet import CifarResNet
from htas.search.inherited import Inherited
from htas.search.problem import Problem
from htas.spaces.space import Space
from htas.strategies import _sampled
from htas.strategies._trials import Trials
from htas.strategies.random import RandomSearch
from htas.strategies.uniform import Uniform
from htas.training import int8

FAMILY = CifarResNet(8)
pytestmark = pytest.mark.usefixtures("one_thread")
Judge = Callable[[Sequence[Arch]], list[float]]


def sure(logits: Tensor, labels: Tensor) -> Tensor:
    """The probability of the right class, which every rounding changes."""
    return logits.softmax(1).gather(1, labels[:, None]).mean()


def split(count: int, seed: int) -> Split:
    """Images of two classes, 8x8: dark and bright."""
    labels = torch.arange(count) % 2
    noise = torch.randint(100, (count, 3, 8, 8), generator=torch.Generator().manual_seed(seed))
    return Split((noise + 100 * labels.view(-1, 1, 1, 1)).to(torch.uint8), labels, (0.4,) * 3, (0.25,) * 3, False, 1)


def problem(folder: Path, bits: int) -> Problem:
    torch.manual_seed(0)
    network = trace(FAMILY.build(2), torch.zeros(2, 3, 8, 8))
    widths = {name: (site.base // 2, site.base) for name, site in network.widths.items()}
    space = Space("tiny", widths, {name: (1,) for name in network.depths})
    task = replace(CLASSIFY, score=sure)
    data = Data(2, ((3, 8, 8),), split(64, 0), split(32, 1), split(32, 2), split(16, 3), task)
    folder.mkdir(exist_ok=True)
    return Problem(
        network, FAMILY.reset, data, space, None, "cpu", 0, folder / "search.safetensors", lambda: network.module,  # type: ignore[arg-type]
        weight_bits=bits,
    )  # fmt: skip


def supernet(given: Problem) -> Judge:
    torch.manual_seed(0)
    return _sampled._Training(given, RandomSearch(batch=16, precision="fp32")).validate


def inherited(given: Problem) -> Judge:
    torch.manual_seed(0)
    return Inherited(given, FAMILY.build(2))


def trials(given: Problem) -> Judge:
    return Trials(given, Uniform(epochs=1, batch=16, precision="fp32").recipe)


@pytest.mark.parametrize("judge", one_in(3, [inherited, supernet, trials]))
def test_judged_as_within_the_simulation(judge: Callable[[Problem], Judge], tmp_path: Path) -> None:
    archs = [(given := problem(tmp_path / "fp32", 0)).space.widest, given.space.narrowest]
    plain = judge(given)(archs)
    eight, two = (judge(problem(tmp_path / f"{bits}", bits))(archs) for bits in (8, 2))
    assert plain != eight and plain != two
    assert all(abs(a - b) < 0.05 for a, b in zip(plain, eight, strict=True))  # rounding to eight bits is small
    off = [sum(abs(a - b) for a, b in zip(plain, each, strict=True)) for each in (eight, two)]
    assert off[0] < off[1]
    if judge is not trials:
        same = judge(given)
        with int8.SimulatedInt8(8):
            assert eight == pytest.approx(same(archs))
