"""Programs of copies of networks, of layers and files; or one sentence why there is none."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from htas.errors import UserError
from htas.formats.onnx_file import OnnxFile
from htas.formats.parity import first, largest_difference, tolerance
from htas.graph.layer import Layer
from htas.runtimes import Program
from htas.timing.target import Target

Build = Callable[[nn.Module, tuple[Tensor, ...]], Program]
MEMORY = ("out of memory", "can't allocate memory", "failed to allocate memory")
"""Words of PyTorch, CUDA and ONNX Runtime for too little memory."""


def network_program(
    what: str, target: Target, model: nn.Module, example: tuple[Tensor, ...], build: Build, *, same: bool = False
) -> Program:
    """`build` of a copy of the network on the CPU in eval mode, with its outputs compared with eager PyTorch's.

    `what` is the runtime in words; `same` leaves out the comparison, for eager fp32 itself. Raises UserError, which
    names the layer that cannot be run, or says that memory is short or that outputs differ.
    """
    example = tuple(tensor.detach().cpu() for tensor in example)
    try:
        program = build(_copy(model), example)
        if not same:
            _compare(program, _copy(model), example, target, what)
    except Exception as error:  # every library raises classes of its own
        if isinstance(error, UserError) and error.__cause__ is None:  # else a single layer may be at fault
            raise
        where = "" if _is_memory(error) else _culprit(_copy(model), example, build)
        raise UserError(_sentence(what, target, f"this {type(model).__name__}", where, error)) from error
    return _guarded(what, target, program)


def layer_program(what: str, target: Target, layer: Layer, build: Callable[[], Program]) -> Program:
    """`build` of a layer; raises UserError, which names the layer, where it cannot be run."""
    return _built(what, target, in_words(layer), build)


def file_program(
    what: str, target: Target, model: OnnxFile, build: Callable[[str, tuple[Tensor, ...]], Program]
) -> Program:
    """`build` of an ONNX file; raises UserError, which says why it cannot be run."""
    rebuild = partial(build, str(model.path), model.example())  # by its path: weights may lie next to it
    return _built(what, target, str(model.path), lambda: replace(rebuild(), anew=rebuild))


def _built(what: str, target: Target, subject: str, build: Callable[[], Program]) -> Program:
    try:
        program = build()
    except Exception as error:  # every library raises classes of its own
        raise UserError(_sentence(what, target, subject, "", error)) from error
    return _guarded(what, target, program)


def _compare(program: Program, network: nn.Module, example: tuple[Tensor, ...], target: Target, what: str) -> None:
    """Raise UserError where a program's outputs differ from those of eager PyTorch in fp32 on the target's device.

    The network is moved to that device.
    """
    with torch.inference_mode():
        reference = network.to(target.device)
        expected = first(reference(*(tensor.to(target.device) for tensor in example))).cpu()
        outputs = program.outputs(*example)
    if target.precision == "fp16" and expected.isfinite().all() and not outputs.isfinite().all():
        raise UserError(
            f"{what} overflows with this network in fp16, which ends at 65504; use target.precision 'bf16' or 'fp32'"
        )
    largest_difference(expected, outputs, what, tolerance(target))


def _guarded(what: str, target: Target, program: Program) -> Program:
    again = program.anew
    return Program(
        _within_memory(what, target, program.run),
        _within_memory(what, target, program.outputs),
        (lambda: _guarded(what, target, again())) if again is not None else None,
    )


def _within_memory(what: str, target: Target, call: Callable[..., Any]) -> Callable[..., Any]:
    """The call; on a GPU, UserError where its memory is full."""
    if target.device == "cpu":
        return call

    def guarded(*tensors: Tensor) -> Any:
        try:
            return call(*tensors)
        except Exception as error:
            if _is_memory(error):
                raise UserError(_too_large(what, target)) from error
            raise

    return guarded


def in_words(layer: Layer) -> str:
    """`the layer conv 3x3, 16 to 32 channels at 8x8`."""
    kernel = f" {_by(layer.kernel)}" if layer.op in ("conv", "max_pool", "avg_pool") else ""
    groups = f" in {layer.groups} groups" if layer.groups > 1 else ""
    after = f", then {layer.activation}" if layer.activation else ""
    return (
        f"the layer {layer.op}{kernel}, {layer.inputs} to {layer.outputs} channels{groups} at {_by(layer.size)}{after}"
    )


def _by(pair: tuple[int, int]) -> str:
    return "x".join(map(str, pair))


def _copy(model: nn.Module) -> nn.Module:
    return deepcopy(model).eval().cpu()


def _sentence(what: str, target: Target, subject: str, where: str, error: Exception) -> str:
    if _is_memory(error):
        return _too_large(what, target)
    if isinstance(error, UserError):
        return f"{error}{f'; the cause is {where}' if where else ''}"
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
    return (
        f"{what} cannot run {where or subject} in {target.precision} on {target.device} "
        f"({type(error).__name__}: {reason[:300]}); replace it, or use target.runtime 'eager'"
    )


def _too_large(what: str, target: Target) -> str:
    return f"{what} ran out of memory on {target.device} at batch {target.batch}; lower target.batch"


def _is_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        words in str(error).lower() for words in MEMORY
    )


def _culprit(network: nn.Module, example: tuple[Tensor, ...], build: Build) -> str:
    """The first module without children that cannot be built alone, by its path; empty where every one can."""
    built = set()
    for path, (part, inputs) in _calls(network, example).items():
        kind = (repr(part), tuple(tensor.shape for tensor in inputs))
        if kind in built:
            continue
        built.add(kind)
        try:
            build(deepcopy(part), inputs)
        except Exception:
            return f"layer {path!r} ({type(part).__name__})"
    return ""


def _calls(network: nn.Module, example: tuple[Tensor, ...]) -> dict[str, tuple[nn.Module, tuple[Tensor, ...]]]:
    """Every module without children that takes only tensors, by its path, with its inputs."""
    calls: dict[str, tuple[nn.Module, tuple[Tensor, ...]]] = {}

    def watch(path: str, part: nn.Module) -> None:
        def note(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            if all(isinstance(each, Tensor) for each in inputs):
                calls.setdefault(path, (part, inputs))

        part.register_forward_pre_hook(note)

    parts = {path: part for path, part in network.named_modules() if path and not list(part.children())}
    for path, part in parts.items():
        watch(path, part)
    try:
        with torch.no_grad():
            network(*example)
    except Exception:
        return {}  # it does not run at all, and the first error says why
    for part in parts.values():
        part._forward_pre_hooks.clear()
    return calls
