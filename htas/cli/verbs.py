"""The command `htas`: a table from verb to plain function, whose parameters are its arguments."""

import errno
import os
import select
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from importlib.resources import as_file, files
from inspect import cleandoc, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from htas import text
from htas.cli.parser import Parser, _no_option, _parser, _positional, _split
from htas.cli.tables import _as_json, _no_survey, _plain, _printed, _summary, _survey, _surveys, _table
from htas.console.record import recording
from htas.console.terminal import show
from htas.errors import UserError
from htas.files import __version__

if TYPE_CHECKING:
    from htas.run.config import Config
    from htas.run.run import Run
    from htas.timing.store import Store
    from htas.timing.target import Target


Source = Annotated[Path, "a TOML file, or the folder of a run"]


Out = Annotated[Path | None, "folder of the run; otherwise runs/ and the name of the file"]


Json = Annotated[bool, "print JSON instead of a table"]


Tensorboard = Annotated[bool, "write scalars of searches and trainings into the run's folder, for TensorBoard"]


Again = Annotated[bool, "redo the stage though it is finished"]


Runtime = Annotated[str | None, "what runs the networks: eager, onnxruntime, ..."]


Device = Annotated[Literal["cpu", "cuda"] | None, "where they run (cpu)"]


Batch = Annotated[int | None, "images per call (4 on cpu, 1024 on cuda)"]


Threads = Annotated[int | None, "CPU threads (every core)"]


Precision = Annotated[Literal["fp32", "bf16", "fp16"] | None, "number format (fp32)"]


Image = Annotated[
    str | None,
    "channels, height and width of an image (3,224,224; 3,32,32 of CIFAR's networks); further inputs behind a slash",
]


