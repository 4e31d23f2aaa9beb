"""Read a network's free widths and depths out of a run on an example."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import prod
from typing import Literal

import torch
from torch import Tensor, nn

from htas.data.nests import form, replaced
from htas.errors import UserError
from htas.graph._check import check, check_held, check_outputs
from htas.graph.compared import undecided
from htas.graph.emit import Emitter
from htas.graph.follow import Follower
from htas.graph.fuse import fused
from htas.graph.layer import WEIGHTED
from htas.graph.modes import evaluating, untouched, unwrapped
from htas.graph.network import Network, Site, Steps, total_channels
from htas.graph.record import RANDOM, Record, Value, values_in
from htas.graph.runs import record_in_training, recorded_run
from htas.graph.verify import failure, failure_in_training, permuted, planted, starved
from htas.text import no_such


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
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    with evaluating(module):
        recorded = recorded_run(module, examples)
    unsteady = _unsteady(module, buffers, recorded)
    check_held(module, recorded)
    training = record_in_training(module, examples)
    if training is not None:
        check_held(module, training)
        check_outputs(module, recorded, training)

    def followed(*, by_count: bool) -> tuple[Follower, Network]:
        with evaluating(module):
            follower = Follower(module, recorded, training, examples, adds, project_norm, ignored)
        follower.labels.by_count = by_count
        follower.label()
        return follower, _network(follower)

    follower, network = followed(by_count=False)
    if follower.labels.recount:
        other = followed(by_count=True)
        if other[1].searchable > network.searchable + 0.01:
            follower, network = other
    missed = _missed(follower, network)
    if missed:
        follower.repeats = False
        network = replace(network, training=None)
    for _ in range(len(network.sites)):  # at most: what is left of a site may fail for itself
        faults = _faults(network, examples, trains=training is not None, unsteady=unsteady)
        if not faults:
            network, faults = _with_least_widths(network, examples, trains=training is not None)
        if not faults:
            break
        for name, reason in faults.items():
            follower.freeze_site(name, reason)
        network = _network(follower)
    _check_charged(network)
    return replace(network, checked=(CHECKED if training is not None else UNTRAINED) + missed)


CHECKED = (
    "at other widths it runs, and runs backward in training, with the channels and parameters foretold, and computes "
    "what its steps compute"
)
UNTRAINED = (
    "at other widths it runs with the channels and parameters foretold, and computes what its steps compute; it does "
    "not run in training on an example alone"
)


def _check_charged(network: Network) -> None:
    """Fail where a layer with weights is charged for other channels than it has: that is a fault of ours."""
    modules = dict(network.module.named_modules())
    for step in network.steps(network.base):
        node, layer = step.node, step.node.layer
        if layer is None or layer.op not in WEIGHTED:
            continue
        charged = tuple(total_channels(*side) for side in step.charged)
        assert charged == (layer.inputs, layer.outputs), f"{node.name} is charged for {charged} channels as {layer}"
        weight = modules[node.module]._parameters.get("weight") if node.called and node.kind != "project" else None
        if weight is not None:
            sizes = prod(weight.shape[:2]), prod(weight.shape[2:])
            assert sizes == (layer.inputs * layer.outputs // layer.groups, prod(layer.kernel)), f"{node.name}: {layer}"


def _missed(follower: Follower, network: Network) -> str:
    """Why the steps that only training takes are left out of a search; empty where they are not, or there are none."""
    if not follower.repeats or follower.training is None:
        return ""
    if place := follower.training.record.chance:
        reason = f"Python decides on it at random ({place})"
    elif network.training is None:
        reason = "it runs its modules in another way then"
    else:
        reason = failure_in_training(network, follower.examples)
    return f"; a search trains it without what only training does: {reason}" if reason else ""


def _network(follower: Follower) -> Network:
    """The Network of labelled steps."""
    emitter = Emitter(follower, follower.eval)
    while reasons := undecided(follower.compared, emitter):
        follower.freeze_undecided(reasons)
        emitter = Emitter(follower, follower.eval)
    steps = _steps(emitter)
    depths = {run.site: Site(run.site, "depth", len(run.names), run.names) for run in follower.runs}
    network = Network(
        follower.module, steps.nodes, emitter.sites() | depths, emitter.frozen(),
        tuple(tuple(each.shape[1:]) for each in follower.examples), follower.adds, steps.outputs, steps.result,
        emitter.layouts(), emitter.counted, fixed_order=emitter.unordered(), form=steps.form,
    )  # fmt: skip
    if follower.training is None or not follower.repeats or not follower.training.calls_blocks(follower.runs):
        return network
    training = _steps(Emitter(follower, follower.training, emitter.atoms))
    return replace(network, training=training) if _fits(training, steps) else network


def _steps(emitter: Emitter) -> Steps:
    """The nodes of a mode, and what they return."""
    emitter.emit()
    nodes, outputs = fused(emitter.nodes, emitter.activation), emitter.record.outputs
    leaving = values_in(outputs)
    places = {value: number for number, value in enumerate(leaving)}

    def result(values: tuple[Tensor, ...]) -> object:
        return replaced(outputs, lambda leaf: values[places[leaf]] if isinstance(leaf, Value) else leaf)

    shapes = form(outputs, lambda leaf: leaf.shape[1:] if isinstance(leaf, Value) else None)
    return Steps(tuple(nodes.values()), tuple(emitter.place[value] for value in leaving), result, shapes)


def _fits(training: Steps, steps: Steps) -> bool:
    """Whether modules are used in training as in eval mode, and shortcuts projected alike."""
    one, two = ({node.module: (node.kind, node.called) for node in each.nodes} for each in (training, steps))
    projects = [{node.name for node in each.nodes if node.kind == "project"} for each in (training, steps)]
    return all(two.get(module, how) == how for module, how in one.items() if module) and projects[0] == projects[1]


def _unsteady(module: nn.Module, buffers: Mapping[str, Tensor], recorded: Record) -> str:
    """Why a network computes something else each time in eval mode; empty where nothing is known."""
    for name, buffer in module.named_buffers():
        if name not in buffers or not torch.equal(buffer, buffers[name]):
            return f"keeps state: buffer {name} changes in eval mode"
    for call in recorded.calls:
        if call.name in RANDOM or ("dropout" in call.name and call.kwargs.get("training")):
            place = f"{call.owner}, " if call.owner else ""
            return f"draws random numbers in eval mode ({place}{call.name}): return what they are drawn from instead"
    return ""


def _faults(network: Network, examples: tuple[Tensor, ...], *, trains: bool, unsteady: str) -> dict[str, str]:
    """Sites at which the network is not right when it is narrower, each with the reason."""

    def wrong(sites: list[str]) -> str:
        reason = failure(network, examples, sites, trains=trains)
        reason = reason or permuted(network, examples, sites) or planted(network, examples, sites)
        return unsteady if unsteady and "something else" in reason else reason

    return _failing(wrong, list(network.sites))


def _failing(wrong: Callable[[list[str]], str], sites: list[str]) -> dict[str, str]:
    """The sites for which a check of some together gives a reason; all of them where it does for no part."""
    reason = wrong(sites) if sites else ""
    if not reason:
        return {}
    if len(sites) == 1:
        return {sites[0]: f"the network {reason}"}
    half = len(sites) // 2
    parts = _failing(wrong, sites[:half]) | _failing(wrong, sites[half:])
    return parts or {site: f"the network {reason}" for site in sites}


DOUBLINGS = 3
"""How often the least widths are doubled."""


def _with_least_widths(
    network: Network, examples: tuple[Tensor, ...], *, trains: bool
) -> tuple[Network, dict[str, str]]:
    """The network with least widths at which it runs and gives numbers; where there are none, the sites that cannot do
    with a channel alone, each with the reason."""
    wider = network
    for _ in range(DOUBLINGS):
        if not starved(wider, examples, list(network.widths), trains=trains):
            return wider, {}
        doubled = {name: replace(site, least=2 * site.least) for name, site in wider.widths.items()}
        wide = {name: site for name, site in doubled.items() if site.least <= site.base}
        wider = replace(wider, sites={**wider.sites, **wide})
    return network, _failing(partial(starved, network, examples, trains=trains), list(network.widths))


def _check_ignored(module: nn.Module, ignored: Collection[str]) -> None:
    names = [name for name, _ in module.named_modules() if name]
    for name in ignored:
        if name not in names:
            raise UserError(no_such("module of this network", name, names[:40]))
