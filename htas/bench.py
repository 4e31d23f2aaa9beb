"""Times calls the way pyperf does: warm up, calibrate, then readings interleaved in shuffled rounds."""

import gc
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil, inf

import torch

Call = Callable[[], object]

STEADY = 0.95
"""A call is warm when its next reading is no less than this share of its fastest."""
MOST_WARMUPS = 20
MOST_LOOPS = 1_000_000


class Timer(ABC):
    """Times a run of calls on one device."""

    @abstractmethod
    def time(self, call: Call, loops: int) -> float:
        """Seconds that `loops` calls in a row take, their work on the device included."""


@dataclass(frozen=True)
class HostTimer(Timer):
    """The clock of the processor; `wait` returns when the device has finished all it was given."""

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


def bench(
    calls: Sequence[Call],
    *,
    timer: Timer,
    rounds: int = 30,
    reading: float = 0.002,
    warmup: float = 0.01,
    seed: int = 0,
    on_round: Callable[[int, int], None] | None = None,
) -> list[tuple[float, ...]]:
    """`rounds` readings of each call, in seconds per call.

    A reading is the mean of as many calls in a row as last `reading` seconds. Every round reads each call once, in an
    order of its own, so that a slow minute of the machine falls on all calls alike. Warming up ends when a call gets no
    faster, or after `warmup` seconds. `on_round` hears how many rounds are done, of how many.
    """
    if rounds < 1 or reading <= 0:
        raise ValueError(f"rounds must be 1 or more and reading over 0 seconds, got {rounds} and {reading}")
    order, rng = list(range(len(calls))), random.Random(seed)
    loops = [_settle(call, timer, reading, warmup) for call in calls]
    readings: list[list[float]] = [[] for _ in calls]
    gc.collect()
    for done in range(1, rounds + 1):
        rng.shuffle(order)
        with _collector_off():
            for index in order:
                readings[index].append(_read(calls[index], timer, loops[index]))
        if on_round is not None:
            on_round(done, rounds)
    return [tuple(values) for values in readings]


def _settle(call: Call, timer: Timer, reading: float, warmup: float) -> int:
    """Warm a call up; how many calls in a row make one reading."""
    timer.time(call, 1)  # the first call allocates and chooses kernels: no measure of the others
    spent, loops, fastest = 0.0, 1, inf
    for _ in range(MOST_WARMUPS):
        seconds = timer.time(call, loops)
        spent += seconds
        steady = seconds / loops >= STEADY * fastest
        fastest = min(fastest, seconds / loops)
        # a clock may show nothing for one short call: then go up in tens
        wanted = ceil(reading / fastest) if fastest > 0 else MOST_LOOPS
        long_enough = loops >= wanted
        loops = min(wanted, 10 * loops, MOST_LOOPS)
        if long_enough and (steady or spent >= warmup):
            break
    return loops


def _read(call: Call, timer: Timer, loops: int) -> float:
    call()  # untimed: other calls have filled the caches with their weights, and oneDNN's with their kernels
    return timer.time(call, loops) / loops


@contextmanager
def _collector_off() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
