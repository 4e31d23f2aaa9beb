"""A disk that fills, and a folder that becomes read-only, in every stage: one sentence, and the same command goes on?

    python -m benchmarks.faults.disks OUT [--stages survey,...] [--moments before,0.3,0.8,write] [--seed 0]

It needs root, and mounts a disk in memory (tmpfs) at OUT/disk. A stage begins with the files that an undisturbed run
had there. The disk fills (to the last byte, or but for some kB) or is mounted read-only before the command starts, at a
share of the time that the stage takes, or while a file is written. The command must end with exit code 2 and one
sentence, where the fault was there before without having measured or trained, and leave nothing half-written; with room
again, it must end as the undisturbed one. The last stage, `store`, is a survey of which only the store lies on that
disk: it must end as it does without one.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks.faults import small_runs as small
from benchmarks.faults.campaign import Outcome, Tally, drawn
from benchmarks.faults.kills import Attempt, Warm, parts

SIZE = 48
"""MB of the disk."""
VERBS = {"measure": "run", "report": "run", "store": "survey"}
"""What does a stage, where its name does not: then the stages before are done."""
FAULTS = ("full", "read-only")
LEAVES = (0, 0, 4096, 30_000)
"""Bytes that a full disk has left."""
WORK = "0/"
"""How the count of a bar begins."""


@contextmanager
def disk(place: Path) -> Iterator[None]:
    """A small disk; raises SystemExit where this user may not mount one."""
    place.mkdir(parents=True, exist_ok=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}m", "htas", place]).returncode:
        sys.exit("this campaign mounts disks, and needs root for that")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def fill(place: Path, leave: int) -> None:
    """Fill a disk, but for so many bytes."""
    size = 0
    with (place / "filler").open("wb") as file:
        for _ in range(10 * SIZE):
            state = os.statvfs(place)
            size += max(0, min(2**20, state.f_bavail * state.f_frsize - leave))
            with suppress(OSError):  # the command writes, too
                os.posix_fallocate(file.fileno(), 0, size)


def read_only(place: Path) -> None:
    """Mount a disk read-only, as soon as no file is open for writing."""
    until = time.monotonic() + 20
    while subprocess.run(["mount", "-o", "remount,ro", place], capture_output=True).returncode:
        if time.monotonic() > until:
            raise TimeoutError(f"{place} cannot be mounted read-only")


def mend(place: Path) -> None:
    """Give a disk its room back."""
    subprocess.run(["mount", "-o", "remount,rw", place], check=True)
    (place / "filler").unlink(missing_ok=True)


class Disks:
    """The campaign's folder, with the undisturbed run by stages."""

    def __init__(self, out: Path) -> None:
        self.out, self.place, self.warm = out, out / "disk", Warm()
        self.lasts: dict[str, float] = {}
        self.met = False
        """Whether the last fault ended its command."""
        self.results: dict[str, tuple[dict[str, object], set[str]]] = {}

    def command(self, name: str) -> list[str]:
        """The words of what does a stage."""
        command = small.Command(small.DIFFERENTIABLE, VERBS.get(name, name))
        words = [word for word in command.words(self.out / "run") if not word.startswith("--out=")]
        store = [f"--survey.store={self.place / 'store.sqlite'}"] if name == "store" else []
        return [*words, *store, f"--out={self.results_in(name)}"]

    def results_in(self, name: str) -> Path:
        """The folder of the run."""
        return (self.out if name == "store" else self.place) / "out"

    def ended(self, name: str, words: list[str], fault: Callable[[Attempt], bool] | None = None) -> Outcome:
        """Do a command, in which a fault occurs once this function has returned True."""
        attempt = self.warm.start(
            [word for word in words if word != f"--out={self.out / 'run' / 'out'}"], self.out / "run"
        )
        done = fault is None
        while attempt.code is None and attempt.age < 300:
            done = done or (fault is not None and fault(attempt))
            time.sleep(0.02 if done else 0.001)
        if attempt.code is None:
            attempt.process.kill()
            attempt.process.wait()
        while attempt.process.is_running() and attempt.process.status() != "zombie":
            time.sleep(0.01)
        if fault is None:
            self.lasts[name] = attempt.age
        return Outcome(attempt.code, "", attempt.printed)

    def undisturbed(self) -> None:
        """A run, stage by stage, whose files before each are kept."""
        (self.place / "out").mkdir()
        for name, _ in small.STAGES:
            shutil.copytree(self.place / "out", self.out / f"before {name}", dirs_exist_ok=True)
            ended = self.ended(name, self.command(name))
            if ended.code:
                sys.exit(f"{name} ends with {ended.code} though nobody disturbs it: {ended.err[-500:]}")
            self.results[name] = small.outcome(self.place / "out"), small.names(self.place / "out")
        self.results["store"], self.lasts["store"] = self.results["survey"], self.lasts["survey"]
        (self.out / "before store").mkdir(exist_ok=True)

    def restore(self, name: str) -> None:
        """The files that were there before a stage."""
        mend(self.place)
        shutil.rmtree(self.results_in(name), ignore_errors=True)
        shutil.copytree(self.out / f"before {name}", self.results_in(name))

    def trial(self, name: str, fault: str, moment: str, leave: int) -> str:
        """What is wrong with one fault in a stage; "" for nothing."""
        self.restore(name)
        place, words, out = self.place, self.command(name), self.results_in(name)

        def strike() -> bool:
            if fault == "full":
                fill(place, leave)
            else:
                read_only(place)
            return True

        def strikes(attempt: Attempt) -> bool:
            if moment == "write":
                return bool(parts(out)) and strike()
            return bool(attempt.printed) and attempt.age > float(moment) * self.lasts[name] and strike()

        if moment == "before":
            strike()
        ended = self.ended(name, words, (lambda attempt: True) if moment == "before" else strikes)
        troubles = [ended.trouble()]
        if moment == "before" and name != "store" and ended.code == 0:
            troubles.append("it did not notice")
        if moment == "before" and name != "store" and WORK in ended.err:
            troubles.append("found out only after work")
        mend(place)
        troubles += small.unreadable(out)
        again = self.ended(name, words, lambda attempt: True)
        wanted, files = self.results[name]
        if again.code:
            troubles.append(f"with room again, exit code {again.code}: {again.err.splitlines()[-1:]}")
        elif other := small.difference(wanted, small.outcome(out)):
            troubles.append(f"with room again, other results in {other[:4]}")
        elif (names := small.names(out)) != files:
            troubles.append(f"with room again, other files: {sorted(names ^ files)[:4]}")
        self.met = ended.code == 2 or (name == "store" and "store: " in ended.err)
        return "; ".join(filter(None, troubles))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--stages", default=",".join([*(name for name, _ in small.STAGES), "store"]))
    parser.add_argument("--moments", default="before,0.3,0.8,write")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    disks, tally, number = Disks(given.out.absolute()), Tally(), 0
    with disk(disks.place):
        disks.undisturbed()
        for name in given.stages.split(","):
            for fault in FAULTS:
                for moment in given.moments.split(","):
                    leave = drawn(given.seed, number).choice(LEAVES)
                    number += 1
                    trouble = disks.trial(name, fault, moment, leave)
                    print(f"{name}, {fault}, {moment}: {trouble or 'good' if disks.met else 'not met'}", flush=True)
                    tally.add(
                        f"{fault} in {name}{'' if disks.met or trouble else ', which had ended'}",
                        trouble,
                        f"--stages={name} --moments={moment}, {leave} bytes left",
                    )
    disks.warm.end()
    return tally.end()


if __name__ == "__main__":
    sys.exit(main())
