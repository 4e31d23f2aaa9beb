"""Trains what queue.toml lists, one network and seed after the other, each to a result of a few kB in results/.

    python benchmarks/evidence/evidence.py --data FOLDER [--queue FILE] [--out FOLDER] [--results FOLDER]
        [--only PATTERN] [--threads 1] [--minutes N] [--pause FILE] [--list] [--workers local:N|ray|HOST:PORT]

FOLDER holds cifar10 and cifar100. Checkpoints and weights go to --out (runs/evidence). Any number of these commands may
work side by side, on any machines; what has a result is left alone, and a unit that another one works on too. With
--workers several units are trained at once, by processes of this machine or nodes of a Ray cluster, all of which must
see the folders; each has --threads threads, and a signal ends them at once. While the --pause file is there nothing is
computed. SIGTERM, Ctrl-C and the end of --minutes stop after the epoch at hand; a second SIGTERM, or one in a pause,
stops at once, and the next command goes on from the last epoch.
"""

import argparse
import dataclasses
import fcntl
import fnmatch
import hashlib
import inspect
import json
import signal
import sys
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn

from htas import datasets
from htas.console.record import into, recording
from htas.cost.calibrate import cost_model
from htas.cost.fit import CalibrationRecord
from htas.data.split import WHOLE, Batch, Data, Source, augmented
from htas.datasets.cifar10 import Cifar10
from htas.datasets.cifar100 import Cifar100
from htas.errors import UserError
from htas.experiments.arm_tables import Pruning
from htas.experiments.at_once import Task, Tasks, tasks_of
from htas.experiments.pruning import candidates, importance_of, pruned
from htas.experiments.thinet import IMAGES
from htas.files import (
    __version__,
    digest,
    from_json,
    read_json,
    read_record,
    read_tensors,
    to_json,
    write_json,
    write_tensors,
)
from htas.graph import Network, ordered, resize, trace
from htas.graph.arch import Arch
from htas.models import ModelFamily
from htas.models.cifar_resnet import CifarResNet
from htas.run import networks
from htas.search.oneshot import some
from htas.text import listing
from htas.timing.crew import Crew
from htas.timing.target import machine
from htas.training.distill import Distill
from htas.training.layout import placed
from htas.training.loop import EpochLoop, has_bf16
from htas.training.recipe import RECIPES, Recipe
from htas.training.train import Training, evaluate

sys.path.append(str(Path(__file__).parent.parent))
from mobile_widths import Mobile  # type: ignore[import-not-found]

HERE = Path(__file__).parent
DATASETS = {"cifar10": Cifar10, "cifar100": Cifar100}
TEACHER = "base"
"""The arm whose network of the same group and seed teaches all others."""
SPLIT = 0
"""Seed of the training images that are held out where a recipe is chosen; the same ones in every run."""


class Interruption(Exception):
    """The work stops here for now; the last checkpoint is written."""


@dataclass(frozen=True)
class Prune:
    """How Torch-Pruning prunes a network: as `prune` of an arm of `htas compare`, down to a share of its latency."""

    share: float
    """Of the unpruned network's latency, at most, as `cost` predicts it."""
    cost: str
    """The folder of its cost.json, in this one."""
    scope: Literal["global", "local"] = "global"
    criterion: str = "l1"
    round_to: int = 8


