"""Sizes that a forward reads: whole numbers that remember where they come from, and what Python asks about them."""

import operator
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from htas.console.blame import installed


@dataclass(frozen=True, eq=False)
class Comparison:
    """A question about numbers, at least one of them a Length, and its answer in the recorded run."""

    function: Callable[..., bool]
    """One of `operator`: eq, ne, lt, le, gt, ge or truth."""
    numbers: tuple[Any, ...]
    answer: bool
    where: str
    """The user's file and line."""
    sentence: str = "compares its number of channels"
    """What forward does."""

    @property
    def equal(self) -> bool:
        """Whether it found two whole numbers to be equal."""
        return self.function in (operator.eq, operator.ne) and self.answer == (self.function is operator.eq)

    def at(self, number: Callable[["Leaf", int], int]) -> bool:
        """The answer where `number(leaf, recorded)` is what a leaf is now."""
        return bool(self.function(*(length_at(each, number) for each in self.numbers)))


_listeners: list[Callable[[Comparison], None]] = []


@contextmanager
def noting(listener: Callable[[Comparison], None]) -> Iterator[None]:
    """While a listener hears of every comparison of a Length."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


class Length(int):
    """A whole number that a forward pass computed from the sizes of tensors."""

    how: tuple[Any, ...]
    """("size", value, dimension); ("attribute", module, name, index) for a number that a module of the user's holds
    (the index within a list, or None); or a function of `operator` and its operands."""

    def __new__(cls, number: int, how: tuple[Any, ...]) -> "Length":
        length = super().__new__(cls, number)
        length.how = how
        return length

    def __reduce__(self) -> tuple[Any, ...]:  # a forward may keep it: pickled and copied as a plain number
        return int, (int(self),)

    def __deepcopy__(self, memo: Any) -> int:
        return int(self)


def _arithmetic(name: str, backwards: bool) -> Callable[[Any, Any], Any]:
    function = getattr(operator, name)

    def apply(self: Length, other: Any) -> Any:
        if not isinstance(other, int | float):  # a tensor, which takes the Length
            return NotImplemented
        one, two = (other, self) if backwards else (self, other)
        number = function(plain(one), plain(two))
        return Length(number, (function, one, two)) if type(number) is int else _lost(self, number)

    return apply


def _lost(length: Length, number: Any) -> Any:
    """A number that does not remember where it comes from, but that is right for one length only."""
    if _listeners:
        sentence = "makes another number of its number of channels"
        _listeners[-1](Comparison(operator.eq, (length, int(length)), True, place(), sentence))
    return number


for _name in ("add", "sub", "mul", "floordiv", "mod", "truediv", "pow", "rshift", "lshift"):
    setattr(Length, f"__{_name}__", _arithmetic(_name, False))
    setattr(Length, f"__r{_name}__", _arithmetic(_name, True))
setattr(Length, "__float__", lambda self: _lost(self, float(int(self))))  # noqa: B010 - as the others
setattr(Length, "__neg__", lambda self: Length(-int(self), (operator.neg, self)))  # noqa: B010 - as the others


def _comparison(name: str) -> Callable[..., Any]:
    function = getattr(operator, name)

    def compare(self: Length, *others: Any) -> Any:
        if not all(isinstance(other, int | float) for other in others):
            return NotImplemented
        answer = bool(function(*map(plain, (self, *others))))
        # einops looks shapes up among those that it has seen before, and fails where sizes do not fit
        if _listeners and not sys._getframe(1).f_globals.get("__name__", "").startswith("einops."):
            _listeners[-1](Comparison(function, (self, *others), answer, place()))
        return answer

    return compare


def plain(number: Any) -> Any:
    """A Length as a plain number; anything else as it is."""
    return int(number) if isinstance(number, Length) else number


for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    setattr(Length, f"__{_name}__", _comparison(_name))
setattr(Length, "__bool__", _comparison("truth"))  # noqa: B010 - as the others
setattr(Length, "__hash__", int.__hash__)  # noqa: B010 - as the others


Leaf = tuple[Any, ...]
"""What a Length is computed from: the `how` of one that no other Length is part of."""


def length_at(length: Any, number: Callable[[Leaf, int], int]) -> Any:
    """A Length computed again, where `number(leaf, recorded)` is what a leaf is now; other values as they are."""
    if not isinstance(length, Length):
        return length
    head, *rest = length.how
    if isinstance(head, str):
        return number(length.how, int(length))
    return head(*(length_at(each, number) for each in rest))


def leaves_of(length: Any) -> Iterator[tuple[Leaf, int]]:
    """The leaves of a Length, each with the number that it was in the recorded run."""
    if isinstance(length, Length):
        head, *rest = length.how
        if isinstance(head, str):
            yield length.how, int(length)
        else:
            for each in rest:
                yield from leaves_of(each)


def place() -> str:
    """The user's file and line."""
    frame = sys._getframe(1)
    inner = ""
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith("<") and not installed(name):
            return f"{name}, line {frame.f_lineno}"
        if not inner and "htas" not in name and "/torch/" not in name:
            inner = f"{name}, line {frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return inner or "in a library"
