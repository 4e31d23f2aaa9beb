"""Sessions of ONNX Runtime, with any of its providers.

A survey holds many programs at once, each with its own threads. By default an idle thread spins for milliseconds and
takes cores from the next program, whose readings on two cores were up to eight times too high. Without spinning, a
small layer pays 20 to 30 % for waking up. So threads spin just long enough to bridge two calls, which gives the
readings of a program that is alone in its process.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from htas.errors import UserError
from htas.formats.onnx import chain_graphs, is_first, layer_graph
from htas.formats.onnx_file import OnnxFile
from htas.formats.onnx_written import static_graph
from htas.graph.layer import Layer
from htas.runtimes import Program
from htas.runtimes._build import file_program, layer_program, network_program
from htas.text import listing
from htas.timing.bench import HostTimer, Timer
from htas.timing.target import Target

ERRORS = 3
"""ONNX Runtime's log severity."""
SPIN = 50
"""Microseconds of spinning; about five pass between two calls in a row."""


@dataclass(frozen=True)
class Sessions:
    """Makes programs of networks and layers with one provider."""

    what: str
    """The runtime in words."""
    target: Target
    provider: str
    """The provider's name in ONNX Runtime."""
    settings: Mapping[str, Any]
    """Settings of the provider."""
    spin: int = SPIN
    """Microseconds that a CPU thread waits busily for the next call."""

    def network(self, model: nn.Module, example: tuple[Tensor, ...]) -> Program:
        """The exported network, checked; an ONNX file as it is."""
        if isinstance(model, OnnxFile):
            return file_program(self.what, self.target, model, self._open_file)
        return network_program(self.what, self.target, model, example, self._export)

    def layer(self, layer: Layer) -> Program:
        """The layer as a graph of its own, without the exporter."""
        target = self.target

        def build() -> Program:
            graph = layer_graph(layer, layer.build(), target.batch, target.dtype)
            return self._open(graph, layer.example(target.batch))

        return layer_program(self.what, target, layer, build)

    def chain(self, layer: Layer) -> tuple[Program, Program]:
        """The layer between two neighbours, and the neighbours without it."""
        target = self.target
        first = is_first(layer, target.shapes)
        graphs = chain_graphs(layer, layer.build(), target.batch, first=first, dtype=target.dtype)
        one, other = (layer_program(self.what, target, layer, partial(self._open, graph)) for graph in graphs)
        return one, other

    def describe(self) -> Mapping[str, str]:
        """Versions, the provider, and how long its threads spin."""
        import onnxruntime

        return {
            "onnxruntime": onnxruntime.__version__,
            "torch": torch.__version__,
            "provider": self.provider,
            "spinning": f"{self.spin} us",
        }

    def timer(self) -> Timer:
        """The host's clock: a run returns when its work is done, and CUDA work is not on PyTorch's stream."""
        return HostTimer() if self.target.device == "cpu" else HostTimer(wait=torch.cuda.synchronize)

    def _export(self, network: nn.Module, example: tuple[Tensor, ...]) -> Program:
        graph = static_graph(deepcopy(network).to(self.target.dtype), _cast(example, self.target))
        return replace(self._open(graph, example), anew=partial(self._open, graph, example))

    def _open_file(self, path: str, example: tuple[Tensor, ...]) -> Program:
        return self._open(path, example, raw=True)

    def _open(self, graph: bytes | str, example: tuple[Tensor, ...] | None = None, raw: bool = False) -> Program:
        """The program of a graph or file; inputs are cast to the target's precision unless `raw`."""
        import onnxruntime

        providers = [(self.provider, dict(self.settings))]
        options = _options(self.target, self.spin)
        # no fallback: it would print to stdout and time the processor instead of the GPU
        session = onnxruntime.InferenceSession(graph, options, providers=providers, enable_fallback=False)
        bound = _Bound(session, self.target, example or _random(session), raw)
        return Program(bound.run, bound.outputs)


def check_provider(provider: str, way_out: str) -> None:
    """Raise UserError where this build of ONNX Runtime lacks the provider."""
    import onnxruntime

    providers = onnxruntime.get_available_providers()
    if provider not in providers:
        raise UserError(f"this needs ONNX Runtime's {provider}, this build has {listing(providers)}; {way_out}")


class _Bound:
    """A session whose inputs lie on its device; the output stays there until it is overwritten."""

    def __init__(self, session: Any, target: Target, example: tuple[Tensor, ...], raw: bool) -> None:
        from onnxruntime import OrtValue

        self.session, self.target, self.raw = session, target, raw
        self.names = [argument.name for argument in session.get_inputs()]
        arrays = [tensor.numpy() for tensor in self._cast(example)]
        self.values = [OrtValue.ortvalue_from_numpy(array, target.device, 0) for array in arrays]
        self.binding = session.io_binding()
        for name, value in zip(self.names, self.values, strict=True):
            self.binding.bind_ortvalue_input(name, value)
        for output in session.get_outputs():
            self.binding.bind_output(output.name, target.device)

    def run(self) -> None:
        """One batch."""
        self.session.run_with_iobinding(self.binding)

    def _cast(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tensors if self.raw else _cast(tensors, self.target)

    def outputs(self, *tensors: Tensor) -> Tensor:
        """The first output for other inputs of the same shapes."""
        arrays = [tensor.numpy() for tensor in self._cast(tensors)]
        feed = dict(zip(self.names, arrays, strict=True))
        return torch.from_numpy(self.session.run(None, feed)[0]).float()


def _cast(tensors: tuple[Tensor, ...], target: Target) -> tuple[Tensor, ...]:
    """Tensors on the CPU, floating-point ones in the target's precision."""
    return tuple(tensor.cpu().to(target.dtype) if tensor.is_floating_point() else tensor.cpu() for tensor in tensors)


def _random(session: Any) -> tuple[Tensor, ...]:
    return tuple(torch.randn(argument.shape) for argument in session.get_inputs())


def _options(target: Target, spin: int) -> Any:
    from onnxruntime import ExecutionMode, SessionOptions

    _share_memory()
    options = SessionOptions()
    options.log_severity_level = ERRORS
    options.execution_mode = ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads = target.threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(spin))
    options.add_session_config_entry("session.use_env_allocators", "1")
    if target.device != "cpu":  # otherwise steps that the GPU lacks would run on the processor
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return options


@cache
def _share_memory() -> None:
    """Offer one arena to all sessions of this process, which halves the memory."""
    import onnxruntime as ort

    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(memory, ort.OrtArenaCfg({}))