@dataclass(frozen=True)
class Unit:
    """One network of one arm, trained once."""

    group: str
    """A data set and base network: those that are compared with each other."""
    arm: str
    seed: int
    dataset: str
    base: int | str
    """What archs belong to: a CIFAR ResNet by its depth, or `mobile`, the network of mobile widths."""
    network: str = ""
    """A network by its name, such as cifar_resnet:14 or tas:C010-ResNet20, in place of an arch of the base network."""
    arch: Arch | None = None
    """None is the base network itself."""
    prune: Prune | None = None
    """The teacher's network pruned by Torch-Pruning, trained on from the weights that are left, in place of an arch."""
    start: str = ""
    """`base`: an arch begins with the weights of its teacher that fit, the most important channels; else at random."""
    recipe: Recipe = field(default_factory=Recipe)
    teacher: str = ""
    """The arm that teaches; empty for none."""
    teachers: str = ""
    """The group of that arm, where it is another one."""
    teacher_seed: int | None = None
    """Seed of the network that teaches, where it is the same one for all seeds."""
    distill: Distill = field(default_factory=Distill)
    held_out: int = 0
    """Training images that judge in place of the test images, and that are not trained on."""

    @property
    def name(self) -> str:
        """Of its files."""
        return named(self.group, self.arm, self.seed)

    @property
    def teaching(self) -> str:
        """Name of the unit that teaches it; empty for none."""
        seed = self.seed if self.teacher_seed is None else self.teacher_seed
        return named(self.teachers or self.group, self.teacher, seed) if self.teacher else ""

    @property
    def key(self) -> str:
        """A hash of all that its result depends on; options that are as usual are left out, so that there may be others
        one day."""
        options: list[object] = [unusual(self.recipe), unusual(self.distill) if self.teacher else {}]
        options += [dataclasses.asdict(self.prune)] if self.prune else []
        options += [text for text in (self.start, self.teachers) if text]
        options += [f"teacher of seed {self.teacher_seed}"] if self.teacher and self.teacher_seed is not None else []
        arch = to_json(self.arch) if self.arch else None
        return digest(self.dataset, self.base, self.network, arch, self.seed, self.teacher, self.held_out, *options)


def unusual(options: Recipe | Distill) -> dict[str, object]:
    """The fields that are not as they are by default."""
    usual = dataclasses.asdict(type(options)())
    return {name: value for name, value in dataclasses.asdict(options).items() if value != usual[name]}


def named(group: str, arm: str, seed: int) -> str:
    """`cifar10-resnet20-base-s0`."""
    return f"{group}-{'-'.join(arm.replace(',', '').split())}-s{seed}"


def units(path: Path) -> list[Unit]:
    """Those of a queue file, in its order; one that several rounds have comes with the first of them."""
    content = tomllib.loads(path.read_text())
    found: dict[str, Unit] = {}
    for entry in content["round"]:
        group: dict[str, Any] = content["group"][entry["group"]]
        archs = {
            name: arch
            for file in group.get("archs", ())
            for name, arch in read_json(path.parent / file)["archs"].items()
        }
        for seed in entry["seeds"]:
            for arm in entry["arms"]:
                unit = arranged(entry["group"], group, archs, arm, seed)
                found.setdefault(unit.name, unit)
    return list(found.values())


def arranged(name: str, group: Mapping[str, Any], archs: Mapping[str, Any], arm: str, seed: int) -> Unit:
    """A unit of a group; raises ValueError for an arm that it does not have."""
    own = group.get("arms", {}).get(arm)
    options = {**group, **({"arch": arm} if own is None else own)}
    arch = options.get("arch", "").format(seed=seed)
    if arch and arch not in archs:
        raise ValueError(f"the group {name} has no arch {arch} for its arm {arm} in {listing(group.get('archs', ()))}")
    recipe = replace(RECIPES[options.get("recipe", "medium")], **group.get("train", {}))
    return Unit(
        group=name,
        arm=arm,
        seed=seed,
        dataset=options["dataset"],
        base=options["base"],
        network=options.get("network", ""),
        arch=from_json(archs[arch], Arch, arch) if arch else None,
        prune=Prune(**options["prune"]) if "prune" in options else None,
        start=options.get("start", ""),
        recipe=replace(recipe, **(own or {}).get("train", {})),
        teacher=options.get("teacher", TEACHER),
        teachers=options.get("teachers", ""),
        teacher_seed=options.get("teacher_seed"),
        distill=Distill(**options.get("distill", {})),
        held_out=options.get("held_out", 0),
    )


