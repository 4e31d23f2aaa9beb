"""Sessions of ONNX Runtime, with any of its providers.

A survey holds many programs at once, each with its own threads. By default an idle thread spins for milliseconds and
takes cores from the next program, whose readings on two cores were up to eight times too high. Without spinning, a
small layer pays 20 to 30 % for waking up. So threads spin just long enough to bridge two calls, which gives the
readings of a program that is alone in its process.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from htas.errors import UserError
from htas.formats.written import cast
from htas.runtimes import Program
from htas.runtimes._graphs import GraphRuntime
from htas.text import listing
from htas.timing.bench import HostTimer, Timer
from htas.timing.target import Target

ERRORS = 3
"""ONNX Runtime's log severity."""
SPIN = 50
"""Microseconds of spinning; about five pass between two calls in a row."""


@dataclass(frozen=True)
class SessionRuntime(GraphRuntime):
    """ONNX Runtime with one provider."""

    install: ClassVar[str]
    """How to get a build of ONNX Runtime with the provider for CUDA; ends a sentence."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target.device == "cuda":
            import onnxruntime

            provider, providers = self.provider[0], onnxruntime.get_available_providers()
            if provider not in providers:
                what = f"this needs ONNX Runtime's {provider}, this build has {listing(providers)}"
                raise UserError(f"{what}; {self.install}")

    @property
    @abstractmethod
    def provider(self) -> tuple[str, Mapping[str, Any]]:
        """Its name in ONNX Runtime, and its settings."""

    @property
    def spinning(self) -> int:
        """Microseconds that a CPU thread waits busily for the next call."""
        return SPIN

    @property
    def dtype(self) -> torch.dtype:
        """Number format of graphs: the target's."""
        return self.target.dtype

    def describe(self) -> Mapping[str, str]:
        """Versions, the provider, and how long its threads spin."""
        import onnxruntime

        return {"onnxruntime": onnxruntime.__version__, "torch": torch.__version__, **self.settings}

    @property
    def settings(self) -> Mapping[str, str]:
        """The provider, and how long its threads spin."""
        return {"provider": self.provider[0], "spinning": f"{self.spinning} us"}

    def timer(self) -> Timer:
        """The host's clock: a run returns when its work is done, and CUDA work is not on PyTorch's stream."""
        return HostTimer() if self.target.device == "cpu" else HostTimer(wait=torch.cuda.synchronize)

    def open(self, graph: bytes | str, example: tuple[Tensor, ...] | None = None) -> Program:
        """The program of a graph, whose inputs are cast to the target's precision, or of a file, whose are not."""
        import onnxruntime

        options = _options(self.target, self.spinning)
        # no fallback: it would print to stdout and time the processor instead of the GPU
        session = onnxruntime.InferenceSession(graph, options, providers=[self.provider], enable_fallback=False)
        inputs = example or tuple(torch.randn(argument.shape) for argument in session.get_inputs())
        bound = _Bound(session, self.target.device, inputs, None if isinstance(graph, str) else self.dtype)
        return Program(bound.run, bound.outputs)


class _Bound:
    """A session whose inputs lie on its device; the output stays there until it is overwritten."""

    def __init__(self, session: Any, device: str, example: tuple[Tensor, ...], dtype: torch.dtype | None) -> None:
        from onnxruntime import OrtValue

        self.session, self.dtype = session, dtype
        self.feed = {
            name: OrtValue.ortvalue_from_numpy(array, device, 0) for name, array in self._arrays(example).items()
        }
        self.binding = session.io_binding()
        for name, value in self.feed.items():
            self.binding.bind_ortvalue_input(name, value)
        for output in session.get_outputs():
            self.binding.bind_output(output.name, device)

    def run(self) -> None:
        self.session.run_with_iobinding(self.binding)

    def outputs(self, *tensors: Tensor) -> Tensor:
        """The first output for other inputs of the same shapes."""
        return torch.from_numpy(self.session.run(None, self._arrays(tensors))[0]).float()

    def _arrays(self, tensors: tuple[Tensor, ...]) -> dict[str, Any]:
        """By the name of the input."""
        values = tensors if self.dtype is None else cast(tensors, self.dtype)
        names = (argument.name for argument in self.session.get_inputs())
        return {name: tensor.numpy() for name, tensor in zip(names, values, strict=True)}


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
