"""A TOML file and dotted overrides become the frozen dataclasses that the stages work with.

Nothing is listed twice: the options of a table are the fields of its class, and their help is the string beneath each.
Names and types are refused before the classes, and PyTorch with them, are imported.
"""

import dataclasses
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli_w

from htas import plugins
from htas.errors import UserError
from htas.plugins.options import Option, Options, options_of, source_file
from htas.plugins.values import REFUSED, Values, allowed, check, parse
from htas.text import listing, near, no_such
from htas.training.recipe import RECIPES, Recipe

if TYPE_CHECKING:
    from htas.cost.calibrate import Calibrate
    from htas.cost.limits import Constraints
    from htas.datasets import Dataset
    from htas.models import ModelFamily
    from htas.spaces.design import Design
    from htas.spaces.survey import Survey
    from htas.strategies import Strategy
    from htas.timing.target import Target
    from htas.training.distill import Distill


@dataclass(frozen=True)
class SplitOptions:
    """The split of the training images."""

    validation: float = 0.5
    """Share of the training images that architectures learn from and choices are judged on; weights learn from the
    others. Above 0 and below 1."""
    limit: int = 0
    """Most training images, and most test images; 0 means all."""

    def __post_init__(self) -> None:
        if not 0 < self.validation < 1:
            raise UserError(f"split.validation must lie above 0 and below 1, got {self.validation}")
        if self.limit < 0:
            raise UserError(f"split.limit must be 0 (all images) or more, got {self.limit}")


@dataclass(frozen=True)
class Config:
    """Everything a run depends on; equal configurations make equal runs."""

    seed: int
    family: "ModelFamily"
    data: "Dataset"
    parts: SplitOptions
    target: "Target"
    survey: "Survey"
    design: "Design"
    calibrate: "Calibrate"
    constraints: "Constraints"
    strategy: "Strategy"
    train: Recipe
    distill: "Distill"
    names: Mapping[str, str]
    """The plug-ins of `family`, `data` and `strategy` and the recipe of `train`, by table."""

    @staticmethod
    def default() -> "Config":
        """Every option at its default."""
        return load(None)

    def changed(self, values: Values) -> "Config":
        """This configuration with other values: Python values by `table.option`, and `seed`.

        Where they name another class or recipe (`strategy.name`, `train.recipe`), values stay that the new one has as
        options and that differ from the old one's defaults. Raises UserError, as `load` does.
        """
        content: dict[str, Values] = {}
        for key, value in values.items():
            table, name = _split_key(key)
            content.setdefault(table, {})[name] = value
        seed = _seed(content.pop("")["seed"]) if "" in content else self.seed
        tables = {table: self._values(table) for table in content}
        named = {table: NAMED[table].key for table in content if table in NAMED}
        _drop_other_options(tables, {t: str(content[t][key]) for t, key in named.items() if key in content[t]})
        tables = {table: {**tables[table], **changes} for table, changes in content.items()}
        names = _names({**{table: {NAMED[table].key: name} for table, name in self.names.items()}, **tables})
        values = {table: _typed(table, names, content) for table, content in tables.items()}
        return replace(self, seed=seed, names=names, **_built(names, values))

    def toml(self) -> str:
        """Every option with its value, as a file that `load` reads back to an equal configuration; None is left out."""
        tables = {
            table: {name: _plain(value) for name, value in self._values(table).items() if value is not None}
            for table in TABLES
        }
        return tomli_w.dumps({"seed": self.seed, **tables})

    def options(self) -> Values:
        """Every option as `table.option` with its value, in which tuples are lists; and the seed."""
        tables = {table: self._values(table) for table in TABLES}
        options = {f"{table}.{name}": _plain(value) for table in TABLES for name, value in tables[table].items()}
        return {"seed": self.seed, **options}

    def key_options(self) -> Values:
        """As `options`, without those that no result depends on: fields marked `metadata={"key": False}`."""
        unmarked = {
            f"{table}.{field.name}"
            for table in TABLES
            for field in dataclasses.fields(getattr(self, FIELDS.get(table, table)))
            if not field.metadata.get("key", True)
        }
        return {name: value for name, value in self.options().items() if name not in unmarked}

    def usual(self) -> Values:
        """The default of every option that has one, for this configuration's classes and recipe."""
        options: dict[str, Any] = dict(SCALARS)
        for table in TABLES:
            defaults = _defaults(table, self.names.get(table, ""))
            options |= {f"{table}.{name}": _plain(value) for name, value in defaults.items()}
        return options

    def _values(self, table: str) -> Values:
        name = {NAMED[table].key: self.names[table]} if table in NAMED else {}
        content = getattr(self, FIELDS.get(table, table))
        fields = {field.name: getattr(content, field.name) for field in dataclasses.fields(content) if field.init}
        return {**name, **fields}


