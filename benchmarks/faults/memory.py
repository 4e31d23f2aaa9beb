"""Does htas grow, and does it stay within the memory that there is?

    python -m benchmarks.faults.memory OUT [--parts optimize,survey,search] [--calls 50] [--gigabytes 4]

`optimize` calls htas.optimize again and again in one process, each time with another small network, and compares its
memory after the third call and after the last. `survey` is htas survey of torchvision's ResNet-152 at 224x224, and
`search` an htas run of its Wide ResNet-101-2, whose search takes more: both in a control group of so many gigabytes, in
which the kernel ends what takes more, as on a machine that has no more. They must stay within it, or be refused
beforehand with the figures. Without root there is no such group; then the peak is sampled alone.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from benchmarks.faults import small_runs as small
from benchmarks.faults.campaign import Outcome, Tally

CONTROLLER = Path("/sys/fs/cgroup/memory")
"""Of control groups of version 1; in version 2 the groups lie in the folder above."""
GROWTH = 0.05
"""Of memory between the third call and the last, at most."""
FACTORIES = """
import sys
import types

sys.modules.setdefault("torchvision._meta_registrations", types.ModuleType("unused"))
from torchvision.models import resnet152, wide_resnet101_2


def deep(classes: int):
    return resnet152(num_classes=classes)


def wide(classes: int):
    return wide_resnet101_2(num_classes=classes)
"""
OPTIONS = """
target = {runtime = "onnxruntime", batch = 1}
survey = {store = "none", undecided = 1.0, seconds = 60}
calibrate = {networks = 6, seconds = 30}
design = {spaces = ["hardware"]}
strategy = {name = "differentiable", epochs = 1, batch = 32}
train = {epochs = 1, warmup = 0, rest = 0, batch = 32}
"""


@dataclass
class Group:
    """A control group of processes, or none."""

    folder: Path | None
    peak: int = 0
    """Bytes that the processes had at the same time, sampled."""

    def join(self) -> None:
        """Let this process belong to it."""
        if self.folder is not None:
            (self.folder / "cgroup.procs").write_text(str(os.getpid()))

    def sample(self, process: psutil.Process) -> None:
        """Look at a process and all that it has started."""
        total = 0
        for each in (process, *process.children(recursive=True)):
            try:
                total += each.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        self.peak = max(self.peak, total)


@contextmanager
def group(gigabytes: float) -> Iterator[Group]:
    """A control group whose processes have so much memory; without the right to make one, none."""
    old = CONTROLLER.is_dir()
    folder = (CONTROLLER if old else CONTROLLER.parent) / f"htas-{os.getpid()}"
    try:
        folder.mkdir()
        (folder / ("memory.limit_in_bytes" if old else "memory.max")).write_text(str(int(gigabytes * 1e9)))
    except OSError as error:
        print(f"no control group can be made ({error}): the peak is sampled alone", flush=True)
        yield Group(None)
        return
    try:
        yield Group(folder)
    finally:
        until = time.monotonic() + 30
        while folder.exists() and time.monotonic() < until:
            time.sleep(0.5)
            with suppress(OSError):  # the kernel still looks after a process that has ended
                folder.rmdir()


def within(out: Path, words: list[str], gigabytes: float) -> tuple[Outcome, int]:
    """What a command does in a control group, and its peak in bytes."""
    with group(gigabytes) as limited, (out / "printed").open("w") as printed:
        process = subprocess.Popen(
            [sys.executable, "-m", "htas", *words], cwd=out, env=small.environment(out), stdout=printed, stderr=printed,
            preexec_fn=limited.join,
        )  # fmt: skip
        while process.poll() is None:
            limited.sample(psutil.Process(process.pid))
            time.sleep(0.1)
    return Outcome(process.returncode, "", (out / "printed").read_text(errors="replace")), limited.peak


def images(folder: Path) -> None:
    """A few images of ImageNet's size."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 40), ("val", 8)):
        for label in "ab":
            (folder / part / label).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (224, 224, 3), np.uint8)
                Image.fromarray(pixels).save(folder / part / label / f"{number}.jpg")


def large(out: Path, verb: str, factory: str, gigabytes: float) -> str:
    """What is wrong with a verb on a large network in so much memory."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "large.py").write_text(FACTORIES)
    images(out / "images")
    (out / "large.toml").write_text(
        f'family = {{name = "custom", factory = "large:{factory}"}}\n'
        f'data = {{name = "image_folder", path = "{out / "images"}"}}\n{OPTIONS}'
    )
    ended, peak = within(out, [verb, "large.toml", f"--out={out / 'out'}"], gigabytes)
    last = [line for line in ended.err.splitlines() if line.startswith("htas: ")][-1:]
    print(f"{verb} of {factory}: exit code {ended.code}, peak {peak / 1e9:.2f} GB; {last}", flush=True)
    if ended.code == 2 and " GB" not in last[0]:
        return f"a sentence without the figures: {last}"
    return ended.trouble() or (f"a peak of {peak / 1e9:.2f} GB" if peak > gigabytes * 1e9 else "")


def optimized(out: Path, calls: int) -> str:
    """What is wrong with the memory of a process that calls htas.optimize so many times."""
    import torch
    from torch import nn
    from torch.utils.data import TensorDataset

    import htas

    process, sizes = psutil.Process(), []
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(120) % 3
    pictures = torch.randn(120, 1, 8, 8, generator=generator) + labels[:, None, None, None]
    training, validation = (TensorDataset(pictures[part], labels[part]) for part in (slice(0, 80), slice(80, 120)))
    options = {
        "survey.store": "none", "survey.undecided": 1, "survey.seconds": 0.5, "calibrate.networks": 6,
        "calibrate.seconds": 0.5, "design.groups": 4, "design.spaces": ("grid",),
    }  # fmt: skip
    for number in range(calls):
        width = 8 + number % 4
        network = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 12, 3, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 3),
        )  # fmt: skip
        htas.optimize(
            network, pictures[:2], (training, validation),
            target=htas.Target(runtime="onnxruntime", batch=1, threads=1),
            constraints={"macs": "80%"}, trained=False, epochs=1, options=options, seed=number,
            out=out / f"{number}",
        )  # fmt: skip
        gc.collect()
        sizes.append(process.memory_info().rss)
        (out / "sizes.json").write_text(json.dumps(sizes))
        print(f"call {number + 1}: {sizes[-1] / 1e6:.1f} MB", flush=True)
    growth = sizes[-1] / sizes[2] - 1
    print(f"{sizes[2] / 1e6:.1f} MB after the third call, {sizes[-1] / 1e6:.1f} after the last: {growth:+.1%}")
    return f"{growth:+.1%} after {calls} calls" if growth > GROWTH else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--parts", default="optimize,survey,search")
    parser.add_argument("--calls", type=int, default=50)
    parser.add_argument("--gigabytes", type=float, default=4.0)
    given = parser.parse_args()
    tally, out = Tally(), given.out.absolute()
    for part in given.parts.split(","):
        (out / part).mkdir(parents=True, exist_ok=True)
        match part:
            case "optimize":
                trouble = optimized(out / part, given.calls)
            case "survey":
                trouble = large(out / part, "survey", "deep", given.gigabytes)
            case "search":
                trouble = large(out / part, "run", "wide", given.gigabytes)
            case _:
                parser.error(f"no part is called {part}")
        tally.add(part, trouble, f"--parts={part}")
    return tally.end()


if __name__ == "__main__":
    sys.exit(main())
