"""Readings on a scripted clock: nothing here depends on how fast the machine is."""

import gc
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from htas.errors import UserError
from htas.timing.bench import (
    LOOK,
    MOST_LOOPS,
    REBUILDING,
    REPEAT,
    SOONEST,
    STRETCHES,
    Bench,
    CudaTimer,
    HostTimer,
    Readings,
    Timer,
)


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

    shortest: ClassVar[float] = 1e-4
    planted: dict[Callable[[], object], float]
    log: list[tuple[Callable[[], object], int]] = field(default_factory=list)

    def time(self, call: Callable[[], object], loops: int) -> float:
        self.log.append((call, loops))
        return self.planted[call] * loops


def bench(calls: list[Callable[[], object]], timer: Timer, **options: Any) -> list[Readings]:
    """Readings of calls that are there already."""
    run = {name: options.pop(name) for name in ("pending", "on_round", "rebuild", "first") if name in options}
    return Bench(timer, **options).run(calls.__getitem__, len(calls), **run)


def recorded(planted: list[float], rounds: int = 4, seed: int = 0, **options: Any) -> list[list[tuple[int, int]]]:
    """By round: the calls' numbers in the order they were read, with the length of each reading in calls."""
    calls = [lambda number=number: number for number in range(len(planted))]
    recorder = Recorder(dict(zip(calls, planted, strict=True)))
    bench(calls, recorder, rounds=rounds, seed=seed, rebuild=False, **options)
    readings = [(calls.index(call), loops) for call, loops in recorder.log[-rounds * len(calls) * REPEAT :: REPEAT]]
    return [readings[start : start + len(calls)] for start in range(0, len(readings), len(calls))]


def test_readings_are_the_planted_seconds_per_call():
    machine = Machine()
    planted = [0.0001, 0.0017, 0.05]
    readings = bench([machine.call(seconds) for seconds in planted], machine.timer(), rounds=5)
    for found, seconds in zip(readings, planted, strict=True):
        assert found.seconds == pytest.approx([seconds] * 5 * REPEAT)
        assert found.levels == pytest.approx([1.0] * 5 * REPEAT)


def test_a_reading_takes_as_many_calls_as_last_its_length():
    loops = dict(recorded([0.0003, 0.002, 0.05], rounds=1, reading=0.002)[0])
    assert loops == {0: 7, 1: 1, 2: 1}  # 7 x 0.3 ms is the first multiple over 2 ms


def test_a_reading_is_as_short_as_the_clock_allows():
    assert dict(recorded([0.00003, 0.0002], rounds=1)[0]) == {0: 4, 1: 1}  # 0.12 ms is over HostTimer's 0.1 ms


def test_every_round_reads_each_call_in_an_order_of_its_own():
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
    (found,) = bench([call], machine.timer(), rounds=3, warmup=10)
    assert found.seconds == pytest.approx([0.001] * 3 * REPEAT)


def test_warming_up_goes_on_while_a_call_gets_faster():
    machine = Machine()
    readings = [0.010, 0.008, 0.006, 0.004]  # each more than 5 % faster than the one before
    (found,) = bench([machine.call(0.010, *readings)], machine.timer(), rounds=1, warmup=10)
    assert found.seconds == pytest.approx([0.004] * REPEAT)


def test_warming_up_and_calibrating_stay_under_ten_milliseconds():
    machine = Machine()
    started = []
    call = machine.call(0.0005)
    bench([call], machine.timer(), rounds=1, on_round=lambda share, words: started.append(machine.now))
    assert started[0] - (1 + REPEAT) * 0.0005 <= 0.010  # less the round: an untimed call and the readings


def test_warming_up_ends_even_if_the_call_always_gets_faster():
    machine = Machine()
    faster = [0.9**turn for turn in range(200)]
    (found,) = bench([machine.call(*faster)], machine.timer(), rounds=1, warmup=1000)
    assert len(found.seconds) == REPEAT


