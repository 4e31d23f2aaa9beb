"""Times calls: warm up, calibrate, then short readings interleaved in shuffled rounds, where they are still pending.

Short, because the chance that nothing disturbs a reading falls with its length; interleaved, because the machine is
seldom the same a second later (level.py); and taken in stretches, after each of which the calls are built again,
because where a program's memory happens to lie moves its latency: by a percent as a rule, by a third in the worst case.
"""

import gc
import random
import time
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from math import ceil, inf
from typing import ClassVar

import numpy as np
import torch

from htas.errors import UserError
from htas.plugins.contract import place_of
from htas.text import shortened, significant
from htas.timing.allocator import collector_off
from htas.timing.level import levels
from htas.timing.quota import free_memory

Call = Callable[[], object]

STEADY = 0.95
"""A call is warm when its next reading is no less than this share of its fastest."""
MOST_WARMUPS = 20
MOST_LOOPS = 1_000_000
REPEAT = 3
"""Readings of a call in a row, after one call that is not timed."""
NEIGHBOURS = 16
"""Calls read one after the other that see the same machine."""
STRETCHES = 16
"""Parts of a run, at most; between them calls are rebuilt, and those that are decided drop out."""
REBUILDING = 0.3
"""Largest fraction of the time that rebuilding may take; calls that take long are rebuilt less often, or never."""
FILLERS, FILLER = 128, 1 << 19
"""Blocks of memory allocated before calls are rebuilt, and the most bytes of each; half of them are freed again."""
ROOM = 1.3
"""Times the memory of calls that must be free, so that they are built once more before the old ones are freed."""
SOONEST = 0.375
"""Fraction of the stretches before which no call drops out, so that each is read at several places in memory."""
LOOK = 2
"""Rounds after which a run that samples may add calls."""
LOOKING = 0.5
"""Fraction of the rounds and of the time after which it adds none, and reads those that it has."""


@dataclass(frozen=True)
class Turn:
    """Readings of one call in a row."""

    lasted: tuple[float, ...]
    """Seconds of each reading."""
    loops: tuple[int, ...]
    """Calls in each."""

    def __post_init__(self) -> None:
        if not self.lasted or len(self.lasted) != len(self.loops) or min(self.loops) < 1:
            got = f"{len(self.lasted)} readings of {shortened(str(self.loops))} calls"
            raise UserError(f"a turn needs readings of 1 or more calls each, got {got}")


class Timer(ABC):
    """Times a run of calls on one device."""

    shortest: ClassVar[float]
    """Least seconds of a reading: a thousand times the clock's own uncertainty."""

    @abstractmethod
    def time(self, call: Call, loops: int) -> float:
        """Seconds that `loops` calls in a row take, their work on the device included."""

    def settle(self, call: Call, reading: float, warmup: float) -> int:
        """Warm a call up, for `warmup` seconds at most; returns how many calls in a row last `reading` seconds."""
        return settle(call, self, reading, warmup)

    def turns(self, calls: Sequence[tuple[Call, int]], least: float) -> list[Turn]:
        """Readings of each call in this order, as long as its number of calls, or more so that they last `least`
        seconds."""
        return [self._turn(call, loops, least) for call, loops in calls]

    def _turn(self, call: Call, loops: int, least: float) -> Turn:
        call()  # untimed: others have filled the caches with their weights, and oneDNN's with their kernels
        readings = []
        for _ in range(REPEAT):
            lasted = self.time(call, loops)
            if 0 < lasted < least / 2 and loops < MOST_LOOPS:  # faster than it was when it was warmed up
                loops = min(ceil(loops * least / lasted), 10 * loops, MOST_LOOPS)
                lasted = self.time(call, loops)
            readings.append((lasted, loops))
        return Turn(*zip(*readings, strict=True))


@dataclass(frozen=True)
class HostTimer(Timer):
    """The clock of the processor; `wait` returns when the device has finished its work."""

    shortest: ClassVar[float] = 1e-4
    clock: Callable[[], float] = time.perf_counter
    """Seconds from any origin."""
    wait: Callable[[], None] = lambda: None

    def time(self, call: Call, loops: int) -> float:
        """Seconds between two readings of the clock, both taken when the device is idle."""
        self.wait()
        start = self.clock()
        for _ in range(loops):
            call()
        self.wait()
        return self.clock() - start


