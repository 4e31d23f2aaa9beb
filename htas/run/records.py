"""What the files of a run hold that are not of one of the earlier rooms."""

from dataclasses import dataclass

from htas.graph.arch import Arch
from htas.report.result import Result


@dataclass(frozen=True)
class StageHeader:
    """The fields that the file of every stage begins with."""

    inputs: str
    """A hash of what the file was made from."""
    took: float
    """Seconds."""


@dataclass(frozen=True)
class TrainingRecord:
    """networks.json: the networks of a run, trained."""

    results: tuple[Result, ...]
    test_images: int
    """Images that accuracies are judged by."""


@dataclass(frozen=True)
class MeasureRecord:
    """measure.json: the same networks with their readings."""

    results: tuple[Result, ...]


@dataclass(frozen=True)
class Control:
    """A network that is no slower than the one found, for comparison."""

    kind: str
    """`uniform` or `plain`."""
    name: str
    arch: Arch


@dataclass(frozen=True)
class ControlsRecord:
    """controls.json: the controls that were picked, once."""

    controls: tuple[Control, ...]
    note: str
    """How, as a remark of their rows."""
