"""The arms of a comparison, read from TOML files."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from htas import files
from htas.errors import UserError
from htas.experiments import pruning
from htas.report.result import Result
from htas.run.config import as_text
from htas.text import listing


@dataclass(frozen=True)
class Arm:
    """What is compared."""

    name: str
    overrides: tuple[str, ...] = ()
    """Options that differ from the configuration's."""
    network: str = ""
    """A network by its name, trained as it is, instead of a search: base, cifar_resnet:14, tas:C010-ResNet20."""
    prune: str = ""
    """A criterion of Torch-Pruning, instead of a search: the base network pruned to the limit of latency, measured."""
    like: str = ""
    """Another arm, instead of a search: what it found, trained with this arm's options."""


@dataclass(frozen=True)
class Entry:
    """An arm with one seed, when it is finished."""

    result: Result
    seconds: float | None
    """Of the search, its finalists included; None where nothing was searched."""
    doubt: str = ""
    """Why its search has not converged; empty where it has, or where there was none."""
    images: str = ""
    """How the images came that it was trained on, where its data set has copies that differ; empty where not known."""


def read_arms(*paths: Path) -> list[Arm]:
    """The arms of TOML files, a table each; several files may hold the same one.

    Raises UserError where a file is none, an arm says nothing that is understood, or is another one in another file.
    """
    content: dict[str, tuple[Path, dict[str, Any]]] = {}
    for path in paths:
        for name, options in _tables(path).items():
            if not isinstance(options, dict):
                raise UserError(f"{path}: {name} must be a table, [{name}] with the options of an arm, got {options!r}")
            if content.setdefault(name, (path, options))[1] != options:
                raise UserError(f"{path}: the arm {name} has other options in {content[name][0]}; give it another name")
    arms: list[Arm] = []
    for name, (path, options) in content.items():
        rest = dict(options)
        network, prune, like = (rest.pop(key, "") for key in ("network", "prune", "like"))
        if not isinstance(network, str):
            raise UserError(f"{path}: network of the arm {name} must be the name of one, got {network!r}")
        if prune and (str(prune) not in pruning.CRITERIA or network):
            raise UserError(
                f"{path}: prune of the arm {name} must be one of {listing(pruning.CRITERIA)}, without a network beside "
                f"it, got {prune!r}"
            )
        first = {arm.name: arm for arm in arms if not (arm.network or arm.prune or arm.like)}
        if like and (str(like) not in first or network or prune):
            raise UserError(
                f"{path}: like of the arm {name} must be an arm above it that searches, of which there are "
                f"{listing(first) or 'none'}, without a network or prune beside it, got {like!r}"
            )
        its = first[like].overrides if like else ()
        arms.append(Arm(name, (*its, *_overrides(path, name, rest)), network, prune, like))
    slugs = [files.slug(arm.name) for arm in arms]
    if len(arms) < 2 or len(set(slugs)) < len(slugs):
        raise UserError(
            f"{listing(map(str, paths))} must hold two arms or more, each a table of another name, got "
            f"{listing(slugs) or 'none'}"
        )
    return arms


def _tables(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; name a TOML file with a table for every arm") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path} cannot be read as TOML: {error}") from error


def _overrides(path: Path, arm: str, options: Mapping[str, Any]) -> list[str]:
    """`--table.option=value` of each option."""
    found = []
    for table, values in options.items():
        if not isinstance(values, dict):
            raise UserError(
                f"{path}: the arm {arm} has {table} = {values!r}, which is no table of options; write {table}.OPTION"
            )
        found += [f"--{table}.{name}={as_text(value)}" for name, value in values.items()]
    return found
