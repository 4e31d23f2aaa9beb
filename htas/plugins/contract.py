"""What a class of the user's returns is compared with the contract that it derives from, at every call."""

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, ClassVar, TypeVar, Union, get_args, get_origin, get_type_hints

from htas.errors import UserError

T = TypeVar("T")
NUMBERS = {int: Integral, float: Real}
"""What may stand for Python's numbers, those of numpy among them."""
COUNTED = {"measure": "cases", "turns": "calls"}
"""Methods that give a list with one for each of their first argument, and what that has."""
_CHECKED = "__htas_checked__"


def keep(contract: type[Any], kind: type[Any], name: str) -> None:
    """Have the methods, properties and constants of a class of the user's, `package.module:Class`, keep what the
    contract's annotations say of them; raises UserError for a constant of another kind, and so do calls later."""
    for each in kind.__mro__[: kind.__mro__.index(contract)]:
        if is_users_own(each) and _CHECKED not in vars(each):
            ours = next(base for base in each.__mro__ if not is_users_own(base))
            for attribute, hint in _hints(ours, [name for name in vars(each) if not name.startswith("_")]):
                place = f"{name.partition(':')[0]}:{each.__name__}.{attribute}"
                _keep(each, attribute, hint, place)
            setattr(each, _CHECKED, True)


def place_of(kind: type[Any]) -> str:
    """`package.module:Class`, as sentences name a class of the user's."""
    return f"{kind.__module__}:{kind.__qualname__}"


def is_users_own(kind: type[Any]) -> bool:
    """Whether a class is of another package than this one."""
    return not kind.__module__.startswith("htas.")


def _keep(kind: type[Any], attribute: str, hint: Any, place: str) -> None:
    value = vars(kind)[attribute]
    if isinstance(value, property) and value.fget is not None:
        setattr(kind, attribute, property(_checked(value.fget, hint, place, ""), value.fset, value.fdel, value.__doc__))
    elif isinstance(value, classmethod | staticmethod):
        setattr(kind, attribute, type(value)(_checked(value.__func__, hint, place, "()")))
    elif isinstance(value, functools.cached_property):
        cached = functools.cached_property(_checked(value.func, hint, place, ""))
        cached.__set_name__(kind, attribute)
        setattr(kind, attribute, cached)
    elif inspect.isfunction(value):
        setattr(kind, attribute, _checked(value, hint, place, "()"))
    elif not hasattr(value, "__get__"):
        need(value, hint, place)


def _checked(function: Callable[..., T], hint: Any, place: str, call: str) -> Callable[..., T]:
    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> T:
        try:
            value = function(*args, **kwargs)
        except TypeError as error:
            if error.__traceback__ and error.__traceback__.tb_next:  # raised within, not by the call
                raise
            raise UserError(f"{place}{call} must take what its contract says ({error}); mend it there") from error
        need(value, hint, f"{place}{call}")
        if function.__name__ in COUNTED and isinstance(value, list) and len(value) != len(args[1]):
            one = f"one for each of {len(args[1])} {COUNTED[function.__name__]}"
            raise UserError(f"{place}{call} must give {one}, it gives {len(value)}; mend it there")
        if hint in type(value).__mro__ and is_users_own(type(value)) and not is_users_own(hint):
            keep(hint, type(value), place_of(type(value)))  # it has a contract of its own, as a runtime's timer does
        return value

    return checked


def need(value: object, hint: Any, what: str) -> None:
    """Raise UserError where something of the user's is of another kind: `mine:Data.read() must be Images, not None`."""
    if not fits(value, hint):
        raise UserError(f"{what} must be {_words(hint)}, it is {_described(value)}; mend it there")


def need_fields(record: object, what: str) -> None:
    """Raise UserError where a field of a record, a dataclass of htas, is of another kind than its annotation says."""
    hints = get_type_hints(type(record))
    for each in fields(record):  # type: ignore[arg-type]
        need(getattr(record, each.name), hints[each.name], f"{each.name} of {what}")


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type; sequences may stand for one another, and numpy's numbers for Python's."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is None or hint is NoneType:
        return True  # nobody reads it
    if hint in NUMBERS:
        return isinstance(value, NUMBERS[hint]) and not isinstance(value, bool)
    if origin in (Union, UnionType):
        return any(value is None if each is NoneType else fits(value, each) for each in arguments)
    if isinstance(origin, type) and issubclass(origin, tuple | list | Sequence):
        items = value.tolist() if hasattr(value, "tolist") else value
        if not isinstance(items, Sequence) or isinstance(items, str | bytes):
            return False
        variable = not issubclass(origin, tuple) or arguments[-1:] == (Ellipsis,)
        kinds = arguments[:1] * len(items) if variable else arguments
        return len(items) == len(kinds) and all(map(fits, items, kinds))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(
            fits(key, arguments[0]) and fits(each, arguments[1]) for key, each in value.items()
        )
    kind = origin or hint
    return not isinstance(kind, type) or isinstance(value, kind)


def _hints(contract: type[Any], names: Iterable[str]) -> Iterable[tuple[str, Any]]:
    """What the contract says that these return, of those that it has and annotates."""
    for name in names:
        value = inspect.getattr_static(contract, name, None)
        inner = (getattr(value, each, None) for each in ("fget", "__func__", "func"))
        function = next(filter(None, inner), value)
        with suppress(NameError, TypeError):  # of a module that only type checkers import; no function
            if inspect.isfunction(function):
                yield name, get_type_hints(function)["return"]
            elif get_origin(hint := get_type_hints(contract).get(name)) is ClassVar:
                yield name, get_args(hint)[0]


def _words(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint).replace("typing.", "")


def _described(value: object) -> str:
    if value is None or isinstance(value, bool | int | float | str):
        text = repr(value)
        return text if len(text) <= 60 else f"{text[:60]}..."
    if isinstance(value, tuple | list) and len(value) < 10:
        return f"{type(value).__name__} of {', '.join(type(each).__name__ for each in value) or 'nothing'}"
    return type(value).__name__
