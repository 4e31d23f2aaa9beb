"""Several processes that train one network, as `accelerate launch` and `torchrun` start them: what all do, what the
first does alone while the others wait, and means over all. With one process nothing here does anything.

The whole command runs in every process. Steps of a training are done together, each process with its slice of every
batch; all else is done by the first alone (`of_first`), which also writes every file and prints.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from time import sleep
from typing import TYPE_CHECKING, Any, TypeVar, cast

from htas.console.progress import silence
from htas.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
WAIT, STEP = timedelta(days=30), timedelta(hours=1)
"""The longest time that processes wait for what the first does alone, such as a survey, and for a step on GPUs."""
PAUSE = 20.0
"""Seconds that the first process has to say why all fail, before another one does or ends: a launcher ends all as soon
as one has ended, which takes PyTorch seconds on a busy machine."""
APART = 1e-4
"""Distance of the weights of two processes after an epoch, over their norm, above which something is wrong."""
OWN = 2**40
"""Between the seeds of two processes."""
LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Variables of launchers, beside those whose names begin with ACCELERATE_."""


class PeerError(RuntimeError):
    """Another process has ended, in one sentence. It is no UserError, which may be a diverged training for instance."""


class FirstProcessError(PeerError):
    """The first process has failed, and says why itself."""


@dataclass
class Group:
    """The processes that train one network."""

    rank: int
    """Of this process."""
    size: int
    waiting: Any
    """torch's group for messages between CPUs, which may take as long as a survey."""
    here: int = 1
    """Number of them on this machine."""
    alone: bool = False
    """Whether this process, the first, does something for all."""


_group: Group | None = None


def processes() -> int:
    """Number of processes that train together."""
    return 1 if _group is None else _group.size


def here() -> int:
    """Number of those on this machine."""
    return 1 if _group is None else _group.here


def size() -> int:
    """Number of processes that do the present piece of work together; 1 where the first does it alone."""
    return 1 if _group is None or _group.alone else _group.size


def rank() -> int:
    """Number of this process, from 0."""
    return 0 if _group is None else _group.rank


def first() -> bool:
    """Whether this process writes files and prints."""
    return rank() == 0


# -- joining -----------------------------------------------------------------------------------------------------------


def launched() -> bool:
    """Whether a launcher has started this process as one of several."""
    count = os.environ.get("WORLD_SIZE", "")
    return count.isdecimal() and int(count) > 1 and {"RANK", "MASTER_ADDR"} <= os.environ.keys()


def started_first() -> bool:
    """Whether this process is the first of those that a launcher has started, whether they have met or not."""
    return not launched() or int(os.environ["RANK"]) == 0


@contextmanager
def joined() -> Iterator[None]:
    """Be one of the processes that a launcher has started, if one has.

    Meanwhile the launcher's variables are gone: processes that this one starts are not of the group, and Accelerate
    takes this one for a training of its own.
    """
    global _group
    if not launched() or _group is not None:
        yield
        return
    environment = {name: os.environ[name] for name in os.environ if name in LAUNCHER or name.startswith("ACCELERATE_")}
    begun = _begin()
    for name in environment:
        del os.environ[name]
    try:
        with nullcontext() if first() else silence():
            yield
    finally:
        _group = None
        os.environ.update(environment)
    if begun:  # not after an error: messages under way would be waited for
        from torch import distributed

        distributed.destroy_process_group()


def _begin() -> bool:
    """Meet the other processes; returns whether that needed a group of torch's, which others have not made yet."""
    global _group
    import torch
    from torch import distributed

    if torch.cuda.is_available():
        torch.cuda.set_device(_gpu(torch.cuda.device_count()))
    begun = not distributed.is_initialized()
    if begun:
        os.environ.setdefault("MASTER_PORT", "29500")
        with _answers():
            distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=STEP)
    with _answers():
        waiting = distributed.new_group(backend="gloo", timeout=WAIT)
    number, count = distributed.get_rank(), distributed.get_world_size()
    _group = Group(number, count, waiting, int(os.environ.get("LOCAL_WORLD_SIZE", count)))
    return begun


def _gpu(count: int) -> int:
    """Number of the GPU of this process; raises UserError where its machine has none left."""
    if count == 1 and os.environ.get("CUDA_VISIBLE_DEVICES", ",").isalnum():  # a GPU of its own, as Slurm gives
        return 0
    number = int(os.environ.get("LOCAL_RANK", int(os.environ["RANK"]) % count))
    if number >= count:
        raise UserError(
            f"{os.environ.get('LOCAL_WORLD_SIZE', number + 1)} processes on this machine need as many GPUs, and it has "
            f"{count}: start {count} there"
        )
    return number


def speaks(error: BaseException) -> bool:
    """Whether this process prints why it ends: one of several does, where all end for one reason."""
    number = int(os.environ["RANK"]) if launched() else 0
    if isinstance(error, KeyboardInterrupt):
        return number == 0
    if isinstance(error, PeerError):
        return number <= 1 and not isinstance(error, FirstProcessError)
    if number:
        sleep(PAUSE)
    return True


# -- the first, and all ------------------------------------------------------------------------------------------------


def of_first(make: Callable[[], T]) -> T:
    """What the first process makes, in all of them; the others wait for it.

    Meanwhile the first is one process: what it does within may call `of_first`, or train.
    """
    if _group is None or _group.alone:
        return make()
    if not first():
        succeeded, value = _message(None)
        if not succeeded:
            sleep(PAUSE)  # a launcher ends all as soon as one ends
            raise FirstProcessError("the first of the processes that train together has failed; it says why")
        return cast(T, value)
    _group.alone = True
    try:
        result = make()
    except Exception:
        _group.alone = False
        _message((False, None))
        raise
    finally:
        _group.alone = False
    _message((True, result))
    return result


