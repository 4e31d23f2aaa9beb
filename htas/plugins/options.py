"""Options are the fields of a dataclass: name, type, default, and the string below as their help.

Those of the package are read from the source of its files, so that no file with PyTorch is imported for them.
"""

import ast
import dataclasses
import inspect
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import MISSING, dataclass, replace
from functools import cache, partial
from importlib import import_module
from itertools import zip_longest
from pathlib import Path
from typing import Any, ClassVar, get_origin, get_type_hints

from htas.errors import UserError

ROOT = Path(__file__).parents[1]
PLAIN = ("errors", "files", "plugins", "text")
"""Rooms that import no other library that is slow, so that what stands in them is imported, not read."""


@dataclass(frozen=True)
class Option:
    """One field of a class of options."""

    name: str
    hint: Any
    """Its type."""
    default: Any = MISSING
    about: str = ""
    """Its help."""

    @property
    def required(self) -> bool:
        """True for an option without a default."""
        return self.default is MISSING


Options = Mapping[str, Option]


def options_of(kind: type[Any]) -> Options:
    """The options of a class, by name; where a class only changes a default, the help of its base stays."""
    hints = get_type_hints(kind)
    abouts: dict[str, str] = {}
    for each in reversed(kind.__mro__[:-1]):
        abouts |= {name: about for name, _, about in _annotated(_class_source(each)) if about}
    return {
        field.name: Option(field.name, hints[field.name], _default(field), abouts.get(field.name, ""))
        for field in dataclasses.fields(kind)
        if field.init
    }


def _class_source(kind: type[Any]) -> ast.ClassDef:
    try:
        (node,) = ast.parse(inspect.cleandoc(inspect.getsource(kind))).body
        assert isinstance(node, ast.ClassDef)
        return node
    except (OSError, TypeError, SyntaxError):  # a class that no file holds has no help
        return ast.ClassDef(kind.__name__, [], [], [], [])


def in_key(field: "dataclasses.Field[Any]", value: Any) -> bool:
    """Whether a hash of what results depend on has a field: not one of `metadata={"key": False}`, and one that is
    younger than hashes that exist, of `metadata={"key": "changed"}`, only where it is not as it is by default."""
    key = field.metadata.get("key", True)
    return value != _default(field) if key == "changed" else bool(key)


def _default(field: "dataclasses.Field[Any]") -> Any:
    return field.default_factory() if field.default_factory is not MISSING else field.default


def _annotated(node: ast.ClassDef) -> Iterator[tuple[str, ast.AnnAssign, str]]:
    """Name, statement and help of the annotated names of a class."""
    for statement, below in zip_longest(node.body, node.body[1:]):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            text = below.value if isinstance(below, ast.Expr) else None
            about = text.value if isinstance(text, ast.Constant) and isinstance(text.value, str) else ""
            yield statement.target.id, statement, " ".join(about.split())


class SourceFile(dict[str, Any]):
    """A file of the package that is read, not imported: names map to constants, types, functions and SourceClasses."""

    def __init__(self, module: str) -> None:
        super().__init__()
        place = ROOT.joinpath(*module.split(".")[1:])
        path = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
        self.module = module
        self.body = ast.parse(path.read_text(encoding="utf-8")).body

    def __missing__(self, name: str) -> Any:
        for node in self.body:
            match node:
                case ast.ClassDef() if node.name == name:
                    return SourceClass(self, node)
                case ast.FunctionDef() if node.name == name:
                    return self.function(node)
                case ast.Assign(targets=[ast.Name(id=target)]) | ast.AnnAssign(target=ast.Name(id=target)):
                    if target == name and node.value is not None:
                        return self.evaluate(node.value)
                case ast.Import(names=[ast.alias(name=module)]) if module == name and name in sys.stdlib_module_names:
                    return import_module(name)
                case ast.ImportFrom(module=str(module)):
                    for alias in node.names:
                        if (alias.asname or alias.name) == name:
                            return _imported(module, alias.name)
        raise KeyError(name)

    def evaluate(self, node: ast.expr) -> Any:
        """The value of an expression; raises NameError where it needs more than can be read."""
        return eval(compile(ast.Expression(node), self.module, "eval"), self)

    def function(self, node: ast.FunctionDef) -> Any:
        """A function; called, it raises NameError where it needs more than can be read."""
        exec(compile(ast.fix_missing_locations(ast.Module([node], [])), self.module, "exec"), self)
        return self.pop(node.name)

    def implementation(self, contract: str) -> "SourceClass":
        """The class of this file that derives from a contract, `htas.models:ModelFamily`."""
        classes = [SourceClass(self, node) for node in self.body if isinstance(node, ast.ClassDef)]
        (implementation,) = (
            each for each in classes if contract in (f"{base.file.module}:{base.node.name}" for base in each.lineage())
        )
        return implementation


