"""Labels on the dimensions of every value: which elements of `Channels` stand along it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from htas.graph.channels import Channels, Ids
from htas.graph.length import Leaf, leaves_of
from htas.graph.record import Call, Record, Value

INPUT = "it is the network's input"
Dims = dict[int, Ids]
"""By dimension its elements; a dimension that is not there (images, height, width) never changes its size."""


class Labels:
    """Labels of all values of the recorded runs of one network."""

    def __init__(self, module: nn.Module) -> None:
        self.modules = dict(module.named_modules())
        self.untrained = {
            name for name, each in module.named_parameters(remove_duplicate=False)
            if each.dim() > 1 and not each.requires_grad
        }  # fmt: skip
        """Weights that are not trained; new channels of theirs would never learn, and fewer are another filter."""
        self.images = 1
        """Number of images in the run whose steps are labelled."""
        self.channels = Channels()
        self.params: dict[str, Dims] = {}
        """By qualified name of a parameter or buffer that a step reads."""
        self._dims: dict[Value, Dims] = {}
        self.reasons: dict[Value, str] = {}
        """Why the dimensions of a value without labels never change."""
        self.values: Mapping[str, Value] = {}
        """Parameters and buffers of the run whose steps are labelled."""
        self.counted: dict[Leaf, Ids] = {}
        """Numbers that modules hold, and the channels that each of them counts."""

        self.by_count = False
        """Whether parts of channels that a shuffle has bound are followed by their number alone."""
        self.recount = False
        """Whether any could be."""
        self.unordered: list[Ids] = []
        """Channels that are followed by their number alone."""

    def enter(self, record: Record, images: int) -> None:
        """Label the steps of a run with this number of images."""
        self.values, self.images = record.params, images

    def of(self, value: Value) -> Dims:
        """Labels by dimension; those of a parameter are made when it is first read."""
        if value.param:
            if value.param not in self.params:
                self.params[value.param] = self._fresh(value)
            return self.params[value.param]
        return self._dims.get(value, {})

    def module(self, call: Call) -> nn.Module | None:
        """The module that a step calls; None where it calls a function."""
        return self.modules[call.module] if call.module else None

    def param(self, name: str) -> Value:
        """A parameter or buffer by its qualified name."""
        return self.values[name]

    def _fresh(self, value: Value) -> Dims:
        owner = self.modules.get(value.param.rpartition(".")[0].split(".parametrizations.")[0])
        convolves = isinstance(owner, nn.modules.conv._ConvNd) and len(value.shape) > 2  # a weight, or what makes it
        if value.tensor.dtype in (torch.int32, torch.int64):  # places of something
            return {}
        sizes = value.shape[:2] if convolves else value.shape
        fresh = {dim: self.channels.new(size) for dim, size in enumerate(sizes) if size > 1}
        if value.param in self.untrained:
            place, _, name = value.param.rpartition(".")
            for ids in fresh.values():
                self.channels.freeze(ids, f"{place or name} has weights that are not trained (requires_grad is False)")
        return fresh

    def roots(self, value: Value, dim: int) -> Ids:
        """The elements along a dimension, each as the one that stands for all that it is tied to so far."""
        return self.channels.roots(self.of(value)[dim])

    def set(self, value: Value, dims: Mapping[int, Ids], reason: str = "") -> None:
        """Give a step's output its labels; `reason` says why other dimensions never change."""
        self._dims[value] = dict(dims)
        if reason:
            self.reasons[value] = reason

    def all_dims(self) -> Iterator[Dims]:
        """The labels of all values that steps make."""
        yield from self._dims.values()

    def single(self) -> Iterator[Ids]:
        """Elements of activations that have free channels along two dimensions: those of all but the one whose channels
        stand in the most places, where they are others."""
        roots, reasons = self.channels.classes()
        places = np.bincount(roots)[: self.channels.count]
        frozen = np.zeros(self.channels.count, bool)
        frozen[list(reasons)] = True
        for value, dims in self._dims.items():
            if value.derived and len(dims) > 1:
                lines = {dim: self.channels.roots(ids) for dim, ids in dims.items()}
                free = [dim for dim, line in lines.items() if not frozen[line].all()]
                free.sort(key=lambda dim: -places[lines[dim]].mean())
                yield from (dims[dim] for dim in free[1:] if set(lines[dim].tolist()) != set(lines[free[0]].tolist()))

    def why(self, value: Value) -> str:
        """Why a dimension of the value that has no label never changes."""
        return self.reasons.get(value, INPUT)

    def tie(self, value: Value, dim: int, ids: Ids) -> None:
        """A dimension of a value has the channels `ids`; where it has no labels, these are frozen."""
        own = self.of(value).get(dim)
        if own is not None and len(own) == len(ids):
            self.channels.tie(own, ids)
        else:
            self.channels.freeze(ids, self.why(value))

    def count(self, leaf: Leaf, ids: Ids) -> None:
        """A number that a module holds counts these channels; where it counts others, too, they are as many."""
        if leaf in self.counted:
            self.channels.tie(self.counted[leaf], ids)
        else:
            self.counted[leaf] = ids

    def freeze(self, value: Value, reason: str, *, but: Sequence[int] = ()) -> None:
        """All labels of a value, but those of some dimensions, are frozen."""
        for dim, ids in self.of(value).items():
            if dim not in but:
                self.channels.freeze(ids, reason)

    def stop(self, call: Call, why: str) -> None:
        """A step that is not understood: whatever it reads is frozen, and what it makes never changes."""
        what = title(call, self.modules)
        for value in call.values:
            self.freeze(value, f"{what}, which reads it, {why}")
        for length in call.lengths:
            for leaf, _ in leaves_of(length):
                if leaf[0] == "size" and leaf[2] in self.of(leaf[1]):
                    self.channels.freeze(self.of(leaf[1])[leaf[2]], f"{what}, which reads its size, {why}")
        for value in call.outputs:
            self.set(value, {}, f"{what} {why}")


def title(call: Call, modules: Mapping[str, nn.Module]) -> str:
    """A step in words: `MultiheadAttention layers.0.attention`, `layers.0:einsum`."""
    if call.module:
        return f"{type(modules[call.module]).__name__} {call.module}"
    return f"{call.owner}:{call.name}" if call.owner else call.name


def bound(call: Call, *names: str) -> dict[str, Any]:
    """Arguments by the names of a function's parameters."""
    return {**dict(zip(names, call.args, strict=False)), **call.kwargs}


def dims_of(value: Any, count: int) -> tuple[int, ...]:
    """Dimensions as non-negative numbers: of one, of several, or of all for None."""
    if value is None:
        return tuple(range(count))
    return tuple(int(dim) % count for dim in (value if isinstance(value, tuple | list) else (value,)))


def broadcast_dim(tensor: Tensor, dim: int, count: int) -> int:
    """The dimension of a result of `count` dimensions that a tensor's `dim` becomes."""
    return dim + count - tensor.dim()
