"""The command `htas`: a table from verb to plain function, whose parameters are its arguments."""

import argparse
import errno
import inspect
import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from importlib.resources import as_file, files
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, get_args, get_origin, get_type_hints

from htas import __version__, text

if TYPE_CHECKING:
    from htas.config import Config
    from htas.pipeline import Figures

Source = Annotated[Path, "a TOML file, or the folder of a run"]
Out = Annotated[Path | None, "folder of the run; otherwise runs/ and the name of the file"]
Again = Annotated[bool, "redo the stage though it is finished"]
Overrides = Sequence[str]
"""`--table.field=value` as given; a verb that takes these takes every option of a configuration."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code: 0, 2 for a mistake of the user's, 130 for Ctrl-C."""
    try:
        return _main(list(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:
        print("\nhtas: stopped; the same command continues where this one was", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.ENOSPC, errno.EROFS, errno.EACCES):
            raise
        print(f"htas: {' '.join(_sentence(error).split())}", file=sys.stderr)
        return 2


def run(config: Source, overrides: Overrides, out: Out = None) -> None:
    """Do every stage, from the base network to the report; what is finished already is kept."""
    from htas import pipeline

    place = ["--out", str(out)] if out else []
    command = shlex.join(["htas", "run", str(config), *overrides, *place])
    print(pipeline.run(*_opened(config, overrides, out), command))


def survey(config: Source, overrides: Overrides, out: Out = None, again: Again = False) -> None:
    """Measure the latency of every distinct layer at every width."""
    from htas import pipeline

    pipeline.survey(*_opened(config, overrides, out), again)


def design(config: Source, overrides: Overrides, out: Out = None, again: Again = False) -> None:
    """Choose the widths that a search may choose from."""
    from htas import pipeline

    pipeline.design(*_opened(config, overrides, out), again)


def search(config: Source, overrides: Overrides, out: Out = None, again: Again = False) -> None:
    """Find a fast and accurate network in each space."""
    from htas import pipeline

    pipeline.search(*_opened(config, overrides, out), again)


def train(config: Source, overrides: Overrides, out: Out = None, again: Again = False) -> None:
    """Train the networks found and those they are compared with."""
    from htas import pipeline

    pipeline.train(*_opened(config, overrides, out), again)


def measure(
    networks: Annotated[list[str], "a run folder; or networks such as cifar_resnet:32 or tas:C010-ResNet32"],
    overrides: Overrides,
    runtime: Annotated[str | None, "what runs the networks: eager, onnxruntime, ..."] = None,
    device: Annotated[Literal["cpu", "cuda"] | None, "where they run (cpu)"] = None,
    batch: Annotated[int | None, "images per call (4 on cpu, 1024 on cuda)"] = None,
    threads: Annotated[int | None, "CPU threads (every core)"] = None,
    rounds: Annotated[int | None, "readings of each network (40)"] = None,
    classes: Annotated[int | None, "outputs of each network (10)"] = None,
    json: Annotated[bool, "print JSON instead of a table"] = False,
    out: Out = None,
    again: Again = False,
) -> None:
    """Measure whole networks: those of a run, or any by name."""
    named = {"runtime": runtime, "device": device, "batch": batch, "threads": threads}
    more = {"rounds": rounds, "classes": classes}
    given = {name: value for name, value in {**named, **more}.items() if value is not None}
    if _is_run(networks):
        if given or json:
            name = next(iter(given), "json")
            raise ValueError(f"a run is measured as its configuration says, so leave out --{name}")
        _measure_run(Path(networks[0]), overrides, out, again)
    else:
        if overrides or out or again:
            name = overrides[0] if overrides else "--out" if out else "--again"
            raise ValueError(f"{name} is for measuring a run, and {networks[0]!r} is neither a folder nor a TOML file")
        _measure_named(networks, given, json)


def report(config: Source, overrides: Overrides, out: Out = None, again: Again = False) -> None:
    """Write report.html, report.md and report.json."""
    from htas import pipeline

    opened, folder = _opened(config, overrides, out)
    pipeline.report(opened, folder, again)
    print(folder / "report.html")


def export(
    run: Annotated[Path, "the folder of a run"],
    to: Annotated[Literal["onnx", "pt2"], "the format"],
    network: Annotated[str, "a network of the report; otherwise the one that was found"] = "",
    file: Annotated[Path | None, "where to write it; otherwise into the folder"] = None,
) -> None:
    """Write a trained network for another runtime, and check that its outputs are PyTorch's."""
    from htas import pipeline

    path, difference = pipeline.export_network(run, to, network, file)
    print(f"{path} (outputs differ from PyTorch's by {difference:.1e} at most)")


def demo(overrides: Overrides, out: Out = None) -> None:
    """Run everything once on scikit-learn's digits; nothing is downloaded."""
    from htas import pipeline

    place = ["--out", str(out)] if out else []
    with as_file(files("htas") / "demo.toml") as path:
        config, folder = _opened(path, overrides, out)
    print(pipeline.run(config, folder, shlex.join(["htas", "demo", *overrides, *place])))


VERBS: Mapping[str, Callable[..., None]] = {
    verb.__name__: verb for verb in (run, survey, design, search, train, measure, report, export, demo)
}


def _main(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(_help())
    elif argv[0] == "--version":
        print(f"htas {__version__}")
    elif argv[0] not in VERBS:
        raise ValueError(text.no_such("verb", argv[0], VERBS))
    else:
        _call(VERBS[argv[0]], argv[1:])
    return 0


def _call(verb: Callable[..., None], argv: list[str]) -> None:
    """Run a verb with what the command line says."""
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # a plug-in of the user's, 'mine:Net', is found where the command runs
    configurable = "overrides" in inspect.signature(verb).parameters
    overrides, rest = _split(argv) if configurable else ([], argv)
    parser = _parser(verb)
    if {"-h", "--help"} & set(rest):
        print(_verb_help(parser, configurable, overrides, rest))
        return
    known, unknown = parser.parse_known_intermixed_args(rest)
    if unknown:
        raise ValueError(_no_option(verb, parser, unknown[0], configurable))
    verb(**vars(known), **({"overrides": overrides} if configurable else {}))


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
        raise ValueError(f"{message}; see {self.prog} --help")


def _parser(verb: Callable[..., None]) -> Parser:
    """Arguments from a verb's parameters: those that have a default, and fixed choices, are options."""
    parser = Parser(f"htas {verb.__name__}", description=verb.__doc__, allow_abbrev=False, add_help=False)
    hints = get_type_hints(verb, include_extras=True)
    for name, parameter in inspect.signature(verb).parameters.items():
        if name != "overrides":
            hint, about = get_args(hints[name])
            _add(parser, name, _without_none(hint), about, parameter.default)
    return parser


def _add(parser: Parser, name: str, hint: Any, about: str, default: Any) -> None:
    required = default is inspect.Parameter.empty
    if hint is bool:
        parser.add_argument(f"--{name}", action="store_true", help=about)
    elif get_origin(hint) is Literal:
        parser.add_argument(
            f"--{name}", choices=get_args(hint), required=required, default=None if required else default, help=about
        )
    elif not required:
        parser.add_argument(f"--{name}", type=hint, default=default, metavar=name.upper(), help=about)
    elif get_origin(hint) is list:
        parser.add_argument(name, nargs="+", metavar=name.upper(), help=about)
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
    near = get_close_matches(given.partition("=")[0], known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    rest = [*known, "--table.field=value"] if configurable else known
    return f"htas {verb.__name__} has no option {given!r}; {hint}it has: {text.listing(rest)}"


def _help() -> str:
    """Every verb with one line."""
    width = max(map(len, VERBS)) + 2
    verbs = "\n".join(f"  {name:<{width}}{_first_line(verb)}" for name, verb in VERBS.items())
    return (
        "htas: a PyTorch network and a machine in, a measured, faster network out.\n\n"
        f"{verbs}\n\n"
        "htas VERB --help says what a verb takes; htas run --help also documents every option of a configuration.\n"
        "htas --version says which version this is."
    )


def _first_line(verb: Callable[..., None]) -> str:
    return inspect.cleandoc(verb.__doc__ or "").splitlines()[0]


def _verb_help(parser: Parser, configurable: bool, overrides: Sequence[str], rest: Sequence[str]) -> str:
    if not configurable:
        return parser.format_help()
    from htas.config import explain

    named = [_file(Path(word)) for word in rest if Path(word).is_dir() or word.endswith(".toml")]
    intro = "Options of the configuration: in the TOML file under [table], or here as --table.field=value\n"
    return f"{parser.format_help()}\n{intro}\n{explain(named[0] if named else None, overrides)}"


def _opened(source: Path, overrides: Sequence[str], out: Path | None) -> tuple["Config", Path]:
    """The configuration of a file or run folder, and the folder to work in, which it must fit."""
    from htas import pipeline
    from htas.config import load

    path = _file(source)
    if source.is_dir() and not path.exists():
        raise ValueError(f"{source} is not the folder of a run: it has no config.toml; name a TOML file first")
    folder = out or (source if source.is_dir() else Path("runs") / source.stem)
    config = load(path, overrides)
    pipeline.open_run(config, folder)
    return config, folder


def _file(source: Path) -> Path:
    """The TOML file of a source."""
    return source / "config.toml" if source.is_dir() else source


def _is_run(networks: Sequence[str]) -> bool:
    return len(networks) == 1 and (Path(networks[0]).is_dir() or networks[0].endswith(".toml"))


def _measure_run(source: Path, overrides: Sequence[str], out: Path | None, again: bool) -> None:
    from htas import pipeline

    pipeline.measure(*_opened(source, overrides, out), again)


def _measure_named(networks: Sequence[str], given: Mapping[str, Any], as_json: bool) -> None:
    from htas import pipeline
    from htas.target import Target

    target = Target(**{name: value for name, value in given.items() if name not in ("rounds", "classes")})
    rounds, classes = given.get("rounds", 40), given.get("classes", 10)
    if rounds < 1 or classes < 1:
        raise ValueError(f"--rounds and --classes must be 1 or more, got {rounds} and {classes}")
    figures = pipeline.measure_networks(networks, target, rounds, classes)
    print(json.dumps([_plain(each) for each in figures], indent=1) if as_json else _table(figures))


def _plain(figures: "Figures") -> dict[str, Any]:
    """One network as JSON values: milliseconds and millions."""
    latency = figures.latency
    return {
        "network": figures.network,
        "runtime": figures.runtime,
        "latency_ms": {
            "median": latency.median * 1e3,
            "min": latency.minimum * 1e3,
            "spread": latency.spread * 1e3,
        },
        "mmacs": figures.macs / 1e6,
        "mparams": figures.params / 1e6,
    }


def _table(figures: Sequence["Figures"]) -> str:
    """One line per network, in columns, and below what casts doubt on a reading."""
    rows: list[tuple[str, ...]] = [("network", "runtime", "median", "min", "spread", "MACs", "parameters")]
    for each in figures:
        latency = each.latency
        times = [text.milliseconds(seconds) for seconds in (latency.median, latency.minimum, latency.spread)]
        rows.append((each.network, each.runtime, *times, text.millions(each.macs), text.millions(each.params)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if index < 2 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    doubts = [f"{each.network}: {doubt}" for each in figures for doubt in each.latency.doubts]
    return "\n".join([*lines, *doubts])


def _sentence(error: Exception) -> str:
    if not isinstance(error, OSError):
        return str(error)
    where = error.filename or "the disk"
    return f"{where} cannot be used: {os.strerror(error.errno or 0)}; free some space or name another folder with --out"
