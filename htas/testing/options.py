"""What all plug-ins with options have in common."""

import dataclasses

from htas.plugins.options import options_of


def check_options(kind: type, contract: type) -> None:
    """Assert that a plug-in is a frozen dataclass with a docstring, each of its options with the string beneath."""
    assert dataclasses.is_dataclass(kind) and kind.__dataclass_params__.frozen, "@dataclass(frozen=True) is missing"  # type: ignore[attr-defined]
    assert kind.__doc__, "the class has no docstring, which --help prints"
    inherited = {field.name for field in dataclasses.fields(contract)} if dataclasses.is_dataclass(contract) else set()
    for name, option in options_of(kind).items():
        assert name in inherited or option.about, f"the option {name} has no string beneath"
