"""Runtimes on another machine: layers and networks are written here, opened and read there.

Only what runs there is remote: the bench, the levels and every decision are those of a local target.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, partial
from math import ceil, inf
from typing import ClassVar
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor, nn

from htas.errors import UserError
from htas.formats.onnx_file import OnnxFile
from htas.formats.written import Layout, Written
from htas.graph.layer import Layer
from htas.plugins.options import options_of
from htas.runtimes import Program, Runtime, check_precision
from htas.runtimes._graphs import GraphRuntime
from htas.runtimes._written import WrittenRuntime
from htas.text import listing
from htas.timing.bench import FILLER, FILLERS, REPEAT, Bench, Call, HostTimer, Timer, Turn
from htas.timing.contention import Watch
from htas.timing.remote.device import Device, Failed, RemoteProgram, Settings, device
from htas.timing.remote.needs import NEEDS
from htas.timing.remote.watch import RemoteWatch
from htas.timing.target import Target, runtime_options

SENDING = 0.02
"""Seconds that a program takes, about, where it could not be tried: another program reads the device."""
TRIALS = 62, 63, 64
"""Channels of the layers that are opened on a device to see how long that takes."""
ALONE = "alone"
CHAIN = ("between neighbours", "neighbours")


@dataclass(frozen=True)
class RemoteTimer(Timer):
    """The device's own clock: a round is one request."""

    shortest: ClassVar[float] = HostTimer.shortest
    device: Device

    def time(self, call: Call, loops: int) -> float:
        """Seconds that `loops` calls in a row take there, after one that is not timed."""
        ((seconds, _),) = self.device.read([(_program(call), loops)], 0.0, 1)
        return seconds[0]

    def settle(self, call: Call, reading: float, warmup: float) -> int:
        """The program was warmed up when it was opened; its calls for a reading of this length."""
        program = _program(call)
        return max(program.loops, ceil(reading / program.seconds)) if program.seconds > 0 else program.loops

    def turns(self, calls: Sequence[tuple[Call, int]], least: float) -> list[Turn]:
        """Readings of a round, from one request."""
        turns = [(_program(call), loops) for call, loops in calls]
        return [Turn(*both) for both in self.device.read(turns, least, REPEAT)]


def _program(call: Call) -> RemoteProgram:
    assert isinstance(call, RemoteProgram), "only what the device has opened can be read there"
    return call


