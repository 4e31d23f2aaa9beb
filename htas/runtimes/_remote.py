"""ONNX Runtime on another machine: graphs are made here, opened and read there.

Only what runs there is remote: the bench, the levels and every decision are those of a local target.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from math import ceil
from pathlib import Path
from typing import ClassVar
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor

from htas.errors import UserError
from htas.formats.onnx import chain_graphs, is_first, layer_graph
from htas.graph.layer import Layer
from htas.runtimes import Program
from htas.runtimes._graphs import GraphRuntime, cast
from htas.runtimes._session import SPIN
from htas.timing.bench import FILLER, FILLERS, REPEAT, Bench, Call, HostTimer, Timer, Turn
from htas.timing.contention import Watch
from htas.timing.remote.device import Device, Graph, RemoteProgram, Settings, device
from htas.timing.remote.watch import RemoteWatch
from htas.timing.target import Target


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
class RemoteRuntime(GraphRuntime):
    """ONNX Runtime on the processor of `target.host`."""

    build_seconds: ClassVar[float] = 0.01
    """Warm-up and transfer included, over a quick network."""
    chained: ClassVar[tuple[str, ...]] = ("cpu",)
    what: ClassVar[str] = "the device's ONNX Runtime"
    spin: int = SPIN
    """Microseconds that a thread waits busily for the next call."""
    graphs: "WeakValueDictionary[tuple[Layer, int], Graph]" = field(
        default_factory=WeakValueDictionary, repr=False, compare=False
    )
    """Of layers whose programs exist, so that building one again sends nothing."""

    @property
    def device(self) -> Device:
        """Where programs run."""
        return device(self.target.host)

    def describe(self) -> Mapping[str, str]:
        """Versions and settings there, and the exporter here."""
        return {
            **self.device.facts.machine,
            "torch": torch.__version__,
            "provider": "CPUExecutionProvider",
            "spinning": self.device.spinning or f"{self.spin} us",
        }

    def open(self, graph: bytes | str, example: tuple[Tensor, ...] | None = None) -> Program:
        """The program of a graph, or of a file by its path, opened there and warmed up."""
        return self._opened(Graph(_whole(Path(graph)) if isinstance(graph, str) else graph), example)

    def compile_layer(self, layer: Layer) -> Program:
        """The layer as a graph of its own; while one of its programs exists, the same graph."""

        def write() -> tuple[bytes]:
            return (layer_graph(layer, layer.build(), self.target.batch, self.dtype),)

        def build() -> Program:
            (graph,) = self._layer_graphs(layer, range(1), write)
            return self._opened(graph, layer.example(self.target.batch))

        return self.builder.layer(layer, build)

    def chain(self, layer: Layer) -> tuple[Program, Program]:
        """The layer between two cheap convolutions, and these alone, as locally."""

        def write() -> tuple[bytes, bytes]:
            first = is_first(layer, self.target.shapes)
            return chain_graphs(layer, layer.build(), self.target.batch, first=first, dtype=self.dtype)

        graphs = self._layer_graphs(layer, range(1, 3), write)
        one, other = (self.builder.layer(layer, partial(self._opened, graph)) for graph in graphs)
        return one, other

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

    def _layer_graphs(self, layer: Layer, places: range, write: Callable[[], tuple[bytes, ...]]) -> list[Graph]:
        """The graphs of a layer: those that its programs have, or new ones."""
        graphs = [graph for place in places if (graph := self.graphs.get((layer, place))) is not None]
        if len(graphs) < len(places):
            graphs = [Graph(content) for content in write()]
            self.graphs.update({(layer, place): graph for place, graph in zip(places, graphs, strict=True)})
        return graphs

    def _opened(self, graph: Graph, example: tuple[Tensor, ...] | None = None) -> Program:
        settings = Settings(self.target.threads, self.spin, RemoteTimer.shortest, Bench.warmup)
        shapes = None if example is None else tuple(tuple(tensor.shape) for tensor in example)
        program = self.device.open(graph, settings, shapes)

        def outputs(*tensors: Tensor) -> Tensor:
            arrays = [np.ascontiguousarray(tensor.numpy()) for tensor in cast(tensors, self.dtype)]
            content, shape, dtype = self.device.outputs(program, arrays)
            return torch.from_numpy(np.frombuffer(content, dtype).reshape(shape).copy()).float()

        return Program(program, outputs)


def _whole(path: Path) -> bytes:
    """An ONNX file with the weights that lie beside it; raises UserError where that is too much for one message."""
    import onnx

    try:
        content: bytes = onnx.load(path).SerializeToString()
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be sent to a device ({error}); one file of at most 2 GB can") from error
    return content


def remote_runtime(target: Target, options: Mapping[str, object]) -> RemoteRuntime:
    """The runtime of a target's host; raises UserError where the device cannot be reached or lacks what it needs."""
    device(target.host).check()
    return RemoteRuntime(target.resolved(), **options)  # type: ignore[arg-type]
