"""A dress rehearsal of work on images of ImageNet's size, on generated ones, and the outlook for ImageNet itself.

    python benchmarks/imagenet_size.py OUT [--classes 10] [--images 60] [--depth 18] [--epochs 2] [--workers 2]

Images are drawn as JPEGs of 500x375 pixels and about 110 kB, the mean of ImageNet's, in train/CLASS and val/CLASS, and
once more as a parquet file of the Hugging Face layout. Then, each by itself: how many images a second the loader gives
with none, one and --workers processes, of both kinds; how many a training step takes; and `htas run` from the data to
the report (knapsack, half of the latency), killed in its second epoch and begun again. Of each part the time, and the
hours that ImageNet would take on one and eight GPUs: worked out from the rate of a loader's process here and from rates
of GPUs that others published, so an outlook and no measurement. Run it with nothing else.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from htas.data.split import Data
from htas.datasets import load
from htas.datasets.hub import Hub
from htas.datasets.image_folder import ImageFolder
from htas.files import from_json, read_json
from htas.models.imagenet_resnet import ImageNetResNet
from htas.report.result import Result
from htas.training.layout import placed
from htas.training.loop import engine

IMAGENET, EPOCHS = 1_281_167, 90
"""Training images, and epochs of the usual recipe."""
GPUS = {1: 2470.0, 8: 16621.0}
"""Images a second of a ResNet-50 in training, by number of A100 80 GB, mixed precision: NVIDIA, DeepLearningExamples,
PyTorch/Classification/ConvNets/resnet50v1.5/README.md, "Training performance"."""
TEACHER = 4 / 3
"""Cost of a step with a teacher over one without: a forward pass of three (forward, and backward for two)."""
WIDTH, HEIGHT, QUALITY, GRAIN = 500, 375, 90, 25
BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--images", type=int, default=60, help="of a class, for training; a third for validation")
    parser.add_argument("--depth", type=int, default=18)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    folder, table = generate(options.out, options.classes, options.images)
    files = [path for path in folder.rglob("*.jpg")]
    mean = sum(path.stat().st_size for path in files) / len(files)
    print(f"{len(files)} images of {WIDTH}x{HEIGHT}, {mean / 1e3:.0f} kB in the mean\n")
    print("| loader | processes | images a second |\n|---|---|---|")
    rates = dict[int, float]()
    for name, dataset in (("image_folder", ImageFolder), ("hub", Hub)):
        for workers in sorted({0, 1, options.workers}):
            data = load(dataset(path=str(folder if name == "image_folder" else table), workers=workers))
            rate = loaded(data)
            rates.setdefault(workers, rate)
            print(f"| {name} | {workers or 'the training one'} | {rate:.0f} |", flush=True)
    step = stepped(options.depth, options.classes)
    print(f"\nA step of ResNet-{options.depth}, batch {BATCH}: {step:.1f} images a second\n")
    rehearse(options, folder)
    outlook(rates[1])


def generate(out: Path, classes: int, images: int) -> tuple[Path, Path]:
    """Draw the images, if they are not there; the folder of files, and that of the parquet files."""
    from datasets import load_dataset
    from PIL import Image

    folder, table = out / "images", out / "table"
    rng = np.random.default_rng(0)
    for part, count in (("train", images), ("val", max(2, images // 3))):
        for label in range(classes):
            place = folder / part / f"class-{label}"
            place.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                if not (path := place / f"{number}.jpg").exists():
                    coarse = rng.integers(0, 256, (8, 8, 3)) // 2 + 16 * label % 128
                    picture = Image.fromarray(coarse.astype(np.uint8)).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
                    grain = rng.normal(0, GRAIN, (HEIGHT, WIDTH, 3))  # what makes a photograph's file large
                    pixels = np.clip(np.asarray(picture) + grain, 0, 255).astype(np.uint8)
                    Image.fromarray(pixels).save(path, quality=QUALITY)
    for part, file in (("train", "train-0.parquet"), ("val", "validation-0.parquet")):
        if not (table / file).exists():
            table.mkdir(exist_ok=True)
            rows = load_dataset("imagefolder", data_dir=str(folder / part), split="train", cache_dir=str(out / "cache"))
            rows.to_parquet(str(table / file))
    return folder, table


def loaded(data: Data) -> float:
    """Images a second of an augmented pass, begun once before so that files lie in memory."""
    rate = 0.0
    for seed in range(2):
        began, count = time.perf_counter(), 0
        for images, _ in data.train.batches(BATCH, seed=seed, augment=True):
            assert isinstance(images, torch.Tensor) and images.shape[1:] == (3, 224, 224)
            count += len(images)
        rate = count / (time.perf_counter() - began)
    return rate


def stepped(depth: int, classes: int) -> float:
    """Images a second of training steps on one batch."""
    torch.manual_seed(0)
    runner = engine("cpu", "auto")
    model = ImageNetResNet(depth=depth).build(classes).train()
    model = placed(model, runner.device)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    images = torch.randn(BATCH, 3, 224, 224).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(classes, (BATCH,))
    seconds = []
    for _ in range(4):
        began = time.perf_counter()
        optimizer.zero_grad()
        with runner.autocast():
            loss = torch.nn.functional.cross_entropy(model(images), labels)
        runner.backward(loss)
        optimizer.step()
        seconds.append(time.perf_counter() - began)
    return BATCH / min(seconds)


def rehearse(options: argparse.Namespace, folder: Path) -> None:
    """A run from the data to the report, killed in the middle of its second epoch and begun again."""
    config, out = options.out / "run.toml", options.out / "run"
    config.write_text(
        f'[family]\nname = "imagenet_resnet"\ndepth = {options.depth}\n'
        f'[data]\nname = "image_folder"\npath = "{folder.resolve()}"\nworkers = {options.workers}\n'
        '[target]\nruntime = "onnxruntime"\nbatch = 1\n[design]\nspaces = ["hardware"]\n'
        '[survey]\nstore = "none"\nundecided = 1.0\n'
        '[constraints]\nlatency = "50%"\n[strategy]\nname = "knapsack"\n'
        f"[train]\nepochs = {options.epochs}\nbatch = {BATCH}\nlr = 0.05\nwarmup = 1\nrest = 0\n"
    )
    command = [sys.executable, "-m", "htas", "run", str(config), "--out", str(out)]
    log = options.out / "run.log"
    if not (out / "report.json").exists():
        killed = kill_in_second_epoch(command, out, log)
        began = time.monotonic()
        with log.open("a") as lines:
            subprocess.run(command, stdout=lines, stderr=lines, check=True)
        print(f"Killed {killed}; the same command went on and ended after {time.monotonic() - began:.0f} s.\n")
    record = read_json(out / "report.json")
    print("| stage | seconds |\n|---|---|")
    print("\n".join(f"| {name} | {seconds:.1f} |" for name, seconds in record["stages"].items()))
    print("\n| network | accuracy | predicted, ms | measured, ms |\n|---|---|---|---|")
    for each in record["results"]:
        row = from_json(each, Result, "a row")
        predicted = f"{1e3 * row.predicted:.2f}" if row.predicted else "-"
        measured = f"{1e3 * row.measured.estimate:.2f}" if row.measured else "-"
        print(f"| {row.name} | {row.accuracy or 0:.1%} | {predicted} | {measured} |")
    print()


def kill_in_second_epoch(command: list[str], out: Path, log: Path) -> str:
    """Run until the first checkpoint of a training is there, and a second more; says when it was killed."""
    began = time.monotonic()
    with log.open("w") as lines, subprocess.Popen(command, stdout=lines, stderr=lines, start_new_session=True) as run:
        try:
            while run.poll() is None:
                if any((out / "checkpoints").glob("*")):  # of trainings that are not finished
                    time.sleep(1.0)
                    return f"after its first epoch, at {time.monotonic() - began:.0f} s"
                time.sleep(0.2)
        finally:
            if run.poll() is None:
                os.killpg(run.pid, signal.SIGKILL)
    sys.exit(f"the run ended before it could be killed; see {log}")


def outlook(rate: float) -> None:
    """What ImageNet takes: a base network of 90 epochs and a student of half its work, taught by the base."""
    base, student = IMAGENET * EPOCHS, IMAGENET * EPOCHS * (TEACHER - 1 + 0.5)
    print("Outlook, not measured: ResNet-50 on ImageNet, 90 epochs of it and of a student at half of its work\n")
    print("| GPUs (A100 80 GB) | images a second, published | loader processes that keep up | hours, base | student |")
    print("|---|---|---|---|---|")
    for count, speed in GPUS.items():
        hours = [work / speed / 3600 for work in (base, student)]
        print(f"| {count} | {speed:.0f} | {speed / rate:.0f} | {hours[0]:.1f} | {hours[1]:.1f} |")


if __name__ == "__main__":
    main()
