"""A network's steps, recorded while it runs on an example: every size is a number, every value a tensor.

Tensor functions are seen by a TorchFunctionMode, whatever Python called them; modules of torch.nn itself are one step
each. Sizes that a forward reads are `Length`s: whole numbers that remember which tensor's dimension they come from, so
that a step can be run again on tensors of other widths.
"""

import builtins
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from htas.data.nests import Single, leaves_in, replaced, tensors_in
from htas.errors import UserError
from htas.graph.gradients import gradients_off, noticing_gradients
from htas.graph.length import Comparison, Length, noting, place, plain

NUMBERS = {"item", "tolist", "numpy", "__bool__", "__int__", "__float__", "__index__", "__array__", "is_nonzero",
           "equal", "allclose"}  # fmt: skip
"""Tensor methods that make a Python value of what a tensor holds."""
SIZES = {"size", "shape", "__len__", "numel"}
QUIET = {"dim", "ndim", "dtype", "device", "layout", "is_cuda", "requires_grad", "grad_fn", "is_nested", "is_sparse",
         "is_quantized", "is_contiguous", "stride", "is_floating_point", "is_complex", "element_size", "is_mps",
         "is_meta", "is_leaf", "grad", "names", "storage_offset", "data_ptr", "is_xla", "is_mkldnn", "__hash__",
         "requires_grad_", "_version", "output_nr", "is_inference", "is_neg", "is_conj", "itemsize", "nbytes",
         "_set_grad_enabled", "is_tensor", "is_grad_enabled", "retain_grad", "__format__", "__repr__"}  # fmt: skip
"""Questions about a tensor whose answers no width changes, and what changes no values."""


RANDOM = {"rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like", "bernoulli", "bernoulli_",
          "uniform_", "normal", "normal_", "multinomial", "random_", "exponential_", "geometric_"}  # fmt: skip
LIKE: Mapping[str, Any] = {"reshape_as": Tensor.reshape, "view_as": Tensor.view, "expand_as": Tensor.expand}
"""Functions that read another tensor for its sizes alone, and those that are given sizes."""


@dataclass(eq=False)
class Value(Single):
    """A tensor of the recorded run."""

    tensor: Tensor = field(repr=False)
    call: "Call | None" = field(default=None, repr=False)
    """The step that made it; None for inputs, parameters and constants."""
    param: str = ""
    """Qualified name of a parameter or buffer."""
    derived: bool = False
    """Whether it depends on the network's inputs."""
    number: int = 0
    """Its place among the outputs of its step."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes in the recorded run."""
        return tuple(int(size) for size in self.tensor.shape)


@dataclass(eq=False)
class Call(Single):
    """One step: a tensor function, or a module of torch.nn, with its arguments; tensors in them are Values."""

    function: Callable[..., Any] | None
    """None where a module is called."""
    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    stack: tuple[str, ...]
    """Qualified names of the modules under way, the outermost first."""
    module: str = ""
    """Qualified name of the module called."""
    outputs: list[Value] = field(default_factory=list)
    result: Any = None
    """What it returned, with Values for tensors."""
    whole: str = ""
    """Why a module of the user's is one step."""
    _uneven: dict[int, frozenset[int]] = field(default_factory=dict, repr=False)
    quiet: bool = field(default_factory=gradients_off)  # the user's forward turns gradients off for it

    @property
    def owner(self) -> str:
        """Qualified name of the module whose forward makes this step."""
        return self.stack[-1] if self.stack else ""

    @cached_property
    def values(self) -> list[Value]:
        """The tensors among the arguments, in their order."""
        return values_in((self.args, self.kwargs))

    def uneven(self, rank: int) -> frozenset[int]:
        """Dimensions along which tensors of this many dimensions, arguments and outputs, have unlike sizes."""
        if rank not in self._uneven:
            shapes = [each.shape for each in (*self.values, *self.outputs) if len(each.shape) == rank]
            dims = enumerate(zip(*shapes, strict=True))
            self._uneven[rank] = frozenset(dim for dim, sizes in dims if len(set(sizes)) > 1)
        return self._uneven[rank]

    @property
    def lengths(self) -> list[Length]:
        """The sizes among the arguments."""
        return [leaf for leaf in leaves_in((self.args, self.kwargs)) if isinstance(leaf, Length)]


