"""Refusals of networks that are hooked, quantised, compiled, without sizes, or on another device."""

import inspect
import sys
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any

import torch
from torch import nn

from htas.data.nests import leaves_in
from htas.errors import UserError
from htas.graph.record import Record, Value, values_in

KINDS = {"_forward_pre_hooks": "forward pre-hook", "_forward_hooks": "forward hook", "_backward_hooks": "backward hook",
         "_backward_pre_hooks": "backward pre-hook"}  # fmt: skip
QUANTISED = ("torch.ao.", "torch.nn.quantized", "torch.nn.qat", "torch.nn.intrinsic", "torchao", "bitsandbytes")


def check(module: nn.Module) -> None:
    """Raise UserError, in one sentence, where a network could not be searched rightly."""
    if isinstance(module, torch.jit.ScriptModule):
        name, place = module.original_name, _source(_class_of(module))
        loaded = f", an object of {name} ({place})" if place else f", {name}(...), with the weights loaded into it"
        raise UserError(
            f"{name} is compiled by TorchScript (torch.jit), which keeps its sizes: give the network in Python that it "
            f"was made from{loaded}"
        )
    for name, part in module.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            continue
        title = f"{type(part).__name__} {name}" if name else type(part).__name__
        if isinstance(part, nn.modules.lazy.LazyModuleMixin) and part.has_uninitialized_params():  # type: ignore[misc]
            raise UserError(
                f"{title}{_holder(module, name)} has no sizes before its first run: run it once, model(example), and "
                "give the network then"
            )
        for kind, hook in _hooks(part):
            raise UserError(
                f"{title} has a {kind}, {_named(hook)}, which resized layers would lose: remove it (handle.remove()) "
                "and register it on the network that comes out"
            )
        if type(part).__module__.startswith(QUANTISED):
            raise UserError(
                f"{title}{_holder(module, name)} is quantised ({type(part).__module__}): give the network in floating "
                "point, as it was before it was prepared or converted, and quantise the one that comes out"
            )
    for name, parameter in module.named_parameters():
        if parameter.dtype in (torch.float16, torch.bfloat16):
            raise UserError(
                f"{name} is of {parameter.dtype}, in which nothing is searched: call model.float() first; training and "
                "runtimes have precisions of their own"
            )
    devices = sorted({str(tensor.device) for tensor in module.state_dict().values()} - {"cpu"})
    if devices:
        raise UserError(
            f"the network must be on the CPU, it is on {' and '.join(devices)}: call model.cpu() first; it is trained "
            "where that is fastest all the same"
        )


def check_held(module: nn.Module, record: Record) -> None:
    """Raise UserError where a run reads a parameter that the network does not hold, or returns no tensor that can be
    followed."""
    name, held = type(module).__name__, {id(each): path for path, each in module.named_parameters()}
    for value in (each for call in record.calls for each in call.values):
        if not isinstance(value.tensor, nn.Parameter) or value.param or value.call is not None:
            continue
        if path := held.get(id(value.tensor)):
            raise UserError(
                f"{name} reads {path} through a function that it keeps (a closure, or a bound method such as a forward "
                f"that was replaced), by which a copy of it reads the original's: read it from self in forward()"
            )
        owner = f" of a {kind}" if (kind := record.strangers.get(id(value.tensor))) else ""
        raise UserError(
            f"{name} reads a parameter{owner} of shape {value.shape} that it does not hold, and that neither training "
            "nor copies see: hold the module as a submodule, an attribute of the network or an element of an "
            "nn.ModuleList or nn.ModuleDict (of nn.ParameterList for parameters alone)"
        )
    leaves = leaves_in(record.outputs)
    for leaf in leaves:
        if isinstance(leaf, Iterator | Set):
            why = "has no order" if isinstance(leaf, Set) else "can be read only once"
            kind = type(leaf).__name__
            raise UserError(f"{name} returns a {kind}, which {why}: return a list or a tuple of its parts")
    if not any(isinstance(leaf, Value) and leaf.call is not None for leaf in leaves):
        kind = "Tensor" if isinstance(record.outputs, Value) else type(record.outputs).__name__
        raise UserError(
            f"{name} returns a {kind} in which no tensor can be found that a step of its forward() makes: return "
            "a tensor, or tensors in a tuple, list, dictionary or dataclass"
        )


ENDS = {"softmax", "log_softmax", "sigmoid", "sigmoid_", "softmin", "argmax", "max", "logsigmoid", "tanh",
        "Softmax", "LogSoftmax", "Softmax2d", "Sigmoid", "LogSigmoid"}  # fmt: skip
"""Steps that make probabilities, or answers, of what a loss reads."""


def check_outputs(module: nn.Module, evaluated: Record, trained: Record) -> None:
    """Raise UserError where a network returns probabilities in one mode and what they are made of in the other: it
    would be trained on the wrong ones."""
    modules = dict(module.named_modules())
    ends = [_ends(record, modules) for record in (evaluated, trained)]
    for one, two, mode, other in ((*ends, "eval", "training"), (*reversed(ends), "training", "eval")):
        for (step, source), (last, _) in zip(one, two, strict=False):
            if step in ENDS and step != last and source == last:
                raise UserError(
                    f"{type(module).__name__} returns the {step.lower()} of its output in {mode} mode, and not in "
                    f"{other}: return the same in both, logits for instance, and apply {step.lower()} outside"
                )


def _ends(record: Record, modules: dict[str, nn.Module]) -> list[tuple[str, str]]:
    """Of each output the name of the step that makes it, and of the step before."""

    def name(value: Value | None) -> str:
        if value is None or value.call is None:
            return ""
        return type(modules[value.call.module]).__name__ if value.call.module else value.call.name

    outputs = values_in(record.outputs)
    before = [next((each for each in (out.call.values if out.call else ()) if each.derived), None) for out in outputs]
    return list(zip(map(name, outputs), map(name, before), strict=True))


def _class_of(scripted: Any) -> type | None:
    """The class in Python that a scripted module was made from; None where it is not loaded."""
    _, *path, name = scripted._c._type().qualified_name().split(".")
    path = [each for each in path if not each.startswith("___torch_mangle")]
    kind = getattr(sys.modules.get(".".join(path)), name, None)
    return kind if isinstance(kind, type) else None


def _source(kind: type | None) -> str:
    """File and line of a class; empty where there are none."""
    try:
        return f"{inspect.getsourcefile(kind)}, line {inspect.getsourcelines(kind)[1]}" if kind is not None else ""
    except (OSError, TypeError):  # typed at a prompt
        return ""


def _holder(module: nn.Module, name: str) -> str:
    """The innermost class around a submodule that is not PyTorch's, with its file and line."""
    parts = name.split(".") if name else []
    around = [module.get_submodule(".".join(parts[:count])) for count in range(len(parts), -1, -1)]
    libraries = ("torch.", "torchao", "bitsandbytes")
    kinds = [type(each) for each in around if not type(each).__module__.startswith(libraries)]
    place = _source(kinds[0]) if kinds else ""
    return f" of {kinds[0].__name__} ({place})" if place else ""


def _hooks(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """The user's own: those by which torch.nn.utils computes a weight do that in a copy, too."""
    for attribute, kind in KINDS.items():
        for hook in (getattr(module, attribute, None) or {}).values():
            if not type(hook).__module__.startswith("torch."):
                yield kind, hook


def _named(hook: Any) -> str:
    code = getattr(inspect.unwrap(hook), "__code__", None)
    title = getattr(hook, "__qualname__", type(hook).__name__)
    return f"{title} ({Path(code.co_filename)}, line {code.co_firstlineno})" if code else str(title)
