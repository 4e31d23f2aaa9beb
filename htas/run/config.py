"""A TOML file and dotted overrides become the frozen dataclasses that the stages work with.

Nothing is listed twice: the options of a table are the fields of its class, and their help is the string beneath each.
Names and types are refused before the classes, and PyTorch with them, are imported.
"""

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli_w

from htas import plugins
from htas.errors import UserError, of_option
from htas.files import need_text, read_toml
from htas.plugins.options import Option, Options, SourceClass, in_key, options_of, source_file
from htas.plugins.trust import need_trust
from htas.plugins.values import REFUSED, Values, allowed, check, parse, texts_in
from htas.run import trusted
from htas.text import listing, near, no_such, quoted, shortened
from htas.timing.target import runtime_options
from htas.training.recipe import RECIPES, Recipe

if TYPE_CHECKING:
    from htas.cost.calibrate import Calibrate
    from htas.cost.constraints import Constraints
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
    split: SplitOptions
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
        tables = _merged({"": {"seed": self.seed}, **self._tables()}, values)
        names = _names(tables)
        changed = {key.partition(".")[0] for key in values}
        built = _built(names, {table: _typed(table, names, tables[table]) for table in TABLES if table in changed})
        return replace(self, seed=_seed(tables), names=names, **built)

    def toml(self) -> str:
        """Every option with its value, as a file that `load` reads back to an equal configuration; None is left out."""
        content: dict[str, Any] = {"seed": self.seed}
        for table, values in self._tables().items():
            content[table] = {name: value for name, value in values.items() if value is not None}
        return tomli_w.dumps(content)

    def options(self, *, keys: bool = False) -> Values:
        """Every option as `table.option` with its value, and the seed; for `keys` as `values` does."""
        return {"seed": self.seed, **_dotted(self._tables(keys))}

    def usual(self) -> Values:
        """The default of every option that has one, for this configuration's classes and recipe, as `options`."""
        tables = {name: _defaults(table.options(self.names.get(name, ""))) for name, table in TABLES.items()}
        return {"seed": SEED.default, **_dotted(_plain(tables))}

    def values(self, table: str, *, keys: bool = False) -> Values:
        """The options of a table with their values, as JSON reads them back: tuples are lists.

        For `keys`, without those that no result depends on, as `in_key` has it.
        """
        content = getattr(self, table)
        fields = [each for each in dataclasses.fields(content) if each.init]
        names = [each.name for each in fields if not keys or in_key(each, getattr(content, each.name))]
        return _plain({name: getattr(content, name) for name in names})

    def _tables(self, keys: bool = False) -> dict[str, Values]:
        """The values of every table, with the name of its class or recipe."""
        names = {table: {NAMED[table].key: name} for table, name in self.names.items()}
        return {table: {**names.get(table, {}), **self.values(table, keys=keys)} for table in TABLES}


@dataclass(frozen=True)
class Table:
    """A table of a configuration; its options are the fields of a class."""

    place: str
    """The class, or the contract of the plug-ins that the table chooses from, as `module:Class`."""
    key: str = ""
    """The option that names the plug-in (`name`) or the recipe (`recipe`); empty where the class is always the same."""
    default: str = ""
    """The name that stands without one."""

    @property
    def module(self) -> str:
        """The file of the class, or the folder of the plug-ins."""
        return self.place.partition(":")[0]

    def choices(self) -> list[str]:
        """Every name; an empty one where the class is always the same."""
        if self.key == "name":
            return plugins.names(self.module)
        return list(RECIPES) if self.key else [""]

    def find(self, name: str = "") -> type[Any]:
        """The class whose fields are the options of the table; raises UserError, which lists the names."""
        kind = self._contract
        return plugins.find(import_module(self.module), kind, name) if self.key == "name" else kind

    def create(self, name: str, values: Values) -> Any:
        """An object of that class with these options; raises UserError."""
        return plugins.create(self._contract, self.find(name), name, values)

    @property
    def _contract(self) -> type[Any]:
        kind: type[Any] = getattr(import_module(self.module), self.place.partition(":")[2])
        return kind

    def options(self, name: str = "") -> Options:
        """The options of the class or recipe; raises UserError, which lists the names."""
        if self.key == "name":
            plugins.check_name(self.module, name)
        if ":" in name and self.key == "name":
            return options_of(self.find(name))
        options = self._source(name).options()
        if self.key != "recipe":
            return options
        if name not in RECIPES:
            raise UserError(no_such("recipe", name, RECIPES))
        values = dataclasses.asdict(RECIPES[name])
        return {option: replace(each, default=values[option]) for option, each in options.items()}

    def check(self, name: str, values: Values) -> None:
        """Raise UserError for values that the class refuses, as far as that needs no import."""
        if ":" not in name:
            self._source(name).check(values)

    def _source(self, name: str) -> SourceClass:
        if self.key == "name":
            return source_file(f"{self.module}.{name}").implementation(self.place)
        found: SourceClass = source_file(self.module)[self.place.partition(":")[2]]
        return found