def test_readings_know_how_long_they_lasted():
    machine = Machine()
    short, long = bench([machine.call(0.00003), machine.call(0.05)], machine.timer(), rounds=2)
    assert (short.lasted, long.lasted) == pytest.approx((0.00012, 0.05))


def test_readings_get_longer_when_a_call_is_faster_than_when_it_was_warmed_up():
    machine = Machine()
    # a call to settle in, a warm-up of 10 ms that is no faster, an untimed one: then it takes a hundredth
    (found,) = bench([machine.call(0.01, 0.01, 0.01, 0.00001)], machine.timer(), rounds=3)
    assert found.seconds == pytest.approx([0.00001] * 3 * REPEAT)
    assert found.lasted == pytest.approx(0.0001)  # ten calls, and none of the one that was too short


def test_a_clock_that_stands_still_ends_the_calibration():
    def run() -> None:
        return None

    timer = Recorder({run: 0.0})
    with pytest.raises(
        UserError, match=r"Recorder.time.. must give the seconds that calls take, above 0, it gives 0 for"
    ):
        bench([run], timer, rounds=1)
    assert max(loops for _, loops in timer.log) == MOST_LOOPS


def test_the_collector_is_off_while_reading_and_as_before_afterwards():
    seen = []

    def run() -> None:
        seen.append(gc.isenabled())

    timer = Recorder({run: 1.0})
    between = []
    bench([run], timer, rounds=2, on_round=lambda share, words: between.append(gc.isenabled()))
    assert seen == [False, False]
    assert between == [True, True]
    gc.disable()
    try:
        bench([run], timer, rounds=1)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_rounds_are_announced_with_how_slow_the_machine_is():
    machine = Machine()
    heard = []
    call = machine.call(*[0.01] * 5, *[0.01] * 3, *[0.015] * 100)  # warm up, read a round, become slower
    bench([call], machine.timer(), rounds=2, rebuild=False, on_round=lambda share, words: heard.append((share, words)))
    assert heard == [(0.5, "the machine at 1.00 of its fastest"), (1.0, "the machine at 1.50 of its fastest")]


def test_reading_ends_when_time_is_up():
    machine = Machine()
    calls = [machine.call(0.01), machine.call(0.01)]
    found = bench(calls, machine.timer(), rounds=1000, limit=1.0, now=lambda: machine.now)
    spent = 2 * (1 + REPEAT) * 0.01  # of a round
    assert len(found[0].seconds) == len(found[1].seconds) > REPEAT
    assert machine.now < 1.0 + 2 * spent


def test_there_is_one_round_however_short_the_time():
    machine = Machine()
    (found,) = bench([machine.call(0.01)], machine.timer(), rounds=1000, limit=1e-9, now=lambda: machine.now)
    assert len(found.seconds) == REPEAT


def test_what_is_decided_is_read_no_more():
    machine = Machine()
    asked = []

    def pending(readings: Sequence[Readings]) -> list[int]:
        asked.append([len(found.seconds) for found in readings])
        return [2, 1] if len(asked) == 1 else [1] if len(asked) == 2 else []

    calls = [machine.call(seconds) for seconds in (0.001, 0.002, 0.003)]
    found = bench(calls, machine.timer(), rounds=2 * STRETCHES, pending=pending)
    first, each = SOONEST * STRETCHES * 2 * REPEAT, 2 * REPEAT  # of the stretches before the first question, and of one
    assert [len(readings.seconds) for readings in found] == [first, first + 2 * each, first + each]
    assert [readings.seconds[-1] for readings in found] == pytest.approx([0.001, 0.002, 0.003])
    assert asked[0] == [first] * 3


class Programs:
    """Counts the calls that are alive whenever one is called."""

    def __init__(self, machine: Machine) -> None:
        self.machine, self.alive, self.most = machine, weakref.WeakSet(), []

    def build(self, number: int) -> Callable[[], None]:
        call = partial(self.call)
        self.alive.add(call)
        return call

    def call(self) -> None:
        self.machine.now += 0.01
        self.most.append(len(self.alive))

    def run(self, build: Callable[[int], Callable[[], None]]) -> None:
        Bench(self.machine.timer(), rounds=10 * STRETCHES, now=lambda: self.machine.now).run(build, 1)