@dataclass(frozen=True)
class Place:
    """Where things are, and when to stop."""

    data: Path
    out: Path
    results: Path
    pause: Path | None = None
    threads: int = 1
    until: float = float("inf")
    """Of time.time(), which is that of other machines, too."""
    signals: list[int] = field(default_factory=list)
    """Those that asked to stop."""

    def resolved(self) -> "Place":
        """With whole paths, for other processes."""
        pause = self.pause.resolve() if self.pause else None
        return replace(
            self, data=self.data.resolve(), out=self.out.resolve(), results=self.results.resolve(), pause=pause
        )

    def result(self, name: str) -> Path:
        """What is committed."""
        return self.results / f"{name}.json"

    def weights(self, name: str) -> Path:
        """A trained network."""
        return self.out / "weights" / f"{name}.safetensors"

    def teacher(self, unit: Unit) -> Path:
        """The weights of a unit that teaches: those trained here, or else those that came with the results."""
        kept = self.results.parent / "teachers" / f"{unit.name}.safetensors"
        return kept if not self.weights(unit.name).exists() and kept.exists() else self.weights(unit.name)

    def checkpoint(self, unit: Unit) -> Path:
        """An unfinished training."""
        return self.out / "checkpoints" / f"{unit.name}-{unit.key}.safetensors"

    def course(self, unit: Unit) -> Path:
        """A line of JSON for each of its epochs; of an epoch that was run twice the last one counts."""
        return self.checkpoint(unit).with_suffix(".jsonl")

    def wait(self) -> None:
        """Between two steps: returns once there is no pause."""
        while self.pause is not None and self.pause.exists():
            if self.signals:
                raise Interruption
            time.sleep(1.0)
        if len(self.signals) > 1:
            raise Interruption

    def check(self) -> None:
        """Between two epochs."""
        if self.signals or time.time() > self.until:
            raise Interruption


@dataclass(frozen=True)
class Watched(Source):
    """Images between whose batches something is looked at."""

    source: Source
    between: Callable[[], None]

    def __len__(self) -> int:
        return len(self.source)

    def where(self, mask: Tensor) -> "Watched":
        """The images at a bool mask [N]."""
        return replace(self, source=self.source.where(mask))

    def draws(
        self, size: int, count: int, *, generator: Generator, augment: bool = False, channels_last: bool = False,
        only: slice = WHOLE,
    ) -> Iterator[Batch]:  # fmt: skip
        """As those of the source."""
        return self.source.draws(
            size, count, generator=generator, augment=augment, channels_last=channels_last, only=only
        )

    def _batches(
        self, order: Tensor, size: int, generator: Generator, augment: bool, drop_last: bool, channels_last: bool,
        only: slice,
    ) -> Iterator[Batch]:  # fmt: skip
        for batch in self.source._batches(order, size, generator, augment, drop_last, channels_last, only):
            self.between()
            yield batch


class Remembering(nn.Module):
    """A teacher that answers from a file what it was asked before, to the last bit.

    All students of one seed see the same images in the same order, so that it is the first of them that pays. The file
    is a sequence of records, each a hash of a batch of images and the logits; a record cut off at its end is dropped.
    """

    HASH = 8

    def __init__(self, network: nn.Module, path: Path) -> None:
        super().__init__()
        self.network = network
        self.path = path
        self.known: dict[bytes, int] | None = None
        """Where in the file the answers begin."""

    def forward(self, images: Tensor) -> Tensor:
        """[N, 3, H, W] to [N, classes]."""
        if images.device.type != "cpu":
            logits: Tensor = self.network(images)
            return logits
        pixels = images.permute(0, 2, 3, 1).contiguous().numpy()
        mark = hashlib.blake2b(pixels.data, digest_size=self.HASH).digest()
        if self.known is not None and mark in self.known:
            return self._answer(self.known[mark])
        logits = self.network(images)
        if self.known is None:
            self._open(logits)
            if mark in (self.known or {}):
                return logits
        self._learn(mark, logits)
        return logits

    def _open(self, like: Tensor) -> None:
        """Read the hashes of what was answered before; answers have the form of this one."""
        self.form = (like.shape, like.dtype)
        self.length = like.numel() * like.element_size()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.known = {}
        with self.path.open("a+b") as file:
            whole = file.seek(0, 2) // (self.HASH + self.length) * (self.HASH + self.length)
            for start in range(0, whole, self.HASH + self.length):
                file.seek(start)
                self.known[file.read(self.HASH)] = start + self.HASH
            file.truncate(whole)

    def _answer(self, start: int) -> Tensor:
        with self.path.open("rb") as file:
            file.seek(start)
            content = bytearray(file.read(self.length))
        return torch.frombuffer(content, dtype=self.form[1]).view(self.form[0])

    def _learn(self, mark: bytes, logits: Tensor) -> None:
        if (logits.shape, logits.dtype) != self.form:
            return
        assert self.known is not None
        with self.path.open("ab") as file:
            self.known[mark] = file.seek(0, 2) + self.HASH
            file.write(mark + logits.contiguous().view(torch.uint8).numpy().tobytes())


