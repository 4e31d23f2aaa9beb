"""The verbs that look at networks by name, and at this machine."""

from collections.abc import Sequence
from dataclasses import replace
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from htas import plugins, text
from htas.cli.parameters import DEFAULT_TARGET, Again, Image, Json, Out, Overrides, TargetOptions, image_shapes
from htas.cli.sources import ensure_stage, is_run, load_source, open_run
from htas.console.terminal import show
from htas.errors import UserError
from htas.files import JsonObject, slug
from htas.timing.remote.address import short_names

if TYPE_CHECKING:
    from htas.run.networks import Figures


def measure(
    *networks: Annotated[
        str,
        Parameter(required=True, help="a run folder; or networks such as cifar_resnet:32, tas:C010-ResNet32, my.onnx"),
    ],
    overrides: Overrides,
    target: TargetOptions = DEFAULT_TARGET,
    rounds: Annotated[int | None, Parameter(help="measurement rounds (40), three readings each")] = None,
    image: Image = None,
    classes: Annotated[int | None, Parameter(help="outputs of each network (10)")] = None,
    metrics: Annotated[
        str | None, Parameter(help="further metrics, with commas between: energy, memory, your.module:Metric")
    ] = None,
    json: Json = False,
    out: Out = None,
    again: Again = False,
) -> None:
    """Measure whole networks: those of a run, or any by name."""
    flags = _flags(target, rounds=rounds, image=image, classes=classes, metrics=metrics)
    if len(networks) == 1 and is_run(networks[0]):
        if flags or json:
            name = flags[0] if flags else "json"
            elsewhere = "; to measure its network elsewhere, write it by htas export, and measure that .onnx file"
            raise UserError(
                f"a run is measured as its configuration says, so leave out --{name}"
                f"{elsewhere if name == 'host' else ''}"
            )
        ensure_stage("measure", open_run(Path(networks[0]), overrides, out), again)
        return
    if overrides or out or again:
        name = overrides[0] if overrides else "--out" if out else "--again"
        raise UserError(f"{name} is for measuring a run, and {networks[0]!r} is neither a folder nor a TOML file")
    shapes = {image_shapes(image, network) for network in networks if not network.endswith(".onnx")}
    if len(shapes) > 1:
        raise UserError("these networks usually have images of different sizes; say which with --image, as 3,224,224")
    rounds = 40 if rounds is None else rounds
    classes = 10 if classes is None else classes
    if rounds < 1 or classes < 1:
        raise UserError(f"--rounds and --classes must be 1 or more, got {rounds} and {classes}")
    others = [name.strip() for name in (metrics or "").split(",") if name.strip()]
    where = target.target(*shapes)
    from htas.run.names import read_name

    for name in networks:
        if not name.endswith(".onnx"):
            read_name(name)
    for name in others:
        plugins.check_name("htas.metrics", name)
    from htas.run.networks import measure_networks

    figures = measure_networks(list(networks), where, rounds, classes, others)
    if json:
        print(dumps([_json(each) for each in figures], indent=1))
    else:
        show([_table(figures)], {}, False)


def inspect(
    network: Annotated[
        str, Parameter(help="a TOML file or run folder; or a network such as imagenet_resnet:50 or custom:my_nets:make")
    ],
    /,
    *,
    overrides: Overrides,
    target: TargetOptions = DEFAULT_TARGET,
    image: Image = None,
    classes: Annotated[int | None, Parameter(help="outputs of the network (10)")] = None,
    json: Json = False,
    out: Out = None,
) -> None:
    """Show the free and the frozen sites of a network, where its time goes, and what each site could save."""
    if is_run(network):
        if flags := _flags(target, image=image, classes=classes):
            instead = f", or write --target.{flags[0]}" if flags[0] in target.flags() else ""
            raise UserError(f"a configuration says what its network and target are, so leave out --{flags[0]}{instead}")
        config, folder = load_source(Path(network), overrides, out)
        from htas.run.networks import inspect
        from htas.run.run import Run

        job = Run(config, folder)
        page, table = inspect(job.network, job.target, config.family.title, folder)
    else:
        if overrides:
            raise UserError(
                f"{overrides[0]} is for a configuration, and {network!r} is neither a folder nor a TOML file"
            )
        shapes, classes = image_shapes(image, network), 10 if classes is None else classes
        if classes < 1:
            raise UserError(f"--classes must be 1 or more, got {classes}")
        where, folder = target.target(shapes), out or Path("runs") / f"inspect-{slug(network)}"
        from htas.run.names import read_name

        read_name(network)
        from htas.run.networks import inspect_named

        page, table = inspect_named(network, where, classes, folder)
    show([table], {"page": str(page)}, json)


