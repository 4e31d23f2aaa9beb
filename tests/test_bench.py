"""Readings on a scripted clock: nothing here depends on how fast the machine is."""

import gc
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch

from htas.bench import MOST_LOOPS, CudaTimer, HostTimer, Timer, bench


class Machine:
    """A clock that only calls move."""

    def __init__(self) -> None:
        self.now = 0.0

    def call(self, *seconds: float) -> Callable[[], None]:
        """A call that takes these seconds in turn, the last for ever."""
        left = list(seconds)

        def run() -> None:
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return run

    def timer(self) -> HostTimer:
        return HostTimer(clock=lambda: self.now)


@dataclass
class Recorder(Timer):
    """Notes who was timed and for how many calls; every call takes its planted seconds."""

    planted: dict[Callable[[], object], float]
    log: list[tuple[Callable[[], object], int]] = field(default_factory=list)

    def time(self, call: Callable[[], object], loops: int) -> float:
        self.log.append((call, loops))
        return self.planted[call] * loops


def recorded(planted: list[float], rounds: int = 4, seed: int = 0) -> list[list[tuple[int, int]]]:
    """By round: the calls' numbers in the order they were read, with the length of each reading in calls."""
    calls = [lambda number=number: number for number in range(len(planted))]
    recorder = Recorder(dict(zip(calls, planted, strict=True)))
    bench(calls, timer=recorder, rounds=rounds, seed=seed)
    readings = [(calls.index(call), loops) for call, loops in recorder.log[-rounds * len(calls) :]]
    return [readings[start : start + len(calls)] for start in range(0, len(readings), len(calls))]


def test_readings_are_the_planted_seconds_per_call():
    machine = Machine()
    planted = [0.0001, 0.0017, 0.05]
    readings = bench([machine.call(seconds) for seconds in planted], timer=machine.timer(), rounds=5)
    assert [len(values) for values in readings] == [5, 5, 5]
    for values, seconds in zip(readings, planted, strict=True):
        assert values == pytest.approx([seconds] * 5)


def test_a_reading_takes_as_many_calls_as_last_its_length():
    loops = dict(recorded([0.0003, 0.002, 0.05], rounds=1)[0])
    assert loops == {0: 7, 1: 1, 2: 1}  # 7 x 0.3 ms is the first multiple over 2 ms


def test_every_round_reads_each_call_once_in_an_order_of_its_own():
    rounds = recorded([0.001] * 8)
    orders = [tuple(number for number, _ in readings) for readings in rounds]
    assert all(sorted(order) == list(range(8)) for order in orders)
    assert len(set(orders)) == 4


def test_the_seed_decides_the_order():
    assert recorded([0.001] * 8, seed=1) == recorded([0.001] * 8, seed=1)
    assert recorded([0.001] * 8, seed=1) != recorded([0.001] * 8, seed=2)


def test_the_slow_first_calls_are_in_no_reading():
    machine = Machine()
    call = machine.call(3.0, 0.02, 0.01, 0.001)
    (values,) = bench([call], timer=machine.timer(), rounds=3, warmup=10)
    assert values == pytest.approx([0.001] * 3)


def test_warming_up_goes_on_while_a_call_gets_faster():
    machine = Machine()
    readings = [0.010, 0.008, 0.006, 0.004]  # each more than 5 % faster than the one before
    (values,) = bench([machine.call(0.010, *readings)], timer=machine.timer(), rounds=1, warmup=10)
    assert values == pytest.approx([0.004])


def test_warming_up_and_calibrating_stay_under_ten_milliseconds():
    machine = Machine()
    started = []
    call = machine.call(0.0005)
    bench([call], timer=machine.timer(), rounds=1, on_round=lambda done, of: started.append(machine.now))
    reading = 5 * 0.0005  # one untimed call and four timed ones
    assert started[0] - reading <= 0.010


def test_warming_up_ends_even_if_the_call_always_gets_faster():
    machine = Machine()
    faster = [0.9**turn for turn in range(200)]
    (values,) = bench([machine.call(*faster)], timer=machine.timer(), rounds=1, warmup=1000)
    assert len(values) == 1


def test_a_clock_that_stands_still_ends_the_calibration():
    calls = 0

    def run() -> None:
        nonlocal calls
        calls += 1

    timer = Recorder({run: 0.0})
    assert bench([run], timer=timer, rounds=1) == [(0.0,)]
    assert max(loops for _, loops in timer.log) == MOST_LOOPS


def test_the_collector_is_off_while_reading_and_as_before_afterwards():
    seen = []

    def run() -> None:
        seen.append(gc.isenabled())

    timer = Recorder({run: 1.0})
    between = []
    bench([run], timer=timer, rounds=2, on_round=lambda done, of: between.append(gc.isenabled()))
    assert seen == [False, False]
    assert between == [True, True]
    gc.disable()
    try:
        bench([run], timer=timer, rounds=1)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_rounds_are_announced():
    machine = Machine()
    heard = []
    bench([machine.call(0.01)], timer=machine.timer(), rounds=3, on_round=lambda done, of: heard.append((done, of)))
    assert heard == [(1, 3), (2, 3), (3, 3)]


def test_the_host_clock_is_read_only_when_the_device_is_idle():
    events = []

    def clock() -> float:
        events.append("clock")
        return 0.0

    timer = HostTimer(clock=clock, wait=lambda: events.append("wait"))
    timer.time(lambda: events.append("call"), 2)
    assert events == ["wait", "clock", "call", "call", "wait", "clock"]


def test_no_calls_give_no_readings():
    assert bench([], timer=HostTimer(), rounds=2) == []


@pytest.mark.parametrize("wrong", [{"rounds": 0}, {"reading": 0.0}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError, match="rounds must be 1 or more"):
        bench([], timer=HostTimer(), **wrong)


@pytest.mark.gpu
def test_cuda_events_see_work_that_the_host_does_not_wait_for():
    matrix = torch.randn(4096, 4096, device="cuda")
    timer = CudaTimer()
    timer.time(lambda: matrix @ matrix, 3)
    one, many = (timer.time(lambda: matrix @ matrix, loops) for loops in (10, 100))
    assert many == pytest.approx(10 * one, rel=0.5)