def classes(dataset: str) -> int:
    """Outputs of its networks."""
    return DATASETS[dataset]().classes


def family_of(base: int | str) -> ModelFamily:
    """Of a base network."""
    return Mobile() if base == "mobile" else CifarResNet(int(base))


@cache
def traced(base: int | str, dataset: str) -> Network:
    """The base network of archs."""
    torch.manual_seed(0)
    family = family_of(base)
    return trace(
        family.build(classes(dataset)), torch.zeros(2, 3, 32, 32), adds="join", project_norm=family.project_norm
    )


def drawn(unit: Unit, teacher: nn.Module | None = None, examples: Iterable[Batch] = ()) -> nn.Module:
    """The network of a unit, weights as its seed draws them, or of the teacher where it starts from those; `examples`
    are training images for ThiNet's criterion."""
    torch.manual_seed(unit.seed)
    base = traced(unit.base, unit.dataset)
    if unit.prune is not None and teacher is not None:
        return pruned_to(unit.prune, base, teacher, examples)
    if unit.network:
        model = networks.build(unit.network, classes(unit.dataset))
    else:
        model = resize(base, unit.arch or base.base)
    family_of(unit.base).reset(model)
    if unit.start and teacher is not None:
        inherit(model, replace(base, module=ordered(teacher, base.example())), unit.arch or base.base)
    return model


def inherit(model: nn.Module, trained: Network, arch: Arch) -> None:
    """Give a network of this arch the weights of a trained base network, its channels in order, where they fit."""
    widths = {site: min(width, trained.base.widths[site]) for site, width in arch.widths.items()}
    narrow = resize(trained, Arch(widths, arch.depths)).state_dict()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            part = narrow[name]
            tensor[tuple(slice(size) for size in part.shape)] = part


def pruned_to(options: Prune, base: Network, teacher: nn.Module, examples: Iterable[Batch] = ()) -> nn.Module:
    """The teacher pruned by the least ratio that keeps the share of its latency, with the weights that are left."""
    seconds = cost_model(base, read_record(HERE / options.cost / "cost.json", CalibrationRecord))
    most = options.share * seconds.cost(base.base)
    how = Pruning(options.criterion, options.scope, options.round_to, "kept")
    example = torch.zeros(2, 3, 32, 32)
    importance = importance_of(options.criterion, examples)
    archs = candidates(base, teacher, example, how, importance)
    ratio = next((ratio for arch, ratio in archs.items() if seconds.cost(arch) <= most), None)
    if ratio is None:
        raise ValueError(f"no network pruned by {how} has {options.share} of the latency")
    return pruned(base, teacher, example, how, ratio, importance)[1].train()


@cache
def images(dataset: str, folder: Path, held_out: int, device: str) -> Data:
    """The images of a data set, which has 50,000 to train on."""
    made = DATASETS[dataset](path=str(folder / dataset))
    return datasets.load(made, device=device, validation=(held_out or 5000) / 50_000, seed=SPLIT)


