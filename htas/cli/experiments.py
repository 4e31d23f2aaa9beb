"""The verbs of several runs."""

from json import dumps
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from htas.cli.parameters import Command, Device, Json, Out, Overrides, Source, Workers
from htas.cli.sources import config_file, read_source
from htas.console.terminal import show
from htas.errors import UserError

BUDGETS = "80%,60%,40%"
"""Budgets of `htas sweep` unless others are named."""


def sweep(
    config: Source,
    /,
    *,
    overrides: Overrides,
    command: Command,
    budgets: Annotated[str, Parameter(help=f"budgets of latency, with commas between; otherwise {BUDGETS}")] = BUDGETS,
    share: Annotated[
        bool, Parameter(help="begin later searches with the first one's supernet, in half the epochs")
    ] = False,
    workers: Workers = "",
    json: Json = False,
    out: Out = None,
) -> None:
    """Find a network for each of several budgets, from one survey: a front of accuracy and latency."""
    settings, folder = read_source(config, overrides, out, "-sweep", limited=not share)
    from htas.experiments.plans import Parallel, SweepPlan, check_folder

    plan = SweepPlan(tuple(text.strip() for text in budgets.split(",") if text.strip()), share)
    parallel = Parallel(workers)
    check_folder(folder)
    from htas.experiments import budgets as experiment
    from htas.experiments.at_once import tasks_of

    page, table = experiment.sweep(settings.config(), folder, plan, command, tasks_of(parallel.crew))
    show([table], {"page": str(page)}, json)


def fastest(
    config: Source,
    /,
    *,
    overrides: Overrides,
    command: Command,
    accuracy_floor: Annotated[
        str,
        Parameter(
            help='accuracy to keep, in points below the base network ("-0.3"), or absolute ("93.5%"), of networks '
            "trained on one part of the training images and judged on the other (split.validation)"
        ),
    ] = "",
    seeds: Annotated[int, Parameter(help="trainings of each network, whose mean accuracy counts (3)")] = 3,
    tries: Annotated[int, Parameter(help="budgets tried at most, each half as far from the last (4)")] = 4,
    workers: Annotated[
        str,
        Parameter(
            help="who does the trainings of a network at the same time: local:N, ray, or HOST:PORT of a Ray cluster; "
            "budgets follow from each other"
        ),
    ] = "",
    json: Json = False,
    out: Out = None,
) -> None:
    """Find the fastest network that keeps an accuracy."""
    settings, folder = read_source(config, overrides, out, "-fastest", limited=True)
    from htas.experiments.plans import FastestPlan, Parallel, check_folder

    plan, parallel = FastestPlan(accuracy_floor, seeds, tries), Parallel(workers)
    plan.check(settings)
    check_folder(folder)
    from htas.experiments import budgets as experiment
    from htas.experiments.at_once import tasks_of

    page, table = experiment.fastest(settings.config(), folder, plan, command, tasks_of(parallel.crew))
    show([table], {"page": str(page)}, json)


def compare(
    config: Source,
    /,
    *arms: Annotated[
        Path, Parameter(required=True, help="TOML files with a table for every arm: options that differ, or a network")
    ],
    overrides: Overrides,
    command: Command,
    seeds: Annotated[int, Parameter(help="trainings of each arm (3)")] = 3,
    against: Annotated[str, Parameter(help="the arm that others are compared with; otherwise the first")] = "",
    only: Annotated[bool, Parameter(help="run nothing, and print the table of finished trainings")] = False,
    workers: Workers = "",
    list: Annotated[
        bool, Parameter(help="run nothing, and print a command for each network to be found and trained")
    ] = False,
    trial: Annotated[str, Parameter(help="find and train this one network alone, of those that --list prints")] = "",
    json: Json = False,
    out: Out = None,
) -> None:
    """Train spaces, strategies and plain networks alike, over seeds, and compare them in one table."""
    _, folder = read_source(config, overrides, out, f"-{arms[0].stem}")
    from htas.experiments import arm_tables
    from htas.experiments.plans import Parallel, check_folder

    source, tables = config_file(config), arm_tables.read_arms(*arms)
    arm_tables.check(source, overrides, tables, seeds, against)
    check_folder(folder)
    parallel = Parallel(workers, list, trial, only)
    from htas.experiments import compare as experiment
    from htas.experiments import trials as processes
    from htas.experiments.arms import arm_of

    trials = experiment.Trials(source, tuple(overrides), tuple(map(arm_of, tables)), seeds, folder)
    if parallel.list:
        lines = processes.commands(trials, command)
        print(dumps(lines) if json else "".join(f"{line}\n" for line in lines), end="")
    elif parallel.trial:
        processes.run_alone(trials, parallel.trial)
    else:
        page, table = experiment.compare(trials, against, only, processes.workers_of(parallel.crew))
        show([table], {"page": str(page)}, json)


def reproduce(
    *what: Annotated[
        str, Parameter(required=True, help="table2, fig2, fig3, table3, table4, table5, motivation, int8, or all")
    ],
    overrides: Overrides,
    command: Command,
    device: Device = None,
    quick: Annotated[bool, Parameter(help="the shortest searches and trainings that still have every step")] = False,
    full: Annotated[bool, Parameter(help="the paper's length; otherwise a short one, which is usual on a CPU")] = False,
    seeds: Annotated[int, Parameter(help="searches and trainings of each row (1)")] = 1,
    depths: Annotated[
        str, Parameter(help="ResNets of Tables 3 and 4 that are trained, with commas between (32)")
    ] = "32",
    workers: Workers = "",
    json: Json = False,
    second: Annotated[
        str, Parameter(help="Table 5's other target, as runtime=onnxruntime,threads=1 (that, on CUDA the CPU)")
    ] = "",
    out: Annotated[Path | None, Parameter(help="folder of all results; otherwise runs/reproduce")] = None,
) -> None:
    """Make the paper's tables and figures again on this machine, each next to the printed one."""
    if quick and full:
        raise UserError("--quick and --full are two lengths; give one of them")
    if not all(depth.strip().isdecimal() for depth in depths.split(",")):
        raise UserError(f"--depths must be numbers of layers with commas between, such as 110,56,32, got {depths!r}")
    where = device or "cpu"
    length = "quick" if quick else "full" if full or where == "cuda" else "short"
    from htas.experiments.plans import Parallel, check_folder
    from htas.experiments.reproduce.plan import Plan

    plan = Plan(
        folder=out or Path("runs") / "reproduce",
        command=command,
        device=where,
        length=length,
        seeds=seeds,
        depths=tuple(int(depth) for depth in depths.split(",")),
        second=second,
        overrides=tuple(overrides),
        parallel=Parallel(workers),
    )
    names = plan.items(what)
    check_folder(plan.folder)
    from htas.experiments.reproduce import items

    page, tables, reasons = items.reproduce(names, plan)
    if tables:
        show(tables, {"page": str(page)}, json)
    if reasons:
        raise UserError("; ".join(reasons))
