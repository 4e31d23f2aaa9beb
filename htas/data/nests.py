"""Tensors within whatever holds them: lists, dictionaries, dataclasses, objects with attributes."""

import copy
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, MappingView, Set
from enum import Enum
from numbers import Number
from types import ModuleType
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

Parts = dict[Any, Any]
"""What a nest holds, by index, key or name of attribute."""


class Single:
    """An object that a walk takes as a leaf, whatever it holds."""


LEAVES = (
    Single, Tensor, nn.Module, type, ModuleType, Number, str, bytes, bytearray, Enum, np.ndarray, np.generic,
    torch.dtype, torch.device, torch.Generator, Iterator, Set,
)  # fmt: skip
"""Classes whose objects are leaves. Iterators can be read once only, and sets have no order."""


PLAIN = (list, tuple, deque, slice, MappingView)
"""Classes whose objects are built again from what they hold, as plain dictionaries are."""


def leaves_in(tree: Any) -> list[Any]:
    """The leaves of a nest, in their order; those of an object that stands in several places come once."""
    return list(_leaves(tree, set()))


def _leaves(tree: Any, objects: set[int]) -> Iterator[Any]:
    parts = parts_of(tree)
    if parts is None:
        yield tree
    elif id(tree) not in objects:
        if not _is_plain(tree):
            objects.add(id(tree))
        for part in parts.values():
            yield from _leaves(part, objects)


def tensors_in(tree: Any) -> list[Tensor]:
    """The tensors of a nest, in their order."""
    return [leaf for leaf in leaves_in(tree) if isinstance(leaf, Tensor)]


def form(tree: Any, shape: Callable[[Any], Any]) -> object:
    """How a nest is built, to be compared: classes, keys, and `shape` of each leaf."""
    return _form(tree, shape, set())


def _form(tree: Any, shape: Callable[[Any], Any], objects: set[int]) -> object:
    parts = parts_of(tree)
    if parts is None:
        return shape(tree)
    if id(tree) in objects:
        return type(tree)
    if not _is_plain(tree):
        objects.add(id(tree))
    return type(tree), tuple((key, _form(part, shape, objects)) for key, part in parts.items())


def parts_of(tree: Any) -> Parts | None:
    """What a nest holds; None for a leaf."""
    if isinstance(tree, dict):
        return dict(tree.items())
    if isinstance(tree, list | tuple | deque | MappingView):
        return dict(enumerate(cast(Iterable[Any], tree)))
    if isinstance(tree, slice):
        return {"start": tree.start, "stop": tree.stop, "step": tree.step}
    if tree is None or isinstance(tree, LEAVES) or callable(tree):
        return None
    attributes = {name: getattr(tree, name) for name in _slots(tree) if hasattr(tree, name)}
    attributes |= getattr(tree, "__dict__", {})
    return attributes or (dict(tree) if isinstance(tree, Mapping) else None)


def _is_plain(tree: Any) -> bool:
    return type(tree) is dict or isinstance(tree, PLAIN)


def _slots(tree: Any) -> list[str]:
    """The attributes that an object has outside its `__dict__`."""
    found = []
    for kind in type(tree).__mro__:
        names = vars(kind).get("__slots__", ())
        for name in (names,) if isinstance(names, str) else names:
            hidden = name.startswith("__") and not name.endswith("__")
            found.append(f"_{kind.__name__.lstrip('_')}{name}" if hidden else name)
    return [name for name in found if name not in ("__dict__", "__weakref__")]


def replaced(tree: Any, change: Callable[[Any], Any]) -> Any:
    """A nest with every leaf changed, of the classes that it has; an object in which nothing changes is the same.

    Views of dictionaries become lists. No class is called again: attributes are copied.
    """
    return _Replacement(change).of(tree)


class _Replacement:
    def __init__(self, change: Callable[[Any], Any]) -> None:
        self.change = change
        self.changes = 0
        self.twins: dict[int, Any] = {}
        """By object what takes its place."""

    def of(self, tree: Any) -> Any:
        parts = parts_of(tree)
        if parts is None:
            new = self.change(tree)
            self.changes += new is not tree
            return new
        if id(tree) in self.twins:
            return self.twins[id(tree)]
        before = self.changes
        if _is_plain(tree):
            return _plain(tree, {key: self.of(part) for key, part in parts.items()})
        self.twins[id(tree)] = tree  # where it holds itself
        parts = {key: self.of(part) for key, part in parts.items()}
        if self.changes > before:
            self.twins[id(tree)] = _dictionary(tree, parts) if isinstance(tree, dict) else _object(tree, parts)
        return self.twins[id(tree)]


def _plain(tree: Any, parts: Parts) -> Any:
    values = list(parts.values())
    if type(tree) is dict:
        return parts
    if isinstance(tree, slice):
        return slice(*values)
    if isinstance(tree, deque):
        return deque(values, tree.maxlen)
    if isinstance(tree, torch.Size) and all(isinstance(value, int) for value in values):
        return torch.Size(values)
    if isinstance(tree, tuple):
        if hasattr(tree, "_fields"):
            return type(tree)._make(values)  # type: ignore[attr-defined]
        return type(tree)(values) if hasattr(tree, "n_fields") else tuple(values)
    if isinstance(tree, list) and type(tree) is not list:
        twin = copy.copy(tree)
        twin[:] = values
        return twin
    return values


def _dictionary(tree: dict[Any, Any], parts: Parts) -> Any:
    """A dictionary of a class of its own, such as those whose keys are attributes, too."""
    twin = copy.copy(tree)
    for key, part in parts.items():
        twin[key] = part
    held: Any = getattr(tree, "__dict__", None)
    if held is tree:
        object.__setattr__(twin, "__dict__", twin)
    elif held:
        by_value = {id(tree[key]): part for key, part in parts.items()}
        twin.__dict__.update({name: by_value.get(id(value), value) for name, value in held.items()})
    return twin


def _object(tree: Any, parts: Parts) -> Any:
    """An object with other attributes, a frozen one, too."""
    if not hasattr(tree, "__dict__") and not _slots(tree):
        return parts  # a mapping written in C
    try:
        twin = object.__new__(type(tree))
    except TypeError:  # derived from a class written in C
        twin = copy.copy(tree)
    slots = set(_slots(tree))
    for name, part in parts.items():
        if name in slots:
            object.__setattr__(twin, name, part)
        else:
            twin.__dict__[name] = part
    return twin
