"""Trials in processes of their own end as those of a sequential comparison: same files, same numbers."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from scripted_device import scripted_device

from htas.cli import main
from htas.experiments.arm_tables import read_arms
from htas.experiments.arms import arm_of
from htas.experiments.compare import Comparison, Trials
from htas.files import read_json, read_tensors
from htas.run import stages
from htas.timing.target import Target

pytestmark = pytest.mark.timeout(300)  # whole runs, in processes that import PyTorch
ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]), "OMP_NUM_THREADS": "1"}
OPTIONS = [
    "--family.depth=14", "--split.limit=60", "--target.threads=1", "--target.runtime=scripted_device:Scripted",
    "--survey.rounds=1", "--survey.store=none", "--survey.undecided=1", "--calibrate.networks=8", "--design.groups=4",
    "--design.spaces=[grid]", "--constraints.latency=60%", "--strategy.epochs=1", "--strategy.batch=30",
    "--strategy.precision=fp32", "--train.epochs=1", "--train.warmup=0", "--train.rest=0", "--train.batch=30",
    "--train.precision=fp32",
]  # fmt: skip
ARMS = """
[found]
[otherwise]
like = "found"
train.lr = 0.02
["plain 8"]
network = "cifar_resnet:8"
"""
TIMES = ("search_seconds", "seconds", "date", "process", "took")


def words(folder: Path, *more: str, arms: str = ARMS, seeds: int = 2) -> list[str]:
    (folder / "some.toml").write_text('[data]\nname = "digits"\n')
    path = folder / "arms.toml"
    path.write_text(arms)
    return [
        "compare",
        str(folder / "some.toml"),
        str(path),
        *OPTIONS,
        f"--seeds={seeds}",
        f"--out={folder / 'out'}",
        *more,
    ]


def without_times(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: without_times(value) for key, value in content.items() if key not in TIMES}
    return [without_times(each) for each in content] if isinstance(content, list) else content


def ended(folder: Path) -> dict[str, Any]:
    """What a comparison has come to, but for its times: results, searches, and weights to the last bit."""
    # networks that are not searched have copies of searches that were done before them
    results = {str(path.relative_to(folder)): without_times(read_json(path)) for path in folder.glob("*/result.json")}
    searches = {str(path.relative_to(folder)): read_json(path)["arch"] for path in folder.glob("found-*/search-*.json")}
    weights = {
        f"{path.relative_to(folder)} {name}": tensor.tolist()
        for path in folder.glob("*/networks/*.safetensors") for name, tensor in read_tensors(path)[0].items()
    }  # fmt: skip
    return {**results, **searches, **weights}


@pytest.fixture(scope="module")
def sequential(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sequential")
    with scripted_device(patched=False):
        assert main(words(folder)) == 0
    return folder / "out"


@pytest.mark.slow
def test_processes_come_to_the_same_as_one_after_the_other(sequential: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "htas", *words(tmp_path, "--workers=local:2,threads=1")],
        cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert ended(tmp_path / "out") == ended(sequential)
    assert len(read_json(tmp_path / "out" / "compare.json")["arms"]) == 6
    lines = [line for path in (tmp_path / "out" / "logs").glob("*.jsonl") for line in path.read_text().splitlines()]
    turns = [json.loads(line) for line in lines]
    measured = [turn for turn in turns if turn["does"] == "measures"]
    assert len({turn["process"] for turn in turns}) == 2 and measured
    for one in measured:
        others = [turn for turn in turns if turn is not one and turn["process"] != one["process"]]
        assert all(other["to"] <= one["from"] or one["to"] <= other["from"] for other in others)


@pytest.mark.slow
def test_every_trial_has_a_command_that_can_be_run_in_any_order_and_again(
    sequential: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with scripted_device(patched=False):
        assert main(words(tmp_path, "--list")) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [re.findall(r"--trial=(\S+)", line)[0] for line in lines] == [
            "found-0", "otherwise-0", "plain-8-0", "found-1", "otherwise-1", "plain-8-1",
        ]  # fmt: skip
        assert not (tmp_path / "out").exists(), "listing runs nothing"
        for line in [*reversed(lines), lines[0]]:  # the arm `otherwise` before the one that it follows
            assert main(shlex.split(line)[1:]) == 0
        assert main(words(tmp_path, "--list")) == 0 and not capsys.readouterr().out
        assert main(words(tmp_path, "--only")) == 0
    assert ended(tmp_path / "out") == ended(sequential)


@pytest.mark.parametrize(
    "arms, said",
    [
        ('["plain"]\nnetwork = "cifar_resnet:9"', r"arm plain: .*9"),
        ('["own"]\nfamily.name = "custom"\nfamily.factory = "no_such:net"', r"arm own: .*no_such"),
        ('["wide"]\ndesign.spaces = ["explicit"]\n[wide.design.widths]\nnothing = [8]', r"arm wide: .*'nothing'"),
    ],
)
def test_commands_that_would_all_fail_are_not_listed(
    arms: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with scripted_device(patched=False):
        assert main(words(tmp_path, "--list", arms=f"[some]\n{arms}")) == 2
    shown = capsys.readouterr()
    assert re.search(said, shown.err.splitlines()[-1]) and not shown.out and not (tmp_path / "out").exists()


@pytest.mark.parametrize("more", [["--workers=", "--trial="], ["--workers", "", "--trial", ""]])
def test_commands_do_not_say_what_names_nothing(
    more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with scripted_device(patched=False):
        assert main(words(tmp_path, "--list", *more, seeds=1)) == 0
    for line in capsys.readouterr().out.splitlines():
        assert line.count("--trial") == 1 and "--workers" not in line and "''" not in line and "only" not in line


def test_what_hits_several_trials_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arms = '[one]\n[two]\ndata.name = "image_folder"\ndata.path = "nowhere"\n'
    arms += '[three]\ndata.name = "image_folder"\ndata.path = "nowhere"\nnetwork = "base"\n'
    trials = Trials(
        None, ("--data.name=digits", *OPTIONS), tuple(map(arm_of, read_arms(_written(tmp_path, arms)))), 2, tmp_path
    )
    with scripted_device(patched=False):
        whole = Comparison.arranged(trials)
        hit = whole.prepare([key for key in whole.jobs if key[0] != "one"])
    assert len(hit) == 4 and len(set(hit.values())) == 1
    assert capsys.readouterr().err.count("nowhere") == 1


def _written(folder: Path, arms: str) -> Path:
    (folder / "arms.toml").write_text(arms)
    return folder / "arms.toml"


@pytest.mark.slow
def test_a_trial_on_another_machine_takes_what_the_device_has_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = words(tmp_path, seeds=1)
    arms = tuple(map(arm_of, read_arms(Path(given[2]))))
    trials = Trials(Path(given[1]), tuple(OPTIONS), arms, 1, tmp_path / "out")
    names = [f"found-0/{name}.json" for name in ("survey", "design", "cost")]

    def never(*_: object, **__: object) -> None:
        raise AssertionError("it is not the device")

    with scripted_device(patched=False):
        whole = Comparison.arranged(trials)
        assert not whole.prepare(list(whole.jobs))
        before = [(tmp_path / "out" / name).read_bytes() for name in names]
        place = whole.jobs["found", 0].place
        monkeypatch.setattr(Target, "fingerprint", lambda self: "another machine")
        for name in ("take_survey", "fit_cost"):
            monkeypatch.setattr(stages, name, never)
        there = Comparison.arranged(trials.pinned(whole.jobs["found", 0].target))
        assert there.jobs["found", 0].place != place
        there.finish(("found", 0), measures=False)
    assert [(tmp_path / "out" / name).read_bytes() for name in names] == before
    assert (tmp_path / "out" / "found-0" / "result.json").exists()


@pytest.mark.slow
def test_a_trial_that_follows_one_that_failed_is_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor is the other one tried again: its process would come to the same after hours."""
    arms = '[found]\nconstraints.latency = "0.1%"\n[otherwise]\nlike = "found"\ntrain.lr = 0.02\n'
    arms += '["plain 8"]\nnetwork = "cifar_resnet:8"\n'
    monkeypatch.setenv("PYTHONPATH", ENVIRONMENT["PYTHONPATH"])
    with scripted_device(patched=False):
        assert main(words(tmp_path, "--workers=local:2,threads=1", arms=arms, seeds=1)) == 0
    lines = capsys.readouterr().out
    assert "Left out: found, seed 0: " in lines
    assert "Left out: otherwise, seed 0: the arm found, whose network it trains, is not finished" in lines
    assert not (tmp_path / "out" / "logs" / "otherwise-0.log").exists()