def values_in(tree: Any) -> list[Value]:
    """The Values in a nest, in their order."""
    return [leaf for leaf in leaves_in(tree) if isinstance(leaf, Value)]


@dataclass(eq=False)
class Visit:
    """One call of a module of the user's: what went in, what came out, and the steps between."""

    path: str
    start: int
    """Place of its first step among all."""
    end: int
    """Place after its last step."""
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    caller: str
    """Qualified name of the module that called it."""


@dataclass
class Record:
    """All steps of one run, in their order, and what went in and came out."""

    calls: list[Call]
    visits: list[Visit]
    inputs: list[Value]
    params: dict[str, Value]
    outputs: Any
    """What the network returned, with Values for tensors."""
    strangers: Mapping[int, str] = field(default_factory=dict)
    """By identity of a parameter that the network does not hold, the class of the module called that has it."""
    chance: str = ""
    """Where Python reads a random number out of a tensor, the user's file and line; empty where it does not."""
    compared: list[Comparison] = field(default_factory=list)
    """Questions about sizes that Python has answered on the way."""


class Stuck(Exception):
    """A submodule that cannot be recorded; `path` names it."""

    def __init__(self, path: str, sentence: str) -> None:
        super().__init__(sentence)
        self.path = path


def record(
    module: nn.Module,
    examples: tuple[Tensor, ...],
    whole: Mapping[type[nn.Module], str],
) -> Record:
    """Run `module` on `examples`, [N, *shape] each, in the mode that it is in, and record every step.

    Modules of the classes in `whole` are one step, and so are those of torch.nn. Raises Stuck where
    Python reads a number out of a tensor that depends on the input.
    """
    recorder = _Recorder(module, whole)
    inputs = [recorder.value(example.clone(), derived=True) for example in examples]
    noted = noting(recorder.note)
    with recorder.calling(), _numbered(module), _counting(), noted, torch.no_grad(), noticing_gradients(), recorder:
        outputs = module(*(value.tensor for value in inputs))
    ends = recorder.as_values(outputs)
    return Record(
        recorder.calls, recorder.visits, inputs, recorder.params, ends, recorder.strangers, recorder.chance,
        recorder.compared,
    )  # fmt: skip


CHANNELS = ("in_channels", "out_channels", "in_features", "out_features", "num_features")
"""Numbers of torch's own layers that a forward may compare; none of their own forwards reads them."""


@contextmanager
def _numbered(module: nn.Module) -> Iterator[None]:
    """While the whole numbers that modules of the user's hold, or their classes, are Lengths, and the channels of
    torch's own layers."""
    before: list[tuple[dict[str, Any], str, Any]] = []
    for path, part in module.named_modules():
        library = _home(part).__module__.startswith("torch.nn.")
        if library and getattr(part, "groups", 1) != 1:
            continue
        kinds = [kind for kind in reversed(type(part).__mro__) if not kind.__module__.startswith("torch.")]
        of_class = {name: value for kind in kinds for name, value in vars(kind).items()}
        for name, value in (of_class | vars(part)).items():
            if name == "training" or name.startswith("_") or (library and name not in CHANNELS):
                continue
            if type(value) is int:
                new: Any = Length(value, ("attribute", path, name, None))
            elif type(value) in (list, tuple) and value and all(type(each) is int for each in value):
                new = type(value)(Length(n, ("attribute", path, name, at)) for at, n in enumerate(value))
            else:
                continue
            before.append((vars(part), name, vars(part).get(name)))
            vars(part)[name] = new
    try:
        yield
    finally:
        for held, name, value in before:
            held.pop(name) if value is None else held.update({name: value})


