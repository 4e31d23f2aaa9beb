"""The network and the data of a call of htas.optimize: they have no name by which another process could build them."""

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from htas.data.batch import Format
from htas.data.copies import shared
from htas.data.items import SEEN, Items, items, limited
from htas.data.marks import mark
from htas.data.nests import replaced
from htas.data.split import Data, Shape
from htas.data.task import CLASSIFY, Task
from htas.datasets import Dataset
from htas.errors import CallerError, UserError
from htas.graph.modes import copied, unwrapped
from htas.graph.record import Value
from htas.graph.runs import recorded_run
from htas.models import ModelFamily
from htas.text import plural, shapes

LOOKED = 64
"""Items of each part that are looked at before anything is measured."""
Parts = tuple[Items, Items, Task]


@dataclass(frozen=True)
class UserNetwork(ModelFamily):
    """The user's network; only the process that called htas.optimize has it."""

    what: str
    """Name of its class."""
    digest: str
    """A digest of its weights, modules and forward pass."""
    inherits: bool = True
    """Whether the base network and all others start from its weights; otherwise weights are drawn at random."""

    _module: ClassVar[nn.Module | None] = None
    """A copy of the network. No field, since a configuration is only text."""

    @staticmethod
    def of(module: nn.Module, examples: tuple[Tensor, ...], *, trained: bool) -> "UserNetwork":
        """A family whose base network is a copy of this module; `examples` are its inputs, [N, *shape] each."""
        module = unwrapped(module)
        family = UserNetwork(type(module).__name__, digest(module, examples), inherits=trained)
        object.__setattr__(family, "_module", copied(module))
        return family

    def build(self, classes: int) -> nn.Module:
        """A copy of the network; raises UserError in another process."""
        if self._module is None:
            raise CallerError(
                f"the network of this run, {self.what}, was given to htas.optimize in Python; call it again with the "
                "same network and this folder as out"
            )
        return copied(self._module)

    def check(self, module: nn.Module, example: tuple[Tensor, ...], classes: int) -> None:
        """Nothing: htas.optimize has looked at the outputs, which are logits only where no loss is given."""
        return None

    def member(self, blocks: int) -> str:
        """`Net with 2 blocks a stage`."""
        return f"{self.what} with {plural(blocks, 'block')} a stage"

    @property
    def title(self) -> str:
        """`given:Net:0123456789ab`."""
        return f"given:{self.what}:{self.digest}"


def digest(module: nn.Module, examples: tuple[Tensor, ...]) -> str:
    """A digest of a network's modules, of the steps of its forward pass on examples [N, *shape], and of its state."""
    sha = hashlib.sha256(repr(module).encode())
    with suppress(UserError):  # tracing refuses it later
        sha.update(_steps(module, examples).encode())
    untrained = sorted(name for name, each in module.named_parameters() if not each.requires_grad)
    sha.update(repr(untrained).encode() if untrained else b"")
    for name, tensor in sorted(module.state_dict().items()):
        sha.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        sha.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()[:12]


def _steps(module: nn.Module, examples: tuple[Tensor, ...]) -> str:
    """The steps of a forward pass in eval mode as text, equal in every process."""
    numbers: dict[Value, int] = {}

    def text(leaf: object) -> str:
        if isinstance(leaf, Value):
            return leaf.param or f"tensor {numbers.setdefault(leaf, len(numbers))} {leaf.shape}"
        return str(leaf) if isinstance(leaf, int | float | str | torch.dtype | None) else type(leaf).__name__

    kind = next((each.dtype for each in module.parameters() if each.is_floating_point()), torch.float32)
    inputs = tuple(each.to(kind) if each.is_floating_point() else each for each in examples)
    run = recorded_run(copied(module).eval(), inputs)  # a copy, as a forward pass may keep tensors on modules
    steps = [(each.name, each.module, replaced((each.args, each.kwargs, each.result), text)) for each in run.calls]
    return repr((steps, replaced(run.outputs, text)))


