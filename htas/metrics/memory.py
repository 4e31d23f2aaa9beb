"""Peak activation memory of one batch: the most bytes of tensors alive at once during a forward pass."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from htas.layer import Layer
from htas.measurement import Measurement
from htas.metrics import Case, Metric, OnRound, Wanted


@dataclass(frozen=True)
class Memory(Metric):
    """Bytes of the input and of everything computed from it, weights left out, in eager PyTorch.

    On CPU it is counted, tensor by tensor as the pass makes and drops them; what an operator needs for itself while it
    runs is not seen. On CUDA it is what PyTorch's allocator held at most, over what it held before: workspaces and
    rounding to its blocks are in it. The input counts to the end, because the caller holds it. Other runtimes plan
    their memory themselves, so a target's runtime makes no difference here.
    """

    unit: ClassVar[str] = "bytes"

    def measure(
        self, cases: Sequence[Case], *, on_round: OnRound | None = None, wanted: Wanted | None = None
    ) -> list[Measurement]:
        """Counted, so each measurement has one reading."""
        self.target.check()
        return [Measurement((float(self._count(case)),), self.unit) for case in cases]

    def _count(self, case: Case) -> int:
        with torch.random.fork_rng(devices=[]):  # building a layer draws its weights
            if isinstance(case, Layer):
                network, inputs = case.build(), case.example(self.target.batch)
            else:
                network, inputs = deepcopy(case).eval(), (torch.zeros(self.target.batch, *self.target.image),)
        return peak_on_cuda(network, inputs) if self.target.device == "cuda" else peak(network.cpu(), inputs)


def peak(network: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    """The most bytes alive at once while a network runs on the CPU, its inputs among them."""
    living = _Living()
    with torch.no_grad(), living:
        for tensor in inputs:
            living.born(tensor)
        network(*inputs)
    return living.most


def peak_on_cuda(network: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    """The most bytes that a pass adds to what PyTorch has allocated on the GPU, its inputs among them."""
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
    """Follows the storages that operators make, from birth until nothing refers to them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0

    def born(self, tensor: Tensor) -> None:
        """Count a storage until it dies."""
        storage = tensor.untyped_storage()
        size = storage.nbytes()
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._died, size).atexit = False

    def _died(self, size: int) -> None:
        self.now -= size

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        # a view, an operator in place, and what is cut out of a weight share the storage of an argument
        known = {_place(each) for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)}
        for each in tree_leaves(made):
            if isinstance(each, Tensor) and _place(each) not in known:
                known.add(_place(each))
                self.born(each)
        return made


def _place(tensor: Tensor) -> int:
    """Equal for tensors that share a storage."""
    return int(tensor.untyped_storage()._cdata)
