"""The arms of a comparison as TOML files have them, checked without PyTorch."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from htas.errors import UserError, of_option
from htas.files import read_toml, slug
from htas.plugins.values import Values, as_text
from htas.run.config import Settings, fitting, read
from htas.run.names import read_name
from htas.text import listing, no_such

BASE = "base"
"""The network of the configuration's family, unchanged."""
SOURCES = ("network", "prune", "like")
"""The keys that say where an arm's network comes from; an arm without one searches."""
CRITERIA: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "l1": ("MagnitudeImportance", {"p": 1}),  # the L1 norms of filters
    "bn-scale": ("BNScaleImportance", {}),  # the scales of norms: network slimming, without its sparse training
    "fpgm": ("FPGMImportance", {}),  # the distance from the filters' geometric median
    "group-norm": ("GroupMagnitudeImportance", {"p": 2}),  # the L2 norms of all that depends on a channel
    "thinet": ("", {}),  # how little the next layer's outputs change: thinet.py
}
"""By name, Torch-Pruning's class and its arguments."""


@dataclass(frozen=True)
class Pruning:
    """How Torch-Pruning narrows the base network: `prune = "l1"`, or a table of these."""

    criterion: str = "l1"
    """A key of CRITERIA."""
    scope: Literal["global", "local"] | None = None
    """Whether the least important channels of all layers go, or the same share of every layer, which is the default of
    thinet, and all that it can do."""
    round_to: int = 1
    """Widths that are left are multiples of this."""
    weights: Literal["new", "kept"] = "new"
    """Whether the pruned network is trained from new weights, or from those that are left of the base network."""

    def __post_init__(self) -> None:
        if self.scope is None and self.criterion in CRITERIA:
            object.__setattr__(self, "scope", "local" if self.criterion == "thinet" else "global")
        for key, names in {"criterion": CRITERIA, "scope": ("global", "local"), "weights": ("new", "kept")}.items():
            if getattr(self, key) not in names:
                raise UserError(f"{key} of prune must be one of {listing(names)}, got {getattr(self, key)!r}")
        if self.criterion == "thinet" and self.scope == "global":
            raise UserError(
                "scope of prune cannot be global with thinet, which compares the channels of one layer only; leave it "
                "out, or take local"
            )
        if type(self.round_to) is not int or self.round_to < 1:
            raise UserError(f"round_to of prune must be a whole number, 1 or more, got {self.round_to!r}")

    def __str__(self) -> str:
        """`l1`, `l1, local, widths of multiples of 8, weights kept`."""
        rest = (
            "local" if self.scope == "local" else "",
            f"widths of multiples of {self.round_to}" if self.round_to > 1 else "",
            "weights kept" if self.weights == "kept" else "",
        )
        return ", ".join(filter(None, (self.criterion, *rest)))


@dataclass(frozen=True)
class ArmOptions:
    """An arm by its name."""

    name: str
    overrides: tuple[str, ...] = ()
    """Options that differ from the configuration's, as `--table.option=value`."""


@dataclass(frozen=True)
class ArmTable(ArmOptions):
    """A table of a file of arms."""

    source: str = ""
    """A key of SOURCES; empty for a search."""
    value: str | Pruning = ""
    """The network's name, how it is pruned, or the name of the other arm."""