Overrides = Sequence[str]
"""`--table.field=value` as given; a verb that takes these takes every option of a configuration."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code: 0, 2 for a mistake of the user's, 130 for Ctrl-C."""
    try:
        code = _main(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        if not _reader_left():
            raise
        return 0
    except KeyboardInterrupt:
        print("\nhtas: stopped; the same command continues where this one was", file=sys.stderr)
        return 130
    except (UserError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.ENOSPC, errno.EROFS, errno.EACCES):
            raise
        print(f"htas: {' '.join(_sentence(error).split())}", file=sys.stderr)
        return 2


def run(
    config: Source, overrides: Overrides, tensorboard: Tensorboard = False, json: Json = False, out: Out = None
) -> None:
    """Do every stage, from the base network to the report; what is finished already is kept."""
    from htas.run import stages as pipeline

    place = ["--out", str(out)] if out else []
    command = shlex.join(["htas", "run", str(config), *overrides, *place])
    _summary(pipeline.run(_opened(config, overrides, out), command), json)


def survey(config: Source, overrides: Overrides, json: Json = False, out: Out = None, again: Again = False) -> None:
    """Measure the latency of every distinct layer at every width, draw the curves, and print the widths chosen."""
    from htas.run import stages as pipeline
    from htas.run.stage import ensure

    opened = _opened(config, overrides, out)
    ensure(opened, pipeline.SURVEY, again)
    page, table = pipeline.survey_page(opened)
    show([table], {"page": str(page)}, json)


def design(config: Source, overrides: Overrides, out: Out = None, again: Again = False) -> None:
    """Choose the widths that a search may choose from."""
    from htas.run import stages as pipeline
    from htas.run.stage import ensure

    ensure(_opened(config, overrides, out), pipeline.DESIGN, again)


def calibrate(config: Source, overrides: Overrides, out: Out = None, again: Again = False) -> None:
    """Measure layers at pairs of widths and whole networks, and fit what predicts a network's latency."""
    from htas.run import stages as pipeline
    from htas.run.stage import ensure

    ensure(_opened(config, overrides, out), pipeline.CALIBRATE, again)


def search(
    config: Source, overrides: Overrides, tensorboard: Tensorboard = False, out: Out = None, again: Again = False
) -> None:
    """Find a fast and accurate network in each space."""
    from htas.run import stages as pipeline
    from htas.run.stage import ensure

    ensure(_opened(config, overrides, out), pipeline.SEARCH, again)


def train(
    config: Source, overrides: Overrides, tensorboard: Tensorboard = False, out: Out = None, again: Again = False
) -> None:
    """Train the networks found and those they are compared with."""
    from htas.run import stages as pipeline
    from htas.run.stage import ensure

    ensure(_opened(config, overrides, out), pipeline.TRAIN, again)


def measure(
    networks: Annotated[list[str], "a run folder; or networks such as cifar_resnet:32, tas:C010-ResNet32, my.onnx"],
    overrides: Overrides,
    runtime: Runtime = None,
    device: Device = None,
    batch: Batch = None,
    threads: Threads = None,
    precision: Precision = None,
    rounds: Annotated[int | None, "times that each network's turn comes (40); it is read three times then"] = None,
    image: Image = None,
    classes: Annotated[int | None, "outputs of each network (10)"] = None,
    metrics: Annotated[str | None, "further metrics, with commas between: energy, memory, your.module:Metric"] = None,
    json: Annotated[bool, "print JSON instead of a table"] = False,
    out: Out = None,
    again: Again = False,
) -> None:
    """Measure whole networks: those of a run, or any by name."""
    named = {"runtime": runtime, "device": device, "batch": batch, "threads": threads, "precision": precision}
    more = {"rounds": rounds, "image": image, "classes": classes, "metrics": metrics}
    given = {name: value for name, value in {**named, **more}.items() if value is not None}
    if _is_run(networks):
        if given or json:
            name = next(iter(given), "json")
            raise UserError(f"a run is measured as its configuration says, so leave out --{name}")
        _measure_run(Path(networks[0]), overrides, out, again)
    else:
        if overrides or out or again:
            name = overrides[0] if overrides else "--out" if out else "--again"
            raise UserError(f"{name} is for measuring a run, and {networks[0]!r} is neither a folder nor a TOML file")
        _measure_named(networks, given, json)


def inspect(
    network: Annotated[
        str, "a TOML file or run folder; or a network such as imagenet_resnet:50 or custom:my_nets:make"
    ],
    overrides: Overrides,
    runtime: Runtime = None,
    device: Device = None,
    batch: Batch = None,
    threads: Threads = None,
    precision: Precision = None,
    image: Image = None,
    classes: Annotated[int | None, "outputs of the network (10)"] = None,
    json: Json = False,
    out: Out = None,
) -> None:
    """Show what is free in a network, what is frozen and why, where its time goes, and what each site could save."""
    from htas import files as htas_files
    from htas.run import named as run_named
    from htas.run import run as run_run

    named = {"runtime": runtime, "device": device, "batch": batch, "threads": threads, "precision": precision}
    given = {name: value for name, value in {**named, "image": image, "classes": classes}.items() if value is not None}
    if _is_run([network]):
        if given:
            raise UserError(f"a configuration says what its network and target are, so leave out --{next(iter(given))}")
        config, folder = _loaded(Path(network), overrides, out)
        job = run_run.Run(config, folder)
        page, table = run_named.inspect(job.network, job.target, config.family.title, folder)
    else:
        if overrides:
            raise UserError(
                f"{overrides[0]} is for a configuration, and {network!r} is neither a folder nor a TOML file"
            )
        target = _target({**named, "shapes": _images(image, network)})
        folder = out or Path("runs") / f"inspect-{htas_files.slug(network)}"
        page, table = run_named.inspect_named(network, target, classes or 10, folder)
    show([table], {"page": str(page)}, json)


def sweep(
    config: Source,
    overrides: Overrides,
    budgets: Annotated[str, "budgets of latency, with commas between"] = "80%,60%,40%",
    share: Annotated[bool, "begin later searches with the first one's supernet, in half the epochs"] = False,
    json: Json = False,
    out: Out = None,
) -> None:
    """Find a network for each of several budgets, from one survey: a front of accuracy and latency."""
    from htas.experiments import sweep as sweeping

    opened, folder = _loaded(config, overrides, out, "-sweep")
    more = [*(["--share"] if share else []), *(["--out", str(out)] if out else [])]
    command = shlex.join(["htas", "sweep", str(config), *overrides, "--budgets", budgets, *more])
    named = [text.strip() for text in budgets.split(",") if text.strip()]
    page, table = sweeping.sweep(opened, folder, named, command, share)
    show([table], {"page": str(page)}, json)


def fastest(config: Source, overrides: Overrides, json: Json = False, out: Out = None) -> None:
    """Find the fastest network that keeps an accuracy: --constraints.accuracy_floor."""
    from htas.experiments import fastest as experiments_fastest

    opened, folder = _loaded(config, overrides, out, "-fastest")
    place = ["--out", str(out)] if out else []
    page, table = experiments_fastest.fastest(
        opened, folder, shlex.join(["htas", "fastest", str(config), *overrides, *place])
    )
    show([table], {"page": str(page)}, json)


def compare(
    config: Source,
    arms: Annotated[list[Path], "TOML files with a table for every arm: options that differ, or a network"],
    overrides: Overrides,
    seeds: Annotated[int, "trainings of each arm (3)"] = 3,
    against: Annotated[str, "the arm that others are set beside; otherwise the first"] = "",
    only: Annotated[bool, "run nothing: the table of what is there"] = False,
    json: Json = False,
    out: Out = None,
) -> None:
    """Train spaces, strategies and plain networks alike, over seeds, and set them beside each other in one table."""
    from htas.experiments import arms as experiments_arms
    from htas.experiments import compare as comparing

    _, folder = _loaded(config, overrides, out, f"-{arms[0].stem}")
    page, table = comparing.compare(
        _file(config), overrides, experiments_arms.read_arms(*arms), seeds, folder, against, only
    )
    show([table], {"page": str(page)}, json)


def reproduce(
    what: Annotated[list[str], "table2, fig2, fig3, table3, table4, table5, motivation, or all"],
    overrides: Overrides,
    device: Device = None,
    quick: Annotated[bool, "the shortest searches and trainings that still have every step"] = False,
    full: Annotated[bool, "the paper's length; otherwise a short one, which is usual on a CPU"] = False,
    seeds: Annotated[int, "searches and trainings of each row (1)"] = 1,
    depths: Annotated[str, "ResNets of Tables 3 and 4 that are trained, with commas between"] = "32",
    json: Json = False,
    second: Annotated[str, "Table 5's other target, as runtime=onnxruntime,threads=1 (that, on CUDA the CPU)"] = "",
    out: Annotated[Path | None, "folder of all that is made; otherwise runs/reproduce"] = None,
) -> None:
    """Make the paper's tables and figures again on this machine, each beside what is printed there."""
    from htas.experiments.reproduce import reproduce as again
    from htas.experiments.reproduce._plan import Plan

    if quick and full:
        raise UserError("--quick and --full are two lengths; give one of them")
    if not all(depth.strip().isdecimal() for depth in depths.split(",")):
        raise UserError(f"--depths must be numbers of layers with commas between, such as 110,56,32, got {depths!r}")
    where = device or "cpu"
    length = "quick" if quick else "full" if full or where == "cuda" else "short"
    options = {"device": device, "seeds": None if seeds == 1 else seeds, "second": second or None, "out": out}
    given = [f"--{name}={value}" for name, value in options.items() if value is not None]
    given += [*(["--quick"] if quick else []), *(["--full"] if full else [])]
    given += [f"--depths={depths}"] if depths != "32" else []
    page, tables, reasons = again(what, Plan(
        folder=out or Path("runs") / "reproduce",
        command=shlex.join(["htas", "reproduce", *what, *overrides, *given]),
        device=where,
        length=length,
        seeds=seeds,
        depths=tuple(int(depth) for depth in depths.split(",")),
        second=second,
        overrides=tuple(overrides),
    ))  # fmt: skip
    if tables:
        show(tables, {"page": str(page)}, json)
    if reasons:
        raise UserError("; ".join(reasons))


def report(
    runs: Annotated[list[Path], "a TOML file or the folder of a run; folders of several runs are compared on one page"],
    overrides: Overrides,
    json: Json = False,
    out: Out = None,
    again: Again = False,
) -> None:
    """Write report.html, report.md and report.json of what is there; of several runs, report.html and report.md."""
    from htas.run import stages as pipeline
    from htas.run.stage import ensure

    if len(runs) == 1:
        opened = _opened(runs[0], overrides, out)
        ensure(opened, pipeline.REPORT, again)
        _summary(opened.folder / "report.html", json)
        return
    if overrides or again or json:
        name = overrides[0] if overrides else "--again" if again else "--json"
        raise UserError(f"{name} is for the report of one run, got {len(runs)}")
    if files := [run for run in runs if not run.is_dir()]:
        raise UserError(f"several runs are compared by their folders, and {files[0]} is none")
    usual = Path("runs") / "-".join(run.resolve().name for run in runs)
    print(pipeline.compared(runs, out or usual))


def export(
    run: Annotated[Path, "the folder of a run"],
    to: Annotated[Literal["onnx", "pt2", "openvino"], "the format"],
    network: Annotated[str, "a network of the report; otherwise the one that was found"] = "",
    file: Annotated[Path | None, "where to write it; otherwise into the folder"] = None,
) -> None:
    """Write a trained network for another runtime, and check that its outputs are PyTorch's."""
    from htas.run import stages as pipeline

    path, difference = pipeline.export_network(run, to, network, file)
    print(f"{path} (outputs differ from PyTorch's by {difference:.1e} at most)")


def store(
    action: Annotated[Literal["ls", "show", "export", "import", "forget"], "one of those above"],
    name: Annotated[str, "the survey or the file"] = "",
    /,
    path: Annotated[Path | None, "the store's file; otherwise $HTAS_STORE, or this user's own"] = None,
    json: Annotated[bool, "print JSON instead of a table (ls, show)"] = False,
    yes: Annotated[bool, "really forget all"] = False,
) -> None:
    """List, show, move or forget the measurements kept from survey to survey.

    ls                  every survey in the store, the newest first
    show SURVEY         the layers of one survey
    export FILE         write all readings to a .csv or .parquet file, exactly
    import FILE         add the readings of such a file; what is there already is not doubled
    forget SURVEY|all   remove a survey, all surveys of a place, or, with --yes, everything
    """
    from htas.timing.store import Store

    _check_store(action, name, json, yes)
    opened = Store(path) if path else Store()
    match action:
        case "ls":
            _printed(_surveys(opened, json))
        case "show":
            _printed(_survey(opened, name, json))
        case "export":
            print(f"{text.plural(opened.export(Path(name)), 'layer')} written to {name}")
        case "import":
            print(f"{text.plural(opened.import_(Path(name)), 'new layer')} from {name} added to {opened.path}")
        case "forget":
            print(f"{text.plural(_forget(opened, name), 'layer')} removed from {opened.path}")


def doctor(
    runtime: Runtime = None,
    device: Device = None,
    batch: Batch = None,
    threads: Threads = None,
    precision: Precision = None,
    json: Annotated[bool, "print JSON instead of lines"] = False,
) -> None:
    """Say what this machine is, how noisy it is now, and whether a survey started now would be decided."""
    from htas.cli.doctor import examine

    findings = examine(
        _target({"runtime": runtime, "device": device, "batch": batch, "threads": threads, "precision": precision})
    )
    print(_as_json(findings.json()) if json else "\n".join(findings.lines()))


def demo(overrides: Overrides, tensorboard: Tensorboard = False, json: Json = False, out: Out = None) -> None:
    """Run everything once on scikit-learn's digits; nothing is downloaded."""
    from htas.run import stages as pipeline

    place = ["--out", str(out)] if out else []
    with as_file(files("htas.cli") / "demo.toml") as path:
        opened = _opened(path, overrides, out)
    _summary(pipeline.run(opened, shlex.join(["htas", "demo", *overrides, *place])), json)


def watch(
    run: Annotated[Path, "the folder of a run, or of several (of sweep, compare, reproduce): the one that moved last"],
    once: Annotated[bool, "say how far it is and end"] = False,
) -> None:
    """Show how far a run is, from another terminal, until it ends."""
    from htas.console.watch import watch as follow

    last = follow(run, once)
    if not once and (report := last.folder / "report.html").exists():
        _summary(report, False)


VERBS: Mapping[str, Callable[..., None]] = {
    verb.__name__: verb
    for verb in (
        run,
        survey,
        design,
        calibrate,
        search,
        train,
        measure,
        inspect,
        sweep,
        fastest,
        compare,
        reproduce,
        report,
        export,
        store,
        doctor,
        watch,
        demo,
    )
}


def _reader_left() -> bool:
    """Whether who reads the output has read enough, as `head` does; nothing is written then any more."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)  # errors are told in any case
    left = any(event & select.POLLERR for _, event in output.poll(0))
    if left:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains when it flushes
    return left


def _main(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(_help())
    elif argv[0] == "--version":
        print(f"htas {__version__}")
    elif argv[0] not in VERBS:
        raise UserError(text.no_such("verb", argv[0], VERBS))
    else:
        _call(VERBS[argv[0]], argv[1:])
    return 0


def _call(verb: Callable[..., None], argv: list[str]) -> None:
    """Run a verb with what the command line says."""
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # a plug-in of the user's, 'mine:Net', is found where the command runs
    configurable = "overrides" in signature(verb).parameters
    overrides, rest = _split(argv) if configurable else ([], argv)
    parser = _parser(verb)
    if {"-h", "--help"} & set(rest):
        print(_verb_help(parser, configurable, overrides, rest))
        return
    known, unknown = parser.parse_known_intermixed_args(rest)
    if unknown:
        raise UserError(_no_option(verb, parser, unknown[0], configurable))
    values = {**vars(known), **({"overrides": overrides} if configurable else {})}
    first = [values.pop(name) for name in _positional(verb)]
    tensorboard = bool(values.get("tensorboard"))  # which a verb only has so that it is known
    with nullcontext() if verb is report else recording(tensorboard):  # a report may be looked at while a run works
        verb(*first, **values)


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
    return cleandoc(verb.__doc__ or "").splitlines()[0]


def _verb_help(parser: Parser, configurable: bool, overrides: Sequence[str], rest: Sequence[str]) -> str:
    if not configurable:
        return parser.format_help()
    from htas.run.config import explain

    named = [_file(Path(word)) for word in rest if Path(word).is_dir() or word.endswith(".toml")]
    intro = "Options of the configuration: in the TOML file under [table], or here as --table.field=value\n"
    return f"{parser.format_help()}\n{intro}\n{explain(named[0] if named else None, overrides)}"


def _opened(source: Path, overrides: Sequence[str], out: Path | None) -> "Run":
    """The run of a file or run folder, in the folder to work in, which it must fit."""
    from htas.run import folder as run_folder

    return run_folder.open_run(*_loaded(source, overrides, out))


def _loaded(source: Path, overrides: Sequence[str], out: Path | None, beside: str = "") -> tuple["Config", Path]:
    """The configuration of a file or run folder, and the folder to work in, not looked at; one `beside` a run's own."""
    from htas.run.config import load

    path = _file(source)
    if source.is_dir() and not path.exists():
        raise UserError(f"{source} is not the folder of a run: it has no config.toml; name a TOML file first")
    usual = source if source.is_dir() else Path("runs") / source.stem
    if beside:
        named = usual if usual.name.strip(".") else Path(os.path.abspath(usual))  # `.` has no name
        usual = named.with_name(named.name + beside)
    return load(path, overrides), out or usual


def _file(source: Path) -> Path:
    """The TOML file of a source."""
    return source / "config.toml" if source.is_dir() else source


def _is_run(networks: Sequence[str]) -> bool:
    return len(networks) == 1 and (Path(networks[0]).is_dir() or networks[0].endswith(".toml"))


def _measure_run(source: Path, overrides: Sequence[str], out: Path | None, again: bool) -> None:
    from htas.run import stages as pipeline
    from htas.run.stage import ensure

    ensure(_opened(source, overrides, out), pipeline.MEASURE, again)


Shapes = tuple[tuple[int, ...], ...]


def _images(text: str | None, network: str) -> Shapes:
    """`3,224,224` as numbers, `3,64,64/8` as those of two inputs; otherwise what the network is usually given."""
    if text is None:
        side = 32 if network.startswith(("cifar_resnet", "tas:")) else 224
        return ((3, side, side),)
    inputs = [part.split(",") for part in text.split("/")]
    sizes = [size.strip() for part in inputs for size in part]
    if len(inputs[0]) != 3 or not all(size.isdecimal() and int(size) for size in sizes):
        raise UserError(
            "--image must be channels, height and width with commas between, such as 3,224,224 (with further inputs "
            f"behind a slash, 3,224,224/8); got {text!r}"
        )
    return tuple(tuple(map(int, part)) for part in inputs)


def _target(given: Mapping[str, Any]) -> "Target":
    """A target with what was given, and the defaults for the rest."""
    from htas.timing.target import Target

    return Target(**{name: value for name, value in given.items() if value is not None})


def _measure_named(networks: Sequence[str], given: Mapping[str, Any], as_json: bool) -> None:
    from htas.run import named as run_named

    names = ("runtime", "device", "batch", "threads", "precision")
    shapes = {_images(given.get("image"), network) for network in networks if not network.endswith(".onnx")}
    if len(shapes) > 1:
        raise UserError("these networks usually have images of different sizes; say which with --image, as 3,224,224")
    named = {name: given.get(name) for name in names}
    target = _target({**named, "shapes": shapes.pop() if shapes else None})
    rounds, classes = given.get("rounds", 40), given.get("classes", 10)
    if rounds < 1 or classes < 1:
        raise UserError(f"--rounds and --classes must be 1 or more, got {rounds} and {classes}")
    others = [name.strip() for name in (given.get("metrics") or "").split(",") if name.strip()]
    figures = run_named.measure_networks(networks, target, rounds, classes, others)
    if as_json:
        print(_as_json([_plain(each) for each in figures]))
    else:
        show([_table(figures)], {}, False)


def _check_store(action: str, name: str, json: bool, yes: bool) -> None:
    """Raise UserError where an action lacks what it needs, or has what it would ignore."""
    needs = {"ls": "", "show": "a survey", "export": "a file", "import": "a file", "forget": "a survey, or all"}[action]
    if needs and not name:
        raise UserError(f"htas store {action} needs {needs}; see htas store --help")
    if name and not needs:
        raise UserError(f"htas store {action} has no use for {name!r}; htas store show {name} shows one survey")
    if json and action not in ("ls", "show"):
        raise UserError(f"--json is for htas store ls and show, so leave it out of htas store {action}")
    if yes and action != "forget":
        raise UserError(f"--yes is for htas store forget, so leave it out of htas store {action}")
    if action == "forget" and name == "all" and not yes:
        raise UserError("htas store forget all removes every measurement; add --yes if you mean it")


def _forget(opened: "Store", name: str) -> int:
    removed = opened.forget_all() if name == "all" else opened.forget(name)
    if not removed and name != "all":
        raise UserError(_no_survey(opened, name))
    return removed


def _sentence(error: Exception) -> str:
    if not isinstance(error, OSError):
        return str(error)
    where = error.filename or "the disk"
    return f"{where} cannot be used: {os.strerror(error.errno or 0)}; free some space or name another folder with --out"
