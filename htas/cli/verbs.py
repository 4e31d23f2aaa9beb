"""The verbs of one run: all stages, each stage alone, and the uses of its folder.

A verb is a plain function; its parameters are the arguments and options of the command.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from htas.cli.experiments import compare, fastest, reproduce, sweep
from htas.cli.help import completion, options
from htas.cli.networks import doctor, inspect, measure
from htas.cli.parameters import Again, Command, Host, Json, Out, Overrides, Source, Tensorboard
from htas.cli.sources import (
    config_file,
    device_name,
    devices_source,
    ensure_stage,
    load_source,
    open_run,
    read_source,
    users_code,
    written_again,
)
from htas.cli.store import store
from htas.console.terminal import show
from htas.errors import UserError
from htas.plugins.trust import without_user_code
from htas.text import listing
from htas.training import ranks


def run(
    config: Source,
    /,
    *,
    overrides: Overrides,
    command: Command,
    tensorboard: Tensorboard = False,
    json: Json = False,
    out: Out = None,
) -> None:
    """Do every stage, from the base network to the report; finished stages are not repeated."""
    if both := devices_source(config, overrides, out):
        ranks.need_one("htas run for several devices")
        settings, folder = both
        from htas.experiments import devices

        page, table = devices.run(settings.config(), folder, command)
        show([table], {"page": str(page)}, json)
        return
    job = open_run(config, overrides, out)
    from htas.run import stages

    _summarize(stages.run_all(job, command), json)


def plan(config: Source, /, *, overrides: Overrides, out: Out = None) -> None:
    """Say which search a run takes and why, and how long each stage takes on this machine, or why it would be refused;
    nothing is written."""
    loaded, folder = load_source(config, overrides, out)
    from htas.run import plan as outlook
    from htas.run.run import Run

    job = Run(loaded, folder)
    outlook.check(job)
    outlook.show(job)


def survey(
    config: Source,
    /,
    *,
    overrides: Overrides,
    command: Command,
    host: Host = None,
    json: Json = False,
    out: Out = None,
    again: Again = False,
) -> None:
    """Measure the latency of every distinct layer at every width, draw the curves, and print the widths chosen."""
    overrides = overrides if host is None else [*overrides, f"--target.host={host}"]
    if both := devices_source(config, overrides, out):
        settings, folder = both
        from htas.experiments import devices

        page, table = devices.survey(settings.config(), folder, command, again)
        show([table], {"page": str(page)}, json)
        return
    job = open_run(config, overrides, out)
    ensure_stage("survey", job, again)
    from htas.run import stages

    page, table = stages.survey_page(job)
    show([table], {"page": str(page)}, json)


def design(config: Source, /, *, overrides: Overrides, out: Out = None, again: Again = False) -> None:
    """Choose the widths that a search may choose from."""
    ensure_stage("design", open_run(config, overrides, out), again)


def calibrate(config: Source, /, *, overrides: Overrides, out: Out = None, again: Again = False) -> None:
    """Measure layers at pairs of widths and whole networks, and fit what predicts a network's latency."""
    ensure_stage("calibrate", open_run(config, overrides, out), again)


def transfer(
    run: Annotated[Path, Parameter(help="the folder of a run that is calibrated")],
    /,
    *,
    overrides: Overrides,
    host: Host = None,
    networks: Annotated[int, Parameter(help="networks that are measured there, 6 to 24 (24)")] = 24,
    json: Json = False,
    out: Annotated[Path | None, Parameter(help="folder of the other device; otherwise RUN-on-HOST")] = None,
    again: Again = False,
) -> None:
    """Measure a few networks on another device, and say whether a run's survey will do for it."""
    if others := [word for word in overrides if not word.startswith("--target.")]:
        raise UserError(f"htas transfer changes the target alone, and {others[0]} is another option; leave it out")
    changes = overrides if host is None else [*overrides, f"--target.host={host}"]
    settings, folder = read_source(run, (), None)
    other, _ = read_source(run, changes, None)
    if run.is_dir() and other.target == settings.target and settings.target.host and host is not None:
        raise UserError(f"{run} was surveyed on {host} itself; name another device with --host, or run htas run {run}")
    if not run.is_dir() or other.target == settings.target:
        raise UserError(
            "htas transfer needs the folder of a run and another device: htas transfer RUN --host ssh://user@board"
        )
    _, place = read_source(run, changes, out, f"-on-{device_name(other.target.host)}")
    from htas.run.run import Run
    from htas.run.run import open_run as opened
    from htas.run.stage import working
    from htas.run.transfer import check_source
    from htas.run.transfer import transfer as judge

    source = Run(settings.config(), folder)
    check_source(source)  # before the folder of the other device is made
    elsewhere = opened(other.config(), place)
    with working(elsewhere):
        path, table = judge(source, elsewhere, networks, again)
    show([table], {"record": str(path)}, json)


def search(
    config: Source, /, *, overrides: Overrides, tensorboard: Tensorboard = False, out: Out = None, again: Again = False
) -> None:
    """Find a fast and accurate network in each space."""
    ensure_stage("search", open_run(config, overrides, out), again)


def train(
    config: Source, /, *, overrides: Overrides, tensorboard: Tensorboard = False, out: Out = None, again: Again = False
) -> None:
    """Train the searched networks and those that they are compared with."""
    ensure_stage("train", open_run(config, overrides, out), again)


