"""A folder that cannot be written, or has no room, is noticed before anything is measured or trained."""

import errno
import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from scripted_device import scripted_device
from whole_run import do, options, sentence, times

from htas.errors import UserError
from htas.metrics.latency import Latency
from htas.run.writable import STAGE, need_writable
from htas.strategies.differentiable import _Search
from htas.training.train import Training


@pytest.fixture(autouse=True)
def _scripted() -> Iterator[None]:
    with scripted_device():
        yield


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """No process may write a larger file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_folder_with_room_is_made_and_left_empty(tmp_path: Path) -> None:
    need_writable(tmp_path / "some" / "run", weights=1000)
    assert not list((tmp_path / "some" / "run").iterdir())


def test_what_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    with files_up_to(STAGE - 1), pytest.raises(UserError) as error:
        need_writable(tmp_path)
    assert f"cannot write {tmp_path}: File too large; free 8 MB or name another folder" in sentence(error)
    with pytest.raises(UserError) as error:
        need_writable(Path("/proc/no/folder"))
    assert "cannot write /proc/no/folder: " in sentence(error)
    assert not list(tmp_path.iterdir())


def test_trainings_for_which_there_is_no_room_are_refused_with_the_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100e6))
    need_writable(tmp_path, 4_000_000)
    with pytest.raises(UserError) as error:
        need_writable(tmp_path, 25_000_000)
    assert "with 100 MB of room, and trainings of 25 M weights take 508 MB; free some space" in sentence(error)


@pytest.mark.parametrize("stage", ["survey", "design", "calibrate", "search", "train"])
def test_no_stage_begins_where_its_files_have_no_room(
    stage: str, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = times(copied)
    for owner, name in [(Latency, "measure"), (Latency, "sample"), (_Search, "epoch"), (Training, "epoch")]:
        monkeypatch.setattr(owner, name, None)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError) as error:
        do(stage, options(), copied, again=True)
    assert f"cannot write {copied}: No space left on device; free 8 MB" in sentence(error)
    assert times(copied) == before
