"""What a batch of the user's holds: the inputs that the network takes, and its targets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from htas.errors import UserError
from htas.text import listing, plural, shapes

NAMES = ("label", "labels", "target", "targets")
"""The entry of a batch by names that is not an input."""
SUM = 0.01
"""The probabilities of an item sum to 1 but for this much, as those in half precision do."""


@dataclass(frozen=True)
class Format:
    """What a network takes and learns from."""

    what: str = "the data"
    """Whose batches they are, for messages: `the training data`."""
    shapes: tuple[tuple[int, ...], ...] = ()
    """Of an item of every input; empty where all parts of an item but the last are inputs."""
    names: tuple[str, ...] = ()
    """Of the inputs, as forward calls them; empty where that cannot be said."""
    classes: int = 0
    """Number of classes where targets are labels or probabilities of them; otherwise 0."""
    whole: tuple[bool, ...] = ()
    """Of every input, whether the network takes whole numbers and makes floats of them itself."""

    def divided(
        self, batch: Any, numbers: Sequence[Sequence[int]] = (), ordered: bool = False
    ) -> tuple[list[Tensor], Any]:
        """The inputs of a batch and its targets: (input, targets), ((input, input), targets), (input, input, targets),
        the same with the items' numbers or file names at the end, or a dictionary of inputs with "label", "labels",
        "target" or "targets".

        `numbers` are those that items may have at the end, [N] each, the first of them known to the user's Dataset; the
        batch has its items in their order if it is `ordered`. Raises UserError for anything else.
        """
        inputs, targets = self._parts(batch, numbers)
        if not inputs or not all(isinstance(each, Tensor) for each in inputs):
            raise UserError(
                "an item of data must be (input tensor, targets), with several inputs (input, input, targets), or a "
                f"dictionary of them with {' or '.join(map(repr, NAMES))}, of which batches of tensors are made; got "
                f"{_described(batch)}: give a Dataset of such items, or a DataLoader with a collate_fn that makes them"
            )
        inputs = [self._floats(each, place) for place, each in enumerate(inputs)]
        if self.classes:
            return inputs, class_targets(targets, len(inputs[0]), self, numbers[0] if ordered and numbers else ())
        return inputs, targets

    def target(self, item: Any) -> Any:
        """The targets of a single item; raises UserError where it has none."""
        if isinstance(item, Mapping):
            names = [name for name in NAMES if name in item]
            if len(names) == 1:
                return item[names[0]]
        elif isinstance(item, tuple | list) and len(item) >= 2:
            return item[self._count(item)]
        raise UserError(f"an item of {self.what} has no targets, it is {_described(item)}")

    def inputs(self, item: Any) -> list[Any]:
        """What of a single item are inputs, before a batch is made of it; of a dictionary, what forward takes."""
        if isinstance(item, Mapping):
            if self.names and all(name in item for name in self.names):
                return [item[name] for name in self.names]
            others = [each for name, each in item.items() if name not in NAMES]
            return others if len(others) == 1 else [each for each in others if _shape(each) in self.shapes]
        if not isinstance(item, tuple | list) or len(item) < 2:
            return []
        return list(item[0]) if isinstance(item[0], tuple | list) else list(item[: self._count(item)])

    def _count(self, parts: Sequence[Any]) -> int:
        """The number of parts before the targets."""
        nested = isinstance(parts[0], tuple | list)
        return 1 if nested else min(len(self.shapes) or len(parts) - 1, len(parts) - 1)

    def _parts(self, batch: Any, numbers: Sequence[Sequence[int]]) -> tuple[list[Any], Any]:
        if isinstance(batch, Mapping):
            return self._entries(batch)
        if not isinstance(batch, tuple | list) or len(batch) < 2:
            return [], None
        count = self._count(batch)
        inputs, rest = list(batch[:count]), list(batch[count:])
        if isinstance(inputs[0], tuple | list):
            inputs = list(inputs[0])
        if len(rest) > 1 and not (len(rest) == 2 and _numbers_items(rest[1], numbers)):
            raise UserError(
                f"an item of {self.what} has {len(batch)} parts, and the network takes {plural(len(inputs), 'input')}: "
                "give items (input, targets), where targets may be a tuple for a loss_fn; only an item's own number or "
                "file name may follow"
            )
        return inputs, rest[0]

    def _entries(self, batch: Mapping[str, Any]) -> tuple[list[Any], Any]:
        """The same of a dictionary: inputs by the names of forward; a single one by its shape too."""
        keys = [name for name in NAMES if name in batch]
        others = [name for name in batch if name not in keys]
        if len(keys) != 1 or not others:
            return [], None
        targets, count = batch[keys[0]], len(self.shapes)
        if self.names and all(name in batch for name in self.names):
            return [batch[name] for name in self.names], targets
        if count == 1 and len(others) > 1:
            fitting = [
                name for name in others
                if isinstance(batch[name], Tensor) and tuple(batch[name].shape[1:]) == self.shapes[0]
            ]  # fmt: skip
            others = fitting if len(fitting) == 1 else others
        if len(others) > 1 and (self.names or count == 1):
            raise UserError(
                f"an item of {self.what} is a dictionary with {listing(map(str, batch))}, and forward takes "
                f"{listing(self.names) or 'one input'}: name the inputs so"
            )
        return [batch[name] for name in others], targets

    def _floats(self, tensor: Tensor, place: int) -> Tensor:
        """An input as float32, as networks are built here; raises UserError for bytes that nobody scales."""
        if tensor.is_floating_point() or (place < len(self.whole) and self.whole[place]):
            return tensor.float()
        if not self.shapes:
            return tensor
        kind = str(tensor.dtype).removeprefix("torch.")
        raise UserError(
            f"inputs of {self.what} are {kind}, and example_inputs are floats: make floats of them in the Dataset, "
            "scaled as the network is used to (images.float() / 255, say), or give example_inputs of whole numbers if "
            "the network does that itself"
        )


def class_targets(targets: Any, count: int, form: Format, numbers: Sequence[int] = ()) -> Tensor:
    """The targets of `count` items of classification: int64 labels [N], or float32 probabilities [N, classes].

    Takes labels [N] or [N, 1] of any type that are whole numbers, and probabilities, one-hot labels among them. Raises
    UserError for anything else, with the number of an item where `numbers` has those of all.
    """
    what, classes = form.what, form.classes
    allowed = f"labels [N] from 0 to {classes - 1} or probabilities [N, {classes}] that sum to 1"
    if not isinstance(targets, Tensor):
        raise UserError(
            f"targets of {what} are {_described(targets)}; without a loss_fn they must be {allowed}: number the classes"
        )
    if tuple(targets.shape) == (count, classes):
        shares = targets.float()
        if bool(((shares < 0) | ~shares.isfinite()).any()) or bool(((shares.sum(1) - 1).abs() > SUM).any()):
            raise UserError(
                f"targets [N, {classes}] of {what} are no probabilities that sum to 1; give {allowed}, or a loss_fn "
                "for items of several classes"
            )
        return shares
    if tuple(targets.shape) not in ((count,), (count, 1)):
        raise UserError(
            f"targets of {what} are of shape {tuple(targets.shape)} for {plural(count, 'item')}; without a loss_fn "
            f"they must be {allowed}"
        )
    labels = targets.reshape(count).long()
    if not torch.equal(labels.to(targets.dtype), targets.reshape(count)):
        raise UserError(f"labels of {what} are no whole numbers; give {allowed}, or a loss_fn for a regression")
    if count and (labels.min() < 0 or labels.max() >= classes):
        wrong = ((labels < 0) | (labels >= classes)).nonzero().flatten().tolist()
        first = f", item {numbers[wrong[0]]} has {labels[wrong[0]].item()}" if len(numbers) == count else ""
        raise UserError(
            f"labels of {what} must lie in 0 to {classes - 1}, as the network has {classes} outputs; they are "
            f"{labels.min().item()} to {labels.max().item()}{first}"
        )
    return labels


def one_class(targets: Tensor) -> Tensor:
    """int64 labels [N] from labels [N], or the most probable classes of [N, classes]."""
    return targets.argmax(1) if targets.dim() == 2 else targets


def stacked(items: list[Any]) -> Any:
    """A batch as torch makes it by default; raises UserError where items have no common shape or are no tensors."""
    try:
        return torch.utils.data.default_collate(items)
    except (RuntimeError, TypeError, KeyError, ValueError) as error:
        one_shape(items)
        raise UserError(
            f"no batch can be made of items that are {_described(items[0])} ({str(error).strip().splitlines()[0]}): "
            "make tensors of one shape in the Dataset, or give a DataLoader with a collate_fn that does"
        ) from error


def one_shape(items: list[Any]) -> None:
    """Raise UserError where the first inputs of items have several shapes."""
    sizes = dict.fromkeys(filter(None, map(shape_of, items)), -1)
    if len(sizes) > 1:
        raise UserError(unlike("the data", sizes))


def shape_of(item: Any) -> tuple[int, ...]:
    """Of the first input of an item; () where that has none."""
    return _shape(_first(item))


def unlike(what: str, sizes: Mapping[tuple[int, ...], int]) -> str:
    """That first inputs have several shapes, each with the number of an item that has it, or with -1."""
    some = list(sizes.items())[:2]
    among = " and ".join(f"{shapes([size])} of item {number}" for size, number in some)
    if any(number < 0 for _, number in some):
        among = shapes([size for size, _ in some])
    return (
        f"inputs of {what} have several shapes, {among} among them: cut or scale them to one in the Dataset, or give a "
        "DataLoader with a collate_fn that does"
    )


def _first(item: Any) -> Any:
    """The first input of an item, or what stands there."""
    if isinstance(item, Mapping):
        return next((each for name, each in item.items() if name not in NAMES), None)
    return _first(item[0]) if isinstance(item, tuple | list) and item else item


def _shape(part: Any) -> tuple[int, ...]:
    return tuple(getattr(part, "shape", ()))


def _numbers_items(part: Any, numbers: Sequence[Sequence[int]]) -> bool:
    """Whether the last part of a batch only tells which items these are."""
    if isinstance(part, tuple | list):
        return all(isinstance(each, str) for each in part)
    whole = isinstance(part, Tensor) and part.dim() == 1 and not part.is_floating_point()
    return whole and any(part.tolist() == list(each) for each in numbers)


def _described(batch: Any) -> str:
    if isinstance(batch, tuple | list):
        return (
            f"{type(batch).__name__} of {', '.join(dict.fromkeys(type(each).__name__ for each in batch)) or 'nothing'}"
        )
    if isinstance(batch, Mapping):
        return f"{type(batch).__name__} with {', '.join(map(str, batch)) or 'nothing'}"
    return type(batch).__name__