def report(
    *runs: Annotated[
        Path,
        Parameter(
            required=True, help="a TOML file or the folder of a run; folders of several runs are compared on one page"
        ),
    ],
    overrides: Overrides,
    json: Json = False,
    out: Out = None,
    again: Again = False,
    user_code: Annotated[
        bool, Parameter(help="import the code of your own that the configuration names; otherwise none is")
    ] = False,
) -> None:
    """Write report.html, report.md and report.json of a run, finished or not; of several runs, the first two."""
    with nullcontext() if user_code else without_user_code():
        _report(runs, overrides, json, out, again)


def _report(runs: Sequence[Path], overrides: Sequence[str], json: bool, out: Path | None, again: bool) -> None:
    if len(runs) == 1:
        folder = out or (runs[0] if runs[0].is_dir() else Path("runs") / runs[0].stem)
        if code := users_code(runs[0], overrides):
            written_again(folder, code)
            _summarize(folder / "report.html", json)
            return
        if both := devices_source(runs[0], overrides, out):
            settings, folder = both
            from htas.experiments import devices

            page, table = devices.report(settings.config(), folder, again)
            show([table], {"page": str(page)}, json)
            return
        job = open_run(runs[0], overrides, out)
        ensure_stage("report", job, again)
        _summarize(job.folder / "report.html", json)
        return
    if overrides or again or json:
        name = overrides[0] if overrides else "--again" if again else "--json"
        raise UserError(f"{name} is for the report of one run, got {len(runs)}")
    if files := [run for run in runs if not run.is_dir()]:
        raise UserError(f"several runs are compared by their folders, and {files[0]} is none")
    if len({run.resolve() for run in runs}) < len(runs):
        raise UserError(f"these are not {len(runs)} different runs: {listing(map(str, runs))}")
    with_code = {run: code for run in runs if config_file(run).exists() and (code := users_code(run, ()))}
    for run, code in with_code.items():
        written_again(run, code)
    from htas.run import stages

    usual = Path("runs") / "-".join(run.resolve().name for run in runs)
    print(stages.compared(runs, out or usual, unchanged=tuple(with_code)))


def export(
    run: Annotated[Path, Parameter(help="the folder of a run")],
    /,
    *,
    to: Annotated[Literal["onnx", "pt2", "openvino", "ncnn", "litert"], Parameter(help="the format")],
    network: Annotated[str, Parameter(help="a network of the report; otherwise the searched one")] = "",
    file: Annotated[Path | None, Parameter(help="where to write it; otherwise into the folder")] = None,
    precision: Annotated[
        Literal["fp32", "int8"], Parameter(help="int8: quantized, with images of the training split")
    ] = "fp32",
) -> None:
    """Write a trained network for another runtime, and check that its outputs are PyTorch's."""
    if run.exists() and not (run / "config.toml").is_file():
        raise UserError(
            f"{run} is not the folder of a run: it has no config.toml; name the folder that htas run prints"
        )
    suffix = {"openvino": ".xml", "ncnn": ".param", "litert": ".tflite"}.get(to, f".{to}")
    if file and file.suffix != suffix:
        raise UserError(
            f"--to {to} writes a file that ends in {suffix}, got --file {file}; name it so, or leave it out"
        )
    if precision == "int8" and to not in ("onnx", "openvino"):
        raise UserError(f"--precision int8 is for --to onnx and --to openvino, got --to {to}")
    from htas.run import stages

    path, difference = stages.export_network(run, suffix, network, file, int8=precision == "int8")
    print(f"{path} (outputs differ from PyTorch's by {difference:.1e} at most)")


def demo(
    *, overrides: Overrides, command: Command, tensorboard: Tensorboard = False, json: Json = False, out: Out = None
) -> None:
    """Run everything once on scikit-learn's digits; nothing is downloaded."""
    with as_file(files("htas.cli") / "demo.toml") as path:
        job = open_run(path, overrides, out)
    from htas.run import stages

    _summarize(stages.run_all(job, command), json)


def watch(
    run: Annotated[
        Path,
        Parameter(
            help="the folder of a run, or of several (of sweep, compare, reproduce): the one that moved last is shown"
        ),
    ],
    /,
    *,
    once: Annotated[bool, Parameter(help="print the progress once and end")] = False,
) -> None:
    """Show how far a run is, from another terminal, until it ends."""
    from htas.console.watch import watch as follow

    last = follow(run, once)
    if not once and (page := last.folder / "report.html").exists():
        _summarize(page, False)


def _summarize(page: Path, json: bool) -> None:
    """Print the answer and the networks of a report, and where it is."""
    from htas.report import read
    from htas.report.summary import summary

    show([summary(read(page.parent))], {"page": str(page)}, json)


VERBS: dict[str, Callable[..., None]] = {
    verb.__name__: verb
    for verb in (
        *(run, plan, survey, design, calibrate, transfer, search, train),
        *(measure, inspect, sweep, fastest, compare, reproduce),
        *(report, export, store, doctor, watch, demo, options, completion),
    )
}
CONFIGURED = [name for name, verb in VERBS.items() if "overrides" in verb.__annotations__]
"""Verbs that take `--table.field=value`."""
