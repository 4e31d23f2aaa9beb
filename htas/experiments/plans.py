"""What the verbs of several runs are asked for, checked without PyTorch."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path

from htas.cost.constraints import parse
from htas.errors import UserError
from htas.files import sweep_parts
from htas.run.config import Settings
from htas.text import listing


@dataclass(frozen=True)
class SweepPlan:
    """Several budgets. Raises UserError for one that is none."""

    budgets: tuple[str, ...]
    """Limits of latency: "80%", "8 ms"."""
    share: bool = False
    """Whether every search but the first begins with the first one's supernet, in half the epochs; on digits no harm
    was found (docs/decisions.md)."""

    def __post_init__(self) -> None:
        for text in self.budgets:
            parse("latency", text, 1.0)
        if len(set(self.budgets)) < len(self.budgets) or not self.budgets:
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


WORKERS = re.compile(
    r"(local:(?P<local>0*[1-9]\d*)|ray|(?P<address>(ray://)?[^\s:/]+:\d{4,5}))(?P<options>(,\w+=[^,=\s]+)*)", re.ASCII
)
"""What --workers may be; the ports of users have four or five digits."""
LEAST = 0.001
"""Of a graphics card, for a trial."""


MOST = 256
"""Processes on a machine."""


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
        named = [name for name, _ in self._options]
        if self.workers and (not self._match or set(named) - {"threads", "gpus"} or len(set(named)) < len(named)):
            raise UserError(
                "--workers must be local:N for N processes on this machine, ray for a Ray cluster that is started "
                "here, or HOST:PORT of one, with threads=N and for Ray gpus=N after a comma, such as "
                f"local:2,threads=1, got {self.workers!r}"
            )
        for name in ("threads", "gpus") if self.workers else ():
            getattr(self, name)
        if self.processes > MOST:
            raise UserError(
                f"--workers=local:N starts N processes on this machine, {MOST} at most, got {self.workers!r}"
            )

    @property
    def _match(self) -> re.Match[str] | None:
        return WORKERS.fullmatch(self.workers)

    @property
    def _options(self) -> Sequence[tuple[str, str]]:
        text = self._match["options"] if self._match else ""
        return re.findall(r",(\w+)=([^,]+)", text)

    @property
    def processes(self) -> int:
        """How many there are on this machine; 0 for Ray."""
        return int((self._match["local"] or 0) if self._match else 0)

    @property
    def address(self) -> str:
        """Of the Ray cluster; empty for one that is started here."""
        return (self._match["address"] or "") if self._match else ""

    @property
    def threads(self) -> int:
        """Of each trial; 0 where nothing is said."""
        text = dict(self._options).get("threads", "0")
        if not text.isdecimal():
            raise UserError(f"threads of --workers must be a whole number, got {text!r}")
        return int(text)

    @property
    def gpus(self) -> float:
        """Graphics cards of each trial, or a part of one."""
        text = dict(self._options).get("gpus", "0")
        try:
            gpus = float(text)
        except ValueError:
            gpus = -1.0
        if not (0 <= gpus < inf) or 0 < gpus < LEAST or (gpus > 1 and gpus % 1) or (gpus and self.processes):
            raise UserError(
                f"gpus of --workers must be 0, a share of a card from {LEAST} to 1, or a whole number, and is for Ray, "
                f"got {text!r}"
            )
        return gpus


def check_folder(folder: Path) -> None:
    """Raise UserError where the folder of several runs is a run's own; otherwise what killed processes were writing in
    it is removed."""
    if (folder / "config.toml").exists():
        raise UserError(f"{folder} holds a run; name another folder for several runs with --out")
    sweep_parts(folder)
