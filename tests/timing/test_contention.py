"""What is said of others on the machine, from planted counts."""

import os
from contextlib import suppress

from htas.timing.contention import Usage, Watch, clock, clock_remarks, priority, remarks

START = Usage(0.0, 2, others=0.0, stolen=0.0)


def test_a_quiet_machine_is_not_remarked_on() -> None:
    assert remarks(START, Usage(10.0, 2, others=0.9, stolen=0.1)) == ()
    assert remarks(START, Usage(0.0, 2, others=5.0, stolen=5.0)) == ()


def test_other_processes_are_named_with_the_cores_they_used() -> None:
    (said,) = remarks(START, Usage(10.0, 2, others=9.7, stolen=0.0))
    assert said == "other processes used 0.97 of 2 cores meanwhile; stop them"


def test_stolen_time_is_named_with_its_share() -> None:
    (said,) = remarks(START, Usage(10.0, 2, others=0.0, stolen=1.0))
    assert said.startswith("the hypervisor gave 5% of this machine's time to others")


def test_a_watch_compares_two_moments(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    moments = iter([Usage(100.0, 4, 50.0, 1.0), Usage(110.0, 4, 70.0, 1.0)])
    monkeypatch.setattr(Usage, "now", lambda: next(moments))
    assert Watch().remarks() == ("other processes used 2.00 of 4 cores meanwhile; stop them",)


def test_a_clock_that_moved_is_named_with_what_to_do() -> None:
    assert clock_remarks([], "cpu") == clock_remarks([0.0, 0.0], "cpu") == ()
    assert clock_remarks([3.0e9, 0.0, 3.1e9], "cpu") == ()  # 0 is not known
    (said,) = clock_remarks([2.1e9, 3.4e9, 3.0e9], "cpu")
    assert said.startswith("the processor's clock moved between 2.10 and 3.40 GHz meanwhile; fix it (cpupower")
    (said,) = clock_remarks([1.2e9, 1.9e9], "cuda")
    assert said.startswith("the GPU's clock moved between 1.20 and 1.90 GHz meanwhile; fix it (nvidia-smi -lgc)")


def test_a_watch_looks_at_the_clock_now_and_then(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    moment, clocks = [0.0], iter([2.0e9, 3.0e9])
    monkeypatch.setattr("htas.timing.contention.time.monotonic", lambda: moment[0])
    monkeypatch.setattr("htas.timing.contention.clock", lambda device: next(clocks))
    monkeypatch.setattr(Usage, "now", lambda: Usage(moment[0], 4, 0.0, 0.0))
    watch = Watch()
    for moment[0] in (0.5, 1.0, 1.5, 2.0):
        watch.look()
    (said,) = watch.remarks()
    assert "between 2.00 and 3.00 GHz" in said


def test_the_clock_of_this_machine_is_a_number() -> None:
    assert clock("cpu") >= 0


def test_priority_is_given_back() -> None:
    before = os.getpriority(os.PRIO_PROCESS, 0)
    with priority(before + 1) as allowed:  # less of it is always allowed
        assert allowed
        assert os.getpriority(os.PRIO_PROCESS, 0) == before + 1
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, before)  # more of it is not, but for root


def test_this_machine_counts() -> None:
    usage = Usage.now()
    assert usage.cores >= 1
    assert usage.others >= 0
