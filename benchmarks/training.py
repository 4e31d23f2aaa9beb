"""How fast is plain training on a CPU? This project's loop against a straightforward one with a DataLoader.

    python benchmarks/training.py [--data FOLDER] [--rounds 7] [--steps 50] [--batch 128]

ResNet-20, images per second. In every round, in random order, each arm makes one pass over as many images as the steps
need: `htas.train.train` in the arithmetic that it chooses (bf16 where the processor has it) and in fp32, and a loop in
fp32 whose Dataset crops, flips and normalises one image at a time, in the process itself and in two workers. The faster
of these two counts. A pass is timed as a whole, the start of the workers and the writing of a checkpoint included. The
images are CIFAR-10's from FOLDER, in any form that data.path takes, or noise. Run it with nothing else.
"""

import argparse
import contextlib
import io
import platform
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

TARGET = 2.2
"""Images per second of our loop over those of the straightforward one, at least."""
SPEED = 450
"""Images per second of an arm, about, on two cores."""
OURS, FP32 = "htas, auto", "htas, fp32"
PLAIN = {"DataLoader": 0, "DataLoader, 2 workers": 2}
"""Workers of each straightforward arm."""
RATE, MOMENTUM, DECAY = 0.1, 0.9, 5e-4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch", type=int, default=128)
    arguments = parser.parse_args()
    count = arguments.steps * arguments.batch
    number = (arguments.rounds + 0.1) * (2 + len(PLAIN))
    print(f"expected: {number * count / SPEED / 60:.1f} minutes", file=sys.stderr)
    import torch

    from htas.timing.target import machine
    from htas.training.loop import has_bf16

    split, kind = images(arguments.data, count)
    bf16 = has_bf16("cpu", "auto")
    print(f"{machine()}, PyTorch {torch.__version__}, NumPy {np.__version__}, Python {platform.python_version()}; "
          f"ResNet-20, {len(split)} images ({kind}), batch {arguments.batch}, {arguments.rounds} rounds, "
          f"{torch.get_num_threads()} threads; auto is {'bf16' if bf16 else 'fp32'} here\n", flush=True)  # fmt: skip
    show(measured(split, arguments.rounds, arguments.batch))


def images(folder: Path | None, count: int) -> tuple[Any, str]:
    """So many images as a Split that augments as CIFAR-10 is augmented, and what they are."""
    import torch

    from htas.data.split import Split
    from htas.datasets.cifar10 import Cifar10

    if folder is None:
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
        labels = torch.randint(10, (count,), generator=generator)
    else:
        read = Cifar10(str(folder)).read("train")
        picks = torch.randperm(len(read), generator=torch.Generator().manual_seed(0))[:count]
        pixels, labels = read.images[picks], read.labels[picks]
    split = Split(pixels, labels, Cifar10.mean, Cifar10.std, Cifar10.flip, Cifar10.crop)
    return split, "noise" if folder is None else "of CIFAR-10"


def measured(split: Any, rounds: int, batch: int) -> dict[str, list[float]]:
    """Images per second by arm, round for round."""
    order = random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        arms = passes(batch, Path(name))
        speeds: dict[str, list[float]] = {arm: [] for arm in arms}
        for pass_ in arms.values():
            pass_(part(split, 2 * batch))  # what a size needs once is done here
        for number in range(rounds):
            todo = list(arms.items())
            order.shuffle(todo)
            for arm, pass_ in todo:
                started = time.perf_counter()
                pass_(split)
                speeds[arm].append(len(split) // batch * batch / (time.perf_counter() - started))
            said = ", ".join(f"{arm} {speed[-1]:.0f}" for arm, speed in speeds.items())
            print(f"round {number + 1} of {rounds}: {said} images/s", file=sys.stderr, flush=True)
    return speeds


def part(split: Any, count: int) -> Any:
    """The first images of a split."""
    from dataclasses import replace

    return replace(split, images=split.images[:count], labels=split.labels[:count])


def passes(batch: int, folder: Path) -> dict[str, Callable[[Any], None]]:
    """By arm: one pass over a split, with a network of its own that stays from pass to pass."""
    import torch

    from htas.models.cifar_resnet import CifarResNet

    arms: dict[str, Callable[[Any], None]] = {}
    for arm, precision in ((OURS, "auto"), (FP32, "fp32")):
        torch.manual_seed(0)
        arms[arm] = ours(CifarResNet(20).build(10), batch, precision, folder)
    for arm, workers in PLAIN.items():
        torch.manual_seed(0)
        arms[arm] = plain(CifarResNet(20).build(10), batch, workers)
    return arms


def ours(model: Any, batch: int, precision: Any, folder: Path) -> Callable[[Any], None]:
    """htas.train's own loop."""
    from htas.training.recipe import Recipe
    from htas.training.train import Training

    recipe = Recipe(
        epochs=1, warmup=0, batch=batch, lr=RATE, momentum=MOMENTUM, weight_decay=DECAY, precision=precision
    )

    def one(split: Any) -> None:
        path = folder / "checkpoint.safetensors"
        path.unlink(missing_ok=True)  # else there would be nothing left to do
        with contextlib.redirect_stderr(io.StringIO()):
            Training(model, split, recipe, seed=0, device="cpu", checkpoint=path, title="ours").run()

    return one


def plain(model: Any, batch: int, workers: int) -> Callable[[Any], None]:
    """As one writes it first: a Dataset of single images, a DataLoader, fp32."""
    import torch
    import torch.nn.functional as F
    from torch.utils.data import DataLoader, Dataset

    class Augmented(Dataset):  # type: ignore[type-arg]
        def __init__(self, split: Any) -> None:
            self.images, self.labels, self.pad = split.images, split.labels, split.crop
            self.mean, self.std = (torch.tensor(each).view(3, 1, 1) for each in (split.mean, split.std))

        def __len__(self) -> int:
            return len(self.labels)

        def __getitem__(self, index: int) -> tuple[Any, Any]:
            image = self.images[index]
            height, width = image.shape[1:]
            image = F.pad(image, (self.pad,) * 4)
            top, left = torch.randint(2 * self.pad + 1, (2,)).tolist()
            image = image[:, top : top + height, left : left + width]
            if torch.rand(()) < 0.5:
                image = image.flip(2)
            return (image.float() / 255 - self.mean) / self.std, self.labels[index]

    sgd = torch.optim.SGD(model.parameters(), RATE, MOMENTUM, weight_decay=DECAY, nesterov=True)

    def one(split: Any) -> None:
        model.train()
        loader = DataLoader(Augmented(split), batch_size=batch, shuffle=True, num_workers=workers, drop_last=True)
        for images, labels in loader:
            loss = F.cross_entropy(model(images), labels)
            sgd.zero_grad()
            loss.backward()
            sgd.step()

    return one


def show(speeds: dict[str, list[float]]) -> None:
    """Each round's ratio to the faster straightforward arm, the medians, and the target."""
    best = max(PLAIN, key=lambda arm: np.median(speeds[arm]))
    print("| arm | images/s, median | over the straightforward one, median | each round | target | met |")
    print("| :-- | --: | --: | :-- | --: | :-- |")
    for arm, found in speeds.items():
        ratios = np.divide(found, speeds[best])
        middle = float(np.median(ratios))
        target, met = "-", "-"
        if arm == OURS:
            target, met = f"{TARGET}", "yes" if middle >= TARGET else "**no**"
        each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        named = f"{arm} (counts)" if arm == best else arm
        print(f"| {named} | {np.median(found):.0f} | {middle:.2f} | {each} | {target} | {met} |")


if __name__ == "__main__":
    main()
