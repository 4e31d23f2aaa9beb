"""A TOML file and dotted overrides become the frozen dataclasses that the stages work with.

Nothing is listed twice: the options of a table are the fields of its class, and their help is the string beneath each.
"""

import dataclasses
import json
import math
import tomllib
import types
from argparse import SUPPRESS, ArgumentError
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from htas import datasets, models, plugins, strategies
from htas.cost.calibrate import Calibrate
from htas.cost.limits import Constraints
from htas.datasets import Dataset
from htas.errors import UserError
from htas.models import ModelFamily
from htas.spaces.design import Design
from htas.spaces.survey import Survey
from htas.strategies import Strategy
from htas.text import listing, near, no_such
from htas.timing.target import Target
from htas.training.distill import Distill
from htas.training.train import RECIPES, Recipe


@dataclass(frozen=True)
class SplitOptions:
    """Which images of the data set learn what."""

    validation: float = 0.5
    """Share of the training images that a search's architecture learns from and every choice is made by; the weights
    learn from the others. Above 0 and below 1."""
    limit: int = 0
    """Images of training, and of test, that are used at most; 0 means all."""

    def __post_init__(self) -> None:
        if not 0 < self.validation < 1:
            raise UserError(f"split.validation must lie above 0 and below 1, got {self.validation}")
        if self.limit < 0:
            raise UserError(f"split.limit must be 0 (all images) or more, got {self.limit}")


@dataclass(frozen=True)
class Config:
    """Everything a run depends on; equal configurations make equal runs."""

    seed: int
    family: ModelFamily
    data: Dataset
    parts: SplitOptions
    target: Target
    survey: Survey
    design: Design
    calibrate: Calibrate
    constraints: Constraints
    strategy: Strategy
    train: Recipe
    distill: Distill
    names: Mapping[str, str]
    """What was named: the plug-ins of `family`, `data` and `strategy`, and the recipe of `train`."""

    @staticmethod
    def default() -> "Config":
        """Every option at its default."""
        return load(None)

    def changed(self, values: Mapping[str, Any]) -> "Config":
        """This configuration with other values: Python values by `table.option`, and `seed`.

        Another class or recipe (`strategy.name`, `train.recipe`) keeps the values of this one that it has as options,
        and that differ from this one's defaults. Raises UserError in one sentence, as `load` does.
        """
        content: dict[str, Values] = {}
        for key, value in values.items():
            table, name = _split_key(key)
            content.setdefault(table, {})[name] = value
        seed = _seed(content.pop("")["seed"]) if "" in content else self.seed
        tables = {table: self._values(table) for table in content}
        named = {table: NAMED[table].key for table in content if table in NAMED}
        _leave_out_others(tables, {t: str(content[t][key]) for t, key in named.items() if key in content[t]})
        tables = {table: {**tables[table], **changes} for table, changes in content.items()}
        names = _names({**{table: {NAMED[table].key: name} for table, name in self.names.items()}, **tables})
        built = {FIELDS.get(table, table): _build(table, names, new) for table, new in tables.items()}
        return dataclasses.replace(self, seed=seed, names=names, **built)

    def toml(self) -> str:
        """Every option with its value, as a file that `load` reads back to an equal configuration."""
        return "\n".join([f"seed = {self.seed}\n", *(self._table(table) for table in TABLES)])

    def options(self) -> dict[str, Any]:
        """Every option as `table.option` with its value, in which tuples are lists; and the seed."""
        found = {"seed": self.seed}
        for table in TABLES:
            found |= {f"{table}.{name}": _plain(value) for name, value in self._values(table).items()}
        return found

    def key_options(self) -> dict[str, Any]:
        """As `options`, without those that no result depends on: fields marked `metadata={"key": False}`."""
        unmarked = {
            f"{table}.{field.name}"
            for table in TABLES
            for field in dataclasses.fields(getattr(self, FIELDS.get(table, table)))
            if not field.metadata.get("key", True)
        }
        return {name: value for name, value in self.options().items() if name not in unmarked}

    def usual(self) -> dict[str, Any]:
        """Of the classes and recipe that are named, the options that have a default, with it."""
        found: dict[str, Any] = dict(SCALARS)
        for table in TABLES:
            defaults = _defaults(table, self.names.get(table, ""))
            found |= {f"{table}.{name}": _plain(value) for name, value in defaults.items()}
        return found

    def _table(self, table: str) -> str:
        # TOML has no null: a field that is None is one that was left out.
        lines = [f"{name} = {_toml(value)}" for name, value in self._values(table).items() if value is not None]
        return "\n".join([f"[{table}]", *lines]) + "\n"

    def _values(self, table: str) -> dict[str, Any]:
        chosen = {NAMED[table].key: self.names[table]} if table in NAMED else {}
        content = getattr(self, FIELDS.get(table, table))
        fields = {field.name: getattr(content, field.name) for field in dataclasses.fields(content) if field.init}
        return {**chosen, **fields}


