"""A folder is a plug-in point, a file is a plug-in, its fields are its options."""

import importlib
import pkgutil
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from htas.console.blame import blame
from htas.errors import UserError
from htas.plugins.contract import keep, need
from htas.plugins.options import options_of
from htas.plugins.trust import need_trust
from htas.text import listing, no_such

T = TypeVar("T")


def names(package: ModuleType | str) -> list[str]:
    """The plug-ins of a package (its name will do): its files, sorted, without those with a leading underscore."""
    name = package if isinstance(package, str) else package.__name__
    folder = Path(__file__).parents[1].joinpath(*name.split(".")[1:])
    return sorted(info.name for info in pkgutil.iter_modules([str(folder)]) if not info.name.startswith("_"))


def check_name(package: str, name: str) -> None:
    """Raise UserError, which names the plug-ins of the package, where `name` is none of them.

    Of a class of the user's own, 'package.module:Class', only the package is looked for; nothing is imported.
    """
    if ":" in name:
        need_trust(name)
        path, _, attribute = name.partition(":")
        top = path.partition(".")[0]
        if not is_path(path) or not attribute:
            raise _cannot_import(name, "that names no module and class")
        if top not in sys.modules and find_spec(top) is None:
            raise _cannot_import(name, f"No module named {top!r}")
    elif name not in names(package):
        folder = package.rpartition(".")[2]
        what = {"strategies": "strategy", "models": "model family", "datasets": "data set"}.get(folder, folder[:-1])
        raise UserError(f"{no_such(what, name, names(package))}, or name your own class as 'package.module:Class'")


def find(package: ModuleType, contract: type[T], name: str) -> type[T]:
    """The class called `name`: the one implementation in that file, or your own as 'package.module:Class'.

    Raises UserError, which lists the names.
    """
    if ":" in name:
        return _imported(contract, name)
    check_name(package.__name__, name)
    module = importlib.import_module(f"{package.__name__}.{name}")
    classes = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, contract) and value.__module__ == module.__name__
    ]
    assert len(classes) == 1, f"{module.__name__} must hold exactly one {contract.__name__}, it has {len(classes)}"
    return classes[0]


def is_path(path: str) -> bool:
    """Whether a text may be the path of a module, `package.module`: never that of a file or of a package around it."""
    return all(part and part.isprintable() and not set(part) & set("/\\: ") for part in path.split("."))


def _imported(contract: type[T], name: str) -> type[T]:
    """The user's class 'package.module:Class', which is a dataclass; raises UserError."""
    path, _, attribute = name.partition(":")
    check_name(contract.__module__, name)
    kind = getattr(_module(path, name), attribute, None)
    if kind is None:
        raise _cannot_import(name, f"module {path!r} has no attribute {attribute!r}")
    if not (isinstance(kind, type) and issubclass(kind, contract)):
        raise UserError(f"{name!r} is not a {contract.__name__}; derive it from {contract.__module__}")
    if missing := sorted(getattr(kind, "__abstractmethods__", ())):
        raise UserError(f"{name!r} lacks what every {contract.__name__} has: {listing(missing)}; add it there")
    parameters = getattr(kind, "__dataclass_params__", None)
    if not (parameters and parameters.frozen):
        raise UserError(f"{name!r} is no frozen dataclass, whose fields are its options; write @dataclass(frozen=True)")
    try:
        options_of(kind)
    except Exception as error:  # a user's annotations and defaults may be anything
        raise UserError(f"the fields of {name!r} cannot be read ({blame(error)}); mend them") from error
    keep(contract, kind, name)
    return kind


def _module(path: str, name: str) -> ModuleType:
    """The user's module; raises UserError, with the file and line where it fails."""
    try:
        return importlib.import_module(path)
    except (Exception, SystemExit) as error:  # the user's module may raise anything
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{path}.".startswith(f"{missing}."):
            raise _cannot_import(name, str(error)) from error
        raise UserError(f"cannot import {name!r} ({blame(error)}); mend that file") from error


def create(contract: type[T], kind: type[Any], name: str, values: Mapping[str, object]) -> T:
    """An object of a class with these options; raises UserError where a class of the user's takes no such options, or
    gives something else."""
    try:
        plugin: T = kind(**values)
    except TypeError as error:
        if ":" not in name or (error.__traceback__ and error.__traceback__.tb_next):  # raised within, not by the call
            raise
        sentence = f"{name!r} cannot be made of its fields ({blame(error)}); leave __init__ to dataclass"
        raise UserError(sentence) from error
    need(plugin, contract, f"what {name!r} makes of its fields")
    return plugin


def _cannot_import(name: str, reason: str) -> UserError:
    return UserError(f"cannot import {name!r} ({reason}); write it as 'package.module:Class'")


def needed(module: str, extra: str, what: str) -> Any:
    """An optional package, imported; raises UserError, which says what needs it and which extra installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"{what} needs the package {module}, which cannot be imported ({error}); install it with: "
            f"pip install 'htas[{extra}]'"
        ) from error
