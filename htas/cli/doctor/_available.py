"""The runtimes and energy meters that work here, and how to get the others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import htas.runtimes
from htas import plugins
from htas.errors import UserError
from htas.metrics.energy import meter
from htas.runtimes import open_runtime
from htas.text import listing
from htas.timing.target import Target


@dataclass(frozen=True)
class Availability:
    """A runtime or a meter, and whether it works here."""

    name: str
    there: bool
    about: Mapping[str, str] = field(default_factory=dict)
    """Versions and settings."""
    trouble: str = ""
    """Why it cannot be used, and what to do."""

    @property
    def words(self) -> str:
        """One line for a terminal."""
        if not self.there:
            return f"not here: {self.trouble}"
        return listing(f"{key} {value}" for key, value in self.about.items()) or "there"


def runtimes(target: Target) -> list[Availability]:
    """Every runtime of the package, and the target's own class if it names one."""
    names = plugins.names(htas.runtimes)
    return [_runtime(target, name) for name in [*names, *({target.runtime} - set(names))]]


def meters(devices: Sequence[str]) -> list[Availability]:
    """The energy meter of each device."""
    return [_meter(device) for device in devices]


def _runtime(target: Target, name: str) -> Availability:
    try:
        opened = open_runtime(target if name == target.runtime else replace(target, runtime=name, options={}))
        return Availability(name, True, dict(opened.describe()))
    except ImportError as error:
        return Availability(name, False, trouble=f"{_clean(error)}; pip install 'htas[{name}]'")
    except Exception as error:  # a broken installation may raise anything; that is a finding
        return Availability(name, False, trouble=_clean(error))


def _meter(device: str) -> Availability:
    try:
        return Availability(device, True, {"meter": meter(device).name})
    except Exception as error:  # a driver without a PyTorch that can use it, say
        return Availability(device, False, trouble=_clean(error))


def _clean(error: Exception) -> str:
    """The message of any exception in one line."""
    words = " ".join(str(error).split()) or type(error).__name__
    return words if isinstance(error, UserError | ImportError) else f"{type(error).__name__}: {words}"