@dataclass(frozen=True)
class NamedTable:
    """A table whose class or values are found by a name."""

    key: str
    default: str
    package: types.ModuleType | None = None
    contract: type[Any] = object

    def choices(self) -> list[str]:
        """The names there are."""
        return plugins.names(self.package) if self.package else list(RECIPES)

    def find(self, name: str) -> type[Any]:
        """The class whose fields are the options of the table; raises ValueError that names the right names."""
        if self.package:
            return plugins.find(self.package, self.contract, name)
        if name not in RECIPES:
            raise UserError(no_such("recipe", name, RECIPES))
        return Recipe


TABLES = (
    "family",
    "data",
    "split",
    "target",
    "survey",
    "design",
    "calibrate",
    "constraints",
    "strategy",
    "train",
    "distill",
)
FIELDS = {"split": "parts"}
NAMED = {
    "family": NamedTable("name", "cifar_resnet", models, ModelFamily),
    "data": NamedTable("name", "digits", datasets, Dataset),
    "strategy": NamedTable("name", "differentiable", strategies, Strategy),
    "train": NamedTable("recipe", "paper"),
}
PLAIN: Mapping[str, type[Any]] = {
    "split": SplitOptions,
    "target": Target,
    "survey": Survey,
    "design": Design,
    "calibrate": Calibrate,
    "constraints": Constraints,
    "distill": Distill,
}
SCALARS = {"seed": 0}
MOVED = {
    "strategy.cost": "it belongs to strategies that weigh archs by a cost (differentiable, tas; for morphnet it is "
    "strategy.prices); leave it out, as the constraints say what the network may cost"
}
"""Options that left a table, or some of its classes, with what to do instead."""
RENAMED = dict.fromkeys(("target.image", "target.more"), "shapes = [[3, 32, 32]], with a shape for each input")
"""Options of former versions, and what to write instead of each in its table."""


@dataclass(frozen=True)
class CommandLineValue:
    """A value from the command line, whose type its field decides."""

    text: str


Values = dict[str, Any]


def load(path: Path | None, overrides: Sequence[str] = ()) -> Config:
    """The configuration of a TOML file (None: all defaults) with `--table.field=value` overrides on top.

    Raises UserError in one sentence that names the option, what was given and what is allowed.
    """
    tables, seed = _given(path, overrides)
    names = _names(tables)
    built = {table: _build(table, names, values) for table, values in tables.items()}
    return Config(seed=seed, names=names, **{FIELDS.get(table, table): made for table, made in built.items()})


def fitting(overrides: Sequence[str], others: Sequence[str]) -> list[str]:
    """Of overrides those that are left where others come after them that name classes: what these have as options."""
    named = _replaced(others)
    kept = []
    for each in overrides:
        table, _, name = _override(each)[0].partition(".")
        if table not in named or name in _fields(NAMED[table].find(named[table])):
            kept.append(each)
    return kept


def explain(path: Path | None = None, overrides: Sequence[str] = ()) -> str:
    """Every option by table, with its meaning, type and default; of the plug-ins that file and overrides name."""
    from jsonargparse import ArgumentParser, set_parsing_settings

    names = _names(_given(path, overrides)[0])
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(add_help=False, usage=SUPPRESS)
    for table in TABLES:
        parser.add_class_arguments(_class(table, names), table)
    recipe = dataclasses.asdict(RECIPES[names["train"]])
    parser.set_defaults({f"train.{name}": value for name, value in recipe.items()})
    parser.add_argument("--seed", type=int, default=SCALARS["seed"], help="Start of every random draw; 0 or more.")
    for table, group in (parser.groups or {}).items():
        group.title = f"[{table}] {group.title}"
        if table in NAMED:
            named = NAMED[table]
            group.add_argument(f"--{table}.{named.key}", default=names[table], help=_choices(named))
            group._group_actions.insert(0, group._group_actions.pop())  # what decides the others comes first
    for action in parser._actions:
        if action.dest in TABLES:
            action.help = SUPPRESS  # the library's own way to give a whole table from another file
    return parser.format_help()


