"""Write widths and depths into a network, wider or narrower, keeping the weights that fit."""

import copy
from collections import OrderedDict
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, fx, nn

from htas.arch import Arch
from htas.graph.network import Network, Segment, Step, sized, total
from htas.graph.trace import capture, names


def resize(network: Network, arch: Arch) -> nn.Module:
    """The network at the widths and depths of `arch`: a new module; the given one is not changed.

    It is of the user's own class, with leaf modules swapped, unless a shortcut needs a projection
    (`adds="project"` at unequal widths): then it is a torch.fx GraphModule with the same module names plus one
    `.project` per such block. Weights that fit are kept, others are drawn by `reset_parameters`.
    Raises ValueError for an arch that is not of this network.
    """
    network.check(arch)
    module = _cut(copy.deepcopy(network.module), network, arch)
    projections = []
    for step in network.steps(arch):
        if step.node.kind == "project" and sized(step) is not None:
            projections.append(step)
        elif step.node.module and step.node.kind in ("conv", "depthwise", "norm"):
            module.set_submodule(step.node.module, _resized(module.get_submodule(step.node.module), step))
    return _projected(module, projections) if projections else module


def _cut(module: nn.Module, network: Network, arch: Arch) -> nn.Module:
    for site in network.depths.values():
        for block in site.producers[arch.depths[site.name] :]:
            owner, _, child = block.rpartition(".")
            parent = module.get_submodule(owner)
            parent._modules.pop(child)  # keeps the names of the others, which `del parent[i]` would renumber
    return module


def _resized(module: nn.Module, step: Step) -> nn.Module:
    """A module with a step's widths; the same object where they are its own."""
    outputs = total(step.node.segments, step.outputs)
    rows = _kept(step.node.segments, step.outputs)
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        return module if module.num_features == outputs else _norm(module, outputs, rows)
    columns = _kept(step.node.consumed, step.inputs[0])
    inputs = total(step.node.consumed, step.inputs[0])
    if isinstance(module, nn.Linear):
        if (module.in_features, module.out_features) == (inputs, outputs):
            return module
        linear = nn.Linear(inputs, outputs, module.bias is not None)
        return _filled(linear, module, rows, columns)
    assert isinstance(module, nn.Conv2d)
    if (module.in_channels, module.out_channels) == (inputs, outputs):
        return module
    groups = 1 if step.node.kind == "conv" else outputs
    conv = nn.Conv2d(
        inputs, outputs, module.kernel_size, module.stride, module.padding, module.dilation, groups,  # type: ignore[arg-type]
        module.bias is not None,
    )  # fmt: skip
    return _filled(conv, module, rows, columns if groups == 1 else (slice(None), slice(None)))


Index = tuple[Tensor | slice, Tensor | slice]


def _kept(segments: Sequence[Segment], widths: Sequence[int]) -> Index:
    """Channels of the old layout that stay, and where they stand in the new one."""
    old, new, start, place = [], [], 0, 0
    for segment, width in zip(segments, widths, strict=True):
        count = min(segment.base, width) * segment.repeat
        old.append(torch.arange(start, start + count))
        new.append(torch.arange(place, place + count))
        start += segment.base * segment.repeat
        place += width * segment.repeat
    return torch.cat(old), torch.cat(new)


def _filled(new: nn.Module, old: nn.Module, rows: Index, columns: Index) -> nn.Module:
    with torch.no_grad():
        weight = _param(new, "weight")
        weight.data = weight.data.to(_param(old, "weight"))
        chosen = _param(old, "weight")[rows[0]][:, columns[0]]
        if isinstance(columns[1], slice):
            weight[rows[1]] = chosen
        else:
            assert isinstance(rows[1], Tensor)
            weight[rows[1][:, None], columns[1][None, :]] = chosen
        if getattr(old, "bias", None) is not None:
            bias = _param(new, "bias")
            bias.data = bias.data.to(_param(old, "bias"))
            bias[rows[1]] = _param(old, "bias")[rows[0]]
    return new.train(old.training)


def _param(module: nn.Module, name: str) -> nn.Parameter:
    parameter = getattr(module, name)
    assert isinstance(parameter, nn.Parameter)
    return parameter


def _norm(old: nn.Module, outputs: int, rows: Index) -> nn.Module:
    assert isinstance(old, nn.BatchNorm1d | nn.BatchNorm2d)
    new = type(old)(outputs, eps=old.eps, momentum=old.momentum)
    new.to(old.weight.device)
    with torch.no_grad():
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(new, name)[rows[1]] = getattr(old, name)[rows[0]]
    return new.train(old.training)


def _projected(module: nn.Module, steps: Sequence[Step]) -> fx.GraphModule:
    """The module's graph with a 1x1 convolution, and a norm, on each of these shortcuts."""
    graph = capture(module)
    graph.graph.owning_module = graph
    found = dict(_adds(graph.graph))
    for step in steps:
        owner = step.node.name.removesuffix(".project")
        skip, branch = step.node.inputs
        outputs = total(step.node.segments, step.outputs)
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        parts["conv"] = nn.Conv2d(total(step.node.consumed, step.inputs[0]), outputs, 1, bias=False)
        if step.node.normed:
            parts["norm"] = nn.BatchNorm2d(outputs)
        graph.add_submodule(step.node.name, nn.Sequential(parts))
        add = found[owner]
        with graph.graph.inserting_before(add):
            source = next(node for node in add.all_input_nodes if node is not _branch(add))
            call = graph.graph.call_module(step.node.name, (source,))
        add.replace_input_with(source, call)
    graph.recompile()
    return graph


def _adds(graph: fx.Graph) -> Iterator[tuple[str, fx.Node]]:
    for node, name in names(graph).items():
        owner, _, what = name.rpartition(":")
        if what.rstrip("_").removeprefix("i") == "add":
            yield owner, node


def _branch(add: fx.Node) -> fx.Node:
    from htas.graph.trace import _private

    return next(node for node in add.all_input_nodes if _private(node))
