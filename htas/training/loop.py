"""The one loop over epochs: a bar, a checkpoint after each epoch, and going on after an interruption."""

import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor

from htas.console.progress import Bar, progress
from htas.console.record import scalars
from htas.files import read_tensors, write_tensors


class EpochFigures(Protocol):
    """What an epoch came to: a dataclass of JSON values."""

    @property
    def seconds(self) -> float:
        """Seconds that the epoch took."""

    @property
    def scalars(self) -> dict[str, float]:
        """Figures by name, for TensorBoard and those who watch."""


Values = dict[str, Any]
"""JSON values of a checkpoint, by name."""
Figures = TypeVar("Figures", bound=EpochFigures)


class EpochLoop(ABC, Generic[Figures]):
    """Work in epochs. A run that was interrupted ends as an uninterrupted one, to the last bit."""

    record: type[Figures]
    """Class of the epochs' figures; a checkpoint holds its fields."""

    def __init__(self, title: str, checkpoint: Path, length: int, steps: int) -> None:
        self.title, self.checkpoint, self.length, self.steps = title, checkpoint, length, steps
        self.epochs: list[Figures] = []
        """Epochs done, those before an interruption included."""
        self._started = time.monotonic()

    @abstractmethod
    def epoch(self, number: int, bar: Bar) -> Figures:
        """One epoch, the first being 0: `steps` steps of the bar."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Everything that the next epoch needs, by name."""

    @abstractmethod
    def load(self, tensors: dict[str, Tensor], values: Values) -> None:
        """Put back what `tensors` and `values` gave."""

    @abstractmethod
    def summary(self, figures: Figures) -> str:
        """An epoch in a few words, for the bar."""

    def values(self) -> Values:
        """JSON values that the next epoch needs in addition to the tensors."""
        return {}

    @property
    def elapsed(self) -> float:
        """Seconds since the current epoch began."""
        return time.monotonic() - self._started

    @property
    def seconds(self) -> float:
        """Seconds that all epochs took."""
        return sum(each.seconds for each in self.epochs)

    def run(self) -> float:
        """All epochs that are missing; the checkpoint is written after each. Returns the seconds of all epochs, those
        before an interruption included."""
        self.restore()
        done = len(self.epochs)
        with progress(self.title, self.length * self.steps, done=done * self.steps) as bar:
            for number in range(done, self.length):
                self._started = time.monotonic()
                figures = self.epoch(number, bar)
                self.epochs.append(figures)
                scalars(self.title, number + 1, figures.scalars)
                self.keep(self.checkpoint)
                bar.step(f"epoch {number + 1} of {self.length}: {self.summary(figures)}", by=0)
        return self.seconds

    def keep(self, path: Path) -> None:
        """Write a checkpoint."""
        write_tensors(path, self.tensors(), {"epochs": [vars(each) for each in self.epochs], **self.values()})

    def restore(self) -> None:
        """Go on from the checkpoint, if there is one."""
        if self.checkpoint.exists():
            self.restore_from(self.checkpoint)

    def restore_from(self, path: Path) -> None:
        """Go on from a checkpoint."""
        tensors, values = read_tensors(path)
        self.load(tensors, values)
        self.epochs = [self.record(**fields) for fields in values["epochs"]]