@dataclass(frozen=True)
class CudaTimer(Timer):
    """The GPU's own clock: a pair of events around the calls, on the stream that PyTorch uses."""

    shortest: ClassVar[float] = 2e-3

    def time(self, call: Call, loops: int) -> float:
        """Seconds between the two events, from an idle device to the end of the last call."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        start.record()
        for _ in range(loops):
            call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3


@dataclass(frozen=True)
class Readings:
    """The readings of one call, in order of time."""

    seconds: tuple[float, ...]
    levels: tuple[float, ...]
    """How slow the machine was at each (htas/timing/level.py); 1 is usual."""
    lasted: float = inf
    """Seconds that the shortest reading took, all its calls together."""


Pending = Callable[[Sequence[Readings]], Collection[int]]
"""From the readings of every call so far, of some of which there may be none, the numbers of those that need more."""


@dataclass(frozen=True)
class Bench:
    """How calls are timed."""

    timer: Timer
    rounds: int = 30
    """Most turns of each call; it is read REPEAT times in each."""
    limit: float = inf
    """Seconds after which no round begins, building and warming up included."""
    reading: float = 0.0
    """Least seconds of a reading; 0 means as short as the timer allows."""
    warmup: float = 0.01
    """Most seconds of warming up a call."""
    seed: int = 0
    """Of the order of the calls."""
    now: Callable[[], float] = time.monotonic
    """The clock of `limit`."""

    def __post_init__(self) -> None:
        if self.rounds < 1 or not self.limit > 0 or not self.reading >= 0:
            raise UserError(
                "rounds must be 1 or more, limit over 0 seconds and reading 0 or more, "
                f"got {self.rounds}, {self.limit} and {self.reading}"
            )

    def run(
        self,
        build: Callable[[int], Call],
        count: int,
        *,
        first: Collection[int] | None = None,
        rebuild: bool = True,
        renew: Callable[[], object] = lambda: None,
        pending: Pending | None = None,
        on_round: Callable[[float, str], None] | None = None,
    ) -> list[Readings]:
        """Readings of `count` calls, each built by `build` from its number.

        With `rebuild` each is built again in every stretch, after `renew` has dropped what calls share, such as
        compiled kernels. Every round reads each pending call, in a new order, so that a slow moment of the machine
        affects all alike. At least one round is read, of all calls. `on_round` gets the fraction that is done, and how
        slow the machine is in words.

        With `first` the run samples: it begins with these calls and, every few rounds, adds those that have become
        pending. Calls that are never pending have no readings.
        """
        if not count:
            return []
        active = list(range(count)) if first is None else sorted(first)
        return _Run(self, build, count, rebuild, renew, pending, on_round).go(active, looking=first is not None)


@dataclass
class _Run:
    """The state of a run: the readings so far, and the call of each."""

    bench: Bench
    build: Callable[[int], Call]
    count: int
    rebuild: bool
    renew: Callable[[], object]
    pending: Pending | None
    on_round: Callable[[float, str], None] | None
    seconds: "array[float]" = field(default_factory=lambda: array("d"))
    calls: "array[int]" = field(default_factory=lambda: array("l"))
    built: dict[int, tuple[Call, int]] = field(default_factory=dict)
    price: dict[int, float] = field(default_factory=dict)
    """Seconds that each call took to build and warm up, the last time."""
    fastest: dict[int, float] = field(default_factory=dict)
    """Seconds per call."""
    shortest: dict[int, float] = field(default_factory=dict)
    """Seconds of a whole reading."""
    fillers: list[bytearray] = field(default_factory=list)
    memory: float = 0.0
    """Bytes that building calls took from what was free."""
    rebuilding: float = 0.0
    """Seconds spent on building calls again."""
    building: float = 0.0
    """Seconds spent on building calls that are built only once."""
    done: int = 0
    """Rounds."""

    def go(self, active: Sequence[int], looking: bool) -> list[Readings]:
        """Stretch by stretch, until nothing is pending or time is up."""
        self.started, self.rng = self.bench.now(), random.Random(self.bench.seed)
        if looking and self.pending is not None:
            active = self._look(active, self.pending)
        begun, spent = self.done, self._share if self.done else 0.0
        admitted = set(active)  # a call added later would be read at too few places in memory
        for stretch in range(1, STRETCHES + 1):
            if not active or self.done >= self.bench.rounds or (self.done and self._share >= 1):
                break
            self._make(active, rebuild=stretch > 1 and self._affords(active))
            part = stretch / STRETCHES
            self._read(active, ceil(begun + (self.bench.rounds - begun) * part), spent + (1 - spent) * part)
            if self.pending is not None and SOONEST <= part < 1:
                active = sorted(admitted.intersection(self.pending(self.readings())))
        _let_go(self.built)
        return self.readings()

    def _affords(self, active: Collection[int]) -> bool:
        """Whether building these again would leave enough of the time for reading."""
        building = sum(self.price.get(number, 0.0) for number in active)
        return self.rebuild and self.rebuilding + building <= REBUILDING * (self.bench.now() - self.started)

    def _look(self, active: Sequence[int], pending: Pending) -> Sequence[int]:
        """Add pending calls, a few rounds of all at a time, until none is new; returns all of them.

        All are read again each time, because only readings taken together show which change was the machine's.
        """
        new: Collection[int] = active
        while new:
            active = sorted({*active, *new})
            self._make(active, rebuild=False)
            self._read(active, self.done + LOOK, LOOKING)
            if self.done >= LOOKING * self.bench.rounds or self._share >= LOOKING:
                break
            new = set(pending(self.readings())) - set(active)
        return active

    def readings(self) -> list[Readings]:
        seconds, calls = np.asarray(self.seconds), np.asarray(self.calls, dtype=np.int64)
        level = levels(seconds, calls, NEIGHBOURS * REPEAT)
        order = np.argsort(calls, kind="stable")
        cuts = np.cumsum(np.bincount(calls, minlength=self.count))[:-1]
        parts = zip(np.split(seconds[order], cuts), np.split(level[order], cuts), strict=True)
        return [
            Readings(tuple(values.tolist()), tuple(slowness.tolist()), self.shortest.get(number, inf))
            for number, (values, slowness) in enumerate(parts)
        ]

    @property
    def _share(self) -> float:
        """Fraction of the time for reading that has passed: the limit, less building calls that are built only once."""
        rest = self.bench.limit - self.building
        return (self.bench.now() - self.started - self.building) / rest if rest > 0 else inf

    def _make(self, active: Sequence[int], rebuild: bool) -> None:
        """Build and warm up all calls with `rebuild`, or those that are missing.

        The old ones are freed only after the new ones exist, so that these get other memory; before, where there is no
        room for both.
        """
        timer, began, free = self.bench.timer, self.bench.now(), free_memory()
        reading = self.bench.reading or timer.shortest
        missing = [number for number in active if rebuild or number not in self.built]
        if rebuild:
            if free < ROOM * self.memory:
                _let_go(self.built)
            self._disturb_memory()
            self.renew()
        self.rng.shuffle(missing)  # or memory would be laid out as the last time
        built = {} if rebuild else dict(self.built)
        for number in missing:
            before = self.bench.now()
            call = self.build(number)
            loops = timer.settle(call, reading, self.bench.warmup)
            if loops < 1:
                raise UserError(f"{place_of(type(timer))}.settle() must give 1 or more calls, it gives {loops}")
            built[number] = call, loops
            self.price[number] = self.bench.now() - before
        old, self.built = self.built, built
        _let_go(old)
        self.memory += 0.0 if rebuild else max(0.0, free - free_memory())
        self.rebuilding += self.bench.now() - began if rebuild else 0.0
        self.building += 0.0 if self.rebuild else self.bench.now() - began
        gc.collect(1)

    def _disturb_memory(self) -> None:
        """Leave other holes in memory than before, as an output always gets the smallest hole that fits."""
        blocks = [bytearray(self.rng.randrange(64, FILLER)) for _ in range(FILLERS)]
        self.rng.shuffle(blocks)
        self.fillers = blocks[::2]

    def _read(self, active: Sequence[int], rounds: int, share: float) -> None:
        """Read rounds up to this number, or to this fraction of the time; at least one in a run."""
        while self.done < min(rounds, self.bench.rounds) and (not self.done or self._share < share):
            slow = self._round(active)
            self.done += 1
            if self.on_round is not None:
                reached = min(1.0, max(self.done / self.bench.rounds, self._share))
                self.on_round(reached, f"the machine at {significant(slow)} of its fastest")

    def _round(self, active: Sequence[int]) -> float:
        """Read each call; the median of what they took over their fastest readings."""
        order, slow = list(active), []
        least = self.bench.reading or self.bench.timer.shortest
        self.rng.shuffle(order)
        with collector_off():
            turns = self.bench.timer.turns([self.built[number] for number in order], least)
        for number, turn in zip(order, turns, strict=True):
            for lasted, loops in zip(turn.lasted, turn.loops, strict=True):
                need_seconds(self.bench.timer, lasted, loops)
                seconds = lasted / loops
                self.shortest[number] = min(lasted, self.shortest.get(number, inf))
                self.seconds.append(seconds)
                self.calls.append(number)
            self.built[number] = self.built[number][0], turn.loops[-1]
            self.fastest[number] = min(seconds, self.fastest.get(number, inf))
            slow.append(seconds / self.fastest[number])
        return float(np.median(slow))


def _let_go(built: dict[int, tuple[Call, int]]) -> None:
    """Forget calls, the last first: OpenVINO walks through all free memory for each program that it frees, 20 ms each
    towards the end of 1200 (malloc_trim); in this order they take a third less than in that they were built in."""
    while built:
        built.popitem()


def need_seconds(timer: Timer, lasted: float, loops: int) -> None:
    """Raise UserError where a timer gives something else than the seconds that calls took."""
    if not 0 < lasted < inf:
        place = f"{place_of(type(timer))}.time()"
        raise UserError(
            f"{place} must give the seconds that calls take, above 0, it gives {lasted:g} for {loops} calls"
        )


def settle(call: Call, timer: Timer, reading: float, warmup: float) -> int:
    """Warm a call up, for `warmup` seconds at most; returns how many calls in a row last `reading` seconds."""
    timer.time(call, 1)  # the first call allocates and chooses kernels: no measure of the others
    spent, loops, fastest = 0.0, 1, inf
    for _ in range(MOST_WARMUPS):
        seconds = timer.time(call, loops)
        if not (seconds == 0 and loops < MOST_LOOPS):  # a clock may show nothing for a few calls
            need_seconds(timer, seconds, loops)
        spent += seconds
        steady = seconds / loops >= STEADY * fastest
        fastest = min(fastest, seconds / loops)
        needed = ceil(reading / fastest) if fastest > 0 else MOST_LOOPS
        long_enough = loops >= needed
        loops = min(needed, 10 * loops, MOST_LOOPS)
        if long_enough and (steady or spent >= warmup):
            break
    return loops
