"""Joules per batch, from the meter that is built into the processor, the GPU or the board.

The kernel's own files are read for the processor, in a few lines, because no library fits: zeus starts a process that
polls every counter, which would disturb the readings and latencies of the same survey; codecarbon estimates the carbon
of whole programs and brings a dozen packages; pyJoules and pyRAPL have not been kept up, and leave out the wraparound.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Self
from uuid import uuid4

import torch

from htas.errors import UserError, need_least
from htas.graph.layer import Layer
from htas.metrics import Case, Metric, OnRound, Pending, elsewhere
from htas.plugins import needed
from htas.runtimes import open_runtime
from htas.timing.bench import Call, Timer
from htas.timing.measurement import Measurement
from htas.timing.quota import text
from htas.timing.remote.device import device
from htas.timing.remote.power import RemoteMeter
from htas.timing.turns import alone

POWERCAP = Path("/sys/class/powercap")
"""Folder of the RAPL counters on Linux (Intel, and AMD from Zen on)."""
CHUNK = 0.01
"""Seconds of calls between two reads of the meter; a reading is exact to about one chunk."""
PATIENCE = 5.0
"""Seconds of work without a change after which a meter is rejected; NVML's counters move at least every 0.1 s."""


@dataclass(frozen=True)
class Meter:
    """Counters of energy that only go up, until they start again at 0."""

    name: str
    """Name for reports."""
    read: Callable[[], tuple[int, ...]]
    """The current counters."""
    ranges: tuple[int, ...]
    """The count at which each starts again; a full range lasts many minutes."""
    per_joule: float
    chunk: ClassVar[float] = CHUNK

    def joules_of(self, run: Call, loops: int, timer: Timer, seconds: float) -> float:
        """Joules per call between two changes of the meter, at least `seconds` apart, without a pause in the work."""
        before, _ = _to_move(run, loops, self, timer, 0.0)
        after, calls = _to_move(run, loops, self, timer, seconds)
        return self.joules(before, after) / calls

    def joules(self, before: tuple[int, ...], after: tuple[int, ...]) -> float:
        """The energy between two reads, summed over the counters."""
        changes = zip(before, after, self.ranges, strict=True)
        return sum((new - old) % most for old, new, most in changes) / self.per_joule


def meter(device: str, powercap: Path = POWERCAP) -> Meter:
    """The meter of a device; raises UserError if there is none that can be read."""
    return _rapl(powercap) if device == "cpu" else _nvml()


def _rapl(powercap: Path) -> Meter:
    """The processor's packages and their memory, idle cores and other programs included, in microjoules."""
    # cores and graphics are parts of a package, memory is not; psys holds all of them
    names = {zone: text(zone / "name") or "" for zone in sorted(powercap.glob("intel-rapl:*"))}
    zones = {zone: name for zone, name in names.items() if name.startswith("package") or name == "dram"}
    if not zones:
        raise UserError(
            f"energy needs a meter, and this machine shows none: no processor package in {powercap}/intel-rapl:*, as "
            "usual in virtual machines, in containers and on ARM; measure on the machine itself (Linux on Intel or "
            "AMD), or an NVIDIA GPU with target.device 'cuda'"
        )
    try:
        name = f"RAPL ({', '.join(zones.values())})"
        ranges = tuple(_number(zone / "max_energy_range_uj") for zone in zones)
        rapl = Meter(name, lambda: tuple(_number(zone / "energy_uj") for zone in zones), ranges, 1e6)
        rapl.read()
    except PermissionError as error:
        raise UserError(
            f"energy needs a meter, and {error.filename} may be read by root alone; allow it until the next boot with: "
            f"sudo chmod a+r {powercap}/intel-rapl:*/energy_uj"
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(f"energy needs a meter, and the one in {powercap} cannot be read: {error}") from error
    return rapl


def _number(file: Path) -> int:
    return int(file.read_text())


def _nvml() -> Meter:
    """The whole GPU board, as its driver counts it: millijoules since that was loaded, in 64 bits."""
    pynvml = needed("pynvml", "energy", "energy needs a meter, and NVIDIA's")
    try:
        pynvml.nvmlInit()
        # by UUID: CUDA and NVML may number the GPUs differently
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties().uuid}")
        name = f"NVML ({torch.cuda.get_device_name()})"
        nvml = Meter(name, lambda: (pynvml.nvmlDeviceGetTotalEnergyConsumption(handle),), (1 << 64,), 1e3)
        nvml.read()
    except pynvml.NVMLError as error:
        raise UserError(
            f"energy needs a meter, and NVML shows none of this GPU ({error}); "
            "GPUs from Volta on have one, a MIG slice has none"
        ) from error
    return nvml


