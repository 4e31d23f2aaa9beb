"""The verbs about the command itself: the options of a configuration, and completion in shells."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from htas import text
from htas.cli.parameters import Overrides
from htas.cli.sources import config_file, is_run
from htas.errors import UserError
from htas.plugins.options import Option
from htas.plugins.values import allowed
from htas.run.config import NAMED, SEED, TABLES, WITHIN_LIMITS, configured_names

COMMON = (
    "family.name",
    "data.name",
    "data.path",
    "target.runtime",
    "target.batch",
    "constraints.latency",
    "strategy.name",
    "strategy.epochs",
    "train.recipe",
    "train.epochs",
    "design.expand",
)
"""The options that people change most."""


def options(
    *tables: Annotated[str, Parameter(help="a table, such as design; and a TOML file or the folder of a run")],
    overrides: Overrides,
) -> None:
    """Show the options of a configuration: of every table, or of those named, with meaning, type and default."""
    sources = [word for word in tables if is_run(word)]
    named = [word for word in tables if word not in sources]
    if len(sources) > 1:
        raise UserError(f"options are those of one configuration, got {text.listing(sources)}")
    for table in named:
        if table not in TABLES:
            raise UserError(text.no_such("table", table, TABLES))
    names = configured_names(config_file(Path(sources[0])) if sources else None, overrides)
    intro = "In a TOML file under [table], or behind a command as --table.option=value."
    blocks = [f"{intro}\n\n{_entry('--seed', SEED)}"] if not named else []
    print("\n\n".join([*blocks, *(_table(table, names) for table in named or TABLES)]))


def common_options(words: Sequence[str], overrides: Sequence[str]) -> str:
    """The options in COMMON, for the configuration that the words of a command name; raises UserError."""
    source = next((config_file(Path(word)) for word in words if is_run(word)), None)
    names = configured_names(source, overrides)
    tables = {table: list(_options(table, names)) for table in TABLES}
    by_key = {f"{table}.{option.name}": option for table, each in tables.items() for option in each}
    return "\n".join([
        "Options of the configuration that people change most:",
        *(_entry(f"--{key}", by_key[key]) for key in COMMON if key in by_key),
        _entry("--seed", SEED),
        "htas options shows all of them, htas options TABLE those of one table.",
    ])  # fmt: skip


def completion(shell: Annotated[Literal["bash", "zsh", "fish"], Parameter(help="the shell")], /) -> None:
    """Print the script that completes verbs and options in a shell."""
    from htas.cli.app import APP

    print(APP.generate_completion(shell=shell))


def _table(table: str, names: Mapping[str, str]) -> str:
    name = f" {NAMED[table].key} = {names[table]}" if table in NAMED else ""
    return "\n".join([f"[{table}]{name}", *(_entry(f"--{table}.{each.name}", each) for each in _options(table, names))])


def _options(table: str, names: Mapping[str, str]) -> Iterable[Option]:
    """The options of a table, first what decides the others."""
    if named := NAMED.get(table):
        choices = text.listing(named.choices())
        about = f"The named recipe that the other options of this table change: {choices}."
        if named.key == "name":
            about = f"Which one: {choices}, or your own class as 'package.module:Class'."
        if table == "strategy":
            about += f" Within limits {WITHIN_LIMITS} where none is named (sweep and fastest: always)."
        yield Option(named.key, str, names[table], about)
    yield from TABLES[table].options(names.get(table, "")).values()


def _entry(flag: str, option: Option) -> str:
    """`--design.groups  a whole number; default: 8` and, below, its help; the default as the command line has it."""
    value = option.default
    words = text.listing(map(str, value)) if isinstance(value, dict | list | tuple) else str(value)
    words = words.lower() if isinstance(value, bool) else words
    default = "required" if option.required else f"default: {words or 'none'}"
    about = textwrap.wrap(option.about, 110)
    return "\n".join([f"  {flag}  {allowed(option.hint)}; {default}", *(f"      {line}" for line in about)])