def trained(unit: Unit, teacher: Unit | None, place: Place) -> None:
    """Train a unit, or go on with it, and write its result; raises Interruption."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    data = images(unit.dataset, place.data, unit.held_out, device)
    source, judges = (data.weights, data.validation) if unit.held_out else (data.train, data.test)
    original: nn.Module | None = None
    if teacher is not None:
        original = drawn(teacher)
        tensors, made = read_tensors(place.teacher(teacher))
        if made["inputs"] != teacher.key:
            raise ValueError(f"{place.teacher(teacher)} is of another recipe or network than the queue's; delete it")
        original.load_state_dict(tensors)
        original.eval()
    model = drawn(unit, original, some(data.weights, IMAGES))
    network = traced_of(model) if unit.network or unit.prune else traced(unit.base, unit.dataset)
    arch = unit.arch or network.base
    about = {
        "name": unit.name,
        "group": unit.group,
        "arm": unit.arm,
        "seed": unit.seed,
        "dataset": unit.dataset,
        "network": unit.network or family_of(unit.base).title,
        "arch": to_json(unit.arch) if unit.arch else None,
        "prune": dataclasses.asdict(unit.prune) if unit.prune else None,
        "start": unit.start or "random",
        "macs": network.macs(arch),
        "params": network.params(arch),
        "recipe": dataclasses.asdict(unit.recipe),
        "bf16": has_bf16(device, unit.recipe.precision),
        "teacher": unit.teaching,
        "teacher_weights": digest(place.teacher(teacher)) if teacher is not None else "",
        "distill": dataclasses.asdict(unit.distill) if unit.teacher else None,
        "trained_on": len(source),
        "judged_on": f"{len(judges)} {'training images held out' if unit.held_out else 'test images'}",
        "inputs": unit.key,
    }
    mentor: nn.Module | None = None
    if teacher is not None and original is not None:
        answers = f"{teacher.name}-{about['teacher_weights']}-{unit.recipe.batch}.bin"
        mentor = Remembering(original, place.out / "answers" / answers)
    course, spent = place.course(unit), time.process_time()

    def on_epoch(epoch: int, loss: float, accuracy: float) -> None:
        nonlocal spent
        now = time.process_time()
        line = {"epoch": epoch, "loss": round(loss, 5), "accuracy": round(accuracy, 5), "cpu_seconds": now - spent}
        spent = now
        with course.open("a") as file:
            file.write(json.dumps(line) + "\n")
        if epoch < unit.recipe.length:
            place.check()

    why = ""
    seconds = 0.0
    try:
        seconds = Training(
            model, Watched(source, place.wait), unit.recipe, seed=unit.seed, device=device, title=unit.name,
            checkpoint=place.checkpoint(unit), teacher=mentor, distill=unit.distill,
            on_epoch=on_epoch,
        ).run()  # fmt: skip
    except ValueError as error:
        if "diverged" not in str(error):
            raise
        why = "diverged"
    place.wait()
    accuracy = None if why else evaluate(model, judges, device=device, precision=unit.recipe.precision)
    lines = course.read_text().splitlines() if course.exists() else []
    epochs = list({line["epoch"]: line for line in map(json.loads, lines)}.values())
    busy = sum(line["cpu_seconds"] for line in epochs)
    write_tensors(place.weights(unit.name), model.state_dict(), {"name": unit.name, "inputs": unit.key})
    write_json(place.result(unit.name), {
        **about,
        "accuracy": accuracy,
        "failed": why,
        "epochs": [[line["epoch"], line["loss"], line["accuracy"]] for line in epochs],
        "seconds": round(seconds, 1),
        "cpu_seconds": round(busy, 1),
        "images_per_cpu_second": round(len(epochs) * len(source) / busy, 1) if busy else None,
        "device": device,
        "threads": torch.get_num_threads(),
        "machine": machine(),
        "versions": {"htas": __version__, "code": code()},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    })  # fmt: skip
    for done in (place.checkpoint(unit), course):
        done.unlink(missing_ok=True)


def traced_of(model: nn.Module) -> Network:
    """Of a network that is no arch of the base network, to count its parts."""
    return trace(model, torch.zeros(2, 3, 32, 32))


@cache
def code() -> str:
    """A hash of the files that a training runs through, as they were when the command began."""
    parts = (Training, EpochLoop, Distill, augmented, placed)
    return digest(*(Path(inspect.getfile(part)) for part in parts))


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Whether the lock of a unit could be had; it ends with the process, however that ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def state(unit: Unit, known: dict[str, Unit], place: Place) -> str:
    """`done`, `ready`, or what it waits for. Raises ValueError for a result of something else under its name."""
    path = place.result(unit.name)
    if path.exists():
        if read_json(path)["inputs"] != unit.key:
            raise ValueError(f"{path} is of another recipe or network than the queue's; delete it, or rename the arm")
        return "done"
    if unit.teacher:
        if unit.teaching not in known:
            raise ValueError(f"{unit.name} has the teacher {unit.teaching}, which the queue has not")
        if state(known[unit.teaching], known, place) != "done" or not place.teacher(known[unit.teaching]).exists():
            return f"waits for the weights of {unit.teaching}"
    return "ready"


def work(queue: Path, place: Place, only: str) -> bool:
    """Train the first unit that is ready and that nobody else works on; whether there was one."""
    listed = units(queue)
    known = {unit.name: unit for unit in listed}
    ready = [unit for unit in listed if state(unit, known, place) == "ready"]
    return any(finished(unit, known, place) for unit in ready if fnmatch.fnmatch(unit.name, only))


def finished(unit: Unit, known: dict[str, Unit], place: Place) -> bool:
    """Train a unit, unless it is not ready or somebody else works on it; whether that was done."""
    with locked(place.out / "locks" / f"{unit.name}.lock") as mine:
        if not mine or state(unit, known, place) != "ready":
            return False
        print(f"{datetime.now(UTC):%H:%M:%S} {unit.name}", flush=True)
        trained(unit, known[unit.teaching] if unit.teacher else None, place)
        accuracy = read_json(place.result(unit.name))["accuracy"]
        print(f"{datetime.now(UTC):%H:%M:%S} {unit.name}: {accuracy}", flush=True)
        return True


def all_at_once(queue: Path, place: Place, only: str, workers: Tasks) -> dict[str, str]:
    """Train all units, as many at once as there are workers, students after their teachers; returns why some could not
    be trained, by name."""
    listed = units(queue)
    known = {unit.name: unit for unit in listed}
    left = [unit.name for unit in listed if fnmatch.fnmatch(unit.name, only) and state(unit, known, place) != "done"]
    place.out.mkdir(parents=True, exist_ok=True)
    tasks = {}
    for name in left:
        teacher = known[name].teaching if known[name].teaching in left else ""
        tasks[name] = Task(one_of, (queue, place, name), teacher, f"{teacher}, which teaches it, is not trained")
    with workers.opened():
        return workers.do("evidence", tasks, place.out, {}) if tasks else {}


def one_of(folder: Path, queue: Path, place: Place, name: str) -> None:
    """In a process: train a unit, or leave it for the next command. Raises UserError where `folder` is not that of the
    queue's command."""
    if folder.resolve() != place.out.resolve():
        raise UserError(f"{place.out} is not there; name a folder that all nodes share with --out")
    code()
    known = {unit.name: unit for unit in units(queue)}
    with suppress(Interruption):
        place.check()
        (folder / name).mkdir(exist_ok=True)
        into(folder / name)
        finished(known[name], known, place)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--queue", type=Path, default=HERE / "queue.toml")
    parser.add_argument("--out", type=Path, default=Path("runs/evidence"))
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--only", default="*", help="units whose names are like this, such as 'cifar10-resnet20-*-s0'")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--pause", type=Path)
    parser.add_argument("--list", action="store_true", help="only say what there is, and how far it is")
    parser.add_argument("--workers", default="", help="local:N, ray, or HOST:PORT of a Ray cluster: units at once")
    given = parser.parse_args()
    until = time.time() + 60 * given.minutes
    place = Place(given.data, given.out, given.results, given.pause, given.threads, until)
    if given.list:
        listed = units(given.queue)
        known = {unit.name: unit for unit in listed}
        print("\n".join(f"{unit.name}: {state(unit, known, place)}" for unit in listed))
        return 0
    torch.set_num_threads(given.threads)
    code()
    if given.workers:
        return by_workers(given.workers, given.queue, place, given.only)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: place.signals.append(number))
    try:
        while work(given.queue, place, given.only):
            place.check()
    except Interruption:
        print("stopped; the same command goes on", flush=True)
        return 0
    print("nothing is left to do here", flush=True)
    return 0


def by_workers(workers: str, queue: Path, place: Place, only: str) -> int:
    """The queue by workers; a signal ends them, and the next command goes on from their last epochs."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        crew = Crew(workers)
        crew.check()
        tasks = tasks_of(crew if crew.threads else Crew(f"{workers},threads={place.threads}"))
        assert tasks is not None
        with recording():
            reasons = all_at_once(queue.resolve(), place.resolved(), only, tasks)
    except KeyboardInterrupt:
        print("stopped; the same command goes on", flush=True)
        return 0
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    for name, reason in reasons.items():
        print(f"{name}: {reason}", file=sys.stderr)
    print(
        "nothing is left to do here" if time.time() < place.until else "stopped; the same command goes on", flush=True
    )
    return 1 if reasons else 0


if __name__ == "__main__":
    import evidence  # type: ignore[import-not-found]  # other processes find its functions there

    sys.exit(evidence.main())