def _given(path: Path | None, overrides: Sequence[str]) -> tuple[dict[str, Values], int]:
    """What was given, by table and field, and the seed; values of overrides are Text."""
    content = _read(path) if path else {}
    known = [*SCALARS, *TABLES]
    for name, value in content.items():
        if name not in known:
            raise UserError(f"{path} has {_unknown('no table or option', name, known)}")
        if name in TABLES and not isinstance(value, dict):
            raise UserError(f"{path}: {name} must be a table, [{name}] with its options below, got {value!r}")
    tables: dict[str, Values] = {table: dict(content.get(table, {})) for table in TABLES}
    seed = content.get("seed", SCALARS["seed"])
    _leave_out_others(tables, _replaced(overrides))
    for key, text in map(_override, overrides):
        table, name = _split_key(key)
        if table:
            tables[table][name] = CommandLineValue(text)
        else:
            seed = CommandLineValue(text)
    return tables, _seed(seed)


def _split_key(key: str) -> tuple[str, str]:
    """The table and the option of `table.option`, no table for `seed`; raises UserError for others."""
    known = [*SCALARS, *TABLES]
    table, dot, name = key.partition(".")
    if table not in known:
        raise UserError(f"the configuration has {_unknown('no table or option', table, known)}")
    if bool(dot) != (table in TABLES):
        right = "--seed=NUMBER" if table == "seed" else f"--{table}.OPTION=VALUE"
        raise UserError(f"--{key} is no option; write {right}")
    return (table, name) if dot else ("", table)


def _leave_out_others(tables: dict[str, Values], replaced: Mapping[str, str]) -> None:
    """Of tables that get another class or recipe, by name, drop what they say for their own alone.

    A file that spells every option, as that of a run does, says the defaults of its own class, too.
    """
    for table, text in replaced.items():
        named, given = NAMED[table], tables[table]
        old = str(given.get(named.key, named.default))
        if text == old:
            continue
        usual = _defaults(table, old)
        spelled = all(option in given for option, value in usual.items() if value is not None)
        own = {option for option, value in usual.items() if spelled and given.get(option) == value}
        fields = _fields(named.find(text))
        tables[table] = {option: value for option, value in given.items() if option in fields and option not in own}


def _replaced(overrides: Sequence[str]) -> dict[str, str]:
    """The classes and recipes that overrides name, by table."""
    pairs = [(key.partition("."), text) for key, text in map(_override, overrides)]
    return {table: text for (table, _, name), text in pairs if table in NAMED and name == NAMED[table].key}


def _defaults(table: str, name: str) -> dict[str, Any]:
    """What the options of a class or recipe are when nothing is said."""
    if table == "train":
        return dataclasses.asdict(RECIPES[name]) if name in RECIPES else {}
    missing = dataclasses.MISSING
    found = {}
    for field in dataclasses.fields(NAMED[table].find(name) if table in NAMED else PLAIN[table]):
        if field.default is not missing:
            found[field.name] = field.default
        elif field.default_factory is not missing:
            found[field.name] = field.default_factory()
    return found


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    return json.loads(json.dumps(value, default=str))


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; name a TOML file, or a folder that a run made") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML: {error}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; name a TOML file") from error


def _override(given: str) -> tuple[str, str]:
    key, equals, text = given.removeprefix("--").partition("=")
    if not equals:
        raise UserError(f"--{key} has no value; write --{key}=VALUE")
    return key, text


def _seed(given: Any) -> int:
    try:
        seed = int(given.text) if isinstance(given, CommandLineValue) else given
    except ValueError:
        seed = given.text
    if type(seed) is not int or seed < 0:
        raise UserError(f"seed must be a whole number, 0 or more, got {seed!r}")
    return seed


def _names(tables: Mapping[str, Values]) -> dict[str, str]:
    """The name each named table gives; checked when its class is found."""
    names = {}
    for table, named in NAMED.items():
        name = tables[table].get(named.key, named.default)
        name = name.text if isinstance(name, CommandLineValue) else name
        if not isinstance(name, str):
            raise UserError(f"{table}.{named.key} must be text, got {name!r}")
        names[table] = name
    return names


def _class(table: str, names: Mapping[str, str]) -> type[Any]:
    return NAMED[table].find(names[table]) if table in NAMED else PLAIN[table]