def read_arms(*paths: Path) -> list[ArmTable]:
    """The arms of TOML files, a table each; several files may hold the same one.

    Raises UserError where a file is none, an arm says nothing that is understood, or is another one in another file.
    """
    content: dict[str, tuple[Path, Values]] = {}
    for path in paths:
        for name, options in read_toml(path, "a TOML file with a table for every arm").items():
            if not isinstance(options, dict):
                raise UserError(f"{path}: {name} must be a table, [{name}] with the options of an arm, got {options!r}")
            if content.setdefault(name, (path, options))[1] != options:
                raise UserError(f"{path}: the arm {name} has other options in {content[name][0]}; give it another name")
    arms: list[ArmTable] = []
    for name, (path, options) in content.items():
        rest = dict(options)
        source = {key: rest.pop(key, "") for key in SOURCES}
        network, prune, like = source.values()
        if not isinstance(network, str):
            raise UserError(f"{path}: network of the arm {name} must be the name of one, got {network!r}")
        if network not in ("", BASE):
            with of_option(f"{path}: network of the arm {name}"):
                read_name(network)
        if prune:
            source["prune"] = prune = _pruning(path, name, prune, alone=not network)
        first = {arm.name: arm for arm in arms if not arm.source}
        if like and (str(like) not in first or network or prune):
            raise UserError(
                f"{path}: like of the arm {name} must be an arm above it that searches, of which there are "
                f"{listing(first) or 'none'}, without a network or prune next to it, got {like!r}"
            )
        overrides = (*(first[like].overrides if like else ()), *_overrides(path, name, rest))
        sourced = [ArmTable(name, overrides, key, value) for key, value in source.items() if value]
        arms += sourced or [ArmTable(name, overrides)]
    slugs = [slug(arm.name) for arm in arms]
    if len(arms) < 2 or len(set(slugs)) < len(slugs):
        raise UserError(
            f"{listing(map(str, paths))} must hold two arms or more, each a table of another name, got "
            f"{listing(slugs) or 'none'}"
        )
    return arms


def _pruning(path: Path, arm: str, value: Any, alone: bool) -> Pruning:
    """How an arm is pruned; raises UserError."""
    names = {field.name for field in fields(Pruning)}
    known = set(value) <= names if isinstance(value, dict) else isinstance(value, str) and value in CRITERIA
    if not known or not alone:
        raise UserError(
            f"{path}: prune of the arm {arm} must be one of {listing(CRITERIA)}, or a table of "
            f"{listing(sorted(names))}, without a network next to it, got {value!r}"
        )
    try:
        return Pruning(**value) if isinstance(value, dict) else Pruning(value)
    except UserError as error:
        raise UserError(f"{path}: arm {arm}: {error}") from error


def _overrides(path: Path, arm: str, options: Values) -> list[str]:
    """`--table.option=value` of each option."""
    overrides = []
    for table, values in options.items():
        if not isinstance(values, dict):
            raise UserError(
                f"{path}: the arm {arm} has {table} = {values!r}, which is no table of options; write {table}.OPTION"
            )
        overrides += [f"--{table}.{name}={as_text(value)}" for name, value in values.items()]
    return overrides


def settings_of(source: Path | None, overrides: Sequence[str], arm: ArmOptions, seed: int = 0) -> Settings:
    """The options of an arm; raises UserError."""
    return read(source, [*fitting(overrides, arm.overrides), *arm.overrides, f"--seed={seed}"])


@contextmanager
def about(arm: ArmOptions) -> Iterator[None]:
    """Put the arm's name in front of a UserError."""
    try:
        yield
    except UserError as error:
        raise UserError(f"arm {arm.name}: {error}") from error


def check(
    source: Path | None, overrides: Sequence[str], arms: Sequence[ArmOptions], seeds: int, against: str = ""
) -> None:
    """Raise UserError for what a comparison cannot do: no seeds, no such arm, wrong options, different targets."""
    if seeds < 1:
        raise UserError(f"--seeds must be 1 or more, got {seeds}")
    if any(option.removeprefix("--").startswith("seed=") for option in overrides):
        raise UserError(
            f"htas compare has seeds from 0 on: leave --seed out, and give their number with --seeds={seeds}"
        )
    names = [arm.name for arm in arms]
    if against and against not in names:
        raise UserError(no_such("arm", against, names))
    targets = []
    for arm in arms:
        with about(arm):
            targets.append(settings_of(source, overrides, arm).target)
    if other := next((name for name, target in zip(names, targets, strict=True) if target != targets[0]), None):
        raise UserError(
            f"the arms {names[0]} and {other} have different targets, and all networks are measured in one run: "
            "give target options on the command line or in the configuration, and compare each target by itself"
        )
