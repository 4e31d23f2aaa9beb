"""A folder is a plug-in point, a file is a plug-in, its fields are its options."""

import importlib
import pkgutil
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from htas.console.blame import blame
from htas.errors import UserError
from htas.plugins.trust import need_trust
from htas.text import no_such

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
        top = name.partition(":")[0].partition(".")[0]
        if not top or (top not in sys.modules and find_spec(top) is None):
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


def _imported(contract: type[T], name: str) -> type[T]:
    """The user's class 'package.module:Class'; raises UserError."""
    need_trust(name)
    path, _, attribute = name.partition(":")
    try:
        kind = getattr(importlib.import_module(path), attribute)
    except (ImportError, AttributeError) as error:
        raise _cannot_import(name, str(error)) from error
    except Exception as error:  # the user's module may raise anything
        raise UserError(f"cannot import {name!r} ({blame(error)}); mend that file") from error
    if not (isinstance(kind, type) and issubclass(kind, contract)):
        raise UserError(f"{name!r} is not a {contract.__name__}; derive it from {contract.__module__}")
    return kind


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
