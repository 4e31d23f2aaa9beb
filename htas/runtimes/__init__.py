"""The contract of a runtime, which turns a network or a layer into a program that can be timed and checked.

A runtime is one file of this folder; its name is the target's `runtime`.
"""

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from htas.errors import UserError, of_option
from htas.graph.layer import Layer
from htas.plugins import create, find
from htas.plugins.options import options_of
from htas.text import listing
from htas.timing.bench import CudaTimer, HostTimer, Timer
from htas.timing.contention import Watch, priority
from htas.timing.quota import free_memory
from htas.timing.target import Target, runtime_options

if TYPE_CHECKING:
    from htas.runtimes._build import Builder


@dataclass(frozen=True)
class Program:
    """A compiled network or layer, with inputs in place."""

    run: Callable[[], object]
    """Computes one batch, with inputs already in the memory of the runtime; this call is timed."""
    outputs: Callable[..., Tensor]
    """From input tensors to the network's output, on the CPU in fp32; for checks."""
    rebuild: "Callable[[], Program] | None" = None
    """Builds the same program again, without the slow steps that never differ: the export, the check."""
    remark: str = ""
    """What a reader of its figures must know, as a sentence."""


@dataclass(frozen=True)
class Runtime(ABC):
    """Compiles for one target. Implementations are frozen dataclasses; further fields are their options."""

    build_seconds: ClassVar[float] = 0.001
    """Approximate seconds to build the program of a layer; a survey of a slow runtime builds fewer."""
    chained: ClassVar[tuple[str, ...]] = ()
    """Devices on which layers are timed as the increment of a chain, which adds up to networks better."""
    exports: ClassVar[bool] = False
    """True if a network becomes ONNX first, which takes seconds for a deep one."""
    lacking: ClassVar[str] = ""
    """Why a precision is missing; ends the sentence that refuses it."""
    what: ClassVar[str] = ""
    """The runtime in words; empty for its name."""
    target: Target

    @classmethod
    def precisions(cls, device: str) -> tuple[str, ...]:
        """Precisions on a device of this machine; empty where the runtime does not run there."""
        return ("fp32",)

    def compile(self, model: nn.Module, example: tuple[Tensor, ...]) -> Program:
        """The network in eval mode, for inputs of exactly the example's shapes; the model itself stays as it is.

        The default builds a copy and compares its outputs with eager PyTorch's. Raises UserError, which names the layer
        that cannot be run, or where outputs differ.
        """
        return self.builder.network(model, example, self.build)

    def deploy(self, model: nn.Module, example: tuple[Tensor, ...], images: tuple[Tensor, ...]) -> Program:
        """The network as its user runs it: where the precision is int8, with ranges of activations that these images
        show, one tensor [N, *shape] for each input, of which whole batches are taken. As `compile` otherwise."""
        return self.compile(model, example)

    @property
    def builder(self) -> "Builder":
        """Compares what `build` returns, and says in a sentence why it fails."""
        from htas.runtimes._build import Builder

        return Builder(self.what or f"target.runtime {self.target.runtime!r}", self.target)

    def build(self, network: nn.Module, example: tuple[Tensor, ...]) -> Program:
        """The program of a network in eval mode on the CPU, which may be changed; nothing is compared yet.

        A runtime overrides this method or `compile`; an exception of any kind becomes a sentence that names the layer.
        """
        raise NotImplementedError(f"{type(self).__name__} has neither build() nor compile()")

    @abstractmethod
    def describe(self) -> Mapping[str, str]:
        """Versions and settings that readings depend on, for the context of a measurement."""

    def context(self) -> dict[str, str]:
        """Where readings of this moment come from: `describe`, the target and the date."""
        return {**self.describe(), **self.target.facts(), "date": datetime.now(UTC).isoformat(timespec="seconds")}

    def compile_layer(self, layer: Layer) -> Program:
        """The program of a layer with random weights, at the target's batch."""
        return self.compile(layer.build(), layer.example(self.target.batch))

    def in_fp32(self, layer: Layer) -> bool:
        """Whether the layer stays in fp32 though the target's precision is int8."""
        return False

    def chain(self, layer: Layer) -> tuple[Program, Program] | None:
        """The layer between two neighbours, and the neighbours without it: the layer's time is the difference.

        None if a layer timed alone costs what it costs inside a network.
        """
        return None

    def renew(self) -> None:
        """Drop what the runtime keeps for all programs, so that later programs build it again."""
        return None

    def watch(self) -> Watch:
        """Notes from now on what happens to the machine that programs run on."""
        return Watch(self.target.device)

    def priority(self) -> AbstractContextManager[bool]:
        """A context in which programs have priority over others, where the system allows; yields whether it does."""
        return priority()

    def now(self) -> float:
        """Seconds of the clock by which the time for reading is limited."""
        return time.monotonic()

    def free_memory(self) -> float:
        """Bytes that programs may take, where they run; infinite where that is not known."""
        import torch

        return torch.cuda.mem_get_info()[0] if self.target.device == "cuda" else free_memory()

    def session(self) -> AbstractContextManager[object]:
        """A context with the settings that programs need; the old ones return at its end."""
        return nullcontext()

    def timer(self) -> Timer:
        """The clock that covers all of a program's work."""
        return HostTimer() if self.target.device == "cpu" else CudaTimer()


def open_runtime(target: Target) -> Runtime:
    """The runtime that the target names, with the target's options.

    Raises UserError, which lists the choices, where the runtime, device, precision or an option does not exist.
    """
    target.check()
    with of_option("target.runtime"):
        kind: type[Runtime] = find(sys.modules[__name__], Runtime, target.runtime)  # type: ignore[type-abstract]
    if target.host:
        from htas.runtimes._remote import remote_runtime

        return remote_runtime(kind, target)
    check_precision(kind, target, kind.precisions(target.device))
    values = {"target": target, **runtime_options(target, options_of(kind))}
    return create(Runtime, kind, target.runtime, values)  # type: ignore[type-abstract]


def check_precision(kind: type[Runtime], target: Target, precisions: tuple[str, ...]) -> None:
    """Raise UserError where the target's precision is none of these."""
    if not precisions:
        other = "cpu" if target.device == "cuda" else "cuda"
        raise UserError(
            f"target.runtime {target.runtime!r} does not run on {target.device}; use target.device {other!r}, or "
            "target.runtime 'eager', which runs on both"
        )
    if target.precision not in precisions:
        reason = f" ({kind.lacking})" if kind.lacking else ""
        where = f"{target.device} of {target.host}" if target.host else target.device
        instead = "'onnxruntime' or 'openvino'" if target.precision == "int8" else "'eager'"
        if target.precision == "int8" and target.device != "cpu":
            instead += " on target.device 'cpu'"
        others = "" if target.host else f", or target.runtime {instead}"
        raise UserError(
            f"target.runtime {target.runtime!r} has no {target.precision} on {where}{reason}; "
            f"use target.precision {listing(precisions)}{others}"
        )