@pytest.mark.slow
def test_a_trial_that_fails_is_named_and_leaves_the_others(tmp_path: Path) -> None:
    arms = '[found]\n["too narrow"]\nconstraints.latency = "0.1%"\n["plain 8"]\nnetwork = "cifar_resnet:8"\n'
    done = subprocess.run(
        [sys.executable, "-m", "htas", *words(tmp_path, "--workers=local:2", arms=arms, seeds=1)],
        cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Left out: too narrow, seed 0: " in done.stdout
    assert {each["arm"] for each in read_json(tmp_path / "out" / "compare.json")["arms"]} == {"found", "plain 8"}


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_command_leaves_no_process_and_the_same_one_goes_on(
    how: signal.Signals, sequential: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "htas", *words(tmp_path, "--workers=local:2,threads=1")]
    logs = tmp_path / "out" / "logs"
    with subprocess.Popen(
        command, cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        while not any(path.stat().st_size for path in logs.glob("*.log")):
            assert process.poll() is None
            time.sleep(0.1)
        children = psutil.Process(process.pid).children(recursive=True)
        # as a terminal does it: to the command, and to all that it has started
        os.killpg(process.pid, how) if how == signal.SIGINT else process.send_signal(how)
    assert len(children) >= 2 and not psutil.wait_procs(children, timeout=30)[1]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert ended(tmp_path / "out") == ended(sequential)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--workers=locl:2"], "--workers must be local:N"),
        (
            ["--workers=ray,gpus=1.5"],
            "gpus of --workers must be 0, a share of a card from 0.001 to 1, or a whole number",
        ),
        (["--workers=ray,gpus=1e-5"], "gpus of --workers must be 0, a share"),
        (["--workers=4"], "--workers must be local:N for N processes on this machine, ray for .*, got '4'"),
        (["--workers=local:0"], "--workers must be local:N"),
        (["--workers=local:00"], "--workers must be local:N"),
        (["--workers=local:2,cores=1"], "--workers must be local:N"),
        (["--workers=local:2,threads=1=2"], "--workers must be local:N"),
        (["--workers=local:2,threads=1,threads=2"], "--workers must be local:N"),
        (["--workers=local:2,threads=x"], "threads of --workers must be a whole number, got 'x'"),
        (["--workers=local:2,gpus=1"], "gpus of --workers must be 0, .*, and is for Ray, got '1'"),
        (["--workers=ray,gpus=nan"], "gpus of --workers must be 0, a share"),
        (["--workers=local:2", "--list"], "--workers, --list exclude each other; give one of them"),
        (["--only", "--trial=found-0"], "--trial, --only exclude each other; give one of them"),
        (["--trial=fuond-0"], "no trial called 'fuond-0'; did you mean 'found-0'"),
    ],
)
def test_what_cannot_be_done_at_once_is_one_sentence(
    given: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(tmp_path, *given)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.search(said, error), error
