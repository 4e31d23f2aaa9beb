"""Read a network's free widths and depths out of a run on an example."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from htas.console.blame import blame
from htas.errors import UserError
from htas.graph._check import check, check_outputs
from htas.graph.emit import Emitter
from htas.graph.follow import Follower
from htas.graph.fuse import fused
from htas.graph.modes import copied, evaluating, untouched, unwrapped
from htas.graph.network import Network, Site
from htas.graph.record import Record, Stuck, Value, record, refusal, replaced, values_in
from htas.graph.verify import failure, permuted, planted
from htas.text import no_such, shapes


def trace(
    module: nn.Module,
    example: Tensor | Sequence[Tensor],
    *,
    adds: Literal["join", "project"] = "join",
    project_norm: bool = True,
    ignored: Collection[str] = (),
) -> Network:
    """The free widths and depths of `module`, from a run with `example`: [N, C, H, W], or one tensor [N, ...] an input.

    `adds="join"` gives layers that are added one width; "project" gives each its own, with a 1x1 convolution (and a
    norm, if `project_norm`) on an identity shortcut where they differ. Modules that are `ignored`, with all their
    submodules, keep the widths of their outputs, and their blocks. The module is not changed. Raises UserError where
    its own forward depends on the values of tensors, where it does not run on the example, for an ignored module that
    does not exist, and for hooks and quantised layers.
    """
    module = unwrapped(module)
    examples = (example,) if isinstance(example, Tensor) else tuple(example)
    check(module)
    _check_ignored(module, ignored)
    devices = {parameter.device for parameter in module.parameters() if parameter.is_cuda}
    with untouched(module), torch.random.fork_rng(devices):  # later random numbers are those without a trace
        return _traced(module, examples, adds, project_norm, ignored)


def _traced(
    module: nn.Module,
    examples: tuple[Tensor, ...],
    adds: Literal["join", "project"],
    project_norm: bool,
    ignored: Collection[str],
) -> Network:
    with evaluating(module):
        recorded = recorded_run(module, examples)
        follower = Follower(module, recorded, examples, adds, project_norm, ignored)
    training = _in_training(module, examples)
    if training is not None:
        check_outputs(module, recorded, training)
    network = _labelled(follower, training)
    if follower.labels.recount:
        with evaluating(module):
            again = Follower(module, recorded, examples, adds, project_norm, ignored)
        again.labels.by_count = True
        other = _labelled(again, training)
        if other.searchable > network.searchable + 0.01:
            follower, network = again, other
    for _ in range(len(network.sites)):  # at most: what is left of a site may fail for itself
        faults = _faults(network, examples, trains=training is not None)
        if not faults:
            break
        for name, reason in faults.items():
            follower.freeze_site(name, reason)
        network = _network(follower)
    return replace(network, checked=CHECKED if training is not None else UNTRAINED)


CHECKED = (
    "at other widths it runs, and runs backward in training, with the channels and parameters foretold, and computes "
    "what its steps compute"
)
UNTRAINED = (
    "at other widths it runs with the channels and parameters foretold, and computes what its steps compute; it does "
    "not run in training on an example alone"
)


def _labelled(follower: Follower, training: Record | None) -> Network:
    """The Network of the recorded steps, in both modes, before any check."""
    follower.label()
    if training is not None and follower.adds == "join":
        follower.label_again(training)
    return _network(follower)


def _network(follower: Follower) -> Network:
    """The Network of labelled steps."""
    emitter, recorded = Emitter(follower), follower.record
    emitter.emit()
    nodes = fused(emitter.nodes, emitter.activation)
    depths = {run.site: Site(run.site, "depth", len(run.names), run.names) for run in follower.runs}
    leaving = values_in(recorded.outputs)
    places = {value: number for number, value in enumerate(leaving)}

    def result(values: tuple[Tensor, ...]) -> object:
        return replaced(recorded.outputs, lambda leaf: values[places[leaf]] if isinstance(leaf, Value) else leaf)

    return Network(
        follower.module, tuple(nodes.values()), emitter.sites() | depths, emitter.frozen(),
        tuple(tuple(each.shape[1:]) for each in follower.examples), follower.adds,
        tuple(emitter.place[value] for value in leaving), result, emitter.layouts(), emitter.counted,
        fixed_order=emitter.unordered(),
    )  # fmt: skip


def _in_training(module: nn.Module, examples: tuple[Tensor, ...]) -> Record | None:
    """The steps of a run in training; None where the network does not run so on examples alone."""
    try:
        twin = copied(module).train()
    except Exception as error:  # whatever an object that the network holds makes of that
        raise UserError(
            f"{type(module).__name__} cannot be copied (copy.deepcopy: {error}): keep what cannot be copied outside "
            "the network, in a global variable for instance"
        ) from error
    more = tuple(torch.cat([example] * 2) for example in examples) if len(examples[0]) < 2 else examples
    try:
        return recorded_run(twin, more)
    except UserError:
        return None


def _faults(network: Network, examples: tuple[Tensor, ...], *, trains: bool) -> dict[str, str]:
    """Sites at which the network is not right when it is narrower, each with the reason."""

    def wrong(sites: list[str]) -> str:
        reason = failure(network, examples, sites, trains=trains)
        if reason or network.adds == "project":
            return reason
        return permuted(network, examples, sites) or planted(network, examples, sites)

    def search(sites: list[str]) -> dict[str, str]:
        reason = wrong(sites) if sites else ""
        if not reason:
            return {}
        if len(sites) == 1:
            return {sites[0]: f"the network {reason}"}
        half = len(sites) // 2
        parts = search(sites[:half]) | search(sites[half:])
        return parts or {site: f"the network {reason}" for site in sites}

    return search(list(network.sites))


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


def _check_ignored(module: nn.Module, ignored: Collection[str]) -> None:
    names = [name for name, _ in module.named_modules() if name]
    for name in ignored:
        if name not in names:
            raise UserError(no_such("module of this network", name, names[:40]))
