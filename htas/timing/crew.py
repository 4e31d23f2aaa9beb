"""Who does pieces of work at the same time, as an option says it; read without PyTorch, and without Ray."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from htas.errors import UserError

WORKERS = re.compile(
    r"(local:(?P<local>0*[1-9]\d*)|ray|(?P<address>(ray://)?[^\s:/]+:\d{4,5}))(?P<options>(,\w+=[^,=\s]+)*)", re.ASCII
)
"""What the option may be; the ports of users have four or five digits."""
LEAST = 0.001
"""Of a graphics card, for a piece of work."""
MOST = 256
"""Processes on a machine."""


@dataclass(frozen=True)
class Crew:
    """`local:N`, `ray`, the address of a Ray cluster, each with options; empty for this process alone."""

    text: str
    option: str = "--workers"
    number: str = ""
    """`N or `, where the option may be a number, too."""

    def check(self) -> None:
        """Raise UserError for a text that is none of them."""
        named = [name for name, _ in self._options]
        if self.text and (not self._match or set(named) - {"threads", "gpus"} or len(set(named)) < len(named)):
            raise UserError(
                f"{self.option} must be {self.number}local:N for N processes on this machine, ray for a Ray cluster "
                "that is started here, or HOST:PORT of one, with threads=N and for Ray gpus=N after a comma, such as "
                f"local:2,threads=1, got {self.text!r}"
            )
        for name in ("threads", "gpus") if self.text else ():
            getattr(self, name)
        if self.processes > MOST:
            raise UserError(
                f"{self.option}=local:N starts N processes on this machine, {MOST} at most, got {self.text!r}"
            )

    @property
    def _match(self) -> re.Match[str] | None:
        return WORKERS.fullmatch(self.text)

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
        """Of each piece of work; 0 where nothing is said."""
        text = dict(self._options).get("threads", "0")
        if not text.isdecimal():
            raise UserError(f"threads of {self.option} must be a whole number, got {text!r}")
        return int(text)

    @property
    def gpus(self) -> float:
        """Graphics cards of each piece of work, or a part of one."""
        text = dict(self._options).get("gpus", "0")
        try:
            gpus = float(text)
        except ValueError:
            gpus = -1.0
        if not (0 <= gpus < inf) or 0 < gpus < LEAST or (gpus > 1 and gpus % 1) or (gpus and self.processes):
            raise UserError(
                f"gpus of {self.option} must be 0, a share of a card from {LEAST} to 1, or a whole number, and is for "
                f"Ray, got {text!r}"
            )
        return gpus
