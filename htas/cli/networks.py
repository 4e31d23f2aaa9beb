"""The verbs that look at networks by name, and at this machine."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from htas.cli.parameters import DEFAULT_TARGET, Again, Image, Json, Out, Overrides, TargetOptions, image_shapes
from htas.cli.sources import ensure_stage, is_run, load_source, open_run
from htas.cli.tables import as_json, networks_json, networks_table
from htas.console.terminal import show
from htas.errors import UserError
from htas.files import slug


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
            raise UserError(f"a run is measured as its configuration says, so leave out --{name}")
        ensure_stage("measure", open_run(Path(networks[0]), overrides, out), again)
        return
    if overrides or out or again:
        name = overrides[0] if overrides else "--out" if out else "--again"
        raise UserError(f"{name} is for measuring a run, and {networks[0]!r} is neither a folder nor a TOML file")
    from htas.run.networks import measure_networks

    shapes = {image_shapes(image, network) for network in networks if not network.endswith(".onnx")}
    if len(shapes) > 1:
        raise UserError("these networks usually have images of different sizes; say which with --image, as 3,224,224")
    place = target.target(*shapes)
    rounds = 40 if rounds is None else rounds
    classes = 10 if classes is None else classes
    if rounds < 1 or classes < 1:
        raise UserError(f"--rounds and --classes must be 1 or more, got {rounds} and {classes}")
    others = [name.strip() for name in (metrics or "").split(",") if name.strip()]
    figures = measure_networks(list(networks), place, rounds, classes, others)
    if json:
        print(as_json([networks_json(each) for each in figures]))
    else:
        show([networks_table(figures)], {}, False)


def inspect(
    network: Annotated[
        str,
        Parameter(help="a TOML file or run folder; or a network such as imagenet_resnet:50 or custom:my_nets:make"),
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
            raise UserError(f"a configuration says what its network and target are, so leave out --{flags[0]}")
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
        shapes = image_shapes(image, network)
        from htas.run.networks import inspect_named

        folder = out or Path("runs") / f"inspect-{slug(network)}"
        page, table = inspect_named(network, target.target(shapes), classes or 10, folder)
    show([table], {"page": str(page)}, json)


def doctor(
    *,
    target: TargetOptions = DEFAULT_TARGET,
    json: Annotated[bool, Parameter(help="print JSON instead of lines")] = False,
) -> None:
    """Show this machine and its noise, and whether a survey started now would be decided."""
    options = target.target()
    from htas.cli.doctor import examine

    findings = examine(options)
    print(as_json(findings.json()) if json else "\n".join(findings.lines()))


def _flags(target: TargetOptions, **others: object) -> list[str]:
    """The names of the flags on the command line."""
    return [*target.flags(), *(name for name, value in others.items() if value is not None)]