TABLES = {
    "family": Table("htas.models:ModelFamily", "name", "cifar_resnet"),
    "data": Table("htas.datasets:Dataset", "name", "digits"),
    "split": Table("htas.run.config:SplitOptions"),
    "target": Table("htas.timing.target:Target"),
    "survey": Table("htas.spaces.survey:Survey"),
    "design": Table("htas.spaces.design:Design"),
    "calibrate": Table("htas.cost.calibrate:Calibrate"),
    "constraints": Table("htas.cost.constraints:Constraints"),
    "strategy": Table("htas.strategies:Strategy", "name", "differentiable"),
    "train": Table("htas.training.recipe:Recipe", "recipe", "paper"),
    "distill": Table("htas.training.distill:Distill"),
}
WITHIN_LIMITS = "knapsack"
"""The strategy for limits, where none is named."""
RUNTIMES = Table("htas.runtimes:Runtime", "name", "eager")
"""What target.runtime chooses from, and target.options has the options of."""
NAMED = {name: table for name, table in TABLES.items() if table.key}
"""Tables whose class or values have a name."""
KEYS = ("seed", *TABLES)
"""The keys of a configuration file."""
SEED = Option("seed", int, 0, "Start of every random draw; 0 or more.")
TOO_LARGE, MOST_SEED = re.compile(r"[+-]?\d{19}.*"), 2**32
"""A whole number that PyTorch cannot hold; what the seed lies below, as NumPy's do."""
BESIDE = ("environment.json", "command.json")
"""Files beside the configuration that a run wrote."""
MOVED = {
    **dict.fromkeys(("target.image", "target.more"), "write shapes = [[3, 32, 32]], with a shape for each input"),
    "constraints.accuracy_floor": "htas fastest has it as --accuracy-floor",
    "constraints.seeds": "htas fastest has it as --seeds",
    "constraints.tries": "htas fastest has it as --tries",
    "strategy.cost": "it belongs to strategies that weigh archs by a cost (differentiable, tas; for morphnet it is "
    "strategy.prices); leave it out, as the constraints say what the network may cost",
}
"""Options that left a table, or some of its classes, with what to do instead."""


class CommandLineValue(str):
    """The text of a value on the command line; its option decides the type."""


def load(path: Path | None, overrides: Sequence[str] = ()) -> Config:
    """The configuration of a TOML file (None: all defaults) with `--table.field=value` overrides on top.

    Raises UserError in one sentence: the option, its value, and what is allowed.
    """
    return read(path, overrides).config()


@dataclass(frozen=True)
class Settings:
    """Every option with its value, of the option's type, before the classes are imported, and PyTorch with them."""

    seed: int
    names: Mapping[str, str]
    tables: Mapping[str, Values]

    def config(self) -> Config:
        """The configuration; raises UserError for what only the classes can refuse."""
        return Config(seed=self.seed, names=self.names, **_built(self.names, self.tables))

    @property
    def target(self) -> "Target":
        """Where the network must be fast."""
        target: Target = TABLES["target"].find()(**self.tables["target"])
        return target


def read(path: Path | None, overrides: Sequence[str] = (), limited: bool = False) -> Settings:
    """The values of a TOML file and of overrides, checked without PyTorch; raises UserError as `load` does.

    `limited` says that something beyond these will limit the cost.
    """
    tables = _contents(path, overrides)
    seed, names = _seed(tables), _names(tables, limited)
    trusted.check(path, tables, names)
    return Settings(seed, names, {table: _typed(table, names, tables[table]) for table in TABLES})


def configured_names(path: Path | None, overrides: Sequence[str] = ()) -> dict[str, str]:
    """The classes and recipe that a file and overrides name, by table; raises UserError."""
    tables = _contents(path, overrides)
    names = _names(tables)
    trusted.check(path, tables, names)
    return names


def configured_code(path: Path, overrides: Sequence[str] = ()) -> list[trusted.Named]:
    """The options that name code of the user's, in a file or in overrides; raises UserError."""
    tables = _contents(path, overrides)
    return trusted.user_code(tables, _names(tables))