def _build(table: str, names: Mapping[str, str], given: Values) -> Any:
    """The object of one table."""
    kind = _class(table, names)
    fields = _fields(kind)
    key = [NAMED[table].key] if table in NAMED else []
    values = dataclasses.asdict(RECIPES[names[table]]) if table == "train" else {}
    for name, value in given.items():
        if name not in fields and name not in key:
            if new := RENAMED.get(f"{table}.{name}"):
                raise UserError(f"{table}.{name} has another name: write {table}.{new}")
            if where := MOVED.get(f"{table}.{name}"):
                raise UserError(f"{table} has no option {name!r}: {where}")
            raise UserError(f"{table} has {_unknown('no option', name, [*key, *fields])}")
        if name in fields:
            values[name] = _value(f"{table}.{name}", fields[name], value)
    for name in _required(kind):
        if name not in values:
            raise UserError(f"{table}.{name} must be given: {allowed(fields[name])}")
    try:
        return kind(**values)
    except ValueError as error:
        raise UserError(_placed(table, fields, str(error))) from error


def _fields(kind: type[Any]) -> dict[str, Any]:
    """The options of a class, with their types."""
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind) if field.init}


def _required(kind: type[Any]) -> list[str]:
    """The options without a default."""
    missing = dataclasses.MISSING
    fields = (field for field in dataclasses.fields(kind) if field.init)
    return [field.name for field in fields if field.default is missing and field.default_factory is missing]


def _value(key: str, hint: Any, given: Any) -> Any:
    """A given value as its field has it; raises ValueError."""
    text = isinstance(given, CommandLineValue)
    for parsed in _readings(key, hint, given):
        # The library reads "8" as the number 8; in a file, text is text.
        if isinstance(parsed, float) and not math.isfinite(parsed):
            break
        if text or not isinstance(given, str) or not isinstance(parsed, bool | int | float | list | tuple | dict):
            return parsed
    raise UserError(f"{key} must be {allowed(hint)}, got {given.text if text else _toml(given)}")


def _readings(key: str, hint: Any, given: Any) -> Iterator[Any]:
    """The values of that type that may be meant; on the command line a list needs no brackets."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False, add_help=False)
    parser.add_argument(f"--{key}", type=hint)
    attempts = [given.text, f"[{given.text}]"] if isinstance(given, CommandLineValue) else [given]
    for attempt in attempts:
        try:
            if isinstance(given, CommandLineValue):
                yield parser.parse_args([f"--{key}={attempt}"])[key]
            else:
                yield parser.parse_object({key: attempt})[key]
        except ArgumentError:
            continue


def allowed(hint: Any) -> str:
    """A type in words: `a whole number`, `one of base, expanded`, `a list of whole numbers`."""
    plain = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}
    if hint in plain:
        return plain[hint]
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return f"one of {listing(map(str, arguments))}" if len(arguments) > 1 else str(arguments[0])
    if origin in (Union, types.UnionType):
        return " or ".join(allowed(each) for each in arguments if each is not types.NoneType)
    if origin in (list, tuple) and arguments:
        items = {int: "whole numbers", float: "numbers", str: "names"}.get(arguments[0])
        return f"a list of {items}" if items else "a list"
    if origin is dict:
        return f"a table, each value {allowed(arguments[1])}"
    return str(getattr(hint, "__name__", hint))


def _placed(table: str, fields: Mapping[str, Any], message: str) -> str:
    """A class's own message with the table it is about, where it does not say."""
    if f"{table}." in message:
        return message
    starts_with_field = message.split(maxsplit=1)[:1] and message.split(maxsplit=1)[0] in fields
    return f"{table}.{message}" if starts_with_field else f"{table}: {message}"


def _unknown(what: str, given: str, known: Sequence[str]) -> str:
    """`no option 'group'; did you mean 'groups'? it has: expand, groups`."""
    return f"{what} {given!r}; {near(given, known)}it has: {listing(known)}"


def _choices(named: NamedTable) -> str:
    own = ", or your own class as 'package.module:Class'" if named.package else ""
    what = "Which one" if named.package else "The named recipe that the other options of this table change"
    return f"{what}: {listing(named.choices())}{own}."


def as_text(value: Any) -> str:
    """A value of a TOML file as the command line has it: JSON, which is YAML too."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _toml(value: Any) -> str:
    """A value as TOML writes it."""
    match value:
        case bool():
            return str(value).lower()
        case int() | float():
            return repr(value)
        case list() | tuple():
            return f"[{', '.join(map(_toml, value))}]"
        case dict():
            pairs = ", ".join(f"{_toml(str(name))} = {_toml(each)}" for name, each in value.items())
            return f"{{{pairs}}}"
        case _:
            # JSON's escapes are TOML's, but for this one character.
            return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
