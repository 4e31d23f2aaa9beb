"""The verbs as one application: words of the command line to typed parameters, and refusals in one sentence."""

import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from inspect import BoundArguments, Parameter
from io import StringIO
from itertools import pairwise
from pathlib import Path

import cyclopts
from rich.console import Console

from htas import text
from htas.cli.help import common_options
from htas.cli.verbs import CONFIGURED, VERBS, report
from htas.console.blame import users_faults
from htas.console.record import recording
from htas.errors import UserError
from htas.files import __version__, need_text, path_of
from htas.plugins.options import ROOT
from htas.plugins.trust import FLAG, VARIABLE, user_code_allowed, without_user_code
from htas.plugins.values import allowed
from htas.training import ranks

APP = cyclopts.App(
    name="htas",
    help="htas: a PyTorch network and a machine in, a measured, faster network out.",
    help_epilogue=f"htas VERB --help says what a verb takes, htas options what a configuration takes. With {FLAG} (or "
    f"{VARIABLE}=1) every verb imports no code that a configuration names, and starts no command.",
    version=f"htas {__version__}",
    default_parameter=cyclopts.Parameter(negative="", show_default=False, allow_repeating=True),
    help_format="plaintext",
    help_formatter="plain",
)
TOGETHER = ("run", "search", "train", "demo")
"""Verbs that several processes do, as `accelerate launch` starts them."""
HELP = {"--help", "-h"}
HOST = ("--host", "--target.host")
"""Where networks run: of two the last alone would be measured."""
for order, verb in enumerate(VERBS.values()):
    APP.command(verb, sort_key=order, help_epilogue="")
APP["--help"].group = APP["--version"].group = "Options"


def _hosts(argv: Sequence[str]) -> list[str]:
    """What the options in HOST are given."""
    pairs = ((*word.partition("="), after) for word, after in pairwise([*argv, "-"]))
    return [value if equals else after for name, equals, value, after in pairs if name in HOST]


def call(argv: Sequence[str]) -> None:
    """Run the verb that the words name; raises UserError where they are no command."""
    for word in argv:
        need_text(word, "every word of a command")
    with without_user_code() if FLAG in argv else nullcontext():
        _call([word for word in argv if word != FLAG], shlex.join(["htas", *argv]))


def _call(argv: Sequence[str], written: str) -> None:
    """Run the verb; the command is `written` so."""
    verb = argv[0] if argv else ""
    if verb and not verb.startswith("-") and verb not in VERBS:
        raise UserError(text.no_such("verb", verb, VERBS))
    helps = not verb or verb.startswith("-") or bool(HELP & set(argv))
    if helps and not ranks.started_first():
        return  # the first of several processes prints it
    if not helps and verb not in TOGETHER:
        ranks.need_one(f"htas {verb}")
    hosts = _hosts(argv)
    if len(hosts) > 1:
        raise UserError(f"{' and '.join(HOST)} are one option, given twice; name several devices with commas between")
    if not all(host.strip() for host in hosts):
        raise UserError("the host is empty, as a variable may be that is not set; name one, or leave it out")
    overrides, words = split_overrides(argv) if verb in CONFIGURED else ([], list(argv))
    if verb == "doctor":  # it has no configuration, and the options of its target have their names in one, too
        words = [word.replace("--target.", "--", 1) if word.startswith("--target.") else word for word in words]
    columns = os.get_terminal_size().columns if sys.stdout.isatty() else 120  # help is 120 wide, or as the terminal
    console = Console(width=min(columns, 120), highlight=False)
    try:
        command, bound, unparsed = APP.parse_args(words, console=console, exit_on_error=False, print_error=False)
    except cyclopts.CycloptsError as error:
        raise UserError(_sentence(error, verb)) from error
    _check_places(bound)
    _open_folder()
    words_written = {"overrides": overrides, "command": written}
    more = {name: value for name, value in words_written.items() if name in unparsed}
    tensorboard = bound.arguments.get("tensorboard", False)
    recorded = command is not report  # which may be read during a run
    with nullcontext() if helps else ranks.joined(), _record(recorded, tensorboard), users_faults():
        command(*bound.args, **bound.kwargs, **more)
    if verb in CONFIGURED and HELP & set(words):
        print(common_options(words, overrides))


def _check_places(bound: BoundArguments) -> None:
    """Write out `~` in the paths among the arguments; raises UserError for what can be no path."""
    for name, value in bound.arguments.items():
        option = (
            "--" + name.replace("_", "-")
            if bound.signature.parameters[name].kind == Parameter.KEYWORD_ONLY
            else name.upper()
        )
        if isinstance(value, Path):
            bound.arguments[name] = path_of(value, option)
        elif isinstance(value, tuple):
            bound.arguments[name] = tuple(path_of(each, option) if isinstance(each, Path) else each for each in value)


def _open_folder() -> None:
    """Let plug-ins of the user's, such as 'mine:Net', lie in the folder of the command; without code of theirs, not
    even the folder that `python -m htas` puts there."""
    here = Path.cwd()
    if user_code_allowed():
        if str(here) not in sys.path:
            sys.path.append(str(here))
    elif here != ROOT.parent:
        sys.path[:] = [each for each in sys.path if each and Path(each) != here]


def _record(recorded: bool, tensorboard: bool) -> AbstractContextManager[object]:
    """The record of a command; of several processes the first has one, and prints."""
    if not ranks.first():
        return redirect_stdout(StringIO())
    return recording(tensorboard) if recorded else nullcontext()


def split_overrides(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Options of the configuration as `--table.field=value`, and the other words."""
    overrides, others, rest = [], [], list(argv)
    while rest:
        word = rest.pop(0)
        name, equals, _ = word.partition("=")
        if not (name.startswith("--") and ("." in name or name == "--seed")):
            others.append(word)
        elif equals or not rest or rest[0].startswith("--"):
            overrides.append(word)
        else:
            overrides.append(f"{word}={rest.pop(0)}")
    return overrides, others


def _sentence(error: cyclopts.CycloptsError, verb: str) -> str:
    """The sentence of a refusal: the word, the words allowed, and what to do next."""
    if not verb or verb.startswith("-"):
        return text.no_such("verb", verb, VERBS)
    more = f"see htas {verb} --help"
    match error:
        case cyclopts.UnknownOptionError():
            return _no_option(error.token.keyword or error.token.value, verb)
        case cyclopts.UnusedCliTokensError() if error.unused_tokens:
            return f"htas {verb}: unexpected argument {error.unused_tokens[0]!r}; {more}"
        case cyclopts.MissingArgumentError() if error.argument and error.keyword:
            return f"{error.keyword} has no value; {more}"
        case cyclopts.MissingArgumentError() if error.argument:
            return f"the following arguments are required: {error.argument.name}; {more}"
        case cyclopts.CoercionError() if error.argument and error.token:
            name = error.token.keyword or error.argument.name
            return f"{name} must be {allowed(error.argument.hint)}, got {error.token.value!r}; {more}"
    return f"{error}; {more}"


def _no_option(option: str, verb: str) -> str:
    arguments = APP[verb].assemble_argument_collection(default_parameter=APP.default_parameter)
    options = [name for each in arguments if each.parse for name in each.names if name.startswith("-")]
    hint = text.near(option.partition("=")[0], options)
    allowed = [*options, *(["--table.field=value"] if verb in CONFIGURED else [])]
    return f"htas {verb} has no option {option!r}; {hint}it has: {text.listing(allowed)}"
