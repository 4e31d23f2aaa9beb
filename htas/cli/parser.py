"""Arguments of a verb, from the parameters of its function."""

import argparse
from collections.abc import Callable, Sequence
from inspect import Parameter, cleandoc, signature
from types import NoneType
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

from htas import text
from htas.errors import UserError


def _positional(verb: Callable[..., None]) -> list[str]:
    """The parameters before `/`: arguments by their place, even those with a default or of fixed choices."""
    parameters = signature(verb).parameters.items()
    return [name for name, parameter in parameters if parameter.kind is Parameter.POSITIONAL_ONLY]


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Options of the configuration as `--table.field=value`, and the rest."""
    overrides, rest, left = [], [], list(argv)
    while left:
        word = left.pop(0)
        name, equals, _ = word.partition("=")
        if not (name.startswith("--") and ("." in name or name == "--seed")):
            rest.append(word)
        elif equals or not left or left[0].startswith("--"):
            overrides.append(word)
        else:
            overrides.append(f"{word}={left.pop(0)}")
    return overrides, rest


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are sentences like all others."""

    def error(self, message: str) -> NoReturn:
        """Refuse what was given."""
        raise UserError(f"{message}; see {self.prog} --help")


def _parser(verb: Callable[..., None]) -> Parser:
    """Arguments from a verb's parameters; those with a default, and fixed choices, are options, unless before `/`."""
    parser = Parser(
        f"htas {verb.__name__}",
        description=cleandoc(verb.__doc__ or ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    hints = get_type_hints(verb, include_extras=True)
    for name, parameter in signature(verb).parameters.items():
        if name != "overrides":
            hint, about = get_args(hints[name])
            add = _place if name in _positional(verb) else _add
            add(parser, name, _without_none(hint), about, parameter.default)
    return parser


def _place(parser: Parser, name: str, hint: Any, about: str, default: Any) -> None:
    """An argument that its place gives a meaning; one with a default may be left out."""
    choices = get_args(hint) if get_origin(hint) is Literal else None
    required = default is Parameter.empty
    parser.add_argument(
        name,
        type=str if choices else hint,
        choices=choices,
        nargs=None if required else "?",
        default=None if required else default,
        metavar=name.upper(),
        help=about,
    )


def _add(parser: Parser, name: str, hint: Any, about: str, default: Any) -> None:
    required = default is Parameter.empty
    if hint is bool:
        parser.add_argument(f"--{name}", action="store_true", help=about)
    elif get_origin(hint) is Literal:
        parser.add_argument(
            f"--{name}", choices=get_args(hint), required=required, default=None if required else default, help=about
        )
    elif not required:
        parser.add_argument(f"--{name}", type=hint, default=default, metavar=name.upper(), help=about)
    elif get_origin(hint) is list:
        parser.add_argument(name, nargs="+", type=get_args(hint)[0], metavar=name.upper(), help=about)
    else:
        parser.add_argument(name, type=hint, metavar=name.upper(), help=about)


def _without_none(hint: Any) -> Any:
    """`Path` from `Path | None`."""
    kinds = [kind for kind in get_args(hint) if kind is not NoneType]
    return kinds[0] if NoneType in get_args(hint) else hint


def _no_option(verb: Callable[..., None], parser: Parser, given: str, configurable: bool) -> str:
    if not given.startswith("-"):
        return f"htas {verb.__name__} has no use for {given!r}; see htas {verb.__name__} --help"
    known = [option for action in parser._actions for option in action.option_strings]
    hint = text.near(given.partition("=")[0], known)
    rest = [*known, "--table.field=value"] if configurable else known
    return f"htas {verb.__name__} has no option {given!r}; {hint}it has: {text.listing(rest)}"
