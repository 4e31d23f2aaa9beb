"""What a runtime is: it turns a network or a layer into a program that can be timed and checked.

A runtime is one file of this folder; its name is the target's `runtime`.
"""

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from torch import Tensor, nn

from htas.bench import CudaTimer, HostTimer, Timer
from htas.layer import Layer
from htas.plugins import find
from htas.target import Target


@dataclass(frozen=True)
class Program:
    """A compiled network or layer, with inputs in place."""

    run: Callable[[], object]
    """One batch, its inputs already where the runtime wants them: what is timed."""
    outputs: Callable[..., Tensor]
    """Tensors in, the network's output on the CPU: for checking."""


@dataclass(frozen=True)
class Runtime(ABC):
    """Compiles for one target. Implementations are frozen dataclasses; further fields are their options."""

    target: Target

    @abstractmethod
    def compile(self, model: nn.Module, example: tuple[Tensor, ...]) -> Program:
        """The network in eval mode, for inputs of exactly the example's shapes; the model itself stays as it is."""

    @abstractmethod
    def describe(self) -> Mapping[str, str]:
        """Versions and settings that readings depend on; they become part of a measurement's context."""

    def compile_layer(self, layer: Layer) -> Program:
        """The layer with weights drawn at random, at the target's batch."""
        return self.compile(layer.build(), layer.example(self.target.batch))

    def session(self) -> AbstractContextManager[object]:
        """Holds the settings that programs need while they run, and puts the old ones back."""
        return nullcontext()

    def timer(self) -> Timer:
        """The clock that sees all of a program's work."""
        return HostTimer() if self.target.device == "cpu" else CudaTimer()


def open_runtime(target: Target) -> Runtime:
    """The runtime that the target names; raises ValueError that names the ones there are, or lacks the device."""
    target.check()
    found: type[Runtime] = find(sys.modules[__name__], Runtime, target.runtime)  # type: ignore[type-abstract]
    return found(target)