@dataclass(frozen=True)
class RemoteRuntime(WrittenRuntime):
    """A runtime on the processor of `target.host`, which writes programs here and never opens one."""

    writer: WrittenRuntime
    written: "WeakValueDictionary[tuple[Layer, str], Written]" = field(
        default_factory=WeakValueDictionary, repr=False, compare=False
    )
    """Of layers whose programs exist, so that building one again sends nothing."""

    def __post_init__(self) -> None:
        about = {
            "engine": self.writer.engine, "chained": self.writer.chained, "exports": self.writer.exports,
            "compares": self.writer.compares, "what": f"the device's {self.writer.what}",
        }  # fmt: skip
        for name, value in about.items():
            object.__setattr__(self, name, value)

    @property
    def device(self) -> Device:
        """Where programs run."""
        return device(self.target.host)

    @property
    def build_seconds(self) -> float:  # type: ignore[override]
        """Until a layer is sent and open there, as it was tried once; not less than the writer takes."""
        if self.writer.build_seconds >= SENDING:
            return self.writer.build_seconds
        try:
            return max(self.writer.build_seconds, _opening(self.device, self.writer))
        except (UserError, Failed):  # whoever measures there says so in its own words
            return SENDING

    @property
    def settings(self) -> Mapping[str, str]:
        """Those of the writer, as the device has them."""
        return {**self.writer.settings, **self.device.differences(self.engine)}

    def describe(self) -> Mapping[str, str]:
        """Versions and settings there, and PyTorch here."""
        version = {NEEDS[self.engine].package: self.device.version(self.engine), "torch": torch.__version__}
        return {**self.device.facts.machine, **version, **self.settings}

    def compile(self, model: nn.Module, example: tuple[Tensor, ...]) -> Program:
        """The network, checked; an ONNX file as it is, where the runtime reads those."""
        if isinstance(model, OnnxFile) and isinstance(self.writer, GraphRuntime):
            write = self.writer.quantized_file if self.target.precision == "int8" else _file
            return self.builder.file(model, lambda path, example: self.remarked(write(path, example)))
        return super().compile(model, example)

    def compile_layer(self, layer: Layer) -> Program:
        """The layer alone; while one of its programs exists, the same bytes."""
        programs = self._again(layer, ALONE)
        return programs[0] if programs else super().compile_layer(layer)

    def chain(self, layer: Layer) -> tuple[Program, Program]:
        """The layer between two neighbours, and these alone; while their programs exist, the same bytes."""
        programs = self._again(layer, *CHAIN)
        return (programs[0], programs[1]) if programs else super().chain(layer)

    def in_fp32(self, layer: Layer) -> bool:
        """As the writer says."""
        return self.writer.in_fp32(layer)

    def write_network(self, network: nn.Module, example: tuple[Tensor, ...]) -> Written:
        """As the writer does."""
        return self.writer.write_network(network, example)

    def write_deployed(self, network: nn.Module, example: tuple[Tensor, ...], images: tuple[Tensor, ...]) -> Written:
        """As the writer does."""
        return self.writer.write_deployed(network, example, images)

    def write_layer(self, layer: Layer, module: nn.Module, shape: torch.Size | None = None) -> Written:
        """As the writer does."""
        self.written[layer, ALONE] = written = self.writer.write_layer(layer, module, shape)
        return written

    def write_chain(self, layer: Layer, module: nn.Module | None) -> Written:
        """As the writer does."""
        self.written[layer, CHAIN[module is None]] = written = self.writer.write_chain(layer, module)
        return written

    def load(self, written: Written) -> Program:
        """The program, opened there and warmed up."""
        self.target.check_memory(self.device.facts.available, f"the device {self.device}")
        layout, half = written.layout, self.target.precision == "fp16"
        settings = Settings(
            self.target.threads, self.writer.spinning, RemoteTimer.shortest, Bench.warmup, self.engine, half
        )
        inputs = [(array.shape, str(array.dtype)) for array in layout.arrays(written.example)]
        program = self.device.open(written, settings, inputs or None)

        def outputs(*tensors: Tensor) -> Tensor:
            content, shape, dtype = self.device.outputs(program, layout.arrays(tensors))
            return layout.tensors([np.frombuffer(content, dtype).reshape(shape)])[0]

        return Program(program, outputs)

    def free_memory(self) -> float:
        """That of the device."""
        return self.device.facts.available or inf

    def renew(self) -> None:
        """Leave other holes in the memory there, as the bench does here."""
        rng = random.Random()
        sizes = [rng.randrange(64, FILLER) for _ in range(FILLERS)]
        self.device.disturb(sizes, rng.sample(range(FILLERS), FILLERS // 2))

    @contextmanager
    def session(self) -> Iterator[None]:
        """Keep the connection, and be the one reader there, until the end."""
        with self.device.connected():
            self.device.hold()
            yield

    @contextmanager
    def priority(self) -> Iterator[bool]:
        """The agent has raised its own, where the device allows; yields whether it has."""
        yield self.device.raised

    def watch(self) -> Watch:
        """What happens to the device from now on."""
        return RemoteWatch(self.device)

    def now(self) -> float:
        """A clock that stands still while the device is away, or the network is waited for."""
        return self.device.now()

    def timer(self) -> Timer:
        """The device's clock."""
        return RemoteTimer(self.device)

    def _again(self, layer: Layer, *parts: str) -> list[Program]:
        """Programs of what is written already; none where a part lacks."""
        several = [self.written.get((layer, part)) for part in parts]
        if None in several:
            return []
        return [self.builder.layer(layer, partial(self.load, written)) for written in several if written is not None]


@cache
def _opening(there: Device, writer: WrittenRuntime) -> float:
    """Seconds that a device takes to receive and open a layer of a usual size, the quickest of TRIALS."""
    small, seconds = replace(writer, target=replace(writer.target, batch=1)), []
    settings = Settings(writer.target.threads, writer.spinning, 0.0, 0.0, writer.engine)
    with there.connected():
        there.check(writer.engine)
        there.hold()
        for channels in TRIALS:
            layer = Layer("conv", channels, channels, (8, 8), (3, 3), padding=(1, 1), norm=True, activation="relu")
            written = small.write_layer(layer, layer.build())
            inputs = [(array.shape, str(array.dtype)) for array in written.layout.arrays(written.example)]
            began = there.now()
            there.open(written, settings, inputs or None)
            seconds.append(there.now() - began)
    return min(seconds)


def _file(path: str, example: tuple[Tensor, ...]) -> Written:
    """An ONNX file with the weights that lie beside it; raises UserError where that is too much for one message."""
    import onnx

    try:
        return Written(onnx.load(path).SerializeToString(), example, Layout(None))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be sent to a device ({error}); one file of at most 2 GB can") from error


def remote_runtime(kind: type[Runtime], target: Target) -> RemoteRuntime:
    """A runtime on a target's host.

    Raises UserError where the agent has none of this kind, and where the device cannot be reached or lacks something.
    """
    if not issubclass(kind, WrittenRuntime) or not kind.engine:
        raise UserError(
            f"target.runtime {target.runtime!r} runs on this machine only; on target.host use target.runtime "
            f"{listing(map(repr, NEEDS))}"
        )
    there = device(target.host)
    there.check(kind.engine)
    check_precision(kind, target, kind.precisions_there(there.facts.flags))
    target = target.resolved()
    return RemoteRuntime(target, kind(target, **runtime_options(target, options_of(kind))))
