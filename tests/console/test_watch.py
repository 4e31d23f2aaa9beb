"""A run says how far it is to those who watch it, and its scalars to TensorBoard where asked."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from htas import cli
from htas.console import record, watch
from htas.console.progress import progress, say
from htas.errors import UserError
from htas.search.record import EpochRecord


def begun(folder: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((folder / record.NAME).read_text())
    return found


def test_a_command_leaves_what_it_says_and_how_far_it_is(tmp_path: Path) -> None:
    with record.recording():
        record.into(tmp_path)
        say("survey: 3 s")
        with progress("search hardware", 4) as bar:
            bar.step("loss 2.1", by=4)
            found = watch.state(tmp_path)
            assert found.state == "running" and found.share == 1.0
            assert found.lines == ("survey: 3 s",)
            assert found.work.startswith("search hardware 4/4") and found.work.endswith(": loss 2.1")
            assert found.words[0].startswith(f"{tmp_path}: running for ")
    assert watch.state(tmp_path).state == "finished"
    assert watch.state(tmp_path).words[0] == f"{tmp_path}: finished"


def test_what_stops_a_command_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="too noisy"), record.recording():
        record.into(tmp_path)
        raise ValueError("too noisy")
    assert watch.state(tmp_path).words[0] == f"{tmp_path}: stopped: too noisy"


def test_outside_of_a_command_nothing_is_written(tmp_path: Path) -> None:
    record.into(tmp_path)
    say("nobody listens")
    assert not list(tmp_path.iterdir())


def test_a_process_that_is_no_more_is_gone(tmp_path: Path) -> None:
    with record.recording():
        record.into(tmp_path)
        say("working")
        content = begun(tmp_path)
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    (tmp_path / record.NAME).write_text(json.dumps({**content, "process": child}))
    assert watch.state(tmp_path).state == "gone"
    assert "the same command continues" in watch.state(tmp_path).words[0]
    other = {**content, "process": child, "host": "elsewhere"}  # of which this machine cannot tell
    (tmp_path / record.NAME).write_text(json.dumps(other))
    assert watch.state(tmp_path).state == "running"


def test_of_several_runs_the_one_that_moved_last_is_watched(tmp_path: Path) -> None:
    for number, name in enumerate(("first", "second")):
        (tmp_path / name).mkdir()
        with record.recording():
            record.into(tmp_path / name)
            say(name)
        os.utime(tmp_path / name / record.NAME, (number, number))
    assert watch.state(tmp_path).folder == tmp_path / "second"


def test_of_several_runs_one_is_running_until_all_have_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    seen = []
    put = record.Record.write

    def write(own: record.Record, *words: object) -> None:
        put(own, *words)  # type: ignore[arg-type]
        seen.append(watch.state(tmp_path).state)

    monkeypatch.setattr(record.Record, "write", write)
    with record.recording():
        for name in ("first", "second", "first"):
            record.into(tmp_path / name)
            say(name)
    assert seen[-1] == "finished" and set(seen[1:-1]) == {"running"}


def test_a_broken_file_of_an_older_run_does_not_matter(tmp_path: Path) -> None:
    for number, name in enumerate(("older", "newer")):
        (tmp_path / name).mkdir()
        with record.recording():
            record.into(tmp_path / name)
        if name == "older":
            (tmp_path / name / record.NAME).write_text("{")
        os.utime(tmp_path / name / record.NAME, (number, number))
    assert watch.state(tmp_path).folder == tmp_path / "newer"


def test_watching_follows_to_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    looks = 0
    with record.recording():
        record.into(tmp_path)
        say("began")

        def move(_: float) -> None:
            nonlocal looks
            looks += 1
            say(f"look {looks}")
            if looks == 3:
                record.into(tmp_path / "elsewhere")

        last = watch.watch(tmp_path, once=False, sleep=move)
    lines = capsys.readouterr().out.splitlines()
    assert last.state == "finished" and lines[-1] == f"{tmp_path}: finished"
    assert [line for line in lines if line.startswith("look")] == ["look 1", "look 2", "look 3"]


@pytest.mark.parametrize("content", ["", "{}", '{"state": 1}'])
def test_a_folder_without_a_run_is_refused(content: str, tmp_path: Path) -> None:
    if content:
        (tmp_path / record.NAME).write_text(content)
    with pytest.raises(UserError, match="does not say how far" if content else "no folder in which a run has begun"):
        watch.state(tmp_path)


def test_a_folder_that_is_gone_stops_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with record.recording():
        record.into(folder)
        assert (folder / record.NAME).exists()
        shutil.rmtree(folder)
        say("still working")
        assert "still working" in capsys.readouterr().err and not folder.exists()
        folder.mkdir()
        say("there again")
        assert "there again" in (folder / record.NAME).read_text()


def test_scalars_are_written_for_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed: pip install 'htas[tensorboard]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    one = EpochRecord(1, 5.0, 2.0, None, None, 0.5, 0.4, 0.3, 1.0, {"stage1": 0.75})
    with record.recording(tensorboard=True):
        record.into(tmp_path)
        record.scalars("search hardware", one.epoch, one.scalars)
        record.scalars("train base", 2, {"loss": 1.5})
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert {"search hardware/train_loss", "search hardware/entropy/stage1", "train base/loss"} <= set(
        events.Tags()["scalars"]
    )
    assert "search hardware/validation_loss" not in events.Tags()["scalars"]
    (found,) = events.Scalars("train base/loss")
    assert (found.step, found.value) == (2, 1.5)


def test_states_are_written_once_a_second_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with record.recording():
        record.into(tmp_path)
        say("begin")
        monkeypatch.setattr(time, "monotonic", lambda: 0.0)
        with progress("much", 1000) as bar:
            for _ in range(500):
                bar.step()
            assert begun(tmp_path)["work"] == ""


@pytest.mark.parametrize("field", ["state", "why", "lines", "work", "host"])
def test_what_a_file_says_is_never_obeyed_by_a_terminal(
    tmp_path: Path, field: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with record.recording():
        record.into(tmp_path)
        say("working")
        content = begun(tmp_path)
    for state in ("running", "stopped"):
        evil = "a\x1b]0;x\x07\x9b31m\u202eb"
        changed = {**content, "state": state, "why": "why", field: [evil] if field == "lines" else evil}
        (tmp_path / record.NAME).write_text(json.dumps(changed))
        cli.main(["watch", str(tmp_path), "--once"])
        said = capsys.readouterr()
        assert not set("\x1b\x07\x9b\u202e") & set(said.out + said.err)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"state": %s' % ("[" * 100_000 + "]" * 100_000), "{" * 100_000, "[]"])
def test_a_record_of_many_brackets_is_one_sentence(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / record.NAME).write_text(text)
    assert cli.main(["watch", str(tmp_path), "--once"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"htas: {tmp_path / record.NAME} does not say how far a run is (") and len(line) < 400
