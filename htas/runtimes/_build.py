"""Programs of copies of networks, of layers and files; or one sentence why there is none."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from htas.errors import UserError
from htas.formats.onnx_file import OnnxFile
from htas.formats.parity import first, largest_difference, tolerance
from htas.graph.layer import Layer
from htas.graph.modes import copied
from htas.runtimes import Program
from htas.timing.target import Target

Build = Callable[[nn.Module, tuple[Tensor, ...]], Program]
MEMORY = ("out of memory", "can't allocate memory", "failed to allocate memory")
"""Words of PyTorch, CUDA and ONNX Runtime for too little memory."""


@dataclass(frozen=True)
class Builder:
    """Builds for one runtime; whatever a library raises becomes one sentence, a UserError."""

    what: str
    """The runtime in words."""
    target: Target

    def network(
        self, model: nn.Module, example: tuple[Tensor, ...], build: Build, *, compare: bool = True,
        build_part: Build | None = None,
    ) -> Program:  # fmt: skip
        """`build` of a copy of the network on the CPU in eval mode, with its outputs compared with eager PyTorch's.

        `build_part` is for its layers alone, to find one at fault, where `build` is for the network's inputs only.

        Raises UserError, which names the layer that cannot be run, or says that memory is short or that outputs differ.
        """
        example = tuple(tensor.detach().cpu() for tensor in example)
        try:
            program = build(_copy(model), example)
            if compare:
                self._compare(program, _copy(model), example)
        except Exception as error:  # every library raises classes of its own
            if isinstance(error, UserError) and error.__cause__ is None:  # else a single layer may be at fault
                raise
            where = "" if _is_memory(error) else _culprit(_copy(model), example, build_part or build)
            raise UserError(self._sentence(f"this {type(model).__name__}", where, error)) from error
        return self._guarded(program)

    def layer(self, layer: Layer, build: Callable[[], Program]) -> Program:
        """`build` of a layer; raises UserError, which names the layer, where it cannot be run."""
        return self._built(in_words(layer), build)

    def file(self, model: OnnxFile, build: Callable[[str, tuple[Tensor, ...]], Program]) -> Program:
        """`build` of an ONNX file; raises UserError, which says why it cannot be run."""
        rebuild = partial(build, str(model.path), model.example())  # by its path: weights may lie next to it

        def run_once() -> Program:
            program = rebuild()
            program.run()  # some files open, and cannot be run
            return replace(program, rebuild=rebuild)

        return self._built(str(model.path), run_once)

    def _built(self, subject: str, build: Callable[[], Program]) -> Program:
        try:
            program = build()
        except Exception as error:  # every library raises classes of its own
            raise UserError(self._sentence(subject, "", error)) from error
        return self._guarded(program)

    def _compare(self, program: Program, network: nn.Module, example: tuple[Tensor, ...]) -> None:
        """Raise UserError where outputs differ from those of eager PyTorch in fp32 on the target's device.

        The network is moved to that device.
        """
        target = self.target
        with torch.inference_mode():
            reference = network.to(target.device)
            expected = first(reference(*(tensor.to(target.device) for tensor in example))).cpu()
            outputs = program.outputs(*example)
        if target.precision == "fp16" and expected.isfinite().all() and not outputs.isfinite().all():
            raise UserError(
                f"{self.what} overflows with this network in fp16, which ends at 65504; use target.precision 'bf16' "
                "or 'fp32'"
            )
        largest_difference(expected, outputs, self.what, tolerance(target))

    def _guarded(self, program: Program) -> Program:
        """The program; on a GPU its calls raise UserError where the memory is full."""
        if self.target.device == "cpu":
            return program

        def within_memory(call: Callable[..., Any]) -> Callable[..., Any]:
            def guarded(*tensors: Tensor) -> Any:
                try:
                    return call(*tensors)
                except Exception as error:
                    if _is_memory(error):
                        raise UserError(self._too_large()) from error
                    raise

            return guarded

        rebuild = program.rebuild
        guarded_rebuild = (lambda: self._guarded(rebuild())) if rebuild is not None else None
        return replace(
            program, run=within_memory(program.run), outputs=within_memory(program.outputs), rebuild=guarded_rebuild
        )

    def _sentence(self, subject: str, where: str, error: Exception) -> str:
        if _is_memory(error):
            return self._too_large()
        if isinstance(error, UserError):
            return f"{error}{f'; the cause is {where}' if where else ''}"
        instead = "target.precision 'fp32'" if self.target.precision == "int8" else "target.runtime 'eager'"
        if subject.endswith(".onnx") and self.target.precision != "int8":  # which eager PyTorch cannot run
            instead = "another runtime of ONNX files (onnxruntime, openvino)"
        return (
            f"{self.what} cannot run {where or subject} in {self.target.precision} on {self.target.device} "
            f"({type(error).__name__}: {_reason(error)[:300]}); replace it, or use {instead}"
        )

    def _too_large(self) -> str:
        device, batch = self.target.device, self.target.batch
        return f"{self.what} ran out of memory on {device} at batch {batch}; lower target.batch"


AROUND = ("Exception from ", "Check '", "FrontEnd API failed", "While validating ", "[ ")
"""How lines begin that OpenVINO puts around its reason."""


def _reason(error: Exception) -> str:
    """The first line of a library's message that tells why."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if not line.startswith(AROUND)), lines[0] if lines else "no reason given")


def in_words(layer: Layer) -> str:
    """`the layer conv 3x3, 16 to 32 channels at 8x8`."""
    size, kernel = ("x".join(map(str, pair)) for pair in (layer.size, layer.kernel))
    operator = f"{layer.op} {kernel}" if layer.op in ("conv", "max_pool", "avg_pool") else layer.op
    groups = f" in {layer.groups} groups" if layer.groups > 1 else ""
    after = f", then {layer.activation}" if layer.activation else ""
    return f"the layer {operator}, {layer.inputs} to {layer.outputs} channels{groups} at {size}{after}"


def _copy(model: nn.Module) -> nn.Module:
    return copied(model).eval().cpu()


def _is_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        words in str(error).lower() for words in MEMORY
    )


def _culprit(network: nn.Module, example: tuple[Tensor, ...], build: Build) -> str:
    """The first module without children that cannot be built alone, by its path; empty where every one can."""
    parts = {path: part for path, part in network.named_modules() if path and not list(part.children())}
    inputs_by_path: dict[str, tuple[Tensor, ...]] = {}

    def note(path: str, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        if all(isinstance(each, Tensor) for each in inputs):
            inputs_by_path.setdefault(path, inputs)

    hooks = [part.register_forward_pre_hook(partial(note, path)) for path, part in parts.items()]
    try:
        with torch.no_grad():
            network(*example)
    except Exception:
        return ""  # it does not run at all, and the first error says why
    for hook in hooks:
        hook.remove()
    built = set()
    for path, inputs in inputs_by_path.items():
        kind = (repr(parts[path]), tuple(tensor.shape for tensor in inputs))
        if kind not in built:
            built.add(kind)
            try:
                build(copied(parts[path]), inputs)
            except Exception:
                return f"layer {path!r} ({type(parts[path]).__name__})"
    return ""
