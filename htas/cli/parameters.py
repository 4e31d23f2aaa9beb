"""Parameters that several verbs share; their types and help make the command line."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from htas.errors import UserError

if TYPE_CHECKING:
    from htas.timing.target import Target

Source = Annotated[Path, Parameter(help="a TOML file, or the folder of a run")]
Out = Annotated[Path | None, Parameter(help="folder of the run; otherwise runs/ and the name of the file")]
Json = Annotated[bool, Parameter(help="print JSON instead of a table")]
Tensorboard = Annotated[
    bool, Parameter(help="write scalars of searches and trainings into the run's folder, for TensorBoard")
]
Again = Annotated[bool, Parameter(help="redo the stage though it is finished")]
Device = Annotated[Literal["cpu", "cuda"] | None, Parameter(help="where they run (cpu)")]
Host = Annotated[
    str | None,
    Parameter(
        help="the machine to measure: ssh://user@board, or exec:COMMAND that starts its Python; several with commas "
        "between"
    ),
]
Image = Annotated[
    str | None,
    Parameter(
        help="channels, height and width of an image (3,224,224; 3,32,32 of CIFAR's networks), or channels and steps "
        "of a series; further inputs behind a slash"
    ),
]
Overrides = Annotated[Sequence[str], Parameter(parse=False)]
"""`--table.field=value` as written; a verb that takes these takes every option of a configuration."""
Command = Annotated[str, Parameter(parse=False)]
"""The whole command as written, for the report."""

Workers = Annotated[
    str, Parameter(help="who searches and trains at the same time: local:N, ray, or HOST:PORT of a Ray cluster")
]
Shapes = tuple[tuple[int, ...], ...]


@Parameter(name="*")
@dataclass(frozen=True)
class TargetOptions:
    """The flags that say where and how networks run; None is the target's default."""

    runtime: Annotated[str | None, Parameter(help="what runs the networks: eager, onnxruntime, ...")] = None
    host: Annotated[
        str | None,
        Parameter(
            help="the machine that they run on: ssh://user@board, or exec:COMMAND that starts its Python (this one)",
        ),
    ] = None
    device: Device = None
    batch: Annotated[int | None, Parameter(help="images per call (4 on cpu, 1024 on cuda)")] = None
    threads: Annotated[int | None, Parameter(help="CPU threads (every core)")] = None
    precision: Annotated[Literal["fp32", "bf16", "fp16", "int8"] | None, Parameter(help="number format (fp32)")] = None

    def flags(self) -> list[str]:
        """The names of the flags on the command line."""
        return [name for name, value in asdict(self).items() if value is not None]

    def target(self, shapes: Shapes = ()) -> "Target":
        """The target, for inputs of these shapes (channels, height, width); raises UserError."""
        from htas.run.config import check_runtime
        from htas.timing.target import Target

        values: dict[str, Any] = {name: getattr(self, name) for name in self.flags()}
        if self.host and self.runtime is None:
            values["runtime"] = "onnxruntime"  # what a device is most likely to have
        target = Target(**values | ({"shapes": shapes} if shapes else {}))
        check_runtime(target)
        return target


DEFAULT_TARGET = TargetOptions()


def image_shapes(image: str | None, network: str) -> Shapes:
    """`3,224,224` as numbers, `3,64,64/8` as those of two inputs; None is the usual size of the network's images."""
    if image is None:
        side = 32 if network.startswith(("cifar_resnet", "tas:")) else 224
        return ((3, side, side),)
    inputs = [part.split(",") for part in image.split("/")]
    sizes = [size.strip() for part in inputs for size in part]
    if not 2 <= len(inputs[0]) <= 4 or not all(size.isdecimal() and int(size) for size in sizes):
        raise UserError(
            "--image must be channels, height and width with commas between, such as 3,224,224 (with further inputs "
            f"behind a slash, 3,224,224/8; channels and steps of a series, 3,128); got {image!r}"
        )
    return tuple(tuple(map(int, part)) for part in inputs)