@dataclass(frozen=True)
class NamedTable:
    """A table whose class or values have a name."""

    key: str
    default: str
    contract: str = ""
    """The contract of its plug-ins as `package:Class`; empty for recipes."""

    @property
    def package(self) -> str:
        """The folder of the plug-ins, as a module's name."""
        return self.contract.partition(":")[0]

    def choices(self) -> list[str]:
        """Every name."""
        return plugins.names(self.package) if self.contract else list(RECIPES)

    def find(self, name: str) -> type[Any]:
        """The class whose fields are the options of the table; raises UserError, which lists the names."""
        if not self.contract:
            return Recipe
        return plugins.find(import_module(self.package), _imported(self.contract), name)

    def options(self, name: str) -> Options:
        """The options of the class or recipe; raises UserError, which lists the names."""
        if not self.contract:
            if name not in RECIPES:
                raise UserError(no_such("recipe", name, RECIPES))
            values = dataclasses.asdict(RECIPES[name])
            return {each.name: replace(each, default=values[each.name]) for each in options_of(Recipe).values()}
        if ":" in name:
            return options_of(self.find(name))
        plugins.check_name(self.package, name)
        return source_file(f"{self.package}.{name}").implementation(self.contract).options()


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
    "family": NamedTable("name", "cifar_resnet", "htas.models:ModelFamily"),
    "data": NamedTable("name", "digits", "htas.datasets:Dataset"),
    "strategy": NamedTable("name", "differentiable", "htas.strategies:Strategy"),
    "train": NamedTable("recipe", "paper"),
}
PLAIN = {
    "split": "htas.run.config:SplitOptions",
    "target": "htas.timing.target:Target",
    "survey": "htas.spaces.survey:Survey",
    "design": "htas.spaces.design:Design",
    "calibrate": "htas.cost.calibrate:Calibrate",
    "constraints": "htas.cost.limits:Constraints",
    "distill": "htas.training.distill:Distill",
}
"""The class of each other table, as `module:Class`."""
SCALARS = {"seed": 0}
KEYS = (*SCALARS, *TABLES)
"""The keys of a configuration file."""
MOVED = {
    **dict.fromkeys(("target.image", "target.more"), "write shapes = [[3, 32, 32]], with a shape for each input"),
    "constraints.accuracy_floor": "htas fastest has it as --accuracy-floor",
    "constraints.seeds": "htas fastest has it as --seeds",
    "constraints.tries": "htas fastest has it as --tries",
    "strategy.cost": "it belongs to strategies that weigh archs by a cost (differentiable, tas; for morphnet it is "
    "strategy.prices); leave it out, as the constraints say what the network may cost",
}
"""Options that left a table, or some of its classes, with what to do instead."""


def table_options(table: str, name: str = "") -> Options:
    """The options of a table; of one in NAMED, those of the class or recipe `name`. Raises UserError."""
    if table in NAMED:
        return NAMED[table].options(name)
    module, _, kind = PLAIN[table].partition(":")
    options: Options = source_file(module)[kind].options()
    return options


