"""Commands that do much in little time and end alike on any day, for campaigns: they are killed, and their disks fill.

Latencies are planted: `scripted_device:Scripted` and `fakes.py steady` are devices of the tests, whose readings are the
same each time. A command runs in processes of its own, which bear a mark.
"""

import hashlib
import json
import os
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from safetensors.numpy import load_file

ROOT = Path(__file__).parents[2]
PATHS = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
"""Where Python finds htas, and the devices of the tests."""
MARK = "HTAS_CAMPAIGN"
"""Variable of a command and of all that it starts: its folder."""
STAGES = (
    ("survey", "survey.json"), ("design", "design.json"), ("calibrate", "cost.json"),
    ("search", "search-hardware.json"), ("train", "networks.json"), ("measure", "measure.json"),
    ("report", "report.json"),
)  # fmt: skip
"""Stages of a run, each with the file that ends it."""
OPTIONS = """
family = {name = "cifar_resnet", depth = 8}
data = {name = "digits"}
split = {limit = 40}
target = {runtime = "scripted_device:Scripted", threads = 1}
survey = {rounds = 1, store = "none", undecided = 1.0}
calibrate = {networks = 8}
design = {groups = 4, expand = 1.0, spaces = ["hardware"]}
train = {epochs = 2, warmup = 0, rest = 0, batch = 20, precision = "fp32"}
"""
ARMS = """
[found]
[otherwise]
like = "found"
train.lr = 0.02
["plain 8"]
network = "cifar_resnet:8"
"""
TIMES = ("took", "seconds", "search_seconds", "date", "process")
"""Fields that differ between equal runs."""


@dataclass(frozen=True)
class Command:
    """A command, but for its folder."""

    options: tuple[str, ...] = ()
    verb: str = "run"

    def words(self, folder: Path, *more: str) -> list[str]:
        """The words of the command line; what it makes goes to `folder`/out."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "small.toml").write_text(OPTIONS)
        (folder / "arms.toml").write_text(ARMS)
        files = [str(folder / "small.toml"), *([str(folder / "arms.toml")] if self.verb == "compare" else [])]
        return [sys.executable, "-m", "htas", self.verb, *files, *self.options, f"--out={folder / 'out'}", *more]


LIMIT = "--constraints.latency=80%"
SEARCH = ("--strategy.epochs=2", "--strategy.batch=20", "--strategy.precision=fp32")
DIFFERENTIABLE = ("--strategy.name=differentiable", *SEARCH)
KNAPSACK = ("--strategy.name=knapsack", "--strategy.images=20", "--strategy.batch=20", LIMIT)
EVOLUTION = ("--strategy.name=evolution", *SEARCH, "--strategy.archs=12", "--strategy.population=4", LIMIT)
BLOCKWISE = (
    "--strategy.name=blockwise", "--strategy.images=20", "--strategy.epochs=1", "--strategy.batch=20",
    "--strategy.judged=20", "--strategy.cells=16", LIMIT,
)  # fmt: skip
DEVICE = (
    "--target.runtime=onnxruntime", "--target.batch=1", "--survey.seconds=2", "--calibrate.seconds=2",
    f"--target.host=exec:{shlex.quote(sys.executable)} {ROOT / 'tests' / 'timing' / 'remote' / 'fakes.py'} steady",
)  # fmt: skip
COMMANDS: Mapping[str, Command] = {
    "run": Command(DIFFERENTIABLE),
    "run, knapsack": Command(KNAPSACK),
    "run, evolution by two processes": Command((*EVOLUTION, "--strategy.workers=2")),
    "run, blockwise": Command(BLOCKWISE),
    "run on a remote device": Command((*DIFFERENTIABLE, *DEVICE)),
    "compare by two processes": Command((*KNAPSACK, "--seeds=1", "--workers=local:2,threads=1"), "compare"),
    "sweep by two processes": Command((*KNAPSACK[:-1], "--budgets=90%,70%", "--workers=local:2,threads=1"), "sweep"),
}


def environment(folder: Path) -> dict[str, str]:
    """Variables of a command in this folder."""
    own = {"PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1", "HTAS_STORE": str(folder / "store.sqlite"), MARK: str(folder)}
    return {**os.environ, **own}


def start(words: list[str], folder: Path) -> "subprocess.Popen[bytes]":
    """Start a command in a session of its own; what it prints goes to `folder`/printed."""
    with (folder / "printed").open("wb") as printed:
        return subprocess.Popen(
            words, cwd=folder, env=environment(folder), stdin=subprocess.DEVNULL, stdout=printed, stderr=printed,
            start_new_session=True,
        )  # fmt: skip


def marked(folder: Path) -> Iterator[psutil.Process]:
    """The processes of commands in this folder."""
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == str(folder) and process.status() != psutil.STATUS_ZOMBIE:
                yield process
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue


def stage(out: Path) -> str:
    """The stage that the run in a folder is in, by its files."""
    return next((name for name, file in STAGES if not (out / file).exists()), "done")


def names(out: Path) -> set[str]:
    """Every file below a folder, but for locks, whose names depend on when their work was measured."""
    files = [path.relative_to(out) for path in out.rglob("*") if not path.is_dir()]
    return {str(path) for path in files if path.parts[0] != "locks"}


def unreadable(out: Path) -> list[str]:
    """The files that cannot be read as what their names say."""
    bad = []
    for path in (path for path in out.rglob("*") if path.is_file()):
        try:
            _read(path)
        except Exception as error:
            bad.append(f"{path.relative_to(out)}: {type(error).__name__}: {error}")
    return bad


def _read(path: Path) -> None:
    match path.suffix:
        case ".json":
            json.loads(path.read_text())
        case ".jsonl":
            [json.loads(line) for line in path.read_text().splitlines()]
        case ".toml":
            tomllib.loads(path.read_text())
        case ".safetensors":
            load_file(path)
        case ".html" if not path.read_text().rstrip().endswith("</html>"):
            raise ValueError("it has no end")
        case ".svg" if not path.read_text().rstrip().endswith("</svg>"):
            raise ValueError("it has no end")


def outcome(out: Path) -> dict[str, Any]:
    """What a command has come to: surveys, spaces, searches, archs, accuracies, and weights as hashes."""
    found: dict[str, Any] = {}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        if path.suffix == ".safetensors":
            tensors = load_file(path)
            found[name] = {key: hashlib.sha256(tensors[key].tobytes()).hexdigest() for key in sorted(tensors)}
        elif path.suffix == ".json" and path.parent.name != "figures":
            content = json.loads(path.read_text())
            match path.name:
                case "survey.json":
                    found[name] = {layer: each["estimate"] for layer, each in content["layers"].items()}
                case "design.json":
                    found[name] = content["spaces"]
                case "networks.json" | "measure.json":
                    rows = content["results"]
                    found[name] = {row["name"]: (row["arch"], row["accuracy"], row["predicted"]) for row in rows}
                case "result.json":
                    found[name] = _timeless(content)
                case search if search.startswith("search-"):
                    kept = ("arch", "epochs", "accuracy", "rivals", "measured_archs", "why")
                    found[name] = _timeless({key: content[key] for key in kept})
    return found


def _timeless(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _timeless(value) for key, value in content.items() if key not in TIMES}
    return [_timeless(each) for each in content] if isinstance(content, list) else content


def difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The names under which two outcomes differ."""
    return sorted(name for name in {*one, *other} if one.get(name) != other.get(name))
