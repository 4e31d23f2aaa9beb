"""Options are read from source as from the class, and text becomes typed values, or is refused."""

import subprocess
import sys
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

from htas import metrics, models, plugins
from htas.errors import UserError
from htas.plugins.options import options_of, source_file
from htas.plugins.values import REFUSED, check, parse
from htas.run.config import TABLES


class Colour(Enum):
    """A type of a plug-in's own."""

    RED = "red"


@dataclass(frozen=True)
class Base:
    """A class with options."""

    width: int = 3
    """Channels,
    in all."""
    fixed: ClassVar[int] = 4
    found: int = field(default=0, init=False)


@dataclass(frozen=True)
class Derived(Base):
    """One more."""

    sizes: list[int] = field(default_factory=lambda: [1])
    """Sizes."""
    name: str = field(kw_only=True)
    width: int = 4


def test_options_of_a_class_are_its_fields_with_their_help() -> None:
    width, sizes, name = options_of(Derived).values()
    assert (width.name, width.hint, width.default, width.about) == ("width", int, 4, "Channels, in all.")
    assert (sizes.default, sizes.about, sizes.required) == ([1], "Sizes.", False)
    assert (name.required, name.about) == (True, "")


@pytest.mark.parametrize(
    ("table", "name"),
    [(table, name) for table in TABLES for name in TABLES[table].choices()],
)
def test_the_source_of_a_file_has_the_options_of_its_class(table: str, name: str) -> None:
    if table == "train":
        return
    assert list(TABLES[table].options(name).items()) == list(options_of(TABLES[table].find(name)).items())


@pytest.mark.parametrize("name", plugins.names(metrics))
def test_the_source_of_a_metric_has_the_units_of_its_class(name: str) -> None:
    source = source_file(f"htas.metrics.{name}").implementation("htas.metrics:Metric").as_object({})
    kind = metrics.named(name)
    assert (source.units, source.example, source.unit) == (kind.units, kind.example, kind.unit)


def test_an_object_of_a_source_has_properties_methods_and_no_others() -> None:
    source = source_file("htas.run.config")["SplitOptions"].as_object({"validation": 0.5})
    assert source.validation == 0.5
    with pytest.raises(AttributeError, match="images"):
        assert source.images
    recipe = source_file("htas.training.recipe")["Recipe"].as_object({"warmup": 5, "epochs": 20, "anneal": "epoch"})
    assert (recipe.length, recipe.share(15, 1, 2)) == (25, 0.5)


def test_reading_every_option_imports_no_pytorch() -> None:
    script = """
import sys
from htas.run.config import TABLES
for table in TABLES:
    for name in TABLES[table].choices():
        assert TABLES[table].options(name) or name == "digits", (table, name)
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_file_of_the_users_that_cannot_be_imported_is_blamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_nets.py").write_text("x = 1\n\nx / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"^cannot import 'broken_nets:Net' \(ZeroDivisionError: .*py, line 3\)\)"):
        plugins.find(models, models.ModelFamily, "broken_nets:Net")  # type: ignore[type-abstract]


def test_a_name_that_needs_another_package_cannot_be_read() -> None:
    with pytest.raises(KeyError, match="torch"):
        source_file("htas.models.cifar_resnet")["torch"]


@pytest.mark.parametrize(
    ("text", "hint", "value"),
    [
        ("3", int, 3),
        ("1e-3", float, 0.001),
        ("3", float, 3.0),
        ("True", bool, True),
        ("3", str, "3"),
        ("a/b", Path, Path("a/b")),
        ("null", int | None, None),
        ("3", int | None, 3),
        ("fit", float | Literal["fit"], "fit"),
        ("2", Literal[1, 2], 2),
        ("", tuple[str, ...], ()),
        ("a, b", tuple[str, ...], ("a", "b")),
        ("['a', b]", list[str], ["a", "b"]),
        ("1,2", list[str], ["1", "2"]),
        ("[3, 32, 32], [8]", tuple[tuple[int, ...], ...], ((3, 32, 32), (8,))),
        ('{"16": [8, 16]}', dict[str, list[int]], {"16": [8, 16]}),
        ("{spin = 10}", dict[str, bool | int | float | str], {"spin": 10}),
        ("red", Colour, Colour.RED),
    ],
)
def test_text_becomes_a_value(text: str, hint: Any, value: object) -> None:
    parsed = parse(text, hint)
    assert parsed == value and type(parsed) is type(value)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("3.0", int),
        ("eight", int),
        ("nan", float),
        ("inf", float | None),
        ("maybe", bool),
        ("c", Literal["a", "b"]),
        ("1,x", list[int]),
        ("[1, 2]", tuple[int, int, int]),
        ('{"a": 1.5}', dict[str, int]),
        ("{", dict[str, int]),
        ("blue", Colour),
    ],
)
def test_text_that_does_not_fit_is_refused(text: str, hint: Any) -> None:
    with pytest.raises(REFUSED):
        parse(text, hint)


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (True, int),
        (1, bool),
        (1.0, int),
        ("1", int),
        (True, float),
        (3, str),
        (1, Literal[True]),
        ("ab", list[str]),
        ({"a": "b"}, list[str]),
        ([1], dict[str, int]),
        (None, int),
    ],
)
def test_a_value_of_another_type_is_refused(value: object, hint: Any) -> None:
    with pytest.raises(REFUSED):
        check(value, hint)


def test_a_whole_number_is_a_number_and_a_list_a_tuple() -> None:
    assert check([1, 2.5], tuple[float, ...]) == (1.0, 2.5)
    assert check("a/b", Path) == Path("a/b")
    assert check({"a": [1]}, dict[str, tuple[int, ...]]) == {"a": (1,)}