def doctor(
    *,
    target: TargetOptions = DEFAULT_TARGET,
    json: Annotated[bool, Parameter(help="print JSON instead of lines")] = False,
) -> None:
    """Show this machine and its noise, and whether a survey started now would be decided."""
    options = target.target()
    from htas.cli.doctor import examine

    if len(options.hosts) < 2:
        findings = examine(options)
        print(dumps(findings.json(), indent=1) if json else "\n".join(findings.lines()))
        return
    several = [examine(replace(options, host=host)) for host in options.hosts]  # in turn, as each reads a while
    pages = ["\n".join(each.lines()) for each in several]
    print(dumps([each.json() for each in several], indent=1) if json else "\n\n".join(pages))


def _flags(target: TargetOptions, **others: object) -> list[str]:
    return [*target.flags(), *(name for name, value in others.items() if value is not None)]


def _json(figures: "Figures") -> JsonObject:
    """One network as JSON values: milliseconds and millions."""
    latency = figures.latency
    return {
        "network": figures.network,
        "runtime": figures.runtime,
        **({"host": figures.host} if figures.host else {}),
        "latency_ms": {
            "estimate": latency.estimate * 1e3,
            "error": latency.error * 1e3,
            "interval": [end * 1e3 for end in latency.interval],
            "median": latency.median * 1e3,
            "min": latency.minimum * 1e3,
            "spread": latency.spread * 1e3,
            "doubts": latency.doubts,
            **({"note": latency.note} if latency.note else {}),
        },
        "mmacs": figures.macs / 1e6,
        "mparams": figures.params / 1e6,
        **{
            name: {"estimate": each.estimate, "error": each.error, "unit": each.unit, "doubts": each.doubts}
            for name, each in figures.others.items()
        },
    }


def _table(figures: Sequence["Figures"]) -> text.TextTable:
    """One line per network and host, in columns, and below what must be known of a reading."""
    others, hosts = list(figures[0].others), list(dict.fromkeys(each.host for each in figures))
    names = dict(zip(hosts, short_names(hosts), strict=True)) if len(hosts) > 1 else {}
    rows: list[tuple[str, ...]] = [
        (
            "network",
            *(("device",) if names else ()),
            "runtime",
            "latency",
            "error",
            "interval",
            "median",
            "min",
            "spread",
            "MACs",
            "parameters",
            *others,
        )
    ]
    for each in figures:
        latency = each.latency
        first, last = (text.significant(end * 1e3) for end in latency.interval)
        seconds = (latency.estimate, latency.error, latency.median, latency.minimum, latency.spread)
        times = [text.milliseconds(each) for each in seconds]
        times.insert(2, f"{first}-{last} ms")
        more = [text.quantity(measured.estimate, measured.unit) for measured in each.others.values()]
        words = (each.network, *([names[each.host]] if names else []), each.runtime)
        rows.append((*words, *times, text.millions(each.macs), text.millions(each.params), *more))
    doubts = [
        f"{each.network}{f' on {names[each.host]}' if names else ''}: {name}{doubt}"
        for each in figures
        for name, measured in {"": each.latency, **{f"{name}: ": other for name, other in each.others.items()}}.items()
        for doubt in (*measured.doubts, *filter(None, [measured.note]))
    ]
    return text.TextTable(rows, 3 if names else 2, after=doubts)
