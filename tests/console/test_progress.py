"""The bar on a terminal, and the lines elsewhere."""

import io
import sys

import pytest

from htas.console.progress import EVERY, Bar, Lines, progress, say
from htas.console.record import recording


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_the_time_left_follows_from_the_speed_so_far() -> None:
    clock = Clock()
    pace = Bar("train", 40, 0, clock)
    assert pace.words == "0/40"
    clock.now += 30
    pace.step(by=12)
    assert pace.remaining == pytest.approx(30 / 12 * 28)
    assert pace.words == "12/40, 1 min 10 s left"


def test_the_time_left_falls_between_steps_and_never_grows() -> None:
    """Of trials of an hour, four at once, each of which counts only at its end."""
    clock = Clock()
    pace = Bar("trials", 10, 0, clock)
    clock.now += 3600
    pace.step(by=4)
    left = []
    for _ in range(40):
        clock.now += 60
        pace.step("something else", by=0)
        left.append(pace.remaining)
    assert left[:3] == pytest.approx([5400 - 60, 5400 - 120, 5400 - 180])
    assert left == sorted(left, reverse=True) and left[-1] == pytest.approx(4500), "a step of the usual length at most"
    pace.step(by=6)
    assert pace.remaining == 0


def test_steps_done_before_do_not_count_as_speed() -> None:
    clock = Clock()
    pace = Bar("train", 40, 20, clock)
    clock.now += 10
    pace.step()
    assert pace.remaining == pytest.approx(10 * 19)


def test_the_last_line_says_how_long_it_took() -> None:
    clock = Clock()
    pace = Bar("train", 2, 0, clock)
    clock.now += 65
    pace.step(by=2)
    assert pace.words == "2/2, 1 min 05 s"


def test_without_a_terminal_there_is_a_line_at_the_start_and_one_at_the_end(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with progress("search hardware", 40) as bar:
        for step in range(40):
            bar.step(f"loss {step}")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == ["search hardware 0/40", "search hardware 40/40, 0 s: loss 39"]


def test_plain_lines_keep_their_distance(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    lines = Lines("survey", 100, 0, clock)
    for _ in range(20):
        clock.now += EVERY / 4
        lines.step("loss 1.23")
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 1 + 20 / 4
    assert err[1] == "survey 4/100, 2 min 00 s left: loss 1.23"


def test_work_that_fails_does_not_claim_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="broken"), progress("train", 3):
        raise ValueError("broken")
    assert capsys.readouterr().err == "train 0/3\n"


def test_a_terminal_gets_a_bar_that_messages_do_not_break(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with progress("train [base]", 4, done=1) as bar:
        bar.step("loss 0.50")
        say("the teacher is ready")
        bar.step(by=2)
    shown = terminal.getvalue()
    assert "train [base]" in shown
    assert "4/4" in shown
    assert "loss 0.50" in shown
    assert "the teacher is ready\n" in shown
    assert sys.stderr is terminal


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "dumb")
    with progress("train", 1) as bar:
        bar.step()
    assert terminal.getvalue().splitlines() == ["train 0/1", "train 1/1, 0 s"]


def test_who_records_may_do_something_after_every_step() -> None:
    """Trials give way to measurements there."""
    calls: list[int] = []
    with recording(between=lambda: calls.append(1)), progress("work", 3) as bar:
        begun = len(calls)
        for _ in range(3):
            bar.step()
        assert len(calls) >= begun + 3
