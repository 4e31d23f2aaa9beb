"""A recorded step as a function of its inputs, at any widths."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from htas.data.nests import replaced, tensors_in
from htas.graph.layout import Layout
from htas.graph.length import Leaf, leaves_of, length_at
from htas.graph.record import Call, Value

Modules = Callable[[str], nn.Module]
"""Gives the module of a qualified name."""


@dataclass(frozen=True, eq=False)
class Step:
    """Computes one output of a call from its inputs, the tensors `order`; sizes are those of these tensors."""

    call: Call
    output: int
    order: tuple[Value, ...]
    counted: Mapping[Leaf, Layout]
    """Numbers that modules hold and that follow widths."""

    def __call__(self, modules: Modules, values: tuple[Any, ...], widths: Mapping[str, int] | None = None) -> Any:
        """The output; `widths`, by site, where they are not those of the base network."""
        tensors = dict(zip(self.order, values, strict=True))
        device = next((tensor.device for tensor in values if isinstance(tensor, Tensor)), None)

        def number(leaf: Leaf, recorded: int) -> int:
            if leaf[0] == "size":
                return int(tensors[leaf[1]].shape[leaf[2]])
            if widths is None or leaf not in self.counted:
                return recorded
            return self.counted[leaf].size(widths)

        def put(leaf: Any) -> Any:
            if isinstance(leaf, Value):
                return tensors[leaf] if leaf in tensors else leaf.tensor.to(device)
            if isinstance(leaf, torch.device):
                return device or leaf
            return length_at(leaf, number)

        args, kwargs = replaced(self.call.args, put), replaced(dict(self.call.kwargs), put)
        if self.call.name == "__setitem__":
            target = args[0].clone()
            target[args[1]] = args[2]
            return target
        function: Any = modules(self.call.module) if self.call.module else self.call.function
        with learning(self):
            return tensors_in(function(*args, **kwargs))[self.output]


def learning(run: object) -> AbstractContextManager[object]:
    """While gradients are off, if a network's forward turns them off for the step that runs."""
    return torch.no_grad() if isinstance(run, Step) and run.call.quiet else nullcontext()


def order_of(call: Call) -> tuple[Value, ...]:
    """The tensors that a step needs: its arguments, and those whose sizes it reads; no constants."""
    sized = [leaf[1] for length in call.lengths for leaf, _ in leaves_of(length) if leaf[0] == "size"]
    return tuple(dict.fromkeys(value for value in (*call.values, *sized) if not is_constant(value)))


def is_constant(value: Value) -> bool:
    """Whether a tensor is neither made by a step, nor an input, nor a parameter."""
    return value.call is None and not value.param and not value.derived


def parameter(path: str) -> Callable[..., Any]:
    """A function that reads a parameter or buffer."""
    owner, _, name = path.rpartition(".")

    def run(modules: Modules, values: tuple[Any, ...], widths: Mapping[str, int] | None = None) -> Any:
        return getattr(modules(owner), name)

    return run


def first_value(_: Modules, values: tuple[Any, ...], widths: Mapping[str, int] | None = None) -> Any:
    """The first input."""
    return values[0]


def last_value(_: Modules, values: tuple[Any, ...], widths: Mapping[str, int] | None = None) -> Any:
    """The last input."""
    return values[-1]


@contextmanager
def counting() -> Iterator[Callable[[], int]]:
    """Within it what runs is counted: gives a function of the multiply-adds so far, biases left out.

    The counter is torch's own, which sees no attention in one piece.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode  # takes a second to load

    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            yield lambda: int(counter.get_total_flops()) // 2
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def macs_of(step: Step, modules: Modules, images: int) -> int:
    """Multiply-adds of a step for one image."""
    with counting() as macs:
        step(modules, tuple(value.tensor.detach() for value in step.order))  # its trackers want no parameters
    return int(macs() / images + 0.5)
