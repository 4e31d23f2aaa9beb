"""ONNX Runtime: the network as one optimised graph.

Many programs are alive at once in a survey, each with threads of its own. By default a thread without work spins for
milliseconds: it stole the cores of the next program, whose readings on two cores came out up to eight times too high.
Without spinning, waking up costs a small layer 20 to 30 %. So threads spin just long enough to go from one call to the
next, which gives the readings of a program that is alone in its process.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from htas.bench import HostTimer, Timer
from htas.layer import Layer
from htas.runtimes import Program, Runtime
from htas.runtimes._onnx import layer_graph, network_graph
from htas.runtimes._parity import largest_difference
from htas.text import listing

ERRORS = 3
"""ONNX Runtime's log severity."""
SPIN = "50"
"""Microseconds; between two calls in a row pass about five."""


@dataclass(frozen=True)
class OnnxRuntime(Runtime):
    """Networks through PyTorch's exporter, layers written directly; every graph optimisation on."""

    def __post_init__(self) -> None:
        import onnxruntime

        known = onnxruntime.get_available_providers()
        if self.provider not in known:
            raise ValueError(
                f"target.device 'cuda' needs ONNX Runtime's {self.provider}, this build has {listing(known)}; "
                "install onnxruntime-gpu, or use target.runtime 'eager' or target.device 'cpu'"
            )

    @property
    def provider(self) -> str:
        """ONNX Runtime's name for the target's device."""
        return "CPUExecutionProvider" if self.target.device == "cpu" else "CUDAExecutionProvider"

    def compile(self, model: nn.Module, example: tuple[Tensor, ...]) -> Program:
        """The exported network; raises ValueError where it cannot be exported or computes something else."""
        network = deepcopy(model).eval().cpu()
        example = tuple(tensor.cpu() for tensor in example)
        program = self._open(network_graph(network, example, dynamic=False), example)
        with torch.inference_mode():
            largest_difference(network(*example), program.outputs(*example), "ONNX Runtime")
        return program

    def compile_layer(self, layer: Layer) -> Program:
        """The layer as a graph of its own, without the exporter."""
        batch = self.target.batch
        return self._open(layer_graph(layer, layer.build(), batch), layer.example(batch))

    def describe(self) -> Mapping[str, str]:
        """Versions, the provider, and how long its threads spin."""
        import onnxruntime

        return {
            "onnxruntime": onnxruntime.__version__,
            "torch": torch.__version__,
            "provider": self.provider,
            "spinning": f"{SPIN} us",
        }

    def timer(self) -> Timer:
        """The host's clock: a run returns when its work is done, and CUDA work is not on PyTorch's stream."""
        return HostTimer() if self.target.device == "cpu" else HostTimer(wait=torch.cuda.synchronize)

    def _open(self, graph: bytes, example: tuple[Tensor, ...]) -> Program:
        import onnxruntime

        session = onnxruntime.InferenceSession(graph, _options(self.target.threads), providers=[self.provider])
        bound = _Bound(session, self.target.device, example)
        return Program(bound.run, bound.outputs)


class _Bound:
    """A session whose inputs lie on its device; the output stays there until it is overwritten."""

    def __init__(self, session: Any, device: str, example: tuple[Tensor, ...]) -> None:
        from onnxruntime import OrtValue

        self.session = session
        self.names = [argument.name for argument in session.get_inputs()]
        self.values = [OrtValue.ortvalue_from_numpy(tensor.numpy(), device, 0) for tensor in example]
        self.binding = session.io_binding()
        for name, value in zip(self.names, self.values, strict=True):
            self.binding.bind_ortvalue_input(name, value)
        self.binding.bind_output(session.get_outputs()[0].name, device)

    def run(self) -> None:
        """One batch."""
        self.session.run_with_iobinding(self.binding)

    def outputs(self, *tensors: Tensor) -> Tensor:
        """The first output for other inputs of the same shapes."""
        feed = {name: tensor.numpy() for name, tensor in zip(self.names, tensors, strict=True)}
        return torch.from_numpy(self.session.run(None, feed)[0])


def _options(threads: int) -> Any:
    from onnxruntime import ExecutionMode, SessionOptions

    _share_memory()
    options = SessionOptions()
    options.log_severity_level = ERRORS
    options.execution_mode = ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.spin_duration_us", SPIN)
    options.add_session_config_entry("session.use_env_allocators", "1")
    return options


@cache
def _share_memory() -> None:
    """Offer one arena to all sessions of this process: half the memory of one each."""
    import onnxruntime as ort

    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(memory, ort.OrtArenaCfg({}))
