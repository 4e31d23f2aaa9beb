"""Text of the command line and values of a file become typed values, or are refused."""

import json
import math
import tomllib
from ast import literal_eval
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from htas.text import listing

Values = dict[str, Any]
"""Values by option."""
REFUSED = (ValueError, TypeError, KeyError, StopIteration)
"""What `parse` and `check` raise where a value does not fit."""
UNREADABLE = (SyntaxError, RecursionError, MemoryError)
"""What Python's readers of values raise besides, the last two where brackets lie in each other too deep."""
LARGEST = 2**63
"""Whole numbers lie below it, as PyTorch's do."""


def parse(text: str, hint: Any) -> Any:
    """Text of the command line as a value of a type; a list needs no brackets. Raises ValueError."""
    if isinstance(hint, type) and hint not in (bool, int, float):
        return check(text, hint)
    for read in (_bool, literal_eval, json.loads, _toml, _list, str):
        with suppress(*REFUSED, *UNREADABLE):
            return check(read(text), hint)
    raise ValueError(text)


def _bool(text: str) -> bool:
    return {"true": True, "false": False}[text.lower()]


def _toml(text: str) -> Any:
    return tomllib.loads(f"value = {text}")["value"]


def _list(text: str) -> list[str]:
    """`["a", "b"]` of `a, b`, of `[a, b]` and of `['a', b]`."""
    words = text.strip().removeprefix("[").removesuffix("]").split(",")
    return [word.strip().strip("\"'") for word in words if word.strip()]


def check(value: Any, hint: Any) -> Any:
    """A value of a file, or of Python, as a value of a type; a whole number is a number. Raises ValueError."""
    if type(value) is int and not -LARGEST <= value < LARGEST:
        raise ValueError("a whole number must lie between -2^63 and 2^63")
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin is Literal:
        return next(each for each in arguments if type(each) is type(value) and each == value)
    if origin in (Union, UnionType):
        for kind in arguments:
            with suppress(*REFUSED):
                return check(value, kind)
        raise ValueError(value)
    if origin in (list, tuple) and isinstance(value, list | tuple):
        variable = origin is list or arguments[-1] is Ellipsis
        kinds = [arguments[0]] * len(value) if variable else arguments
        return origin(check(each, kind) for each, kind in zip(value, kinds, strict=True))
    if origin is not None and isinstance(value, Mapping) and issubclass(origin, Mapping):
        return {check(name, arguments[0]): check(each, arguments[1]) for name, each in value.items()}
    if hint is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if hint in (bool, int, float, str) or origin is not None:
        if type(value) is hint and hint is not float:
            return value
        raise ValueError(value)
    return value if isinstance(value, hint) else hint(value)


def allowed(hint: Any) -> str:
    """A type in words: `a whole number`, `one of base, expanded`, `a list of whole numbers`."""
    plain = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}
    if hint in plain:
        return plain[hint]
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return f"one of {listing(map(str, arguments))}" if len(arguments) > 1 else str(arguments[0])
    if origin in (Union, UnionType):
        return " or ".join(allowed(each) for each in arguments if each is not NoneType)
    if origin in (list, tuple) and arguments:
        items = {int: "whole numbers", float: "numbers", str: "names"}.get(arguments[0])
        return f"a list of {items}" if items else "a list"
    if origin is dict:
        return f"a table, each value {allowed(arguments[1])}"
    return str(getattr(hint, "__name__", hint))


def texts_in(value: Any) -> Iterator[str]:
    """Every text in a value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from (text for pair in value.items() for each in pair for text in texts_in(each))
    elif isinstance(value, list | tuple):
        yield from (text for each in value for text in texts_in(each))


def as_text(value: Any) -> str:
    """A value of a TOML file as the command line has it: JSON, which is YAML too."""
    return value if isinstance(value, str) else json.dumps(value, default=str)