def fitting(overrides: Sequence[str], others: Sequence[str]) -> list[str]:
    """Overrides still valid after `others` choose other plug-ins: options that the new class lacks are dropped."""
    options = {table: _options(table, name) for table, name in _new_names(_split(others)).items()}
    valid = []
    for override in overrides:
        table, _, option = next(iter(_split([override]))).partition(".")
        if table not in options or option in options[table]:
            valid.append(override)
    return valid


def _contents(path: Path | None, overrides: Sequence[str]) -> dict[str, Values]:
    """The values of a file and of overrides by table and option, the seed in the table without a name."""
    content = read_toml(path, "a TOML file, or a folder that a run made") if path else {}
    for name, value in content.items():
        if name not in KEYS:
            raise UserError(f"{path} has {_unknown('no table or option', name, KEYS)}")
        if name in TABLES and not isinstance(value, dict):
            raise UserError(f"{path}: {name} must be a table, [{name}] with its options below, got {quoted(value)}")
    if path and any((path.parent / name).exists() for name in BESIDE if path.name == "config.toml"):
        _need_whole(path, content)
    tables = {table: dict(content.get(table, {})) for table in TABLES}
    return _merged({"": {"seed": content.get("seed", SEED.default)}, **tables}, _split(overrides))


def _need_whole(path: Path, content: Values) -> None:
    """Raise UserError where the configuration of a run lacks what every run writes: it would be that of another one."""
    lacking = [name for name in KEYS if name not in content]
    lacking += [f"{table}.{named.key}" for table, named in NAMED.items() if named.key not in content.get(table, {})]
    if lacking:
        raise UserError(
            f"{path} lacks {lacking[0]}, which every run writes into it, so it is not as it was written; put it back, "
            "or name a TOML file and another folder with --out"
        )


def _merged(tables: dict[str, Values], changes: Values) -> dict[str, Values]:
    """The tables with other values, by `table.option`.

    A table that gets another class or recipe loses the options that the new one lacks. The file of a run spells every
    option, so that the old class's defaults are dropped from it, too.
    """
    places = {key: _split_key(key) for key in changes}
    for table, name in _new_names(changes).items():
        named, values = NAMED[table], tables[table]
        old = str(values.get(named.key, named.default))
        if name != old:
            usual, options = _plain(_defaults(_options(table, old))), _options(table, name)
            spelled = all(option in values for option, value in usual.items() if value is not None)
            tables[table] = {
                option: value
                for option, value in values.items()
                if option in options and not (spelled and option in usual and usual[option] == value)
            }
    for key, (table, option) in places.items():
        tables[table][option] = changes[key]
    return tables


def _split_key(key: str) -> tuple[str, str]:
    """The table and the option of `table.option`, no table for `seed`; raises UserError for others."""
    table, dot, name = key.partition(".")
    if table not in KEYS:
        raise UserError(f"the configuration has {_unknown('no table or option', table, KEYS)}")
    if bool(dot) != (table in TABLES):
        right = "--seed=NUMBER" if table == "seed" else f"--{table}.OPTION=VALUE"
        raise UserError(f"--{key} is no option; write {right}")
    return (table, name) if dot else ("", table)


def _new_names(changes: Values) -> dict[str, str]:
    """The classes and recipes that values by `table.option` name, by table."""
    keys = {table: f"{table}.{named.key}" for table, named in NAMED.items()}
    return {table: str(changes[key]) for table, key in keys.items() if key in changes}


def _dotted(tables: Mapping[str, Values]) -> Values:
    return {f"{table}.{name}": value for table, values in tables.items() for name, value in values.items()}


def _plain(values: Values) -> Values:
    """Values as JSON reads them back."""
    plain: Values = json.loads(json.dumps(values, default=str))
    return plain


def _options(table: str, name: str) -> Options:
    """The options of the class or recipe of this name; raises UserError with the option that names it."""
    with of_option(f"{table}.{TABLES[table].key}"):
        return TABLES[table].options(name)


def _defaults(options: Options) -> Values:
    return {each.name: each.default for each in options.values() if not each.required}


def _split(overrides: Sequence[str]) -> Values:
    """`{"design.groups": "8"}` of `--design.groups=8`."""
    values = {}
    for override in overrides:
        key, equals, text = override.removeprefix("--").partition("=")
        if not equals:
            raise UserError(f"--{key} has no value; write --{key}=VALUE")
        values[key] = CommandLineValue(text)
    return values


def _seed(tables: Mapping[str, Values]) -> int:
    seed = tables[""]["seed"]
    with suppress(ValueError):
        seed = int(seed) if isinstance(seed, CommandLineValue) else seed
    if type(seed) is not int or not 0 <= seed < MOST_SEED:
        most = ", 0 or more" if type(seed) is not int or seed < 0 else " below 2^32"
        raise UserError(f"seed must be a whole number{most}, got {quoted(seed)}")
    return seed


