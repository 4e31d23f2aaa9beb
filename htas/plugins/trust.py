"""Code of the user's, which a configuration names as 'package.module:Thing', and whether it may be imported.

It may, unless the command has --no-user-code or HTAS_NO_USER_CODE is set. What a configuration names without that
permission must be of htas, of a library of networks, or of an installed package that says that it is for htas.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from importlib.util import find_spec

from htas.console.blame import installed
from htas.errors import UserError
from htas.text import quoted

FLAG, VARIABLE = "--no-user-code", "HTAS_NO_USER_CODE"
OFF = ("", "0", "false", "no")
"""Values of the variable that permit code of the user's; processes that a command starts have the variable, too."""
LIBRARIES = ("htas", "torchvision", "timm")
"""Packages whose functions and classes a configuration may name in any case, where they are installed."""
GROUP = "htas"
"""The group of entry points by which an installed package says that its modules are for htas."""


def user_code_allowed() -> bool:
    """Whether modules that a configuration names may be imported, whatever they are."""
    return os.environ.get(VARIABLE, "").strip().lower() in OFF


@contextmanager
def without_user_code() -> Iterator[None]:
    """Import no code of the user's, in this process and in those that it starts."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def is_trusted(name: str) -> bool:
    """Whether 'package.module:Thing' is of a package that may be named in any case; nothing is imported."""
    top = name.partition(":")[0].partition(".")[0]
    if top not in LIBRARIES and all(top != each.module.partition(".")[0] for each in entry_points(group=GROUP)):
        return False
    try:
        spec = getattr(sys.modules.get(top), "__spec__", None) or find_spec(top)
    except (ImportError, ValueError):
        return False
    return spec is not None and spec.origin is not None and installed(spec.origin)


def need_trust(name: str, option: str = "") -> None:
    """Raise UserError, which names the option, for what may not be imported."""
    if not user_code_allowed() and not is_trusted(name):
        subject = f"{option} names {quoted(name)}" if option else f"{quoted(name)} is named"
        raise UserError(f"{subject}, code that is not of htas, {_REFUSED}")


def need_trusted_command(command: str) -> None:
    """Raise UserError for the command of a device, where nothing may run that a configuration names."""
    if not user_code_allowed():
        raise UserError(f"target.host names a command, {quoted(command)}, {_REFUSED}")


def need_trusted_cluster(option: str, address: str) -> None:
    """Raise UserError for a Ray cluster that a configuration names, where nothing may run that it names: what its nodes
    answer are pickles."""
    if not user_code_allowed():
        raise UserError(f"{option} names a Ray cluster, {quoted(address)}, {_REFUSED}")


_REFUSED = f"which {FLAG} ({VARIABLE}) refuses to run; leave that out if you trust it"
