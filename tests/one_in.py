"""Parameters of tests, some of which are tried in `make test-all` alone."""

from collections.abc import Iterable
from typing import Any

import pytest


def one_in(every: int, params: Iterable[Any]) -> list[Any]:
    """The parameters of a test that is long with all of them, alike in kind: the first of every so many is quick, and
    the others are slow."""
    return [each if number % every == 0 else _slow(each) for number, each in enumerate(params)]


def _slow(each: Any) -> Any:
    if hasattr(each, "marks"):
        return pytest.param(*each.values, id=each.id, marks=[*each.marks, pytest.mark.slow])
    return pytest.param(*(each if isinstance(each, tuple) else (each,)), marks=pytest.mark.slow)