def _names(tables: Mapping[str, Values], limited: bool = False) -> dict[str, str]:
    """The class or recipe of each table in NAMED; whether it exists is checked later."""
    names = {table: tables[table].get(named.key, named.default) for table, named in NAMED.items()}
    if "name" not in tables["strategy"]:
        names["strategy"] = usual_strategy(limited or any(tables["constraints"].values()), tables["strategy"])
    for table, name in names.items():
        if not isinstance(name, str):
            raise UserError(f"{table}.{NAMED[table].key} must be text, got {quoted(name)}")
    return {table: str(name) for table, name in names.items()}


def usual_strategy(limited: bool, options: Iterable[str]) -> str:
    """The strategy where none is named: WITHIN_LIMITS where something limits the cost, as benchmarks/evidence found;
    but the default of the table without a limit, or where an option is given that only the latter has."""
    names = (WITHIN_LIMITS, TABLES["strategy"].default) if limited else (TABLES["strategy"].default,)
    fit = (name for name in names if set(options) <= TABLES["strategy"].options(name).keys())
    return next(fit, TABLES["strategy"].default)


def _built(names: Mapping[str, str], tables: Mapping[str, Values]) -> Values:
    """The object of each table; raises UserError."""
    built = {}
    for table, values in tables.items():
        name = names.get(table, "")
        refusals = ValueError if ":" in name else UserError  # a class of the user's own raises either
        try:
            built[table] = TABLES[table].create(name, values)
        except refusals as error:
            raise UserError(_placed(f"{table}: {name}" if ":" in name else table, values, str(error))) from error
    return built


def _typed(table: str, names: Mapping[str, str], content: Values) -> Values:
    """The values of one table, each of its option's type; raises UserError."""
    options, key = _options(table, names.get(table, "")), TABLES[table].key
    values = _defaults(options)
    for name, value in content.items():
        if name in options:
            values[name] = _value(f"{table}.{name}", options[name], value)
        elif where := MOVED.get(f"{table}.{name}"):
            raise UserError(f"{table} has no option {name!r}: {where}")
        elif name != key:
            raise UserError(f"{table} has {_unknown('no option', name, [*([key] if key else []), *options])}")
    for name, option in options.items():
        if name not in values:
            raise UserError(f"{table}.{name} must be given: {allowed(option.hint)}")
    try:
        TABLES[table].check(names.get(table, ""), values)
    except UserError as error:
        raise UserError(_placed(table, values, str(error))) from error
    if table == "target":
        check_runtime(TABLES[table].find()(**values))
    return values


def check_runtime(target: "Target") -> None:
    """Raise UserError for a runtime that does not exist, or options that it does not have.

    One of the user's own is looked at where it runs, as the files of a run can be read anywhere.
    """
    if ":" in target.runtime:
        need_trust(target.runtime, "target.runtime")
    else:
        with of_option("target.runtime"):
            options = RUNTIMES.options(target.runtime)
        RUNTIMES.check(target.runtime, _defaults(options) | runtime_options(target, options))


def _value(key: str, option: Option, value: Any) -> Any:
    """A value of a file or of the command line as its option's type; raises UserError."""
    text = str(value) if isinstance(value, CommandLineValue) else None
    try:
        typed = check(value, option.hint) if text is None else parse(text, option.hint)
    except REFUSED as error:
        most = ", of at most 18 digits" if TOO_LARGE.fullmatch(words := _words(value)) else ""
        raise UserError(f"{key} must be {allowed(option.hint)}{most}, got {words}") from error
    for each in texts_in(typed):
        need_text(each, key)
    return typed


def _words(value: Any) -> str:
    """A value as the user wrote it, for a sentence."""
    if isinstance(value, CommandLineValue):
        return shortened(str(value))
    try:
        return shortened(json.dumps(value, ensure_ascii=False, default=str))
    except (ValueError, RecursionError):
        return quoted(value)


def _placed(place: str, options: Values, message: str) -> str:
    """The message of a class, with its table, and the class of a user, in front where the message does not name it."""
    if f"{(table := place.partition(':')[0])}." in message:
        return message
    starts_with_field = message.split(maxsplit=1)[:1] and message.split(maxsplit=1)[0] in options
    return f"{table}.{message}" if starts_with_field else f"{place}: {message}"


def _unknown(what: str, name: str, names: Sequence[str]) -> str:
    """`no option 'group'; did you mean 'groups'? it has: expand, groups`."""
    return f"{what} {quoted(name)}; {near(name, names)}it has: {listing(names)}"
