"""What the verbs of several runs are asked for, checked without PyTorch."""

import re
from dataclasses import dataclass
from pathlib import Path

from htas.cost.constraints import parse
from htas.errors import UserError
from htas.files import sweep_parts
from htas.run.config import Settings
from htas.text import listing
from htas.timing.crew import Crew


@dataclass(frozen=True)
class SweepPlan:
    """Several budgets. Raises UserError for one that is none."""

    budgets: tuple[str, ...]
    """Limits of latency: "80%", "8 ms"."""
    share: bool = False
    """Whether every search but the first begins with the first one's supernet, in half the epochs; on digits no harm
    was found (docs/decisions.md)."""

    def __post_init__(self) -> None:
        values = {(text.rstrip().endswith("%"), round(parse("latency", text, 1.0), 12)) for text in self.budgets}
        if len(values) < len(self.budgets) or not self.budgets:
            words = ",".join(self.budgets)
            raise UserError(f"--budgets must name different budgets with commas between, got {words!r}")


@dataclass(frozen=True)
class FastestPlan:
    """An accuracy to keep, and how hard to look. Raises UserError for an option that is out of range."""

    accuracy_floor: str
    """"-0.3" is in points below the base network's, "93.5%" absolute."""
    seeds: int = 3
    """Trainings of each network."""
    tries: int = 4
    """Budgets."""

    def __post_init__(self) -> None:
        if not self.accuracy_floor:
            raise UserError('htas fastest needs an accuracy to keep: --accuracy-floor="-0.3", in points below '
                            'the base network, or "93.5%"')  # fmt: skip
        self.least(1.0)
        for name in ("seeds", "tries"):
            if (value := getattr(self, name)) < 1:
                raise UserError(f"--{name} must be 1 or more, got {value}")

    @property
    def relative(self) -> bool:
        """Whether the floor is in points below the base network's accuracy."""
        return "-" in self.accuracy_floor

    def least(self, base: float) -> float:
        """The accuracy to keep, 0 to 1, where the base network has the accuracy `base`."""
        text = self.accuracy_floor
        below, absolute = (re.fullmatch(each, text) for each in (r"\s*-\s*(\d+\.?\d*)\s*", r"\s*(\d+\.?\d*)\s*%\s*"))
        if below:
            return base - float(below[1]) / 100
        if absolute and 0 < float(absolute[1]) <= 100:
            return float(absolute[1]) / 100
        raise UserError(
            '--accuracy-floor must be in points below the base network\'s accuracy such as "-0.3", or a share '
            f'such as "93.5%", got {text!r}'
        )

    def check(self, settings: Settings) -> None:
        """Raise UserError where the configuration has a budget of its own."""
        if settings.tables["constraints"]["latency"]:
            raise UserError("htas fastest finds the budget itself, so leave constraints.latency out")


@dataclass(frozen=True)
class Parallel:
    """How the trials of an experiment are done. Raises UserError for what is none, and for what excludes another."""

    workers: str = ""
    """`local:N`, `ray`, the address of a Ray cluster, each with options; empty for one trial after the other."""
    list: bool = False
    """Whether their commands are printed, and nothing is run."""
    trial: str = ""
    """The name of the only one that is done; empty for all."""
    only: bool = False
    """Whether nothing is run, and finished ones are shown."""

    def __post_init__(self) -> None:
        names = [f"--{name}" for name, value in vars(self).items() if value]
        if len(names) > 1:
            raise UserError(f"{listing(names)} exclude each other; give one of them")
        self.crew.check()

    @property
    def crew(self) -> Crew:
        """Who does the trials."""
        return Crew(self.workers)


def check_folder(folder: Path) -> None:
    """Raise UserError where the folder of several runs is a run's own; otherwise what killed processes were writing in
    it is removed."""
    if (folder / "config.toml").exists():
        raise UserError(f"{folder} holds a run; name another folder for several runs with --out")
    sweep_parts(folder)
