"""The one loop over epochs: a step for every batch, a checkpoint after each, and going on after an interruption; in one
process, or in several that train together (ranks.py)."""

import random
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from reprlib import repr as shortened
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from htas.console.progress import Bar, progress
from htas.console.record import scalars
from htas.data.nests import tensors_in
from htas.data.split import WHOLE, Batch, Source
from htas.data.task import Inputs, forward, precise
from htas.errors import UserError
from htas.files import (
    BUFFERS,
    check_weights,
    checking,
    from_json,
    load_state,
    read_tensors,
    state_of,
    write_tensors,
    wrong,
)
from htas.timing.allocator import keep_memory
from htas.training import ranks
from htas.training.layout import CopyingViews, placed
from htas.training.recipe import Precision, Recipe

OUTPUTS = (
    "the network gives NaN or infinity before its first step, for inputs that are numbers; look for a logarithm, a "
    "root or a quotient of 0 in it"
)
LOSS = "the loss is no number at the first step, for inputs that are; look at the outputs, the targets and the loss"


class EpochFigures(Protocol):
    """What an epoch came to: a dataclass of JSON values."""

    @property
    def seconds(self) -> float:
        """Seconds that the epoch took."""

    @property
    def scalars(self) -> dict[str, float]:
        """Figures by name, for TensorBoard and those who watch."""


Values = dict[str, Any]
"""JSON values of a checkpoint, by name."""
Figures = TypeVar("Figures", bound=EpochFigures)