def _imported(place: str) -> type[Any]:
    """The class `module:Class`."""
    module, _, name = place.partition(":")
    kind: type[Any] = getattr(import_module(module), name)
    return kind


@dataclass(frozen=True)
class CommandLineValue:
    """The text of a value on the command line; its option decides the type."""

    text: str


def load(path: Path | None, overrides: Sequence[str] = ()) -> Config:
    """The configuration of a TOML file (None: all defaults) with `--table.field=value` overrides on top.

    Raises UserError in one sentence: the option, its value, and what is allowed.
    """
    tables, seed = _contents(path, overrides)
    names = _names(tables)
    values = {table: _typed(table, names, content) for table, content in tables.items()}
    return Config(seed=seed, names=names, **_built(names, values))


def configured_names(path: Path | None, overrides: Sequence[str] = ()) -> dict[str, str]:
    """The classes and recipe that a file and overrides name, by table; raises UserError."""
    return _names(_contents(path, overrides)[0])


def fitting(overrides: Sequence[str], others: Sequence[str]) -> list[str]:
    """Overrides still valid after `others` choose other plug-ins: options that the new class lacks are dropped."""
    names = _named_classes(others)
    valid = []
    for override in overrides:
        table, _, option = _split_override(override)[0].partition(".")
        if table not in names or option in NAMED[table].options(names[table]):
            valid.append(override)
    return valid


def _contents(path: Path | None, overrides: Sequence[str]) -> tuple[dict[str, Values], int]:
    """The values of a file and of overrides by table and option, and the seed; overrides are CommandLineValues."""
    content = _read(path) if path else {}
    for name, value in content.items():
        if name not in KEYS:
            raise UserError(f"{path} has {_unknown('no table or option', name, KEYS)}")
        if name in TABLES and not isinstance(value, dict):
            raise UserError(f"{path}: {name} must be a table, [{name}] with its options below, got {value!r}")
    tables: dict[str, Values] = {table: dict(content.get(table, {})) for table in TABLES}
    seed = content.get("seed", SCALARS["seed"])
    _drop_other_options(tables, _named_classes(overrides))
    for key, text in map(_split_override, overrides):
        table, name = _split_key(key)
        if table:
            tables[table][name] = CommandLineValue(text)
        else:
            seed = CommandLineValue(text)
    return tables, _seed(seed)


def _split_key(key: str) -> tuple[str, str]:
    """The table and the option of `table.option`, no table for `seed`; raises UserError for others."""
    table, dot, name = key.partition(".")
    if table not in KEYS:
        raise UserError(f"the configuration has {_unknown('no table or option', table, KEYS)}")
    if bool(dot) != (table in TABLES):
        right = "--seed=NUMBER" if table == "seed" else f"--{table}.OPTION=VALUE"
        raise UserError(f"--{key} is no option; write {right}")
    return (table, name) if dot else ("", table)


def _drop_other_options(tables: dict[str, Values], names: Mapping[str, str]) -> None:
    """Drop from tables that get another class or recipe (`names`, by table) the options that the new one lacks.

    The file of a run spells every option, so that the old class's defaults are dropped from it, too.
    """
    for table, name in names.items():
        named, values = NAMED[table], tables[table]
        old = str(values.get(named.key, named.default))
        if name == old:
            continue
        usual = _defaults(table, old)
        spelled = all(option in values for option, value in usual.items() if value is not None)
        defaults = {option for option, value in usual.items() if spelled and values.get(option) == value}
        options = named.options(name)
        tables[table] = {
            option: value for option, value in values.items() if option in options and option not in defaults
        }


def _named_classes(overrides: Sequence[str]) -> dict[str, str]:
    """The classes and recipes that overrides name, by table."""
    pairs = [(key.partition("."), text) for key, text in map(_split_override, overrides)]
    return {table: text for (table, _, name), text in pairs if table in NAMED and name == NAMED[table].key}


def _defaults(table: str, name: str) -> Values:
    """The options that have a default, with it."""
    if table == "train" and name not in RECIPES:
        return {}
    options = table_options(table, name).values()
    return {each.name: each.default for each in options if not each.required}


