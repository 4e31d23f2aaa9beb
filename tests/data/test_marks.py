"""The mark of a function tells it from another, and is the same in every process."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from htas.data.marks import mark

WEIGHT = torch.ones(3)


def by_global(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, weight=WEIGHT)


def by_helper(outputs: Tensor, targets: Tensor) -> Tensor:
    return 2 * by_global(outputs, targets)


def closure(weight: Any) -> Callable[..., Tensor]:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, weight=torch.as_tensor(weight))

    return loss


def default(weight: Tensor) -> Callable[..., Tensor]:
    def loss(outputs: Tensor, targets: Tensor, weight: Tensor = weight) -> Tensor:
        return F.cross_entropy(outputs, targets, weight=weight)

    return loss


def keyword(weight: Tensor) -> Callable[..., Tensor]:
    def loss(outputs: Tensor, targets: Tensor, *, weight: Tensor = weight) -> Tensor:
        return F.cross_entropy(outputs, targets, weight=weight)

    return loss


@dataclass
class Object:
    weight: Any

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, weight=self.weight)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self(outputs, targets)


class Hidden(nn.Module):
    """A loss whose weight is in no state_dict."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight, persistent=False)
        self.inner = nn.Identity()


def nested(weight: Tensor) -> nn.Module:
    return nn.Sequential(nn.Sequential(Hidden(weight)))


KINDS: dict[str, Callable[[Tensor], Any]] = {
    "closure over a tensor": closure,
    "closure over an array": lambda weight: closure(weight.numpy()),
    "closure over a list": lambda weight: closure(weight.tolist()),
    "default argument": default,
    "keyword default": keyword,
    "partial by name": lambda weight: partial(F.cross_entropy, weight=weight),
    "partial by place": lambda weight: partial(F.cross_entropy, None, None, weight),
    "partial of a closure": lambda weight: partial(closure(weight), reduction="sum"),
    "a closure in a closure": lambda weight: closure([closure(weight)]),
    "module with a buffer": lambda weight: nn.CrossEntropyLoss(weight=weight),
    "module with a hidden buffer": Hidden,
    "module in a module": nested,
    "method of a module": lambda weight: Hidden(weight).forward,
    "object": Object,
    "method of an object": lambda weight: Object(weight).loss,
    "dictionary in an object": lambda weight: Object({"weights": [weight]}),
}


@pytest.mark.parametrize("name", KINDS)
def test_other_tensors_anywhere_in_a_function_are_another_function(name):
    make = KINDS[name]
    one, same, other = (mark(make(torch.tensor([1.0, 1.0, last]))) for last in (1.0, 1.0, 2.0))
    assert one == same != other


def test_globals_that_a_function_reads_are_part_of_it_through_others_too(monkeypatch):
    before = mark(by_global), mark(by_helper)
    assert before == (mark(by_global), mark(by_helper))
    monkeypatch.setitem(globals(), "WEIGHT", torch.tensor([1.0, 1.0, 5.0]))
    assert mark(by_global) != before[0] and mark(by_helper) != before[1]


def test_large_arrays_differ_where_they_are_never_printed():
    one = np.zeros(100_000)
    other = one.copy()
    other[50_000] = 1
    assert mark(closure(one)) != mark(closure(other))


def test_functions_that_contain_themselves_have_a_mark():
    holder: dict[str, Any] = {}

    def loss(outputs: Tensor, targets: Tensor) -> Any:
        return holder["loss"]

    holder["loss"] = loss
    assert mark(loss) == mark(loss)


@pytest.mark.slow
def test_the_mark_is_the_same_in_another_process(tmp_path: Path):
    (tmp_path / "own_loss.py").write_text(
        "import torch, logging\n"
        "import torch.nn.functional as F\n"
        "from functools import partial\n"
        "LOG, NAMES, WEIGHT = logging.getLogger('x'), {'a', 'b', 'c'}, torch.ones(3)\n"
        "def loss(outputs, targets, log=LOG, device=torch.device('cpu')):\n"
        "    assert NAMES and log and open\n"
        "    return F.cross_entropy(outputs, targets, WEIGHT) + helper(object())\n"
        "def helper(one): return [each for each in (WEIGHT, LOG)]\n"
        "class Loss(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.log, self.generator, self.names = LOG, torch.Generator(), NAMES\n"
        "    def forward(self, outputs, targets): return loss(outputs, targets)\n"
        "from htas.data.marks import mark\n"
        "print(mark(loss), mark(Loss()), mark(partial(loss, log=LOG)), mark(lambda: helper(1)))\n"
    )
    printed = {
        subprocess.run(
            [sys.executable, "own_loss.py"], cwd=tmp_path, env=None, capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    }
    assert len(printed) == 1 and len(set(printed.pop().split())) == 4
