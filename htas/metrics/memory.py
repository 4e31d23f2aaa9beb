"""Peak activation memory of one batch: the most bytes of tensors alive at once during a forward pass."""

import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from htas.graph.layer import Layer
from htas.graph.modes import copied
from htas.metrics import Case, CountedMetric, OnRound, Pending
from htas.timing.measurement import Measurement

if TYPE_CHECKING:
    from htas.cost.model import CostModel
    from htas.cost.source import NetworkCosts


@dataclass(frozen=True)
class Memory(CountedMetric):
    """Bytes of the input and of everything computed from it, weights left out, in eager PyTorch.

    On CPU tensors are counted as the pass creates and frees them; workspaces inside an operator are not seen. On CUDA
    it is the rise of the peak of PyTorch's allocator, with workspaces and rounding to its blocks. The input counts to
    the end, because the caller holds it. Other runtimes plan their memory themselves, so the target's runtime makes no
    difference here, nor does its precision: numbers count as fp32.
    """

    unit: ClassVar[str] = "bytes"
    units: ClassVar[Mapping[str, float]] = {
        "B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30,
    }  # fmt: skip
    example: ClassVar[str] = "4 MB"

    @classmethod
    def cost(cls, costs: "NetworkCosts") -> "CostModel":
        """The peak of an arch, from one look at how the tensors of its network are born and die."""
        return costs.memory

    def measure(self, cases: Sequence[Case], *, on_round: OnRound = None, pending: Pending = None) -> list[Measurement]:
        """One figure for each case, with a remark where the target has another precision than fp32."""
        readings, precision = super().measure(cases, on_round=on_round, pending=pending), self.target.precision
        if precision == "fp32":
            return readings
        part = "a quarter" if precision == "int8" else "half"
        remark = f"numbers count as fp32; in {precision} most tensors take {part} of these bytes"
        return [replace(reading, remarks=(*reading.remarks, remark)) for reading in readings]

    def count(self, case: Case) -> int:
        """Bytes of a batch."""
        self.target.check()
        with torch.random.fork_rng(devices=[]):  # building a layer draws its weights
            if isinstance(case, Layer):
                network, inputs = case.build(), case.example(self.target.batch)
            else:
                network, inputs = copied(case).eval(), self.target.example()
        return peak_on_cuda(network, inputs) if self.target.device == "cuda" else peak(network.cpu(), inputs)


def peak(network: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    """The most bytes alive at once while a network runs on the CPU, inputs included."""
    living = _Living()
    living.follow(network, inputs)
    return living.most


@dataclass
class Life:
    """A storage that a pass creates: alive from birth number `born` until just before birth number `died`."""

    size: int
    """Bytes."""
    born: int
    died: int
    owner: str
    """Name of the innermost running module; empty for the network itself."""


def lives(network: nn.Module, inputs: tuple[Tensor, ...]) -> list[Life]:
    """Every storage of a pass on the CPU in order of birth, the inputs first; inputs live to the end."""
    living, network = _Living(), copied(network)
    for name, part in network.named_modules():
        part.register_forward_pre_hook(partial(living.enter, name))
        part.register_forward_hook(living.leave)
    living.follow(network, inputs)
    return living.lives


def peak_on_cuda(network: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    """The most bytes that a pass adds to PyTorch's allocation on the GPU, inputs included."""
    network = network.cuda()
    with torch.no_grad():
        network(*(tensor.cuda() for tensor in inputs))  # libraries keep their workspaces from the first call on
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        network(*(tensor.cuda() for tensor in inputs))
        torch.cuda.synchronize()
    return int(torch.cuda.max_memory_allocated() - before)


class _Living(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows storages from birth until nothing refers to them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self.lives: list[Life] = []
        self.running: list[str] = []

    def follow(self, network: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        with torch.no_grad(), self:
            for tensor in inputs:
                self.born(tensor)
            network(*inputs)

    def enter(self, name: str, *_: Any) -> None:
        self.running.append(name)

    def leave(self, *_: Any) -> None:
        self.running.pop()

    def born(self, tensor: Tensor) -> None:
        """Count a storage until it dies."""
        storage = tensor.untyped_storage()
        life = Life(storage.nbytes(), len(self.lives), sys.maxsize, self.running[-1] if self.running else "")
        self.lives.append(life)
        self.now += life.size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._died, life).atexit = False

    def _died(self, life: Life) -> None:
        self.now -= life.size
        life.died = len(self.lives)

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        outputs = func(*args, **(kwargs or {}))
        # views, operators in place and slices of weights share the storage of an argument
        places = {_place(each) for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)}
        for each in tree_leaves(outputs):
            if isinstance(each, Tensor) and _place(each) not in places:
                places.add(_place(each))
                self.born(each)
        return outputs


def _place(tensor: Tensor) -> int:
    """Equal for tensors that share a storage."""
    return int(tensor.untyped_storage()._cdata)
