"""What all plug-ins with options have in common."""

import ast
import dataclasses
import inspect
import textwrap
from itertools import pairwise


def check_options(kind: type, contract: type) -> None:
    """Assert that a plug-in is a frozen dataclass with a docstring, each of its options with the string beneath."""
    assert dataclasses.is_dataclass(kind) and kind.__dataclass_params__.frozen, "@dataclass(frozen=True) is missing"  # type: ignore[attr-defined]
    assert kind.__doc__, "the class has no docstring, which --help prints"
    after: dict[str, ast.stmt] = {}
    for each in kind.__mro__[: kind.__mro__.index(contract)]:
        body = ast.parse(textwrap.dedent(inspect.getsource(each))).body[0].body  # type: ignore[attr-defined]
        after |= {line.target.id: beneath for line, beneath in pairwise(body) if isinstance(line, ast.AnnAssign)}  # type: ignore[union-attr]
    inherited = {field.name for field in dataclasses.fields(contract)} if dataclasses.is_dataclass(contract) else set()
    for field in dataclasses.fields(kind):
        if field.name not in inherited and field.init:
            assert isinstance(after[field.name], ast.Expr), f"the option {field.name} has no string beneath"
