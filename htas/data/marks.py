"""Digests of what a Python program hands over, functions and all that they read, alike in every process."""

import enum
import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Set
from functools import partial
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset as TorchDataset

from htas.console.blame import installed

PLAIN = (bool, int, float, complex, str, bytes, type(None), enum.Enum, torch.dtype, torch.device, torch.Size)
MOST = 1000
"""Entries of a list or dictionary that are looked at."""


def mark(value: Any) -> str:
    """Eight hexadecimal digits of a value: the text of a function and what it reads (defaults, closures, globals of the
    user's, the object of a method), tensors, modules with all their parameters and buffers, containers of such."""
    sha = hashlib.sha256()
    _Digest(sha.update).add(value)
    return sha.hexdigest()[:8]


class _Digest:
    def __init__(self, update: Callable[[bytes], None]) -> None:
        self.update = update
        self.objects: dict[int, tuple[int, Any]] = {}
        """A number for each that was entered, which may contain itself; held, so that no other has its id."""

    def text(self, *words: object) -> None:
        self.update(("\0".join(map(str, words)) + "\1").encode())

    def add(self, value: Any) -> None:
        if isinstance(value, PLAIN):
            self.text(type(value).__qualname__, repr(value))
            return
        if id(value) in self.objects:
            self.text("again", self.objects[id(value)][0])
            return
        self.objects[id(value)] = len(self.objects), value
        self.text(type(value).__module__, type(value).__qualname__)
        if isinstance(value, Tensor):
            self._tensor(value)
        elif isinstance(value, np.ndarray | np.generic):
            self.text(value.dtype, value.shape)
            self.update(value.tobytes() if value.dtype != object else repr(value.tolist()).encode())
        elif isinstance(value, list | tuple | Set | Mapping):
            self._container(value)
        elif isinstance(value, partial):
            self.all(value.func, value.args, value.keywords)
        elif isinstance(value, MethodType):
            self.all(value.__func__, value.__self__)
        elif isinstance(value, FunctionType):
            self._function(value)
        elif isinstance(value, type):
            self.text(value.__qualname__, "" if _foreign(value) else _source(value))
        elif isinstance(value, nn.Module) or not _foreign(type(value)):
            self._object(value)
        elif isinstance(value, TorchDataset) and hasattr(value, "__len__"):
            self.text(len(value))
        else:
            self.text(getattr(value, "__qualname__", ""))

    def all(self, *values: Any) -> None:
        for each in values:
            self.add(each)

    def _tensor(self, value: Tensor) -> None:
        self.text(tuple(value.shape), value.dtype)
        dense = value.detach().cpu().to_dense() if value.layout != torch.strided else value.detach().cpu()
        self.update(dense.contiguous().flatten().view(torch.uint8).numpy().tobytes())

    def _container(self, value: Any) -> None:
        self.text(len(value))
        if isinstance(value, Mapping):
            for name, each in list(value.items())[:MOST]:
                self.all(name, each)
        elif isinstance(value, Set):
            self.text(*sorted(map(mark, value)))
        else:
            self.all(*value[:MOST])

    def _function(self, function: FunctionType) -> None:
        self.text(function.__module__, function.__qualname__)
        if _foreign(function):
            return
        self.text(_source(function))
        self.all(function.__defaults__, function.__kwdefaults__)
        for cell in function.__closure__ or ():
            try:
                self.add(cell.cell_contents)
            except ValueError:  # not yet filled
                self.text("empty")
        names = dict.fromkeys(name for code in _codes(function.__code__) for name in code.co_names)
        for name in names:
            value = function.__globals__.get(name)
            if isinstance(value, ModuleType):
                if not _foreign(value):  # of the user's modules, what this function may read
                    self.all(*(vars(value)[entry] for entry in names if entry in vars(value)))
            elif value is not None:
                self.text(name)
                self.add(value)

    def _object(self, value: Any) -> None:
        """The state of an object, and the text of its class where that is the user's."""
        for kind in type(value).__mro__:
            if not _foreign(kind):
                self.text(_source(kind))
                for each in vars(kind).values():
                    if isinstance(each, FunctionType):
                        self._function(each)
        state = {name: each for name, each in getattr(value, "__dict__", {}).items() if "hook" not in str(name)}
        slots = (name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ()))
        self.add({**state, **{name: getattr(value, name) for name in slots if hasattr(value, name)}})


def _foreign(value: Any) -> bool:
    """Whether a class, function or module is of Python or an installed library, whose version a run records."""
    try:
        file = inspect.getsourcefile(value)
    except (OSError, TypeError):  # without a file: builtin, or typed at a prompt
        return getattr(value, "__module__", "builtins") != "__main__"
    return file is not None and installed(file)


def _source(value: Any) -> str:
    try:
        return inspect.getsource(value)
    except (OSError, TypeError):
        codes = _codes(value.__code__) if isinstance(value, FunctionType) else ()
        return repr([(code.co_code, [each for each in code.co_consts if isinstance(each, PLAIN)]) for code in codes])


def _codes(code: CodeType) -> Iterator[CodeType]:
    """The code of a function and of those within it."""
    yield code
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield from _codes(each)