def test_calls_are_built_anew_in_every_stretch_and_the_old_ones_let_go_afterwards():
    built, programs = [], Programs(Machine())
    programs.run(lambda number: built.append(number) or programs.build(number))
    assert len(built) == STRETCHES
    assert max(programs.most) == 2  # while the second is warmed up, the first holds its memory
    once, machine = [], Machine()
    Bench(machine.timer(), rounds=STRETCHES).run(
        lambda number: once.append(number) or machine.call(0.01), 1, rebuild=False
    )
    assert once == [0]


def test_the_old_calls_are_let_go_before_where_there_is_no_room_for_both(monkeypatch: pytest.MonkeyPatch):
    for each, at_once in ((450, 1), (400, 2)):
        programs = Programs(Machine())
        monkeypatch.setattr("htas.timing.bench.free_memory", lambda: 1000 - each * len(programs.alive))  # noqa: B023
        programs.run(programs.build)
        assert max(programs.most) == at_once


def test_calls_that_take_long_to_build_are_built_anew_less_often():
    machine, built = Machine(), []

    def build(number: int) -> Callable[[], None]:
        built.append(machine.now)
        machine.now += 4.0
        return machine.call(0.01)

    Bench(machine.timer(), rounds=10**6, limit=80.0, now=lambda: machine.now).run(build, 1)
    assert 3 <= len(built) <= 1 + REBUILDING * 84 / 4
    built.clear()
    Bench(machine.timer(), rounds=10**6, limit=12.0, now=lambda: machine.now).run(build, 1)
    assert len(built) == 1  # one more would take a third of the time


def test_what_calls_share_is_renewed_before_they_are_built_anew():
    machine, events = Machine(), []
    Bench(machine.timer(), rounds=10 * STRETCHES, now=lambda: machine.now).run(
        lambda number: events.append("build") or machine.call(0.01), 1, renew=lambda: events.append("renew")
    )
    assert events == ["build", *["renew", "build"] * (STRETCHES - 1)]


def test_calls_are_built_in_an_order_of_each_stretch():
    machine, built = Machine(), []
    Bench(machine.timer(), rounds=10 * STRETCHES, now=lambda: machine.now).run(
        lambda number: built.append(number) or machine.call(0.01), 8
    )
    orders = {tuple(built[start : start + 8]) for start in range(0, len(built), 8)}
    assert len(orders) > STRETCHES / 2
    assert all(sorted(order) == list(range(8)) for order in orders)