@contextmanager
def _counting() -> Iterator[None]:
    """While `len` of a tensor is a Length; the interpreter makes a plain number of what `Tensor.__len__` returns."""
    plain = builtins.len

    def length(of: Any, /) -> int:
        return of.shape[0] if isinstance(of, Tensor) and of.dim() else plain(of)

    builtins.len = length
    try:
        yield
    finally:
        builtins.len = plain


def _home(module: nn.Module) -> type:
    """The class whose forward a module has."""
    if "forward" in vars(module):
        return type(module)
    return next((kind for kind in type(module).__mro__ if "forward" in vars(kind)), nn.Module)


class _Recorder(TorchFunctionMode):
    def __init__(self, module: nn.Module, whole: Mapping[type[nn.Module], str]) -> None:
        super().__init__()
        self.whole = whole
        self.calls: list[Call] = []
        self.visits: list[Visit] = []
        self.values: dict[int, Value] = {}
        self.params: dict[str, Value] = {}
        self.paths = {id(part): path for path, part in module.named_modules()}
        self.stack: list[str] = []
        self.paused = False
        self.chance = ""
        self.compared: list[Comparison] = []
        self.strangers: dict[int, str] = {}
        named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
        for path, tensor in named:
            if id(tensor) not in self.values:
                self.values[id(tensor)] = Value(tensor, param=path)
            self.params[path] = self.values[id(tensor)]

    def value(self, tensor: Tensor, *, derived: bool = False, call: Call | None = None, number: int = 0) -> Value:
        self.values[id(tensor)] = value = Value(tensor, call, "", derived, number)
        return value

    def as_values(self, tree: Any) -> Any:
        def known(leaf: Any) -> Any:
            if isinstance(leaf, Tensor):
                return self.values.get(id(leaf)) or self.value(leaf)
            return leaf

        return replaced(tree, known)

    def note(self, comparison: Comparison) -> None:
        """Keep a comparison that a forward of the user's makes."""
        if not self.paused:
            self.compared.append(comparison)

    # -- modules -------------------------------------------------------------------------------------------------------

    @contextmanager
    def calling(self) -> Iterator[None]:
        """While every call of a module comes here first."""
        original = nn.Module.__call__

        def called(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return self._module(module, original, args, kwargs)

        nn.Module.__call__ = called  # type: ignore[method-assign]
        try:
            yield
        finally:
            nn.Module.__call__ = original  # type: ignore[method-assign]

    def _module(self, module: nn.Module, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        path = self.paths.get(id(module))
        if path is None:
            self.strangers |= {id(each): type(module).__name__ for each in module.parameters(recurse=False)}
        if self.paused or path is None:
            return original(module, *args, **kwargs)
        why = next((self.whole[kind] for kind in type(module).__mro__ if kind in self.whole), "")
        if path and (why or is_leaf(module)):
            arguments, options = self.as_values((args, kwargs))
            step = Call(None, path, arguments, options, tuple(self.stack), module=path, whole=why)
            self.paused = True
            try:
                result = original(module, *args, **kwargs)
            finally:
                self.paused = False
            self._made(step, result)
            caller = self.stack[-1] if self.stack else ""
            visit = Visit(path, len(self.calls) - 1, len(self.calls), tuple(step.values), tuple(step.outputs), caller)
            self.visits.append(visit)
            return result
        caller = self.stack[-1] if self.stack else ""
        inputs = values_in(self.as_values((args, kwargs)))
        self.stack.append(path)
        before = len(self.calls)
        try:
            result = original(module, *args, **kwargs)
        except Stuck:
            raise
        except Exception as error:
            if not hasattr(error, "_htas_stuck"):
                error._htas_stuck = path  # type: ignore[attr-defined]
            raise
        finally:
            self.stack.pop()
        if path and self._unexplained(result):
            del self.calls[before:]
            raise Stuck(path, "computes a tensor by other means than tensor functions")
        outputs = values_in(self.as_values(result))
        self.visits.append(Visit(path, before, len(self.calls), tuple(inputs), tuple(outputs), caller))
        return result

    def _unexplained(self, result: Any) -> bool:
        """Whether a module returns a tensor that no recorded step has made."""
        return any(id(tensor) not in self.values for tensor in tensors_in(result))

    # -- functions -----------------------------------------------------------------------------------------------------

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.paused:
            return func(*args, **kwargs)
        name = name_of(func)
        if name in SIZES:
            return self._sizes(name, func, args, kwargs)
        if name in QUIET or (name.startswith("__set") and name != "__setitem__"):
            return func(*args, **kwargs)
        if name in NUMBERS:
            source = self.values.get(id(args[0]))
            if source is None or source.derived:
                raise Stuck(self.stack[-1] if self.stack else "", f"depends on the values of a tensor ({place()})")
            if not self.chance and _is_random(source):
                self.chance = place()
            return func(*args, **kwargs)
        if name in LIKE and len(args) == 2:
            func, name, args = (
                LIKE[name],
                LIKE[name].__name__,
                (args[0], tuple(self._sizes("size", _size, args[1:], {}))),
            )
        arguments, options = self.as_values((args, kwargs))
        step = Call(func, name, arguments, options, tuple(self.stack))
        plain_args, plain_kwargs = replaced((args, kwargs), plain)
        result = func(*plain_args, **plain_kwargs)
        if result is None and name not in ("__setitem__",):
            return None
        return self._made(step, result)

    def _sizes(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        result = func(*args, **kwargs)
        value = self.values.get(id(args[0]))
        if value is None:
            return result
        if name == "numel":
            total: Any = 1
            for dim, size in enumerate(args[0].shape):
                total = Length(int(size), ("size", value, dim)) * total
            return total
        if isinstance(result, torch.Size):
            return torch.Size([Length(int(size), ("size", value, dim)) for dim, size in enumerate(result)])
        if isinstance(result, int):
            dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
            return Length(result, ("size", value, dim % args[0].dim()))
        return result

    def _made(self, step: Call, result: Any) -> Any:
        derived = any(value.derived for value in step.values)
        inplace = result is None and step.name == "__setitem__"

        def made(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            value = Value(leaf, step, "", derived, len(step.outputs))
            step.outputs.append(value)
            return value

        step.result = made(step.args[0].tensor) if inplace else replaced(result, made)
        for value in step.outputs:
            self.values[id(value.tensor)] = value
        self.calls.append(step)
        return result


def is_leaf(module: nn.Module) -> bool:
    """Whether a module is one step: one of torch.nn's own without submodules, or of a class derived from such that
    keeps its forward; one that computes its weight (torch.nn.utils.parametrize) is followed."""
    if isinstance(module, torch.jit.ScriptModule):
        return True
    home = _home(module)
    if not home.__module__.startswith("torch.nn.modules.") or hasattr(module, "parametrizations"):
        return False
    if home is nn.Sequential:
        return False
    hooked = bool(module._forward_pre_hooks)  # those that compute a weight (weight_norm), the only ones let in
    return not hooked and (not any(True for _ in module.children()) or isinstance(module, nn.MultiheadAttention))


def name_of(function: Any) -> str:
    """The name of a tensor function: `conv2d`, `add`, `shape`."""
    name = str(getattr(function, "__name__", type(function).__name__))
    return str(function.__self__.__name__) if name == "__get__" else name


def _size(tensor: Tensor) -> torch.Size:
    return tensor.shape


def _is_random(value: Value) -> bool:
    return value.call is not None and (value.call.name in RANDOM or any(map(_is_random, value.call.values)))


def refusal(module: nn.Module, sentence: str) -> UserError:
    """What a user is told where the network's own forward cannot be recorded."""
    return UserError(
        f"{type(module).__name__} {sentence}: keep control flow that depends on data out of its forward(), or move it "
        "into a submodule, which then stays as it is"
    )