def _plain(value: Any) -> Any:
    """A value as JSON reads it back: tuples are lists."""
    return json.loads(json.dumps(value, default=str))


def _read(path: Path) -> Values:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; name a TOML file, or a folder that a run made") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML: {error}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; name a TOML file") from error


def _split_override(override: str) -> tuple[str, str]:
    """`design.groups` and `8` of `--design.groups=8`."""
    key, equals, text = override.removeprefix("--").partition("=")
    if not equals:
        raise UserError(f"--{key} has no value; write --{key}=VALUE")
    return key, text


def _seed(value: Any) -> int:
    try:
        seed = int(value.text) if isinstance(value, CommandLineValue) else value
    except ValueError:
        seed = value.text
    if type(seed) is not int or seed < 0:
        raise UserError(f"seed must be a whole number, 0 or more, got {seed!r}")
    return seed


def _names(tables: Mapping[str, Values]) -> dict[str, str]:
    """The class or recipe of each table in NAMED; whether it exists is checked later."""
    names = {}
    for table, named in NAMED.items():
        name = tables[table].get(named.key, named.default)
        name = name.text if isinstance(name, CommandLineValue) else name
        if not isinstance(name, str):
            raise UserError(f"{table}.{named.key} must be text, got {name!r}")
        names[table] = name
    return names


def _typed(table: str, names: Mapping[str, str], content: Values) -> Values:
    """The values of one table, each of its option's type; raises UserError."""
    options = table_options(table, names.get(table, ""))
    key = [NAMED[table].key] if table in NAMED else []
    values = _defaults(table, names[table]) if table == "train" else {}
    for name, value in content.items():
        if name not in options and name not in key:
            if where := MOVED.get(f"{table}.{name}"):
                raise UserError(f"{table} has no option {name!r}: {where}")
            raise UserError(f"{table} has {_unknown('no option', name, [*key, *options])}")
        if name in options:
            values[name] = _value(f"{table}.{name}", options[name], value)
    for name, option in options.items():
        if option.required and name not in values:
            raise UserError(f"{table}.{name} must be given: {allowed(option.hint)}")
    return values


def _built(names: Mapping[str, str], tables: Mapping[str, Values]) -> Values:
    """The object of each table, by the field of Config; raises UserError."""
    built = {}
    for table, values in tables.items():
        kind = NAMED[table].find(names[table]) if table in NAMED else _imported(PLAIN[table])
        refusals = ValueError if ":" in names.get(table, "") else UserError  # a class of the user's own raises either
        try:
            built[FIELDS.get(table, table)] = kind(**values)
        except refusals as error:
            raise UserError(_placed(table, values, str(error))) from error
    return built


def _value(key: str, option: Option, value: Any) -> Any:
    """A value of a file or of the command line as its option's type; raises UserError."""
    text = value.text if isinstance(value, CommandLineValue) else None
    try:
        return check(value, option.hint) if text is None else parse(text, option.hint)
    except REFUSED as error:
        words = json.dumps(value, ensure_ascii=False, default=str) if text is None else text
        raise UserError(f"{key} must be {allowed(option.hint)}, got {words}") from error


def _placed(table: str, options: Values, message: str) -> str:
    """The message of a class, with the table in front where the message does not name it."""
    if f"{table}." in message:
        return message
    starts_with_field = message.split(maxsplit=1)[:1] and message.split(maxsplit=1)[0] in options
    return f"{table}.{message}" if starts_with_field else f"{table}: {message}"


def _unknown(what: str, name: str, names: Sequence[str]) -> str:
    """`no option 'group'; did you mean 'groups'? it has: expand, groups`."""
    return f"{what} {name!r}; {near(name, names)}it has: {listing(names)}"


def as_text(value: Any) -> str:
    """A value of a TOML file as the command line has it: JSON, which is YAML too."""
    return value if isinstance(value, str) else json.dumps(value, default=str)