@cache
def source_file(module: str) -> SourceFile:
    """A file of the package by its module's name."""
    return SourceFile(module)


def _imported(module: str, name: str) -> Any:
    top = module.split(".")[0]
    if module == "htas":  # another folder by its name
        return import_module(f"htas.{name}") if name in PLAIN else f"htas.{name}"
    if top == "htas" and module.split(".")[1] not in PLAIN:
        return source_file(module)[name]
    if top == "htas" or top in sys.stdlib_module_names:
        return getattr(import_module(module), name)
    raise KeyError(name)


@dataclass(frozen=True)
class SourceClass:
    """A class of a SourceFile."""

    file: SourceFile
    node: ast.ClassDef

    def lineage(self) -> "Iterator[SourceClass]":
        """The class and all classes of the package that it derives from, each before its bases."""
        yield self
        for base in self.node.bases:
            with suppress(NameError, AttributeError):  # a class of another package
                value = self.file.evaluate(base.value if isinstance(base, ast.Subscript) else base)
                if isinstance(value, SourceClass):
                    yield from value.lineage()

    def options(self) -> Options:
        """Its fields, in the order of a dataclass."""
        options: dict[str, Option] = {}
        for each in reversed(list(self.lineage())):
            if any("dataclass" in ast.unparse(decorator) for decorator in each.node.decorator_list):
                for name, option in each._fields().items():
                    options[name] = replace(option, about=option.about or options.get(name, option).about)
        return options

    def check(self, values: Mapping[str, object]) -> None:
        """Raise the UserError with which the class refuses these values, if its file alone can tell; that of its bases
        comes first."""
        options = self.as_object(values)
        for each in reversed(list(self.lineage())):
            for node in each.node.body:
                if isinstance(node, ast.FunctionDef) and node.name == "__post_init__":
                    names: list[ast.stmt] = []
                    for statement in node.body:
                        one = ast.FunctionDef("__check__", node.args, [*names, statement], [])
                        try:
                            each.file.function(one)(options)
                        except UserError:
                            raise
                        except Exception:  # it needs PyTorch, or the object itself: the class checks it when it is made
                            continue
                        names += [statement] if isinstance(statement, ast.Assign) else []

    def as_object(self, values: Mapping[str, object]) -> Any:
        """An object with these values, and with the constants, properties and methods of the class."""
        return SourceObject(self, values)

    def attribute(self, name: str, instance: "SourceObject") -> Any:
        """A constant, a property's value or a method; raises AttributeError where the class has none."""
        for each in self.lineage():
            for node in each.node.body:
                match node:
                    case ast.AnnAssign(target=ast.Name(id=target), value=ast.expr() as value) if target == name:
                        return each.file.evaluate(value)
                    case ast.FunctionDef(name=function) if function == name:
                        plain = each.file.function(ast.FunctionDef(name, node.args, node.body, []))
                        return plain(instance) if node.decorator_list else partial(plain, instance)
        raise AttributeError(name)

    def _fields(self) -> Options:
        """The options that the class itself adds or changes."""
        options = {}
        for name, statement, about in _annotated(self.node):
            hint = self.file.evaluate(statement.annotation)
            if get_origin(hint) is ClassVar:
                continue
            default = self.file.evaluate(statement.value) if statement.value else MISSING
            field: Any = default if isinstance(default, dataclasses.Field) else dataclasses.field(default=default)
            if field.init:
                options[name] = Option(name, hint, _default(field), about)
        return options


class SourceObject:
    """Values in the place of an object whose class is not imported."""

    def __init__(self, kind: SourceClass, values: Mapping[str, object]) -> None:
        vars(self).update(values, _kind=kind)

    def __getattr__(self, name: str) -> Any:
        return vars(self)["_kind"].attribute(name, self)
