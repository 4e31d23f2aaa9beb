"""The recorded runs of a network: in eval mode, and in training, which may take other steps."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from htas.console.blame import blame
from htas.data.nests import parts_of
from htas.errors import UserError
from htas.graph.length import Length
from htas.graph.modes import copied
from htas.graph.record import Record, Stuck, Value, record, refusal, values_in
from htas.text import shapes

BY_PYTHON = "Python's random numbers"


def recorded_run(module: nn.Module, examples: tuple[Tensor, ...]) -> Record:
    """The steps of a run; modules of classes that cannot be recorded are one step.

    Raises UserError where the network's own forward depends on the values of tensors, or does not run.
    """
    whole: dict[type[nn.Module], str] = {}
    while True:
        try:
            return record(module, examples, whole)
        except Stuck as error:
            kind = type(module.get_submodule(error.path))
            if not error.path or kind is type(module) or kind in whole:
                raise refusal(module, str(error)) from error
            whole[kind] = str(error)
        except UserError:
            raise
        except Exception as error:
            what, sizes = "an input" if len(examples) == 1 else "inputs", shapes(each.shape for each in examples)
            raise UserError(
                f"{type(module).__name__} does not run on {what} of shape {sizes}: {blame(error)}"
            ) from error


def record_in_training(module: nn.Module, examples: tuple[Tensor, ...]) -> Record | None:
    """The steps of a run in training; None where the network does not run so on examples, [N, *shape] each, alone."""
    try:
        twin = copied(module).train()
    except Exception as error:  # whatever an object that the network holds makes of that
        raise UserError(
            f"{type(module).__name__} cannot be copied (copy.deepcopy: {error}): keep what cannot be copied outside "
            "the network, in a global variable for instance"
        ) from error
    more = tuple(torch.cat([example] * 2) for example in examples) if len(examples[0]) < 2 else examples
    before = _dice()
    try:
        run = recorded_run(twin, more)
    except UserError:
        return None
    run.chance = run.chance or (BY_PYTHON if _dice() != before else "")
    return run


def _dice() -> tuple[Any, ...]:
    """The state of the random numbers that no step records."""
    name, keys, *rest = np.random.get_state()
    return random.getstate(), name, np.asarray(keys).tobytes(), *rest


CHANCES = ("dropout", "batch_norm", "instance_norm")
"""Functions, in whose names these are, that are told by an option whether they are in training."""


def computes_alike(module: nn.Module, examples: tuple[Tensor, ...]) -> bool:
    """Whether a network's outputs are the same things in training as in eval mode: it takes the same steps, apart from
    what dropout and norms do in training. False where that cannot be told."""
    try:
        training = record_in_training(module, examples)
        run = recorded_run(copied(module).eval(), examples)
    except UserError:
        return False
    if training is None or training.chance:
        return False
    for call in (*run.calls, *training.calls):
        if any(name in call.name for name in CHANCES):
            call.kwargs = {name: value for name, value in call.kwargs.items() if name not in ("training", "train")}
    return same_steps(run, training)


def same_steps(one: Record, two: Record) -> bool:
    """Whether two runs of a network take the same steps, with the same options, on the same tensors."""
    if len(one.calls) != len(two.calls):
        return False
    twins: dict[Value, Value] = dict(zip(one.inputs, two.inputs, strict=True))
    twins |= {value: two.params[path] for path, value in one.params.items()}
    for call, other in zip(one.calls, two.calls, strict=True):
        if (call.name, call.module, call.owner) != (other.name, other.module, other.owner):
            return False
        if not _alike((call.args, call.kwargs), (other.args, other.kwargs), twins):
            return False
        if len(call.outputs) != len(other.outputs):
            return False
        twins |= dict(zip(call.outputs, other.outputs, strict=True))
    ends = [[twins.get(value, value) for value in values_in(one.outputs)], values_in(two.outputs)]
    return ends[0] == ends[1] and _alike(one.outputs, two.outputs, twins)


def _alike(one: Any, two: Any, twins: Mapping[Value, Value], within: tuple[int, ...] = ()) -> bool:
    """Whether arguments are the same: tensors each other's twins, sizes whatever the number of images makes them."""
    if isinstance(one, Value) and isinstance(two, Value):
        if one in twins:
            return twins[one] is two
        return one.shape == two.shape and bool((one.tensor == two.tensor).all())
    if isinstance(one, Length):
        return isinstance(two, Length)
    parts, others = parts_of(one), parts_of(two)
    if parts is None or others is None:
        return parts is others and type(one) is type(two) and _equal(one, two)
    if list(parts) != list(others) or id(one) in within:
        return list(parts) == list(others)
    return all(_alike(part, others[key], twins, (*within, id(one))) for key, part in parts.items())


def _equal(one: Any, two: Any) -> bool:
    try:
        return one is two or bool(one == two)
    except Exception:  # whatever objects of other libraries make of that
        return False
