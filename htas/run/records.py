"""Records of the files that training, controls and measuring write."""

from dataclasses import dataclass

from htas.graph.arch import Arch
from htas.report.result import Result


@dataclass(frozen=True)
class StageHeader:
    """The fields that the file of every stage begins with."""

    inputs: str
    """The key of the stage: a hash of everything that the file depends on."""
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
    """A network that is no slower than the searched one, for comparison."""

    kind: str
    """`uniform` or `plain`."""
    name: str
    arch: Arch


@dataclass(frozen=True)
class ControlsRecord:
    """controls.json: the controls that were picked, once."""

    controls: tuple[Control, ...]
    note: str
    """How they were picked, as a remark of their rows."""
    slower: tuple[str, ...] = ()
    """Kinds of which every network was slower, in words, as remarks of the searched network."""