@dataclass(frozen=True)
class UserData(Dataset):
    """The user's training and validation items; only the process that called htas.optimize has them."""

    key: str
    """A digest of the items."""
    sizes: tuple[int, ...]
    """Number of training and of validation items."""
    classes: int = 0
    """Number of outputs of the network."""
    shapes: tuple[Shape, ...] = ()
    """Shape of every input, without the batch: (channels, height, width)."""
    task: str = ""
    """The user's own functions of the task, each with a digest; empty for none."""

    mean = std = ()
    _parts: ClassVar[Parts | None] = None
    """Training items, validation items and task. No field, since a configuration is only text."""
    _doubts: ClassVar[tuple[str, ...]] = ()

    @property
    def doubts(self) -> tuple[str, ...]:
        """That validation items are training items too, where some are."""
        return self._doubts

    @property
    def name(self) -> str:
        """In a report: the class of the items, where it is the user's own."""
        kind = self.key.rpartition("-")[0]
        return "the given data" if hasattr(torch.utils.data, kind) else kind

    @staticmethod
    def of(
        train: Any, test: Any, classes: int, shapes: tuple[Shape, ...], task: Task = CLASSIFY,
        names: tuple[str, ...] = (), whole: tuple[bool, ...] = (),
    ) -> "UserData":  # fmt: skip
        """A data set of these items; `names` are those of forward's inputs, `whole` says which of them may be whole
        numbers. Raises UserError where the items are no data."""
        parts = tuple(
            replace(part, form=Format(what, shapes, names, classes if task.classifies else 0, whole))
            for what in ("the training data", "the validation data")
            for part in [items(train if what == "the training data" else test, what)]
        )
        sizes = tuple(len(part) for part in parts)
        key = f"{type(parts[0].dataset).__name__}-{fingerprint(*parts)}"
        data = UserData(key, sizes, classes, shapes, task.name)
        object.__setattr__(data, "_parts", (*parts, task))
        object.__setattr__(data, "_doubts", _overlap(*parts))
        return data

    def check(self) -> None:
        """Raise UserError where some items are no inputs and targets, or have inputs of another shape than
        example_inputs, NaN or infinity among them."""
        for part in self._items()[:2]:
            part.check_finite()
            inputs, _ = part.some(LOOKED)
            item_shapes = tuple(tuple(each.shape[1:]) for each in ((inputs,) if isinstance(inputs, Tensor) else inputs))
            if item_shapes != self.shapes:
                raise UserError(
                    f"an item of {part.form.what} has inputs of shape {shapes(item_shapes)}, and example_inputs "
                    f"{shapes(self.shapes)}; give an example of the shape that the data have"
                )

    def load(self, *, device: str, validation: float, seed: int, limit: int) -> Data:
        """See `htas.datasets.load`; raises UserError in another process."""
        *parts, task = self._items()
        train, test = (limited(part.on(device), limit) for part in parts)
        labels = train.labels() if task.classifies else None
        if task.classifies:
            test.labels()  # raises UserError for those of no class
        if labels is None:
            labels = torch.zeros(len(train), dtype=torch.long)
        return Data.of(self.classes, self.shapes, train, labels, test, validation=validation, seed=seed, task=task)

    def _items(self) -> Parts:
        if self._parts is None:
            raise CallerError(
                "the data of this run were given to htas.optimize in Python; call it again with the same data and this "
                "folder as out"
            )
        return self._parts


def _overlap(train: Items, test: Items) -> tuple[str, ...]:
    """A sentence where items of the test are trained on; torch's own Subset and ConcatDataset are looked through."""
    count = shared(train.origins(), test.origins())
    if not count:
        return ()
    which = "is a training item" if count == 1 else "are training items"
    return (
        f"{count} of {plural(len(test), 'validation item')} {which} too, and accuracies on what networks were trained "
        "on are no test of them; give validation items that are not among the training items.",
    )


def fingerprint(*parts: Items) -> str:
    """A digest of some items of each part, and of what makes batches of them; of items that differ at each reading
    (augmented), shapes and labels only."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(f"{type(part.dataset).__qualname__} {len(part)} {part.picks.sum().item()}".encode())
        sha.update(mark(part.collate).encode() if part.collate is not None else b"")
        for number in torch.linspace(0, len(part) - 1, min(SEEN, len(part))).long().tolist():
            once, twice = (_leaves(part.item(number)) for _ in range(2))
            for one, other in zip(once, twice, strict=True):
                same = one.shape == other.shape and torch.equal(one, other)
                sha.update(f"{tuple(one.shape)} {one.dtype}".encode())
                sha.update(one.contiguous().flatten().view(torch.uint8).numpy().tobytes() if same else b"")
    return sha.hexdigest()[:12]


def _leaves(item: Any) -> list[Tensor]:
    """The tensors, arrays, numbers, texts and images (Pillow's) of an item, as tensors."""
    leaves = []
    for each in tree_leaves(dict(item) if isinstance(item, Mapping) else item):
        if isinstance(each, Tensor) and each.device.type == "meta":
            raise UserError("an item of the data holds a tensor on the device meta, which has no values; give it some")
        if isinstance(each, int) and abs(each) >= 2**63:
            raise UserError(f"an item of the data holds the number {each:.3g}, which no tensor can hold; give another")
        if isinstance(each, Tensor | int | float | bool):
            leaves.append(torch.as_tensor(each).cpu())
        elif isinstance(each, np.ndarray | np.generic | str | bytes) or hasattr(each, "tobytes"):
            text = each.encode() if isinstance(each, str) else each if isinstance(each, bytes) else each.tobytes()
            leaves.append(torch.tensor(list(text), dtype=torch.uint8))
    return leaves