@dataclass(frozen=True)
class Energy(Metric):
    """Joules of one batch, drawn by the whole processor or GPU board while it runs, the idle share included.

    Calls follow each other without a pause, so the figure is power under load times latency. On CUDA the processor that
    feeds the GPU is not counted. Inputs and weights are drawn at random.
    """

    unit: ClassVar[str] = "J"
    units: ClassVar[Mapping[str, float]] = {"J": 1.0, "mJ": 1e-3, "uJ": 1e-6}
    example: ClassVar[str] = "20 mJ"
    rounds: int = 5
    """Number of readings of each case."""
    reading: float = 1.0
    """Shortest length of a reading in seconds: meters move only every 1 ms (RAPL) to 100 ms (NVML)."""
    seed: int = 0
    """Seed of inputs, of weights of layers, and of the order of readings."""
    powercap: Path = POWERCAP
    """Folder of the processor's counters."""

    def __post_init__(self) -> None:
        need_least(1, self, "energy", "rounds")
        if not 0 < self.reading <= 60:
            raise UserError(f"energy.reading must be over 0 and at most 60 seconds (1 is usual), got {self.reading}")

    def check(self) -> None:
        """Raise UserError where this machine has no meter that can be read."""
        self.target.check()
        self._meter()

    def _meter(self) -> Meter | RemoteMeter:
        if self.target.host:
            return RemoteMeter(device(self.target.host))
        return meter(self.target.device, self.powercap)

    def reread(self, seed: int, predicted: Sequence[float] = ()) -> Self:
        """Another order of readings."""
        return replace(self, seed=seed)

    def measure(self, cases: Sequence[Case], *, on_round: OnRound = None, pending: Pending = None) -> list[Measurement]:
        """One measurement for each case, in joules; a repeated case is measured once. Raises UserError without a
        meter."""
        if (read := elsewhere()) is not None and pending is None:
            return read(self, cases)
        self.check()
        counters, runtime = self._meter(), open_runtime(self.target)
        survey, context = uuid4().hex[:12], {**runtime.context(), "meter": counters.name}
        readings: dict[Case, list[float]] = {case: [] for case in cases}

        def measurements(remarks: tuple[str, ...] = ()) -> dict[Case, Measurement]:
            return {
                case: Measurement(tuple(values), self.unit, context, survey, remarks=remarks)
                for case, values in readings.items()
            }

        timer, order, rng = runtime.timer(), list(readings), random.Random(self.seed)
        with alone(self.target.host), runtime.session(), torch.random.fork_rng(devices=[]):
            watch = runtime.watch()
            torch.default_generator.manual_seed(self.seed)
            runs = {
                case: runtime.compile_layer(case).run
                if isinstance(case, Layer)
                else runtime.compile(case, self.target.example()).run
                for case in order
            }
            loops = {case: timer.settle(run, counters.chunk, counters.chunk) for case, run in runs.items()}
            active = set(order)
            for done in range(1, self.rounds + 1):
                rng.shuffle(order)
                for case in filter(active.__contains__, order):
                    readings[case].append(counters.joules_of(runs[case], loops[case], timer, self.reading))
                if on_round is not None:
                    on_round(done / self.rounds, counters.name)
                if pending is not None:
                    active &= set(pending(measurements()))
            remarks = watch.remarks()
            context |= watch.context()
        by_case = measurements(remarks)  # other programs draw from the same meter
        return [by_case[case] for case in cases]


def _to_move(run: Call, loops: int, counters: Meter, timer: Timer, seconds: float) -> tuple[tuple[int, ...], int]:
    """Call until the meter changes, after `seconds` or more; returns its counters and the number of calls."""
    spent, calls, last = 0.0, 0, counters.read()
    while spent < seconds + PATIENCE:
        spent += timer.time(run, loops)
        calls += loops
        now = counters.read()
        if now != last and spent >= seconds:
            return now, calls
        last = now
    raise UserError(
        f"energy needs a meter that moves, and {counters.name} has stood still for {PATIENCE:.0f} seconds of work; "
        "virtual machines may show such a one: measure on the machine itself"
    )
