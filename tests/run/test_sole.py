"""One command at a time works in a folder of a run."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from scripted_device import scripted_device
from whole_run import COMMAND, do, options, sentence, times

from htas.errors import UserError
from htas.run import stages as pipeline
from htas.run.run import open_run
from htas.run.sole import sole

HOLD = """
import sys, time
from pathlib import Path
from htas.run.sole import sole
with sole(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@contextmanager
def holder(folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process that works in a folder, while it lives."""
    with subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_a_folder_that_another_process_works_in_is_refused_until_it_ends(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        with pytest.raises(UserError, match="another htas command works in"), sole(tmp_path):
            pass
        with sole(tmp_path.parent):
            pass
        process.kill()
        process.wait()
        with sole(tmp_path):
            pass


def test_within_itself_and_after_itself_a_process_may_work_in_its_folder(tmp_path: Path) -> None:
    with sole(tmp_path):
        with sole(tmp_path / ".." / tmp_path.name):
            pass
        done = subprocess.run([sys.executable, "-c", HOLD, str(tmp_path)], capture_output=True, text=True, check=False)
        assert done.returncode == 1 and f"another htas command works in {tmp_path}" in done.stderr
    with holder(tmp_path):
        pass


def test_a_forked_process_does_not_keep_the_folder_of_the_one_that_it_is_from(tmp_path: Path) -> None:
    fork = HOLD.replace(
        "time.sleep(600)", "import os; pid = os.fork(); print(pid, flush=True) if pid else time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", fork, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        child = int(process.stdout.readline())
        try:
            process.wait()
            with sole(tmp_path):
                pass
        finally:
            os.kill(child, signal.SIGKILL)


def test_no_stage_begins_in_a_run_that_another_command_works_in_but_the_report_does(copied: Path) -> None:
    before = times(copied)
    with scripted_device(), holder(copied):
        for stage in pipeline.STAGES[:-1]:
            with pytest.raises(UserError) as error:
                do(stage.name, options(), copied, again=True)
            assert sentence(error).startswith(
                f"another htas command works in {copied}; stop it, wait until it has ended"
            )
        with pytest.raises(UserError, match="another htas command works in"):
            pipeline.run_all(open_run(options(), copied), COMMAND)
        assert times(copied) == before
        (copied / "report.json").unlink()
        do("report", options(), copied)
        assert (copied / "report.json").exists()


def test_no_run_of_another_configuration_takes_a_folder_in_which_a_command_has_just_begun(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with scripted_device():
        open_run(options(), folder)
        before = times(folder)
        with holder(folder):
            open_run(options(), folder)
            with pytest.raises(UserError, match="another htas command works in"):
                open_run(options("design.expand=1.5"), folder)
            assert times(folder) == before
        open_run(options("design.expand=1.5"), folder)
        assert "expand = 1.5" in (folder / "config.toml").read_text()
