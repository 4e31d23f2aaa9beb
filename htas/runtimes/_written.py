"""Runtimes whose programs are bytes, which are opened on this machine or sent to another (`_remote.py`)."""

from abc import abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from htas.formats.parity import largest_difference, tolerance
from htas.formats.written import Written
from htas.graph.layer import Layer
from htas.runtimes import Program, Runtime
from htas.runtimes._build import in_words


@dataclass(frozen=True)
class WrittenRuntime(Runtime):
    """A subclass writes programs, and opens what it has written."""

    engine: ClassVar[str] = ""
    """Its name in the agent on another machine (target.host); empty where that has none."""
    compares: ClassVar[bool] = True
    """Whether every layer is compared with its module, as networks are."""

    @abstractmethod
    def write_network(self, network: nn.Module, example: tuple[Tensor, ...]) -> Written:
        """A network, with these inputs."""

    @abstractmethod
    def write_layer(self, layer: Layer, module: nn.Module, shape: torch.Size | None = None) -> Written:
        """A layer alone, with the weights of its module; `shape` is that of its output."""

    @abstractmethod
    def write_chain(self, layer: Layer, module: nn.Module | None) -> Written:
        """The layer between two neighbours, or these alone where there is no module."""

    @abstractmethod
    def load(self, written: Written) -> Program:
        """The program, opened here."""

    @classmethod
    def precisions_there(cls, flags: Collection[str]) -> tuple[str, ...]:
        """Precisions on a device whose processor has these instructions, in the kernel's words."""
        return ("fp32",)

    @property
    def settings(self) -> Mapping[str, str]:
        """What readings depend on beside versions, on this machine and on a device."""
        return {}

    @property
    def spinning(self) -> int:
        """Microseconds that a thread waits busily for the next call, where that can be set."""
        return 0

    def write_deployed(self, network: nn.Module, example: tuple[Tensor, ...], images: tuple[Tensor, ...]) -> Written:
        """A network as its user runs it; images [N, *shape] for each input, where it is quantized."""
        return self.write_network(network, example)

    def compile(self, model: nn.Module, example: tuple[Tensor, ...]) -> Program:
        """The network, checked; one in int8 was checked before it was quantized."""
        return self.builder.network(model, example, self.build, compare=self.target.precision != "int8")

    def deploy(self, model: nn.Module, example: tuple[Tensor, ...], images: tuple[Tensor, ...]) -> Program:
        """The network as its user runs it."""

        def build(network: nn.Module, example: tuple[Tensor, ...]) -> Program:
            return self.remarked(self.write_deployed(network, example, images))

        compare = self.target.precision != "int8"
        return self.builder.network(model, example, build, compare=compare, build_part=self.build)

    def build(self, network: nn.Module, example: tuple[Tensor, ...]) -> Program:
        """The network; `rebuild` opens the same bytes again."""
        again = partial(self.remarked, self.write_network(network, example))
        return replace(again(), rebuild=again)

    def remarked(self, written: Written) -> Program:
        """The program of a whole network, with what a reader of its figures must know."""
        return replace(self.load(written), remark=written.remark)

    def compile_layer(self, layer: Layer) -> Program:
        """The layer alone."""
        example = layer.example(self.target.batch)

        def build() -> Program:
            module = layer.build()
            if not self.compares:
                return self.load(self.write_layer(layer, module))
            with torch.no_grad():
                expected = module(*example)
            program = self.load(self.write_layer(layer, module, expected.shape))
            what = f"{self.what}: {in_words(layer)}"
            largest_difference(expected, program.outputs(*example), what, tolerance(self.target))
            return program

        return self.builder.layer(layer, build)

    def chain(self, layer: Layer) -> tuple[Program, Program]:
        """The layer between two cheap neighbours, and these alone: it gets and leaves channels as between the layers
        of a network, and the price of a call is in neither."""
        module = layer.build()

        def build(part: nn.Module | None) -> Program:
            return self.load(self.write_chain(layer, part))

        one, other = (self.builder.layer(layer, partial(build, part)) for part in (module, None))
        return one, other
