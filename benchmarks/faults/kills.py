"""Are runs that are killed at random moments, again and again, what they would have been?

    python -m benchmarks.faults.kills OUT [--runs 100] [--first 0] [--seed 0] [--limit 600]

Each run is a whole command of small_runs.py: it is killed two to four times by SIGKILL, SIGTERM or SIGINT, alone or
with all processes of its group, and started again; then it is left to end. The moment is drawn among the imports, the
stages that are still to be done, and the writing of files. It must end with the archs, accuracies and weights of a run
that nobody disturbed, with the same files, each of them readable, and without a process that is left; a kill must give
the exit code 137, 143 or 130, the latter two with a sentence. Most attempts are forked from a process that has imported
everything (warm.py), since imports take longer than many a stage. What was done is in OUT/kills.jsonl; the same command
does the rest.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any

import psutil

from benchmarks.faults import small_runs as small
from benchmarks.faults.campaign import Tally, drawn

SIGNALS = {"SIGKILL": 137, "SIGTERM": 143, "SIGINT": 130}
"""What kills a command, and the exit code that a shell then sees."""
PLACES = ("imports", *(name for name, _ in small.STAGES), "a write")
OTHERS = dict(zip(range(3, 25, 4), list(small.COMMANDS)[1:], strict=True))
"""Of 25 runs, those that are no plain `htas run`."""
ENDING = 5.0
"""Seconds in which a command may end that had done all when the signal came."""
LEAVE = 15.0
"""Seconds in which processes that a killed command had started must end."""


@dataclass
class Attempt:
    """A process of a command."""

    process: psutil.Process
    folder: Path
    code: int | None = None
    """As a shell has it; None while it runs."""
    began: float = field(default_factory=time.monotonic)
    warm: bool = False

    @property
    def age(self) -> float:
        """Seconds."""
        return time.monotonic() - self.began

    @property
    def printed(self) -> str:
        """What it has printed."""
        path = self.folder / "printed"
        return path.read_text(errors="replace") if path.exists() else ""  # it may not have got so far


class Warm:
    """The process that forks."""

    def __init__(self) -> None:
        self.server = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.faults.warm"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            cwd=small.ROOT, env={**os.environ, "PYTHONPATH": small.PATHS, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def start(self, words: list[str], folder: Path) -> Attempt:
        """Fork a command."""
        assert self.server.stdin and self.server.stdout
        names = ("PYTHONPATH", "HTAS_STORE", small.MARK)
        variables = {name: small.environment(folder)[name] for name in names}
        order = {"words": words[3:], "folder": str(folder), "variables": variables, "printed": str(folder / "printed")}
        self.server.stdin.write(json.dumps(order) + "\n")
        self.server.stdin.flush()
        attempt = Attempt(psutil.Process(int(self.server.stdout.readline())), folder, warm=True)
        Thread(target=self._wait, args=(attempt,), daemon=True).start()
        return attempt

    def _wait(self, attempt: Attempt) -> None:
        assert self.server.stdout
        attempt.code = int(self.server.stdout.readline())

    def end(self) -> None:
        """End it."""
        assert self.server.stdin and self.server.stdout
        self.server.stdin.close()
        self.server.wait()
        self.server.stdout.close()


def cold(words: list[str], folder: Path) -> Attempt:
    """Start a command as a user does."""
    started = small.start(words, folder)
    attempt = Attempt(psutil.Process(started.pid), folder)

    def wait() -> None:
        code = started.wait()
        attempt.code = code if code >= 0 else 128 - code

    Thread(target=wait, daemon=True).start()
    return attempt


@dataclass(frozen=True)
class Kill:
    """A kill, and what came of it."""

    place: str
    signal: str
    whole_group: bool
    code: int
    trouble: str = ""
    """What is wrong with how it ended."""


@dataclass
class Course:
    """A run with its kills."""

    number: int
    command: str
    kills: list[Kill] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)
    """What is wrong with what it came to."""
    seconds: float = 0.0


def moment(
    random_: random.Random, out: Path, lasts: dict[str, float], plain: bool
) -> tuple[str, Callable[[Attempt], bool]]:
    """Where the next kill falls, and what tells that it is time."""
    left = [name for name, file in small.STAGES if not (out / file).exists()] if plain else []
    place = random_.choice(["imports", "a write", *(2 * left if plain else 6 * ["work"])])
    share = random_.random()
    if place == "imports":
        return place, lambda attempt: bool(attempt.printed) or attempt.age > share * lasts["imports"]
    if place == "a write":
        number, seen = 1 + int(share * 12), set[str]()

        def writes(attempt: Attempt) -> bool:
            seen.update(parts(out))
            return len(seen) >= number

        return place, writes
    if place == "work":
        return place, lambda attempt: bool(attempt.printed) and attempt.age > share * lasts["all"]
    entered: list[float] = []

    def there(attempt: Attempt) -> bool:
        if not entered and small.stage(out) == place and attempt.printed:
            entered.append(attempt.age)
        return bool(entered) and attempt.age > entered[0] + share * lasts[place]

    return place, there


def parts(out: Path) -> list[str]:
    """Files that are being written."""
    found = []
    for folder in (out, out / "networks", out / "checkpoints"):
        try:
            found += [entry.name for entry in os.scandir(folder) if entry.name.startswith(".")]
        except FileNotFoundError:
            continue
    return [name for name in found if not name.startswith(".progress")]


def until(attempt: Attempt, time_: Callable[[Attempt], bool], limit: float) -> bool:
    """Wait for a moment; False where the command ended before, or is over its limit."""
    while attempt.code is None and attempt.age < limit:
        if time_(attempt):
            return True
        time.sleep(0.001 if time_.__name__ == "writes" else 0.01)
    return False


def killed(attempt: Attempt, place: str, name: str, whole_group: bool) -> Kill:
    """Kill a command, and look at how it ends."""
    number = getattr(signal, name)
    began, before = bool(attempt.printed), attempt.printed
    try:
        os.killpg(attempt.process.pid, number) if whole_group else os.kill(attempt.process.pid, number)
    except ProcessLookupError:
        return Kill("the end", name, whole_group, attempt.code or 0)
    sent = time.monotonic()
    while attempt.code is None and time.monotonic() < sent + 60:
        time.sleep(0.01)
    if attempt.code is None:
        attempt.process.kill()
        return Kill(place, name, whole_group, -1, f"it still ran 60 s after {name}")
    troubles = []
    if attempt.code == 0 and time.monotonic() < sent + ENDING:
        place = "the end"
    elif attempt.code == 0:
        troubles.append(f"it went on after {name} for {time.monotonic() - sent:.0f} s, to its end")
    elif attempt.code != SIGNALS[name]:
        troubles.append(f"exit code {attempt.code} after {name}")
    elif name != "SIGKILL":
        said = attempt.printed[len(before) :]
        if "Traceback" in said:
            lines = [line.strip() for line in said.splitlines() if line.strip().startswith("File ")]
            troubles.append(f"a traceback after {name}, {'working' if began else 'importing'}: {lines[-1:]}")
        elif not any(line.startswith("htas: ") for line in said.splitlines()):
            troubles.append(f"no sentence after {name}, {'working' if began else 'importing'}")
    while (left := list(small.marked(attempt.folder))) and time.monotonic() < sent + LEAVE:
        time.sleep(0.1)
    if left:
        troubles.append(f"processes are left: {[process.cmdline()[:4] for process in left]}")
        for process in left:
            process.kill()
    return Kill(place, name, whole_group, attempt.code, "; ".join(troubles))


def undisturbed(name: str, out: Path, warm: Warm) -> tuple[dict[str, Any], set[str], dict[str, float]]:
    """What a command comes to, its files, and how long its parts take."""
    folder, words = out / f"undisturbed {name}", small.COMMANDS[name].words(out / f"undisturbed {name}")
    times = folder / "times.json"
    if not times.exists():
        shutil.rmtree(folder / "out", ignore_errors=True)
        attempt, lasts = cold(words, folder), dict.fromkeys(PLACES, 0.0)
        while attempt.code is None and not attempt.printed:
            time.sleep(0.02)
        imports = attempt.age
        os.killpg(attempt.process.pid, signal.SIGKILL)
        shutil.rmtree(folder / "out", ignore_errors=True)
        attempt = warm.start(words, folder)
        while attempt.code is None:
            lasts[small.stage(folder / "out")] = attempt.age
            time.sleep(0.02)
        if attempt.code:
            sys.exit(f"{name} ends with {attempt.code} though nobody disturbs it; see {folder / 'printed'}")
        ends = [0.0, *sorted(each for each in lasts.values() if each)]
        lasts = {place: end - ends[ends.index(end) - 1] if end else 0.0 for place, end in lasts.items()}
        times.write_text(json.dumps({**lasts, "imports": imports, "all": attempt.age}))
    return small.outcome(folder / "out"), small.names(folder / "out"), json.loads(times.read_text())


def course(number: int, seed: int, out: Path, warm: Warm, limit: float) -> Course:
    """One run, killed and started again until it ends."""
    name = OTHERS.get(number % 25, "run")
    wanted, files, lasts = undisturbed(name, out, warm)
    folder, random_, began = out / f"{number}", drawn(seed, number), time.monotonic()
    shutil.rmtree(folder, ignore_errors=True)
    words, done = small.COMMANDS[name].words(folder), Course(number, name)
    for _ in range(random_.randint(2, 4)):
        place, time_ = moment(random_, folder / "out", lasts, small.COMMANDS[name].verb == "run")
        signal_, whole_group = random_.choice(["SIGKILL", *SIGNALS]), random_.random() < 0.3
        attempt = (cold if place == "imports" else warm.start)(words, folder)
        if not until(attempt, time_, limit):
            break
        kill = killed(attempt, place, signal_, whole_group)
        done.kills.append(kill)
        done.troubles += [f"after a kill: {bad}" for bad in small.unreadable(folder / "out")]
        if kill.code == 0:
            break
    else:
        attempt = warm.start(words, folder)
    while attempt.code is None and attempt.age < limit:
        time.sleep(0.1)
    if attempt.code is None:
        attempt.process.kill()
        done.troubles.append(f"it did not end within {limit:.0f} s")
    elif attempt.code and not (done.kills and done.kills[-1].code == 0):
        done.troubles.append(f"the last attempt ended with {attempt.code}: {attempt.printed.splitlines()[-1:]}")
    else:
        done.troubles += judged(folder / "out", wanted, files)
    done.seconds = time.monotonic() - began
    if not said(done):
        shutil.rmtree(folder)
    return done


def judged(out: Path, wanted: dict[str, Any], files: set[str]) -> list[str]:
    """What is wrong with what a run that was killed has come to."""
    troubles = [*small.unreadable(out)]
    if left := {name for name in small.names(out) if name not in files}:
        troubles.append(f"files are left: {sorted(left)[:5]}")
    if missing := files - small.names(out):
        troubles.append(f"files are missing: {sorted(missing)[:5]}")
    if other := small.difference(wanted, small.outcome(out)):
        troubles.append(f"other results in {other[:5]}")
    if left_over := list(small.marked(out.parent)):
        troubles.append(f"processes are left: {[process.cmdline()[:4] for process in left_over]}")
    return troubles


def table(kills: list[Kill]) -> str:
    """Kills by place and signal, as Markdown."""
    counts = Counter((kill.place, kill.signal) for kill in kills)
    places = [place for place in (*PLACES, "work", "the end") if any(each == place for each, _ in counts)]
    lines = [f"| {place} | {' | '.join(str(counts[place, name]) for name in SIGNALS)} |" for place in places]
    codes = Counter((kill.signal, kill.code) for kill in kills)
    ends = ", ".join(f"{count} of {name} with {code}" for (name, code), count in sorted(codes.items()))
    return "\n".join([f"| killed in | {' | '.join(SIGNALS)} |", "|---|--:|--:|--:|", *lines, f"exit codes: {ends}"])


def said(done: Course) -> list[str]:
    """What is wrong with a run and with how its kills ended."""
    return [*done.troubles, *(kill.trouble for kill in done.kills if kill.trouble)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=600.0, help="seconds of one attempt")
    given = parser.parse_args()
    out = given.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that starts this behind itself ignores Ctrl-C
    log, warm = out / "kills.jsonl", Warm()
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    courses = [Course(**{**each, "kills": [Kill(**kill) for kill in each["kills"]]}) for each in lines]
    for number in range(given.first, given.first + given.runs):
        if number not in [each.number for each in courses]:
            done = course(number, given.seed, out, warm, given.limit)
            courses.append(done)
            with log.open("a") as file:
                file.write(json.dumps(asdict(done)) + "\n")
            places = [f"{kill.signal} in {kill.place}" for kill in done.kills]
            print(f"{number} {done.command}: {places}, {done.seconds:.0f} s", *said(done), sep="\n  ", flush=True)
    warm.end()
    tally = Tally()
    for done in courses:
        again = f"--first={done.number} --runs=1 --seed={given.seed}"
        tally.add(done.command, "; ".join(done.troubles), again)
        for kill in done.kills:
            tally.add(f"how {kill.signal} ends it", kill.trouble, again)
    print(table([kill for done in courses for kill in done.kills]))
    return tally.end()


if __name__ == "__main__":
    sys.exit(main())