def same(value: object, what: str) -> None:
    """Raise UserError where processes differ in a value."""
    if size() > 1 and of_first(lambda: value) != value:
        raise UserError(
            f"process {rank()} does not see the {what} that the first one sees; all {size()} processes must read and "
            "write one folder"
        )


def share(count: int, option: str) -> slice:
    """The slice of a batch of `count` items that this process computes, as long as the others'.

    Raises UserError that names the option where there are no equal slices.
    """
    if size() == 1:
        return slice(None)
    need_divisible(count, option, size())
    part = count // size()
    return slice(rank() * part, (rank() + 1) * part)


def need_divisible(count: int, option: str, among: int) -> None:
    """Raise UserError where a batch has no equal part for each process."""
    if count % among:
        near = count - count % among or among
        raise UserError(
            f"{option}: a batch of {count} images cannot be divided among {among} processes, each of which takes as "
            f"many; give a multiple of {among}, such as {near}"
        )


def need_one(what: str) -> None:
    """Raise UserError in one of several processes, for what one process must do."""
    if launched() or processes() > 1:
        raise UserError(
            f"{what} is done by one process; start it without accelerate launch or torchrun, which are for htas run, "
            "search, train and demo"
        )


def own_seed(seed: int) -> int:
    """A seed for what may differ between processes, such as dropout; of the first, this one."""
    return seed + OWN * rank() if size() > 1 else seed


# -- tensors -----------------------------------------------------------------------------------------------------------


def reduce_gradients(parameters: Iterable["Tensor"]) -> None:
    """Make every gradient its mean over all processes, by one message.

    A parameter that one process did not use has a gradient of zeros there; without any gradient it stays.
    """
    if size() == 1:
        return
    import torch

    learning = [each for each in parameters if each.requires_grad]
    if not learning:
        return
    used = [each.grad is not None for each in learning]
    parts = [(torch.zeros_like(each) if each.grad is None else each.grad).reshape(-1) for each in learning]
    means = mean(torch.cat([*parts, parts[0].new_tensor(used)]))
    anywhere = used if all(used) else (means[-len(used) :] > 0).tolist()
    start = 0
    for parameter, part, has_gradient in zip(learning, parts, anywhere, strict=True):
        values = means[start : start + len(part)].view(parameter.shape)
        start += len(part)
        if not has_gradient:
            continue
        if parameter.grad is None:
            parameter.grad = torch.empty_like(parameter)
        parameter.grad.copy_(values)


def mean(values: "Tensor") -> "Tensor":
    """The mean of a tensor of floats over all processes."""
    if size() == 1:
        return values
    from torch import distributed

    total = values.clone()
    with _answers():
        distributed.all_reduce(total, group=_messages(total))
    return total.div_(size())


def from_first(tensors: Iterable["Tensor"]) -> None:
    """Write the first process's values into tensors."""
    if size() > 1:
        for group in _by_kind(tensors):
            _write(group, _of_first_process(group))


def equalize(weights: Iterable["Tensor"], statistics: Iterable["Tensor"]) -> None:
    """Make weights those of the first process, which they should be, and statistics the mean over all.

    Raises UserError where the weights are others: somebody's step took gradients of one process alone.
    """
    if size() == 1:
        return
    import torch

    for group in _by_kind(weights):
        flat, values = _flat(group), _of_first_process(group)
        if values.is_floating_point() and (flat - values).norm() > APART * values.norm():
            raise UserError(
                "the weights of the processes have come apart in an epoch, as they do where a step is taken without "
                "the others' gradients: let EpochLoop.update take it, or start one process"
            )
        _write(group, values)
    for group in _by_kind(statistics):
        flat, values = _flat(group), _of_first_process(group)
        if values.is_floating_point():
            apart = torch.where(flat == values, torch.zeros_like(values), flat - values)  # of infinities, too
            values = values + mean(apart)
        _write(group, values)


def _by_kind(tensors: Iterable["Tensor"]) -> list[list["Tensor"]]:
    """Tensors of one type and device together."""
    groups: dict[Any, list[Tensor]] = {}
    for each in tensors:
        groups.setdefault((each.dtype, each.device), []).append(each)
    return list(groups.values())


def _flat(tensors: Sequence["Tensor"]) -> "Tensor":
    import torch

    return torch.cat([each.detach().reshape(-1) for each in tensors])


def _of_first_process(tensors: Sequence["Tensor"]) -> "Tensor":
    """The first process's values of tensors of one kind, [all elements]."""
    import torch
    from torch import distributed

    values = _flat(tensors)
    with _answers():  # as bytes, since not every type can be sent
        distributed.broadcast(values.view(torch.uint8), 0, group=_messages(values))
    return values


def _write(tensors: Sequence["Tensor"], values: "Tensor") -> None:
    start = 0
    for each in tensors:
        each.detach().copy_(values[start : start + each.numel()].view(each.shape))
        start += each.numel()


def _messages(tensor: "Tensor") -> Any:
    """torch's group for the messages of a tensor; None for the usual one."""
    assert _group is not None
    return _group.waiting if tensor.device.type == "cpu" else None


def _message(content: Any) -> Any:
    """What the first process sends, in all."""
    import torch
    from torch import distributed

    assert _group is not None
    contents = [content]
    with _answers():
        distributed.broadcast_object_list(contents, 0, group=_group.waiting, device=torch.device("cpu"))
    return contents[0]


@contextmanager
def _answers() -> Iterator[None]:
    """PeerError where a message does not arrive: torch has no class of errors for that alone."""
    from torch import OutOfMemoryError

    try:
        yield
    except OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise PeerError(
            "another of the processes that train together has ended or does not answer; the same command goes on from "
            "the last epoch"
        ) from error
