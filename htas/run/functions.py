"""The user's functions of a task, tried on one batch before hours go into measurements."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from htas.console.blame import blame
from htas.data.nests import tensors_in
from htas.data.split import Data
from htas.data.task import Inputs, Task, forward, need_score, precise
from htas.errors import UserError
from htas.graph.modes import copied
from htas.training.layout import CopyingViews, placed
from htas.training.loop import batches


def try_functions(model: nn.Module, data: Data, *, batch: int, device: str, trained: bool) -> None:
    """Call loss, score and distillation as training does, on a copy of the model and one batch of training items.

    `trained` says that the model's weights are trained, so that its score must be a finite number. Raises UserError,
    with what the function got, where one fails or gives something else than a number.
    """
    task, usual = data.task, Task()
    _need_parameters("train_fn", task.train, "network", "teacher")
    _need_parameters("score_func", task.judge, "network")
    inputs, targets = next(batches(data.train, batch, 0))
    if not all(bool(each.isfinite().all()) for each in tensors_in(inputs)):
        raise UserError(
            "a batch of the training data has inputs that are NaN or infinite: replace them, or leave those items out"
        )
    network = placed(copied(model), device)
    with torch.random.fork_rng(()), CopyingViews():
        with torch.no_grad():
            judged = _outputs(network.eval(), inputs)
        learnt = judged if task.train is not None else _outputs(network.train(), inputs)
        if task.classifies:
            _need_logits(learnt, data.classes)
        elif task.train is None:
            _need_gradient("loss_fn", _called("loss_fn", task.loss, learnt, targets), learnt)
        if task.score is not usual.score:
            with torch.no_grad():
                score = _called(task.scored_by, task.score, judged, targets)
                _need_number(task.scored_by, score)
            if trained:  # new weights may predict nothing as yet
                need_score(float(score), task.scored_by, "the given model, on a batch of the training data")
        if task.distil is not None and task.train is None:
            _need_gradient("distill_fn", _called("distill_fn", task.distil, learnt, judged, targets), learnt)


def _outputs(network: nn.Module, inputs: Inputs) -> Any:
    try:
        return precise(forward(network, inputs))
    except Exception as error:  # a user's code may raise anything
        mode = "training" if network.training else "eval"
        raise UserError(
            f"the model does not run in {mode} mode on a batch of the training data, in float32: {blame(error)}"
        ) from error


def _need_parameters(name: str, function: Callable[..., Any] | None, *parameters: str) -> None:
    if function is None:
        return
    try:
        inspect.signature(function).bind(*parameters)
    except TypeError as error:
        raise UserError(f"{name} must take ({', '.join(parameters)}): {error}") from error
    except ValueError:  # written in C, without a signature
        return


def _need_logits(outputs: Any, classes: int) -> None:
    if not isinstance(outputs, Tensor) or outputs.dim() != 2 or outputs.shape[1] != classes:
        raise UserError(
            f"in training mode the model gives {_described(outputs)}, and logits [N, {classes}] in eval mode, which "
            "cross-entropy needs: build it without auxiliary outputs (aux_logits=False, say), or give a loss_fn that "
            "takes both, and an eval_fn"
        )


def _called(name: str, function: Callable[..., Any], *values: Any) -> Any:
    """What a user's function gives; raises UserError, with what it got, where it fails."""
    try:
        return function(*values)
    except Exception as error:  # a user's code may raise anything
        got = " and ".join(map(_described, values))
        raise UserError(f"{name} fails on a batch of the training data: {blame(error)}; it got {got}") from error


def _need_gradient(name: str, value: Any, outputs: Any) -> None:
    if not isinstance(value, Tensor) or value.dim() or not value.is_floating_point():
        raise UserError(f"{name} must give a scalar tensor, the mean over the batch; it gives {_described(value)}")
    if not value.requires_grad and any(each.requires_grad for each in tensors_in(outputs)):
        raise UserError(
            f"{name} gives a tensor without a gradient, of which nothing is learnt: compute it from the outputs by "
            "functions of torch, without .item(), .detach() or argmax"
        )
    if not bool(value.isfinite()):
        raise UserError(
            f"{name} gives {value.item()} on a batch of the training data: look for such numbers, or for a logarithm "
            "or a quotient of 0, in the inputs, the targets and the outputs"
        )


def _need_number(name: str, value: Any) -> None:
    """A score may be a number or a tensor of no dimension, of any type."""
    if not isinstance(value, int | float) and getattr(value, "shape", None) != ():
        raise UserError(
            f"{name} must give one number, the mean score of a batch, the higher the better; it gives "
            f"{_described(value)}"
        )


def _described(value: Any) -> str:
    """`a tensor (8, 4)`, or how a value of several is nested: `GoogLeNetOutputs`, `dict of boxes, labels`."""
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor {tuple(value.shape)}"
    kind = type(value).__name__
    if isinstance(value, dict):
        return f"{kind} with {', '.join(map(str, value))}"
    return f"{kind} of {', '.join(map(_described, value))}" if isinstance(value, tuple | list) else kind
