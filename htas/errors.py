"""Mistakes of the user's, apart from faults of this package."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

_VALUED, _DOTTED = re.compile(r"(?<!\S)--([a-z]+\.\w+)=([^\s;,]+)"), re.compile(r"(?<!\S)--([a-z]+\.\w+)")
_PLAIN = re.compile(r"(\bwith )?(?<!\S)--([a-z]\w*)\b(?![-.])")
"""Options of the command in a sentence."""


class UserError(ValueError):
    """A mistake of the user's in one sentence: the value, the values allowed, and what to do next.

    The command prints it and ends with exit code 2. Any other exception is a fault of this package.
    """


class PlaceError(UserError):
    """A file or folder that cannot be used: the place, the reason, and that another may be named, which the command
    completes by its option for that."""


class CallerError(UserError):
    """A run that only the Python program can open whose network or data it is; no file of it is at fault."""


@contextmanager
def of_option(option: str) -> Iterator[None]:
    """Put an option in front of the sentence of a UserError that does not name it: target.runtime: no runtime called
    'x'."""
    try:
        yield
    except UserError as error:
        if option in str(error):
            raise
        raise UserError(f"{option}: {error}") from error


@contextmanager
def in_python() -> Iterator[None]:
    """Have the sentence of a UserError advise arguments of a function in place of the command's options."""
    try:
        yield
    except UserError as error:
        error.args = (as_arguments(str(error)), *error.args[1:])
        raise


def as_arguments(words: str) -> str:
    """`name another folder with out=` of `with --out`, `options={"train.lr": 0.1}` of `--train.lr=0.1`,
    `constraints={"latency": "50%"}` of `--constraints.latency="50%"`."""
    words = _VALUED.sub(_of_options, words)
    words = _DOTTED.sub(r"options['\1']", words)
    return _PLAIN.sub(lambda match: f"{match[1]}{match[2]}=" if match[1] else match[2], words)


def _of_options(match: re.Match[str]) -> str:
    name, value = match[1], match[2].strip("\"'")
    table, _, metric = name.partition(".")
    if table == "constraints":
        return f'constraints={{"{metric}": "{value}"}}'
    number = re.fullmatch(r"-?[\d.]+(e-?\d+)?", value)
    return f"options={{{name!r}: {value if number else repr(value)}}}"


def need_least(least: float, options: object, section: str, *names: str) -> None:
    """Raise UserError where one of these options is below `least`: strategy.epochs must be 1 or more, got 0."""
    for name in names:
        if not getattr(options, name) >= least:
            raise UserError(f"{section}.{name} must be {least:g} or more, got {getattr(options, name)}")


def need_most(most: float, options: object, section: str, *names: str) -> None:
    """Raise UserError where one of these options is above `most`: data.size must be 8192 or less, got 1000000."""
    for name in names:
        if not getattr(options, name) <= most:
            raise UserError(f"{section}.{name} must be {most:g} or less, got {getattr(options, name)}")


def need_below(most: float, options: object, section: str, *names: str) -> None:
    """Raise UserError where one of these options is not below `most`: train.momentum must be below 1, got 1.0."""
    for name in names:
        if not getattr(options, name) < most:
            raise UserError(f"{section}.{name} must be below {most:g}, got {getattr(options, name)}")


def need_above_zero(options: object, section: str, *names: str) -> None:
    """Raise UserError where one of these options is not above 0: strategy.lr must be above 0, got 0.0."""
    for name in names:
        if not getattr(options, name) > 0:
            raise UserError(f"{section}.{name} must be above 0, got {getattr(options, name)}")
