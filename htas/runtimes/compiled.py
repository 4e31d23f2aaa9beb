"""torch.compile: PyTorch's own compiler, with weights frozen into the program on a CPU."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from htas.errors import UserError
from htas.formats.onnx import quiet
from htas.runtimes import Program
from htas.runtimes._torch import TorchRuntime, placed, program


@dataclass(frozen=True)
class Compiled(TorchRuntime):
    """Inductor, for exactly the target's shapes and threads.

    Every program has compile caches of its own: by default programs that share a class share eight, and the ninth would
    run uncompiled.
    """

    build_seconds: ClassVar[float] = 5.0
    """Estimated; to be measured."""
    what: ClassVar[str] = "torch.compile"
    mode: Literal["default", "max-autotune-no-cudagraphs"] = "default"
    """What Inductor tries. "max-autotune-no-cudagraphs" times kernels while it builds: minutes a network instead of
    seconds, and other kernels in every build, which a survey would read as steps. Modes with CUDA graphs are left out,
    since the runtime `cuda_graph` has them."""

    def __post_init__(self) -> None:
        from torch._inductor import config
        from torch.utils._triton import has_triton

        compilers = config.cpp.cxx if isinstance(config.cpp.cxx, list | tuple) else (config.cpp.cxx,)
        if self.target.device == "cpu" and not any(name and shutil.which(name) for name in compilers):
            raise UserError(
                "target.runtime 'compiled' needs a C++ compiler on a CPU and finds none; install g++, name one in the "
                "environment variable CXX, or use target.runtime 'eager'"
            )
        if self.target.device == "cuda" and not has_triton():
            raise UserError(
                "target.runtime 'compiled' needs Triton on CUDA and finds none; install PyTorch's CUDA build for "
                "Linux, which comes with it, or use target.runtime 'eager' or 'cuda_graph'"
            )

    def describe(self) -> Mapping[str, str]:
        """PyTorch's version and the compiler's settings."""
        return {**super().describe(), "compiler": "inductor", "mode": self.mode, "frozen": str(self._freezes)}

    @property
    def _freezes(self) -> bool:
        return self.target.device == "cpu"

    def build(self, network: nn.Module, example: tuple[Tensor, ...]) -> Program:
        """The compiled network, which has run once."""
        network, inputs = placed(network, example, self.target)
        from torch._inductor import list_mode_options

        options = {"freezing": self._freezes, "cpp.threads": self.target.threads}
        with quiet(), self.session():
            call = torch.compile(  # type: ignore[call-overload]  # its overloads lack the last argument
                network, dynamic=False, options={**list_mode_options()[self.mode], **options}, isolate_recompiles=True
            )
            compiled = program(call, inputs, self.target)
            compiled.run()  # it compiles now
        return compiled