class EpochLoop(ABC, Generic[Figures]):
    """Trains a network in place, by SGD along a recipe. A run that was interrupted ends as an uninterrupted one, to the
    last bit. Raises UserError where a batch cannot be divided among processes that train together."""

    prefix = "model/"
    """Prefix of the network's tensors in a checkpoint."""
    record: type[Figures]
    """Class of the epochs' figures; a checkpoint holds its fields."""
    batch_option = "train.batch"
    """Name of the option that `recipe.batch` comes from."""

    def __init__(
        self, model: nn.Module, split: Source, recipe: Recipe, *, seed: int, device: str, checkpoint: Path, title: str
    ) -> None:
        self.title, self.checkpoint = title, checkpoint
        self.length, self.steps = recipe.length, max(1, len(split) // recipe.batch)
        self.epochs: list[Figures] = []
        """Epochs done, those before an interruption included."""
        self._started = time.monotonic()
        self._first = ""
        """Why the loss of the first step is no number, before the learning rate had an effect."""
        self.split, self.recipe, self.seed = split, recipe, seed
        self.share = ranks.share(min(recipe.batch, len(split)), self.batch_option)
        """The slice of every batch that this process learns from."""
        self.runner = engine(device, recipe.precision)
        self.model = placed(model, self.runner.device)
        self.sgd = torch.optim.SGD(
            model.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay,
            nesterov=recipe.momentum > 0, foreach=True,
        )  # fmt: skip
        self.optimizers: dict[str, torch.optim.Optimizer] = {"sgd": self.sgd}
        """Those whose state a checkpoint holds, by name."""

    def begin(self, number: int, seed: int) -> None:
        """Prepare an epoch, the first being 0, whose draws start from this seed."""
        return None

    @abstractmethod
    def step(self, images: Inputs, labels: Any, share: float) -> Tensor:
        """Learn from a batch, at this share of all epochs; returns figures to be summed, [any number], the loss before
        it first."""

    @abstractmethod
    def figures(self, number: int, sums: Tensor) -> Figures:
        """An epoch's figures by their sums over its steps; raises UserError where the training diverged."""

    def epoch(self, number: int, bar: Bar) -> Figures:
        """One pass; raises UserError where the training diverged."""
        seed = epoch_seed(self.seed, number)
        draws = ranks.own_seed(seed)  # for what a network draws itself, as dropout does, and items that are augmented
        torch.manual_seed(draws)
        random.seed(draws)
        np.random.seed(draws % 2**32)
        self.begin(number, seed)
        self.model.train()
        sums = torch.zeros((), device=self.runner.device)
        if number == 0 and (
            name := next((name for name, each in self.model.named_parameters() if not finite(each)), "")
        ):
            raise UserError(f"{self.title} cannot begin: {name} holds NaN or infinite weights; give the network others")
        for step, (images, labels) in enumerate(batches(self.split, self.recipe.batch, seed, self.share)):
            first = number == step == 0  # no step has had an effect yet
            if first:
                with torch.random.fork_rng(), CopyingViews():
                    self._first = self.fault(images)
            set_rate(self.sgd, self.recipe.rate(number, step, self.steps))
            with CopyingViews():
                sums = sums + self.step(images, labels, self.recipe.share(number, step, self.steps))
            if first:
                self._first = "" if finite(ranks.mean(sums).flatten()[:1]) else self._first or LOSS
                if self._first:
                    break
            bar.step()
        ranks.equalize(self.model.parameters(), self.model.buffers())
        return self.figures(number, ranks.mean(sums))

    def fault(self, images: Inputs) -> str:
        """What gives no numbers for images that do; empty where that is not known."""
        return ""

    def cause(self, number: int) -> str:
        """Why the loss of an epoch is no number where its learning rate is not to blame, and what to do; otherwise
        empty. Looks at the inputs of the epoch, and at what its first step came to."""
        if any(
            not finite(images) for images, _ in batches(self.split, self.recipe.batch, epoch_seed(self.seed, number))
        ):
            return "inputs of the training data are NaN or infinite; replace them, or leave those items out"
        return self._first

    @property
    def rate(self) -> float:
        """Learning rate of the weights, now."""
        return float(self.sgd.param_groups[0]["lr"])

    def outputs(self, network: nn.Module, images: Inputs) -> Any:
        """What a network makes of images, in the arithmetic of the recipe and as precise as a loss needs."""
        with self.runner.autocast():
            outputs = forward(network, images)
        return precise(outputs)

    def descend(self, loss: Tensor) -> None:
        """A step of the weights down the gradient of a loss, a scalar."""
        self.sgd.zero_grad()
        self.runner.backward(loss)
        self.update(self.sgd)

    def update(self, optimizer: torch.optim.Optimizer) -> None:
        """A step of an optimizer, by the gradients of the whole batch: the mean of those of its slices, no longer than
        the recipe allows."""
        parameters = [each for group in optimizer.param_groups for each in group["params"]]
        ranks.reduce_gradients(parameters)
        if self.recipe.clip:
            nn.utils.clip_grad_norm_(parameters, self.recipe.clip)
        optimizer.step()

    @abstractmethod
    def summary(self, figures: Figures) -> str:
        """An epoch in a few words, for the bar."""

    def tensors(self) -> dict[str, Tensor]:
        """Weights and momenta."""
        weights = {f"{self.prefix}{name}": tensor for name, tensor in state_of(self.model).items()}
        for name, optimizer in self.optimizers.items():
            weights |= _state(optimizer, name)
        return weights

    def load(self, tensors: dict[str, Tensor], values: Values) -> None:
        """Weights and momenta."""
        weights = {k.removeprefix(self.prefix): v for k, v in tensors.items() if k.startswith(self.prefix)}
        load_state(self.model, weights)
        for name, optimizer in self.optimizers.items():
            _load_state(optimizer, tensors, name)

    def values(self) -> Values:
        """JSON values that the next epoch needs in addition to the tensors."""
        return {}

    @property
    def elapsed(self) -> float:
        """Seconds since the current epoch began."""
        return time.monotonic() - self._started

    @property
    def seconds(self) -> float:
        """Seconds that all epochs took."""
        return sum(each.seconds for each in self.epochs)

    def run(self) -> float:
        """All epochs that are missing; the checkpoint is written after each. Returns the seconds of all epochs, those
        before an interruption included."""
        with same_dice():
            return self._run()

    def _run(self) -> float:
        self.restore()
        done = len(self.epochs)
        ranks.same(done, f"{done} epochs of {self.checkpoint}" if done else f"checkpoint {self.checkpoint}")
        ranks.from_first(self.tensors().values())
        with progress(self.title, self.length * self.steps, done=done * self.steps) as bar:
            for number in range(done, self.length):
                self._started = time.monotonic()
                figures = self.epoch(number, bar)
                self.epochs.append(figures)
                scalars(self.title, number + 1, figures.scalars)
                if ranks.first():
                    self.keep(self.checkpoint)
                bar.step(f"epoch {number + 1} of {self.length}: {self.summary(figures)}", by=0)
        return self.seconds

    def keep(self, path: Path) -> None:
        """Write a checkpoint."""
        header = {"title": self.title, "epochs": [vars(each) for each in self.epochs], **self.values()}
        write_tensors(path, self.tensors(), header)

    def restore(self) -> None:
        """Go on from the checkpoint, if there is one."""
        if self.checkpoint.exists():
            self.restore_from(self.checkpoint)

    def restore_from(self, path: Path) -> None:
        """Go on from a checkpoint."""
        tensors, values = read_tensors(path)
        with checking(path):
            self.check_tensors(tensors)
        for name, value in self.values().items():
            if type(values.get(name)) is not type(value):
                raise wrong(path, f"{name} must be like {value}, got {shortened(values.get(name))}")
        epochs = from_json(values.get("epochs"), tuple[self.record, ...], path)  # type: ignore[name-defined]
        if len(epochs) > self.length:
            raise wrong(path, f"it has {len(epochs)} epochs, and there are {self.length}")
        self.load(tensors, values)
        self.epochs = list(epochs)

    def check_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Raise UserError where the tensors of a checkpoint are not those of this training."""
        weights = {k.removeprefix(self.prefix): v for k, v in tensors.items() if k.startswith(self.prefix)}
        check_weights(weights, self.model)
        mine = self.tensors()
        for name, tensor in mine.items():
            if name.startswith(f"{self.prefix}{BUFFERS}"):  # older checkpoints lack them
                continue
            if name not in tensors or tensors[name].shape != tensor.shape:
                raise UserError(f"{name} must be a tensor {tuple(tensor.shape)}")
        for name in sorted(tensors.keys() - mine.keys() - {f"{self.prefix}{each}" for each in weights}):
            optimizer, _, rest = name.partition("/")
            number, _, key = rest.partition("/")
            groups = self.optimizers[optimizer].param_groups if optimizer in self.optimizers else []
            shapes = [each.shape for group in groups for each in group["params"]]
            fits = number.isdecimal() and key and int(number) < len(shapes)
            if not fits or tensors[name].shape not in (shapes[int(number)], ()):
                raise UserError(f"it has a tensor {shortened(name)} that this training has not")


def engine(device: str, precision: Precision) -> Any:
    """An accelerate.Accelerator for a device and precision; it gives `device`, `autocast()` and `backward(loss)`.

    On a CPU the process keeps its memory from then on: tensors of other sizes in every step of a search cost 45 000
    page faults a step for memory given back in between.
    """
    if device == "cpu":
        keep_memory()
    from accelerate import Accelerator  # type: ignore[import-untyped]
    from accelerate.state import AcceleratorState  # type: ignore[import-untyped]

    AcceleratorState._reset_state(reset_partial_state=True)  # else the first precision of a process would stay
    return Accelerator(cpu=device == "cpu", mixed_precision="bf16" if has_bf16(device, precision) else "no")


def has_bf16(device: str, precision: Precision) -> bool:
    """Whether to train in bf16: asked for, or `auto` on hardware that computes it."""
    if precision != "auto":
        return precision == "bf16"
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    features = torch.cpu.get_capabilities()
    return any(features.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def finite(tree: Any) -> bool:
    """Whether all floating-point tensors in something are free of NaN and infinity."""
    return all(bool(each.isfinite().all()) for each in tensors_in(tree) if each.is_floating_point())


def batches(split: Source, size: int, seed: int, only: slice = WHOLE) -> Iterator[Batch]:
    """One augmented pass in random order, whole batches only unless there is less than one; `only` a part of each."""
    return split.batches(size, seed=seed, augment=True, drop_last=len(split) >= size, channels_last=True, only=only)


@contextmanager
def same_dice() -> Iterator[None]:
    """Draw random numbers of Python and of numpy from any seed; afterwards both go on where they were before."""
    python, numbers = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)


def epoch_seed(seed: int, epoch: int) -> int:
    """A seed of its own for every epoch, so that a continued run draws what an uninterrupted one would."""
    return seed * 1_000_003 + epoch


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def _state(optimizer: torch.optim.Optimizer, name: str) -> dict[str, Tensor]:
    """The state of an optimizer as flat named tensors; `_load_state` reads them back."""
    state = optimizer.state_dict()["state"]
    return {
        f"{name}/{index}/{key}": torch.as_tensor(value)
        for index, values in state.items()
        for key, value in values.items()
        if value is not None
    }


def _load_state(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], name: str) -> None:
    content = optimizer.state_dict()
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith(f"{name}/"):
            _, index, field = key.split("/")
            state.setdefault(int(index), {})[field] = value
    optimizer.load_state_dict({**content, "state": state})