def test_a_run_that_samples_takes_in_what_is_wanted_and_reads_all_it_has_meanwhile():
    machine = Machine()
    asked = []

    def pending(readings: Sequence[Readings]) -> list[int]:
        asked.append([len(found.seconds) // REPEAT for found in readings])
        return [[1, 2], [3], [3], [0], [0], []][len(asked) - 1]

    calls = [machine.call(0.001 * number) for number in range(1, 6)]
    rounds = 3 * LOOK + 4 * STRETCHES
    found = bench(calls, machine.timer(), rounds=rounds, first=[0, 2], pending=pending)
    assert asked[:3] == [[2, 0, 2, 0, 0], [4, 2, 4, 0, 0], [6, 4, 6, 2, 0]]
    read = 4 * round(SOONEST * STRETCHES)  # rounds before the next question; then in stretches of 4, where pending
    more = [[each + read if each else 0 for each in (6, 4, 6, 2, 0)]]
    more += [[more[0][0] + 4 * number, *more[0][1:]] for number in (1, 2)]
    assert asked[3:] == more
    assert [len(each.seconds) // REPEAT for each in found] == more[-1]
    assert [each.seconds[-1] for each in found[:4]] == pytest.approx([0.001, 0.002, 0.003, 0.004])
    assert found[4] == Readings((), ())


def test_a_run_that_samples_looks_no_further_than_half_of_its_rounds_and_its_time():
    asked = []

    def greedy(readings: Sequence[Readings]) -> list[int]:
        asked.append(len(readings[0].seconds) // REPEAT)
        return list(range(len([each for each in readings if each.seconds]) + 1))

    machine = Machine()
    calls = [machine.call(0.01) for _ in range(100)]
    bench(calls, machine.timer(), rounds=16 * LOOK, first=[0], pending=greedy)
    looks = [LOOK * look for look in range(1, 8)]
    assert asked[:7] == looks  # at half of the rounds it looks no more
    assert asked[7] == round((8 + 8 * SOONEST) * LOOK)  # and asks again when every call was read in several places
    found = bench(calls, machine.timer(), rounds=10**6, limit=1.0, first=[0], pending=greedy, now=lambda: machine.now)
    assert sum(bool(each.seconds) for each in found) < 10
    assert len(found[0].seconds) > REPEAT * LOOK


def test_calls_that_are_built_once_are_built_when_they_are_wanted_within_the_limit():
    machine = Machine()
    built = []

    def build(number: int) -> Callable[[], None]:
        built.append(number)
        machine.now += 100.0
        return machine.call(0.01)

    def pending(readings: Sequence[Readings]) -> list[int]:
        return [0, 3] if readings[3].seconds or readings[1].seconds else []

    run = Bench(machine.timer(), rounds=1000, limit=310.0, now=lambda: machine.now)
    found = run.run(build, 4, first=[0, 1], rebuild=False, pending=pending)
    assert built == [0, 1, 3]
    assert 300 + 10 <= machine.now < 300 + 11
    assert len(found[3].seconds) > 100 and found[2].seconds == ()
    built.clear()
    start = machine.now
    found = replace(run, limit=150.0).run(build, 4, first=[0, 1], rebuild=False, pending=pending)
    assert built == [0, 1] and 200 <= machine.now - start < 201  # nothing is left for more than a round
    assert [len(each.seconds) for each in found] == [REPEAT, REPEAT, 0, 0]


def test_a_machine_that_slows_down_is_seen_in_the_levels_and_not_in_the_ratio_of_two_calls():
    machine = Machine()

    def call(seconds: float) -> Callable[[], None]:
        def run() -> None:
            machine.now += seconds * (1.5 if machine.now > 2 else 1.0)

        return run

    one, other = bench([call(0.010), call(0.020)], machine.timer(), rounds=32)
    steady = [np.divide(each.seconds, each.levels) for each in (one, other)]
    assert np.ptp(one.seconds) > 0.004
    assert np.percentile(steady[1], 25) / np.percentile(steady[0], 25) == pytest.approx(2, rel=0.01)
    assert np.max(one.levels) / np.min(one.levels) == pytest.approx(1.5, rel=0.02)


def test_the_host_clock_is_read_only_when_the_device_is_idle():
    events = []

    def clock() -> float:
        events.append("clock")
        return 0.0

    timer = HostTimer(clock=clock, wait=lambda: events.append("wait"))
    timer.time(lambda: events.append("call"), 2)
    assert events == ["wait", "clock", "call", "call", "wait", "clock"]


def test_no_calls_give_no_readings():
    assert bench([], HostTimer(), rounds=2) == []


@pytest.mark.parametrize("wrong", [{"rounds": 0}, {"reading": -1.0}, {"limit": 0.0}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError, match="rounds must be 1 or more"):
        Bench(HostTimer(), **wrong)


@pytest.mark.gpu
def test_cuda_events_see_work_that_the_host_does_not_wait_for():
    matrix = torch.randn(4096, 4096, device="cuda")
    timer = CudaTimer()
    timer.time(lambda: matrix @ matrix, 3)
    one, many = (timer.time(lambda: matrix @ matrix, loops) for loops in (10, 100))
    assert many == pytest.approx(10 * one, rel=0.5)
