"""The plain arguments of htas.optimize, looked at before anything is made of them."""

import os
from collections.abc import Mapping, Sequence
from operator import index
from typing import Any

import numpy as np

from htas.errors import UserError
from htas.plugins.values import Values, as_text


def check_arguments(
    *, constraints: Any, trained: Any, widths: Any, ignored_layers: Any, options: Any, epochs: Any, search_epochs: Any,
    out: Any,
) -> None:  # fmt: skip
    """Raise UserError, with what is allowed, where an argument is of another kind than htas.optimize takes."""
    _check_constraints(constraints)
    if not isinstance(trained, bool | np.bool_):
        raise UserError(
            f"trained must be True, or False to have the base network trained from new weights, got {trained!r}"
        )
    _check_widths(widths)
    listed = isinstance(ignored_layers, Sequence) and all(isinstance(each, str) for each in ignored_layers)
    if not listed:
        raise UserError(f'ignored_layers must be names of modules, such as ["stages.0"], got {ignored_layers!r}')
    if options is not None and not (isinstance(options, Mapping) and all(isinstance(each, str) for each in options)):
        raise UserError(f'options must be values by name, such as {{"train.lr": 0.01}}, got {options!r}')
    for name, count in (("epochs", epochs), ("search_epochs", search_epochs)):
        if not _is_whole(count) or count < 0:
            raise UserError(f"{name} must be a whole number, 0 for the usual, got {count!r}")
    if not isinstance(out, str | os.PathLike):
        raise UserError(f"out must be a folder, as text or a Path, got {out!r}; leave it out for runs/optimize-CLASS")


def check_once(options: Values, arguments: Mapping[str, Values]) -> None:
    """Raise UserError where options give another value than one of the arguments, which are options by name, too; None
    stands for an argument that is not given."""
    for argument, values in arguments.items():
        for name, value in values.items():
            other = options.get(name)
            if value is not None and other is not None and as_text(value) != as_text(other):
                raise UserError(
                    f"{name} is given twice, {value!r} by {argument} and {other!r} by options: leave it out of "
                    f"options, or {argument} out of the call"
                )


def _check_constraints(constraints: Any) -> None:
    example = '{"latency": "50%"}'
    if constraints is None:
        return
    if not isinstance(constraints, Mapping):
        raise UserError(f"constraints must be limits by metric, such as {example}, got {constraints!r}")
    if not any(limit != "" for limit in constraints.values()):
        empty = f"has no limit, got {constraints!r}" if constraints else "is empty"
        raise UserError(
            f"constraints {empty}, and something must limit the network: give {example}, or another metric, or leave "
            "constraints out for half of the latency"
        )
    for metric, limit in constraints.items():
        if not isinstance(limit, str | int | float) or isinstance(limit, bool):
            raise UserError(f'the limit of {metric} in constraints must be text such as "50%", got {limit!r}')


def _check_widths(widths: Any) -> None:
    example = '{"64": (16, 64)}'
    if widths is None:
        return
    if not isinstance(widths, Mapping):
        raise UserError(f"widths must be least and most channels by site, such as {example}, got {widths!r}")
    for site, limits in widths.items():
        if not isinstance(limits, tuple | list) or len(limits) != 2 or not all(map(_is_whole, limits)):
            raise UserError(
                f"widths of {site} must be two whole numbers, the least and the most channels as in {example}, got "
                f"{limits!r}"
            )


def _is_whole(number: Any) -> bool:
    """Whether it is a whole number, of numpy too; True and False are none."""
    try:
        return index(number) == number and not isinstance(number, bool)
    except TypeError:
        return False
