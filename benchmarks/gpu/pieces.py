"""Works on what QUEUE.md lists, in its order, for so many minutes; `make gpu` does so after the tests.

    python benchmarks/gpu/pieces.py [--out runs/gpu] [--data FOLDER] [--minutes 9] [--list]

An item is a numbered line of QUEUE.md and the commands in the block below it, in which $OUT and $DATA stand for the
folders given. OUT/queue.json says which items are finished and how long their pieces took. An item that the time cuts
goes on with the next call, from the files that it left in OUT.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

QUEUE = Path(__file__).parent / "QUEUE.md"
ITEM = re.compile(r"^(\d+)\. (.+?)$.*?^ *```sh\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
LEAST = 20.0
"""Seconds that must be left for an item to be begun."""


@dataclass(frozen=True)
class Item:
    """What is to be run."""

    number: int
    title: str
    commands: str


def items(text: str) -> list[Item]:
    """Those of a queue, in its order."""
    return [Item(int(number), title, commands) for number, title, commands in ITEM.findall(text)]


def work(queue: list[Item], out: Path, data: Path | None, seconds: float) -> int:
    """Runs what is not finished until the time is over; the exit status."""
    end = time.monotonic() + seconds
    out.mkdir(parents=True, exist_ok=True)
    path = out / "queue.json"
    pieces: dict[str, list[float]] = {}
    done: list[int] = []
    if path.exists():
        content = json.loads(path.read_text())
        pieces, done = content["pieces"], content["done"]
    for item in queue:
        remaining = end - time.monotonic()
        if item.number in done:
            continue
        if remaining < LEAST:
            print(f"no time is left for item {item.number}, {item.title}")
            return 0
        if "$DATA" in item.commands and data is None:
            print(f"item {item.number} needs data: name the folder that holds cifar10 and cifar100 with --data")
            return 2
        print(f"item {item.number}, {item.title}", flush=True)
        started = time.monotonic()
        status = ran(item.commands, out, data, remaining)
        pieces.setdefault(str(item.number), []).append(round(time.monotonic() - started, 1))
        done += [item.number] if status == 0 else []
        part = path.with_suffix(".part")
        part.write_text(json.dumps({"done": done, "pieces": pieces}))
        part.replace(path)
        if status is None:
            print(f"item {item.number} goes on next time; {sum(pieces[str(item.number)]):.0f} s so far")
            return 0
        if status:
            print(f"item {item.number} ended with status {status}; mend that first")
            return 1
    print("every item is finished")
    return 0


def ran(commands: str, out: Path, data: Path | None, seconds: float) -> int | None:
    """The status of commands, the first that fails; None where the time ended them, with all that they had begun."""
    folders = {"OUT": str(out.absolute()), "DATA": str(data.absolute()) if data else ""}
    paths = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    process = subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", commands],
        env={**os.environ, **folders, "PATH": paths},
        start_new_session=True,
    )
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--list", action="store_true", help="only say what there is")
    arguments = parser.parse_args()
    queue = items(QUEUE.read_text())
    if arguments.list:
        print("\n".join(f"{item.number}. {item.title}" for item in queue))
        return 0
    return work(queue, arguments.out, arguments.data, 60 * arguments.minutes)


if __name__ == "__main__":
    sys.exit(main())
